"""What one shard replica is, how it is tuned, and what it says of itself."""

from dataclasses import dataclass, field, replace
from typing import Literal

from veccluster.decisions import repetitions
from veccluster.decisions.generations import GenerationLimits
from veccluster.model.state import IndexParameters, Metric, ShardId
from veccluster_node.wal.operations import LARGEST_RECORD


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What never changes about a shard, whoever holds it."""

    shard: ShardId
    dimension: int
    metric: Metric
    index: IndexParameters = field(default_factory=IndexParameters)
    filterable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """How a replica uses its disk and its time. Bytes and seconds."""

    wal_sync: Literal["always", "interval"] = "always"
    """`interval` acknowledges before the disk has confirmed: a power failure takes up to `wal_sync_interval` of
    writes.
    """
    wal_sync_interval: float = 0.2
    max_wal_size: int = 256 << 20
    segment_size: int = 16 << 20
    group_bytes: int = 8 << 20
    """Most of one write to the log."""
    queue_bytes: int = 256 << 20
    """Writes waiting beyond this are refused."""
    record_bytes: int = LARGEST_RECORD
    """Most of what one batch does in one shard."""
    delete_bytes: int = 4 << 20
    """Most of one record of a delete by filter, which is cut into as many as it takes."""
    operations_kept: int = repetitions.KEPT
    """Newest operations that are remembered however old they are; all are for `repetitions.KEPT_FOR`."""
    full_at: float = 0.95
    """From this part of the disk on, upserts are refused."""
    reserve: int = 1 << 20
    """A file of this size is given up when the disk is full, so that deletes find room."""
    limits: GenerationLimits = field(default_factory=GenerationLimits)
    """When generations are built; `log_bytes` is set to half of `max_wal_size`: two lists of them keep the log."""
    build_threads: int = 1
    search_handles: int = 4
    """Searches that walk one graph at the same time."""
    scan_rows: int = 20_000
    """Filtered searches look at every match when there are no more than this."""
    lock_timeout: float = 5.0
    """How long opening waits for another process to let go of the shard."""
    silence: float = 1.5
    """Seconds without a word after which a primary asks to do without a member."""
    rest_after: float = 2.0
    """Seconds after which a primary that waits for nothing leaves its beats to its node."""
    decision_patience: float = 10.0
    """Seconds after which a primary asks to drop a batch over several shards that nobody has decided."""
    build_retry: float = 1.0
    """Pause after a failed build; doubles up to a minute."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", replace(self.limits, log_bytes=self.max_wal_size // 2))


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """How a replica fares. Sizes in bytes; `issues` are sentences for a person, `read_only` why it takes no writes."""

    live: int
    dead: int
    tail: int
    generations: int
    applied_seq: int
    durable_seq: int
    log_bytes: int
    disk_bytes: int
    memory_bytes: int
    building: bool
    read_only: str | None
    issues: tuple[str, ...]
