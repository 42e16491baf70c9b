"""Carry out what a replica's rules want done: on the log and the rows, towards the other replicas, and for who waits.

The rules are `decisions.replication.replica.Replica`; this is its disk, its clock and its voice. It belongs to the
thread of one shard. What goes wrong on the disk ends the replica's part in everything until it is opened again
(`poison`); reads go on from what was applied.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from veccluster import failpoints
from veccluster.decisions.integrity import is_noted
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.messages import Header, Replicate, ToPrimary
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.decisions.replication.values import Member, Position, Record
from veccluster.errors import (
    InsufficientStorage,
    NotPrimary,
    OutcomeUnknown,
    ReplicaBehind,
    StorageCorrupt,
    TooFewReplicas,
    Unavailable,
    VecClusterError,
)
from veccluster.model.state import Epoch, Seq
from veccluster_node.replica import snapshots
from veccluster_node.replica.deciding import Deciding
from veccluster_node.replica.recovery import SUSPECT, Recovered
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.replica.surroundings import Progress, Reading, Standing, Surroundings
from veccluster_node.runtime.files import disk_usage, is_no_space, reason, write_durably
from veccluster_node.wal import epochs, operations
from veccluster_node.wal.operations import Written
from veccluster_node.wal.recent import RecentRecords

_FULL = "the disk is full; make room, and the shard takes writes again when it has been opened anew"
_IN_THE_LOG = "the write is in the log; it shows when the shard is opened again"

_MESSAGE_BYTES = 4 << 20
"""Most payload in one message to a follower, unless a single record is larger."""
_APPLY_BYTES = 8 << 20
_APPLY_OPERATIONS = 4096
"""Applied in one transaction, about."""

_log = structlog.get_logger(__name__)


class Conductor:
    """Attributes are for reading; the methods are for the shard's thread."""

    def __init__(
        self,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings,
        recovered: Recovered,
        surroundings: Surroundings,
        me: Member,
        *,
        applied: Callable[[], None],
    ) -> None:
        self.log, self.records, self.feed = recovered.log, recovered.records, recovered.feed
        self.rules = Rules(me, recovered.found)
        self.damaged: str | None = recovered.damaged
        """Why this copy may lack what was acknowledged: it takes nothing from others, and should begin anew."""
        self.staged = False
        """A snapshot lies ready to take its place; the replica must be opened again."""
        self.failure: VecClusterError | None = None
        if recovered.broken:
            self.failure = StorageCorrupt(f"shard {spec.shard} is read-only: {recovered.broken}")
        self._broken = self.failure
        """Why it takes no more writes until it is opened again; `_broken` is one that opening again does not mend."""
        self.in_parts: set[str] = set()
        """Operations under way that are several records."""
        self.writes: dict[str, list[Future[Written]]] = {}
        self.standing = Standing(me)
        self.deciding = Deciding(self, spec.shard, surroundings, settings.decision_patience)
        self.make_room: Callable[[], None] = lambda: None
        """Gives up the reserve if the disk is full, for what must be logged even then."""
        self._path = path
        self._spec = spec
        self._settings = settings
        self._surroundings = surroundings
        self._applied = applied
        self._recent = RecentRecords()
        self._ticket: int | None = None
        self._results: dict[Seq, Written] = {}
        self._reads: dict[str, Reading] = {}
        self._behind: list[Reading] = []
        self._heard: dict[Member, float] = {}
        self._heard_primary = time.monotonic()
        self._silent: frozenset[Member] = frozenset()
        """Members that the primary waits for and has not heard for too long."""
        self._complete: dict[Member, float] = {}
        """When each other member last had the whole log."""
        self._ticked = time.monotonic()

    # -- events

    def handle(self, event: on.Event) -> None:
        """Let the rules say what an event asks for, and do it."""
        if self.staged:
            return
        if isinstance(event, on.Received):
            if self.damaged and not self._is_sole():
                return
            self._note_heard(event)
        for effect in self.rules.handle(event):
            self._do(effect)
        self._results.clear()
        if not isinstance(event, on.Write | on.Read | on.Synced):
            self.deciding.look()

    def _is_sole(self) -> bool:
        """Whether this doubtful copy serves, since it is the only one, and may be copied.

        Not one that is read-only: copies that can be written would hide what it lacks.
        """
        return self.rules.primary is not None and self.failure is None

    def _note_heard(self, event: on.Received) -> None:
        now, sender, configuration = time.monotonic(), self.rules.hears(event), self.rules.configuration
        if sender and isinstance(event.message, ToPrimary):
            self._heard[sender] = now
        elif sender and configuration and sender == configuration.primary:
            self._heard_primary = now

    def tick(self) -> None:
        """Send again what was not answered, and say who is silent."""
        now = time.monotonic()
        if now - self._ticked > self._settings.silence / 2:  # it was this process that stood still
            self._heard = dict.fromkeys(self._heard, now)
        self._ticked = now
        self._silent = frozenset(m for m in self._awaited() if self._is_silent(m, now))
        # While etcd is away nobody can be let go, and what was asked of it meanwhile counts as neither done nor not.
        self.handle(on.Tick(self._silent if self._surroundings.reaches_etcd() else frozenset()))
        self._give_up_reads(now)

    def _is_silent(self, member: Member, now: float) -> bool:
        since = self._heard.setdefault(member, now)
        return now - since > self._settings.silence or self._surroundings.has_ended(member)

    def _awaited(self) -> frozenset[Member]:
        primary = self.rules.primary
        return primary.waiting - {self.rules.me} if primary else frozenset()

    def flush(self) -> None:
        """Make durable what was asked to be, and go on with what that allows."""
        while self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            if self._sync():
                self.handle(on.Synced(ticket))

    def _sync(self) -> bool:
        if self._settings.wal_sync == "interval" or self.log.durable_seq >= self.log.last_seq:
            return True
        return self._on_disk(self.log.sync)

    # -- effects

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.StoreEpoch() | do.Append() | do.Truncate() | do.InstallSnapshot() | do.Sync():
                self._store(effect)
            case do.Apply(through):
                self._apply(through)
            case do.SendRecords(header, after, through):
                self._send_records(header, after, through)
            case do.Send() | do.SendSnapshot() | do.Swap() | do.ReadConfiguration():
                self._ask(effect)
            case do.BecomePrimary(epoch):
                self._heard, self._silent = {}, frozenset()
                _log.info("serving", shard=str(self._spec.shard), epoch=epoch, seq=self.records.applied_seq)
            case do.BecomeFenced(epoch):
                _log.warning("stopped_serving", shard=str(self._spec.shard), epoch=epoch)
            case do.Diverged(why):
                self.damaged = self.damaged or why
                _log.error("replica_diverged", shard=str(self._spec.shard), detail=why)
            case _:
                self._answer(effect)

    def _ask(self, effect: do.Send | do.SendSnapshot | do.Swap | do.ReadConfiguration) -> None:
        shard = self._spec.shard
        match effect:
            case do.Send(to, message):
                self._surroundings.send(shard, to, message)
            case do.SendSnapshot(header):
                self._surroundings.offer_snapshot(shard, header)
            case do.Swap(target, expected):
                self._surroundings.swap(shard, target, expected)
            case do.ReadConfiguration():
                self._surroundings.read_configuration(shard)

    def _store(self, effect: do.DiskEffect) -> None:
        if self.failure:
            if isinstance(effect, do.Sync) and self.damaged:
                self._ticket = effect.ticket  # the only copy, read-only: its epoch is still kept
            elif isinstance(effect, do.StoreEpoch) and self.damaged:
                self._on_disk(lambda: epochs.write(self._path, effect.epoch))
            return
        match effect:
            case do.StoreEpoch(epoch):
                self._on_disk(lambda: epochs.write(self._path, epoch))
            case do.Append(records):
                self._append(records)
            case do.Truncate(after):
                self._recent.cut(after)
                self._on_disk(lambda: self.log.truncate(after))
            case do.InstallSnapshot(_, _, content):
                assert isinstance(content, snapshots.Offered)
                if self._on_disk(lambda: snapshots.stage(self._path, content)):
                    self.staged = True
                    self.refuse_all(Unavailable("the shard is being opened anew from another replica's snapshot"))
            case do.Sync(ticket):
                self._ticket = ticket

    def _append(self, records: Sequence[Record]) -> None:
        stored = [operations.Record(r.epoch, r.first, r.count, r.payload) for r in records]
        try:
            self.log.append(stored, sync=False)
        except InsufficientStorage as error:
            for record in records:  # not even sent to anyone yet
                self._resolve(record.op_id, InsufficientStorage(error.detail))
            self.poison(error)
        except (VecClusterError, OSError) as error:
            self.poison(_named(error), error)
        else:
            self._recent.add(records)

    def _on_disk(self, action: Callable[[], None]) -> bool:
        """Do something on the disk; whether that could be done."""
        try:
            action()
        except (VecClusterError, OSError) as error:
            self.poison(_named(error), error)
            return False
        return True

    # -- applying

    def _apply(self, through: Seq) -> None:
        if self.failure and self.failure is not self._broken:
            return
        try:
            for group in self._groups(Seq(self.records.applied_seq), through):
                failpoints.hit("apply")
                changes = self.records.apply(group, self.feed.apply)
                if self.writes:
                    self._results |= {Seq(w.last_seq): w for w in changes.results}
        except Exception as error:  # noqa: BLE001 - whatever it is, what is committed is not shown
            tell = _log.error if is_no_space(error) else _log.exception
            tell("apply_failed", shard=str(self._spec.shard), through=through, detail=reason(error))
            why = error if isinstance(error, StorageCorrupt) else Unavailable(f"applying failed: {reason(error)}")
            for op_id in list(self.writes):
                self._resolve(op_id, OutcomeUnknown(_IN_THE_LOG))
            self.poison(why, error)
            return
        self._applied()
        self._go_on_reading()
        self.deciding.look()

    def _groups(self, after: Seq, through: Seq) -> Iterator[list[operations.Record]]:
        group: list[operations.Record] = []
        size, last = 0, after
        for record in self._records(after, through):
            if record.first != last + 1:
                raise StorageCorrupt(f"operations {last + 1} to {record.first - 1} are missing in the log")
            last = record.last
            group.append(operations.Record(record.epoch, record.first, record.count, record.payload))
            size += len(record.payload)
            is_large = size > _APPLY_BYTES or record.last - group[0].first_seq > _APPLY_OPERATIONS
            if is_large or is_noted(record.first - 1, record.last):  # what is noted is of the end of a record
                yield group
                group, size = [], 0
        if group:
            yield group

    def _records(self, after: Seq, through: Seq) -> Iterator[Record]:
        """The log's records that begin in (after, through]."""
        if self._recent.covers(after):
            yield from self._recent.between(after, through)
            return
        for r in self.log.read(after, through):
            if after < r.first_seq <= through:
                yield Record(Epoch(r.epoch), Seq(r.first_seq), r.count, r.op_id, r.payload)

    # -- the other replicas

    def _send_records(self, header: Header, after: Seq, through: Seq) -> None:
        if not self._surroundings.takes_records(self._spec.shard, header.to):
            self._surroundings.send(self._spec.shard, header.to, Replicate(header))
            return
        some: list[Record] = []
        size = 0
        for record in self._records(after, through):
            if some and size + len(record.payload) > _MESSAGE_BYTES:
                self._surroundings.send(self._spec.shard, header.to, Replicate(header, tuple(some)))
                some, size = [], 0
            some.append(record)
            size += len(record.payload)
        if some:
            self._surroundings.send(self._spec.shard, header.to, Replicate(header, tuple(some)))

    def look(self) -> bool:
        """Take stock of where the replica stands; whether somebody should look."""
        before, rules, journal = self.standing, self.rules, self.rules.journal
        configuration = rules.configuration
        self.standing = Standing(
            me=rules.me,
            serving=rules.primary.epoch if rules.primary else None,
            in_sync=configuration is not None and rules.me in configuration.in_sync,
            epoch=journal.epoch,
            applied=Position(journal.shown.epoch, Seq(self.records.applied_seq)),
            durable=journal.position,
            commit=rules.commit,
            configuration=configuration,
            heard=self._heard_primary,
            others=self._progress(),
            cut_off=rules.primary is not None and rules.primary.is_cut_off(self._silent),
        )
        now = self.standing
        return (before.serving, before.in_sync, before.cut_off) != (now.serving, now.in_sync, now.cut_off)

    def _progress(self) -> tuple[Progress, ...]:
        primary = self.rules.primary
        if primary is None:
            return ()
        now, last = time.monotonic(), self.rules.journal.last
        others = sorted((primary.waiting | primary.configuration.learners) - {self.rules.me})
        behind = {m: last - primary.matched(m) for m in others}
        self._complete = {m: now if not behind[m] else self._complete.get(m, now) for m in others}
        return tuple(Progress(m, behind[m], now - self._complete[m], now - self._heard.get(m, now)) for m in others)

    # -- answers

    def read(self, reading: Reading) -> None:
        """Ask for leave to read."""
        if reading.future.cancelled():
            return
        self._reads[reading.id] = reading
        self.handle(on.Read(reading.id, reading.level, reading.at_least))

    def forget(self, request: str) -> None:
        """Nobody waits any more."""
        self._reads.pop(request, None)
        self.writes.pop(request, None)
        self.handle(on.Forget(request))

    def _answer(self, effect: do.Effect) -> None:
        match effect:
            case do.Acknowledge(op_id, position):
                self._acknowledge(op_id, position)
            case do.Refuse(op_id, why):
                self._resolve(op_id, self._refusal(why))
            case do.Uncertain(op_id, why):
                self._resolve(op_id, OutcomeUnknown(f"shard {self._spec.shard}: {why}; the write may show or not"))
            case do.Serve(request, position):
                if (reading := self._reads.pop(request, None)) and not reading.future.done():
                    reading.future.set_result(position)
            case do.RefuseRead(request, why):
                if reading := self._reads.pop(request, None):
                    self._refuse_read(reading, why)

    def _acknowledge(self, op_id: str, position: Position) -> None:
        if op_id not in self.writes:
            return
        if op_id in self.in_parts and (whole := self.records.result_of(op_id)):
            self._results[position.seq] = replace(whole, replayed=False)
        result = self._results.get(position.seq) or self.records.result_of(op_id)
        known = result and replace(result, epoch=position.epoch)
        self._resolve(op_id, known or OutcomeUnknown(_IN_THE_LOG))

    def _resolve(self, op_id: str, outcome: Written | VecClusterError) -> None:
        self.in_parts.discard(op_id)
        for future in self.writes.pop(op_id, []):
            if future.done():
                continue
            if isinstance(outcome, VecClusterError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
                outcome = replace(outcome, replayed=True)

    def _refusal(self, why: Why) -> VecClusterError:
        shard = self._spec.shard
        if why is Why.too_few_copies:
            configuration = self.rules.configuration
            count = len(configuration.in_sync) if configuration else 0
            return TooFewReplicas(f"shard {shard}: {why} ({count} in sync); nothing was stored")
        return self.failure if why is Why.disk and self.failure else NotPrimary(f"shard {shard}: {why}")

    def _refuse_read(self, reading: Reading, why: Why) -> None:
        if why is Why.behind and reading.until > time.monotonic():
            self._behind.append(reading)
        elif not reading.future.done():
            kind = ReplicaBehind if why in {Why.behind, Why.not_in_sync} else NotPrimary
            reading.future.set_exception(kind(f"shard {self._spec.shard}: {why}"))

    def _go_on_reading(self) -> None:
        waiting, self._behind = self._behind, []
        for reading in waiting:
            self.read(reading)

    def _give_up_reads(self, now: float) -> None:
        for reading in [r for r in self._behind if r.until <= now or r.future.done()]:
            self._behind.remove(reading)
            self._refuse_read(reading, Why.behind)

    def refuse_all(self, error: VecClusterError) -> None:
        """Answer everyone who still waits: nobody knows of the writes."""
        for op_id in list(self.writes):
            self._resolve(op_id, OutcomeUnknown(f"{error.detail}; the write may show or not"))
        for reading in [*self._reads.values(), *self._behind]:
            if not reading.future.done():
                reading.future.set_exception(error)
        self._reads, self._behind = {}, []
        self.deciding.end(error)

    # -- failing

    def poison(self, error: VecClusterError, cause: BaseException | None = None) -> None:
        """Take part in nothing more until the shard is opened again; reads go on from what was applied.

        `StorageCorrupt` is about the rows: opening makes them anew from generations and log. What comes of a full
        disk (`cause`, or that of `error`) is told as such, since a person has to make room.
        """
        if isinstance(error, StorageCorrupt) and not self.log.damage:
            with suppress(OSError):
                (self._path / SUSPECT).touch()
        if self.failure is None:
            if isinstance(error, StorageCorrupt):
                self.failure = error
            elif self._is_full(cause or error.__cause__):
                self.failure = InsufficientStorage(_FULL)
            else:
                self.failure = Unavailable(error.detail)
            _log.error("replica_poisoned", shard=str(self._spec.shard), detail=error.detail)
            self.handle(on.DiskFailed())

    def condemn(self, why: str) -> None:
        """Take nothing more from the others, who say that the rows are wrong: the node begins this copy anew."""
        self.damaged = self.damaged or why
        _log.error("replica_differs", shard=str(self._spec.shard), detail=why)

    def log_damaged(self, why: str) -> None:
        """The log has lost what was durable. That is remembered: the next opening may take it for a torn end."""
        if self.log.damage:
            return
        self.log.damage = why
        sentence = f"the log is damaged: {why}"
        self._on_disk(lambda: write_durably(self._path / snapshots.DOUBT, sentence.encode()))
        self.poison(StorageCorrupt(sentence))

    def _is_full(self, cause: BaseException | None) -> bool:
        """Whether `cause` comes of a full disk; SQLite may say no more than "disk I/O error" then."""
        failed = isinstance(cause, sqlite3.OperationalError | OSError)
        return is_no_space(cause) or (failed and disk_usage(self._path) >= self._settings.full_at)


def _named(error: VecClusterError | OSError) -> VecClusterError:
    return error if isinstance(error, VecClusterError) else Unavailable(f"the disk failed: {reason(error)}")
