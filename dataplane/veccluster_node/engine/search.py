"""Answer queries from one state of a shard: graphs propose, scans are exact, raw vectors decide.

A search takes a read transaction (state S), then the published view, and from then on sees exactly S: a vector
counts when it was born at or before S and died, if at all, after it. Every candidate's distance is computed from its
raw vector by `distance.exact`; results come by distance, then id.

With a filter: the graph is asked for more and more and SQL says which of the proposed match, unless so few rows
match at all (or the graph would have to propose so many) that looking at all the matching ones is cheaper, which is
exact.

Of vectors that are equally far the first by id are answered, among all that were looked at: all there are where
everything is scanned; where a graph proposes, those that it leads to, and of equal vectors the oldest. However many
there are, no more than k of each query are kept for long, and only the index of ids is asked which.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from veccluster.decisions.filters import Filter, Where
from veccluster.decisions.replication.atomic import Showing
from veccluster.errors import StorageCorrupt
from veccluster.model.state import IndexParameters, Metric
from veccluster_node.engine.calibration import SCAN_FROM, candidates, reach, with_ghosts
from veccluster_node.engine.distance import F32, F64, I64, U64, Mask, coarse, exact, lengths, slack
from veccluster_node.engine.graph import Graph
from veccluster_node.engine.records import Row, Snapshot, Snapshots
from veccluster_node.engine.stopping import NEVER, Stop
from veccluster_node.engine.twins import first_equals
from veccluster_node.engine.view import Feed, SearchView, Segment
from veccluster_node.wal.operations import Looked

T = TypeVar("T")

_BLOCK_BYTES = 16 << 20
"""Memory that one block of a scan may take for its distances or gathered vectors."""
_BREADTH = 2
"""With a filter, proposals asked of a graph for each that counts: the farther half of its answer is less complete."""
_FIRST_FETCH = 128
_GROWTH = 4
_AT_ONCE = 20_000
"""Candidates that a graph keeps in all, over the queries that it is asked at once: what takes some 50 ms."""
_QUERIES = 1024
"""Queries that are scanned for at once."""
_KEPT = 1 << 20
"""Candidates that may wait for all the queries being scanned for, until the equally far among them are cut."""
_ORDERS = 4
"""Orders by id that one search remembers: where many vectors are equal, most queries want the same."""
_EQUALS = 256
"""From so many candidates of one block on it is worth a look whether they are equal vectors."""
_SPARSE = 0.5
"""With fewer alive than this, a scan picks the living rows instead of passing over the dead."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What is asked: the `k` nearest of each of `vectors` (n, dimension), finite and of the right dimension.

    `ef` is how many candidates a graph keeps while it searches (None: the collection's); `exact` looks at every vector.
    """

    vectors: F32
    k: int
    where: Where | None = None
    ef: int | None = None
    exact: bool = False
    with_metadata: bool = True
    with_vector: bool = False


class Hit(msgspec.Struct, frozen=True, array_like=True):
    """One neighbour, from the graph to the reply: nodes send it as it is.

    `metadata` is JSON, `vector` little-endian float32 as it was given; None where they were not asked for.
    """

    distance: float
    id: str
    metadata: bytes | None = None
    vector: bytes | None = None


def nearness(hit: Hit) -> tuple[float, str]:
    """What hits are sorted by."""
    return (hit.distance, hit.id)


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """What is kept under an id; as in `Hit`."""

    id: str
    vector: bytes
    metadata: bytes


class Results(list[list[Hit]]):
    """A list of hits for each query, in order, as of the state after `applied_seq`."""

    def __init__(self, hits: Sequence[list[Hit]], snapshot: Snapshot) -> None:
        super().__init__(hits)
        self.applied_seq = snapshot.applied_seq
        self.epoch = snapshot.epoch
        self.showing = snapshot.showing()


class Rows(list[T]):
    """What was read of several rows, as of the state after `applied_seq`."""

    def __init__(self, rows: Iterable[T], snapshot: Snapshot) -> None:
        super().__init__(rows)
        self.applied_seq = snapshot.applied_seq
        self.epoch = snapshot.epoch
        self.showing = snapshot.showing()


class Total(int):
    """A number of vectors, as of the state after `applied_seq`."""

    applied_seq: int
    epoch: int
    showing: Showing

    @classmethod
    def of(cls, number: int, snapshot: Snapshot) -> "Total":
        """The number in that state."""
        made = cls(number)
        made.applied_seq, made.epoch, made.showing = snapshot.applied_seq, snapshot.epoch, snapshot.showing()
        return made


@dataclass(slots=True, eq=False)
class _Candidates:
    """What was found for one query: seqs and exact distances, and where the vectors are."""

    seqs: list[U64] = field(default_factory=list)
    distances: list[F64] = field(default_factory=list)

    def add(self, seqs: U64, distances: F64) -> None:
        self.seqs.append(seqs)
        self.distances.append(distances)

    def best(self, k: int) -> tuple[U64, F64]:
        """The k nearest, and whatever is as far as the last of them, as they came."""
        if not self.seqs:
            return np.zeros(0, np.uint64), np.zeros(0)
        seqs, distances = np.concatenate(self.seqs), np.concatenate(self.distances)
        if len(seqs) > k:
            near = distances <= np.partition(distances, k - 1)[k - 1]
            seqs, distances = seqs[near], distances[near]
        return seqs, distances

    def keep(self, seqs: U64, distances: F64) -> None:
        """Forget all but these."""
        self.seqs, self.distances = [seqs], [distances]


@dataclass(slots=True, eq=False)
class _Crowd:
    """More than k candidates of one query: what is nearer than the last of them, and those that are as far as it."""

    query: int
    seqs: U64
    distances: F64
    farthest: float
    tied: U64


class _Remembered:
    """Which seqs matched recent filters, each in one state: asking again while nothing is written costs no SQL."""

    def __init__(self, *, entries: int = 64, largest: int) -> None:
        """Remember the newest `entries` answers of at most `largest` seqs."""
        self._entries = entries
        self._largest = largest
        self._found: OrderedDict[tuple[str, int, int], U64] = OrderedDict()
        self._lock = threading.Lock()

    def matching(self, snapshot: Snapshot, filter_: Filter, limit: int) -> U64:
        """As `Snapshot.matching`."""
        key = (repr(filter_), snapshot.applied_seq, limit)  # equal filters may differ: in Python 1 == 1.0 == True
        with self._lock:
            if (found := self._found.get(key)) is not None:
                self._found.move_to_end(key)
                return found
        found = snapshot.matching(filter_, limit)
        if len(found) > self._largest:
            return found
        with self._lock:
            self._found[key] = found
            while len(self._found) > self._entries:
                self._found.popitem(last=False)
        return found


class _Found(Protocol):
    """Is told of rows of a segment, and how far each is from a query."""

    def __call__(self, segment: Segment, query: int, rows: I64, distances: F64, /) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Proposal:
    """Living vectors of one segment for one query: all that are nearer than `horizon`, and perhaps more."""

    seqs: U64
    distances: F64
    horizon: float


class Reader:
    """Searches and reads one shard, from any thread; all it knows of the writer is what the feed and the file say."""

    def __init__(
        self,
        records: Path,
        feed: Feed,
        *,
        dimension: int,
        metric: Metric,
        index: IndexParameters,
        scan_rows: int = 20_000,
    ) -> None:
        """`scan_rows`: up to how many matching rows a filtered search rather looks at than walks a graph."""
        self._snapshots = Snapshots(records)
        self._feed = feed
        self._dimension = dimension
        self.metric = metric
        self.index = index
        self.scan_rows = scan_rows
        self.remembered = _Remembered(largest=scan_rows + 1)

    def search(self, query: Query, stop: Stop = NEVER) -> Results:
        """Answer every query vector from one state, unless nobody waits for it any more."""
        with self._state(stop) as (snapshot, view):
            return _Search(snapshot, view, query, self).run()

    @contextmanager
    def _state(self, stop: Stop) -> Iterator[tuple[Snapshot, SearchView]]:
        """A transaction, and a view that holds all that is alive in it."""
        while True:
            with self._snapshots.take(stop) as snapshot:
                view = self._feed.view()
                if view.floor <= snapshot.applied_seq:
                    yield snapshot, view
                    return

    @contextmanager
    def snapshot(self, stop: Stop = NEVER) -> Iterator[Snapshot]:
        """One state of the rows alone."""
        with self._snapshots.take(stop) as snapshot:
            yield snapshot

    def get(self, ids: Sequence[str], stop: Stop = NEVER) -> Rows[Stored | None]:
        """What is stored under each id, all as of one state; None for what is not there."""
        with self.snapshot(stop) as snapshot:
            rows = snapshot.rows_of(ids)
            found = list(rows.values())
            vectors = snapshot.vectors([r.seq for r in found], self._dimension)
            stored = {r.id: Stored(r.id, v.tobytes(), r.metadata) for r, v in zip(found, vectors, strict=True)}
            return Rows((stored.get(i) for i in ids), snapshot)

    def list_ids(self, after: str | None, limit: int, filter_: Filter | None, stop: Stop = NEVER) -> Rows[str]:
        """Ids in the order of their UTF-8 bytes, beyond `after`."""
        with self.snapshot(stop) as snapshot:
            return Rows(snapshot.ids(after, limit, filter_), snapshot)

    def count(self, filter_: Filter | None, stop: Stop = NEVER) -> Total:
        """How many vectors there are, or how many a filter matches."""
        with self.snapshot(stop) as snapshot:
            return Total.of(snapshot.count(filter_), snapshot)

    def look(self, filter_: Filter, stop: Stop = NEVER) -> Looked:
        """What a filter matches, for a delete."""
        with self.snapshot(stop) as snapshot:
            return Looked(snapshot.applied_seq, snapshot.matching(filter_))

    def close(self) -> None:
        """Let go of the connections."""
        self._snapshots.close()


class _Kinds:
    """The vectors of one block of a scan, equal ones taken together: of many equal ones one is compared exactly."""

    def __init__(self, vectors: F32) -> None:
        self._vectors = vectors
        firsts = first_equals(lambda rows: vectors[rows], len(vectors))
        self._one = np.flatnonzero(firsts == np.arange(len(firsts)))
        self._kind = np.searchsorted(self._one, firsts)

    def distances(self, metric: Metric, query: F32, rows: I64) -> F64:
        """As `distance.exact`, of these rows of the block."""
        kinds = self._kind[rows]
        present = np.zeros(len(self._one), bool)
        present[kinds] = True
        out = np.empty(len(self._one))
        out[present] = exact(metric, query, self._vectors[self._one[present]])
        return out[kinds]


class _Search:
    """One search in one state."""

    def __init__(self, snapshot: Snapshot, view: SearchView, query: Query, reader: Reader) -> None:
        self.snapshot = snapshot
        self.stop = snapshot.stop
        self.view = view
        self.query = query
        self.metric = reader.metric
        self.index = reader.index
        self.scan_rows = reader.scan_rows
        self.remembered = reader.remembered
        self.at = snapshot.applied_seq
        self.vectors = np.ascontiguousarray(query.vectors, np.float32)
        self.lengths = lengths(self.vectors)
        self.found = [_Candidates() for _ in self.vectors]
        self.waiting = 0
        self.scanned_for: I64 = np.zeros(0, np.int64)
        self.ordered: dict[bytes, U64] = {}

    def run(self) -> Results:
        if self.query.where is None:
            self._unfiltered()
        else:
            self._filtered(self.query.where.filter)
        return Results(self._answers(), self.snapshot)

    def _unfiltered(self) -> None:
        for queries in self._slices(np.arange(len(self.vectors))):
            for segment in self.view.segments:
                if self.query.exact or segment.graph is None:
                    self._scan(segment, queries, self._add, k=self.query.k)
                else:
                    self._walk(segment, segment.graph, queries)

    def _slices(self, queries: I64) -> Iterator[I64]:
        """The queries, so many at a time that what is found for them does not take much memory meanwhile."""
        for start in range(0, len(queries), _QUERIES):
            self.scanned_for = queries[start : start + _QUERIES]
            yield self.scanned_for
            self._settle(self.scanned_for)

    def _add(self, segment: Segment, query: int, rows: I64, distances: F64) -> None:
        self.found[query].add(segment.seqs[rows], distances)
        self.waiting += len(rows)
        if self.waiting > _KEPT:
            self._settle(self.scanned_for)

    def _settle(self, queries: I64) -> None:
        """Keep no more than k candidates of each query: the nearest, and of the equally far the first by id."""
        k = self.query.k
        crowded: list[_Crowd] = []
        for query in queries.tolist():
            seqs, distances = self.found[query].best(k)
            if len(seqs) > k:
                last = distances == distances.max()
                crowd = _Crowd(query, seqs[~last], distances[~last], float(distances.max()), seqs[last])
                if crowded and np.array_equal(crowded[-1].tied, crowd.tied):
                    crowd.tied = crowded[-1].tied  # the same equal vectors, mostly
                crowded.append(crowd)
                seqs, distances = crowd.seqs, crowd.distances
            self.found[query].keep(seqs, distances)
        for crowd, first in zip(crowded, self._by_id([c.tied for c in crowded]), strict=True):
            room = k - len(crowd.seqs)
            self.found[crowd.query].add(first[:room], np.full(room, crowd.farthest))
        self.waiting = 0

    def _by_id(self, groups: Sequence[U64]) -> Iterator[U64]:
        """Each of these groups of seqs in the order of their ids; SQL is asked once for all of them."""
        different = {id(group): group for group in groups}
        if not different:
            return
        known = next(iter(different.values())) if len(different) == 1 else np.concatenate(list(different.values()))
        known = np.unique(known)
        key = known.tobytes()
        if (ordered := self.ordered.get(key)) is None:
            ordered = self.snapshot.by_id(known)
            if len(ordered) != len(known):
                missing = np.setdiff1d(known, ordered)[0]
                raise StorageCorrupt(f"the row of seq {missing} is missing, although nothing ended it")
            if len(self.ordered) >= _ORDERS:
                self.ordered.clear()
            self.ordered[key] = ordered
        ranks = np.empty(len(known), np.int64)
        ranks[np.searchsorted(known, ordered)] = np.arange(len(ordered))
        sorted_ = {i: group[np.argsort(ranks[np.searchsorted(known, group)])] for i, group in different.items()}
        for group in groups:
            yield sorted_[id(group)]

    # -- graphs

    def _walk(self, segment: Segment, graph: Graph, queries: I64) -> None:
        """Ask a graph for candidates of each query; ask for more where too many were dead."""
        wanted = candidates(self.query.k, self.index.precision)
        fetch = with_ghosts(wanted, segment.ghosts / graph.entries)
        breadth = graph.breadth(self.query.k)
        while len(queries):
            if breadth is None or fetch * 4 > graph.entries or self._scan_is_cheaper(graph, fetch, breadth):
                return self._scan(segment, queries, self._add, k=self.query.k)
            short = []
            for query, rows in self._proposed(segment, graph, queries, fetch, breadth):
                if len(rows) < wanted:
                    short.append(query)
                else:
                    self._add(segment, query, rows, self._distances(segment, query, rows))
            queries = np.array(short, np.int64)
            fetch *= 2
        return None

    def _reach(self, fetch: int, breadth: float) -> tuple[int, int]:
        """As `calibration.reach`; a query's own `ef` means what it says."""
        if self.query.ef:
            return reach(fetch, self.query.ef, self.index.precision, 1.0)
        return reach(fetch, self.index.ef_search, self.index.precision, breadth)

    def _scan_is_cheaper(self, graph: Graph, fetch: int, breadth: float) -> bool:
        """Whether the graph needs so much breadth that looking at all of it is as fast, and exact."""
        return not self.query.ef and breadth > 1 and self._reach(fetch, breadth)[1] * SCAN_FROM > graph.entries

    def _proposed(
        self, segment: Segment, graph: Graph, queries: I64, fetch: int, breadth: float
    ) -> Iterator[tuple[int, I64]]:
        """For each query the living rows among what the graph proposes and what is equal, nearest first, roughly; of
        equal ones not many more than `fetch`.
        """
        asked, ef = self._reach(fetch, breadth)
        for part in _slices(queries, max(asked, ef)):
            self.stop.check()
            keys, counts = graph.search(self.vectors[part], self.lengths[part], asked, ef)
            for query, some, count in zip(part.tolist(), keys, np.broadcast_to(counts, len(part)), strict=True):
                rows, here = segment.find(some[:count])
                rows = rows[here]
                if segment.twins:
                    rows = segment.twins.among(rows, 4 * fetch)
                rows = rows[(segment.died[rows] > np.uint64(self.at)) & (segment.seqs[rows] <= np.uint64(self.at))]
                yield query, rows[: 2 * max(asked, fetch)]

    def _distances(self, segment: Segment, query: int, rows: I64) -> F64:
        return exact(self.metric, self.vectors[query], segment.vectors[rows])

    # -- scans

    def _scan(self, segment: Segment, queries: I64, found: _Found, *, k: int, rows: I64 | None = None) -> None:
        """Look at every living vector of a segment, or at `rows` of it; tell `found` the k nearest of each block, or
        more.
        """
        alive = segment.alive(self.at)
        if rows is None and np.count_nonzero(alive) < _SPARSE * len(alive):
            rows = np.flatnonzero(alive)
        elif rows is not None:
            rows = rows[alive[rows]]
        width = _BLOCK_BYTES // 4 // max(len(queries), 1 if rows is None else self.vectors.shape[1])
        for start in range(0, len(segment) if rows is None else len(rows), max(64, width)):
            self.stop.check()
            stop = start + max(64, width)
            if rows is None:
                self._scan_block(segment, queries, found, k, slice(start, stop), ~alive[start:stop])
            else:
                self._scan_block(segment, queries, found, k, rows[start:stop], None)

    def _scan_block(
        self, segment: Segment, queries: I64, found: _Found, k: int, block: slice | I64, dead: Mask | None
    ) -> None:
        vectors = segment.vectors[block]
        distances = coarse(self.metric, self.vectors[queries], self.lengths[queries], vectors, segment.lengths[block])
        if dead is not None and dead.any():
            distances[:, dead] = np.inf
        kinds: _Kinds | None = None
        for query, row in zip(queries.tolist(), distances, strict=True):
            self.stop.check()
            limit = float(np.finfo(np.float32).max)
            if len(row) > k:
                margin = 2 * slack(self.metric, vectors.shape[1], float(self.lengths[query]), segment.longest)
                limit = min(limit, float(np.partition(row, k - 1)[k - 1]) + margin)
            near = np.flatnonzero(row <= limit)
            rows = near + block.start if isinstance(block, slice) else block[near]
            if len(near) < max(_EQUALS, 2 * k):
                found(segment, query, rows, exact(self.metric, self.vectors[query], vectors[near]))
                continue
            kinds = kinds or _Kinds(vectors)
            found(segment, query, rows, kinds.distances(self.metric, self.vectors[query], near))

    # -- filters

    def _filtered(self, filter_: Filter) -> None:
        queries = np.arange(len(self.vectors))
        if not any(s.graph for s in self.view.segments) or self.query.exact:
            return self._scan_seqs(self._matching(filter_), queries)
        self.scanned_for = queries
        fetch = max(_FIRST_FETCH, 4 * self.query.k)
        if not len(queries := self._sift(filter_, queries, fetch)):
            return None
        matching = self._matching(filter_, self.scan_rows + 1)
        if len(matching) > self.scan_rows:
            if not len(queries := self._sift_deeper(filter_, queries, fetch * _GROWTH)):
                return None
            matching = self._matching(filter_)
        return self._scan_seqs(matching, queries)

    def _matching(self, filter_: Filter, limit: int = -1) -> U64:
        return self.remembered.matching(self.snapshot, filter_, limit)

    def _scan_seqs(self, seqs: U64, queries: I64) -> None:
        rows = [found[here] for found, here in (segment.find(seqs) for segment in self.view.segments)]
        for some in self._slices(queries):
            for segment, matching in zip(self.view.segments, rows, strict=True):
                self._scan(segment, some, self._add, k=self.query.k, rows=matching)

    def _sift_deeper(self, filter_: Filter, queries: I64, fetch: int) -> I64:
        """Take ever more proposals until looking at all that match would be cheaper; returns the unanswered queries."""
        total = sum(len(s) for s in self.view.segments)
        while len(queries) and fetch * 16 < total:
            queries = self._sift(filter_, queries, fetch)
            fetch *= _GROWTH
        return queries

    def _sift(self, filter_: Filter, queries: I64, fetch: int) -> I64:
        """Answer from the matching ones among the nearest `fetch` of each segment; returns the unanswered queries.

        A segment's proposals are all that is nearer than the farthest of them, its horizon. So a query is answered
        when k of the matching ones are nearer than every segment's horizon, however the filter and the query are
        related.
        """
        proposals: list[list[_Proposal]] = [[] for _ in self.vectors]
        for segment in self.view.segments:
            self._propose(segment, queries, fetch, proposals)
        everything = [np.zeros(0, np.uint64), *(p.seqs for parts in proposals for p in parts)]
        matching = self.snapshot.among(filter_, np.unique(np.concatenate(everything)))
        short = []
        for query in queries.tolist():
            self.stop.check()
            sifted = [(p, np.isin(p.seqs, matching)) for p in proposals[query]]
            distances = np.concatenate([np.zeros(0), *(p.distances[m] for p, m in sifted)])
            horizon = min((p.horizon for p, _ in sifted), default=np.inf)
            if np.count_nonzero(distances <= horizon) < self.query.k and horizon < np.inf:
                short.append(query)
                continue
            for p, m in sifted:
                self.found[query].add(p.seqs[m], p.distances[m])
        return np.array(short, np.int64)

    def _propose(self, segment: Segment, queries: I64, fetch: int, proposals: list[list[_Proposal]]) -> None:
        def block(segment: Segment, query: int, rows: I64, distances: F64) -> None:
            horizon = np.inf
            if len(distances) > fetch:  # of the equally far the oldest will do: with them it is full up to its horizon
                horizon = _nth(distances, fetch)
                nearest = np.argsort(distances, kind="stable")[:fetch]
                rows, distances = rows[nearest], distances[nearest]
            proposals[query].append(_Proposal(segment.seqs[rows], distances, horizon))

        graph = segment.graph
        near, far = (graph.breadth(self.query.k), graph.breadth(fetch)) if graph else (None, None)
        if graph is None or near is None or far is None or fetch * 8 > len(segment):
            return self._scan(segment, queries, block, k=fetch)
        breadth = max(near, far)
        if self._scan_is_cheaper(graph, fetch * _BREADTH, breadth):
            return self._scan(segment, queries, block, k=fetch)
        for query, rows in self._proposed(segment, graph, queries, fetch * _BREADTH, breadth):
            distances = self._distances(segment, query, rows)
            horizon = _nth(distances, min(fetch, len(rows))) if len(rows) else -np.inf
            proposals[query].append(_Proposal(segment.seqs[rows], distances, horizon))
        return None

    # -- answers

    def _answers(self) -> list[list[Hit]]:
        self._settle(np.arange(len(self.found)))
        best = [found.best(self.query.k) for found in self.found]
        wanted = {int(seq) for seqs, _ in best for seq in seqs}
        rows = self.snapshot.rows(list(wanted))
        if len(rows) != len(wanted):
            missing = min(wanted - rows.keys())
            raise StorageCorrupt(f"the row of seq {missing} is missing, although nothing ended it")
        return [self._hits(seqs, distances, rows) for seqs, distances in best]

    def _hits(self, seqs: U64, distances: F64, rows: dict[int, Row]) -> list[Hit]:
        self.stop.check()
        ranked = sorted(
            zip(distances.tolist(), (rows[s] for s in seqs.tolist()), strict=True), key=_by_distance_then_id
        )
        vectors: Sequence[F32 | None] = [None] * len(ranked)
        if self.query.with_vector:
            vectors = list(self.snapshot.vectors([r.seq for _, r in ranked], self.vectors.shape[1]))
        return [
            Hit(
                distance,
                row.id,
                row.metadata if self.query.with_metadata else None,
                None if vector is None else vector.tobytes(),
            )
            for (distance, row), vector in zip(ranked, vectors, strict=True)
        ]


def _slices(queries: I64, each: int) -> Iterator[I64]:
    """The queries in parts, so that between two it can be seen that nobody waits for the answer any more."""
    step = max(1, _AT_ONCE // each)
    for start in range(0, len(queries), step):
        yield queries[start : start + step]


def _by_distance_then_id(item: tuple[float, Row]) -> tuple[float, bytes]:
    return item[0], item[1].id.encode()


def _nth(distances: F64, n: int) -> float:
    return float(np.partition(distances, n - 1)[n - 1])
