"""A cluster's metadata: its state followed from etcd, and the transactions that change it.

The state in memory is always one that etcd had at some revision; while etcd is away it is the last one known. Every
change is a transaction that compares what the decision was based on, so a lost race changes nothing and the next round
of the caller sees what is there now.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar, assert_never

import msgspec
import structlog

from veccluster.decisions import assignment
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.atomic import Decision
from veccluster.decisions.replication.atomic_deciding import Known, made_at
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster.model.cluster import ClusterState, Drop
from veccluster.model.state import Collection, Load, Node, NodeId, Revision, Shard, ShardId
from veccluster_node.metadata import batches
from veccluster_node.metadata import keys as encoding
from veccluster_node.metadata.batches import Batches
from veccluster_node.metadata.etcd import EtcdClient, Lease, Term
from veccluster_node.metadata.etcd.values import (
    Compare,
    CreateRevision,
    Delete,
    DeletePrefix,
    Found,
    Get,
    KeyValue,
    ModRevision,
    Put,
    Snapshot,
    Value,
    WatchEvents,
)
from veccluster_node.metadata.keys import Keys

SHARDS_IN_ONE_TRANSACTION = 100
"""etcd refuses transactions of more than 128 operations."""

PATIENCE = 2.0
"""Seconds that a client's request waits for etcd."""

PAUSE_AFTER_REFUSAL = 1.0

