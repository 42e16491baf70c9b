"""One replica of one shard: the whole of storage as the node sees it."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np

from veccluster import failpoints
from veccluster.decisions.filters import Filter
from veccluster.decisions.integrity import Digest
from veccluster.decisions.replication import atomic
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.decisions.replication.values import Member, Position
from veccluster.errors import InvalidRequest, StorageCorrupt, Unavailable, VecClusterError
from veccluster.model.state import ReadConsistency, Seq, WriteConsistency
from veccluster_node.engine.distance import unusable
from veccluster_node.engine.search import Hit, Query, Reader, Results, Rows, Stored, Total
from veccluster_node.engine.stopping import NEVER, Stop
from veccluster_node.replica import scrub as scrubs
from veccluster_node.replica.builder import Builder
from veccluster_node.replica.disk import LocalRows, ReplicaDisk
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.inspection import Inspection, inspect
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.maintenance import Maintenance
from veccluster_node.replica.participant import Settling
from veccluster_node.replica.pool import LoopPool
from veccluster_node.replica.ports import Ports, Reading, Standing, Surroundings
from veccluster_node.replica.recovery import ROWS, Recovered, recover
from veccluster_node.replica.settings import ReplicaSpec, ReplicaStats, StorageSettings
from veccluster_node.replica.writes import PrepareRequest, Write
from veccluster_node.runtime.files import make_directory, reason
from veccluster_node.wal.operations import Delete, DeleteWhere, Looked, Op, Prepare, Upsert, Written, encode_content

__all__ = [
    "Delete",
    "DeleteWhere",
    "Hit",
    "Op",
    "Query",
    "Replica",
    "ReplicaSpec",
    "ReplicaStats",
    "Results",
    "StorageSettings",
    "Stored",
    "Upsert",
    "Written",
]


_T = TypeVar("_T")


class Replica:
    """Use `Replica.open`. Every method may be called from any thread; all but `write` block."""

    def __init__(
        self,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings,
        recovered: Recovered,
        maintenance: Maintenance,
        lock: int,
        me: Member,
        surroundings: Surroundings,
        pool: LoopPool,
    ) -> None:
        self.path = path
        self.spec = spec
        self._lock = lock
        self._recovered = recovered
        self._reads = count()
        self._closing = False
        self._scrub_turn = threading.Lock()
        self._scrub_change = threading.Lock()
        self._scrubbing = threading.Event()
        self._ended = threading.Event()
        disk = ReplicaDisk(path, recovered.log, settings)
        rows = LocalRows(recovered.records, recovered.feed)
        self._loop = ReplicaLoop(
            spec.shard,
            Rules(me, recovered.found),
            ReplicaHealth.of(spec.shard, recovered.broken, recovered.damaged),
            Ports(disk, rows, surroundings, surroundings, pool, surroundings.beats),
            settings,
            schedule=pool.schedule,
            applied=lambda: self._builder.changed(),
            ended=self._ended.set,
        )
        self._reader = Reader(
            path / ROWS,
            recovered.feed,
            dimension=spec.dimension,
            metric=spec.metric,
            index=spec.index,
            scan_rows=settings.scan_rows,
        )
        self._builder = Builder(path, spec, settings, self._loop, disk, recovered, maintenance)

    @classmethod
    def open(
        cls,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings | None = None,
        *,
        maintenance: Maintenance,
        me: Member,
        surroundings: Surroundings,
        pool: LoopPool,
    ) -> "Replica":
        """Open the shard in directory `path` after whatever happened to it, or make an empty one.

        It does nothing before it is shown its configuration (`feed(Seen)`).

        `Unavailable` when it is open already; `StorageCorrupt` when a newer version wrote it. Any other damage opens
        it, healed or read-only; `read_only` and `issues` say what a person should know of it.
        """
        failpoints.hit("replica.opening")
        settings = settings or StorageSettings()
        try:
            make_directory(path)
            lock = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_open(spec, error) from error
        try:
            _lock(lock, settings.lock_timeout)
            return cls(path, spec, settings, recover(path, spec, settings), maintenance, lock, me, surroundings, pool)
        except BlockingIOError as error:
            os.close(lock)
            raise Unavailable(f"shard {spec.shard} is open in another process ({path})") from error
        except (OSError, sqlite3.OperationalError) as error:  # what is damage was named before
            os.close(lock)
            raise _cannot_open(spec, error) from error
        except BaseException:
            os.close(lock)
            raise

    @property
    def applied_seq(self) -> int:
        """The state that reads see, at least."""
        return self._recovered.records.applied_seq

    @property
    def live(self) -> int:
        """How many vectors there are."""
        return self._recovered.records.live

    @property
    def failure(self) -> VecClusterError | None:
        """Why it takes no more writes although it did when it was opened; opening it again may mend that."""
        return None if self._recovered.broken else self._loop.health.failure

    @property
    def damaged(self) -> str | None:
        """Why this copy may lack what was acknowledged: where there are others, it should begin anew."""
        return self._loop.health.divergent

    @property
    def staged(self) -> bool:
        """Whether another replica's snapshot lies ready: opening the replica again puts it in its place."""
        return self._loop.health.staged

    @property
    def standing(self) -> Standing:
        """Where it stood a moment ago."""
        return self._loop.standing

    @property
    def rests(self) -> bool:
        """Whether it needs no ticks until something happens."""
        return self._loop.rests

    @property
    def read_only(self) -> str | None:
        """Why it takes no writes, if it takes none."""
        if self._recovered.broken:
            return self._recovered.broken
        failure = self._loop.health.failure
        return failure.detail if failure else None

    @property
    def issues(self) -> tuple[str, ...]:
        """What else a person should know, in sentences, each once."""
        return self._issues()

    def feed(self, event: on.Event) -> None:
        """Tell it what happened; returns at once."""
        self._loop.feed(event)

    def write(
        self,
        ops: Sequence[Op] | DeleteWhere,
        *,
        op_id: str,
        time_ns: int,
        level: WriteConsistency = WriteConsistency.one,
    ) -> Future[Written]:
        """Queue a batch; the future resolves when it cannot be lost and is visible to every later read here.

        All or nothing. The same `op_id` again gives the first result and does nothing. Errors of the future:
        `InvalidRequest` (a vector that cannot be stored), `InsufficientStorage`, `NotPrimary`, `TooFewReplicas`,
        `Unavailable` (a disk that failed): nothing was stored; `StorageCorrupt`: the shard is read-only;
        `OutcomeUnknown`: it may show.
        """
        size = 0 if isinstance(ops, DeleteWhere) else sum(_size(op) for op in ops)
        write = Write(ops, op_id, time_ns, level, size)
        self._order(ops, write, write.future)
        return write.future

    def prepare(
        self,
        batch: atomic.Batch,
        participants: Sequence[int],
        ops: Sequence[Op],
        *,
        time_ns: int,
        level: WriteConsistency = WriteConsistency.one,
    ) -> Future[atomic.Standing]:
        """Queue this shard's part of a batch over several shards (15): how the operation stands here once it cannot be
        lost, in this attempt or a later one. Nothing of it is visible before `know` tells that it is decided.

        Errors of the future are those of `write`, after any of which but `InvalidRequest` it may be prepared.
        """
        prepare = Prepare(batch.operation, batch.attempt, tuple(participants), len(ops), encode_content(ops))
        request = PrepareRequest(prepare, time_ns, level, len(prepare.content))
        self._order(ops, request, request.future)
        return request.future

    def _order(self, ops: Sequence[Op] | DeleteWhere, item: Write | PrepareRequest, future: "Future[_T]") -> None:
        try:
            self._check(ops)
            self._loop.put(item, bounded=True)
            future.add_done_callback(lambda _: self._loop.mailbox.release(item.size))
        except VecClusterError as error:
            future.set_exception(error)

    def _check(self, ops: Sequence[Op] | DeleteWhere) -> None:
        """The last gate before the log: nothing that a build could choke on gets in."""
        if isinstance(ops, DeleteWhere):
            return
        if not ops:
            raise InvalidRequest("a batch must hold at least one operation")
        upserts = [op for op in ops if isinstance(op, Upsert)]
        wrong = [op.id for op in upserts if len(op.vector) != 4 * self.spec.dimension]
        if not wrong and upserts:
            vectors = np.frombuffer(b"".join(op.vector for op in upserts), "<f4").reshape(len(upserts), -1)
            wrong = [op.id for op, bad in zip(upserts, unusable(self.spec.metric, vectors), strict=True) if bad]
        if wrong:
            reason = f"must be {self.spec.dimension} finite numbers, of a length that {self.spec.metric} can measure"
            errors = [{"field": "vector", "id": i, "reason": reason} for i in wrong]
            raise InvalidRequest(f"{len(wrong)} vectors cannot be stored", errors)

    def settle(self, batch: atomic.Batch, level: WriteConsistency = WriteConsistency.one) -> Future[Written]:
        """Wait until what was decided about a batch is applied here, and cannot be lost; `NotPrimary` otherwise."""
        settling = Settling(batch, level)
        self._loop.settle(settling)
        return settling.future

    def know(self, known: Known) -> None:
        """Tell it what etcd says of batches over several shards; returns at once."""
        self._loop.learn(known)

    def showing(self) -> atomic.Showing:
        """What is applied of batches over several shards."""
        with self._noticing_damage(), self._reader.snapshot() as snapshot:
            return snapshot.showing()

    def may_read(self, level: ReadConsistency, at_least: Seq, patience: float) -> Future[Position]:
        """Wait for leave to read at a level, at most `patience` seconds for `at_least` to be applied (rule 13).

        The result is the position that whatever is read from now on shows, at least. `NotPrimary`, `ReplicaBehind`: ask
        another replica. `quorum` is asked for as `session`, with what the others said.
        """
        reading = Reading(f"read-{next(self._reads)}", level, at_least, time.monotonic() + patience)
        self._loop.may_read(reading)
        return reading.future

    def durable(self) -> Future[Position]:
        """The last durable operation, as it is once all that came before this call has been handled."""
        return self._loop.call(lambda: self._loop.rules.journal.position)

    def inspect(self) -> Future[Inspection]:
        """How far it has come, and whether it can be used."""
        return self._loop.call(lambda: inspect(self._recovered, self._loop))

    def forget(self, request: str) -> None:
        """Nobody waits any more for the write with this operation id."""
        self._loop.feed(on.Forget(request))

    def search(self, query: Query, stop: Stop = NEVER) -> Results:
        """The k nearest of each query vector, all from one state, which the results name.

        As every read: `ShardsUnavailable` once the replica was closed, `Abandoned` soon after `stop` was told.
        """
        with self._noticing_damage():
            return self._reader.search(query, stop)

    def get(self, ids: Sequence[str], stop: Stop = NEVER) -> Rows[Stored | None]:
        """What is stored under each id, all from one state; None for what is not there."""
        with self._noticing_damage():
            return self._reader.get(ids, stop)

    def list_ids(self, after: str | None, limit: int, filter_: Filter | None = None, stop: Stop = NEVER) -> Rows[str]:
        """At most `limit` ids beyond `after`, in the order of their UTF-8 bytes."""
        with self._noticing_damage():
            return self._reader.list_ids(after, limit, filter_, stop)

    def count(self, filter_: Filter | None = None, stop: Stop = NEVER) -> Total:
        """How many vectors there are, or how many a filter matches."""
        with self._noticing_damage():
            return self._reader.count(filter_, stop)

    def look(self, filter_: Filter, stop: Stop = NEVER) -> Looked:
        """What a filter matches: so that a delete of it does not keep the writer's thread, and all writes, waiting."""
        with self._noticing_damage():
            return self._reader.look(filter_, stop)

    @contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        """A row that cannot be right ends writing, and opening the shard again heals it; other reads go on."""
        try:
            yield
        except StorageCorrupt as error:
            self._fail(error)
            raise

    def _fail(self, error: VecClusterError) -> None:
        """Take part in nothing more until the shard is opened again; from any thread."""
        self._loop.call(lambda: self._loop.fail(error))

    def digests(self) -> Future[dict[Seq, Digest]]:
        """What the rows are by their running digests: now, and as was noted (decisions/integrity.py)."""
        records = self._recovered.records
        return self._loop.call(lambda: records.digests.notes(records.applied_seq))

    def condemn(self, why: str) -> None:
        """Others say that the rows here are wrong: where there are others, begin anew."""
        self._loop.call(lambda: self._loop.diverge(why))

    def scrub(
        self, rate: float, *, rows_only: bool = False, read: Callable[[int], None] = lambda _: None
    ) -> dict[str, str]:
        """Read what is on the disk, at most `rate` bytes a second, and see to it that what is damaged is mended.

        The result names what was found (`rows`, `log`, `generation`) and says how it is damaged. `Stopped`: it is
        being closed, or somebody else has begun to look. `read` is told of the bytes.
        """
        stopped = self._end_scrub()
        with self._scrub_turn:
            if self._closing:
                raise scrubs.Stopped("the shard is being closed")
            return dict(self._scrub(scrubs.Pace(rate, stopped, read), rows_only=rows_only))

    def _end_scrub(self) -> threading.Event:
        """Have the look at the disk end that is under way or waits; what ends the next one."""
        with self._scrub_change:
            before, mine = self._scrubbing, threading.Event()
            self._scrubbing = mine
        before.set()
        return mine

    def _scrub(self, pace: scrubs.Pace, *, rows_only: bool) -> Iterator[tuple[str, str]]:
        feed, log = self._recovered.feed, self._recovered.log
        if self.failure or self._recovered.broken:
            return  # its damage is known
        try:
            scrubs.rows(self.path / ROWS, pace)
        except StorageCorrupt as error:
            self._fail(error)
            yield "rows", error.detail
            return  # it is about to be opened again
        for slot in [] if rows_only else feed.slots[:]:
            try:
                if not slot.damaged:
                    scrubs.generation(self.path / "generations" / slot.name, pace)
            except StorageCorrupt as error:
                if slot in feed.slots:
                    said = f"Shard {self.spec.shard}: {error.detail}; it is being rebuilt from the rows"
                    self._recovered.mending.append(said)
                    self._builder.mend(slot.name)
                    yield "generation", error.detail
        try:
            if not rows_only:
                scrubs.log(log, pace)
        except StorageCorrupt as error:
            detail = error.detail
            self._loop.call(lambda: self._loop.log_damaged(detail))
            yield "log", error.detail

    def build(self, timeout: float | None = None) -> bool:
        """Bring everything into generations now; False when that was not done, within `timeout` seconds or at all."""
        done = self._builder.force().wait(timeout)
        trouble = self._loop.health.failure or self._builder.problem or self._builder.waits
        return done and trouble is None

    def stats(self) -> ReplicaStats:
        """How it fares."""
        feed, log, records = self._recovered.feed, self._recovered.log, self._recovered.records
        dead = feed.tail_dead + sum(slot.dead for slot in feed.slots)
        return ReplicaStats(
            live=records.live,
            dead=dead,
            tail=len(feed.tail),
            generations=len(feed.slots),
            applied_seq=records.applied_seq,
            durable_seq=log.durable_seq,
            log_bytes=log.size,
            disk_bytes=self._builder.size.bytes,
            memory_bytes=feed.memory(),
            building=self._builder.building,
            read_only=self.read_only,
            issues=self._issues(),
        )

    def _issues(self) -> tuple[str, ...]:
        """What a person should know, each once; what was rebuilt since is no longer one."""
        damaged = any(slot.damaged for slot in self._recovered.feed.slots)
        said = [*self._recovered.issues, *(self._recovered.mending if damaged else ())]
        said += [why for why in (self._builder.problem, self._builder.waits) if why]
        return tuple(dict.fromkeys(said))

    def close(self) -> None:
        """Finish what is queued, give up what is being built, and let go of every file."""
        self._closing = True
        self._end_scrub()
        with self._scrub_turn:
            self._builder.close()
        self._loop.close()
        self._ended.wait()
        self._reader.close()
        self._recovered.records.close()
        self._recovered.log.close()
        os.close(self._lock)


def _size(op: Op) -> int:
    return 64 + len(op.id) + (len(op.vector) + len(op.metadata) if isinstance(op, Upsert) else 0)


def _cannot_open(spec: ReplicaSpec, error: OSError | sqlite3.OperationalError) -> Unavailable:
    return Unavailable(f"shard {spec.shard} cannot be opened now: {reason(error)}")


def _lock(fd: int, timeout: float) -> None:
    """Lock an opened file, or raise BlockingIOError; a process that was just killed may take a moment to let go."""
    until = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)
