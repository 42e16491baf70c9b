"""The loop of one replica: what waits is told to the rules, and what they want done is done, in one documented order.

A turn, as a pool's thread (`pool.py`) or the simulation drives it:

    begin_turn   take what waits; tell the rules each thing in turn and carry out what they want, in their order: store
                 (epoch, cut, append: written, not durable yet), stream to followers (a primary may, before its own
                 sync: rule 1), apply and answer what earlier syncs allow
    sync         once, for all that was written in the turn
    go_on        tell the rules that it is durable: only now are records accepted and committed, then applied, then
                 answered; and again from `sync` while that asked for more
    end_turn     publish where the replica stands; whether more has come meanwhile

`make simulate` runs this very class, on a disk, a network, a clock and an etcd that are made of a seed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

import structlog

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.messages import Replicate
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.decisions.replication.values import NOTHING, Position
from veccluster.errors import StorageCorrupt, Unavailable, VecClusterError
from veccluster.model.state import ReadConsistency, Seq, ShardId
from veccluster_node.replica.beats import Token, token
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.liveness import Liveness
from veccluster_node.replica.mailbox import Mailbox
from veccluster_node.replica.participant import Command, Confirm, Order, Participant, Propose, Settling, Then
from veccluster_node.replica.ports import Ports, Reading, Standing
from veccluster_node.replica.read_barrier import ReadBarrier
from veccluster_node.replica.ready import Ready
from veccluster_node.replica.settings import StorageSettings
from veccluster_node.replica.writes import PrepareRequest, Write, Writes
from veccluster_node.runtime.files import reason
from veccluster_node.wal.operations import Written

_STAGED = "the shard is being opened anew from another replica's snapshot"

_SAY_EVERY = 10.0
"""Seconds between two complaints about records that find no room."""
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Call(Generic[_T]):
    """Something to be run in the loop, after what was put before it is durable and applied."""

    function: Callable[[], _T]
    future: Future[_T] = field(default_factory=Future)
    size: int = 0

    def run(self) -> None:
        """Run it; what it raises belongs to whoever waits for the result."""
        try:
            self.future.set_result(self.function())
        except BaseException as error:  # noqa: BLE001 - see above
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Happened:
    """An event for the rules."""

    event: on.Event
    size: int = 0


@dataclass(slots=True, eq=False)
class Asked:
    """A read that wants leave, a transaction that is to be settled, or news of decisions."""

    what: Reading | Settling | Known
    size: int = 0


@dataclass(slots=True, eq=False)
class SyncLate:
    """Time to make durable what was acknowledged before (`wal_sync: interval`)."""

    size: int = 0


Item = Write | PrepareRequest | Call[object] | Happened | Asked | SyncLate


class ReplicaLoop:
    """`put` may be called from any thread; the turn's methods by one at a time; attributes are for reading."""

    participant_type = Participant
    writes_type = Writes
    reads_type = ReadBarrier
    liveness_type = Liveness
    ready_type = Ready
    mailbox_type: type[Mailbox[Any]] = Mailbox

    def __init__(
        self,
        shard: ShardId,
        rules: Rules,
        health: ReplicaHealth,
        ports: Ports,
        settings: StorageSettings,
        *,
        schedule: Callable[["ReplicaLoop"], None],
        applied: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`schedule` has somebody give the loop a turn soon; `applied` is called at the end of a turn in which
        something was applied, `ended` when the loop is closed and has handled everything.
        """
        self.shard, self.rules, self.health = shard, rules, health
        self.standing = Standing(rules.me)
        self.mailbox: Mailbox[Item] = self.mailbox_type(settings.queue_bytes)
        self._ports, self._settings = ports, settings
        self._schedule, self._applied, self._ended = schedule, applied, ended
        self.writes = self.writes_type(shard, rules, health, ports.log, ports.rows, settings)
        self.reads = self.reads_type(shard, ports.clock)
        self.liveness = self.liveness_type(rules, ports.transport, ports.clock, settings.silence)
        self.participant = self.participant_type(
            shard, rules, health, ports.rows, ports.clock, settings.decision_patience
        )
        self._ready = self.ready_type(shard, ports, health, self.writes, self.reads, self.liveness)
        self._turn = _Turn()
        self._told: tuple[object, ...] = ()
        self.rests = False
        """Whether there is nothing to do until something happens, so that it needs no ticks."""
        self._quiet_since: float | None = None
        """Since when a primary has had nothing to tell anyone."""
        self._followed: Token | None = None
        """What its node knows that this follower has."""
        self._dropped = -_SAY_EVERY
        """When it was last said that records from the primary found no room."""

    # -- from any thread

    def put(self, item: Item, *, bounded: bool = False) -> None:
        """Have something handled; `Unavailable` when it is too much, or the loop ends."""
        if self.mailbox.put(item, bounded=bounded):
            self._schedule(self)

    def feed(self, event: on.Event) -> None:
        """Have an event handled; a message that finds no room is lost, and will be sent again."""
        size = 0
        if isinstance(event, on.Received) and isinstance(event.message, Replicate):
            size = sum(len(r.payload) for r in event.message.records)
        try:
            self.put(Happened(event, size), bounded=bool(size))
        except Unavailable as error:
            now = self._ports.clock.now()
            if size and now >= self._dropped + _SAY_EVERY:
                self._dropped = now
                _log.warning("records_dropped", shard=str(self.shard), bytes=size, reason=error.detail)

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run something between two events, after all that was put before it."""
        call = Call(function)
        try:
            self.put(call)  # type: ignore[arg-type]  # a call's result is the business of whoever made it
        except Unavailable as error:
            call.future.set_exception(error)
        return call.future

    def may_read(self, reading: Reading) -> None:
        """Give leave to read now, if where the replica stood a moment ago allows it, or when the rules do (13)."""
        now = self.standing
        shows_enough = now.in_sync and now.applied.seq >= reading.at_least
        if reading.level is not ReadConsistency.strong and shows_enough:
            reading.future.set_result(now.applied)
            return
        try:
            self.put(Asked(reading))
        except Unavailable as error:
            reading.future.set_exception(error)

    def settle(self, settling: Settling) -> None:
        """Answer when a cross-shard transaction is decided and applied here."""
        try:
            self.put(Asked(settling))
        except Unavailable as error:
            settling.future.set_exception(error)

    def learn(self, known: Known) -> None:
        """Take what etcd says of cross-shard transactions."""
        with suppress(Unavailable):
            self.put(Asked(known))

    def _sync_late(self) -> None:
        with suppress(Unavailable):
            self.put(SyncLate())

    def close(self) -> None:
        """Take nothing more; what waits is handled, and then whoever still waits for an answer is told."""
        if self.mailbox.close():
            self._schedule(self)

    # -- a turn

    def begin_turn(self) -> bool:
        """Handle what waits; whether a sync is due then."""
        self._turn = _Turn(deque(self.mailbox.take(self._settings.group_bytes)))
        return self._guarded(lambda: None)

    def sync(self) -> None:
        """Make all that was written durable; blocks."""
        try:
            self._ports.log.sync()
        except (VecClusterError, OSError) as error:
            self._turn.sync_failed = error

    def go_on(self) -> bool:
        """Tell the rules what the sync has made durable; whether another is due."""
        return self._guarded(self._synced)

    def end_turn(self) -> bool:
        """Say where the replica stands now; whether it has to be scheduled again."""
        try:
            applied, self._ready.applied = self._ready.applied, False
            if applied:
                self._applied()
            self._follow_or_not()
            self._publish()
        except Exception:  # noqa: BLE001 - the loop must be given up or scheduled again, whatever it is
            _log.exception("loop_not_published", shard=str(self.shard))
        if over := self.mailbox.is_over:
            self._give_up(Unavailable("the shard is being closed"))
        elif self._settings.wal_sync == "interval" and not (self.health.failure or self._ports.log.is_durable):
            self._ports.clock.after(self._settings.wal_sync_interval, self._sync_late)
        is_wanted = self.mailbox.rest()
        if over:
            self._ended()
        return is_wanted

    def _guarded(self, first: Callable[[], None]) -> bool:
        """Do a part of a turn; whatever it raises is no reason not to answer those who wait."""
        try:
            first()
            while not (due := self._is_sync_due()) and self._go_through():
                pass
        except Exception as error:  # noqa: BLE001 - whoever waits must be answered
            _log.exception("loop_failed", shard=str(self.shard))
            failure = Unavailable(f"writing failed: {reason(error)}; the shard must be opened again")
            self.fail(failure, error)
            self._give_up(failure)
            return False
        return due

    def _is_sync_due(self) -> bool:
        """Whether to sync before anything else: nothing is left to be written with it, or the next thing must see it.

        What is durable already, or need not be (`interval`), is told at once.
        """
        if self._turn.syncs_late:
            return True
        if self._turn.items and not isinstance(self._turn.items[0], Call):
            return False
        while self._ready.ticket is not None:
            if self._settings.wal_sync == "always" and not self._ports.log.is_durable:
                return True
            self._synced()
        return False

    def _synced(self) -> None:
        """What was written is durable, or nobody knows."""
        ticket, self._ready.ticket = self._ready.ticket, None
        failed, self._turn.sync_failed, self._turn.syncs_late = self._turn.sync_failed, None, False
        if failed is not None:
            self.fail(failed)
        elif ticket is not None:
            self.tell(on.Synced(ticket))

    def _go_through(self) -> bool:
        """Do the next thing of the turn; whether there was any."""
        turn = self._turn
        if turn.items:
            item = turn.items.popleft()
            if self.rests and not isinstance(item, Call):  # what a call leaves is seen at the end of the turn
                self._wake()
            self._handle(item)
        elif turn.later:
            then, error = turn.later.popleft()
            self._obey(then(error))
        elif turn.looks:
            turn.looks = False
            self._obey(self.participant.attend())
        else:
            return self._admit()
        return True

    # -- rest

    def _is_quiet(self) -> bool:
        """Whether nobody waits for anything here, and nothing is wrong."""
        health = self.health
        is_well = not (health.failure or health.staged or health.divergent)
        waits = self.writes.is_waiting or self.reads.is_waiting or self.participant.is_waiting
        return is_well and not waits

    def _comes_to_rest(self) -> bool:
        """Let the node beat for a primary that has had nothing to tell for a while."""
        primary, beats, now = self.rules.primary, self._ports.beats, self._ports.clock.now()
        if primary is None or beats is None or not (primary.is_complete and self._is_quiet()):
            self._quiet_since = None
            return False
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        if now - self._quiet_since < self._settings.rest_after:
            return False
        last = self.rules.journal.last
        tokens = {m: token(self.shard, primary.epoch, primary.me, m, last) for m in primary.others}
        return beats.rest(self.shard, tokens)

    def _wake(self) -> None:
        """Something happened: it gets ticks again, and a primary beats for itself."""
        self.rests, self._quiet_since = False, None
        if beats := self._ports.beats:
            self.liveness.resume(beats.resume(self.shard))

    def _follow_or_not(self) -> None:
        """Tell the node what this follower has, by which the primary's node knows that it may rest."""
        beats, rules = self._ports.beats, self.rules
        if beats is None:
            return
        primary = rules.complete() if self._is_quiet() and not self.mailbox.is_over else None
        followed = token(self.shard, rules.journal.epoch, primary, rules.me, rules.journal.last) if primary else None
        if followed != self._followed:
            self._followed = followed
            beats.follow(self.shard, primary, followed)
        if rules.primary is None:
            self.rests = followed is not None
        elif self.rests and (self.mailbox.is_over or not self._is_quiet()):
            self._wake()

    # -- what is handled

    def _handle(self, item: Item) -> None:
        match item:
            case Write(future=future) | PrepareRequest(future=future) if self.health.staged:
                future.set_exception(Unavailable(_STAGED))
            case Asked(Reading(future=future) | Settling(future=future)) if self.health.staged:
                future.set_exception(Unavailable(_STAGED))
            case Write() | PrepareRequest():
                self._turn.asked.append(item)
                self.writes.hold(item)
                self._admit()
            case Call():
                item.run()
            case Happened(event, size):
                self._happened(event)
                self.mailbox.release(size)
            case Asked(Reading() as reading):
                self._tell_all(self.reads.ask(reading))
            case Asked(Settling() as settling):
                self._obey(self.participant.settle(settling))
            case Asked(Known() as known):
                self._turn.looks |= self.participant.learn(known)
            case SyncLate():
                self._turn.syncs_late = self.health.failure is None and not self._ports.log.is_durable

    def _admit(self) -> bool:
        """Have writes ordered that can be; whether there were any."""
        ordered = False
        while item := self.writes.next():
            ordered = True
            if isinstance(item, Write):
                self._tell_all(self.writes.order(item))
                continue
            encode = partial(self.writes.encode_prepare, item)
            try:
                self._obey(self.participant.prepare(item.ops, item.level, encode, item.future))
            except VecClusterError as error:
                if not item.future.done():
                    item.future.set_exception(error)
        return ordered

    def _happened(self, event: on.Event) -> None:
        match event:
            case on.Tick() if self._comes_to_rest():
                self.rests = True
            case on.Tick():
                # While etcd is away nobody can be let go, and what was asked of it counts as neither done nor not.
                silent = self.liveness.tick()
                self.tell(on.Tick(silent if self._ports.configurations.reaches_etcd() else frozenset()))
                self.reads.expire()
            case on.Forget(request):
                self.reads.forget(request)
                self.writes.forget(request)
                self.tell(event)
            case _:
                self.tell(event)

    def tell(self, event: on.Event) -> None:
        """Let the rules say what an event asks for, and do it."""
        if self.health.staged:
            return
        if isinstance(event, on.Received):
            if self.health.divergent and not self._is_sole():
                return
            self.liveness.heard(event)
        for effect in self.rules.handle(event):
            self._tell_all(self._ready.carry_out(effect))
        self.writes.end_event()
        self._stop_if_staged()
        if self._ready.applied or not isinstance(event, on.Write | on.Read | on.Synced):
            self._turn.looks = True

    def _stop_if_staged(self) -> None:
        if self.health.staged:
            self._refuse_all(Unavailable(_STAGED))

    def _tell_all(self, events: Iterable[on.Event]) -> None:
        for event in events:
            self.tell(event)

    def _is_sole(self) -> bool:
        """Whether this divergent copy serves, since it is the only one, and may be copied.

        Not one that is read-only: copies that can be written would hide what it lacks.
        """
        return self.rules.primary is not None and self.health.failure is None

    # -- what the participant wants done

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Order():
                    self._order(command)
                case Confirm(then):
                    name, now = f"confirm-{next(_numbers)}", self._ports.clock.now()
                    reading = Reading(name, ReadConsistency.strong, NOTHING, now)
                    self._put_off(reading.future, then)
                    self._tell_all(self.reads.ask(reading))
                case Propose(decision, forgotten):
                    self._ports.configurations.propose(self.shard, decision, forgotten)

    def _order(self, order: Order) -> None:
        if order.then:
            waiter: Future[Written] = Future()
            self._put_off(waiter, order.then)
            self.writes.wait(order.op_id, waiter)
        elif order.waiter:
            self.writes.wait(order.op_id, order.waiter)
        elif self._ports.log.is_full():
            self._ports.log.make_room()
        self.tell(on.Write(order.op_id, order.count, order.payload, order.level, order.applied))

    def _put_off(self, future: "Future[_T]", then: Then) -> None:
        """When the future is resolved: go on, after the event that is being handled."""
        future.add_done_callback(lambda f: self._turn.later.append((then, f.exception())))

    # -- where it stands

    def _publish(self) -> None:
        """Take stock of where the replica stands, and have those look who decide by it."""
        before, rules, journal, health = self.standing, self.rules, self.rules.journal, self.health
        configuration = rules.configuration
        self.standing = now = Standing(
            me=rules.me,
            serving=rules.primary.epoch if rules.primary else None,
            in_sync=configuration is not None and rules.me in configuration.in_sync,
            epoch=journal.epoch,
            applied=Position(journal.shown.epoch, Seq(self._ports.rows.applied_seq)),
            durable=journal.position,
            commit=rules.commit,
            configuration=configuration,
            heard=self.liveness.primary_heard,
            others=self.liveness.progress(),
            cut_off=rules.primary is not None and rules.primary.is_cut_off(self.liveness.silent),
        )
        told = (now.serving, now.in_sync, now.cut_off, health.failure, health.divergent, health.staged)
        if told != self._told:
            self._told = told
            self._ports.configurations.changed(self.shard)
        if before.serving != now.serving or not health.failure:
            self._ports.log.keep_reserve()

    # -- failing; from the loop's thread

    def fail(self, error: VecClusterError | OSError, cause: BaseException | None = None) -> None:
        """Take part in nothing more until the replica is opened again (`Ready.fail`)."""
        self._tell_all(self._ready.fail(error, cause))

    def diverge(self, why: str) -> None:
        """Take nothing more from the others, who say that the rows are wrong: the node rebuilds this copy."""
        self.health.diverge(why)
        _log.error("replica_differs", shard=str(self.shard), detail=why)

    def log_damaged(self, why: str) -> None:
        """The log has lost what was durable. That is remembered: the next opening may take it for a torn end."""
        log = self._ports.log
        if log.damage:
            return
        log.damage = why
        sentence = f"the log is damaged: {why}"
        self._tell_all(self._ready.on_disk(lambda: log.doubt(sentence)))
        self.fail(StorageCorrupt(sentence))

    def _refuse_all(self, error: VecClusterError) -> None:
        """Answer everyone who still waits: nobody knows of the writes that were ordered."""
        asked, self._turn.asked = self._turn.asked, []
        self.writes.give_up(error, asked)
        self.reads.refuse_all(error)
        self.participant.end(error)
        self._turn.later.clear()

    def _give_up(self, error: VecClusterError) -> None:
        """As `_refuse_all`; and what was not handled in this turn will not be."""
        self._refuse_all(error)
        for item in self._turn.items:
            if isinstance(item, Call) and not item.future.done():
                item.future.set_exception(error)
        self._turn, self._ready.ticket = _Turn(), None


@dataclass(slots=True)
class _Turn:
    """What a turn has to do yet."""

    items: deque[Item] = field(default_factory=deque)
    asked: list[Write | PrepareRequest] = field(default_factory=list)
    """Those that came in this turn."""
    syncs_late: bool = False
    sync_failed: VecClusterError | OSError | None = None
    """How the sync ended."""
    later: deque[tuple[Then, BaseException | None]] = field(default_factory=deque)
    """How to go on with what was put off."""
    looks: bool = False
    """Whether the participant is to look again."""


_numbers = count()
