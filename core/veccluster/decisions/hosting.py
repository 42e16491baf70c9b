"""Decide what a node does about its own shards: open, take an epoch, stop serving, delete.

Pure: the node reads the cluster's state and what it has open, calls `decide`, and carries the actions out; each can
fail or be interrupted, and the next round sees what is left. Rules 5 to 7 and 9 of docs/replication.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from veccluster.model.cluster import FIRST_EPOCH, ClusterState, DroppedBy
from veccluster.model.state import Collection, Epoch, NodeId, Shard, ShardId


@dataclass(frozen=True, slots=True)
class Local:
    """A shard's data on this node: open or only on disk, and the epoch in which this process serves it."""

    is_open: bool = False
    serving: Epoch | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """Open the replica; `create` it if this shard was never served, so that there can be no data yet."""

    shard: Shard
    collection: Collection
    create: bool


@dataclass(frozen=True, slots=True)
class TakeEpoch:
    """Become primary of the epoch after the recorded one by compare-and-swap, then serve (7)."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class StopServing:
    """Another epoch or primary is on record: refuse reads and writes from now on (5)."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class Delete:
    """The collection was dropped on purpose: close the replica and delete its data."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class ReportDropped:
    """Tell the leader that nothing of the collection is left here."""

    uuid: str


Action = Open | TakeEpoch | StopServing | Delete | ReportDropped


def decide(me: NodeId, incarnation: str, state: ClusterState, local: Mapping[ShardId, Local]) -> Iterator[Action]:
    """Yield what the state asks of this node, in the order in which it must be done."""
    yield from _give_up(me, state, local)
    yield from _take_on(me, incarnation, state, local)
    for uuid in sorted(state.drops):
        if all(i.collection != uuid for i in local) and DroppedBy(uuid, me) not in state.dropped_by:
            yield ReportDropped(uuid)


def _give_up(me: NodeId, state: ClusterState, local: Mapping[ShardId, Local]) -> Iterator[Delete | StopServing]:
    for shard, mine in sorted(local.items()):
        if shard.collection in state.drops:
            yield Delete(shard)
        elif mine.serving is not None and not _is_mine(state.shards.get(shard), me, mine.serving):
            yield StopServing(shard)


def _take_on(
    me: NodeId, incarnation: str, state: ClusterState, local: Mapping[ShardId, Local]
) -> Iterator[Open | TakeEpoch]:
    by_uuid = {c.uuid: c for c in state.collections.values()}
    for shard in assigned(me, incarnation, state):
        mine = local.get(shard.id, Local())
        collection = by_uuid.get(shard.id.collection)
        if collection is None or _is_lost(shard, local):
            continue
        if not mine.is_open:
            yield Open(shard, collection, create=shard.id not in local)
        elif mine.serving is None:
            yield TakeEpoch(shard)


def assigned(me: NodeId, incarnation: str, state: ClusterState) -> list[Shard]:
    """The shards whose primary is on record as this node with this disk, by id."""
    mine = (s for s in state.shards.values() if s.primary == (me, incarnation))
    return sorted(mine, key=lambda s: s.id)


def _is_mine(shard: Shard | None, me: NodeId, serving: Epoch) -> bool:
    """Whether the record still names this node in the epoch it serves; an older record is only late news."""
    return shard is not None and (shard.epoch < serving or (shard.primary.node == me and shard.epoch == serving))


def _is_lost(shard: Shard, local: Mapping[ShardId, Local]) -> bool:
    return shard.epoch > FIRST_EPOCH and shard.id not in local


def lost(me: NodeId, incarnation: str, state: ClusterState, local: Mapping[ShardId, Local]) -> list[ShardId]:
    """Shards that this disk served once and whose directory is gone; an empty one must never take their place."""
    return [s.id for s in assigned(me, incarnation, state) if _is_lost(s, local)]


def orphans(me: NodeId, state: ClusterState, local: Mapping[ShardId, Local]) -> list[ShardId]:
    """Data on this node that no record speaks of and nobody dropped: kept, and reported for a person to judge."""
    return sorted(
        i
        for i in local
        if i.collection not in state.drops and (i not in state.shards or state.shards[i].primary.node != me)
    )
