"""Carry out a client's request over all shards of a collection: any node can, from what it knows of the cluster.

A write goes to the primary of each id's shard, all at once. A read asks each node once for all of its shards and merges
what comes back. What could not be done is said by shard: reads fail with `ShardsUnavailable` unless the client allows a
partial answer; writes say which ids are stored, which are not, and of which nobody knows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from veccluster.decisions import hashing
from veccluster.errors import (
    InsufficientStorage,
    OutcomeUnknown,
    ShardsUnavailable,
    Unavailable,
    VecClusterError,
    from_problem,
)
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, NodeId, ShardId
from veccluster.model.token import Position
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers

R = TypeVar("R", bound=m.Reply)
Session = Mapping[ShardId, Position]


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


class Coordinator:
    """Requests over a whole collection; holds no state of its own."""

    def __init__(
        self, state: Callable[[], ClusterState], peers: Peers, *, read_timeout: float, write_timeout: float
    ) -> None:
        self._state = state
        self._peers = peers
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout

    # Writes

    async def upsert(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        metadata: Sequence[bytes],
        op_id: str,
    ) -> Written:
        """Store a batch; `vectors` is float32 (n, dimension). Each shard takes its part whole or not at all."""
        rows = _rows_by_shard(collection, ids)
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
        return await self._write(collection, requests, {n: r.ids for n, r in requests.items()}, "upserted", "stored")

    async def delete_ids(self, collection: Collection, ids: Sequence[str], op_id: str) -> Written:
        """Remove these ids; those that are not there are no error and do not count."""
        rows = _rows_by_shard(collection, ids)
        requests = {
            n: m.DeleteIds(shard=ShardId(collection.uuid, n), op_id=op_id, ids=[ids[i] for i in chosen])
            for n, chosen in rows.items()
        }
        return await self._write(collection, requests, {n: r.ids for n, r in requests.items()}, "deleted", "deleted")

    async def delete_where(self, collection: Collection, filter_json: bytes, op_id: str) -> Written:
        """Remove what matches, in every shard."""
        requests = {
            n: m.DeleteWhere(shard=ShardId(collection.uuid, n), op_id=op_id, filter=filter_json)
            for n in range(collection.shards)
        }
        return await self._write(collection, requests, {}, "deleted", "deleted")

    async def _write(
        self,
        collection: Collection,
        requests: Mapping[int, m.Write],
        ids: Mapping[int, Sequence[str]],
        counted: str,
        done: str,
    ) -> Written:
        async def one(number: int, request: m.Write) -> m.Written:
            request = msgspec.structs.replace(request, op_id=_operation(request))
            return await self._peers.call(self._primary(collection, number), request, timeout=self._write_timeout)

        answers = await asyncio.gather(*(one(n, r) for n, r in requests.items()), return_exceptions=True)
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

    async def search(self, collection: Collection, plan: SearchPlan, session: Session) -> Found:
        """The k nearest of each query over every shard, by distance, then id."""
        raw = np.ascontiguousarray(plan.vectors, dtype="<f4").tobytes()

        def request(numbers: list[int]) -> m.Search:
            return m.Search(
                collection=collection.uuid,
                shards=numbers,
                at_least=_at_least(session, collection, numbers),
                vectors=raw,
                queries=len(plan.vectors),
                k=plan.k,
                filter=plan.filter,
                ef=plan.ef,
                exact=plan.exact,
                with_metadata=plan.with_metadata,
                with_vector=plan.with_vector,
            )

        replies, failed = await self._fan_out(collection, range(collection.shards), request)
        if failed and not plan.allow_partial:
            raise _read_failure(collection, failed)
        lists = (merge(*(r.hits[q] for r in replies), key=_nearness) for q in range(len(plan.vectors)))
        hits = [list(islice(merged, plan.k)) for merged in lists]
        return Found(hits, _positions(collection, (r.applied for r in replies)), sorted(failed))

    async def get(
        self, collection: Collection, ids: Sequence[str], session: Session
    ) -> tuple[dict[str, m.StoredVector], dict[ShardId, Position]]:
        """The vectors that exist among `ids`, by id."""
        rows = _rows_by_shard(collection, ids)

        def request(numbers: list[int]) -> m.Get:
            return m.Get(
                collection=collection.uuid,
                ids={n: [ids[i] for i in rows[n]] for n in numbers},
                at_least=_at_least(session, collection, numbers),
            )

        replies, failed = await self._fan_out(collection, rows, request)
        if failed:
            raise _read_failure(collection, failed)
        return {s.id: s for r in replies for s in r.found}, _positions(collection, (r.applied for r in replies))

    async def list_ids(
        self, collection: Collection, after: str | None, limit: int, filter_json: bytes | None, session: Session
    ) -> list[str]:
        """The first `limit` ids after `after` in the order of their UTF-8 bytes, over every shard."""

        def request(numbers: list[int]) -> m.ListIds:
            at_least = _at_least(session, collection, numbers)
            return m.ListIds(
                collection=collection.uuid,
                shards=numbers,
                after=after,
                limit=limit,
                filter=filter_json,
                at_least=at_least,
            )

        replies, failed = await self._fan_out(collection, range(collection.shards), request)
        if failed:
            raise _read_failure(collection, failed)
        return list(islice(merge(*(r.ids for r in replies)), limit))

    async def count(self, collection: Collection, filter_json: bytes | None, session: Session) -> int:
        """How many vectors match, over every shard."""

        def request(numbers: list[int]) -> m.Count:
            at_least = _at_least(session, collection, numbers)
            return m.Count(collection=collection.uuid, shards=numbers, filter=filter_json, at_least=at_least)

        replies, failed = await self._fan_out(collection, range(collection.shards), request)
        if failed:
            raise _read_failure(collection, failed)
        return sum(r.count for r in replies)

    async def reports(self, uuid: str | None = None) -> tuple[list[m.ShardReport], frozenset[NodeId]]:
        """What every reachable node says of its shards, and the nodes that could not be asked."""
        nodes = list(self._state().nodes)
        asked = (self._ask_for_report(node, uuid) for node in nodes)
        answers = await asyncio.gather(*asked)
        reports = [r for answer in answers if answer is not None for r in answer.shards]
        return reports, frozenset(n for n, answer in zip(nodes, answers, strict=True) if answer is None)

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

    async def _fan_out(
        self, collection: Collection, numbers: Iterable[int], request: Callable[[list[int]], m.Request[R]]
    ) -> tuple[list[R], dict[int, VecClusterError]]:
        """Ask each node once for all of its shards; a client's own error is raised, any other is kept by shard."""
        by_node: dict[NodeId, list[int]] = {}
        failed: dict[int, VecClusterError] = {}
        for number in numbers:
            try:
                by_node.setdefault(self._primary(collection, number), []).append(number)
            except ShardsUnavailable as error:
                failed[number] = error
        calls: list[Awaitable[R]] = [
            self._peers.call(node, request(shards), timeout=self._patience(node)) for node, shards in by_node.items()
        ]
        good: list[R] = []
        for shards, answer in zip(by_node.values(), await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, VecClusterError) and answer.status >= 500:
                failed |= dict.fromkeys(shards, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                good.append(answer)
                problems: m.Failures = getattr(answer, "failed", {})
                failed |= {n: from_problem(p) for n, p in problems.items()}
        return good, failed

    def _patience(self, node: NodeId) -> float:
        """Seconds to wait for a read: few for a node whose lease has ended, though it may still answer."""
        return self._read_timeout if node in self._state().alive else min(self._read_timeout, LITTLE_PATIENCE)

    def _primary(self, collection: Collection, number: int) -> NodeId:
        shard = self._state().shards.get(ShardId(collection.uuid, number))
        if shard is None:
            raise ShardsUnavailable(f"shard {number} has not been given to a node yet", missing_shards=[number])
        return shard.primary.node


REPORT_TIMEOUT = 2.0
LITTLE_PATIENCE = 1.0


def _operation(request: m.Write) -> str:
    """What names this write in its shard: the client's operation id and what is to be done.

    Without the latter a write with another's id, say of a batch that was mended after an error, would be answered as
    the first one was, and lost.
    """
    return f"{request.op_id} {xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(request))}"


def _rows_by_shard(collection: Collection, ids: Sequence[str]) -> dict[int, list[int]]:
    """Row numbers by shard number; within a shard in the order of the batch."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(hashing.shards_of(ids, hashing.starts(collection.shards))):
        rows.setdefault(int(number), []).append(row)
    return rows


def _at_least(session: Session, collection: Collection, numbers: Iterable[int]) -> dict[int, Position]:
    return {n: session[i] for n in numbers if (i := ShardId(collection.uuid, n)) in session}


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
    if all(isinstance(e, InsufficientStorage) for e in failed.values()):
        return InsufficientStorage(f"not {done}: {why}", **extra)
    kind = ShardsUnavailable if all(isinstance(e, Unavailable) for e in failed.values()) else VecClusterError
    return kind(f"not {done}: {why}", **extra)
