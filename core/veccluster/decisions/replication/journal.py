"""What a replica knows of its own log: its shape, what of it is durable, and which epoch it has promised itself to.

Invariant: `durable` and `durable_epoch` are true whatever a crash leaves. They move forward only when a sync that was
asked for after the change has been reported, and what is cut is no longer claimed from the moment it is cut.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.values import EMPTY, NO_EPOCH, NOTHING, Lineage, Position, Record
from veccluster.model.state import Epoch, Seq

FIRST = Seq(NOTHING + 1)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found when the replica was opened; all of it is durable.

    `operations` are the operation ids in the log beyond `applied`, with their last seqs, in the log's order.
    """

    epoch: Epoch = NO_EPOCH
    lineage: Lineage = EMPTY
    first: Seq = FIRST
    last: Seq = NOTHING
    applied: Seq = NOTHING
    operations: Mapping[str, Seq] = field(default_factory=dict)


class _Pending(NamedTuple):
    """What is durable once the sync of this ticket is."""

    ticket: int
    last: Seq
    epoch: Epoch
    installed: Seq


class Journal:
    """Attributes are for reading; every method returns what has to be done on the disk."""

    runs = 64
    """Epochs that the lineage of what is applied goes back to, when the rest may be forgotten."""

    def __init__(self, found: Recovered) -> None:
        self.epoch = self.durable_epoch = max(found.epoch, found.lineage.newest)
        self.lineage = found.lineage
        self.first = found.first
        """The first seq that the log still has, or will have."""
        self.last = self.durable = found.last
        self.applied = found.applied
        self.operations = dict(found.operations)
        """Operation ids beyond `applied`, and their last seqs: what a retry is recognised by (14)."""
        self._installed = NOTHING
        self._ticket = 0
        self._pending: deque[_Pending] = deque()

    @property
    def position(self) -> Position:
        """The last durable operation."""
        return Position(self.lineage.epoch_at(self.durable), self.durable)

    @property
    def shown(self) -> Position:
        """The last applied operation: what a read reaches."""
        return Position(self.lineage.epoch_at(self.applied), self.applied)

    def store_epoch(self, epoch: Epoch) -> Iterator[do.DiskEffect]:
        """Promise to take nothing of an older epoch (5)."""
        self.epoch = epoch
        yield do.StoreEpoch(epoch)

    def append(self, records: tuple[Record, ...]) -> Iterator[do.DiskEffect]:
        """Write records that follow the last one."""
        for record in records:
            self.lineage = self.lineage.followed_by(record.epoch, record.first)
            self.operations[record.op_id] = record.last
            self.last = record.last
        yield do.Append(records)

    def cut(self, after: Seq) -> Iterator[do.DiskEffect]:
        """Remove what is behind `after`; syncs under way must not claim it again."""
        self.lineage = self.lineage.cut(after)
        self.operations = {op: seq for op, seq in self.operations.items() if seq <= after}
        self.last = after
        self.durable = min(self.durable, after)
        self._pending = deque(p._replace(last=min(p.last, after)) for p in self._pending)
        yield do.Truncate(after)

    def install(self, through: Seq, lineage: Lineage, content: object) -> Iterator[do.DiskEffect]:
        """Replace everything by a snapshot."""
        self.lineage = lineage.cut(through)
        self.operations = {}
        self.first = Seq(through + 1)
        self.last = self._installed = through
        yield do.InstallSnapshot(through, self.lineage, content)

    def trimmed(self, first: Seq) -> None:
        """The log begins at `first` from now on."""
        self.first = max(self.first, first)

    def sync(self) -> Iterator[do.DiskEffect]:
        """Ask for everything so far to be made durable."""
        self._ticket += 1
        self._pending.append(_Pending(self._ticket, self.last, self.epoch, self._installed))
        yield do.Sync(self._ticket)

    def synced(self, ticket: int) -> None:
        """Note what a sync has made durable."""
        while self._pending and self._pending[0].ticket <= ticket:
            done = self._pending.popleft()
            self.durable = max(self.durable, done.last)
            self.durable_epoch = max(self.durable_epoch, done.epoch)
            self.applied = max(self.applied, done.installed)

    def apply(self, through: Seq) -> Iterator[do.Effect]:
        """Show what is committed, as far as it is durable here too (10); nothing while a snapshot is on its way in."""
        through = min(through, self.durable)
        if through <= self.applied or self._installed > self.applied:
            return
        self.applied = through
        while self.operations and next(iter(self.operations.values())) <= through:
            del self.operations[next(iter(self.operations))]
        yield do.Apply(through, self.lineage.floor)

    def forget(self) -> None:
        """Let the lineage of many epochs begin at a floor: with the newest of them, and within what is applied.

        That is in every log that may be followed from now on, and every snapshot reaches to there (8).
        """
        runs = self.lineage.runs
        if len(runs) > self.runs:
            self.lineage = self.lineage.since(min(runs[-self.runs].first, self.applied))
