"""What a replica's loop asks of the world: a log, rows, the other replicas, the configuration store, a clock.

The loop (`loop.py`) is the same in production, where these are disks, links and etcd, and in the simulation, where they
are made of a seed. Nothing here waits for a network: what comes of a message or of a change of configuration arrives as
an event (`ReplicaLoop.feed`) or not at all, which the rules allow.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from veccluster.decisions.filters import Filter
from veccluster.decisions.replication import atomic
from veccluster.decisions.replication.atomic import Decision, Ledger
from veccluster.decisions.replication.messages import Header, Message
from veccluster.decisions.replication.values import NO_EPOCH, NOTHING, Configuration, Member, Position, Record
from veccluster.model.state import Epoch, ReadConsistency, Revision, Seq, ShardId
from veccluster_node.replica.beats import NodeBeats
from veccluster_node.wal.operations import Looked, Written


class ReplicaLog(Protocol):
    """What must outlive a crash, and the room for it. Used by one thread at a time; `sync` may take long."""

    damage: str | None
    """What is wrong with a log that must not be written any more."""

    @property
    def is_durable(self) -> bool:
        """Whether all that was written is on the disk."""

    def store_epoch(self, epoch: Epoch) -> None:
        """Remember the highest epoch seen; durable with the next `sync` at the latest."""

    def append(self, records: Sequence[Record]) -> None:
        """Write records behind the last one, all or, with `InsufficientStorage`, none; durable with the next `sync`."""

    def truncate(self, after: Seq) -> None:
        """Cut what is behind `after`; durable with the next `sync` at the latest."""

    def stage(self, content: object) -> None:
        """Let a snapshot take the replica's place when it is opened again."""

    def sync(self) -> None:
        """Make everything durable. An error seals the log: nobody knows what the disk holds."""

    def read(self, after: Seq, through: Seq) -> Iterator[Record]:
        """The records that begin in (after, through], in order."""

    def trim(self, through: int) -> Seq:
        """Forget what is covered elsewhere up to `through`, as far as that is whole files; what it begins with now."""

    def is_full(self) -> bool:
        """Whether the disk has no room for upserts any more."""

    def make_room(self) -> None:
        """Give up the reserve, so that what deletes or decides can be logged on a full disk."""

    def keep_reserve(self) -> None:
        """Have the reserve again, if there is room."""

    def suspect_rows(self) -> None:
        """Remember that the rows are not to be trusted: opening makes them anew."""

    def doubt(self, why: str) -> None:
        """Remember that what was durable is lost: the next opening may take it for a torn end."""


class Rows(Protocol):
    """The applied state. `apply` changes it; the rest reads it, all from the loop's thread."""

    @property
    def applied_seq(self) -> int:
        """How far the log is applied."""

    @property
    def ledger(self) -> Ledger:
        """The cross-shard transactions that are prepared and not decided."""

    def apply(self, records: Sequence[Record], floor: Seq = NOTHING) -> list[Written]:
        """Apply records that follow `applied_seq` in one step, and show it to readers. When it raises, nothing was.

        Who wrote what is before `floor` may be forgotten.
        """

    def result_of(self, op_id: str) -> Written | None:
        """What became of the batch with this operation id, as long as that is remembered."""

    def standing(self, batch: atomic.Batch) -> atomic.Standing | None:
        """How an operation over several shards stands here (`Ledger.standing`)."""

    def ids_matching(self, filter_: Filter, looked: Looked | None = None) -> list[str]:
        """The ids that a filter matches now; `looked` is what it matched in an earlier state."""

    def known_since(self, now: int) -> int:
        """Since when every operation is remembered, at this time; nanoseconds since 1970 (repetitions.py)."""


class Transport(Protocol):
    """The way to the other replicas. Every method returns at once and never raises; from any thread."""

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        """Send a message; it may be lost."""

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        """Whether to send records makes sense: not to a node that is away, or that is fetching everything anyway."""

    def has_ended(self, to: Member) -> bool:
        """Whether that member's process is known to have ended: nothing listens, or it said that it goes and went."""

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        """Let the member that `header` is for fetch everything, unless it is doing so already."""


class ConfigurationStore(Protocol):
    """The shard's record in etcd. Every method returns at once and never raises; from any thread."""

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


class Surroundings(Transport, ConfigurationStore, Protocol):
    """What a replica asks of the rest of its node."""

    @property
    def beats(self) -> NodeBeats | None:
        """The node's heartbeats; None when no replica is to rest."""


class Clock(Protocol):
    """Time."""

    def now(self) -> float:
        """Seconds that never go back."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970, for people."""

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something that returns at once, later, from any thread."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that a loop asks of the world."""

    log: ReplicaLog
    rows: Rows
    transport: Transport
    configurations: ConfigurationStore
    clock: Clock
    beats: NodeBeats | None = None


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
