"""A replica of one of several shards: the product's loop with its part in transactions, and what is asked of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulation.atomic.book import Book
from simulation.atomic.rules import Rules
from simulation.checks import Written as Wrote
from simulation.node import Node
from simulation.rows import changes_of
from veccluster.decisions.filters import And
from veccluster.decisions.replication import atomic
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.atomic import Batch, Decision, Participant, Showing, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import Position
from veccluster.errors import NotPrimary
from veccluster.model.state import ReadConsistency, Revision, Seq, ShardId, WriteConsistency
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.participant import Command, Settling, Then
from veccluster_node.replica.writes import PrepareRequest
from veccluster_node.wal.operations import DeleteWhere, Prepare, Written, decode_content

if TYPE_CHECKING:
    from simulation.atomic.checks import ShardChecks

RETRY = 0.01
TRIES = 20

Version = tuple[str, bool] | None


@dataclass(frozen=True)
class Shown:
    """A shard's part of an answer."""

    versions: dict[str, Version]
    position: Position
    showing: Showing


@dataclass
class _Reading:
    keys: tuple[str, ...]
    level: ReadConsistency
    at_least: Seq
    decided: frozenset[Seq]
    answer: Callable[[Shown | None], None]
    tries: int = TRIES


class ShardNode(Node):
    checks: "ShardChecks"

    def __init__(self, *plain: object, shard: Participant, book: Book, rules: Rules) -> None:
        self.book, self.rules_of_batches = book, rules
        super().__init__(*plain, shard=ShardId("simulated", shard))  # type: ignore[arg-type]
        book.watchers.append(self._look)

    def _new_ledger(self) -> atomic.Ledger:
        return self.rules_of_batches.ledger(self.shard.number)

    def _make_loop(self, image: Any) -> None:
        self.rows.shows_prepared = self.rules_of_batches.shows_prepared
        loop = self.kinds.loop
        self.kinds = type(self.kinds)(self.kinds.rules, with_rules(loop, self.rules_of_batches, self))
        super()._make_loop(image)
        self.kinds = type(self.kinds)(self.kinds.rules, loop)

    def _base(self) -> object:
        return self.rows.base(self.disk, self.rules_of_batches.carried)

    @property
    def ledger(self) -> atomic.Ledger:
        return self.rows.ledger

    @property
    def known(self) -> Known:
        return self.loop.participant.known

    # -- decisions

    def start(self) -> None:
        super().start()
        self._ask()

    def _look(self) -> None:
        """etcd's keys have changed."""
        if self.up and self.id not in self.etcd.away:
            self.guarded(self.world.rng.uniform(0.001, 0.03), lambda known=self.book.known: self.learn(known))

    def _ask(self) -> None:
        self.etcd.request(self.id, lambda: self.book.known, lambda known: self.guarded(0, lambda: self.learn(known)))

    def learn(self, known: object) -> None:
        if isinstance(known, Known) and known.revision > self.known.revision:
            self.loop.learn(known)

    def _tick(self) -> None:
        super()._tick()
        if self.world.chance(0.2):
            self._ask()

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        self.etcd.request(self.id, lambda: self.book.propose(decision, forgotten), lambda _: self.guarded(0, self._ask))

    # -- what coordinators ask

    def prepare(
        self, prepare: atomic.Prepare, level: WriteConsistency, answer: Callable[[Standing | None], None]
    ) -> None:
        """Have a batch in the log; None: it is not known to be there."""
        name = prepare.batch.prepare_id
        asked = Prepare(*prepare.batch, prepare.participants, prepare.count, prepare.content)

        def said(future: Future[Standing]) -> None:
            standing = None if future.exception() else future.result()
            self.answer(lambda: answer(standing))

        def ask() -> None:
            level_ = self.checks.writes.setdefault(name, Wrote(-1, name, {}, level, self.world.now)).level
            request = PrepareRequest(asked, self.time_ns(), level_, 1)
            request.future.add_done_callback(said)
            self.put(request)

        self.guarded(0, ask)

    def clear(self, name: str, answer: Callable[[bool | None], None]) -> None:
        """Delete whatever is there after all that is in the log (`DeleteWhere`); what is only prepared is not there."""

        def ask() -> None:
            self.checks.writes.setdefault(name, Wrote(-1, name, {}, WriteConsistency.one, self.world.now))
            everything = DeleteWhere(And(()))
            self.order(name, everything, WriteConsistency.one, lambda said, _: answer(said == "acknowledged"))

        self.guarded(0, ask)

    def settle(self, batch: Batch, level: WriteConsistency, answer: Callable[[bool | None], None]) -> None:
        """Wait until what is decided about the batch is applied here."""

        def said(future: Future[Written]) -> None:
            done = None if future.exception() else True
            self.answer(lambda: answer(done))

        def ask() -> None:
            settling = Settling(batch, level)
            settling.future.add_done_callback(said)
            self.loop.settle(settling)

        self.guarded(0, ask)

    def show(self, answer: Callable[[Showing | None], None]) -> None:
        def ask() -> None:
            showing = self.ledger.showing(self.applied)
            self.answer(lambda: answer(showing))

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
        def leave(future: Future[Position]) -> None:
            if future.exception():
                self.answer(lambda: reading.answer(None))
            else:
                self._serve(reading, self.shown)

        self.guarded(0, lambda: self.ask_leave(reading.level, reading.at_least, leave))

    def _serve(self, reading: _Reading, position: Position) -> None:
        showing = self.ledger.showing(self.applied)
        if all(map(showing.is_past, reading.decided)):
            shown = Shown({key: self.table.get(key) for key in reading.keys}, position, showing)
            self.answer(lambda: reading.answer(shown))
        elif reading.tries:
            reading.tries -= 1
            self.guarded(RETRY, lambda: self._read_once(reading))
        else:
            self.answer(lambda: reading.answer(None))


