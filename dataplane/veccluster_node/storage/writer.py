"""The one thread that changes a shard: log, fsync, apply, answer; whatever waits goes together.

A batch is acknowledged when it is durable in the log and applied to the rows. The two are separate steps (`_append`,
`_apply`), since a replicated shard has to wait for its peers between them.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import structlog

from veccluster.errors import (
    InsufficientStorage,
    InvalidRequest,
    OutcomeUnknown,
    StorageCorrupt,
    Unavailable,
    VecClusterError,
)
from veccluster_node.storage import failpoints
from veccluster_node.storage.distance import unusable
from veccluster_node.storage.feed import LocalFeed
from veccluster_node.storage.files import disk_usage, is_no_space, reason
from veccluster_node.storage.log import Log
from veccluster_node.storage.operations import (
    Delete,
    DeleteWhere,
    LoggedOp,
    Nothing,
    Op,
    Record,
    Upsert,
    Written,
    encode_batch,
)
from veccluster_node.storage.records import Records
from veccluster_node.storage.settings import ReplicaSpec, StorageSettings

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

SUSPECT = "records.suspect"
"""While a file of this name is there, the rows are not trusted: opening makes them anew."""


_FULL = "the disk is full; make room, and the shard takes writes again when it has been opened anew"


@dataclass(slots=True, eq=False)
class _Write:
    ops: Sequence[LoggedOp] | DeleteWhere
    epoch: int
    op_id: str
    time_ns: int
    size: int
    future: Future[Written] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Call(Generic[_T]):
    function: Callable[[], _T]
    future: Future[_T] = field(default_factory=Future)
    size: int = 0

    def run(self) -> None:
        try:
            self.future.set_result(self.function())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
            self.future.set_exception(error)


class Writer:
    """Owns the log, the rows and the feed of a replica while it is open."""

    def __init__(
        self,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings,
        parts: tuple[Log, Records, LocalFeed],
        *,
        failure: VecClusterError | None = None,
        applied: Callable[[], None] = lambda: None,
    ) -> None:
        """`failure` opens it read-only; `applied` is called, in the writer's thread, after each group."""
        self.log, self.records, self.feed = parts
        self.failure = failure
        self._path = path
        self._spec = spec
        self._settings = settings
        self._applied = applied
        self._reserve = path / "reserve"
        self._queue: deque[_Write | _Call[object]] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._closing = False
        self._synced = 0.0
        self._thread = threading.Thread(target=self._run, name=f"writer-{spec.shard}", daemon=True)
        self._keep_reserve()
        self._thread.start()

    # -- from any thread

    def write(self, ops: Sequence[Op] | DeleteWhere, *, epoch: int, op_id: str, time_ns: int) -> Future[Written]:
        """Queue a batch; see `Replica.write`."""
        size = 0 if isinstance(ops, DeleteWhere) else sum(_size(op) for op in ops)
        write = _Write(ops, epoch, op_id, time_ns, size)
        try:
            self._check(ops)
            self._put(write)
        except VecClusterError as error:
            write.future.set_exception(error)
        return write.future

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run something in the writer's thread, behind what is queued."""
        call = _Call(function)
        try:
            self._put(call)  # type: ignore[arg-type]  # a call's result is the business of whoever made it
        except VecClusterError as error:
            call.future.set_exception(error)
        return call.future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _put(self, item: "_Write | _Call[object]") -> None:
        with self._changed:
            if self._closing:
                raise Unavailable("the shard is being closed")
            if self._queued + item.size > self._settings.queue_bytes:
                raise Unavailable(f"{self._queued} bytes of writes are waiting for the disk already")
            self._queue.append(item)
            self._queued += item.size
            self._changed.notify()

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

    def _run(self) -> None:
        while (group := self._take()) is not None:
            try:
                self._process(group)
                self._sync_late()
            except Exception as error:  # noqa: BLE001 - the thread must answer whoever waits
                _log.exception("writer_failed", shard=str(self._spec.shard))
                self.poison(Unavailable(f"writing failed: {reason(error)}; the shard must be opened again"), error)
                self._fail([w for w in group if isinstance(w, _Write)], self.failure)

    def _take(self) -> list["_Write | _Call[object]"] | None:
        """Wait for work; nothing in it when it is time to sync, None to end the thread."""
        interval = self._settings.wal_sync_interval if self._settings.wal_sync == "interval" else None
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                if not self._changed.wait(interval):
                    return []
            group: list[_Write | _Call[object]] = []
            size = 0
            while self._queue and (not group or size + self._queue[0].size <= self._settings.group_bytes):
                group.append(self._queue.popleft())
                size += group[-1].size
            self._queued -= size
            return group

    def _sync_late(self) -> None:
        """In `interval` mode: sync, once in an interval, what is acknowledged but not durable yet."""
        due = time.monotonic() >= self._synced + self._settings.wal_sync_interval
        if not due or self.failure or self.log.durable_seq >= self.log.last_seq:
            return
        try:
            self.log.sync()
        except VecClusterError as error:
            self.poison(error)
        self._synced = time.monotonic()

    def _process(self, group: Sequence["_Write | _Call[object]"]) -> None:
        ready: list[tuple[_Write, Record]] = []
        op_ids: set[str] = set()
        full = disk_usage(self._path) >= self._settings.full_at
        for item in group:
            if isinstance(item, _Call) or isinstance(item.ops, DeleteWhere) or item.op_id in op_ids:
                self._commit(ready)
                ready, op_ids = [], set()
            if isinstance(item, _Call):
                item.run()
            elif record := self._prepare(item, self._next_seq(ready), full=full):
                ready.append((item, record))
                op_ids.add(item.op_id)
        self._commit(ready)
        if not full:
            self._keep_reserve()

    def _next_seq(self, ready: Sequence[tuple[_Write, Record]]) -> int:
        return (ready[-1][1].last_seq if ready else self.log.last_seq) + 1

    def _prepare(self, write: _Write, first_seq: int, *, full: bool) -> Record | None:
        """The record to log, or None when the write has its answer already."""
        try:
            if self.failure:
                raise type(self.failure)(self.failure.detail)
            if write.epoch < self.records.epoch:
                raise Unavailable(f"epoch {write.epoch} is over; the shard is in epoch {self.records.epoch}")
            if before := self.records.result_of(write.op_id):
                write.future.set_result(before)
                return None
            ops = self._resolve(write.ops)
            if full and any(isinstance(op, Upsert) for op in ops):
                raise InsufficientStorage(f"the disk is {self._settings.full_at:.0%} full; deletes and reads go on")
        except VecClusterError as error:
            write.future.set_exception(error)
            return None
        return Record(write.epoch, first_seq, len(ops), encode_batch(write.time_ns, write.op_id, ops))

    def _resolve(self, ops: Sequence[LoggedOp] | DeleteWhere) -> Sequence[LoggedOp]:
        if not isinstance(ops, DeleteWhere):
            return ops
        return [Delete(i) for i in self.records.ids_matching(ops.filter)] or [Nothing()]

    def _commit(self, ready: list[tuple[_Write, Record]]) -> None:
        """Log, apply, answer."""
        if not ready:
            return
        try:
            self.log.append([record for _, record in ready], sync=self._settings.wal_sync == "always")
        except InsufficientStorage as error:
            self._commit_deletes(ready, error)
        except VecClusterError as error:
            self.poison(error)
            self._fail([write for write, _ in ready], error)
        else:
            self._show(ready)

    def _commit_deletes(self, ready: list[tuple[_Write, Record]], error: InsufficientStorage) -> None:
        """The disk is full: refuse upserts, and give up the reserve so that what deletes can still be logged."""
        deletes = [(w, r) for w, r in ready if not any(isinstance(op, Upsert) for op in r.batch().ops)]
        may = bool(deletes) and self._reserve.exists()
        self._fail([w for w, r in ready if not may or (w, r) not in deletes], error)
        if not may:
            return
        self._reserve.unlink()
        again: list[tuple[_Write, Record]] = []
        for write, record in deletes:
            again.append((write, replace(record, first_seq=self._next_seq(again))))
        self._commit(again)

    def _show(self, ready: Sequence[tuple[_Write, Record]]) -> None:
        """Apply what is durable, and answer."""
        writes = [write for write, _ in ready]
        try:
            results = self._apply([record for _, record in ready])
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is durable and not shown
            tell = _log.error if is_no_space(error) else _log.exception
            tell("apply_failed", shard=str(self._spec.shard), seq=ready[0][1].first_seq, detail=reason(error))
            why = error if isinstance(error, StorageCorrupt) else Unavailable(f"applying failed: {reason(error)}")
            self.poison(why, error)
            self._fail(writes, OutcomeUnknown("the write is in the log; it shows when the shard is opened again"))
            return
        for write, result in zip(writes, results, strict=True):
            write.future.set_result(result)
        self._applied()

    def _apply(self, records: Sequence[Record]) -> Sequence[Written]:
        """Apply durable records that follow what was applied before."""
        failpoints.hit("apply")
        return self.records.apply(records, self.feed.apply).results

    def poison(self, error: VecClusterError, cause: BaseException | None = None) -> None:
        """Take no more writes until the shard is opened again; reads go on from what was applied.

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

    def _is_full(self, cause: BaseException | None) -> bool:
        """Whether `cause` comes of a full disk; SQLite may say no more than "disk I/O error" then."""
        failed = isinstance(cause, sqlite3.OperationalError | OSError)
        return is_no_space(cause) or (failed and disk_usage(self._path) >= self._settings.full_at)

    @staticmethod
    def _fail(writes: Sequence[_Write], error: VecClusterError | None) -> None:
        for write in writes:
            if not write.future.done():
                write.future.set_exception(error or Unavailable("writing failed"))

    def _keep_reserve(self) -> None:
        if self.failure or self._reserve.exists():
            return
        with suppress(OSError):
            self._reserve.write_bytes(b"\0" * self._settings.reserve)


def _size(op: Op) -> int:
    return 64 + len(op.id) + (len(op.vector) + len(op.metadata) if isinstance(op, Upsert) else 0)
