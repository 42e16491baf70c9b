"""Carry out a client's request over all shards of a collection: any node can, from what it knows of the cluster.

A write goes to the primary of each id's shard, all at once (`writes`). A read asks each node once for all of its shards
and merges what comes back (`reads`). What could not be done is said by shard: reads fail with `ShardsUnavailable`
unless the client allows a partial answer; writes say which ids are stored, which are not, and of which nobody knows.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from veccluster.decisions.replication.atomic import Decision, Showing
from veccluster.decisions.shard_map import ShardMap
from veccluster.errors import (
    InsufficientStorage,
    MetadataUnavailable,
    OutcomeUnknown,
    ShardsUnavailable,
    TooFewReplicas,
    Unavailable,
    VecClusterError,
)
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, NodeId, ReadConsistency, Revision, ShardId, WriteConsistency
from veccluster.model.token import Position
from veccluster_node.coordinator.asking import Asking, Wait
from veccluster_node.coordinator.atomic import AtomicWrite
from veccluster_node.coordinator.reads import Build, Positions, Read, showings
from veccluster_node.coordinator.writes import write
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.wal.operations import check_size, size_of

R = TypeVar("R", bound=m.Reply)
Session = Mapping[ShardId, Position]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read may miss, what its client has seen, and that client's address."""

    level: ReadConsistency
    session: Session
    source: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """A write that succeeded everywhere: how many vectors, and where the shards stand now."""

    count: int
    positions: Mapping[ShardId, Position]


