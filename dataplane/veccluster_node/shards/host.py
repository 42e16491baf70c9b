"""The replicas of this node, and the answers to what coordinators ask of them.

Reading blocks, so it runs in a worker thread; writes wait for the replica's own group commit. Nothing here decides who
serves what: the replicas' rules do, by the configurations that the node's reconcile (decisions/hosting.py) shows them.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import singledispatchmethod
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import structlog

from veccluster import backoff
from veccluster.decisions import descriptors, filters
from veccluster.decisions.hosting import Local
from veccluster.decisions.integrity import Digest
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Batch, Showing
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.messages import Header, Snapshot
from veccluster.decisions.replication.values import Configuration, Member
from veccluster.errors import (
    InsufficientStorage,
    OutcomeUnknown,
    ReplicaBehind,
    ShardsUnavailable,
    Unavailable,
    VecClusterError,
)
from veccluster.model.limits import Limits
from veccluster.model.state import Collection, ReadConsistency, ReadOnly, Seq, ShardId
from veccluster_node.engine import search
from veccluster_node.engine.stopping import Stop
from veccluster_node.peer import messages as m
from veccluster_node.replica.inspection import Inspection
from veccluster_node.replica.maintenance import Maintenance
from veccluster_node.replica.pool import LoopPool
from veccluster_node.replica.ports import Standing, Surroundings
from veccluster_node.replica.replica import Replica
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.runtime.files import disk_usage, make_directory, sync_directory
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.runtime.metrics import Measures
from veccluster_node.shards.lanes import Lane, Lanes
from veccluster_node.wal import operations

T = TypeVar("T")
Ops = Sequence[operations.Op] | operations.DeleteWhere
_OfOneState = search.Results | search.Rows[Any] | search.Total

ROOM_TO_OPEN = 16 << 20
"""Bytes that must be free on the disk before a replica that failed is opened again."""

LOOK_AT_DISK_EVERY = 2.0
"""Seconds after which it is seen that somebody has taken a directory away, or brought one."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two looks at whether a batch is decided."""

WAY_ON = "Restore its directory from a backup, or export what it holds and load that into a new collection."
"""For a shard whose only copy is damaged."""

NODE = "the node"
"""The source of what is read for no client."""

DOOMED = ".deleted"
"""What the directory of a shard ends in while it is being deleted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hosted:
    """An open replica."""

    replica: Replica
    collection: Collection

    @property
    def position(self) -> m.Position:
        """(epoch, seq) that a read reaches now."""
        return (self.replica.standing.applied.epoch, self.replica.applied_seq)

    @property
    def is_primary(self) -> bool:
        """Whether this node answers for the shard, be it read-only because its disk failed."""
        standing = self.replica.standing
        named = standing.configuration is not None and standing.configuration.primary == standing.me
        return standing.serving is not None or (named and self.replica.read_only is not None)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A write that takes longer than `write` has no known outcome; a read waits for `read` at most, and for
    another replica's news only `news`; without a word for `fresh`, a configuration may be an old one.
    """

    write: float = 30.0
    read: float = 10.0
    news: float = 0.5
    fresh: float = 3.0


@dataclass(frozen=True, slots=True)
class Files:
    """How many files the process may open, and how many connections of clients it is to take."""

    limit: int = descriptors.ENOUGH
    connections: int = 1024