NOTHING_KNOWN = Known()

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Store:
    """The metadata of one cluster, for one event loop."""

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self.keys = keys
        self._client = client
        self._state = ClusterState()
        self._batches = Batches(keys.batches)
        self.batches_changed: list[Callable[[], None]] = []
        """Called when something may have become of batches over several shards; nobody else is woken by that alone."""
        self._changed = asyncio.Event()
        self._known = asyncio.Event()
        self.refused = ""
        """Why etcd does not let us read the state at present, in words; empty when it does."""

    @property
    def state(self) -> ClusterState:
        """The newest state that this node has seen."""
        return self._state

    async def follow(self) -> None:
        """Keep `state` up to date for ever; what etcd refuses now it may allow later."""
        while True:
            try:
                await self._follow()
            except MetadataRefused as error:
                self.refused = (
                    f"{error.detail}; we must be allowed to read and write every key under {self.keys.prefix}"
                )
                log.warning("state_not_readable", reason=self.refused)
                self.wake()
                await asyncio.sleep(PAUSE_AFTER_REFUSAL)

    async def _follow(self) -> None:
        entries: dict[str, KeyValue] = {}
        async for update in self._client.follow(self.keys.prefix):
            changed = self._note(update, entries)
            if changed:
                raw = {key: (kv.value, int(kv.mod_revision)) for key, kv in entries.items()}
                self._state = encoding.state_of(self.keys.prefix, raw, update.revision)
            else:
                self._state = msgspec.structs.replace(self._state, revision=update.revision)
            self.refused = ""
            self._known.set()
            if self._batches.reach(update.revision):
                for tell in self.batches_changed:
                    tell()
            if changed:
                self.wake()

    def _note(self, update: Snapshot | WatchEvents, entries: dict[str, KeyValue]) -> bool:
        """Bring `entries` up to date; whether any changed. Keys about batches are many and short-lived, and apart."""
        if isinstance(update, Snapshot):
            entries.clear()
            self._batches.restart()
            changes: Iterable[tuple[str, KeyValue | None]] = update.items.items()
        else:
            changes = [(event.key, event.now) for event in update.events]
        changed = isinstance(update, Snapshot)
        for key, now in changes:
            if key.startswith(self.keys.batches):
                self._batches.note(key, now)
                continue
            changed = True
            if now is None:
                entries.pop(key, None)
            else:
                entries[key] = now
        return changed

    def batches(self, uuid: str) -> Known:
        """What etcd says of a collection's batches over several shards, as far as this node has seen."""
        return self._batches.known.get(uuid, NOTHING_KNOWN)

    @property
    def all_batches(self) -> Mapping[str, Known]:
        """The same of all collections that have any."""
        return self._batches.known

    async def known(self) -> None:
        """Wait until the state has been read once."""
        await self._known.wait()

    def wake(self) -> None:
        """Let everyone who waits for a change look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changes(self, *, at_least_every: float) -> AsyncIterator[None]:
        """Yield now, after every change, and at least every so many seconds."""
        while True:
            changed = self._changed
            yield
            try:
                async with asyncio.timeout(at_least_every):
                    await changed.wait()
            except TimeoutError:
                pass

    async def wait_until(self, holds: Callable[[ClusterState], bool], *, timeout: float) -> bool:
        """Wait until the state fulfils `holds`; whether it did in time."""
        try:
            async with asyncio.timeout(timeout):
                async for _ in self.changes(at_least_every=timeout):
                    if holds(self._state):
                        return True
        except TimeoutError:
            pass
        return holds(self._state)

    # Collections

    async def read_collection(self, name: str) -> Collection | None:
        """The collection as etcd has it now, newer than `state` may be."""
        found = await self._client.get(self.keys.collection(name), timeout=PATIENCE)
        return encoding.decode_collection(found.value) if found else None

    async def create_collection(self, collection: Collection) -> bool:
        """Write the collection down unless its name is taken; whether it was written."""
        key = self.keys.collection(collection.name)
        try:
            result = await self._client.txn(
                [CreateRevision(key, "==", 0)], [Put(key, encoding.encode(collection))], timeout=PATIENCE
            )
        except OutcomeUnknown:
            # The uuid is ours alone, so reading tells who won.
            found = await self.read_collection(collection.name)
            if found is None:
                raise
            return found.uuid == collection.uuid
        return result.succeeded

    async def drop_collection(self, name: str) -> Collection | None:
        """Delete the collection and tell the nodes to delete its data; the one that there was."""
        key = self.keys.collection(name)
        while (found := await self._client.get(key, timeout=PATIENCE)) is not None:
            collection = encoding.decode_collection(found.value)
            intent = self.keys.drop(collection.uuid)
            drop = Put(intent, encoding.encode(Drop(uuid=collection.uuid, name=name)))
            try:
                result = await self._client.txn(
                    [ModRevision(key, "==", found.mod_revision)], [Delete(key), drop], timeout=PATIENCE
                )
            except OutcomeUnknown:
                if await self._client.get(intent) is None:
                    raise
                return collection
            if result.succeeded:
                return collection
        return None

    # Nodes and their shards

    async def read_node(self, node: NodeId) -> tuple[Node | None, Load | None]:
        """The node's registration and its sign of life, as etcd has them now."""
        registered = await self._client.get(self.keys.node(node))
        alive = await self._client.get(self.keys.alive(node))
        return (
            encoding.decode_node(registered.value) if registered else None,
            encoding.decode_load(alive.value) if alive else None,
        )

    async def grant(self, ttl: float) -> Lease:
        """A lease for this node."""
        return await self._client.grant(ttl)

    async def register(self, node: Node) -> None:
        """Write the node down as a member."""
        await self._client.put(self.keys.node(node.id), encoding.encode(node))

    async def publish(self, load: Load, lease: Lease) -> None:
        """Give the node's sign of life. `LeaseLost` if etcd ended the lease while this process stood still."""
        try:
            await self._client.put(self.keys.alive(load.id), encoding.encode(load), lease=lease.id)
        except MetadataRefused as error:
            if "lease not found" not in error.detail:
                raise
            raise LeaseLost(f"etcd has ended the lease {lease.id:x}") from error

    async def read_shard(self, shard: ShardId) -> Configuration | None:
        """The shard's configuration as etcd has it now; None if there is no such shard, or no longer."""
        found = await self._client.get(self.keys.shard(shard))
        return self._configuration(shard, found) if found else None

    async def swap_shard(
        self, shard: ShardId, target: Configuration, expected: Revision
    ) -> tuple[Outcome, Configuration | None]:
        """Change the shard to `target` if it is still at `expected`: how that ended, and what is there now, if known.

        Never asked again here: what has no answer may have happened or happen yet, and the replica that asked goes on
        with both (3).
        """
        record, key = self._state.shards.get(shard), self.keys.shard(shard)
        if record is None:
            return Outcome.refused, None
        put = Put(key, encoding.encode_shard(target.put_into(record)))
        try:
            result = await self._client.txn([ModRevision(key, "==", expected)], [put], [Get(key)])
        except (OutcomeUnknown, MetadataUnavailable, MetadataRefused):
            return Outcome.unknown, None
        if result.succeeded:
            return Outcome.swapped, replace(target, revision=result.revision)
        (there,) = result.responses
        found = there.one if isinstance(there, Found) else None
        return Outcome.refused, self._configuration(shard, found) if found else None

    async def accept_loss(
        self, shard: ShardId, target: Configuration, expected: Revision, absent: Iterable[NodeId]
    ) -> bool:
        """Make of a shard what a person confirmed if its record is still at `expected` and none of `absent` is back."""
        record = self._state.shards.get(shard)
        if record is None:
            return False
        key = self.keys.shard(shard)
        guards: list[Compare] = [ModRevision(key, "==", expected)]
        guards += [CreateRevision(self.keys.alive(node), "==", 0) for node in absent]
        put = Put(key, encoding.encode_shard(target.put_into(record)))
        return (await self._client.txn(guards, [put], timeout=PATIENCE)).succeeded

    def _configuration(self, shard: ShardId, found: KeyValue) -> Configuration | None:
        """None if the shard's collection is gone: then its key is about to be."""
        record = encoding.decode_shard(shard, found.value, found.mod_revision)
        collection = self._state.collection_of(shard)
        return Configuration.of(record, collection.replication_factor) if collection else None

    # Batches over several shards (15)

    async def decide(self, uuid: str, decision: Decision, forgotten: Revision) -> Decision | Revision:
        """Make a decision unless there is one, or some were forgotten since `forgotten`: the one that is there now, or
        the revision at which some were.

        What has no known outcome may be asked again.
        """
        key, last = self.keys.decision(uuid, decision.batch), self.keys.forgotten(uuid)
        there_is_none: list[Compare] = [CreateRevision(key, "==", 0), ModRevision(last, "==", forgotten)]
        put = Put(key, batches.encode(decision))
        result = await self._client.txn(there_is_none, [put], [Get(key), Get(last)], timeout=PATIENCE)
        if result.succeeded:
            return made_at(decision, result.revision)
        found, newer = (r.one if isinstance(r, Found) else None for r in result.responses)
        if found:
            return batches.decode(found)
        return newer.mod_revision if newer else Revision(0)

    async def forget_batches(self, uuid: str, known: Known, gone: Iterable[Decision], *, fenced_by: Term) -> None:
        """Delete decisions that nobody needs any more, not all at once, unless others were deleted since."""
        keys = [self.keys.decision(uuid, decision.batch) for decision in gone]
        last = self.keys.forgotten(uuid)
        deletes = [Delete(key) for key in keys[:SHARDS_IN_ONE_TRANSACTION]]
        guards: list[Compare] = [fenced_by.fence(), ModRevision(last, "==", known.forgotten)]
        await self._client.txn(guards, [Put(last, batches.FORGOTTEN), *deletes])

    async def drop_batches(self, uuid: str, *, fenced_by: Term) -> None:
        """Delete everything about batches of a collection that is gone, data and all."""
        await self._client.txn([fenced_by.fence()], [DeletePrefix(self.keys.batches_of(uuid))])

    async def report_dropped(self, uuid: str, node: NodeId) -> None:
        """Say that this node holds nothing of a dropped collection; nothing if the drop is finished already."""
        drop = CreateRevision(self.keys.drop(uuid), ">", 0)
        await self._client.txn([drop], [Put(self.keys.dropped_by(uuid, node), b"{}")])

    # The leader

    async def apply_failover(self, change: failover.Change, *, fenced_by: Term) -> bool:
        """Carry out one decision about a shard's members; whether it was. A lost race or term changes nothing."""
        record, key = self._state.shards.get(change.shard), self.keys.shard(change.shard)
        if record is None:
            return False
        unchanged = ModRevision(key, "==", change.revision)
        put = Put(key, encoding.encode_shard(change.target.put_into(record)))
        return (await self._client.txn([fenced_by.fence(), unchanged], [put])).succeeded

    async def apply(self, action: assignment.Action, *, fenced_by: Term) -> None:
        """Carry out one decision of the leader; a lost race or a lost term changes nothing."""
        match action:
            case assignment.CreateShards(collection, shards):
                await self._create_shards(collection, shards, fenced_by)
            case assignment.Reassign(before, after):
                key = self.keys.shard(before.id)
                unchanged = ModRevision(key, "==", before.revision)
                await self._client.txn([fenced_by.fence(), unchanged], [Put(key, encoding.encode_shard(after))])
            case assignment.ForgetShards(_, forgotten):
                for some in _in_parts(forgotten):
                    await self._client.txn([fenced_by.fence()], [Delete(self.keys.shard(s)) for s in some])
            case assignment.FinishDrop(uuid):
                done = [self.keys.dropped_by(d.uuid, d.node) for d in self._state.dropped_by if d.uuid == uuid]
                await self._client.txn([fenced_by.fence()], [Delete(k) for k in (self.keys.drop(uuid), *done)])
            case _:
                assert_never(action)

    async def _create_shards(self, collection: Collection, shards: tuple[Shard, ...], term: Term) -> None:
        """Write shards down, each only if it does not exist and the collection still does."""
        name = self.keys.collection(collection.name)
        for some in _in_parts(shards):
            puts = [Put(self.keys.shard(s.id), encoding.encode_shard(s)) for s in some]
            still_there = Value(name, "==", encoding.encode(collection))
            guards: list[Compare] = [term.fence(), still_there, *(CreateRevision(p.key, "==", 0) for p in puts)]
            result = await self._client.txn(guards, puts)
            log.info("shards_created" if result.succeeded else "shards_not_created", collection=collection.name)


def _in_parts(items: tuple[T, ...]) -> Iterable[tuple[T, ...]]:
    return (items[i : i + SHARDS_IN_ONE_TRANSACTION] for i in range(0, len(items), SHARDS_IN_ONE_TRANSACTION))
