"""A node: the product's loop of a replica on a simulated disk, network, clock and etcd."""

import errno
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from simulation.checks import Checks
from simulation.disk import Disk, Image, SimulatedLog, Table
from simulation.etcd import LEASE, Etcd
from simulation.rows import SimulatedRows, ops_of
from simulation.world import Action, World
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Decision, Ledger
from veccluster.decisions.replication.messages import Accepted, Header, Message, Snapshot
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import NO_EPOCH, Configuration, Incarnation, Member, Position, Record
from veccluster.errors import OutcomeUnknown, Unavailable
from veccluster.model.state import Epoch, NodeId, ReadConsistency, Revision, Seq, ShardId, WriteConsistency
from veccluster_node.replica.beats import NodeBeat, NodeBeats
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.ports import Ports, Reading
from veccluster_node.replica.settings import StorageSettings
from veccluster_node.replica.writes import PrepareRequest, Write
from veccluster_node.wal.operations import DeleteWhere, Op, Written

SHARD = ShardId("simulated", 0)
TICK = 0.08
SILENT_AFTER = 0.35
REOPEN_AFTER = 0.3
PATIENCE = 0.5
"""Seconds that a primary waits for a decision."""
REST_AFTER = 0.1
SETTINGS = StorageSettings(silence=SILENT_AFTER, decision_patience=PATIENCE, queue_bytes=2_000, rest_after=REST_AFTER)
READ_PATIENCE = 0.1
"""Seconds that a read waits for what it must show."""
LATE = 1.0
"""Seconds after which whoever has waited for leave to read should have been told."""

WriteAnswer = Callable[[str, Position | None], None]
"""`acknowledged`, `refused` or `uncertain`, and where it is."""
ReadAnswer = Callable[[tuple[str, bool] | None, Position | None], None]
"""The version that was read, and the position of the reply; no position when it was refused."""


@dataclass(frozen=True)
class Kinds:
    """What a node is made of; a mutation replaces some of it."""

    rules: type[Replica] = Replica
    loop: type[ReplicaLoop] = ReplicaLoop
    beats: type[NodeBeats] = NodeBeats