class ShardHost:
    """Every shard whose data is on this node."""

    def __init__(
        self,
        data_dir: Path,
        settings: StorageSettings,
        limits: Limits,
        memory: MemoryGuard,
        surroundings: Surroundings,
        *,
        threads: int,
        patience: Patience = Patience(),
        files: Files = Files(),
    ) -> None:
        """Nothing is open yet."""
        self.memory = memory
        self.measures = Measures()
        self._surroundings = surroundings
        self._patience = patience
        self._files = files
        self.metadata_is_fresh: Callable[[], bool] = lambda: True
        """Whether what etcd last said is from a moment ago; the node says how to know."""
        self._dir = data_dir / "shards"
        self._settings = settings
        self._limits = limits
        self._lanes = Lanes(threads)
        self._maintenance = Maintenance()
        self._pool = LoopPool()
        self._hosted: dict[ShardId, Hosted] = {}
        self._alone: dict[ShardId, asyncio.Lock] = {}
        """Held while a directory is opened, looked into or deleted: by one at a time."""
        make_directory(self._dir)
        for half_deleted in self._dir.glob("*" + DOOMED):
            shutil.rmtree(half_deleted, ignore_errors=True)
        self._coming = 0
        """How many are being opened."""
        self._on_disk = self._listed()
        self._changes = 0
        """How often this process itself has changed what is there."""

    # What the reconcile sees and does

    def local(self) -> Mapping[ShardId, Local]:
        """Every shard that has a directory here, as far as is known: this is asked far too often to look."""
        found = {shard: Local() for shard in self._on_disk}
        return found | {i: Local(is_open=True, damaged=h.replica.damaged) for i, h in self._hosted.items()}

    async def follow_disk(self) -> None:
        """Notice what others do to the directories, for ever."""
        while True:
            await asyncio.sleep(LOOK_AT_DISK_EVERY)
            before = self._changes
            try:
                listed = await self._lanes.opening.run(lambda _: self._listed())
            except (OSError, Unavailable) as error:  # too many open files, perhaps
                log.warning("shards_not_listed", reason=str(error))
                continue
            if before == self._changes:
                self._on_disk = listed

    def _listed(self) -> frozenset[ShardId]:
        with os.scandir(self._dir) as entries:
            found = (_shard_of(entry.name) for entry in entries if entry.is_dir())
            return frozenset(shard for shard in found if shard is not None)

    def _note_directory(self, shard: ShardId, *, is_there: bool) -> None:
        self._changes += 1
        self._on_disk = self._on_disk | {shard} if is_there else self._on_disk - {shard}

    def room(self) -> int:
        """How many more shards may be open, by the files that this process may open."""
        most = descriptors.shards(self._files.limit, self._files.connections)
        return max(0, most - len(self._hosted) - self._coming)

    def directory(self, shard: ShardId) -> Path:
        """Where the data of a shard is, or would be."""
        return (self._dir / str(shard)).absolute()

    def directory_of(self, shard: ShardId, member: Member) -> Path | None:
        """Where the open replica keeps its files that is this member and no other; from any thread."""
        hosted = self._hosted.get(shard)
        return self.directory(shard) if hosted and hosted.replica.standing.me == member else None

    async def open(self, shard: ShardId, collection: Collection, member: Member) -> None:
        """Open the replica, or create it, as this member; it does nothing before it sees its configuration."""
        async with self._exclusively(shard):
            count = len(self._hosted) + self._coming
            if why := descriptors.too_many_here(count, self._files.limit, self._files.connections):
                raise InsufficientStorage(why)
            self._note_directory(shard, is_there=True)
            self._coming += 1
            try:
                replica = await self._lanes.opening.run(lambda _: self._opened(shard, collection, member))
                self._hosted[shard] = Hosted(replica, collection)
            finally:
                self._coming -= 1

    async def inspect(self, shard: ShardId, collection: Collection, member: Member) -> Inspection | None:
        """How far the copy that is here has come, in use or not; None if there is none."""

        def look(_: Stop) -> Inspection | None:
            if not (self._dir / str(shard)).is_dir():
                return None
            replica = self._opened(shard, collection, member)  # it takes part in nothing before it sees a configuration
            try:
                return replica.inspect().result()
            finally:
                replica.close()

        async with self._exclusively(shard):
            if hosted := self._hosted.get(shard):
                return await _of(hosted.replica.inspect())
            return await self._lanes.opening.run(look)

    def _exclusively(self, shard: ShardId) -> asyncio.Lock:
        return self._alone.setdefault(shard, asyncio.Lock())

    def _opened(self, shard: ShardId, collection: Collection, member: Member) -> Replica:
        spec = ReplicaSpec(
            shard=shard,
            dimension=collection.dimension,
            metric=collection.metric,
            index=collection.index,
            filterable=collection.filterable,
        )
        path, around = self._dir / str(shard), self._surroundings
        return Replica.open(
            path, spec, self._settings, maintenance=self._maintenance, me=member, surroundings=around, pool=self._pool
        )

    def see(self, shard: ShardId, configuration: Configuration) -> None:
        """Show a replica what its record says; from any thread."""
        self.feed(shard, on.Seen(configuration))

    def feed(self, shard: ShardId, event: on.Event) -> None:
        """Tell a replica what happened, if it is open; from any thread."""
        if hosted := self._hosted.get(shard):
            hosted.replica.feed(event)

    def deliver(self, shard: ShardId, received: on.Received) -> None:
        """Give a replica another one's message, if it is open; from any thread."""
        if isinstance(received.message, Snapshot):
            self.measures.snapshots.inc()
        self.feed(shard, received)

    def allows(self, shard: ShardId, header: Header) -> bool:
        """Whether whoever offers a snapshot is the primary by what the replica knows (16); from any thread."""
        hosted = self._hosted.get(shard)
        now = hosted.replica.standing.configuration if hosted else None
        return now is not None and (now.epoch, now.primary) == (header.epoch, header.sender)

    def tick(self) -> None:
        """Time for heartbeats; from any thread."""
        for hosted in list(self._hosted.values()):
            hosted.replica.feed(on.Tick())

    async def shut(self, shard: ShardId) -> None:
        """Close the replica and keep its data."""
        if hosted := self._hosted.pop(shard, None):
            await self._lanes.closing.run(lambda _: hosted.replica.close())

    async def delete(self, shard: ShardId) -> None:
        """Close the replica and delete its data; renamed first, so that half a shard is never opened again."""
        await self.shut(shard)
        async with self._exclusively(shard):
            await self._remove(shard)

    async def _remove(self, shard: ShardId) -> None:
        doomed = self._dir / f"{shard}{DOOMED}"

        def remove(_: Stop) -> None:
            if (path := self._dir / str(shard)).exists():
                path.rename(doomed)
                sync_directory(self._dir)
            shutil.rmtree(doomed, ignore_errors=True)

        await self._lanes.deleting.run(remove)
        self._note_directory(shard, is_there=False)
        log.info("shard_deleted", shard=str(shard))

    def mendable(self) -> list[ShardId]:
        """Replicas to be opened again: a snapshot lies ready, or something failed under them that opening may mend.

        None of the latter while the disk is full: they would not open, and as they are they answer reads.
        """
        staged = [i for i, h in self._hosted.items() if h.replica.staged]
        if shutil.disk_usage(self._dir).free < ROOM_TO_OPEN:
            return staged
        return staged + [i for i, h in self._hosted.items() if h.replica.failure is not None and i not in staged]

    def broken(self) -> list[ShardId]:
        """Replicas that cannot do their part now."""
        return sorted(i for i, h in self._hosted.items() if h.replica.read_only or h.replica.damaged)

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
        """The shards that this node answers for as primary."""
        return sorted(i for i, h in self._hosted.items() if h.is_primary)

    def cut_off(self) -> list[ShardId]:
        """The shards whose writes wait for copies that this node, their primary, does not hear."""
        return sorted(i for i, h in self._hosted.items() if h.replica.standing.cut_off)

    def standing(self, shard: ShardId) -> Standing | None:
        """Where a replica stands; None if it is not open."""
        hosted = self._hosted.get(shard)
        return hosted.replica.standing if hosted else None

    def standings(self) -> dict[ShardId, Standing]:
        """Where every open replica stands."""
        return {i: h.replica.standing for i, h in sorted(self._hosted.items())}

    async def close(self) -> None:
        """Close every replica; what was acknowledged is on disk already."""
        for shard in list(self._hosted):
            await self.shut(shard)
        self._lanes.shut_down()
        await asyncio.to_thread(self._maintenance.close)
        await asyncio.to_thread(self._pool.close)

    def reports(self, collection: str | None = None) -> list[m.ShardReport]:
        """How each served shard fares; `collection` (uuid) narrows it."""
        served = ((i, h) for i, h in sorted(self._hosted.items()) if h.is_primary)
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
        self._hosted_here(request.shard)
        self.memory.check()
        return await self._write(request.shard, _upserts(request), request)

    @_answer.register
    async def _(self, request: m.DeleteIds) -> m.Reply:
        return await self._write(request.shard, [operations.Delete(i) for i in request.ids], request)

    @_answer.register
    async def _(self, request: m.DeleteWhere) -> m.Reply:
        """What matches is looked for as in any slow read, before the write takes its place among others."""
        replica, where = self._hosted_here(request.shard).replica, self._parsed(request.filter)
        try:
            async with asyncio.timeout(self._patience.write):
                looked = await self._lanes.slow.run(lambda stop: replica.look(where, stop), NODE)
        except TimeoutError:
            took = f"took longer than {self._patience.write:g} s"
            raise Unavailable(f"shard {request.shard}: to see what matches {took}; nothing was deleted") from None
        return await self._write(request.shard, operations.DeleteWhere(where, looked), request)

    async def _write(self, shard: ShardId, ops: Ops, request: m.Write) -> m.Written:
        try:
            return await self._written(shard, ops, request)
        except VecClusterError as error:
            self.measures.refused.labels(error.slug).inc()
            raise

    async def _written(self, shard: ShardId, ops: Ops, request: m.Write) -> m.Written:
        replica = self._hosted_here(shard).replica
        pending = replica.write(ops, op_id=request.op_id, time_ns=time.time_ns(), level=request.level)
        try:
            async with asyncio.timeout(self._patience.write):
                written = await asyncio.wrap_future(pending)
        except TimeoutError:
            replica.forget(request.op_id)
            raise OutcomeUnknown(f"shard {shard}: not every replica confirmed the write in time") from None
        return m.Written((written.epoch, written.last_seq), written.upserted + written.deleted)

    # Batches over several shards (15)

    @_answer.register
    async def _(self, request: m.PrepareBatch) -> m.Reply:
        replica = self._hosted_here(request.shard).replica
        self.memory.check()
        pending = replica.prepare(
            Batch(request.operation, request.attempt),
            request.participants,
            _upserts(request),
            time_ns=time.time_ns(),
            level=request.level,
        )
        try:
            async with asyncio.timeout(self._patience.write):
                standing = await asyncio.wrap_future(pending)
        except TimeoutError:
            raise OutcomeUnknown(f"shard {request.shard}: not every replica confirmed the batch in time") from None
        except VecClusterError as error:
            self.measures.refused.labels(error.slug).inc()
            raise
        return m.Standing(standing.attempt, standing.at, standing.verdict)

    @_answer.register
    async def _(self, request: m.SettleBatch) -> m.Reply:
        replica = self._hosted_here(request.shard).replica
        pending = replica.settle(Batch(request.operation, request.attempt), request.level)
        try:
            async with asyncio.timeout(self._patience.write):
                written = await asyncio.wrap_future(pending)
        except TimeoutError:
            raise OutcomeUnknown(f"shard {request.shard}: the batch is decided, and not applied here in time") from None
        return m.Written((written.epoch, written.last_seq), written.upserted + written.deleted)

    @_answer.register
    async def _(self, request: m.GetShowing) -> m.Reply:
        async def one(shard: ShardId) -> Showing:
            return await self._showing(self._hosted_here(shard).replica)

        found, failed = await _by_shard([ShardId(request.collection, n) for n in request.shards], one)
        return m.Shown({n: (0, s.applied) for n, s in found.items()}, _wire_showings(found), failed)

    def know(self, shard: ShardId, known: Known) -> None:
        """Show a replica what etcd says of batches over several shards."""
        if hosted := self._hosted.get(shard):
            hosted.replica.know(known)

    # Reads

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
        found, failed = await self._each(shards, request, lambda r, stop: r.search(query, stop))
        per_query = zip(*(found[n] for n in sorted(found)), strict=True) if found else [()] * request.queries
        hits = [
            [_wire_hit(h) for h in islice(merge(*lists, key=lambda h: (h.distance, h.id)), request.k)]
            for lists in per_query
        ]
        return m.Found(hits, _applied(found), failed, _showings(found))

    @_answer.register
    async def _(self, request: m.Get) -> m.Reply:
        shards = [ShardId(request.collection, n) for n in request.ids]
        wanted = {ShardId(request.collection, n): ids for n, ids in request.ids.items()}
        got, failed = await self._each_with(shards, request, lambda i, r, stop: r.get(wanted[i], stop))
        stored = (s for n in sorted(got) for s in got[n] if s is not None)
        found = [m.StoredVector(s.id, s.vector.tobytes(), s.metadata) for s in stored]
        return m.Got(found, _applied(got), failed, _showings(got))

    @_answer.register
    async def _(self, request: m.ListIds) -> m.Reply:
        where = self._parsed(request.filter) if request.filter else None
        shards = [ShardId(request.collection, n) for n in request.shards]
        after, limit = request.after, request.limit
        got, failed = await self._each(shards, request, lambda r, stop: r.list_ids(after, limit, where, stop))
        ids = list(islice(merge(*got.values()), request.limit))
        return m.Listed(ids, failed, _applied(got), _showings(got))

    @_answer.register
    async def _(self, request: m.Count) -> m.Reply:
        where = self._parsed(request.filter) if request.filter else None
        shards = [ShardId(request.collection, n) for n in request.shards]
        got, failed = await self._each(shards, request, lambda r, stop: r.count(where, stop))
        return m.Counted(sum(got.values()), failed, _applied(got), _showings(got))

    @_answer.register
    async def _(self, request: m.GetPositions) -> m.Reply:
        async def one(shard: ShardId) -> m.Position:
            hosted = self._hosted_here(shard)
            if not hosted.replica.standing.in_sync:
                raise ReplicaBehind(f"shard {shard}: this replica is not in sync")
            return await _of(hosted.replica.durable())

        shards = [ShardId(request.collection, n) for n in request.shards]
        found, failed = await _by_shard(shards, one)
        return m.Positions(found, failed)

    @_answer.register
    async def _(self, request: m.GetDigests) -> m.Reply:
        here = [(i, h.replica) for i in request.shards if (h := self._hosted.get(i)) and h.replica.standing.in_sync]
        waiting = [_of(replica.digests()) for _, replica in here]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        found = [
            m.ShardDigests(i, replica.standing.me.incarnation, {int(s): d for s, d in notes.items()})
            for (i, replica), notes in zip(here, told, strict=True)
            if not isinstance(notes, BaseException)
        ]
        return m.Digests(found)

    @_answer.register
    async def _(self, request: m.BeginAnew) -> m.Reply:
        hosted = self._hosted.get(request.shard)
        if hosted is None or hosted.replica.standing.me.incarnation != request.incarnation:
            return m.Known(known=False)
        hosted.replica.condemn(request.why)
        return m.Known(known=True)

    # Integrity

    def serving_as(self) -> dict[ShardId, tuple[Configuration, Member]]:
        """The shards that this node serves, by the configurations in which it does."""
        standings = self.standings().items()
        return {i: (s.configuration, s.me) for i, s in standings if s.serving is not None and s.configuration}

    async def digests(self, shard: ShardId) -> dict[Seq, Digest]:
        """What a replica's rows are by their digests."""
        return await _of(self._hosted_here(shard).replica.digests())

    def scrub(self, shard: ShardId, rate: float, *, rows_only: bool) -> dict[str, str]:
        """Read what a replica has on the disk (`Replica.scrub`), and count and report what is found; blocks."""
        hosted = self._hosted.get(shard)
        if hosted is None:
            return {}
        found = hosted.replica.scrub(rate, rows_only=rows_only, read=self.measures.scrubbed.inc)
        for what, why in found.items():
            log.error("damage_found", shard=str(shard), what=what, detail=why)
            self.measures.found.labels(what).inc()
        return found

    # Helpers

    async def _each(
        self, shards: Sequence[ShardId], request: m.Read, read: Callable[[Replica, Stop], T]
    ) -> tuple[dict[int, T], m.Failures]:
        return await self._each_with(shards, request, lambda _, replica, stop: read(replica, stop))

    async def _each_with(
        self, shards: Sequence[ShardId], request: m.Read, read: Callable[[ShardId, Replica, Stop], T]
    ) -> tuple[dict[int, T], m.Failures]:
        """Read every shard in a thread, when it may be read at the level that is asked for.

        It ends when the caller is cancelled, or when whoever asked has given up by now, be the news of that lost.
        """
        lane = self._lane(request)

        async def one(shard: ShardId) -> T:
            replica = self._hosted_here(shard).replica
            _, at_least = request.at_least.get(shard.number, (0, 0))
            await self._leave(shard, replica, request.level, Seq(at_least))
            if wanted := request.decided.get(shard.number):
                await self._decided(shard, replica, wanted)
            return await in_time(lane.run(lambda stop: read(shard, replica, stop), request.source), shard)

        async def in_time(reading: Awaitable[T], shard: ShardId) -> T:
            try:
                async with asyncio.timeout(self._patience.read):
                    return await reading
            except TimeoutError:
                took = f"{self._patience.read:g} s (tuning.queryTimeout)"
                raise Unavailable(f"shard {shard}: the read took longer than {took}") from None

        return await _by_shard(shards, one)

    def _lane(self, request: m.Read) -> Lane:
        return self._lanes.slow if m.is_slow(request) else self._lanes.quick

    async def _showing(self, replica: Replica) -> Showing:
        return await self._lanes.quick.run(lambda _: replica.showing(), NODE)

    async def _decided(self, shard: ShardId, replica: Replica, wanted: Sequence[Seq]) -> None:
        """Wait until batches are decided that another shard shows: that is about to be known here, too (15)."""
        until, looks = time.monotonic() + self._patience.read, 0
        while not all(map((await self._showing(replica)).is_past, wanted)):
            if time.monotonic() > until:
                raise ReplicaBehind(f"shard {shard}: a batch that other shards show is not decided here in time")
            looks += 1
            await asyncio.sleep(backoff.pause(FIRST_PAUSE, looks, LONGEST_PAUSE))

    async def _leave(self, shard: ShardId, replica: Replica, level: ReadConsistency, at_least: Seq) -> None:
        """Wait until a read may look (13)."""
        if level is not ReadConsistency.strong and not self._is_fresh(replica.standing):
            raise ReplicaBehind(f"shard {shard}: this replica has heard neither from etcd nor from its primary")
        patience = self._patience.read if level is ReadConsistency.strong else self._patience.news
        leave = replica.may_read(level, at_least, patience)
        if leave.done():
            leave.result()
            return
        try:
            async with asyncio.timeout(self._patience.read):
                await _of(leave)
        except TimeoutError:
            raise ReplicaBehind(f"shard {shard}: not every replica confirmed in time that it is up to date") from None

    def _is_fresh(self, standing: Standing) -> bool:
        """Whether the configuration by which a replica is in sync is from a moment ago."""
        if self.metadata_is_fresh():
            return True
        if standing.serving is not None:
            return all(p.silent < self._patience.fresh for p in standing.others)
        return time.monotonic() - standing.heard < self._patience.fresh

    def _hosted_here(self, shard: ShardId) -> Hosted:
        hosted = self._hosted.get(shard)
        if hosted is None:
            raise ShardsUnavailable(f"this node has no replica of shard {shard} open", missing_shards=[shard.number])
        return hosted

    def _parsed(self, text: bytes) -> filters.Filter:
        return filters.parse(orjson.loads(text), self._limits)


