"""Decide which member of a shard a request goes to, and whether one that failed is worth asking again.

Pure: the coordinator asks over the network and comes back with what happened. Only members that are in sync are asked:
a learner may lack anything. Where the decision is wrong, because the record is old, the replica that is asked says so
(rules 5 and 13 of docs/replication.md): no answer is right because of what is decided here, only sooner there.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import xxhash

from veccluster.errors import OutcomeUnknown, StorageCorrupt, TooFewReplicas, Unavailable, VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, NodeId, ReadConsistency, Shard, ShardId

NOBODY: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class Vantage:
    """From where a request is sent: this node, whose leases are there, and who gave no answer in time just now.

    `salt` is another number for each request, and the same within one: requests are spread over the members, while one
    request asks as few nodes as it can.
    """

    me: NodeId
    alive: AbstractSet[NodeId]
    slow: AbstractSet[NodeId] = NOBODY
    salt: int = 0


def readers(shard: Shard, level: ReadConsistency, vantage: Vantage) -> list[NodeId]:
    """Who may answer a read, in the order in which they are asked.

    A strong read is the primary's. For the others it is the last resort: it has the writes to do. A node whose lease
    has ended may still answer, and is asked when everybody else has failed.
    """
    primary = shard.primary.node
    if level is ReadConsistency.strong:
        return [primary]

    def reluctance(node: NodeId) -> tuple[bool, bool, bool, bool, int]:
        spread = xxhash.xxh3_64_intdigest(node.encode(), seed=vantage.salt)
        return (node not in vantage.alive, node in vantage.slow, node != vantage.me, node == primary, spread)

    return sorted({m.node for m in shard.in_sync}, key=reluctance)


def by_reader(
    shards: Iterable[Shard], level: ReadConsistency, vantage: Vantage, tried: AbstractSet[NodeId] = NOBODY
) -> dict[NodeId, list[int]]:
    """The shards' numbers by the node that is to be asked for them next; those of which all were tried are left out."""
    groups: dict[NodeId, list[int]] = {}
    for shard in shards:
        if left := [node for node in readers(shard, level, vantage) if node not in tried]:
            groups.setdefault(left[0], []).append(shard.id.number)
    return groups


def effective(level: ReadConsistency, collection: Collection) -> ReadConsistency:
    """The level by which it is read: a quorum of one is that one, which is the primary."""
    alone = collection.replication_factor == 1
    return ReadConsistency.strong if alone and level is ReadConsistency.quorum else level


class Again(Enum):
    """Whether to ask again."""

    at_once = auto()
    later = auto()
    """When something has changed, or after a moment."""
    no = auto()


def again(asked: Shard, known: Shard | None, error: VecClusterError, alive: AbstractSet[NodeId]) -> Again:
    """What to do after `error`, when the record was `asked` and is `known` by now.

    It is worth while as long as another replica may take over: one that is in sync, of a shard that has several. A
    shard with one replica is there or is not; who asked for it hears so at once.
    """
    if is_answer(error) or known is None:
        return Again.no
    if known != asked:
        return Again.at_once
    nodes = {m.node for m in known.in_sync}
    return Again.later if len(nodes) > 1 and not nodes.isdisjoint(alive) else Again.no


def is_answer(error: VecClusterError) -> bool:
    """Whether another replica, or the same one a moment later, would say the same."""
    passing = isinstance(error, Unavailable | OutcomeUnknown) and not isinstance(error, TooFewReplicas | StorageCorrupt)
    return not passing


class Standing(NamedTuple):
    """What a failed request waits for a change of: the record, and whether the primary says that it serves."""

    record: Shard | None
    serving: bool


def standing(state: ClusterState, shard: ShardId) -> Standing:
    """How the shard stands in this state."""
    record = state.shards.get(shard)
    load = state.alive.get(record.primary.node) if record else None
    return Standing(record, load is not None and str(shard) in load.serving)


def has_moved(state: ClusterState, asked: Mapping[ShardId, Shard]) -> bool:
    """Whether any of these shards has its primary on another node by now."""
    found = ((state.shards.get(i), shard) for i, shard in asked.items())
    return any(now is not None and now.primary.node != shard.primary.node for now, shard in found)