@dataclass(frozen=True, slots=True)
class Found:
    """Hits of each query, nearest first; `missing` are shards that did not answer (empty unless partial is allowed)."""

    hits: Sequence[Sequence[m.Hit]]
    positions: Mapping[ShardId, Position]
    missing: Sequence[int]


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What to search for; `vectors` is float32 (queries, dimension), `filter` JSON text."""

    vectors: npt.NDArray[np.float32]
    k: int
    filter: bytes | None = None
    ef: int | None = None
    exact: bool = False
    with_metadata: bool = False
    with_vector: bool = False
    allow_partial: bool = False


class Batches(Protocol):
    """What etcd knows of the batches of one collection (15)."""

    def forgotten(self) -> Revision:
        """When decisions were last forgotten, as far as is known here."""

    async def decide(self, decision: Decision, forgotten: Revision) -> Decision | Revision:
        """Make a decision unless there is one, or some were forgotten since: what there is instead."""


def _no_batches(_: str) -> Batches:
    raise MetadataUnavailable("etcd is needed to decide about a batch over several shards")


class Coordinator:
    """Requests over a whole collection, as node `me` sees it; `wait` is for a change of the state."""

    def __init__(
        self,
        me: NodeId,
        state: Callable[[], ClusterState],
        wait: Wait,
        peers: Peers,
        *,
        batches: Callable[[str], Batches] = _no_batches,
        read_timeout: float,
        write_timeout: float,
    ) -> None:
        """`batches` is what etcd knows of a collection's batches over several shards."""
        self._batches = batches
        self._state = state
        self._peers = peers
        self._asking = Asking(me, state, wait, peers)
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout

    def _map(self, collection: Collection) -> ShardMap:
        return ShardMap.of(collection, self._state().shards)

    # Writes

    async def upsert(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        metadata: Sequence[bytes],
        op_id: str,
        level: WriteConsistency,
    ) -> Written:
        """Store a batch; `vectors` is float32 (n, dimension). Each shard takes its part whole or not at all."""
        rows = self._map(collection).rows_by_shard(ids)
        _check_sizes(rows, ids, vectors, metadata)
        requests = {
            n: m.Upsert(
                shard=ShardId(collection.uuid, n),
                op_id=op_id,
                ids=[ids[i] for i in chosen],
                vectors=np.ascontiguousarray(vectors[chosen], dtype="<f4").tobytes(),
                metadata=[metadata[i] for i in chosen],
            )
            for n, chosen in rows.items()
        }
        held = {n: r.ids for n, r in requests.items()}
        return await self._write(collection, requests, held, level, "upserted", "stored")

    async def upsert_atomic(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        metadata: Sequence[bytes],
        op_id: str,
        level: WriteConsistency,
    ) -> Written:
        """Store a batch in all of its shards, or in none (15)."""
        rows = self._map(collection).rows_by_shard(ids)
        if len(rows) < 2:  # a shard takes its part whole or not at all anyway
            return await self.upsert(collection, ids, vectors, metadata, op_id, level)
        _check_sizes(rows, ids, vectors, metadata)
        raw = np.ascontiguousarray(vectors, dtype="<f4")
        whole = xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode((list(ids), raw.tobytes(), list(metadata))))
        parts = {
            n: m.PrepareBatch(
                shard=ShardId(collection.uuid, n),
                operation=f"{op_id} {whole}",
                attempt=1,
                participants=sorted(rows),
                ids=[ids[i] for i in chosen],
                vectors=raw[chosen].tobytes(),
                metadata=[metadata[i] for i in chosen],
                level=level,
            )
            for n, chosen in rows.items()
        }
        store = self._batches(collection.uuid)
        batch = AtomicWrite(
            self._asking, parts, forgotten=store.forgotten, decide=store.decide, timeout=self._write_timeout
        )
        try:
            written = await batch.run()
        except VecClusterError as error:
            raise _named(collection, error) from error
        count = sum(w.count for w in written.values())
        return Written(count, {ShardId(collection.uuid, n): w.position for n, w in written.items()})

    async def showing(self, uuid: str, numbers: Iterable[int]) -> dict[int, Showing]:
        """What the primaries of these shards have applied of batches, as far as they say."""
        by_node: dict[NodeId, list[int]] = {}
        for n in numbers:
            if record := self._state().shards.get(ShardId(uuid, n)):
                by_node.setdefault(record.primary.node, []).append(n)
        asked = (
            self._peers.call(node, m.GetShowing(collection=uuid, shards=some), timeout=REPORT_TIMEOUT)
            for node, some in by_node.items()
        )
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return {n: s for a in answers if isinstance(a, m.Shown) for n, s in showings(a)}

    async def delete_ids(
        self, collection: Collection, ids: Sequence[str], op_id: str, level: WriteConsistency
    ) -> Written:
        """Remove these ids; those that are not there are no error and do not count."""
        rows = self._map(collection).rows_by_shard(ids)
        requests = {
            n: m.DeleteIds(shard=ShardId(collection.uuid, n), op_id=op_id, ids=[ids[i] for i in chosen])
            for n, chosen in rows.items()
        }
        held = {n: r.ids for n, r in requests.items()}
        return await self._write(collection, requests, held, level, "deleted", "deleted")

    async def delete_where(
        self, collection: Collection, filter_json: bytes, op_id: str, level: WriteConsistency
    ) -> Written:
        """Remove what matches, in every shard."""
        requests = {
            n: m.DeleteWhere(shard=ShardId(collection.uuid, n), op_id=op_id, filter=filter_json)
            for n in self._map(collection).numbers
        }
        return await self._write(collection, requests, {}, level, "deleted", "deleted")

    async def _write(
        self,
        collection: Collection,
        requests: Mapping[int, m.Write],
        ids: Mapping[int, Sequence[str]],
        level: WriteConsistency,
        counted: str,
        done: str,
    ) -> Written:
        async def one(request: m.Write) -> m.Written:
            named = msgspec.structs.replace(request, op_id=_operation(request), level=level)
            return await write(self._asking, named, timeout=self._write_timeout)

        answers = await asyncio.gather(*(one(r) for r in requests.values()), return_exceptions=True)
        good: dict[int, m.Written] = {}
        failed: dict[int, VecClusterError] = {}
        for number, answer in zip(requests, answers, strict=True):
            if isinstance(answer, VecClusterError):
                failed[number] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                good[number] = answer
        count = sum(w.count for w in good.values())
        if failed:
            raise _write_failure(collection, failed, ids, {counted: count}, done)
        return Written(count, {ShardId(collection.uuid, n): w.position for n, w in good.items()})

    # Reads

    async def search(self, collection: Collection, plan: SearchPlan, reading: Reading) -> Found:
        """The k nearest of each query over every shard, by distance, then id."""
        raw = np.ascontiguousarray(plan.vectors, dtype="<f4").tobytes()

        def request(numbers: list[int], level: ReadConsistency, at_least: Positions) -> m.Search:
            return m.Search(
                collection=collection.uuid,
                shards=numbers,
                at_least=at_least,
                vectors=raw,
                queries=len(plan.vectors),
                k=plan.k,
                filter=plan.filter,
                ef=plan.ef,
                exact=plan.exact,
                with_metadata=plan.with_metadata,
                with_vector=plan.with_vector,
                level=level,
            )

        read = self._reading(collection, reading, request)
        part = await read.run(self._map(collection).numbers, patient=not plan.allow_partial)
        if part.failed and not plan.allow_partial:
            raise _read_failure(collection, part.failed)
        lists = (merge(*(r.hits[q] for r in part.good), key=_nearness) for q in range(len(plan.vectors)))
        hits = [list(islice(merged, plan.k)) for merged in lists]
        return Found(hits, _positions(collection, (r.applied for r in part.good)), sorted(part.failed))

    async def get(
        self, collection: Collection, ids: Sequence[str], reading: Reading
    ) -> tuple[dict[str, m.StoredVector], Session]:
        """The vectors that exist among `ids`, by id, and up to where the shards were read."""
        rows = self._map(collection).rows_by_shard(ids)

        def request(numbers: list[int], level: ReadConsistency, at_least: Positions) -> m.Get:
            wanted = {n: [ids[i] for i in rows[n]] for n in numbers}
            return m.Get(collection=collection.uuid, ids=wanted, at_least=at_least, level=level)

        replies = await self._read_all(collection, rows, reading, request)
        return {s.id: s for r in replies for s in r.found}, _positions(collection, (r.applied for r in replies))

    async def list_ids(
        self, collection: Collection, after: str | None, limit: int, filter_json: bytes | None, reading: Reading
    ) -> tuple[list[str], Session]:
        """The first `limit` ids after `after` in the order of their UTF-8 bytes, over every shard, and up to where
        those were read.
        """

        def request(numbers: list[int], level: ReadConsistency, at_least: Positions) -> m.ListIds:
            return m.ListIds(
                collection=collection.uuid,
                shards=numbers,
                after=after,
                limit=limit,
                filter=filter_json,
                at_least=at_least,
                level=level,
            )

        replies = await self._read_all(collection, self._map(collection).numbers, reading, request)
        ids = list(islice(merge(*(r.ids for r in replies)), limit))
        return ids, _positions(collection, (r.applied for r in replies))

    async def count(self, collection: Collection, filter_json: bytes | None, reading: Reading) -> tuple[int, Session]:
        """How many vectors match, over every shard, and up to where those were read."""

        def request(numbers: list[int], level: ReadConsistency, at_least: Positions) -> m.Count:
            return m.Count(
                collection=collection.uuid, shards=numbers, filter=filter_json, at_least=at_least, level=level
            )

        replies = await self._read_all(collection, self._map(collection).numbers, reading, request)
        return sum(r.count for r in replies), _positions(collection, (r.applied for r in replies))

    def _reading(self, collection: Collection, reading: Reading, request: Build[R]) -> Read[R]:
        asking, timeout = self._asking, self._read_timeout
        return Read(asking, collection, reading.level, reading.session, request, timeout, reading.source)

    async def _read_all(
        self, collection: Collection, numbers: Iterable[int], reading: Reading, request: Build[R]
    ) -> list[R]:
        part = await self._reading(collection, reading, request).run(numbers, patient=True)
        if part.failed:
            raise _read_failure(collection, part.failed)
        return part.good

    async def reports(self, uuid: str | None = None) -> tuple[list[m.ShardReport], dict[NodeId, m.Report | None]]:
        """What the nodes say of their shards, once each, and the answer of each node that gave one."""
        state = self._state()
        nodes = list(state.nodes)
        asked = (self._ask_for_report(node, uuid) for node in nodes)
        answers = dict(zip(nodes, await asyncio.gather(*asked), strict=True))
        reports: dict[ShardId, m.ShardReport] = {}
        for node, answer in answers.items():
            for report in answer.shards if answer else ():
                record = state.shards.get(report.shard)
                if report.shard not in reports or (record and record.primary.node == node):
                    reports[report.shard] = report  # what its primary says counts, if that says something
        return list(reports.values()), answers

    async def spread(self, collection: Collection, *, gone: bool = False) -> None:
        """Wait until every node that can be asked knows that the collection is there, or `gone`.

        So that a client that was told so may go on at any node. One that gives no answer in time learns it from etcd.
        """
        news = m.AwaitCollection(name=collection.name, uuid=collection.uuid, gone=gone)
        asked = (self._peers.call(node, news, timeout=REPORT_TIMEOUT) for node in self._state().alive)
        await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_for_report(self, node: NodeId, uuid: str | None) -> m.Report | None:
        try:
            return await self._peers.call(node, m.GetReport(collection=uuid), timeout=REPORT_TIMEOUT)
        except VecClusterError:
            return None


