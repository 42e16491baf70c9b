"""A node: it turns what happens into events of its replica, and carries out what the replica wants done."""

from collections.abc import Callable
from dataclasses import dataclass, field

from simulation.checks import Checks
from simulation.disk import Base, Disk, Image, Table
from simulation.etcd import LEASE, Etcd
from simulation.world import Action, World
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.messages import Accepted, Message, Replicate, Snapshot
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import (
    NO_EPOCH,
    NOTHING,
    Configuration,
    Incarnation,
    Member,
    Position,
    Record,
)
from veccluster.model.state import Epoch, NodeId, ReadConsistency, Seq, WriteConsistency

TICK = 0.08
SILENT_AFTER = 0.35
REOPEN_AFTER = 0.3

WriteAnswer = Callable[[str, Position | None], None]
"""`acknowledged`, `refused` or `uncertain`, and where it is."""
ReadAnswer = Callable[[tuple[str, bool] | None, Position | None], None]
"""The version that was read, and the position of the reply; no position when it was refused."""


def encode(changes: dict[str, bool]) -> bytes:
    """A batch: keys, and whether each is deleted."""
    return ";".join(f"{key}={'-' if deleted else '+'}" for key, deleted in changes.items()).encode()


def decode(payload: bytes) -> dict[str, bool]:
    return {key: sign == "-" for key, _, sign in (part.partition("=") for part in payload.decode().split(";"))}


