"""What a replica wants done, in this order. Disk effects are durable when the `Sync` behind them has been reported."""

from dataclasses import dataclass
from enum import StrEnum

from veccluster.decisions.replication.messages import Header, Message
from veccluster.decisions.replication.values import NOTHING, Configuration, Lineage, Member, Position, Record
from veccluster.model.state import Epoch, Revision, Seq


class Why(StrEnum):
    """Why something was refused, or has no known outcome."""

    not_primary = "this replica is not the shard's primary"
    moving = "another replica is about to become primary"
    too_few_copies = "fewer replicas are in sync than the write asks for"
    not_in_sync = "this replica is not in sync"
    behind = "this replica has not applied what the session has seen"
    fenced = "another epoch began"
    disk = "the disk failed"


@dataclass(frozen=True, slots=True)
class StoreEpoch:
    """Remember the highest epoch seen."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Append:
    """Write records behind the last one."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut the log behind `after`."""

    after: Seq


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Replace log and state by a snapshot: all of it or, after a crash before the sync, nothing."""

    through: Seq
    lineage: Lineage
    content: object


@dataclass(frozen=True, slots=True)
class Sync:
    """Make everything before durable and report `Synced(ticket)`; a later ticket covers the earlier ones."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message."""

    to: Member
    message: Message


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send `Replicate` with the log's records that begin in (after, through]."""

    header: Header
    after: Seq
    through: Seq


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send `Snapshot` of a state that was applied here, unless one is under way to that member already."""

    header: Header


@dataclass(frozen=True, slots=True)
class Swap:
    """Change the shard's key in etcd to `target` if its revision is `expected`; report `Answered`."""

    target: Configuration
    expected: Revision


@dataclass(frozen=True, slots=True)
class ReadConfiguration:
    """Read the shard's key and report `Seen`."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the log up to `through` to what reads see (10). Who wrote what is before `floor` may be forgotten (8)."""

    through: Seq
    floor: Seq = NOTHING


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the client that its write will not be lost."""

    op_id: str
    position: Position


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the client that this request stored nothing."""

    op_id: str
    why: Why


@dataclass(frozen=True, slots=True)
class Uncertain:
    """Tell the client that its write may or may not show (14)."""

    op_id: str
    why: Why


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer the read from what is applied."""

    id: str
    position: Position


@dataclass(frozen=True, slots=True)
class RefuseRead:
    """Tell the reader to ask elsewhere, or again."""

    id: str
    why: Why


@dataclass(frozen=True, slots=True)
class BecomePrimary:
    """This replica serves `epoch` from now on."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class BecomeFenced:
    """This replica stopped serving `epoch`."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Diverged:
    """This copy contradicts others that have more right: take a new incarnation and refetch everything (9)."""

    why: str


DiskEffect = StoreEpoch | Append | Truncate | InstallSnapshot | Sync
Effect = (
    DiskEffect
    | Send
    | SendRecords
    | SendSnapshot
    | Swap
    | ReadConfiguration
    | Apply
    | Acknowledge
    | Refuse
    | Uncertain
    | Serve
    | RefuseRead
    | BecomePrimary
    | BecomeFenced
    | Diverged
)
