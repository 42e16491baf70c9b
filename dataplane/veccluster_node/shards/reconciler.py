"""Carry out what the node decides about its own shards, round after round.

Each shard is worked on by one task at a time, so that one that takes long to open holds up no other; what fails is
tried again after a pause that grows, and is an issue that a person can read until it succeeds.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from veccluster import backoff
from veccluster.decisions import hosting
from veccluster.decisions.hosting import Local
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import StorageCorrupt, Unavailable, VecClusterError
from veccluster.model.cluster import Changes, ClusterState
from veccluster.model.state import Collection, Epoch, Member, Revision, ShardId
from veccluster_node.metadata.store import Store
from veccluster_node.runtime.identity import Identity
from veccluster_node.runtime.metrics import Measures

LOOK_AT_ALL_EVERY = 10.0
"""Seconds after which all shards of the node are looked at, and not only what has changed."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

log = structlog.get_logger(__name__)


class Host(Protocol):
    """What holds the open replicas (host.py)."""

    measures: Measures

    def local(self) -> Mapping[ShardId, Local]:
        """Every shard that has a directory here."""

    def directory(self, shard: ShardId) -> Path:
        """Where the data of a shard is, or would be."""

    async def open(self, shard: ShardId, collection: Collection, member: Member) -> None:
        """Open the replica as that member, or make it."""

    async def shut(self, shard: ShardId) -> None:
        """Close the replica, if it is open, and keep its data."""

    async def delete(self, shard: ShardId) -> None:
        """Close the replica and delete its data."""


class Inbox(Protocol):
    """What reaches the replicas (inbox.py)."""

    def see(self, shard: ShardId, configuration: Configuration) -> None:
        """Show an open replica what the record says of its shard."""

    def know(self, shard: ShardId, known: Known) -> None:
        """Show an open replica what etcd says of batches over several shards."""


class Status(Protocol):
    """How the replicas fare (status.py)."""

    def mendable(self) -> list[ShardId]:
        """Replicas to shut so that they are opened again."""

    def serving(self) -> list[ShardId]:
        """The shards that this node serves as their primary."""

    def broken(self) -> list[ShardId]:
        """Open replicas that cannot do what they should."""

    def issues(self) -> list[str]:
        """What the replicas would have a person know."""