@dataclass
class Node:
    world: World
    etcd: Etcd
    checks: Checks
    id: NodeId
    replica_type: type[Replica]
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
    table: Table = field(default_factory=dict)
    results: dict[str, Seq] = field(default_factory=dict)
    applied: Seq = NOTHING
    serving: Epoch = NO_EPOCH
    """The last epoch that it served."""

    def __post_init__(self) -> None:
        self.disk = Disk(self.world, lambda t: self.feed(on.Synced(t)), lambda: self.feed(on.DiskFailed()))
        self.etcd.watchers.append(self._watch)
        self._installing: Base | None = None
        self._requests = 0
        self.replica = self.replica_type(self.member, self.disk.now.found(self.applied))

    @property
    def member(self) -> Member:
        return Member(self.id, Incarnation(f"{self.id}/{self.number}"))

    # -- life

    def start(self) -> None:
        """Open what is on the disk."""
        self.up, self.boot, self.stalled_until = True, self.boot + 1, 0.0
        image = self.disk.now
        last = max(image.base.through, min(self.applied, image.last))
        self._show(image.base)
        self._installing = None
        until = Seq(self.world.rng.randint(image.base.through, last))
        for record in image.log:
            if record.last <= until:
                self._apply(record)
        self.replica = self.replica_type(self.member, image.found(self.applied))
        self._waiting: dict[str, list[WriteAnswer]] = {}
        self._reading: dict[str, tuple[str, ReadAnswer]] = {}
        self._heard: dict[Member, float] = {}
        self._etcd_answered = self.world.now
        self._reopening = self._diverged = False
        self.world.tell(self.id, f"opened {self.member.incarnation} at {image.last}, applied {self.applied}")
        self.guarded(self.world.rng.uniform(0, TICK), self._tick)
        self.guarded(self.world.rng.uniform(0, 0.05), self._keep_alive)
        self._read_configuration()

    def crash(self) -> None:
        if self.up:
            self.world.tell(self.id, "crashed")
            self.up = False
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

    # -- events

    def feed(self, event: on.Event) -> None:
        self.guarded(0, lambda: self.handle(event))

    def handle(self, event: on.Event) -> None:
        is_answer = isinstance(event, on.Received) and isinstance(event.message, Accepted)
        if is_answer and (sender := self.replica.hears(event)):
            self._heard[sender] = self.world.now
        effects = self.replica.handle(event)
        if self._installing and self.replica.journal.applied >= self._installing.through:
            base, self._installing = self._installing, None
            self._show(base)
            self.checks.installed(self, base)
        for effect in effects:
            if self.world.trace and not isinstance(effect, do.Send | do.SendRecords | do.Sync):
                self.world.tell(self.id, effect)
            self._do(effect)
        if self.replica.broken:
            self._reopen()

    def _tick(self) -> None:
        etcd_is_away = self.world.now - self._etcd_answered > LEASE
        self.handle(on.Tick(frozenset() if etcd_is_away else self._silent()))
        if self.replica.primary:
            for member in self.replica.primary.waiting - {self.member}:
                self._heard.setdefault(member, self.world.now)
        if self.world.chance(0.2):
            self._read_configuration()
        image = self.disk.now
        if self.world.chance(self.world.weather.trims) and self.applied > image.base.through and not self._installing:
            self.disk.trim(self._base())
            self.handle(on.Trimmed(Seq(self.applied + 1)))
        self.guarded(TICK * self.world.rng.uniform(0.8, 1.2), self._tick)

    def _silent(self) -> frozenset[Member]:
        """Who has not been heard for too long, or is known to have ended: machines that are down may say so."""
        since = {m: self.world.now - at for m, at in self._heard.items()}
        ended = {m for m in since if not self.peers[m.node].up and self.world.weather.tells_ends}
        return frozenset(m for m, seconds in since.items() if seconds > SILENT_AFTER / (5 if m in ended else 1))

    def _keep_alive(self) -> None:
        member, broken, primary = self.member, self.replica.broken, self.replica.primary
        cut_off = primary is not None and primary.is_cut_off(self._silent())
        self.etcd.request(
            self.id,
            lambda: self.etcd.keep_alive(self.id, member.incarnation, broken=broken, cut_off=cut_off),
            lambda said: setattr(self, "_etcd_answered", self.world.now if said else self._etcd_answered),
        )
        self.guarded(0.12, self._keep_alive)

    def _reopen(self) -> None:
        """What a node does about a replica that failed; one that contradicts the others begins anew."""
        if self._reopening:
            return
        self._reopening = True

        def again() -> None:
            if self._diverged and self.etcd.key.primary.node == self.id:
                self.guarded(REOPEN_AFTER, again)
                return
            self.crash()
            if self._diverged:
                self.lose(corrupt=False)
            self.start()

        self.guarded(REOPEN_AFTER, again)

    # -- effects

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.StoreEpoch() | do.Append() | do.Truncate() | do.InstallSnapshot() | do.Sync():
                self._store(effect)
            case do.Apply(through):
                for record in self.disk.now.log:
                    if self.applied < record.first and record.last <= through:
                        self.checks.applied(self, record)
                        self._apply(record)
            case do.Diverged():
                if not (self.is_old or self.checks.loss_accepted):
                    self.checks.fail(f"{self.id} was told that it contradicts the others: {effect}")
                self._diverged = True
            case do.BecomePrimary(epoch):
                self._heard, self.serving = {}, epoch
                self.checks.became_primary(self, epoch)
            case do.BecomeFenced():
                pass
            case _:
                self._communicate(effect)

    def _store(self, effect: do.DiskEffect) -> None:
        if isinstance(effect, do.StoreEpoch):
            self.checks.promised(self, effect.epoch)
        elif isinstance(effect, do.Append):
            self.checks.appended(self, effect.records)
        elif isinstance(effect, do.InstallSnapshot):
            assert isinstance(effect.content, Base)
            self._installing = effect.content
        if not self.disk.do(effect):
            self.handle(on.DiskFailed())

    def _communicate(self, effect: do.Effect) -> None:
        match effect:
            case do.Send(to, message):
                self._send(to, message)
            case do.SendRecords(header, after, through):
                records = tuple(r for r in self.disk.now.log if after < r.first <= through)
                self._send(header.to, Replicate(header, records))
            case do.SendSnapshot(header):
                self._send(header.to, Snapshot(header, self.applied, self._base()))
            case do.Swap(target, expected):
                self.etcd.request(
                    self.id,
                    lambda: self.etcd.swap(target, expected),
                    lambda answer: self.feed(
                        on.Answered(target, on.Outcome.unknown) if answer is None else on.Answered(target, *answer)  # type: ignore[misc]
                    ),
                )
            case do.ReadConfiguration():
                self._read_configuration()
            case _:
                self._answer(effect)

    def _answer(self, effect: do.Effect) -> None:
        match effect:
            case do.Acknowledge(op_id, position):
                self.checks.acknowledged(self, op_id, position)
                self._tell_writers(op_id, "acknowledged", position)
            case do.Refuse(op_id, _):
                self._tell_writers(op_id, "refused", None)
            case do.Uncertain(op_id, _):
                self._tell_writers(op_id, "uncertain", None)
            case do.Serve(request, position):
                key, answer = self._reading.pop(request)
                version = self.table.get(key)
                self.world.send(self.id, "client", lambda: answer(version, position))
            case do.RefuseRead(request, _):
                _, answer = self._reading.pop(request)
                self.world.send(self.id, "client", lambda: answer(None, None))

    def _tell_writers(self, op_id: str, outcome: str, position: Position | None) -> None:
        for answer in self._waiting.pop(op_id, []):
            self.world.send(self.id, "client", lambda answer=answer: answer(outcome, position))

    def _send(self, to: Member, message: Message) -> None:
        if isinstance(message, Accepted):
            self.checks.said(self, message)
        target = self.peers[to.node]
        self.world.send(self.id, to.node, lambda: target.feed(on.Received(message, self.id)) if target.up else None)

    def _read_configuration(self) -> None:
        self.etcd.request(self.id, lambda: self.etcd.key, self._seen)

    def _watch(self, now: Configuration) -> None:
        if self.up and self.id not in self.etcd.away:
            self.guarded(self.world.rng.uniform(0.001, 0.03), lambda: self.handle(on.Seen(now)))

    def _seen(self, now: object | None) -> None:
        if isinstance(now, Configuration):
            self.feed(on.Seen(now))

    def _show(self, base: Base) -> None:
        self.table, self.results, self.applied = dict(base.table), dict(base.results), base.through

    def _apply(self, record: Record) -> None:
        for key, deleted in decode(record.payload).items():
            self.table[key] = (record.op_id, deleted)
        self.results[record.op_id] = record.last
        self.applied = record.last

    def _base(self) -> Base:
        return Base(self.applied, self.disk.now.lineage().cut(self.applied), dict(self.table), dict(self.results))

    # -- clients

    def write(self, op_id: str, changes: dict[str, bool], level: WriteConsistency, answer: WriteAnswer) -> None:
        def ask() -> None:
            if self.disk.full and op_id not in self.results:
                answer("refused", None)
                return
            self._waiting.setdefault(op_id, []).append(answer)
            self.handle(on.Write(op_id, len(changes), encode(changes), level, self.results.get(op_id)))

        self.guarded(0, ask)

    def read(self, key: str, level: ReadConsistency, at_least: Seq, answer: ReadAnswer) -> None:
        def ask() -> None:
            self._requests += 1
            self._reading[str(self._requests)] = (key, answer)
            self.handle(on.Read(str(self._requests), level, at_least))

        self.guarded(0, ask)

    def position(self, answer: Callable[[Position], None]) -> None:
        """How far the log is durable (quorum reads)."""
        self.guarded(0, lambda: self.world.send(self.id, "client", lambda at=self.replica.journal.position: answer(at)))