def with_rules(loop: type[ReplicaLoop], rules: Rules, node: ShardNode) -> type[ReplicaLoop]:
    """The loop with the rules about transactions that are in force; and a judge who hears what is decided."""

    class Judged(loop.participant_type):  # type: ignore[name-defined,misc]
        due = staticmethod(rules.due)
        overdue = staticmethod(rules.overdue)

        def decide(self, decision: Decision) -> Iterator[Command]:
            if pending := self._rows.ledger.pending.get(decision.batch):
                is_applied = decision.verdict is Verdict.applied
                ops = decode_content(pending.prepare.content) if is_applied else ()
                node.checks.decides(decision.batch, changes_of(ops))
            return super().decide(decision)

        def confirm(self, then: Then) -> Iterator[Command]:
            if rules.confirms:
                yield from super().confirm(then)
            else:
                yield from then(None if self._rules.primary else NotPrimary("it is not the primary"))

        def drop(self, known: Known, waited: list[Batch]) -> Iterator[Command]:
            if not rules.drops_alone:
                yield from super().drop(known, waited)
                return
            for decision in self.overdue(self._rows.ledger, known, waited):
                yield from self.decide(decision)

    return type(loop.__name__, (_ordering(loop, rules, node),), {"participant_type": Judged})


def _ordering(loop: type[ReplicaLoop], rules: Rules, node: ShardNode) -> type[ReplicaLoop]:
    class Ordered(loop.writes_type):  # type: ignore[name-defined,misc]
        def _is_ahead(self) -> bool:
            return rules.clears_in_order and super()._is_ahead()

    class TakingUp(loop.ready_type):  # type: ignore[name-defined,misc]
        def carry_out(self, effect: do.Effect) -> object:
            if isinstance(effect, do.BecomePrimary) and not rules.takes_up:
                node.ledger.pending.clear()
            return super().carry_out(effect)

    return type(loop.__name__, (loop,), {"writes_type": Ordered, "ready_type": TakingUp})