@dataclass
class Node:
    world: World
    etcd: Etcd
    checks: Checks
    id: NodeId
    kinds: Kinds
    peers: dict[NodeId, "Node"]
    keeps_incarnation: bool = False
    """A rule removed: a wiped disk goes by its old name."""
    number: int = 1
    """Which disk this is."""
    is_old: bool = False
    """Whether an older copy of the disk took its place."""
    up: bool = False
    boot: int = 0
    stalled_until: float = 0.0
    serving: Epoch = NO_EPOCH
    """The last epoch that it served."""
    shard: ShardId = SHARD

    def __post_init__(self) -> None:
        self.disk = Disk(self.world)
        self.rows = SimulatedRows(self._new_ledger, self._may_apply)
        self.down_since = 0.0
        self.started: list[Action] = []
        """What else runs in the process, and begins with it."""
        self._requests = 0
        self.etcd.watchers.append(self._watch)
        self._make_loop(self.disk.now)

    def _new_ledger(self) -> Ledger:
        return Ledger(self.shard.number)

    @property
    def member(self) -> Member:
        return Member(self.id, Incarnation(f"{self.id}/{self.number}"))

    @property
    def replica(self) -> Replica:
        return self.loop.rules

    @property
    def table(self) -> Table:
        return self.rows.table

    @property
    def applied(self) -> Seq:
        return Seq(self.rows.applied_seq)

    @property
    def shown(self) -> Position:
        """The state that a read sees now, which may be newer than when it got leave."""
        return Position(self.replica.journal.lineage.epoch_at(self.applied), self.applied)

    # -- life

    def start(self) -> None:
        """Open what is on the disk."""
        self.up, self.boot, self.stalled_until = True, self.boot + 1, 0.0
        if installed := self.disk.open():
            self.checks.installed(self, installed)
        image = self.disk.now
        last = max(image.base.through, min(self.applied, image.last))
        self.rows.show(image.base)
        until = Seq(self.world.rng.randint(image.base.through, last))
        for record in image.log:
            if record.last <= until:
                self.rows.take(record)
        self._make_loop(image)
        self._etcd_answered = self.world.now
        self._reopening = False
        self.world.tell(self.id, f"opened {self.member.incarnation} at {image.last}, applied {self.applied}")
        self.guarded(self.world.rng.uniform(0, TICK), self._tick)
        self.guarded(self.world.rng.uniform(0, 0.05), self._keep_alive)
        self.read_configuration(self.shard)
        for begin in self.started:
            begin()

    def _may_apply(self, record: Record) -> None:
        if self.disk.failing_rows and self.world.rng.random() < self.disk.failing_rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.checks.applied(self, record)

    def _make_loop(self, image: Image) -> None:
        self.log = SimulatedLog(
            self.disk,
            lambda records: self.checks.appended(self, records),
            lambda epoch: self.checks.promised(self, epoch),
        )
        rules = self.kinds.rules(self.member, image.found(self.applied))
        self.beats = self.kinds.beats(self._send_beat, lambda _: self.loop.feed(on.Tick()), self.now, SILENT_AFTER)
        self._unanswered: set[Future[Written]] = set()
        self.loop = _watched(self.kinds.loop, self)(
            self.shard,
            rules,
            ReplicaHealth(),
            Ports(self.log, self.rows, self, self, self, self.beats),
            SETTINGS,
            schedule=lambda _: self._schedule(),
        )

    def crash(self) -> None:
        if self.up:
            self.world.tell(self.id, "crashed")
            self.up, self.down_since = False, self.world.now
            self.disk.crash()

    def go_back(self, image: Image) -> None:
        """The disk of a node that is down becomes what it was once, under the same name."""
        self.disk.go_back(image)
        self.is_old = True
        self.world.tell(self.id, f"has an old disk, which ends at {image.last}")

    def lose(self, *, corrupt: bool) -> None:
        """The disk of a node that is down is replaced or damaged: another incarnation (9)."""
        if corrupt:
            self.disk.corrupt()
        else:
            self.disk.wipe()
        self.is_old = False
        self.number += 0 if self.keeps_incarnation else 1
        self.world.tell(self.id, "has a damaged disk" if corrupt else "has an empty disk")

    def guarded(self, delay: float, action: Action) -> None:
        """Do it later, unless the process ends; a process that stands still does it when it goes on."""
        boot = self.boot

        def act() -> None:
            if self.up and self.boot == boot:
                if self.stalled_until > self.world.now:
                    self.world.after(self.stalled_until - self.world.now, act)
                else:
                    action()

        self.world.after(delay, act)

    # -- turns, as a pool's thread gives them

    def _schedule(self) -> None:
        self.guarded(self.world.rng.uniform(0, 0.0003), lambda: self._then(self.loop.begin_turn()))

    def _then(self, is_sync_due: bool) -> None:
        if is_sync_due:
            self.disk.sync(lambda done: self.guarded(0, lambda: self._synced(done)))
            return
        if self.loop.end_turn():
            self._schedule()
        elif (failure := self.loop.health.failure) and failure.detail.startswith("writing failed"):
            self.checks.fail(f"{self.id} met with something unforeseen: {failure.detail}")
        elif not self.loop.mailbox.is_empty:
            self.checks.fail(f"{self.id} rests although something waits")
        elif self.loop.rests and self._unanswered:
            self.checks.fail(f"{self.id} rests although {len(self._unanswered)} writes have no answer")
        if self.loop.health.failure or self.loop.health.staged or self.loop.health.divergent:
            self._reopen()

    def _synced(self, done: bool) -> None:
        self.log.sync_failed = not done
        self.loop.sync()
        self._then(self.loop.go_on())

    def feed(self, event: on.Event) -> None:
        self.guarded(0, lambda: self.loop.feed(event))

    # -- the node around it

    def _tick(self) -> None:
        if not self.loop.rests:
            self.loop.feed(on.Tick())
        self.beats.tick(self.peers.keys() - {self.id}, self._node_has_ended)
        if self.world.chance(0.2):
            self.read_configuration(self.shard)
        if self.world.chance(self.world.weather.trims):
            self.loop.call(self._trim)
        self.guarded(TICK * self.world.rng.uniform(0.8, 1.2), self._tick)

    def _trim(self) -> None:
        if self.applied > self.disk.now.base.through and not self.loop.health.staged:
            self.disk.trim(self._base())
            self.loop.tell(on.Trimmed(Seq(self.applied + 1)))

    def _base(self) -> object:
        return self.rows.base(self.disk)

    def _keep_alive(self) -> None:
        member, is_broken, is_cut_off = self.member, self._is_broken(), self.loop.standing.cut_off
        self.etcd.request(
            self.id,
            lambda: self.etcd.keep_alive(self.id, member.incarnation, broken=is_broken, cut_off=is_cut_off),
            lambda said: setattr(self, "_etcd_answered", self.world.now if said else self._etcd_answered),
        )
        self.guarded(0.12, self._keep_alive)

    def _is_broken(self) -> bool:
        return self.replica.broken or self.loop.health.failure is not None

    def _reopen(self) -> None:
        """What a node does about a replica that failed; one that contradicts the others begins anew."""
        if self._reopening:
            return
        self._reopening = True

        def again() -> None:
            if self.loop.health.divergent and self.etcd.key.primary.node == self.id:
                self.guarded(REOPEN_AFTER, again)
                return
            divergent = self.loop.health.divergent
            self.crash()
            if divergent:
                self.lose(corrupt=False)
            self.start()

        self.guarded(REOPEN_AFTER, again)

    # -- what the loop asks: time

    def now(self) -> float:
        return self.world.now

    def time_ns(self) -> int:
        return int(self.world.now * 1e9)

    def after(self, seconds: float, call: Action) -> None:
        self.guarded(seconds, call)

    # -- the network

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        if isinstance(message, Accepted):
            self.checks.said(self, message)
        if (target := self.peers.get(to.node)) is None:  # a stranger is answered, and there is nobody to hear it
            return
        self.world.send(self.id, to.node, lambda: target.feed(on.Received(message, self.id)) if target.up else None)

    def _send_beat(self, node: NodeId, beat: NodeBeat) -> None:
        target = self.peers[node]

        def deliver() -> None:
            if target.up:
                target.guarded(0, lambda: target.beats.received(self.id, beat))

        self.world.send(self.id, node, deliver)

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        return True

    def has_ended(self, to: Member) -> bool:
        """Whether it has been down for a while, where machines that are down say so."""
        return self._node_has_ended(to.node)

    def _node_has_ended(self, node: NodeId) -> bool:
        target = self.peers[node]
        is_down = not target.up and self.world.now > target.down_since + SILENT_AFTER / 5
        return self.world.weather.tells_ends and is_down

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        self.send(shard, header.to, Snapshot(header, self.applied, self._base()))

    # -- etcd

    def reaches_etcd(self) -> bool:
        return self.world.now - self._etcd_answered <= LEASE

    def swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        self.etcd.request(
            self.id,
            lambda: self.etcd.swap(target, expected),
            lambda answer: self.feed(
                on.Answered(target, on.Outcome.unknown) if answer is None else on.Answered(target, *answer)  # type: ignore[misc]
            ),
        )

    def read_configuration(self, shard: ShardId) -> None:
        self.etcd.request(self.id, lambda: self.etcd.key, self._seen)

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        raise AssertionError("there are no transactions here")

    def changed(self, shard: ShardId) -> None:
        pass

    def _watch(self, now: Configuration) -> None:
        if self.up and self.id not in self.etcd.away:
            self.guarded(self.world.rng.uniform(0.001, 0.03), lambda: self.loop.feed(on.Seen(now)))

    def _seen(self, now: object | None) -> None:
        if isinstance(now, Configuration) and not (self.loop.rests and self._knows(now)):
            self.feed(on.Seen(now))

    def _knows(self, now: Configuration) -> bool:
        """A node tells a replica only what is new."""
        known = self.replica.configuration
        return known is not None and (known.epoch, known.revision) == (now.epoch, now.revision)

    # -- clients

    def write(self, op_id: str, changes: dict[str, bool], level: WriteConsistency, answer: WriteAnswer) -> None:
        self.guarded(0, lambda: self.order(op_id, ops_of(changes), level, answer))

    def order(self, op_id: str, ops: list[Op] | DeleteWhere, level: WriteConsistency, answer: WriteAnswer) -> None:
        write = Write(ops, op_id, self.time_ns(), level, 1)
        unanswered = self._unanswered
        unanswered.add(write.future)
        write.future.add_done_callback(unanswered.discard)
        write.future.add_done_callback(lambda f: self._written(f, answer))
        self.put(write)

    def put(self, item: Write | PrepareRequest) -> None:
        """Have something ordered, as the product's replica does."""
        try:
            self.loop.put(item, bounded=True)
            item.future.add_done_callback(lambda _: self.loop.mailbox.release(item.size))
        except Unavailable as error:
            item.future.set_exception(error)

    def _written(self, future: Future[Written], answer: WriteAnswer) -> None:
        error = future.exception()
        if error is not None:
            outcome, position = "uncertain" if isinstance(error, OutcomeUnknown) else "refused", None
        else:
            done = future.result()
            outcome, position = "acknowledged", Position(Epoch(done.epoch), Seq(done.last_seq))
        self.answer(lambda: answer(outcome, position))

    def answer(self, answer: Action) -> None:
        """Say something to a client, if the process is still there to say it."""
        if self.up:
            self.world.send(self.id, "client", answer)

    def read(self, key: str, level: ReadConsistency, at_least: Seq, answer: ReadAnswer) -> None:
        def read(future: Future[Position]) -> None:
            position = None if future.exception() else self.shown
            version = self.table.get(key) if position else None
            self.answer(lambda: answer(version, position))

        self.guarded(0, lambda: self.ask_leave(level, at_least, read))

    def ask_leave(self, level: ReadConsistency, at_least: Seq, then: Callable[[Future[Position]], None]) -> None:
        self._requests += 1
        reading = Reading(f"read-{self._requests}", level, at_least, self.world.now + READ_PATIENCE)
        reading.future.add_done_callback(then)
        self.loop.may_read(reading)
        if level is not ReadConsistency.strong:  # those wait for the others, however long
            self._expect(reading.future, f"a read that shows {at_least}")

    def _expect(self, future: "Future[Position]", what: str) -> None:
        """Somebody is told something in time, unless the process stood still or ended."""
        asked, boot = self.world.now, self.boot

        def look() -> None:
            if self.boot == boot and self.up and self.stalled_until < asked and not future.done():
                self.checks.fail(f"{self.id} has not answered {what} since {asked:.3f}")

        self.world.after(READ_PATIENCE + LATE, look)

    def position(self, answer: Callable[[Position], None]) -> None:
        """How far the log is durable (quorum reads)."""
        self.guarded(
            0,
            lambda: self.loop.call(lambda: self.replica.journal.position).add_done_callback(
                lambda f: self.answer(lambda: answer(f.result()))
            ),
        )


def _watched(loop: type[ReplicaLoop], node: Node) -> type[ReplicaLoop]:
    """The loop with a judge who looks at what it carries out."""

    class Ready(loop.ready_type):  # type: ignore[name-defined,misc]
        def carry_out(self, effect: do.Effect) -> object:
            if node.world.trace and not isinstance(effect, do.Send | do.SendRecords | do.Sync):
                node.world.tell(node.id, effect)
            match effect:
                case do.Diverged() if not (node.is_old or node.checks.loss_accepted):
                    node.checks.fail(f"{node.id} was told that it contradicts the others: {effect}")
                case do.BecomePrimary(epoch):
                    node.serving = epoch
                    node.checks.became_primary(node, epoch)
                case do.Acknowledge(op_id, position):
                    node.checks.acknowledged(node, op_id, position)
            return super().carry_out(effect)

    return type(loop.__name__, (loop,), {"ready_type": Ready})
