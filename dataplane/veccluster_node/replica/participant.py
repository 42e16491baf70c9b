"""A replica's part in cross-shard transactions (rule 15): what it answers about them, and what it does as primary.

It looks at the rules and the rows, answers the futures that it was given, and returns commands; the loop carries these
out after the event that is being handled, and goes on with `then` when the answer is there. What decides is in
`decisions.replication.atomic_deciding`.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from veccluster.decisions.replication.atomic import Batch, Decision, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known, due, overdue
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.errors import NotPrimary, Unavailable, VecClusterError
from veccluster.model.state import Revision, Seq, ShardId, WriteConsistency
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.ports import Clock, Rows
from veccluster_node.wal.operations import Decide, Prepare, Written, encode_batch

Then = Callable[[BaseException | None], "Iterable[Command]"]
"""How to go on when it is known what became of a command; None when it succeeded."""


@dataclass(frozen=True, slots=True)
class Order:
    """Have a record in the log; `then` when it cannot be lost and is applied, or was refused."""

    op_id: str
    count: int
    payload: bytes
    level: WriteConsistency
    applied: Seq | None = None
    waiter: Future[Written] | None = None
    then: Then | None = None


@dataclass(frozen=True, slots=True)
class Confirm:
    """Find out whether this primary's epoch holds now, so that what it has applied is all that anybody has (13)."""

    then: Then


@dataclass(frozen=True, slots=True)
class Propose:
    """Make a decision in etcd, if there is none and none were forgotten since."""

    decision: Decision
    forgotten: Revision


Command = Order | Confirm | Propose


@dataclass(slots=True, eq=False)
class Settling:
    """Somebody waits until the shard has decided, as `level` asks."""

    batch: Batch
    level: WriteConsistency
    future: Future[Written] = field(default_factory=Future)


