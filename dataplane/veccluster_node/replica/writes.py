"""Writes on their way: what is ordered when, what is refused before that, and who waits for which answer.

A delete by filter is put into the log as the ids that it deletes, so it must see all that is before it in the log; what
comes after it waits with it, in order.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from veccluster import failpoints
from veccluster.decisions import repetitions
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Standing
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.decisions.replication.values import Position
from veccluster.errors import (
    InsufficientStorage,
    NotPrimary,
    OperationForgotten,
    OutcomeUnknown,
    TooFewReplicas,
    VecClusterError,
)
from veccluster.model.state import Seq, ShardId, WriteConsistency
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.ports import ReplicaLog, Rows
from veccluster_node.replica.settings import StorageSettings
from veccluster_node.wal.operations import (
    Delete,
    DeleteWhere,
    LoggedOp,
    Nothing,
    Prepare,
    Upsert,
    Written,
    check_size,
    encode_batch,
    in_parts,
    part_id,
)

IN_THE_LOG = "the write is in the log; it shows when the shard is opened again"


@dataclass(slots=True, eq=False)
class Write:
    """A client's batch for this shard."""

    ops: Sequence[LoggedOp] | DeleteWhere
    op_id: str
    time_ns: int
    level: WriteConsistency
    size: int
    future: Future[Written] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class PrepareRequest:
    """This shard's part of a cross-shard transaction, to be prepared."""

    ops: Prepare
    time_ns: int
    level: WriteConsistency
    size: int
    future: Future[Standing] = field(default_factory=Future)


