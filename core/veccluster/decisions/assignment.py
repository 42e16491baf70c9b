"""Decide what the leader does about collections: give new shards to nodes, clear away deleted collections.

Which nodes hold a shard that was served is for replication/failover.py.

Pure: the leader reads etcd, calls `decide`, and applies the actions as transactions fenced by its term. On the
result a second call returns nothing.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from veccluster.decisions import placement
from veccluster.decisions.shard_map import ShardMap
from veccluster.model.cluster import FIRST_EPOCH, ClusterState, DroppedBy
from veccluster.model.state import Collection, Epoch, Node, NodeId, NodeState, Shard, ShardId


@dataclass(frozen=True, slots=True)
class CreateShards:
    """Write down these shards of `collection`; none of them exists yet."""

    collection: Collection
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class ForgetShards:
    """Delete the keys of shards whose collection is gone; their nodes delete the data because of the drop intent."""

    uuid: str
    shards: tuple[ShardId, ...]


@dataclass(frozen=True, slots=True)
class FinishDrop:
    """Every node has deleted its part of this collection: remove the intent."""

    uuid: str


@dataclass(frozen=True, slots=True)
class Reassign:
    """Give a shard that was never served, so that it holds nothing, to other nodes; `before` is what it was."""

    before: Shard
    after: Shard


@dataclass(frozen=True, slots=True)
class ForgetNode:
    """Strike a node off: it has been away for very long, and no shard counts on it. If it comes back it registers."""

    node: NodeId


Action = CreateShards | ForgetShards | FinishDrop | Reassign | ForgetNode

GONE_AFTER = 24 * 3600.0
"""Seconds for which a node is away before nobody waits for it any more: neither a person, who was told all the time,
nor the deletion of collections. One that comes back later still has data of those, and reports it."""

_NOBODY: Mapping[NodeId, float] = {}


def decide(state: ClusterState, away: Mapping[NodeId, float] = _NOBODY) -> Iterator[Action]:
    """Yield what the state asks for; `away` says for how many seconds nodes have not been there."""
    yield from _new_shards(state)
    yield from _never_opened(state)
    yield from (ForgetNode(node) for node in _gone(state, away))
    for uuid in sorted(state.drops):
        if left := tuple(sorted(i for i in {*state.shards, *state.unsettled} if i.collection == uuid)):
            yield ForgetShards(uuid, left)
        elif all(DroppedBy(uuid, node) in state.dropped_by for node in state.nodes):
            yield FinishDrop(uuid)


def _gone(state: ClusterState, away: Mapping[NodeId, float]) -> list[NodeId]:
    """Nodes that are away for good, as far as anybody can tell, and that no record names."""
    long = {n for n in state.nodes.keys() - state.alive.keys() if away.get(n, 0.0) >= GONE_AFTER}
    if not long or state.unsettled:
        return []
    return sorted(long - {m.node for s in state.shards.values() for m in (*s.members, *filter(None, [s.successor]))})


def _new_shards(state: ClusterState) -> Iterator[CreateShards]:
    """With as many copies as there are nodes to hold them; a collection that asks for more of them in sync waits."""
    able = _able(state)
    missing = {
        c.uuid: [i for i in _shard_ids(c) if i not in state.shards and i not in state.unsettled]
        for c in state.collections.values()
        if c.min_in_sync <= len(able)
    }
    wanted = {i for ids in missing.values() for i in ids}
    placed = _placed(state, wanted, able) if wanted else {}
    for collection in sorted(state.collections.values(), key=lambda c: c.name):
        if ids := missing.get(collection.uuid):
            yield CreateShards(collection, tuple(_shard(collection, i, placed[i], able) for i in ids))


def _never_opened(state: ClusterState) -> Iterator[Reassign]:
    """A collection can be used although a node, or its disk, is gone since before it opened its part of it."""
    able, by_uuid = _able(state), {c.uuid: c for c in state.collections.values()}
    waiting = {
        i
        for i, s in state.shards.items()
        if s.epoch == FIRST_EPOCH
        and i not in state.unsettled
        and i.collection in by_uuid
        and s.min_in_sync <= len(able)
        and len(_holders(s, able)) < len(s.in_sync)
    }
    placed = _placed(state, waiting, able) if waiting else {}
    for shard in sorted(waiting):
        before, members = state.shards[shard], tuple(able[n].member(shard) for n in placed[shard])
        after = msgspec.structs.replace(before, primary=members[0], in_sync=members, learners=(), successor=None)
        yield Reassign(before, after)


def _able(state: ClusterState) -> dict[NodeId, Node]:
    return {n.id: n for n in state.live_nodes() if n.state is NodeState.active}


def _placed(state: ClusterState, wanted: AbstractSet[ShardId], able: Mapping[NodeId, Node]) -> placement.Placement:
    """Where `wanted` go, given where everything else is."""
    factors = {c.uuid: c.replication_factor for c in state.collections.values()}
    current = {i: _holders(s, able) for i, s in state.shards.items() if i.collection in factors}
    return placement.extend(wanted | current.keys(), able.values(), factors, current)


def _holders(shard: Shard, able: Mapping[NodeId, Node]) -> tuple[NodeId, ...]:
    """The nodes that are able and are the members that the record names, the primary first."""
    held = (m for m in shard.in_sync if m.node in able and able[m.node].member(shard.id) == m)
    return tuple(m.node for m in sorted(held, key=lambda m: m != shard.primary))


def _shard_ids(collection: Collection) -> list[ShardId]:
    return [ShardId(collection.uuid, n) for n in ShardMap.even(collection.shards).numbers]


def _shard(collection: Collection, shard: ShardId, nodes: tuple[NodeId, ...], able: Mapping[NodeId, Node]) -> Shard:
    members = tuple(able[n].member(shard) for n in nodes)
    start, end = ShardMap.even(collection.shards).range_of(shard.number)
    return Shard(
        id=shard,
        epoch=Epoch(FIRST_EPOCH),
        primary=members[0],
        in_sync=members,
        min_in_sync=collection.min_in_sync,
        start=start,
        end=end,
    )