class Participant:
    """Belongs to one loop."""

    due = staticmethod(due)
    overdue = staticmethod(overdue)

    def __init__(
        self, shard: ShardId, rules: Rules, health: ReplicaHealth, rows: Rows, clock: Clock, patience: float
    ) -> None:
        """A transaction that has waited `patience` seconds for its decision is to be dropped."""
        self.known = Known()
        self._shard = shard
        self._rules = rules
        self._health = health
        self._rows = rows
        self._clock = clock
        self._patience = patience
        self._since: dict[Batch, float] = {}
        self._is_doubting = False
        self._settling: list[Settling] = []
        self._answers: set[Future[Standing]] = set()

    @property
    def is_waiting(self) -> bool:
        """Whether anything is prepared and not decided, or anybody waits."""
        return bool(self._rows.ledger.pending or self._settling or self._answers)

    @property
    def _is_serving(self) -> bool:
        return self._rules.primary is not None and self._health.failure is None

    def learn(self, known: Known) -> bool:
        """What etcd says of the collection's transactions; whether that is news."""
        is_news = known.revision >= self.known.revision
        if is_news:
            self.known = known
        return is_news

    # -- a primary sees to what is prepared

    def attend(self) -> Iterator[Command]:
        """Something may have changed: do what is to be done about what is prepared."""
        ledger = self._rows.ledger
        if not self._is_serving:
            self._since = {}
            yield from self._settle_all()
            return
        if ledger.pending:
            for decision in list(self.due(ledger, Seq(self._rows.applied_seq), self.known)):
                yield from self.decide(decision)
        now = self._clock.now()
        self._since = {b: self._since.get(b, now) for b in ledger.pending}
        waited = [b for b, at in self._since.items() if now - at > self._patience]
        if waited and not self._is_doubting:
            yield from self._doubt(self.known, waited)
        yield from self._settle_all()

    def decide(self, decision: Decision) -> Iterator[Command]:
        """Have it in the log, at its place; what is there already is left alone."""
        batch, pending = decision.batch, self._rows.ledger.pending.get(decision.batch)
        if pending is None or batch.decide_id in self._rules.journal.operations:
            return
        number = pending.prepare.count if decision.verdict is Verdict.applied else 1
        payload = encode_batch(self._clock.time_ns(), batch.decide_id, (Decide.of(decision),))
        yield Order(batch.decide_id, number, payload, WriteConsistency.one)

    def _doubt(self, known: Known, waited: list[Batch]) -> Iterator[Command]:
        """Propose to drop what has no decision, if this is the primary even now: nobody else decided then, either."""
        self._is_doubting = True

        def confirmed(error: BaseException | None) -> Iterator[Command]:
            self._is_doubting = False
            if error is None:
                yield from self.drop(known, waited)

        yield from self.confirm(confirmed)

    def drop(self, known: Known, waited: list[Batch]) -> Iterator[Command]:
        """Propose to drop what has waited too long; what of it is there then is looked at again after as long."""
        self._since |= dict.fromkeys(waited, self._clock.now())
        for decision in self.overdue(self._rows.ledger, known, waited):
            yield Propose(decision, known.forgotten)

    def confirm(self, then: Then) -> Iterator[Command]:
        """Go on once it is known whether the epoch holds."""
        yield Confirm(then)

    # -- what coordinators ask

    def prepare(
        self, prepare: Prepare, level: WriteConsistency, encode: Callable[[], bytes], answer: "Future[Standing]"
    ) -> Iterator[Command]:
        """Have a transaction in the log, unless the operation has gone further here, and say how it stands; `encode`
        raises what speaks against taking anything on.
        """
        batch = prepare.batch
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        standing = self._rows.standing(batch) if self._rules.primary else None
        if standing and standing.verdict:
            answer.set_result(standing)
        elif standing:
            yield from self.confirm(lambda error: self._say(batch, answer, error))
        else:
            before = self._rows.result_of(batch.prepare_id)
            was_there = bool(before) or batch.prepare_id in self._rules.journal.operations
            try:
                payload = b"" if was_there or self._rules.primary is None else encode()
            except VecClusterError as error:
                answer.set_exception(error)
                return
            applied = Seq(before.last_seq) if before else None
            yield Order(
                batch.prepare_id,
                1,
                payload,
                level,
                applied,
                then=lambda error: self._prepared(batch, answer, error, was_there),
            )

    def _prepared(
        self, batch: Batch, answer: "Future[Standing]", error: BaseException | None, was_there: bool
    ) -> Iterator[Command]:
        """What was in the log before this request may have been decided since by somebody else (15)."""
        if error or not was_there:
            yield from self._say(batch, answer, error)
        else:
            yield from self.confirm(lambda e: self._say(batch, answer, e))

    def _say(self, batch: Batch, answer: "Future[Standing]", error: BaseException | None) -> Iterator[Command]:
        """How it stands; that there is no verdict counts only if nothing went wrong."""
        standing = self._rows.standing(batch)
        if answer.done():
            return
        if standing and (standing.verdict or not error):
            answer.set_result(standing)
        else:
            answer.set_exception(error or Unavailable(f"shard {self._shard}: the batch is not prepared here"))
        yield from ()

    def settle(self, settling: Settling) -> Iterator[Command]:
        """Answer once the shard has applied what was decided, and so many replicas have it as the level asks."""
        batch, future = settling.batch, settling.future
        if future.done():
            return
        if not self._is_serving:
            future.set_exception(NotPrimary(f"shard {self._shard}: this replica is not the shard's primary"))
            return
        before, standing = self._rows.result_of(batch.decide_id), self._rows.standing(batch)
        if before or batch.decide_id in self._rules.journal.operations:
            applied = Seq(before.last_seq) if before else None
            yield Order(batch.decide_id, 1, b"", settling.level, applied, waiter=future)
        elif standing and standing.verdict:
            future.set_result(Written(standing.at, standing.at, 0, 0, replayed=True))
        else:
            self._settling.append(settling)

    def _settle_all(self) -> Iterator[Command]:
        waiting, self._settling = self._settling, []
        for settling in waiting:
            yield from self.settle(settling)

    def end(self, error: Exception) -> None:
        """Answer whoever waits; nothing more is done."""
        waiting: list[Future[Written] | Future[Standing]] = [s.future for s in self._settling]
        waiting += self._answers
        self._settling = []
        for future in waiting:
            if not future.done():
                future.set_exception(error)
