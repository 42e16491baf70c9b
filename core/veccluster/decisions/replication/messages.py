"""What replicas of one shard say to each other. Each message may be lost, late, doubled or overtaken by another."""

from dataclasses import dataclass

from veccluster.decisions.replication.values import NOTHING, Lineage, Member, Record
from veccluster.model.state import Epoch, Seq


@dataclass(frozen=True, slots=True)
class Header:
    """What everything that a primary sends begins with.

    `lineage` is the primary's log when its epoch began, and the epoch itself from there on: the same in every message
    of an epoch, so that a follower can compare its log whichever comes first (8). `commit` is the commit point (10),
    `confirm` the number of the newest round in which the primary asks whether its epoch still holds (13).

    `holds` is how far the primary counts on the receiver's log to be durable, and `waits` whether it waits for the
    receiver before it commits: by these a disk shows that went back to what it held before (9).

    `floors` says that no member would take a lineage that begins at a floor for a contradiction (8).
    """

    epoch: Epoch
    sender: Member
    to: Member
    lineage: Lineage
    commit: Seq
    confirm: int
    waits: bool = False
    holds: Seq = NOTHING
    floors: bool = False


@dataclass(frozen=True, slots=True)
class Replicate:
    """Some records in a row; none is a heartbeat."""

    header: Header
    records: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything up to `through`, for a replica whose next record the primary's log no longer has (11).

    `content` says where the adapter finds it; nothing here looks into it.
    """

    header: Header
    through: Seq
    content: object


@dataclass(frozen=True, slots=True)
class Accepted:
    """In `epoch`, which is durable here, the log says what the primary's does, durably, up to `matched`.

    `floors`: this member knows that a lineage may begin at a floor, and takes that for no contradiction (8).
    """

    epoch: Epoch
    sender: Member
    matched: Seq
    confirm: int
    floors: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message was of an epoch that is over; `epoch` is the highest one stored here (5)."""

    epoch: Epoch
    sender: Member


@dataclass(frozen=True, slots=True)
class Contradicted:
    """In `epoch` the primary's log is not what it must be: `why` in words. It is not followed (9)."""

    epoch: Epoch
    sender: Member
    why: str


FromPrimary = Replicate | Snapshot
ToPrimary = Accepted | Rejected | Contradicted
Message = FromPrimary | ToPrimary


def sender_of(message: Message) -> Member:
    """Whom a message says that it is from."""
    return message.header.sender if isinstance(message, FromPrimary) else message.sender
