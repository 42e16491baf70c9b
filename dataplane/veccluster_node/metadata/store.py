"""A cluster's metadata: its state followed from etcd, and the transactions that change it.

The state in memory is always one that etcd had at some revision; while etcd is away it is the last one known. Every
change is a transaction that compares what the decision was based on, so a lost race changes nothing and the next round
of the caller sees what is there now.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar, assert_never
from uuid import uuid4

import msgspec
import structlog
from msgspec.structs import replace as replace_fields

from veccluster.decisions import assignment
from veccluster.decisions.etcd_history import Seen, went_back
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.atomic import Decision
from veccluster.decisions.replication.atomic_deciding import Known, made_at
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster.model.cluster import ClusterState, Drop, History
from veccluster.model.state import Collection, Load, Node, NodeId, Revision, Shard, ShardId
from veccluster_etcd import EtcdClient, Lease, Term
from veccluster_etcd.values import (
    Compare,
    CreateRevision,
    Delete,
    DeletePrefix,
    Found,
    Get,
    KeyValue,
    ModRevision,
    Operation,
    Put,
    Snapshot,
    Txn,
    TxnResult,
    Value,
    WatchEvents,
)
from veccluster_node.metadata import batches, last_seen
from veccluster_node.metadata import keys as encoding
from veccluster_node.metadata.batches import Batches
from veccluster_node.metadata.book import UNTRUSTED, Book, Reader
from veccluster_node.metadata.keys import Keys, Unreadable
from veccluster_node.metadata.last_seen import LastSeen

SHARDS_IN_ONE_TRANSACTION = 100
"""etcd refuses transactions of more than 128 operations."""

CHANGES_IN_ONE_TRANSACTION = 64
"""Changes of shards by the leader, each a transaction of its own within one: the limit is the same, and this much of
it is some 30 KiB."""

FORGOTTEN_AT_ONCE = 20 * SHARDS_IN_ONE_TRANSACTION
"""Decisions that are deleted in a row: whoever proposes one meanwhile has to ask the shards once more."""

PATIENCE = 2.0
"""Seconds that a client's request waits for etcd."""

PAUSE_AFTER_REFUSAL = 1.0

SHORTEST_SECRET = 32
"""Bytes."""

