"""What a node counts about replication, for /metrics; gauges are read from the replicas when somebody asks."""

from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram

FAILOVER_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 30.0, 60.0)


def _refused() -> Counter:
    return Counter(
        "veccluster_writes_refused",
        "Writes to shards of this node that were not acknowledged, by the slug of the problem.",
        ["reason"],
        registry=None,
    )


def _failovers() -> Histogram:
    return Histogram(
        "veccluster_failover_seconds",
        "Primaries replaced by this leader: time from when they were found to be gone.",
        buckets=FAILOVER_SECONDS,
        registry=None,
    )


def _refetches() -> Counter:
    return Counter(
        "veccluster_replica_refetches",
        "Replicas of this node that were gone, damaged or different from others, and began anew from those.",
        registry=None,
    )


def _snapshots() -> Counter:
    return Counter(
        "veccluster_snapshots_received",
        "Whole copies of shards that came from other nodes, for replicas that the log could not bring up to date.",
        registry=None,
    )


def _found() -> Counter:
    return Counter(
        "veccluster_integrity_findings",
        "Damage found on the disk (rows, log, generation), and replicas that differed from others (replica).",
        ["what"],
        registry=None,
    )


def _scrubbed() -> Counter:
    return Counter("veccluster_scrubbed_bytes", "Bytes on the disk that were read to find damage.", registry=None)


@dataclass(frozen=True, slots=True)
class Measures:
    """One of each for a node; whoever it happens to counts it."""

    refused: Counter = field(default_factory=_refused)
    failovers: Histogram = field(default_factory=_failovers)
    refetches: Counter = field(default_factory=_refetches)
    snapshots: Counter = field(default_factory=_snapshots)
    found: Counter = field(default_factory=_found)
    scrubbed: Counter = field(default_factory=_scrubbed)
