"""Carry out what a replica's rules want done: on the log and the rows, towards the other replicas, and for who waits.

What the rules return for an event is done in their order; the sync that they ask for is noted (`ticket`) and done once
for a whole turn (`loop.py`). What fails, and what more can be done when something was applied, comes back as events
that are to be told to the rules before the next effect.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import structlog

from veccluster.decisions.integrity import is_noted
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.messages import Header, Replicate
from veccluster.decisions.replication.values import Position, Record
from veccluster.errors import InsufficientStorage, StorageCorrupt, Unavailable, VecClusterError
from veccluster.model.state import Seq, ShardId
from veccluster_node.replica.health import ReplicaHealth
from veccluster_node.replica.liveness import Liveness
from veccluster_node.replica.ports import Ports
from veccluster_node.replica.read_barrier import ReadBarrier
from veccluster_node.replica.writes import Writes
from veccluster_node.runtime.files import is_no_space, reason

_MESSAGE_BYTES = 4 << 20
"""Most payload in one message to a follower, unless a single record is larger."""
_APPLY_BYTES = 8 << 20
_APPLY_OPERATIONS = 4096
"""Applied in one transaction, about."""

_log = structlog.get_logger(__name__)


class Ready:
    """Belongs to one loop; attributes are for reading, `ticket` and `applied` for the loop to take."""

    def __init__(
        self,
        shard: ShardId,
        ports: Ports,
        health: ReplicaHealth,
        writes: Writes,
        reads: ReadBarrier,
        liveness: Liveness,
    ) -> None:
        self.ticket: int | None = None
        """Of the newest sync that the rules asked for."""
        self.applied = False
        """Whether anything was applied."""
        self._shard = shard
        self._ports = ports
        self._health = health
        self._writes = writes
        self._reads = reads
        self._liveness = liveness

    def carry_out(self, effect: do.Effect) -> Iterator[on.Event]:
        """Do one thing that the rules want done; yields what they are to be told of it at once."""
        match effect:
            case do.StoreEpoch() | do.Append() | do.Truncate() | do.InstallSnapshot() | do.Sync():
                yield from self._store(effect)
            case do.Apply(through, floor):
                yield from self._apply(through, floor)
            case do.SendRecords(header, after, through):
                self._send_records(header, after, through)
            case do.Send() | do.SendSnapshot() | do.Swap() | do.ReadConfiguration():
                self._communicate(effect)
            case do.BecomePrimary(epoch):
                self._liveness.begin()
                _log.info("serving", shard=str(self._shard), epoch=epoch, seq=self._ports.rows.applied_seq)
            case do.BecomeFenced(epoch):
                _log.warning("stopped_serving", shard=str(self._shard), epoch=epoch)
            case do.Diverged(why):
                self._health.diverge(why)
                _log.error("replica_diverged", shard=str(self._shard), detail=why)
            case _:
                self._answer(effect)

    # -- storing

    def _store(self, effect: do.DiskEffect) -> Iterator[on.Event]:
        if self._health.failure:
            yield from self._store_of_failed(effect)
            return
        log = self._ports.log
        match effect:
            case do.StoreEpoch(epoch):
                yield from self.on_disk(lambda: log.store_epoch(epoch))
            case do.Append(records):
                yield from self._append(records)
            case do.Truncate(after):
                yield from self.on_disk(lambda: log.truncate(after))
            case do.InstallSnapshot(_, _, content):
                yield from self.on_disk(lambda: log.stage(content))
                self._health.staged = self._health.failure is None
            case do.Sync(ticket):
                self.ticket = ticket

    def _store_of_failed(self, effect: do.DiskEffect) -> Iterator[on.Event]:
        """Nothing; but the epoch of the only copy is kept even when it is read-only."""
        if isinstance(effect, do.Sync) and self._health.divergent:
            self.ticket = effect.ticket
        elif isinstance(effect, do.StoreEpoch) and self._health.divergent:
            epoch = effect.epoch
            yield from self.on_disk(lambda: self._ports.log.store_epoch(epoch))

    def _append(self, records: Sequence[Record]) -> Iterator[on.Event]:
        try:
            self._ports.log.append(records)
        except InsufficientStorage as error:
            for record in records:  # not even sent to anyone yet
                self._writes.resolve(record.op_id, InsufficientStorage(error.detail))
            yield from self.fail(error)
        except (VecClusterError, OSError) as error:
            yield from self.fail(error)

    def on_disk(self, action: Callable[[], None]) -> Iterator[on.Event]:
        """Do something on the disk."""
        try:
            action()
        except (VecClusterError, OSError) as error:
            yield from self.fail(error)

    # -- applying

    def _apply(self, through: Seq, floor: Seq) -> Iterator[on.Event]:
        if self._health.failed_since:
            return
        rows = self._ports.rows
        try:
            for group in self._groups(Seq(rows.applied_seq), through):
                self._writes.applied(rows.apply(group, floor))
        except Exception as error:  # noqa: BLE001 - whatever it is, what is committed is not shown
            tell = _log.error if is_no_space(error) else _log.exception
            tell("apply_failed", shard=str(self._shard), through=through, detail=reason(error))
            why = error if isinstance(error, StorageCorrupt) else Unavailable(f"applying failed: {reason(error)}")
            self._writes.fail_applying()
            yield from self.fail(why, error)
            return
        self.applied = True
        yield from self._reads.applied()

    def _groups(self, after: Seq, through: Seq) -> Iterator[list[Record]]:
        group: list[Record] = []
        size, last = 0, after
        for record in self._ports.log.read(after, through):
            if record.first != last + 1:
                raise StorageCorrupt(f"operations {last + 1} to {record.first - 1} are missing in the log")
            last = record.last
            group.append(record)
            size += len(record.payload)
            is_large = size > _APPLY_BYTES or record.last - group[0].first > _APPLY_OPERATIONS
            if is_large or is_noted(record.first - 1, record.last):  # what is noted is of the end of a record
                yield group
                group, size = [], 0
        if group:
            yield group

    # -- the other replicas

    def _send_records(self, header: Header, after: Seq, through: Seq) -> None:
        transport = self._ports.transport
        if not transport.takes_records(self._shard, header.to):
            transport.send(self._shard, header.to, Replicate(header))
            return
        some: list[Record] = []
        size = 0
        for record in self._ports.log.read(after, through):
            if some and size + len(record.payload) > _MESSAGE_BYTES:
                transport.send(self._shard, header.to, Replicate(header, tuple(some)))
                some, size = [], 0
            some.append(record)
            size += len(record.payload)
        if some:
            transport.send(self._shard, header.to, Replicate(header, tuple(some)))

    def _communicate(self, effect: do.Send | do.SendSnapshot | do.Swap | do.ReadConfiguration) -> None:
        ports, shard = self._ports, self._shard
        match effect:
            case do.Send(to, message):
                ports.transport.send(shard, to, message)
            case do.SendSnapshot(header):
                ports.transport.offer_snapshot(shard, header)
            case do.Swap(target, expected):
                ports.configurations.swap(shard, target, expected)
            case do.ReadConfiguration():
                ports.configurations.read_configuration(shard)

    # -- answers

    def _answer(self, effect: do.Effect) -> None:
        match effect:
            case do.Acknowledge(op_id, position):
                self._writes.acknowledge(op_id, position)
            case do.Refuse(op_id, why):
                self._writes.refuse(op_id, why)
            case do.Uncertain(op_id, why):
                self._writes.uncertain(op_id, why)
            case do.Serve(request, position) if self._shows(position):
                self._reads.serve(request, position)
            case do.Serve(request, _):
                self._reads.refuse(request, Why.behind)
            case do.RefuseRead(request, why):
                self._reads.refuse(request, why)

    def _shows(self, position: Position) -> bool:
        """Whether the rows have come as far as the rules take for granted; not where applying has failed."""
        return self._ports.rows.applied_seq >= position.seq

    # -- failing

    def fail(self, error: VecClusterError | OSError, cause: BaseException | None = None) -> Iterator[on.Event]:
        """Take part in nothing more until the replica is opened again; reads go on from what was applied.

        `StorageCorrupt` is about the rows: opening makes them anew from generations and log. What comes of a full
        disk (`cause`, or that of `error`) is told as such, since a person has to make room.
        """
        cause = cause or (error if isinstance(error, OSError) else error.__cause__)
        if isinstance(error, OSError):
            error = Unavailable(f"the disk failed: {reason(error)}")
        log = self._ports.log
        if isinstance(error, StorageCorrupt) and not log.damage:
            with suppress(OSError):
                log.suspect_rows()
        if self._health.fail(error, disk_full=self._is_full(cause)):
            _log.error("replica_failed", shard=str(self._shard), detail=error.detail)
            yield on.DiskFailed()

    def _is_full(self, cause: BaseException | None) -> bool:
        """Whether `cause` comes of a full disk; SQLite may say no more than "disk I/O error" then."""
        failed = isinstance(cause, sqlite3.OperationalError | OSError)
        return is_no_space(cause) or (failed and self._ports.log.is_full())