class Reconciler:
    """The shards of one node, kept as the cluster's state asks."""

    def __init__(self, identity: Identity, store: Store, host: Host, inbox: Inbox, status: Status) -> None:
        self._identity = identity
        self._store = store
        self._host = host
        self._inbox = inbox
        self._status = status
        self._busy: dict[ShardId, asyncio.Task[None]] = {}
        self._failures: dict[ShardId, tuple[int, float, str]] = {}
        """Tries, when to try again, and what went wrong."""
        self._corrupt: dict[ShardId, str] = {}
        """Replicas that could not be opened because of what is on the disk."""
        self._told: dict[ShardId, tuple[Epoch, Revision]] = {}
        """The newest record that each open replica was shown."""
        self._known: dict[ShardId, Known] = {}
        """What it was shown of batches over several shards."""
        self._reader = store.reader()
        self._restless: set[ShardId] = set()
        """Shards about which something is to be done, or waited for."""
        self._before: Mapping[ShardId, Local] = {}
        """What was here at the last look."""
        self._look_at_all = 0.0
        store.batches_changed.append(self._tell_of_batches)

    async def run(self) -> None:
        """Reconcile for ever."""
        async for _ in self._store.changes(at_least_every=FIRST_PAUSE):
            self.round()

    def round(self) -> None:
        """Look at what has changed, and at what is not at rest, and start what is to be done."""
        mendable = self._status.mendable()
        for shard in mendable:
            self._start(shard, self._host.shut(shard))
        state, changes = self._reader.take()
        disk, local = self._identity.disk, self._local()
        only = self._to_look_at(state, changes, local)
        for shard, configuration in hosting.shown(disk, state, local, only):
            news = (configuration.epoch, configuration.revision)  # revisions alone may go back (decisions/restored.py)
            if shard not in self._busy and news > self._told.get(shard, (0, 0)):
                self._told[shard] = news
                self._inbox.see(shard, configuration)
        self._tell_of_batches()
        actions = list(hosting.decide(disk, state, local, only))
        self._restless = {s for s in only if not hosting.is_at_rest(disk, state, local, s)}
        self._forget_failures({*mendable, *map(_shard_of, actions)})
        for action in actions:
            match action:
                case hosting.Open(record, collection, member):
                    self._start(record.id, self._open(record.id, collection, member))
                case hosting.Renew(shard):
                    self._start(shard, self._renew(shard))
                case hosting.GiveUp(shard):
                    self._start(shard, self._give_up(shard))
                case hosting.Clear(shard) | hosting.Delete(shard):
                    self._start(shard, self._host.delete(shard))
                case hosting.ReportDropped(uuid) if not self._works_on(uuid):
                    self._start(ShardId(uuid, REPORT), self._report_dropped(uuid))

    def _to_look_at(self, state: ClusterState, changes: Changes, local: Mapping[ShardId, Local]) -> set[ShardId]:
        """All that are here or should be, at times; else those whose records or replicas are others than before."""
        before, self._before = self._before, local
        if changes.everything or time.monotonic() >= self._look_at_all:
            self._look_at_all = time.monotonic() + LOOK_AT_ALL_EVERY
            return {*local, *state.shards_on(self._identity.disk.node)}
        touched = {*changes.shards, *(i for uuid in changes.collections for i in state.shards_within(uuid))}
        if changes.collections:
            touched |= {i for i in local if i.collection in changes.collections}
        if before != local:
            touched |= {i for i, here in local.items() if before.get(i) != here} | (before.keys() - local.keys())
        return touched | self._restless | self._busy.keys() | self._failures.keys()

    def _tell_of_batches(self) -> None:
        for shard, local in self._host.local().items() if self._store.all_batches or self._known else ():
            known = self._store.batches(shard.collection)
            if local.is_open and shard not in self._busy and known is not self._known.get(shard):
                self._known[shard] = known
                self._inbox.know(shard, known)

    @property
    def settled(self) -> bool:
        """Whether every shard of this node is served, or known to be beyond its power.

        What it only has to delete does not count: nobody asks for that any more.
        """
        disk, state = self._identity.disk, self._store.state
        mine = {record.id for record in hosting.assigned(disk, state)}
        if self.recovering() or not mine.isdisjoint(self._busy):
            return False
        left = [a for a in hosting.decide(disk, state, self._local()) if _shard_of(a) in mine]
        return all(isinstance(a, hosting.Open) and a.record.id in self._failures for a in left)

    def issues(self) -> list[str]:
        """What a person should know about the shards of this node."""
        disk, state, local = self._identity.disk, self._store.state, self._local()
        lost = hosting.lost(disk, state, local)
        return [
            *(f"shard {shard}: {why}" for shard, (_, _, why) in sorted(self._failures.items())),
            *(f"shard {s}: its directory is gone from the disk; bring it back, or delete the collection" for s in lost),
            *(
                f"data of shard {s} is here, but no record names this node for it: it is kept and not read. If it is "
                f"needed, bring back the etcd that knew it; once it is known not to be, stop the node and remove "
                f"{self._host.directory(s)}"
                for s in self._idle(hosting.orphans(disk, state, local))
            ),
            *(
                f"shard {s}: this node holds an older copy that is not used; it is deleted once enough others are "
                "in sync"
                for s in self._idle(hosting.spares(disk, state, local))
            ),
            *self._status.issues(),
        ]

    def recovering(self) -> list[ShardId]:
        """Shards that are being opened, or are about to be served."""
        local, serving, broken = self._local(), set(self._status.serving()), set(self.broken())
        disk = self._identity.disk
        found = []
        for record in hosting.assigned(disk, self._store.state):
            mine, is_primary = local.get(record.id, Local()), record.primary == disk.member(record.id)
            is_up = mine.is_open and (not is_primary or record.id in serving or mine.damaged)
            if not is_up and record.id not in broken:
                found.append(record.id)
        return found

    def broken(self) -> list[ShardId]:
        """Shards that this node should hold, and cannot."""
        disk, state, local = self._identity.disk, self._store.state, self._local()
        failed = {*self._failures, *hosting.lost(disk, state, local), *self._status.broken()}
        return [
            record.id
            for record in hosting.assigned(disk, state)
            if record.id in failed
            or hosting.is_gone(disk, record, local)
            or (local.get(record.id, Local()).damaged and hosting.is_held_by_others(record, disk.member(record.id)))
        ]

    async def close(self) -> None:
        """End what is under way."""
        for task in self._busy.values():
            task.cancel()
        await asyncio.gather(*self._busy.values(), return_exceptions=True)

    def _local(self) -> dict[ShardId, Local]:
        """What is here, with what was learnt when it could not be opened."""
        found = dict(self._host.local())
        for shard, why in self._corrupt.items():
            if shard in found:
                found[shard] = replace(found[shard], damaged=why)
        return found

    def _forget_failures(self, asked: AbstractSet[ShardId]) -> None:
        """What was tried and is asked for no more is nobody's trouble."""
        self._failures = {s: failure for s, failure in self._failures.items() if s in asked or s in self._busy}

    def _idle(self, shards: list[ShardId]) -> list[ShardId]:
        """Those that nothing is done about, by a state that was read from etcd at all."""
        return [s for s in shards if s not in self._busy] if self._store.state.revision else []

    def _works_on(self, uuid: str) -> bool:
        """Whether a task is about this collection: one that opens a shard may be about to make its directory."""
        return any(s.collection == uuid for s in self._busy)

    async def _open(self, shard: ShardId, collection: Collection, member: Member) -> None:
        if not self._identity.disk.has_begun(shard):
            await asyncio.to_thread(self._identity.begin, shard)
        self._told.pop(shard, None)
        self._known.pop(shard, None)
        try:
            await self._host.open(shard, collection, member)
        except StorageCorrupt as error:
            self._corrupt[shard] = error.detail
            raise
        self._corrupt.pop(shard, None)

    async def _renew(self, shard: ShardId) -> None:
        """Be another member from now on, if etcd itself says that somebody else has all there is.

        The data stays until the record names the new member: by then the leader knows that the old one is no copy
        any more, so that the others cannot go meanwhile.
        """
        now = await self._store.read_shard(shard)
        if now is None or not hosting.may_renew(now, self._identity.member(shard)):
            raise Unavailable("no other replica is in sync by now, so that this one must not begin anew")
        await self._host.shut(shard)
        await asyncio.to_thread(self._identity.renew, shard)
        self._corrupt.pop(shard, None)
        self._host.measures.refetches.inc()
        log.warning("replica_renewed", shard=str(shard), incarnation=self._identity.member(shard).incarnation)

    async def _give_up(self, shard: ShardId) -> None:
        await self._host.shut(shard)
        await asyncio.to_thread(self._identity.renew, shard)
        await self._host.delete(shard)
        log.info("replica_given_up", shard=str(shard))

    async def _report_dropped(self, uuid: str) -> None:
        if any(s.collection == uuid for s in self._identity.disk.replicas):
            await asyncio.to_thread(self._identity.forget, uuid)
        await self._store.report_dropped(uuid, self._identity.disk.node)

    def _start(self, shard: ShardId, work: Awaitable[None]) -> None:
        _, again, _ = self._failures.get(shard, (0, 0.0, ""))
        if shard in self._busy or time.monotonic() < again:
            if asyncio.iscoroutine(work):
                work.close()
            return
        self._busy[shard] = asyncio.create_task(self._work(shard, work), name=f"shard {shard}")

    async def _work(self, shard: ShardId, work: Awaitable[None]) -> None:
        try:
            await work
            self._failures.pop(shard, None)
        except VecClusterError as error:
            self._note_failure(shard, error.detail)
            log.warning("shard_work_failed", shard=str(shard), reason=error.detail)
        except Exception as error:  # a defect in one shard must not end the care for the others
            self._note_failure(shard, f"{type(error).__name__}: {error}")
            log.exception("shard_work_failed", shard=str(shard))
        finally:
            del self._busy[shard]
            self._restless.add(shard)
            self._store.wake()

    def _note_failure(self, shard: ShardId, why: str) -> None:
        tries = self._failures.get(shard, (0, 0.0, ""))[0] + 1
        pause = backoff.pause(FIRST_PAUSE, tries, LONGEST_PAUSE)
        self._failures[shard] = (tries, time.monotonic() + pause, why)


def _shard_of(action: hosting.Action) -> ShardId:
    match action:
        case hosting.Open(record):
            return record.id
        case hosting.ReportDropped(uuid):
            return ShardId(uuid, REPORT)
        case _:
            return action.shard


REPORT = -1
"""Stands for the whole collection where a task is about no single shard."""
