"""A replica that knows batches: what the product's node does around the rules of a single shard."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from simulation.atomic.book import Book
from simulation.atomic.rules import Rules
from simulation.checks import Written
from simulation.disk import Base
from simulation.node import Node, decode, encode
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Batch, Decision, Participant, Prepare, Showing, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import Position, Record
from veccluster.model.state import ReadConsistency, Seq, WriteConsistency

if TYPE_CHECKING:
    from simulation.atomic.checks import ShardChecks
    from veccluster.decisions.replication.atomic import Ledger

PATIENCE = 0.5
"""Seconds that a primary waits for a decision."""
RETRY = 0.01
NO_KEY = "nothing"
TRIES = 20

PREPARE, DECIDE = b"\0P", b"\0D"
_preparing, _deciding = msgspec.msgpack.Decoder(Prepare), msgspec.msgpack.Decoder(Decision)

Version = tuple[str, bool] | None


def meant(record: Record) -> Prepare | Decision | dict[str, bool]:
    """What a record says."""
    kind, rest = record.payload[:2], record.payload[2:]
    if kind == PREPARE:
        return _preparing.decode(rest)
    return _deciding.decode(rest) if kind == DECIDE else decode(record.payload)


@dataclass(frozen=True)
class Shown:
    """A shard's part of an answer."""

    versions: dict[str, Version]
    position: Position
    showing: Showing


@dataclass(frozen=True)
class AtomicBase(Base):
    ledger: "Ledger | None" = None


@dataclass
class _Reading:
    keys: tuple[str, ...]
    level: ReadConsistency
    at_least: Seq
    decided: frozenset[Seq]
    answer: Callable[[Shown | None], None]
    tries: int = TRIES


@dataclass
class _Own:
    """What the node itself waits for."""

    confirming: dict[str, Callable[[bool], None]] = field(default_factory=dict)
    reading: dict[str, _Reading] = field(default_factory=dict)
    writing: dict[str, list[Callable[[bool], None]]] = field(default_factory=dict)
    since: dict[Batch, float] = field(default_factory=dict)
    number: int = 0

    def name(self, kind: str) -> str:
        self.number += 1
        return f"{kind} {self.number}"