def _of(future: "Future[T]") -> "asyncio.Future[T]":
    """The result of a replica's thread; that of a caller who is cancelled comes all the same, and is not missed."""
    result = asyncio.wrap_future(future)
    result.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(result)


async def _by_shard(
    shards: Sequence[ShardId], ask: Callable[[ShardId], Awaitable[T]]
) -> tuple[dict[int, T], m.Failures]:
    """Ask every shard at once; what fails is reported by shard and hides nothing else."""
    # Cancelled, gather cancels each: what was begun in a thread is then told to stop.
    answers = await asyncio.gather(*map(ask, shards), return_exceptions=True)
    found: dict[int, T] = {}
    failed: m.Failures = {}
    for shard, answer in zip(shards, answers, strict=True):
        if isinstance(answer, VecClusterError) and answer.status >= 500:
            failed[shard.number] = answer.problem()
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[shard.number] = answer
    return found, failed


def _applied(read: Mapping[int, _OfOneState]) -> dict[int, m.Position]:
    """The state in which each shard was read: what a client has seen, neither less nor more."""
    return {n: (of.epoch, of.applied_seq) for n, of in read.items()}


def _showings(read: Mapping[int, _OfOneState]) -> m.Showings:
    return _wire_showings({n: of.showing for n, of in read.items()})


