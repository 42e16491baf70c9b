"""What replicas of one shard say to each other. Each message may be lost, late, doubled or overtaken by another."""

from dataclasses import dataclass

from veccluster.decisions.replication.values import Lineage, Member, Record
from veccluster.model.state import Epoch, Seq


@dataclass(frozen=True, slots=True)
class Header:
    """What everything that a primary sends begins with.

    `lineage` is the primary's log when its epoch began, and the epoch itself from there on: the same in every message
    of an epoch, so that a follower can compare its log whichever comes first (8). `commit` is the commit point (10),
    `confirm` the number of the newest round in which the primary asks whether its epoch still holds (13).
    """

    epoch: Epoch
    sender: Member
    to: Member
    lineage: Lineage
    commit: Seq
    confirm: int


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
    """In `epoch`, which is durable here, the log says what the primary's does, durably, up to `matched`."""

    epoch: Epoch
    sender: Member
    matched: Seq
    confirm: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message was of an epoch that is over; `epoch` is the highest one stored here (5)."""

    epoch: Epoch
    sender: Member


FromPrimary = Replicate | Snapshot
ToPrimary = Accepted | Rejected
Message = FromPrimary | ToPrimary