REPORT_TIMEOUT = 2.0


def _operation(request: m.Write) -> str:
    """What names this write in its shard: the client's operation id and what is to be done, at whatever level.

    Without the latter a write with another's id, say of a batch that was mended after an error, would be answered as
    the first one was, and lost.
    """
    return f"{request.op_id} {xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(request))}"


def _check_sizes(
    rows: Mapping[int, Sequence[int]],
    ids: Sequence[str],
    vectors: npt.NDArray[np.float32],
    metadata: Sequence[bytes],
) -> None:
    """`PayloadTooLarge`, before anything is stored anywhere, if a shard could not take its part."""
    for chosen in rows.values():
        texts = sum(len(metadata[i]) for i in chosen)
        check_size(size_of([ids[i] for i in chosen], texts, 4 * vectors.shape[1] * len(chosen)))


def _positions(collection: Collection, applied: Iterable[Mapping[int, Position]]) -> dict[ShardId, Position]:
    return {ShardId(collection.uuid, n): position for some in applied for n, position in some.items()}


def _nearness(hit: m.Hit) -> tuple[float, str]:
    return (hit.distance, hit.id)


def _why(collection: Collection, failed: Mapping[int, VecClusterError]) -> str:
    """One sentence for the failed shards: which ones, and each different reason once."""
    reasons: dict[str, list[int]] = {}
    for number, error in sorted(failed.items()):
        reasons.setdefault(error.detail, []).append(number)
    parts = (f"{', '.join(map(str, numbers))} ({reason})" for reason, numbers in reasons.items())
    return f"collection {collection.name}, shard {'; shard '.join(parts)}"


