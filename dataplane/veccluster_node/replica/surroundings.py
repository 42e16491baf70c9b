"""What a replica asks of the rest of its node, and how it shows where it stands.

The replica's thread must never wait for a network, so every method of `Surroundings` returns at once; what comes of it
arrives as an event (`Replica.feed`) or not at all, which the rules allow.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from veccluster.decisions.replication.atomic import Decision
from veccluster.decisions.replication.messages import Header, Message
from veccluster.decisions.replication.values import NO_EPOCH, NOTHING, Configuration, Member, Position
from veccluster.model.state import Epoch, ReadConsistency, Revision, Seq, ShardId


class Surroundings(Protocol):
    """Every method may be called from any thread, returns at once and never raises."""

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        """Send a message; it may be lost."""

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        """Whether to send records makes sense: not to a node that is away, or that is fetching everything anyway."""

    def has_ended(self, to: Member) -> bool:
        """Whether that member's process is known to have ended: nothing listens, or it said that it goes and went."""

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        """Let the member that `header` is for fetch everything, unless it is doing so already."""

    def swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        """Change the shard's record to `target` if its revision is `expected`; the answer comes as `Answered`."""

    def reaches_etcd(self) -> bool:
        """Whether etcd has answered of late."""

    def read_configuration(self, shard: ShardId) -> None:
        """Read the shard's record; it comes as `Seen`."""

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        """Create the key of a decision, if none is there and none were forgotten since; it shows in what is known."""

    def changed(self, shard: ShardId) -> None:
        """Whoever decides about this replica should look again."""


START = Position(NO_EPOCH, NOTHING)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a member is, as its primary knows. Times in seconds."""

    member: Member
    behind: int
    """Operations that it lacks."""
    late: float
    """Since it last lacked none."""
    silent: float
    """Since it was last heard."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a replica stood when its thread last looked. `heard` is when it last heard its primary (monotonic)."""

    me: Member
    serving: Epoch | None = None
    """The epoch that it serves as primary."""
    in_sync: bool = False
    epoch: Epoch = NO_EPOCH
    """The highest that it has seen."""
    applied: Position = START
    durable: Position = START
    commit: Seq = NOTHING
    configuration: Configuration | None = None
    heard: float = 0.0
    others: tuple[Progress, ...] = ()
    """The other members, if it is primary."""
    cut_off: bool = False
    """It is primary, and its writes wait for members that it has not heard for too long."""


@dataclass(slots=True, eq=False)
class Reading:
    """A read that waits for leave to look at the rows; the result is the position that it shows at least."""

    id: str
    level: ReadConsistency
    at_least: Seq
    until: float
    future: Future[Position] = field(default_factory=Future)
