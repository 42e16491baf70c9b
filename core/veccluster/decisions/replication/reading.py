"""What a coordinator decides about a read at `quorum`: whom to ask how far their logs reach, and what to wait for.

Invariant: whoever is in sync has every operation that was acknowledged, and a later epoch begins with all that earlier
ones acknowledged; so `reach` is beyond all that was acknowledged while one of those asked was in sync. Learners are not
asked: they may lack anything. Several are asked because the coordinator's configuration may be old (13).
"""

from collections.abc import Iterable

from veccluster.decisions.replication.values import NO_EPOCH, NOTHING, Configuration, Position
from veccluster.model.state import Seq


def enough(configuration: Configuration) -> int:
    """How many of the members that are in sync to ask: more than half of the shard's replicas, if there are so many."""
    return min(len(configuration.in_sync), configuration.replicas // 2 + 1)


def reach(durable: Iterable[Position]) -> Seq:
    """What one of the replicas must have applied before it answers, by the durable positions of all (13)."""
    return max(durable, default=Position(NO_EPOCH, NOTHING)).seq
