"""The shards of this node, as whoever coordinates a request asks for them: the replicas, behind `ShardService`.

Reading blocks, so it runs in a worker thread, in a lane of its kind; writes wait for the replica's own group commit.
A request is taken as it is, and never becomes bytes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from veccluster import backoff
from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Showing
from veccluster.decisions.replication.atomic import Standing as BatchStanding
from veccluster.errors import OutcomeUnknown, ReplicaBehind, Unavailable, VecClusterError
from veccluster.model.state import ReadConsistency, Seq, ShardId
from veccluster.model.token import Position
from veccluster_node.engine import search
from veccluster_node.engine.stopping import Stop
from veccluster_node.replica.ports import Standing
from veccluster_node.replica.replica import Replica
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.runtime.metrics import Measures
from veccluster_node.service import shard_service as s
from veccluster_node.shards.lanes import Lanes
from veccluster_node.wal import operations

T = TypeVar("T")
Ops = Sequence[operations.Op] | operations.DeleteWhere
_OfOneState = search.Results | search.Rows[Any] | search.Total
Read = Callable[[ShardId, Replica, Stop], T]

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two looks at whether a batch is decided."""

NODE = "the node"
"""The source of what is read for no client."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A write that takes longer than `write` has no known outcome; a read waits for `read` at most, and for
    another replica's news only `news`; without a word for `fresh`, a configuration may be an old one.
    """

    write: float = 30.0
    read: float = 10.0
    news: float = 0.5
    fresh: float = 3.0


class Replicas(Protocol):
    """The replicas that are open here."""

    lanes: Lanes
    memory: MemoryGuard
    measures: Measures

    def here(self, shard: ShardId) -> Replica:
        """The replica; `ShardsUnavailable` if it is not open here."""


