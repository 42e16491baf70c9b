"""What a coordinator decides about a read at `quorum`: ask several replicas how far their logs reach, then read.

Invariant: an operation that was acknowledged while one of those asked was in sync is at or below what `reach` returns,
since that member has it and a later epoch begins with everything that earlier ones acknowledged.
"""

from collections.abc import Iterable

from veccluster.decisions.replication.values import NO_EPOCH, NOTHING, Configuration, Position
from veccluster.model.state import Seq


def enough(configuration: Configuration) -> int:
    """How many of a shard's replicas to ask."""
    return configuration.replicas // 2 + 1


def reach(durable: Iterable[Position]) -> Seq:
    """What one of the replicas must have applied before it answers, by the durable positions of all (13)."""
    return max(durable, default=Position(NO_EPOCH, NOTHING)).seq