NOTHING_KNOWN = Known()

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Store:
    """The metadata of one cluster, for one event loop."""

    def __init__(self, client: EtcdClient, keys: Keys, last_seen: LastSeen | None = None) -> None:
        """`last_seen` is what this node saw of etcd before it started."""
        self.keys = keys
        self._client = client
        self._book = Book(keys.prefix)
        self._batches = Batches(keys.batches)
        self._decidable: bytes | None = None
        """The history in which batches may be decided, as etcd says."""
        self._last_seen = last_seen
        self._seen = last_seen.read() if last_seen else None
        self.went_back = ""
        """Why nothing that etcd says of shards may be believed yet, in words: it went back to an older state, and that
        is not written down in it yet. Nothing is changed until it is."""
        self.times_back = 0
        """How often that happened: what began before, leases above all, has to begin anew."""
        self.forgotten: Mapping[str, Known] = {}
        """What was known of batches before etcd went back last, and may be known to nobody else by now."""
        self.nodes_before: frozenset[NodeId] = frozenset()
        """The members of before etcd went back last; some of them may be unknown to it."""
        self._own: dict[str, Revision] = {}
        """Keys about this node, and the revisions at which they were written last."""
        self._marking: asyncio.Task[None] | None = None
        self.batches_changed: list[Callable[[], None]] = []
        """Called when something may have become of batches over several shards; nobody else is woken by that alone."""
        self._changed = asyncio.Event()
        self._known = asyncio.Event()
        self.refused = ""
        """Why etcd does not let us read the state at present, in words; empty when it does."""

    @property
    def state(self) -> ClusterState:
        """The newest state that this node has seen."""
        return self._book.state

    def reader(self) -> Reader:
        """One who looks at the state again and again, and at what has changed meanwhile."""
        return self._book.reader()

    async def follow(self) -> None:
        """Keep `state` up to date for ever; what etcd refuses now it may allow later."""
        keeping = asyncio.create_task(self._last_seen.keep()) if self._last_seen else None
        try:
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
        finally:
            for task in filter(None, (keeping, self._marking)):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        async for update in self._client.follow(self.keys.prefix):
            shards = self.state.shards
            changed = self._note(update)
            self._check_history(records_changed=self.state.shards is not shards)
            self.refused = ""
            self._known.set()
            if self._book.unreadable_elsewhere != self._batches.unreadable:
                self._book.unreadable_elsewhere = dict(self._batches.unreadable)
                self._book.note((), update.revision)
                changed = True
            if self._batches.reach(update.revision):
                for tell in self.batches_changed:
                    tell()
            if changed:
                self.wake()

    def _note(self, update: Snapshot | WatchEvents) -> bool:
        """Whether any key changed. Keys about batches are many and short-lived, and apart."""
        is_anew, decidable = isinstance(update, Snapshot), self._decidable
        if isinstance(update, Snapshot):
            self._note_whose(update)
            self._batches.restart()
            self._decidable = None
            changes: Iterable[tuple[str, KeyValue | None]] = update.items.items()
        else:
            changes = [(event.key, event.now) for event in update.events]
        others = []
        for key, now in changes:
            if key.startswith(self.keys.batches):
                self._batches.note(key, now)
            elif key == self.keys.history_of_batches:
                self._decidable = now.value if now else None
            else:
                others.append((key, now))
        self._book.note(others, update.revision, anew=is_anew)
        return is_anew or bool(others) or decidable != self._decidable

    # Whether etcd is what it was

    def _note_whose(self, snapshot: Snapshot) -> None:
        """All is read anew: for the first time, after a pause, or because etcd went back to an older state."""
        before = self._seen
        why = snapshot.went_back
        if not why and before:
            why = went_back(Seen(before.cluster, before.revision), snapshot.cluster, snapshot.revision)
        if why:
            self.went_back, self.times_back = why, self.times_back + 1
            self.forgotten = dict(self._batches.known)
            self.nodes_before = frozenset(self.state.nodes)
            self._book.trust(UNTRUSTED)
            log.error("etcd_went_back", reason=why, was=before.revision if before else None, now=snapshot.revision)
        history = before.history if before else History()
        self._seen = last_seen.Seen(snapshot.cluster, snapshot.revision, history)

    def _check_history(self, *, records_changed: bool) -> None:
        """Go by the history that etcd says if it is the one of before, or its writer knew that one; else write one."""
        seen, written = self._seen, self._book.written_history
        assert seen is not None
        is_first = not self._known.is_set() and not self.went_back
        is_same = written == seen.history and not self.went_back
        if self.keys.history not in self.state.unreadable and (is_first or is_same or written.follows(seen.history)):
            if self.state.history != written:
                self.times_back += not (is_first or self.went_back)
                self._book.trust(written)
            self.went_back, seen = "", replace_fields(seen, history=written)
        elif self._marking is None or self._marking.done():
            self.times_back += not self.went_back
            self.went_back = self.went_back or "its history is not the one that was written down"
            self._book.trust(UNTRUSTED)
            self._marking = asyncio.create_task(self._mark(seen.history))
        self._seen = replace_fields(seen, revision=max(seen.revision, self.state.revision))
        if self._last_seen:
            self._last_seen.note(self._seen, at_once=records_changed)

    async def _mark(self, known: History) -> None:
        """Write down that another history of etcd has begun; whoever sees it looks anew, also who noticed nothing."""
        while why := self.went_back:
            written = self._book.written_history
            before = dict.fromkeys((*written.before, written.id, *known.before, known.id))
            history = History(id=uuid4().hex, before=tuple(before), why=why, at=time.time())
            put = Put(self.keys.history, encoding.encode(history))
            try:
                if (await self._client.txn([self._same_history()], [put])).succeeded:
                    log.warning("history_written", history=history.id, reason=why)
            except (OutcomeUnknown, MetadataUnavailable, MetadataRefused) as error:
                log.warning("history_not_written", reason=error.detail)
            await asyncio.sleep(PAUSE_AFTER_REFUSAL)  # until what is there now is seen

    def _same_history(self) -> Compare:
        """Holds as long as etcd is not found to have gone back since what is known here."""
        value = self._book.history_value
        if value is None:
            return CreateRevision(self.keys.history, "==", 0)
        return Value(self.keys.history, "==", value)

    def begin(self, term: Term) -> Term:
        """The term as one of the present history: it changes nothing in another."""
        return replace(term, within=self._same_history())

    def _fence(self, term: Term) -> list[Compare]:
        return [term.fence(), term.within or self._same_history()]

    def _believed(self) -> None:
        """Raise unless what etcd says may be acted upon."""
        if self.went_back:
            raise MetadataUnavailable(f"etcd went back to an older state ({self.went_back}); this is being looked into")

    async def _txn(
        self,
        guards: Iterable[Compare],
        success: Iterable[Operation],
        failure: Iterable[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """A transaction within the present history of etcd."""
        self._believed()
        before, times = self.state.revision, self.times_back
        result = await self._client.txn(guards, success, failure, timeout=timeout)
        if result.revision < before or times != self.times_back:
            raise OutcomeUnknown("etcd went back to an older state meanwhile")
        return result

    async def _get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        self._believed()
        times = self.times_back
        found = await self._client.get(key, timeout=timeout)
        if times != self.times_back:
            raise MetadataUnavailable("etcd went back to an older state meanwhile")
        return found

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
                    if holds(self.state):
                        return True
        except TimeoutError:
            pass
        return holds(self.state)

    # Collections

    async def read_collection(self, name: str) -> Collection | None:
        """The collection as etcd has it now, newer than `state` may be."""
        found = await self._get(self.keys.collection(name), timeout=PATIENCE)
        return _read(encoding.decode_collection, found) if found else None

    async def create_collection(self, collection: Collection) -> bool:
        """Write the collection down unless its name is taken; whether it was written."""
        key = self.keys.collection(collection.name)
        try:
            result = await self._txn(
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
        while (found := await self._get(key, timeout=PATIENCE)) is not None:
            collection = _read(encoding.decode_collection, found)
            intent = self.keys.drop(collection.uuid)
            drop = Put(intent, encoding.encode(Drop(uuid=collection.uuid, name=name)))
            try:
                guards = [ModRevision(key, "==", found.mod_revision), self._same_history()]
                result = await self._txn(guards, [Delete(key), drop], timeout=PATIENCE)
            except OutcomeUnknown:
                if await self._get(intent) is None:
                    raise
                return collection
            if result.succeeded:
                return collection
        return None

    # Nodes and their shards

    async def read_node(self, node: NodeId) -> tuple[Node | None, Load | None]:
        """The node's registration and its sign of life, as etcd has them now; None for what cannot be read, too."""
        registered = await self._client.get(self.keys.node(node))
        alive = await self._client.get(self.keys.alive(node))
        return (
            _if_readable(encoding.decode_node, registered),
            _if_readable(encoding.decode_load, alive),
        )

    async def secret(self, known: Sequence[bytes]) -> bytes:
        """What the cluster's nodes prove themselves with to each other.

        Whoever finds none, or one that cannot be meant, puts one there: the newest that it has known, or a new one.
        """
        key = self.keys.secret
        while True:
            found = await self._client.get(key)
            if found and len(found.value) >= SHORTEST_SECRET:
                return found.value
            made = known[0] if known else secrets.token_hex(SHORTEST_SECRET).encode()
            unchanged = ModRevision(key, "==", found.mod_revision if found else 0)
            with suppress(OutcomeUnknown):  # the next look tells
                await self._client.txn([unchanged], [Put(key, made)])

    async def grant(self, ttl: float) -> Lease:
        """A lease for this node."""
        return await self._client.grant(ttl)

    async def register(self, node: Node) -> None:
        """Write the node down as a member."""
        revision = await self._client.put(self.keys.node(node.id), encoding.encode(node))
        self._own[self.keys.node(node.id)] = revision

    def lacks_node(self, node: NodeId) -> bool:
        """Whether this node's registration is gone or spoilt since it was written."""
        return self._lacks(self.keys.node(node), is_there=node in self.state.nodes)

    def lacks_life(self, node: NodeId) -> bool:
        """Whether this node's sign of life is gone or spoilt since it was given."""
        return self._lacks(self.keys.alive(node), is_there=node in self.state.alive)

    def _lacks(self, key: str, *, is_there: bool) -> bool:
        written = self._own.get(key)
        is_seen = written is not None and self.state.revision >= written
        return is_seen and (not is_there or key in self.state.unreadable)

    async def publish(self, load: Load, lease: Lease) -> None:
        """Give the node's sign of life. `LeaseLost` if etcd ended the lease while this process stood still."""
        key = self.keys.alive(load.id)
        try:
            self._own[key] = await self._client.put(key, encoding.encode(load), lease=lease.id)
        except MetadataRefused as error:
            if "lease not found" not in error.detail:
                raise
            raise LeaseLost(f"etcd has ended the lease {lease.id:x}") from error

    async def read_shard(self, shard: ShardId) -> Configuration | None:
        """The shard's configuration as etcd has it now; None if there is no such shard, or no longer.

        Raises `MetadataUnavailable` while it may be from before later changes.
        """
        found = await self._get(self.keys.shard(shard))
        if found is None:
            return None
        record = self._read_shard(shard, found)
        if record.history != self.state.history.id:
            raise MetadataUnavailable(f"etcd went back to an older state, and shard {shard} was not looked at yet")
        return self._configuration(record)

    async def read_unsettled(self, shard: ShardId) -> Configuration | None:
        """The same, if it may be from before later changes; None otherwise."""
        found = await self._get(self.keys.shard(shard))
        record = self._read_shard(shard, found) if found else None
        if record is None or record.history == self.state.history.id:
            return None
        return self._configuration(record)

    async def swap_shard(
        self, shard: ShardId, target: Configuration, expected: Revision
    ) -> tuple[Outcome, Configuration | None]:
        """Change the shard to `target` if it is still at `expected`: how that ended, and what is there now, if known.

        Never asked again here: what has no answer may have happened or happen yet, and the replica that asked goes on
        with both (3).
        """
        record, key = self.state.shards.get(shard), self.keys.shard(shard)
        if shard in self.state.unsettled or self.went_back:
            return Outcome.unknown, None
        if record is None:
            return Outcome.refused, None
        if target.epoch < record.epoch:  # asked before etcd went back: its revisions mean nothing now
            return Outcome.refused, self._configuration(record)
        put = Put(key, encoding.encode_shard(target.put_into(record)))
        try:
            guards = [ModRevision(key, "==", expected), self._same_history()]
            result = await self._txn(guards, [put], [Get(key)])
            if result.succeeded:
                return Outcome.swapped, replace(target, revision=result.revision)
            (there,) = result.responses
            found = there.one if isinstance(there, Found) else None
            now = self._read_shard(shard, found) if found else None
        except (OutcomeUnknown, MetadataUnavailable, MetadataRefused):
            return Outcome.unknown, None
        if now and (now.history != self.state.history.id or shard in self.state.unsettled):
            return Outcome.unknown, None
        return Outcome.refused, self._configuration(now) if now else None

    async def accept_loss(
        self, shard: ShardId, target: Configuration, expected: Revision, absent: Iterable[NodeId]
    ) -> bool:
        """Make of a shard what a person confirmed if its record is still at `expected` and none of `absent` is back."""
        record = self.state.unsettled.get(shard) or self.state.shards.get(shard)
        if record is None:
            return False
        key = self.keys.shard(shard)
        guards: list[Compare] = [ModRevision(key, "==", expected), self._same_history()]
        guards += [CreateRevision(self.keys.alive(node), "==", 0) for node in absent]
        put = Put(key, encoding.encode_shard(self._settled(target.put_into(record))))
        return (await self._txn(guards, [put], timeout=PATIENCE)).succeeded

    def _settled(self, record: Shard) -> Shard:
        """The record as one of the present history."""
        return msgspec.structs.replace(record, history=self.state.history.id)

    def _read_shard(self, shard: ShardId, found: KeyValue) -> Shard:
        try:
            return encoding.decode_shard(shard, found.value, found.mod_revision)
        except Unreadable as error:
            raise _not_readable(found, error) from error

    def _configuration(self, record: Shard) -> Configuration | None:
        """None if the shard's collection is gone: then its key is about to be."""
        collection = self.state.collection_of(record.id)
        return Configuration.of(record, collection.replication_factor) if collection else None

    # Batches over several shards (15)

    async def decide(self, uuid: str, decision: Decision, forgotten: Revision) -> Decision | Revision:
        """Make a decision unless there is one, or some were forgotten since `forgotten`: the one that is there now, or
        the revision at which some were.

        What has no known outcome may be asked again.
        """
        key, last = self.keys.decision(uuid, decision.batch), self.keys.forgotten(uuid)
        there_is_none: list[Compare] = [CreateRevision(key, "==", 0), ModRevision(last, "==", forgotten)]
        there_is_none += self._decidable_now()
        put = Put(key, batches.encode(decision))
        result = await self._txn(there_is_none, [put], [Get(key), Get(last)], timeout=PATIENCE)
        if result.succeeded:
            return made_at(decision, result.revision)
        found, newer = (r.one if isinstance(r, Found) else None for r in result.responses)
        if found:
            return _read_decision(found)
        return newer.mod_revision if newer else Revision(0)

    def _decidable_now(self) -> list[Compare]:
        """What holds as long as all decisions that were ever made in etcd are in it, as far as anybody knows."""
        history = self.state.history.id
        if not history:
            return [self._same_history()]
        if self._decidable != history.encode():
            raise MetadataUnavailable(
                "etcd went back to an older state, and it is not known yet which batches were decided since"
            )
        return [self._same_history(), Value(self.keys.history_of_batches, "==", history.encode())]

    @property
    def may_decide(self) -> bool:
        """Whether batches can be decided: not while etcd may have forgotten decisions."""
        history = self.state.history.id
        return not self.went_back and (not history or self._decidable == history.encode())

    async def recall_decision(self, uuid: str, decision: Decision, *, fenced_by: Term) -> None:
        """Write down again what was decided before etcd went back, if it does not know it."""
        key = self.keys.decision(uuid, decision.batch)
        guards = [*self._fence(fenced_by), CreateRevision(key, "==", 0)]
        await self._txn(guards, [Put(key, batches.encode(decision))])

    async def allow_decisions(self, collections: Iterable[str], *, fenced_by: Term) -> None:
        """All that anybody knows was recalled: what was to be proposed by what was known before is void from now on."""
        for some in _in_parts(tuple(collections)):
            voids = [Put(self.keys.forgotten(uuid), batches.FORGOTTEN) for uuid in some]
            await self._txn(self._fence(fenced_by), voids)
        done = Put(self.keys.history_of_batches, self.state.history.id.encode())
        await self._txn(self._fence(fenced_by), [done])

    async def forget_batches(self, uuid: str, known: Known, gone: Iterable[Decision], *, fenced_by: Term) -> None:
        """Delete decisions that nobody needs any more, the first so many, unless others were deleted since."""
        last, before = self.keys.forgotten(uuid), known.forgotten
        deletes = tuple(Delete(self.keys.decision(uuid, decision.batch)) for decision in gone)
        for some in _in_parts(deletes[:FORGOTTEN_AT_ONCE]):
            guards: list[Compare] = [*self._fence(fenced_by), ModRevision(last, "==", before)]
            result = await self._txn(guards, [Put(last, batches.FORGOTTEN), *some])
            if not result.succeeded:
                return
            before = result.revision

    async def drop_batches(self, uuid: str, *, fenced_by: Term) -> None:
        """Delete everything about batches of a collection that is gone, data and all."""
        await self._txn(self._fence(fenced_by), [DeletePrefix(self.keys.batches_of(uuid))])

    async def report_dropped(self, uuid: str, node: NodeId) -> None:
        """Say that this node holds nothing of a dropped collection; nothing if the drop is finished already."""
        drop = CreateRevision(self.keys.drop(uuid), ">", 0)
        await self._txn([drop], [Put(self.keys.dropped_by(uuid, node), b"{}")])

    # The leader

    async def apply_failover(
        self, changes: Sequence[failover.Change], *, fenced_by: Term
    ) -> tuple[failover.Change, ...]:
        """Carry out decisions about the members of some shards, each of another one, in one transaction: those that
        were carried out.

        Each compares the record of its own shard, so that a lost race is one shard's. A lost term changes nothing.
        """
        swaps = [(change, swap) for change in changes if (swap := self._swap(change))]
        if not swaps:
            return ()
        result = await self._txn(self._fence(fenced_by), [swap for _, swap in swaps])
        if not result.succeeded:
            return ()
        done = (isinstance(r, TxnResult) and r.succeeded for r in result.responses)
        return tuple(change for (change, _), is_done in zip(swaps, done, strict=True) if is_done)

    def _swap(self, change: failover.Change) -> Txn | None:
        record, key = self.state.shards.get(change.shard), self.keys.shard(change.shard)
        if record is None or change.shard in self.state.unsettled:
            return None
        put = Put(key, encoding.encode_shard(change.target.put_into(record)))
        return Txn((ModRevision(key, "==", change.revision),), (put,))

    async def settle(self, shard: ShardId, target: Configuration, revision: Revision, *, fenced_by: Term) -> bool:
        """Write what a shard's record is to say after etcd went back, if it is still what it was; whether it was."""
        record, key = self.state.unsettled.get(shard), self.keys.shard(shard)
        if record is None:
            return False
        put = Put(key, encoding.encode_shard(self._settled(target.put_into(record))))
        guards = [*self._fence(fenced_by), ModRevision(key, "==", revision)]
        return (await self._txn(guards, [put])).succeeded

    async def apply(self, action: assignment.Action, *, fenced_by: Term) -> None:
        """Carry out one decision of the leader; a lost race or a lost term changes nothing."""
        fence = self._fence(fenced_by)
        match action:
            case assignment.CreateShards(collection, shards):
                await self._create_shards(collection, shards, fenced_by)
            case assignment.Reassign(before, after):
                key = self.keys.shard(before.id)
                unchanged = ModRevision(key, "==", before.revision)
                await self._txn([*fence, unchanged], [Put(key, encoding.encode_shard(after))])
            case assignment.ForgetShards(_, forgotten):
                for some in _in_parts(forgotten):
                    await self._txn(fence, [Delete(self.keys.shard(s)) for s in some])
            case assignment.FinishDrop(uuid):
                done = [self.keys.dropped_by(d.uuid, d.node) for d in self.state.dropped_by if d.uuid == uuid]
                await self._txn(fence, [Delete(k) for k in (self.keys.drop(uuid), *done)])
            case assignment.ForgetNode(node):
                is_away = CreateRevision(self.keys.alive(node), "==", 0)
                if (await self._txn([*fence, is_away], [Delete(self.keys.node(node))])).succeeded:
                    log.warning("node_forgotten", node=node)
            case _:
                assert_never(action)

    async def _create_shards(self, collection: Collection, shards: tuple[Shard, ...], term: Term) -> None:
        """Write shards down, each only if it does not exist and the collection still does."""
        name = self.keys.collection(collection.name)
        for some in _in_parts(shards):
            puts = [Put(self.keys.shard(s.id), encoding.encode_shard(self._settled(s))) for s in some]
            still_there = Value(name, "==", encoding.encode(collection))
            guards = [*self._fence(term), still_there, *(CreateRevision(p.key, "==", 0) for p in puts)]
            result = await self._txn(guards, puts)
            log.info("shards_created" if result.succeeded else "shards_not_created", collection=collection.name)


def _read(decode: Callable[[bytes], T], found: KeyValue) -> T:
    try:
        return decode(found.value)
    except Unreadable as error:
        raise _not_readable(found, error) from error


def _if_readable(decode: Callable[[bytes], T], found: KeyValue | None) -> T | None:
    try:
        return decode(found.value) if found else None
    except Unreadable:
        return None


def _read_decision(found: KeyValue) -> Decision:
    try:
        return batches.decode(found)
    except msgspec.MsgspecError as error:
        raise _not_readable(found, error) from error


def _not_readable(found: KeyValue, error: Exception) -> MetadataUnavailable:
    return MetadataUnavailable(f"the key {found.key} in etcd cannot be read: {error}; correct or delete it")


def _in_parts(items: tuple[T, ...]) -> Iterable[tuple[T, ...]]:
    return (items[i : i + SHARDS_IN_ONE_TRANSACTION] for i in range(0, len(items), SHARDS_IN_ONE_TRANSACTION))
