"""The one thread of a shard's replica: whatever waits goes together, and is durable with one sync of the disk.

Writes, reads that need leave, messages of other replicas and calls of the builder stand in one queue. A write is
ordered by the rules (`conductor`), and answered when it cannot be lost and is applied to the rows.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import structlog

from veccluster import failpoints
from veccluster.decisions import repetitions
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Standing
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.messages import Replicate
from veccluster.decisions.replication.values import Member, Position
from veccluster.errors import (
    InsufficientStorage,
    InvalidRequest,
    OperationForgotten,
    OutcomeUnknown,
    Unavailable,
    VecClusterError,
)
from veccluster.model.state import Seq, WriteConsistency
from veccluster_node.engine.distance import unusable
from veccluster_node.replica.conductor import Conductor
from veccluster_node.replica.deciding import Settling
from veccluster_node.replica.recovery import Recovered
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.replica.surroundings import Reading, Surroundings
from veccluster_node.runtime.files import disk_usage, reason
from veccluster_node.wal.operations import (
    Delete,
    DeleteWhere,
    LoggedOp,
    Nothing,
    Op,
    Prepare,
    Upsert,
    Written,
    check_size,
    encode_batch,
    in_parts,
    part_id,
)

SAY_EVERY = 10.0
"""Seconds between two complaints about records that find no room."""
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Write:
    ops: Sequence[LoggedOp] | DeleteWhere
    op_id: str
    time_ns: int
    level: WriteConsistency
    size: int
    future: Future[Written] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Preparing:
    ops: Prepare
    time_ns: int
    level: WriteConsistency
    size: int
    future: Future[Standing] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Call(Generic[_T]):
    function: Callable[[], _T]
    future: Future[_T] = field(default_factory=Future)
    size: int = 0
    is_hasty: bool = False
    """It need not see what was queued before it."""

    def run(self) -> None:
        try:
            self.future.set_result(self.function())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Event:
    event: on.Event
    size: int = 0


_Item = _Write | _Preparing | _Call[object] | _Event | Reading


class Writer:
    """Owns the log, the rows and the feed of a replica while it is open."""

    def __init__(
        self,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings,
        recovered: Recovered,
        surroundings: Surroundings,
        me: Member,
        *,
        applied: Callable[[], None] = lambda: None,
    ) -> None:
        """`applied` is called, in the writer's thread, after each group that was applied."""
        self._conductor = Conductor(path, spec, settings, recovered, surroundings, me, applied=applied)
        self._path = path
        self._spec = spec
        self._settings = settings
        self._surroundings = surroundings
        self._reserve = path / "reserve"
        self._queue: deque[_Item] = deque()
        self._pending = 0
        """Bytes of writes and messages that are queued or have no answer yet."""
        self._held: deque[_Write | _Preparing] = deque()
        """Writes that wait until a `DeleteWhere` before them can see what it deletes."""
        self._full = False
        self._changed = threading.Condition()
        self._closing = False
        self._synced = 0.0
        self._dropped = -SAY_EVERY
        """When it was last said that records from the primary found no room."""
        self._conductor.make_room = self._make_room
        self._thread = threading.Thread(target=self._run, name=f"writer-{spec.shard}", daemon=True)
        self._keep_reserve()
        self._thread.start()

    @property
    def state(self) -> Conductor:
        """What the thread works on; its attributes are for reading."""
        return self._conductor

    # -- from any thread

    def write(
        self, ops: Sequence[Op] | DeleteWhere, *, op_id: str, time_ns: int, level: WriteConsistency
    ) -> Future[Written]:
        """Queue a batch; see `Replica.write`."""
        size = 0 if isinstance(ops, DeleteWhere) else sum(_size(op) for op in ops)
        write = _Write(ops, op_id, time_ns, level, size)
        try:
            self._check(ops)
            self._put(write, bounded=True)
            write.future.add_done_callback(lambda _: self._release(size))
        except VecClusterError as error:
            write.future.set_exception(error)
        return write.future

    def prepare(
        self, prepare: Prepare, ops: Sequence[Op], *, time_ns: int, level: WriteConsistency
    ) -> Future[Standing]:
        """Queue a shard's part of a batch; see `Replica.prepare`."""
        size = len(prepare.content)
        preparing = _Preparing(prepare, time_ns, level, size)
        try:
            self._check(ops)
            self._put(preparing, bounded=True)
            preparing.future.add_done_callback(lambda _: self._release(size))
        except VecClusterError as error:
            preparing.future.set_exception(error)
        return preparing.future

    def settle(self, settling: Settling) -> None:
        """Queue a request for the outcome of a batch; see `Replica.settle`."""
        self._hasten(lambda: self._conductor.deciding.settle(settling), settling.future)

    def know(self, known: Known) -> None:
        """Tell what etcd says of batches over several shards."""
        self._hasten(lambda: self._conductor.deciding.know(known), Future())

    def _hasten(self, function: Callable[[], None], future: "Future[_T]") -> None:
        try:
            self._put(_Call(function, is_hasty=True), bounded=False)
        except Unavailable as error:
            future.set_exception(error)

    def feed(self, event: on.Event) -> None:
        """Queue an event; a message that finds the queue full is lost, and will be sent again."""
        size = 0
        if isinstance(event, on.Received) and isinstance(event.message, Replicate):
            size = sum(len(r.payload) for r in event.message.records)
        try:
            self._put(_Event(event, size), bounded=bool(size))
        except Unavailable as error:
            if size and not self._closing:
                self._say_dropped(size, error)

    def _say_dropped(self, size: int, why: Unavailable) -> None:
        now = time.monotonic()
        if now >= self._dropped + SAY_EVERY:
            self._dropped = now
            _log.warning("records_dropped", shard=str(self._spec.shard), bytes=size, reason=why.detail)

    def read(self, reading: Reading) -> Future[Position]:
        """Queue a request for leave to read."""
        try:
            self._put(reading, bounded=False)
        except Unavailable as error:
            reading.future.set_exception(error)
        return reading.future

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run something in the writer's thread, behind what is queued."""
        call = _Call(function)
        try:
            self._put(call, bounded=False)  # type: ignore[arg-type]  # a call's result is the business of whoever made it
        except VecClusterError as error:
            call.future.set_exception(error)
        return call.future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _put(self, item: _Item, *, bounded: bool) -> None:
        size = 0 if isinstance(item, Reading) else item.size
        with self._changed:
            if self._closing:
                raise Unavailable("the shard is being closed")
            # A single one is always taken, however large: it would never find more room.
            if bounded and self._pending and self._pending + size > self._settings.queue_bytes:
                raise Unavailable(f"{self._pending} bytes of writes are waiting already")
            self._queue.append(item)
            self._pending += size
            self._changed.notify()

    def _release(self, size: int) -> None:
        with self._changed:
            self._pending -= size

    def _check(self, ops: Sequence[Op] | DeleteWhere) -> None:
        """The last gate before the log: nothing that a build could choke on gets in."""
        if isinstance(ops, DeleteWhere):
            return
        if not ops:
            raise InvalidRequest("a batch must hold at least one operation")
        upserts = [op for op in ops if isinstance(op, Upsert)]
        wrong = [op.id for op in upserts if len(op.vector) != 4 * self._spec.dimension]
        if not wrong and upserts:
            vectors = np.frombuffer(b"".join(op.vector for op in upserts), "<f4").reshape(len(upserts), -1)
            wrong = [op.id for op, bad in zip(upserts, unusable(self._spec.metric, vectors), strict=True) if bad]
        if wrong:
            reason = f"must be {self._spec.dimension} finite numbers, of a length that {self._spec.metric} can measure"
            errors = [{"field": "vector", "id": i, "reason": reason} for i in wrong]
            raise InvalidRequest(f"{len(wrong)} vectors cannot be stored", errors)

    # -- in the writer's thread

    def poison(self, error: VecClusterError) -> None:
        """Take part in nothing more until the shard is opened again, from any thread."""
        self.call(lambda: self._conductor.poison(error))

    def condemn(self, why: str) -> None:
        """Let the node begin this copy anew, from any thread: others say that its rows are wrong."""
        self.call(lambda: self._conductor.condemn(why))

    def log_damaged(self, why: str) -> None:
        """The log can no longer be read, from any thread."""
        self.call(lambda: self._conductor.log_damaged(why))

    def trim(self, through: int) -> None:
        """Forget the log's segments up to `through`, which generations hold."""
        self._conductor.log.trim(through)
        self._conductor.handle(on.Trimmed(Seq(self._conductor.log.first_seq)))

    def _run(self) -> None:
        while (group := self._take()) is not None:
            try:
                self._process(group)
                self._sync_late()
            except Exception as error:  # noqa: BLE001 - the thread must answer whoever waits
                _log.exception("writer_failed", shard=str(self._spec.shard))
                failure = Unavailable(f"writing failed: {reason(error)}; the shard must be opened again")
                self._conductor.poison(failure, error)
                self._give_up(group, failure)
            self._look()
        self._give_up((), Unavailable("the shard is being closed"))

    def _look(self) -> None:
        state = self._conductor
        before = (state.failure, state.damaged, state.staged)
        if state.look() or before != self._told:
            self._told = before
            self._surroundings.changed(self._spec.shard)

    _told: tuple[object, ...] = (None, None, False)

    def _take(self) -> list[_Item] | None:
        """Wait for work; nothing in it when it is time to sync, None to end the thread."""
        interval = self._settings.wal_sync_interval if self._settings.wal_sync == "interval" else None
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                if not self._changed.wait(interval):
                    return []
            group: list[_Item] = []
            size = 0
            while self._queue and (not group or size <= self._settings.group_bytes):
                item = self._queue.popleft()
                group.append(item)
                size += 0 if isinstance(item, Reading) else item.size
            return group

    def _sync_late(self) -> None:
        """In `interval` mode: sync, once in an interval, what is acknowledged but not durable yet."""
        due = time.monotonic() >= self._synced + self._settings.wal_sync_interval
        log = self._conductor.log
        if not due or self._conductor.failure or log.durable_seq >= log.last_seq:
            return
        try:
            log.sync()
        except VecClusterError as error:
            self._conductor.poison(error)
        self._synced = time.monotonic()

    def _process(self, group: Sequence[_Item]) -> None:
        self._full = disk_usage(self._path) >= self._settings.full_at
        for item in group:
            match item:
                case _Write() | _Preparing():
                    self._held.append(item)
                    self._admit()
                case _Call():
                    if not item.is_hasty:
                        self._conductor.flush()
                    item.run()
                case Reading():
                    self._conductor.read(item)
                case _Event(event, size):
                    self._happened(event)
                    self._release(size)
        self._conductor.flush()
        while self._conductor.deciding.go_on() or (self._held and self._admit()):
            self._conductor.flush()
        if not self._full:
            self._keep_reserve()

    def _happened(self, event: on.Event) -> None:
        match event:
            case on.Tick():
                self._conductor.tick()
            case on.Forget(request):
                self._conductor.forget(request)
            case _:
                self._conductor.handle(event)

    def _admit(self) -> bool:
        """Have writes ordered that can be; whether there were any. A `DeleteWhere` must see all that is before it."""
        before = len(self._held)
        while self._held and not (isinstance(self._held[0].ops, DeleteWhere) and self._is_ahead()):
            self._order(self._held.popleft())
        return len(self._held) < before

    def _is_ahead(self) -> bool:
        """Whether this primary's log holds operations that are not applied yet."""
        state = self._conductor
        ahead = state.records.applied_seq < state.rules.journal.last
        return ahead and state.rules.primary is not None and state.failure is None

    def _order(self, write: _Write | _Preparing) -> None:
        """Let the rules order it, or refuse it before that."""
        state = self._conductor
        if write.future.done():
            return
        if isinstance(write, _Preparing):
            try:
                state.deciding.prepare(write.ops, write.level, lambda: self._prepared(write), write.future)
            except VecClusterError as error:
                write.future.set_exception(error)
            return
        try:
            if state.failure:
                raise type(state.failure)(state.failure.detail)
            before = state.records.result_of(write.op_id)
            if before or write.op_id in state.rules.journal.operations:
                payload, count = b"", 1  # ordered before: nothing of this will be stored
            else:
                payload, count = self._payload(write)
        except VecClusterError as error:
            write.future.set_exception(error)
            return
        state.writes.setdefault(write.op_id, []).append(write.future)
        applied = Seq(before.last_seq) if before else None
        state.handle(on.Write(write.op_id, count, payload, write.level, applied))

    def _payload(self, write: _Write) -> tuple[bytes, int]:
        if self._conductor.rules.primary is None:
            return b"", 1  # the rules refuse it
        self._refuse_forgotten(write.op_id, write.time_ns)
        ops = self._last_part(write, write.ops) if isinstance(write.ops, DeleteWhere) else write.ops
        if self._full:
            if any(isinstance(op, Upsert) for op in ops):
                raise self._no_room()
            self._make_room()
        return self._encoded(repetitions.noted(write.op_id, write.time_ns), write.op_id, ops), len(ops)

    def _encoded(self, time_ns: int, op_id: str, ops: Sequence[LoggedOp]) -> bytes:
        """The one way into the log for what clients ask."""
        payload = encode_batch(time_ns, op_id, ops)
        check_size(len(payload), self._settings.record_bytes)
        return payload

    def _last_part(self, write: _Write, where: DeleteWhere) -> Sequence[LoggedOp]:
        """What is left to do of a delete by filter when all of its records but the last are in the log.

        A record is never larger than others can take. The names of those before the last are used once: what matches
        is looked for anew when a repetition does not find the last one.
        """
        state = self._conductor
        journal = state.rules.journal
        *parts, last = list(
            in_parts(state.records.ids_matching(where.filter, where.looked), self._settings.delete_bytes)
        ) or [[]]
        if parts and self._full:
            self._make_room()
        began = journal.last
        for some in parts:
            at, op_id = journal.last, part_id(write.op_id, journal.last)
            time_ns = repetitions.noted(write.op_id, write.time_ns)
            payload = self._encoded(time_ns, op_id, [Delete(i) for i in some])
            state.handle(on.Write(op_id, len(some), payload, write.level))
            failpoints.hit("writer.part")
            if state.failure or journal.last == at:
                break
        else:
            if parts:
                state.in_parts.add(write.op_id)
            return [Delete(i) for i in last] or [Nothing()]
        if journal.last > began or state.failure:
            raise OutcomeUnknown(f"shard {self._spec.shard}: only a part of what matches was ordered; ask again")
        return [Nothing()]  # the rules refuse this one too

    def _prepared(self, write: _Preparing) -> bytes:
        if self._conductor.failure:
            raise type(self._conductor.failure)(self._conductor.failure.detail)
        if self._full:
            raise self._no_room()
        self._refuse_forgotten(write.ops.operation, write.time_ns)
        time_ns = repetitions.noted(write.ops.operation, write.time_ns)
        return self._encoded(time_ns, write.ops.batch.prepare_id, (write.ops,))

    def _refuse_forgotten(self, operation: str, now: int) -> None:
        """Take on nothing that may have been carried out before and is not remembered any more (14)."""
        if repetitions.is_forgotten(operation, self._conductor.records.known_since(now)):
            raise OperationForgotten(
                f"shard {self._spec.shard}: the operation id was made before what is remembered here; this request did "
                "nothing, and nobody knows what became of earlier ones: look, and use a new id (or a clock is wrong)"
            )

    def _no_room(self) -> InsufficientStorage:
        return InsufficientStorage(f"the disk is {self._settings.full_at:.0%} full; deletes and reads go on")

    def _make_room(self) -> None:
        """So that what deletes, or what decides about what is stored already, can still be logged."""
        if self._full:
            self._reserve.unlink(missing_ok=True)

    def _give_up(self, group: Sequence[_Item], error: VecClusterError) -> None:
        """Answer whoever still waits: what was not ordered is not stored, of the rest nobody knows."""
        self._conductor.refuse_all(error)
        asked = [i for i in group if isinstance(i, _Write | _Preparing)]
        waiting: list[Future[Any]] = [w.future for w in (*self._held, *asked)]
        self._held.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(OutcomeUnknown(f"{error.detail}; the write may show or not"))

    def _keep_reserve(self) -> None:
        if self._conductor.failure or self._reserve.exists():
            return
        with suppress(OSError):
            self._reserve.write_bytes(b"\0" * self._settings.reserve)


def _size(op: Op) -> int:
    return 64 + len(op.id) + (len(op.vector) + len(op.metadata) if isinstance(op, Upsert) else 0)