class Writes:
    """Belongs to one loop, which tells the rules the events that are returned."""

    def __init__(
        self,
        shard: ShardId,
        rules: Rules,
        health: ReplicaHealth,
        log: ReplicaLog,
        rows: Rows,
        settings: StorageSettings,
    ) -> None:
        self._shard = shard
        self._settings = settings
        self._rules = rules
        self._health = health
        self._log = log
        self._rows = rows
        self._held: deque[Write | PrepareRequest] = deque()
        self._waiting: dict[str, list[Future[Written]]] = {}
        self._in_parts: set[str] = set()
        """Operations under way that are several records."""
        self._results: dict[Seq, Written] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits for an answer, or anything is held."""
        return bool(self._held or self._waiting)

    # -- ordering

    def hold(self, item: Write | PrepareRequest) -> None:
        """Take an item, to be ordered after those before it."""
        self._held.append(item)

    def next(self) -> Write | PrepareRequest | None:
        """The next item that can be ordered now."""
        while self._held and not (isinstance(self._held[0].ops, DeleteWhere) and self._is_ahead()):
            item = self._held.popleft()
            if not item.future.done():
                return item
        return None

    def _is_ahead(self) -> bool:
        """Whether this primary's log holds operations that are not applied yet."""
        is_serving = self._rules.primary is not None and self._health.failure is None
        return is_serving and self._rows.applied_seq < self._rules.journal.last

    def order(self, write: Write) -> Generator[on.Event, None, None]:
        """Ask the rules for a place in the log; what speaks against it before that is told at once."""
        try:
            self._health.raise_failure()
            before = self._rows.result_of(write.op_id)
            if before or write.op_id in self._rules.journal.operations or self._rules.primary is None:
                payload, count = b"", 1  # ordered before, or about to be refused: nothing of this will be stored
            else:
                self._refuse_forgotten(write.op_id, write.time_ns)
                ops = (
                    (yield from self._last_part(write, write.ops)) if isinstance(write.ops, DeleteWhere) else write.ops
                )
                payload, count = self._payload(write, ops), len(ops)
        except VecClusterError as error:
            write.future.set_exception(error)
            return
        self.wait(write.op_id, write.future)
        applied = Seq(before.last_seq) if before else None
        yield on.Write(write.op_id, count, payload, write.level, applied)

    def _payload(self, write: Write, ops: Sequence[LoggedOp]) -> bytes:
        if self._log.is_full():
            if any(isinstance(op, Upsert) for op in ops):
                raise self._no_room()
            self._log.make_room()
        return self._encoded(repetitions.noted(write.op_id, write.time_ns), write.op_id, ops)

    def _encoded(self, time_ns: int, op_id: str, ops: Sequence[LoggedOp]) -> bytes:
        """The one way into the log for what clients ask."""
        payload = encode_batch(time_ns, op_id, ops)
        check_size(len(payload), self._settings.record_bytes)
        return payload

    def _last_part(self, write: Write, where: DeleteWhere) -> Generator[on.Event, None, Sequence[LoggedOp]]:
        """What is left to do of a delete by filter when all of its records but the last are in the log.

        A record is never larger than others can take. The names of those before the last are used once: what matches
        is looked for anew when a repetition does not find the last one.
        """
        journal = self._rules.journal
        ids = self._rows.ids_matching(where.filter, where.looked)
        *parts, last = list(in_parts(ids, self._settings.delete_bytes)) or [[]]
        if parts and self._log.is_full():
            self._log.make_room()
        began = journal.last
        for some in parts:
            at, op_id = journal.last, part_id(write.op_id, journal.last)
            time_ns = repetitions.noted(write.op_id, write.time_ns)
            payload = self._encoded(time_ns, op_id, [Delete(i) for i in some])
            yield on.Write(op_id, len(some), payload, write.level)
            failpoints.hit("writer.part")
            if self._health.failure or journal.last == at:
                break
        else:
            if parts:
                self._in_parts.add(write.op_id)
            return [Delete(i) for i in last] or [Nothing()]
        if journal.last > began or self._health.failure:
            raise OutcomeUnknown(f"shard {self._shard}: only a part of what matches was ordered; ask again")
        return [Nothing()]  # the rules refuse this one too

    def encode_prepare(self, request: PrepareRequest) -> bytes:
        """The record that prepares a transaction; raises what speaks against taking anything on."""
        self._health.raise_failure()
        if self._log.is_full():
            raise self._no_room()
        self._refuse_forgotten(request.ops.operation, request.time_ns)
        time_ns = repetitions.noted(request.ops.operation, request.time_ns)
        return self._encoded(time_ns, request.ops.batch.prepare_id, (request.ops,))

    def _refuse_forgotten(self, operation: str, now: int) -> None:
        """Take on nothing that may have been carried out before and is not remembered any more (14)."""
        if repetitions.is_forgotten(operation, self._rows.known_since(now)):
            raise OperationForgotten(
                f"shard {self._shard}: the operation id was made before what is remembered here; this request did "
                "nothing, and nobody knows what became of earlier ones: look, and use a new id (or a clock is wrong)"
            )

    def _no_room(self) -> InsufficientStorage:
        return InsufficientStorage(f"the disk is {self._settings.full_at:.0%} full; deletes and reads go on")

    # -- answers

    def wait(self, op_id: str, future: Future[Written]) -> None:
        """Answer this future when it is known what became of the operation."""
        self._waiting.setdefault(op_id, []).append(future)

    def forget(self, op_id: str) -> None:
        """Nobody waits any more."""
        self._waiting.pop(op_id, None)

    def applied(self, results: Sequence[Written]) -> None:
        """Note what became of operations, for those who are about to be told."""
        if self._waiting:
            self._results |= {Seq(w.last_seq): w for w in results}

    def end_event(self) -> None:
        """What was noted has been told."""
        self._results.clear()

    def acknowledge(self, op_id: str, position: Position) -> None:
        """The operation cannot be lost, and is applied."""
        if op_id in self._waiting:
            if op_id in self._in_parts and (whole := self._rows.result_of(op_id)):
                self._results[position.seq] = replace(whole, replayed=False)
            result = self._results.get(position.seq) or self._rows.result_of(op_id)
            known = result and replace(result, epoch=position.epoch)
            self.resolve(op_id, known or OutcomeUnknown(IN_THE_LOG))

    def refuse(self, op_id: str, why: Why) -> None:
        """Nothing was stored."""
        self.resolve(op_id, self._refusal(why))

    def uncertain(self, op_id: str, why: object) -> None:
        """Nobody knows."""
        self.resolve(op_id, OutcomeUnknown(f"shard {self._shard}: {why}; the write may show or not"))

    def resolve(self, op_id: str, outcome: Written | VecClusterError) -> None:
        """Answer whoever waits for this operation."""
        self._in_parts.discard(op_id)
        for future in self._waiting.pop(op_id, []):
            if future.done():
                continue
            if isinstance(outcome, VecClusterError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
                outcome = replace(outcome, replayed=True)

    def _refusal(self, why: Why) -> VecClusterError:
        if why is Why.too_few_copies:
            configuration = self._rules.configuration
            count = len(configuration.in_sync) if configuration else 0
            return TooFewReplicas(f"shard {self._shard}: {why} ({count} in sync); nothing was stored")
        failure = self._health.failure
        return failure if why is Why.disk and failure else NotPrimary(f"shard {self._shard}: {why}")

    def fail_applying(self) -> None:
        """What is committed could not be applied."""
        for op_id in list(self._waiting):
            self.resolve(op_id, OutcomeUnknown(IN_THE_LOG))

    def give_up(self, error: VecClusterError, asked: Sequence[Write | PrepareRequest] = ()) -> None:
        """Answer everyone: what was not ordered is not stored, of the rest nobody knows."""
        unknown = OutcomeUnknown(f"{error.detail}; the write may show or not")
        for op_id in list(self._waiting):
            self.resolve(op_id, unknown)
        waiting: list[Future[Any]] = [item.future for item in (*self._held, *asked)]
        self._held.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(unknown)
