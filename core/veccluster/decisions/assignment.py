"""Decide what the leader does about collections: give new shards to nodes, clear away deleted collections.

Which nodes hold a shard that was served is for replication/failover.py.

Pure: the leader reads etcd, calls `decide`, and applies the actions as transactions fenced by its term. On the
result a second call returns nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from veccluster.decisions import placement
from veccluster.decisions.shard_map import ShardMap
from veccluster.model.cluster import FIRST_EPOCH, ClusterState, DroppedBy
from veccluster.model.state import Collection, Epoch, Node, NodeId, NodeState, Shard, ShardId
from veccluster.model.tables import CollectionTable, ShardTable


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


def decide(
    state: ClusterState,
    away: Mapping[NodeId, float] = _NOBODY,
    *,
    incomplete: AbstractSet[str] | None = None,
    unopened: AbstractSet[ShardId] | None = None,
) -> Iterator[Action]:
    """Yield what the state asks for; `away` says for how many seconds nodes have not been there.

    Who knows which collections (by uuid) lack records of shards, and which shards nobody has served, says so: no others
    are looked at.
    """
    state = state.indexed()
    yield from _new_shards(state, incomplete)
    yield from _never_opened(state, state.shards.keys() if unopened is None else unopened)
    yield from (ForgetNode(node) for node in _gone(state, away))
    for uuid in sorted(state.drops):
        if left := tuple(sorted(state.shards_within(uuid))):
            yield ForgetShards(uuid, left)
        elif all(DroppedBy(uuid, node) in state.dropped_by for node in state.nodes):
            yield FinishDrop(uuid)


def _gone(state: ClusterState, away: Mapping[NodeId, float]) -> list[NodeId]:
    """Nodes that are away for good, as far as anybody can tell, and that no record names."""
    long = {n for n in state.nodes.keys() - state.alive.keys() if away.get(n, 0.0) >= GONE_AFTER}
    if not long or state.unsettled:
        return []
    return sorted(node for node in long if not state.shards_on(node))


def _new_shards(state: ClusterState, incomplete: AbstractSet[str] | None) -> Iterator[CreateShards]:
    """With as many copies as there are nodes to hold them; a collection that asks for more of them in sync waits."""
    able, by_uuid = _able(state), CollectionTable.of(state.collections).by_uuid
    collections = [by_uuid[u] for u in (by_uuid if incomplete is None else incomplete) if u in by_uuid]
    missing = {
        c.uuid: [i for i in _shard_ids(c) if i not in state.shards and i not in state.unsettled]
        for c in collections
        if c.min_in_sync <= len(able)
    }
    wanted = {i for ids in missing.values() for i in ids}
    placed = _placed(state, wanted, able) if wanted else {}
    for collection in sorted(collections, key=lambda c: c.name):
        if ids := missing.get(collection.uuid):
            yield CreateShards(collection, tuple(_shard(collection, i, placed[i], able) for i in ids))


def _never_opened(state: ClusterState, unopened: AbstractSet[ShardId]) -> Iterator[Reassign]:
    """A collection can be used although a node, or its disk, is gone since before it opened its part of it."""
    able, by_uuid = _able(state), CollectionTable.of(state.collections).by_uuid
    waiting = {
        i
        for i in unopened
        if (s := state.shards.get(i))
        and s.epoch == FIRST_EPOCH
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
    """Where `wanted` go, given where the other shards of their collections are, and how many of the rest each node has
    by the records.
    """
    by_uuid = CollectionTable.of(state.collections).by_uuid
    factors = {uuid: by_uuid[uuid].replication_factor for uuid in {i.collection for i in wanted}}
    records = [state.shards[i] for uuid in factors for i in state.shards_within(uuid) if i in state.shards]
    current = {s.id: _holders(s, able) for s in records}
    others = placement.Others(held=_beside(state, records, able), led=_led_beside(state, records))
    return placement.extend(wanted | current.keys(), able.values(), factors, current, others)


def _beside(state: ClusterState, records: Iterable[Shard], able: Iterable[NodeId]) -> dict[NodeId, int]:
    """How many copies of other shards the nodes hold."""
    mine = Counter(node for s in records for node in {m.node for m in (*s.members, s.successor) if m})
    return {node: len(state.shards_on(node)) - mine[node] for node in able}


def _led_beside(state: ClusterState, records: Iterable[Shard]) -> Mapping[NodeId, int]:
    """How many other shards they are primaries of."""
    return Counter(ShardTable.of(state.shards).led) - Counter(s.primary.node for s in records)


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