def _wire_showings(shown: Mapping[int, Showing]) -> m.Showings:
    return {n: m.Showing(sorted(s.pending), dict(s.latest)) for n, s in shown.items() if s.pending or s.latest}


def _upserts(request: m.Upsert | m.PrepareBatch) -> list[operations.Op]:
    size = len(request.vectors) // len(request.ids)
    rows = (request.vectors[i : i + size] for i in range(0, len(request.vectors), size))
    return [operations.Upsert(*row) for row in zip(request.ids, rows, request.metadata, strict=True)]


def _shard_of(directory: str) -> ShardId | None:
    uuid, _, number = directory.partition(".")
    return ShardId(uuid, int(number)) if number.isdecimal() else None


def _wire_hit(hit: search.Hit) -> m.Hit:
    return m.Hit(hit.distance, hit.id, hit.metadata, None if hit.vector is None else hit.vector.tobytes())


def _report(shard: ShardId, hosted: Hosted) -> m.ShardReport:
    stats = hosted.replica.stats()
    return m.ShardReport(
        shard=shard,
        epoch=hosted.replica.standing.serving or 0,
        vectors=stats.live,
        tail=stats.tail,
        generations=stats.generations,
        indexed=max(0, stats.live - stats.tail),
        building=stats.building,
        disk_bytes=stats.disk_bytes,
        memory_bytes=stats.memory_bytes,
    )
