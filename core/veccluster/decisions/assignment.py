"""Decide what the leader does about collections: give new shards to nodes, clear away deleted collections.

Pure: the leader reads etcd, calls `decide`, and applies the actions as transactions fenced by its term. On the
result a second call returns nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from veccluster.decisions import hashing, placement
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
    """Give a shard that its node never opened, so that it holds nothing, to another; `before` is what it was."""

    before: Shard
    after: Shard


Action = CreateShards | ForgetShards | FinishDrop | Reassign


def decide(state: ClusterState) -> Iterator[Action]:
    """Yield what the state asks for."""
    yield from _new_shards(state)
    yield from _never_opened(state)
    for uuid in sorted(state.drops):
        if left := tuple(sorted(i for i in state.shards if i.collection == uuid)):
            yield ForgetShards(uuid, left)
        elif all(DroppedBy(uuid, node) in state.dropped_by for node in state.nodes):
            yield FinishDrop(uuid)


def _new_shards(state: ClusterState) -> Iterator[CreateShards]:
    able = {n.id: n for n in state.live_nodes() if n.state is NodeState.active}
    missing = {c.uuid: [i for i in _shard_ids(c) if i not in state.shards] for c in state.collections.values()}
    if not able or not any(missing.values()):
        return
    kept = (i for i in state.shards if i.collection in missing and state.shards[i].primary.node in able)
    current = {i: tuple(m.node for m in state.shards[i].in_sync if m.node in able) for i in kept}
    wanted = {i for ids in missing.values() for i in ids} | current.keys()
    factors = {c.uuid: c.replication_factor for c in state.collections.values()}
    placed = placement.extend(wanted, able.values(), factors, current)
    for collection in sorted(state.collections.values(), key=lambda c: c.name):
        if ids := missing[collection.uuid]:
            yield CreateShards(collection, tuple(_shard(collection, i, placed[i], able) for i in ids))


def _never_opened(state: ClusterState) -> Iterator[Reassign]:
    """A collection can be used although a node died before it opened its part of it."""
    able = {n.id: n for n in state.live_nodes() if n.state is NodeState.active}
    by_uuid = {c.uuid: c for c in state.collections.values()}
    empty = [i for i, s in state.shards.items() if s.epoch == FIRST_EPOCH and s.primary.node not in able]
    for shard_id in sorted(i for i in empty if able and i.collection in by_uuid):
        kept = {
            i: (s.primary.node,) for i, s in state.shards.items() if s.primary.node in able and i.collection in by_uuid
        }
        placed = placement.extend({shard_id} | kept.keys(), able.values(), 1, kept)
        before, node = state.shards[shard_id], able[placed[shard_id][0]]
        home = node.member(shard_id)
        after = msgspec.structs.replace(before, primary=home, in_sync=(home,))
        yield Reassign(before, after)


def _shard_ids(collection: Collection) -> list[ShardId]:
    return [ShardId(collection.uuid, n) for n in range(collection.shards)]


def _shard(collection: Collection, shard: ShardId, nodes: tuple[NodeId, ...], able: dict[NodeId, Node]) -> Shard:
    members = tuple(able[n].member(shard) for n in nodes)
    start, end = hashing.ranges(collection.shards)[shard.number]
    return Shard(
        id=shard,
        epoch=Epoch(FIRST_EPOCH),
        primary=members[0],
        in_sync=members,
        min_in_sync=collection.min_in_sync,
        start=start,
        end=end,
    )
