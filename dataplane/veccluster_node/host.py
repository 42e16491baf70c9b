"""The shards of this node: their open replicas, and the answers to what coordinators ask of them.

Replicas block, so each call runs in a worker thread; writes wait for the replica's own group commit. Nothing here
decides who serves what: the node's reconcile does (decisions/hosting.py), and calls `open`, `serve` and `delete`.
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import singledispatchmethod
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
import structlog

from veccluster.decisions import filters
from veccluster.decisions.hosting import Local
from veccluster.errors import ShardsUnavailable, Unavailable, VecClusterError
from veccluster.model.limits import Limits
from veccluster.model.state import Collection, Epoch, ReadOnly, ShardId
from veccluster_node.memory import MemoryGuard
from veccluster_node.peer import messages as m
from veccluster_node.storage import operations, search
from veccluster_node.storage.files import disk_usage
from veccluster_node.storage.replica import Replica
from veccluster_node.storage.settings import ReplicaSpec, StorageSettings

T = TypeVar("T")
Ops = Sequence[operations.Op] | operations.DeleteWhere

ROOM_TO_OPEN = 16 << 20
"""Bytes that must be free on the disk before a replica that failed is opened again."""

WAY_ON = "Restore its directory from a backup, or export what it holds and load that into a new collection."
"""For a shard whose only copy is damaged."""

DOOMED = ".deleted"
"""What the directory of a shard ends in while it is being deleted."""

log = structlog.get_logger(__name__)


@dataclass
class Hosted:
    """An open replica, and the epoch in which this process serves it."""

    replica: Replica
    collection: Collection
    serving: Epoch | None = None

    @property
    def position(self) -> m.Position:
        """(epoch, seq) that a read reaches now."""
        return (self.serving or 0, self.replica.applied_seq)


class ShardHost:
    """Every shard whose data is on this node."""

    def __init__(
        self, data_dir: Path, settings: StorageSettings, limits: Limits, memory: MemoryGuard, *, threads: int
    ) -> None:
        self.memory = memory
        self._dir = data_dir / "shards"
        self._settings = settings
        self._limits = limits
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="shard")
        self._builds = threading.Semaphore(1)
        self._hosted: dict[ShardId, Hosted] = {}
        self._dir.mkdir(parents=True, exist_ok=True)
        for half_deleted in self._dir.glob("*" + DOOMED):
            shutil.rmtree(half_deleted, ignore_errors=True)

    # What the reconcile sees and does

    def local(self) -> Mapping[ShardId, Local]:
        """Every shard that has a directory here."""
        on_disk = (_shard_of(p.name) for p in self._dir.iterdir() if p.is_dir())
        found = {shard: Local() for shard in on_disk if shard is not None}
        return found | {i: Local(is_open=True, serving=h.serving) for i, h in self._hosted.items()}

    def directory(self, shard: ShardId) -> Path:
        """Where the data of a shard is, or would be."""
        return (self._dir / str(shard)).absolute()

    async def open(self, shard: ShardId, collection: Collection) -> None:
        """Open the replica or create it; it answers nothing before `serve`."""
        spec = ReplicaSpec(
            shard=shard,
            dimension=collection.dimension,
            metric=collection.metric,
            index=collection.index,
            filterable=collection.filterable,
        )
        opened = await self._run(
            lambda: Replica.open(self._dir / str(shard), spec, self._settings, builds=self._builds)
        )
        self._hosted[shard] = Hosted(opened, collection)

    def serve(self, shard: ShardId, epoch: Epoch) -> None:
        """Answer for the shard from now on, as its primary in this epoch."""
        self._hosted[shard].serving = epoch
        log.info("serving", shard=str(shard), epoch=epoch, seq=self._hosted[shard].replica.applied_seq)

    def stop_serving(self, shard: ShardId) -> None:
        """Refuse what is asked about the shard from now on."""
        self._hosted[shard].serving = None
        log.warning("stopped_serving", shard=str(shard))

    async def shut(self, shard: ShardId) -> None:
        """Close the replica and keep its data."""
        if hosted := self._hosted.pop(shard, None):
            await self._run(hosted.replica.close)

    async def delete(self, shard: ShardId) -> None:
        """Close the replica and delete its data; renamed first, so that half a shard is never opened again."""
        await self.shut(shard)
        doomed = self._dir / f"{shard}{DOOMED}"

        def remove() -> None:
            if (path := self._dir / str(shard)).exists():
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

        await self._run(remove)
        log.info("shard_deleted", shard=str(shard))

    def mendable(self) -> list[ShardId]:
        """Replicas that take no more writes because something failed under them, and that opening again may mend.

        None while the disk is full: they would not open, and as they are they answer reads.
        """
        if shutil.disk_usage(self._dir).free < ROOM_TO_OPEN:
            return []
        return [i for i, h in self._hosted.items() if h.replica.failure is not None]

    def issues(self) -> list[str]:
        """What the replicas would have a person know, beside `read_only`."""
        full = []
        if disk_usage(self._dir) >= self._settings.full_at:
            full = [f"its disk is {self._settings.full_at:.0%} full: upserts are refused until there is room again"]
        return full + [issue for _, h in sorted(self._hosted.items()) for issue in h.replica.issues]

    def read_only(self) -> list[ReadOnly]:
        """The replicas that take no writes."""
        return [
            ReadOnly(shard=str(i), why=why, way_on="" if h.replica.failure else WAY_ON)
            for i, h in sorted(self._hosted.items())
            if (why := h.replica.read_only)
        ]

    def serving(self) -> list[ShardId]:
        """The shards that this node answers for."""
        return sorted(i for i, h in self._hosted.items() if h.serving is not None)

    def vectors(self) -> int:
        """How many vectors the served shards hold."""
        return sum(h.replica.live for h in self._hosted.values() if h.serving is not None)

    async def close(self) -> None:
        """Close every replica; what was acknowledged is on disk already."""
        for shard in list(self._hosted):
            await self.shut(shard)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def reports(self, collection: str | None = None) -> list[m.ShardReport]:
        """How each served shard fares; `collection` (uuid) narrows it."""
        served = ((i, h) for i, h in sorted(self._hosted.items()) if h.serving is not None)
        return [_report(i, h) for i, h in served if collection in (None, i.collection)]

    # What coordinators ask

    async def handle(self, request: m.AnyRequest) -> m.Reply:
        """The answer to one request."""
        return await self._answer(request)

    @singledispatchmethod
    async def _answer(self, request: m.AnyRequest) -> m.Reply:
        raise NotImplementedError(type(request))

    @_answer.register
    async def _(self, request: m.Upsert) -> m.Reply:
        self.memory.check()
        size = len(request.vectors) // len(request.ids)
        rows = (request.vectors[i : i + size] for i in range(0, len(request.vectors), size))
        return await self._write(
            request.shard,
            [operations.Upsert(*row) for row in zip(request.ids, rows, request.metadata, strict=True)],
            request.op_id,
        )

    @_answer.register
    async def _(self, request: m.DeleteIds) -> m.Reply:
        return await self._write(request.shard, [operations.Delete(i) for i in request.ids], request.op_id)

    @_answer.register
    async def _(self, request: m.DeleteWhere) -> m.Reply:
        where = operations.DeleteWhere(self._parsed(request.filter))
        return await self._write(request.shard, where, request.op_id)

    async def _write(
        self, shard: ShardId, ops: Sequence[operations.Op] | operations.DeleteWhere, op_id: str
    ) -> m.Written:
        hosted, epoch = self._served(shard)
        pending = hosted.replica.write(ops, epoch=epoch, op_id=op_id, time_ns=time.time_ns())
        written = await asyncio.wrap_future(pending)
        return m.Written((epoch, written.last_seq), written.upserted + written.deleted)

    @_answer.register
    async def _(self, request: m.Search) -> m.Reply:
        query = search.Query(
            vectors=np.frombuffer(request.vectors, dtype="<f4").reshape(request.queries, -1),
            k=request.k,
            filter=self._parsed(request.filter) if request.filter else None,
            ef=request.ef,
            exact=request.exact,
            with_metadata=request.with_metadata,
            with_vector=request.with_vector,
        )
        shards = [ShardId(request.collection, n) for n in request.shards]
        found, failed = await self._each(shards, request.at_least, lambda r: r.search(query))
        per_query = zip(*(found[n] for n in sorted(found)), strict=True) if found else [()] * request.queries
        hits = [
            [_wire_hit(h) for h in islice(merge(*lists, key=lambda h: (h.distance, h.id)), request.k)]
            for lists in per_query
        ]
        applied = {n: (self._epoch(ShardId(request.collection, n)), f.applied_seq) for n, f in found.items()}
        return m.Found(hits, applied, failed)

    @_answer.register
    async def _(self, request: m.Get) -> m.Reply:
        shards = [ShardId(request.collection, n) for n in request.ids]
        applied = {s.number: h.position for s in shards if (h := self._hosted.get(s)) and h.serving is not None}
        wanted = {ShardId(request.collection, n): ids for n, ids in request.ids.items()}
        got, failed = await self._each_with(shards, request.at_least, lambda shard, replica: replica.get(wanted[shard]))
        found = [
            m.StoredVector(s.id, s.vector.tobytes(), s.metadata) for n in sorted(got) for s in got[n] if s is not None
        ]
        return m.Got(found, {n: applied[n] for n in got}, failed)

    @_answer.register
    async def _(self, request: m.ListIds) -> m.Reply:
        where = self._parsed(request.filter) if request.filter else None
        shards = [ShardId(request.collection, n) for n in request.shards]
        got, failed = await self._each(
            shards, request.at_least, lambda r: r.list_ids(request.after, request.limit, where)
        )
        return m.Listed(list(islice(merge(*got.values()), request.limit)), failed)

    @_answer.register
    async def _(self, request: m.Count) -> m.Reply:
        where = self._parsed(request.filter) if request.filter else None
        shards = [ShardId(request.collection, n) for n in request.shards]
        got, failed = await self._each(shards, request.at_least, lambda r: r.count(where))
        return m.Counted(sum(got.values()), failed)

    @_answer.register
    async def _(self, request: m.GetReport) -> m.Reply:
        return m.Report(self.reports(request.collection))

    # Helpers

    async def _each(
        self, shards: Iterable[ShardId], at_least: Mapping[int, m.Position], read: Callable[[Replica], T]
    ) -> tuple[dict[int, T], m.Failures]:
        return await self._each_with(shards, at_least, lambda _, replica: read(replica))

    async def _each_with(
        self,
        shards: Iterable[ShardId],
        at_least: Mapping[int, m.Position],
        read: Callable[[ShardId, Replica], T],
    ) -> tuple[dict[int, T], m.Failures]:
        """Read every shard in a worker; what fails is reported by shard and hides nothing else."""

        async def one(shard: ShardId) -> T:
            hosted, _ = self._served(shard)
            if (seen := at_least.get(shard.number)) and any(a < b for a, b in zip(hosted.position, seen, strict=True)):
                raise Unavailable(f"shard {shard} is at {hosted.position}, behind the session's {seen}")
            return await self._run(lambda: read(shard, hosted.replica))

        listed = list(shards)
        answers = await asyncio.gather(*map(one, listed), return_exceptions=True)
        found: dict[int, T] = {}
        failed: m.Failures = {}
        for shard, answer in zip(listed, answers, strict=True):
            if isinstance(answer, VecClusterError) and answer.status >= 500:
                failed[shard.number] = answer.problem()
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[shard.number] = answer
        return found, failed

    def _served(self, shard: ShardId) -> tuple[Hosted, Epoch]:
        hosted = self._hosted.get(shard)
        if hosted is None or hosted.serving is None:
            raise ShardsUnavailable(f"this node does not serve shard {shard} now", missing_shards=[shard.number])
        return hosted, hosted.serving

    def _epoch(self, shard: ShardId) -> int:
        hosted = self._hosted.get(shard)
        return (hosted.serving or 0) if hosted else 0

    def _parsed(self, text: bytes) -> filters.Filter:
        return filters.parse(orjson.loads(text), self._limits)

    def _run(self, call: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._workers, call)


def _shard_of(directory: str) -> ShardId | None:
    uuid, _, number = directory.partition(".")
    return ShardId(uuid, int(number)) if number.isdecimal() else None


def _wire_hit(hit: search.Hit) -> m.Hit:
    return m.Hit(hit.distance, hit.id, hit.metadata, None if hit.vector is None else hit.vector.tobytes())


def _report(shard: ShardId, hosted: Hosted) -> m.ShardReport:
    stats = hosted.replica.stats()
    return m.ShardReport(
        shard=shard,
        epoch=hosted.serving or 0,
        vectors=stats.live,
        tail=stats.tail,
        generations=stats.generations,
        indexed=max(0, stats.live - stats.tail),
        building=stats.building,
        disk_bytes=stats.disk_bytes,
        memory_bytes=stats.memory_bytes,
    )