class ShardNode(Node):
    checks: "ShardChecks"

    def __init__(self, *plain: object, shard: Participant, book: Book, rules: Rules) -> None:
        self.shard, self.book, self.rules = shard, book, rules
        self.ledger = rules.ledger(shard)
        self.known = Known()
        self._own = _Own()
        super().__init__(*plain)  # type: ignore[arg-type]
        book.watchers.append(self._look)

    # -- the applied state

    def start(self) -> None:
        self._own, self.known = _Own(), Known()
        super().start()
        self._ask()

    def _show(self, base: Base) -> None:
        super()._show(base)
        carried = base.ledger if isinstance(base, AtomicBase) else None
        self.ledger = carried.copy() if carried else self.rules.ledger(self.shard)

    def _base(self) -> Base:
        plain = super()._base()
        return AtomicBase(plain.through, plain.lineage, plain.table, plain.results, self.rules.carried(self.ledger))

    def _apply(self, record: Record) -> None:
        match meant(record):
            case Prepare() as prepare:
                self.ledger.prepare(prepare, record.last)
                self._settle(record, prepare if self.rules.shows_prepared else None)
            case Decision() as decision:
                self._settle(record, self.ledger.decide(decision, record.last))
            case _:
                super()._apply(record)

    def _settle(self, record: Record, prepare: Prepare | None) -> None:
        for key, deleted in decode(prepare.content).items() if prepare else ():
            self.table[key] = (record.op_id, deleted)
        self.results[record.op_id] = record.last
        self.applied = record.last

    # -- decisions

    def _look(self) -> None:
        """etcd's keys have changed."""
        if self.up and self.id not in self.etcd.away:
            self.guarded(self.world.rng.uniform(0.001, 0.03), lambda known=self.book.known: self._learn(known))

    def _ask(self) -> None:
        self.etcd.request(self.id, lambda: self.book.known, lambda known: self.guarded(0, lambda: self._learn(known)))

    def _learn(self, known: object) -> None:
        if isinstance(known, Known) and known.revision > self.known.revision:
            self.known = known
            self._attend()

    def _tick(self) -> None:
        super()._tick()
        if self.world.chance(0.2):
            self._ask()
        self._attend()

    def _do(self, effect: do.Effect) -> None:
        super()._do(effect)
        if isinstance(effect, do.Apply | do.BecomePrimary):
            if isinstance(effect, do.BecomePrimary) and not self.rules.takes_up:
                self.ledger.pending.clear()
            self.guarded(0, self._attend)

    def _attend(self) -> None:
        """A primary sees to the batches that are prepared."""
        if not self.replica.primary:
            self._own.since = {}
            return
        for decision in list(self.rules.due(self.ledger, self.applied, self.known)):
            self._decide(decision)
        now = self.world.now
        self._own.since = {b: self._own.since.get(b, now) for b in self.ledger.pending}
        if waited := [b for b, at in self._own.since.items() if now - at > PATIENCE]:
            known = self.known
            self._confirm(lambda holds: self._propose(known, waited) if holds else None)

    def _propose(self, known: Known, waited: Iterable[Batch]) -> None:
        for decision in self.rules.overdue(self.ledger, known, waited):
            if self.rules.drops_alone:
                self._decide(decision)
                continue
            self._own.since[decision.batch] = self.world.now
            self.etcd.request(
                self.id, lambda d=decision: self.book.propose(d, known.forgotten), lambda _: self.guarded(0, self._ask)
            )

    def _decide(self, decision: Decision) -> None:
        """Have it in the log, at its place."""
        batch, pending = decision.batch, self.ledger.pending.get(decision.batch)
        if pending is None or batch.decide_id in self.replica.journal.operations:
            return
        is_applied = decision.verdict is Verdict.applied
        keys = decode(pending.prepare.content) if is_applied else {}
        self.checks.decides(batch, keys)
        payload = DECIDE + msgspec.msgpack.encode(decision)
        count, before = pending.prepare.count if is_applied else 1, self.results.get(batch.decide_id)
        self.handle(on.Write(batch.decide_id, count, payload, WriteConsistency.one, before))

    def _confirm(self, then: Callable[[bool], None]) -> None:
        """Whether this primary's epoch holds now, so that what it has applied is all that anybody has."""
        if not self.rules.confirms:
            then(self.replica.primary is not None)
            return
        name = self._own.name("confirm")
        self._own.confirming[name] = then
        self.handle(on.Read(name, ReadConsistency.strong))

    # -- what coordinators ask

    def prepare(self, prepare: Prepare, level: WriteConsistency, answer: Callable[[Standing | None], None]) -> None:
        """Have a batch in the log; None: it is not known to be there."""

        def say(standing: Standing | None) -> None:
            self.world.send(self.id, "client", lambda: answer(standing))

        def confirmed(holds: bool) -> None:
            standing = self.ledger.standing(prepare.batch)
            say(standing if holds or (standing and standing.verdict) else None)

        def ask() -> None:
            standing, name = self.ledger.standing(prepare.batch), prepare.batch.prepare_id
            if standing and standing.verdict:
                say(standing)
            elif standing:
                self._confirm(confirmed)
            elif self.disk.full:
                say(None)
            else:
                is_new = name not in self.replica.journal.operations
                done = (
                    (lambda ok: confirmed(ok)) if is_new else (lambda ok: self._confirm(confirmed) if ok else say(None))
                )
                self._own.writing.setdefault(name, []).append(done)
                self.checks.writes.setdefault(name, Written(-1, name, {}, level, self.world.now))
                payload = PREPARE + msgspec.msgpack.encode(prepare)
                self.handle(on.Write(name, 1, payload, self.checks.writes[name].level, self.results.get(name)))

        self.guarded(0, ask)

    def clear(self, name: str, answer: Callable[[bool | None], None]) -> None:
        """Delete whatever is there after all that is in the log (`DeleteWhere`); what is only prepared is not there."""

        def ask() -> None:
            journal = self.replica.journal
            is_known = name in self.results or name in journal.operations
            if self.replica.primary and not is_known and self.applied < journal.last and self.rules.clears_in_order:
                self.guarded(RETRY, ask)
                return
            keys = {key: True for key, (_, deleted) in self.table.items() if not deleted} or {NO_KEY: True}
            self.checks.writes.setdefault(name, Written(-1, name, {}, WriteConsistency.one, self.world.now))
            self._own.writing.setdefault(name, []).append(
                lambda ok: self.world.send(self.id, "client", lambda: answer(ok))
            )
            self.handle(on.Write(name, len(keys), encode(keys), WriteConsistency.one, self.results.get(name)))

        self.guarded(0, ask)

    def outcome(self, batch: Batch, answer: Callable[[Standing | None], None]) -> None:
        """What is decided here about the batch, if anything."""

        def ask() -> None:
            decided = self.ledger.decided.get(batch.operation)
            self.world.send(self.id, "client", lambda: answer(decided))

        self.guarded(0, ask)

    def show(self, answer: Callable[[Showing | None], None]) -> None:
        def ask() -> None:
            showing = self.ledger.showing(self.applied)
            self.world.send(self.id, "client", lambda: answer(showing))

        self.guarded(0, ask)

    def read_many(
        self,
        keys: tuple[str, ...],
        level: ReadConsistency,
        at_least: Seq,
        decided: frozenset[Seq],
        answer: Callable[[Shown | None], None],
    ) -> None:
        """Read once the batches with prepares at `decided` are."""
        self._read_once(_Reading(keys, level, at_least, decided, answer))

    def _read_once(self, reading: _Reading) -> None:
        def ask() -> None:
            name = self._own.name("read")
            self._own.reading[name] = reading
            self.handle(on.Read(name, reading.level, reading.at_least))

        self.guarded(0, ask)

    # -- answers

    def _answer(self, effect: do.Effect) -> None:
        own = self._own
        match effect:
            case do.Serve(name, _) | do.RefuseRead(name, _) if name in own.confirming:
                own.confirming.pop(name)(isinstance(effect, do.Serve))
            case do.Serve(name, position) if name in own.reading:
                self._serve(own.reading.pop(name), position)
            case do.RefuseRead(name, _) if name in own.reading:
                answer = own.reading.pop(name).answer
                self.world.send(self.id, "client", lambda: answer(None))
            case _:
                super()._answer(effect)
                if isinstance(effect, do.Acknowledge | do.Refuse | do.Uncertain):
                    for done in own.writing.pop(effect.op_id, []):
                        done(isinstance(effect, do.Acknowledge))

    def _serve(self, reading: _Reading, position: Position) -> None:
        showing = self.ledger.showing(self.applied)
        if all(map(showing.is_past, reading.decided)):
            shown = Shown({key: self.table.get(key) for key in reading.keys}, position, showing)
            self.world.send(self.id, "client", lambda: reading.answer(shown))
        elif reading.tries:
            reading.tries -= 1
            self.guarded(RETRY, lambda: self._read_once(reading))
        else:
            self.world.send(self.id, "client", lambda: reading.answer(None))