class LocalShards:
    """Implements `ShardService`."""

    def __init__(
        self,
        replicas: Replicas,
        patience: Patience,
        *,
        metadata_is_fresh: Callable[[], bool],
        report: Callable[[str | None], s.Report],
        primary_heard: Callable[[ShardId], float] = lambda shard: 0.0,
    ) -> None:
        """`metadata_is_fresh`: whether what etcd last said is from a moment ago; `report` how the shards fare;
        `primary_heard` when the primary's node last stood for a primary that rests.
        """
        self._replicas = replicas
        self._patience = patience
        self._metadata_is_fresh = metadata_is_fresh
        self._report = report
        self._primary_heard = primary_heard

    # Reads

    async def search(self, request: s.Search) -> s.Found:
        """The nearest of each query over the shards, by distance, then id."""
        query = request.query
        found, failed = await self._read(request, lambda _, replica, stop: replica.search(query, stop))
        per_query = zip(*found.values(), strict=True) if found else [()] * len(query.vectors)
        hits = [list(islice(merge(*lists, key=search.nearness), query.k)) for lists in per_query]
        return s.Found(hits=hits, **_told(found, failed))

    async def get(self, request: s.Get) -> s.Got:
        """Vectors by id."""
        ids = request.ids
        got, failed = await self._read(request, lambda shard, replica, stop: replica.get(ids[shard.number], stop))
        found = [stored for rows in got.values() for stored in rows if stored is not None]
        return s.Got(found=found, **_told(got, failed))

    async def list_ids(self, request: s.ListIds) -> s.Listed:
        """Ids in byte order."""
        after, limit, where = request.after, request.limit, request.where.filter if request.where else None
        got, failed = await self._read(request, lambda _, replica, stop: replica.list_ids(after, limit, where, stop))
        return s.Listed(ids=list(islice(merge(*got.values()), limit)), **_told(got, failed))

    async def count(self, request: s.Count) -> s.Counted:
        """How many vectors match."""
        where = request.where.filter if request.where else None
        got, failed = await self._read(request, lambda _, replica, stop: replica.count(where, stop))
        return s.Counted(count=sum(got.values()), **_told(got, failed))

    async def positions(self, request: s.GetPositions) -> s.Durable:
        """How far the replicas are that are in sync."""

        async def one(shard: ShardId) -> Position:
            replica = self._replicas.here(shard)
            if not replica.standing.in_sync:
                raise ReplicaBehind(f"shard {shard}: this replica is not in sync")
            return await result_of(replica.durable())

        found, failed = await _by_shard(request, one)
        return s.Durable(durable=found, failed=failed)

    async def frontiers(self, request: s.GetFrontiers) -> s.ShardsReply:
        """What is applied of batches over several shards."""

        async def one(shard: ShardId) -> Showing:
            return await self._frontier(self._replicas.here(shard))

        found, failed = await _by_shard(request, one)
        return s.ShardsReply(applied={n: (0, f.applied) for n, f in found.items()}, failed=failed, frontier=found)

    async def report(self, request: s.GetReport) -> s.Report:
        """How the shards fare, and which are about to be served."""
        return self._report(request.collection)

    async def _read(
        self, request: s.ShardsRequest[Any], read: Read[T]
    ) -> tuple[dict[int, T], dict[int, VecClusterError]]:
        """Read every shard in a thread, when it may be read at the level that is asked for.

        It ends when the caller is cancelled, or when whoever asked has given up by now, be the news of that lost.
        """
        lane = self._replicas.lanes.slow if request.is_slow else self._replicas.lanes.quick

        async def one(shard: ShardId) -> T:
            replica = self._replicas.here(shard)
            _, at_least = request.at_least.get(shard.number, (0, 0))
            await self._leave(shard, replica, request.level, Seq(at_least))
            if wanted := request.decided.get(shard.number):
                await self._decided(shard, replica, wanted)
            return await self._in_time(lane.run(lambda stop: read(shard, replica, stop), request.source), shard)

        return await _by_shard(request, one)

    async def _in_time(self, reading: Awaitable[T], shard: ShardId) -> T:
        try:
            async with asyncio.timeout(self._patience.read):
                return await reading
        except TimeoutError:
            took = f"{self._patience.read:g} s (tuning.queryTimeout)"
            raise Unavailable(f"shard {shard}: the read took longer than {took}") from None

    async def _frontier(self, replica: Replica) -> Showing:
        return await self._replicas.lanes.quick.run(lambda _: replica.showing(), NODE)

    async def _decided(self, shard: ShardId, replica: Replica, wanted: Sequence[Seq]) -> None:
        """Wait until batches are decided that another shard shows: that is about to be known here, too (15)."""
        until, looks = time.monotonic() + self._patience.read, 0
        while not all(map((await self._frontier(replica)).is_past, wanted)):
            if time.monotonic() > until:
                raise ReplicaBehind(f"shard {shard}: a batch that other shards show is not decided here in time")
            looks += 1
            await asyncio.sleep(backoff.pause(FIRST_PAUSE, looks, LONGEST_PAUSE))

    async def _leave(self, shard: ShardId, replica: Replica, level: ReadConsistency, at_least: Seq) -> None:
        """Wait until a read may look (13)."""
        if level is not ReadConsistency.strong and not self._is_fresh(shard, replica.standing):
            raise ReplicaBehind(f"shard {shard}: this replica has heard neither from etcd nor from its primary")
        patience = self._patience.read if level is ReadConsistency.strong else self._patience.news
        leave = replica.may_read(level, at_least, patience)
        if leave.done():
            leave.result()
            return
        try:
            async with asyncio.timeout(self._patience.read):
                await result_of(leave)
        except TimeoutError:
            raise ReplicaBehind(f"shard {shard}: not every replica confirmed in time that it is up to date") from None

    def _is_fresh(self, shard: ShardId, standing: Standing) -> bool:
        """Whether the configuration by which a replica is in sync is from a moment ago."""
        if self._metadata_is_fresh():
            return True
        if standing.serving is not None:
            return all(p.silent < self._patience.fresh for p in standing.others)
        heard = max(standing.heard, self._primary_heard(shard))
        return time.monotonic() - heard < self._patience.fresh

    # Writes

    async def write(self, request: s.Write) -> s.Written:
        """Change a shard; durable and visible when this returns."""
        with self._refusals_counted():
            replica = self._replicas.here(request.shard)
            ops = await self._ops(request, replica)
            pending = replica.write(ops, op_id=request.operation, time_ns=time.time_ns(), level=request.level)
            try:
                async with asyncio.timeout(self._patience.write):
                    return _written(await asyncio.wrap_future(pending))
            except TimeoutError:
                replica.forget(request.operation)
                late = f"shard {request.shard}: not every replica confirmed the write in time"
                raise OutcomeUnknown(late) from None

    async def _ops(self, request: s.Write, replica: Replica) -> Ops:
        match request.change:
            case s.UpsertBatch() as rows:
                self._replicas.memory.check()
                return _upserts(rows)
            case s.Removal(ids):
                return [operations.Delete(i) for i in ids]
            case Where() as where:
                return await self._look(request.shard, replica, where)

    async def _look(self, shard: ShardId, replica: Replica, where: Where) -> operations.DeleteWhere:
        """What matches is looked for as in any slow read, before the write takes its place among others."""
        try:
            async with asyncio.timeout(self._patience.write):
                looked = await self._replicas.lanes.slow.run(lambda stop: replica.look(where.filter, stop), NODE)
        except TimeoutError:
            took = f"took longer than {self._patience.write:g} s"
            raise Unavailable(f"shard {shard}: to see what matches {took}; nothing was deleted") from None
        return operations.DeleteWhere(where.filter, looked)

    async def prepare(self, request: s.Prepare) -> BatchStanding:
        """Keep a part of a batch over several shards (15): how that stands here."""
        with self._refusals_counted():
            replica = self._replicas.here(request.shard)
            self._replicas.memory.check()
            pending = replica.prepare(
                request.batch,
                request.participants,
                _upserts(request.rows),
                time_ns=time.time_ns(),
                level=request.level,
            )
            try:
                async with asyncio.timeout(self._patience.write):
                    return await asyncio.wrap_future(pending)
            except TimeoutError:
                late = f"shard {request.shard}: not every replica confirmed the batch in time"
                raise OutcomeUnknown(late) from None

    async def settle(self, request: s.Settle) -> s.Written:
        """Wait until a batch is decided here."""
        pending = self._replicas.here(request.shard).settle(request.batch, request.level)
        try:
            async with asyncio.timeout(self._patience.write):
                return _written(await asyncio.wrap_future(pending))
        except TimeoutError:
            late = f"shard {request.shard}: the batch is decided, and not applied here in time"
            raise OutcomeUnknown(late) from None

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except VecClusterError as error:
            self._replicas.measures.refused.labels(error.slug).inc()
            raise


