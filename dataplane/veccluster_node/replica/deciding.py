"""A replica's part in batches over several shards (15): what it answers about them, and what it does as primary.

It belongs to the thread of one shard. What decides is in `decisions.replication.atomic_deciding`; nothing is done
within an event of the rules, but after it (`later`), since what an event asks for must be done in its order.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Batch, Decision, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known, due, overdue
from veccluster.decisions.replication.values import NOTHING, Position
from veccluster.errors import NotPrimary, Unavailable
from veccluster.model.state import ReadConsistency, Seq, ShardId, WriteConsistency
from veccluster_node.replica.surroundings import Reading, Surroundings
from veccluster_node.wal.operations import Decide, Prepare, Written, encode_batch

if TYPE_CHECKING:
    from veccluster_node.replica.conductor import Conductor


@dataclass(slots=True, eq=False)
class Settling:
    """Somebody waits until the shard has decided, as `level` asks."""

    batch: Batch
    level: WriteConsistency
    future: Future[Written] = field(default_factory=Future)


class Deciding:
    """Attributes are for reading; the methods are for the shard's thread."""

    def __init__(self, state: "Conductor", shard: ShardId, surroundings: Surroundings, patience: float) -> None:
        """A batch that has waited `patience` seconds for its decision is to be dropped."""
        self.known = Known()
        self._state = state
        self._shard = shard
        self._surroundings = surroundings
        self._patience = patience
        self._later: deque[Callable[[], None]] = deque()
        self._is_called = False
        self._since: dict[Batch, float] = {}
        self._doubting = False
        self._settling: list[Settling] = []
        self._answers: set[Future[Standing]] = set()
        self._numbers = count()

    # -- what happens

    def look(self) -> None:
        """Something may have changed: look again when there is time."""
        self._is_called = True

    def know(self, known: Known) -> None:
        """What etcd says of the collection's batches."""
        if known.revision >= self.known.revision:
            self.known = known
            self.look()

    def go_on(self) -> bool:
        """Do what is to be done now; whether there was anything."""
        if self._later:
            self._later.popleft()()
            return True
        called, self._is_called = self._is_called, False
        if called:
            self._attend()
        return called

    def later(self, what: Callable[[], None]) -> None:
        """Do this after the event that is being handled."""
        self._later.append(what)

    # -- a primary sees to what is prepared

    def _attend(self) -> None:
        state, ledger = self._state, self._state.records.ledger
        if state.rules.primary is None or state.failure:
            self._since = {}
            self._refuse_all()
            return
        if ledger.pending:
            for decision in list(due(ledger, Seq(state.records.applied_seq), self.known)):
                self._decide(decision)
        now = time.monotonic()
        self._since = {b: self._since.get(b, now) for b in ledger.pending}
        waited = [b for b, at in self._since.items() if now - at > self._patience]
        if waited and not self._doubting:
            self._doubt(self.known, waited)
        waiting, self._settling = self._settling, []
        for settling in waiting:
            self.settle(settling)

    def _decide(self, decision: Decision) -> None:
        """Have it in the log, at its place; what is there already is left alone."""
        batch, pending = decision.batch, self._state.records.ledger.pending[decision.batch]
        if batch.decide_id in self._state.rules.journal.operations:
            return
        number = pending.prepare.count if decision.verdict is Verdict.applied else 1
        payload = encode_batch(time.time_ns(), batch.decide_id, (Decide.of(decision),))
        self._state.make_room()
        self._state.handle(on.Write(batch.decide_id, number, payload, WriteConsistency.one))

    def _doubt(self, known: Known, waited: list[Batch]) -> None:
        """Propose to drop what has no decision, if this is the primary even now: nobody else decided then, either."""
        self._doubting = True

        def confirmed(holds: bool) -> None:
            self._doubting = False
            for decision in overdue(self._state.records.ledger, known, waited) if holds else ():
                self._since[decision.batch] = time.monotonic()
                self._surroundings.propose(self._shard, decision, known.forgotten)

        self._confirm(lambda error: confirmed(error is None))

    def _confirm(self, then: Callable[[BaseException | None], None]) -> None:
        """Whether this primary's epoch holds now, so that what it has applied is all that anybody has (13)."""
        reading = Reading(f"confirm-{next(self._numbers)}", ReadConsistency.strong, NOTHING, time.monotonic())

        def answered(future: Future[Position]) -> None:
            self.later(lambda: then(future.exception()))

        reading.future.add_done_callback(answered)
        self._state.read(reading)

    # -- what coordinators ask

    def prepare(
        self, prepare: Prepare, level: WriteConsistency, encode: Callable[[], bytes], answer: "Future[Standing]"
    ) -> None:
        """Have a batch in the log, unless the operation has gone further here, and say how it stands; `encode` raises
        what speaks against taking anything on.
        """
        state, batch = self._state, prepare.batch
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        standing = state.records.standing(batch) if state.rules.primary else None
        if standing and standing.verdict:
            answer.set_result(standing)
        elif standing:
            self._confirm(lambda error: self._say(batch, answer, error))
        else:
            before = state.records.result_of(batch.prepare_id)
            was_there = bool(before) or batch.prepare_id in state.rules.journal.operations
            payload = b"" if was_there or state.rules.primary is None else encode()
            written: Future[Written] = Future()
            state.writes.setdefault(batch.prepare_id, []).append(written)
            applied = Seq(before.last_seq) if before else None
            state.handle(on.Write(batch.prepare_id, 1, payload, level, applied))
            written.add_done_callback(lambda f: self.later(lambda: self._prepared(batch, answer, f, was_there)))

    def _prepared(self, batch: Batch, answer: "Future[Standing]", written: Future[Written], was_there: bool) -> None:
        """What was in the log before this request may have been decided since by somebody else (15)."""
        error = written.exception()
        if error or not was_there:
            self._say(batch, answer, error)
        else:
            self._confirm(lambda e: self._say(batch, answer, e))

    def _say(self, batch: Batch, answer: "Future[Standing]", error: BaseException | None) -> None:
        """How it stands; that there is no verdict counts only if nothing went wrong."""
        standing = self._state.records.standing(batch)
        if answer.done():
            return
        if standing and (standing.verdict or not error):
            answer.set_result(standing)
        else:
            answer.set_exception(error or Unavailable(f"shard {self._shard}: the batch is not prepared here"))

    def settle(self, settling: Settling) -> None:
        """Answer once the shard has applied what was decided, and so many replicas have it as the level asks."""
        state, batch, future = self._state, settling.batch, settling.future
        if future.done():
            return
        if state.rules.primary is None or state.failure:
            future.set_exception(NotPrimary(f"shard {self._shard}: this replica is not the shard's primary"))
            return
        before, standing = state.records.result_of(batch.decide_id), state.records.standing(batch)
        if before or batch.decide_id in state.rules.journal.operations:
            state.writes.setdefault(batch.decide_id, []).append(future)
            applied = Seq(before.last_seq) if before else None
            state.handle(on.Write(batch.decide_id, 1, b"", settling.level, applied))
        elif standing and standing.verdict:
            future.set_result(Written(standing.at, standing.at, 0, 0, replayed=True))
        else:
            self._settling.append(settling)

    def _refuse_all(self) -> None:
        waiting, self._settling = self._settling, []
        for settling in waiting:
            self.settle(settling)

    def end(self, error: Exception) -> None:
        """Answer whoever waits; nothing more is done."""
        waiting: list[Future[Any]] = [*(settling.future for settling in self._settling), *self._answers]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._settling, self._later = [], deque()
