"""The replicas of this node: opened, shut and deleted here.

Nothing here decides who serves what: the replicas' rules do, by the configurations that the node's reconcile
(decisions/hosting.py) shows them.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from veccluster.decisions import descriptors
from veccluster.decisions.hosting import Local
from veccluster.decisions.replication.values import Member
from veccluster.errors import (
    InsufficientStorage,
    ShardsUnavailable,
    Unavailable,
)
from veccluster.model.state import Collection, ShardId
from veccluster_node.engine.stopping import Stop
from veccluster_node.replica.inspection import Inspection
from veccluster_node.replica.maintenance import Maintenance
from veccluster_node.replica.pool import LoopPool
from veccluster_node.replica.ports import Standing, Surroundings
from veccluster_node.replica.replica import Replica
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.runtime.files import make_directory, sync_directory
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.runtime.metrics import Measures
from veccluster_node.shards.lanes import Lanes
from veccluster_node.shards.local import result_of

LOOK_AT_DISK_EVERY = 2.0
"""Seconds after which it is seen that somebody has taken a directory away, or brought one."""

DOOMED = ".deleted"
"""What the directory of a shard ends in while it is being deleted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hosted:
    """An open replica."""

    replica: Replica
    collection: Collection

    @property
    def is_primary(self) -> bool:
        """Whether this node answers for the shard, be it read-only because its disk failed."""
        standing = self.replica.standing
        named = standing.configuration is not None and standing.configuration.primary == standing.me
        return standing.serving is not None or (named and self.replica.read_only is not None)


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
        memory: MemoryGuard,
        surroundings: Surroundings,
        *,
        threads: int,
        files: Files = Files(),
    ) -> None:
        """Nothing is open yet."""
        self.memory = memory
        self.measures = Measures()
        self._surroundings = surroundings
        self._files = files
        self.metadata_is_fresh: Callable[[], bool] = lambda: True
        """Whether what etcd last said is from a moment ago; the node says how to know."""
        self.root = data_dir / "shards"
        self._settings = settings
        self.lanes = Lanes(threads)
        self._maintenance = Maintenance()
        self._pool = LoopPool()
        self._hosted: dict[ShardId, Hosted] = {}
        self._alone: dict[ShardId, asyncio.Lock] = {}
        """Held while a directory is opened, looked into or deleted: by one at a time."""
        make_directory(self.root)
        for half_deleted in self.root.glob("*" + DOOMED):
            shutil.rmtree(half_deleted, ignore_errors=True)
        self._coming = 0
        """How many are being opened."""
        self._on_disk = self._listed()
        self._changes = 0
        """How often this process itself has changed what is there."""

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
                listed = await self.lanes.opening.run(lambda _: self._listed())
            except (OSError, Unavailable) as error:  # too many open files, perhaps
                log.warning("shards_not_listed", reason=str(error))
                continue
            if before == self._changes:
                self._on_disk = listed

    def _listed(self) -> frozenset[ShardId]:
        with os.scandir(self.root) as entries:
            found = (ShardId.parse(entry.name) for entry in entries if entry.is_dir())
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
        return (self.root / str(shard)).absolute()

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
                replica = await self.lanes.opening.run(lambda _: self._opened(shard, collection, member))
                self._hosted[shard] = Hosted(replica, collection)
            finally:
                self._coming -= 1

    async def inspect(self, shard: ShardId, collection: Collection, member: Member) -> Inspection | None:
        """How far the copy that is here has come, in use or not; None if there is none."""

        def look(_: Stop) -> Inspection | None:
            if not (self.root / str(shard)).is_dir():
                return None
            replica = self._opened(shard, collection, member)  # it takes part in nothing before it sees a configuration
            try:
                return replica.inspect().result()
            finally:
                replica.close()

        async with self._exclusively(shard):
            if hosted := self._hosted.get(shard):
                return await result_of(hosted.replica.inspect())
            return await self.lanes.opening.run(look)

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
        path, around = self.root / str(shard), self._surroundings
        return Replica.open(
            path, spec, self._settings, maintenance=self._maintenance, me=member, surroundings=around, pool=self._pool
        )

    async def shut(self, shard: ShardId) -> None:
        """Close the replica and keep its data."""
        if hosted := self._hosted.pop(shard, None):
            await self.lanes.closing.run(lambda _: hosted.replica.close())

    async def delete(self, shard: ShardId) -> None:
        """Close the replica and delete its data; renamed first, so that half a shard is never opened again."""
        await self.shut(shard)
        async with self._exclusively(shard):
            await self._remove(shard)

    async def _remove(self, shard: ShardId) -> None:
        doomed = self.root / f"{shard}{DOOMED}"

        def remove(_: Stop) -> None:
            if (path := self.root / str(shard)).exists():
                path.rename(doomed)
                sync_directory(self.root)
            shutil.rmtree(doomed, ignore_errors=True)

        await self.lanes.deleting.run(remove)
        self._note_directory(shard, is_there=False)
        log.info("shard_deleted", shard=str(shard))

    def standing(self, shard: ShardId) -> Standing | None:
        """Where a replica stands; None if it is not open."""
        hosted = self._hosted.get(shard)
        return hosted.replica.standing if hosted else None

    async def close(self) -> None:
        """Close every replica; what was acknowledged is on disk already."""
        for shard in list(self._hosted):
            await self.shut(shard)
        self.lanes.shut_down()
        await asyncio.to_thread(self._maintenance.close)
        await asyncio.to_thread(self._pool.close)

    def get(self, shard: ShardId) -> Hosted | None:
        """The open replica, if it is open; from any thread."""
        return self._hosted.get(shard)

    def hosted(self) -> list[tuple[ShardId, Hosted]]:
        """Every open replica, in order; from any thread."""
        return sorted(self._hosted.items())

    def here(self, shard: ShardId) -> Replica:
        """The open replica; `ShardsUnavailable` if there is none here."""
        hosted = self._hosted.get(shard)
        if hosted is None:
            raise ShardsUnavailable(f"this node has no replica of shard {shard} open", missing_shards=[shard.number])
        return hosted.replica