def _read_failure(collection: Collection, failed: Mapping[int, VecClusterError]) -> VecClusterError:
    return ShardsUnavailable(
        f"cannot be read now: {_why(collection, failed)}",
        missing_shards=sorted(failed),
    )


def _named(collection: Collection, error: VecClusterError) -> VecClusterError:
    """The error of an atomic batch, with the collection."""
    if error.status < 500:
        return error
    done = "nobody knows whether this was stored, send it again" if isinstance(error, OutcomeUnknown) else "not stored"
    return type(error)(f"{done}: collection {collection.name}: {error.detail}")


def _write_failure(
    collection: Collection,
    failed: Mapping[int, VecClusterError],
    ids: Mapping[int, Sequence[str]],
    counted: Mapping[str, int],
    done: str,
) -> VecClusterError:
    """The gravest of the failures, with what was done and which ids were not (or perhaps not)."""
    client_errors = [e for e in failed.values() if e.status < 500]
    if client_errors:
        return client_errors[0]
    unknown = [n for n, e in failed.items() if isinstance(e, OutcomeUnknown)]
    certain = [n for n in failed if n not in unknown]
    extra = {
        **counted,
        "missing_shards": sorted(failed),
        f"not_{done}": [i for n in sorted(certain) for i in ids.get(n, ())],
        f"maybe_{done}": [i for n in sorted(unknown) for i in ids.get(n, ())],
    }
    why = _why(collection, failed)
    if unknown:
        return OutcomeUnknown(f"nobody knows whether this was {done}, send it again: {why}", **extra)
    return _kind_of_failure(list(failed.values()))(f"not {done}: {why}", **extra)


def _kind_of_failure(errors: Sequence[VecClusterError]) -> type[VecClusterError]:
    """What several shards' failures are together; a full disk is what ends last by itself."""
    if all(isinstance(e, TooFewReplicas) for e in errors):
        return TooFewReplicas
    if all(isinstance(e, InsufficientStorage | Unavailable) for e in errors):
        return InsufficientStorage if any(isinstance(e, InsufficientStorage) for e in errors) else ShardsUnavailable
    return VecClusterError