def result_of(future: "Future[T]") -> "asyncio.Future[T]":
    """The result of a replica's thread; that of a caller who is cancelled comes all the same, and is not missed."""
    result = asyncio.wrap_future(future)
    result.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(result)


async def _by_shard(
    request: s.ShardsRequest[Any], ask: Callable[[ShardId], Awaitable[T]]
) -> tuple[dict[int, T], dict[int, VecClusterError]]:
    """Ask every shard at once; what fails is reported by shard and hides nothing else."""
    # Cancelled, gather cancels each: what was begun in a thread is then told to stop.
    asked = (ask(ShardId(request.collection, n)) for n in request.shards)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found: dict[int, T] = {}
    failed: dict[int, VecClusterError] = {}
    for number, answer in zip(request.shards, answers, strict=True):
        if isinstance(answer, VecClusterError) and answer.status >= 500:
            failed[number] = answer
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[number] = answer
    return found, failed


def _told(read: Mapping[int, _OfOneState], failed: Mapping[int, VecClusterError]) -> dict[str, Any]:
    """Beside what was read: the state in which each shard was, which a client has seen then, neither less nor more."""
    applied = {n: (of.epoch, of.applied_seq) for n, of in read.items()}
    return {"applied": applied, "failed": failed, "frontier": {n: of.showing for n, of in read.items()}}


def _written(written: operations.Written) -> s.Written:
    return s.Written((written.epoch, written.last_seq), written.upserted + written.deleted)


def _upserts(rows: s.UpsertBatch) -> list[operations.Op]:
    raw, size = np.ascontiguousarray(rows.vectors, "<f4").data.cast("B"), 4 * rows.vectors.shape[1]
    vectors = (bytes(raw[i : i + size]) for i in range(0, len(raw), size))
    return [operations.Upsert(*row) for row in zip(rows.ids, vectors, rows.metadata, strict=True)]
