"""From a VecCluster's spec to what each part of a node is told."""

from dataclasses import dataclass

from veccluster.decisions.generations import GenerationLimits
from veccluster.model.spec import VecClusterSpec
from veccluster_node.replica.settings import StorageSettings

WRITE_TIMEOUT = 30.0
"""Seconds after which the outcome of a write counts as unknown."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Times in seconds."""

    lease_ttl: float
    query_timeout: float
    write_timeout: float
    max_connections: int
    batch_rows: int
    max_memory: float


def node_settings(spec: VecClusterSpec) -> NodeSettings:
    """How the node as a whole works."""
    return NodeSettings(
        lease_ttl=spec.failover.timeout,
        query_timeout=spec.tuning.query_timeout,
        write_timeout=WRITE_TIMEOUT,
        max_connections=spec.tuning.max_connections,
        batch_rows=spec.tuning.batch_size,
        max_memory=spec.tuning.max_memory,
    )


def storage_settings(spec: VecClusterSpec) -> StorageSettings:
    """How each replica uses its disk and its time."""
    return StorageSettings(
        wal_sync=spec.tuning.wal_sync,
        wal_sync_interval=spec.tuning.wal_sync_interval,
        silence=spec.failover.timeout / 2,
        max_wal_size=spec.tuning.max_wal_size,
        limits=GenerationLimits(
            tail_rows=spec.tuning.max_tail,
            tail_seconds=spec.tuning.snapshot_interval,
            graph_rows=spec.tuning.max_tail,
            generation_rows=spec.tuning.max_generation,
        ),
    )
