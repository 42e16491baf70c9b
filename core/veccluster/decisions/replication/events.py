"""What can happen to a replica. Whoever runs it turns timers, sockets, disks and etcd into these."""

from dataclasses import dataclass
from enum import StrEnum

from veccluster.decisions.replication.messages import Message
from veccluster.decisions.replication.values import NOTHING, Configuration, Member
from veccluster.model.state import NodeId, ReadConsistency, Seq, WriteConsistency


@dataclass(frozen=True, slots=True)
class Write:
    """A client asks for a write. `applied` is where this `op_id` was applied before, if it was (14)."""

    op_id: str
    count: int
    payload: bytes
    level: WriteConsistency
    applied: Seq | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody waits for the answer to this write or read any more; a write goes on."""

    id: str


@dataclass(frozen=True, slots=True)
class Read:
    """A client asks for a read that must show at least what `at_least` shows. `quorum` comes as `session`, with the
    highest position of the replicas that were asked (reading.py).
    """

    id: str
    level: ReadConsistency
    at_least: Seq = NOTHING


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived from a node that has proved to be `source`, whoever the message says that it is from."""

    message: Message
    source: NodeId


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything up to the `Sync` of this ticket is durable."""

    ticket: int


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """A write or a sync failed: what is on the disk is unknown until the replica is opened again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The shard's key, from a watch or a read."""

    configuration: Configuration


class Outcome(StrEnum):
    """How a compare-and-swap ended."""

    swapped = "swapped"
    refused = "refused"
    """Another revision is there, so that it did not happen and never will."""
    unknown = "unknown"
    """It may have happened, or happen yet."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A compare-and-swap came back. `now` is what is there, with its revision, as far as the answer says it."""

    target: Configuration
    outcome: Outcome
    now: Configuration | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time for heartbeats and for sending again what was not answered. `silent` have not answered for too long."""

    silent: frozenset[Member] = frozenset()


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The log now begins at `first`; what was before is in a snapshot."""

    first: Seq


Event = Write | Forget | Read | Received | Synced | DiskFailed | Seen | Answered | Tick | Trimmed
