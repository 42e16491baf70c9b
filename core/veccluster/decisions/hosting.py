"""Decide what a node does about its own shards: open them, begin them anew, give them up, delete them.

Pure: the node reads the cluster's state, what its disk holds and what it has open, calls `decide`, and carries the
actions out; each can fail or be interrupted, and the next round sees what is left. Who serves which epoch is not
decided here: an open replica finds out itself from what it is shown (`shown`). Rules 9, 11 and 12 of
docs/replication.md.

Invariant: data is deleted only if its collection was dropped, or if the record names enough others that are in sync,
of which one serves, and none of this node's disks that hold it; a replica is made empty only as a member that never
held anything.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from veccluster.decisions.replication.values import Configuration
from veccluster.model.cluster import FIRST_EPOCH, ClusterState, DroppedBy
from veccluster.model.state import Collection, Incarnation, Member, NodeId, Shard, ShardId
from veccluster.model.tables import CollectionTable


@dataclass(frozen=True, slots=True)
class Local:
    """A shard's data on this node: open or only on disk, and why this copy cannot be relied on, if it cannot."""

    is_open: bool = False
    damaged: str | None = None
    """It may lack what was acknowledged, or contradicts the primary's."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the disk says about one replica: its incarnation, and whether that was ever begun here."""

    incarnation: Incarnation
    present: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """Who this node is, and which replicas it has begun: node.json (identity.py)."""

    node: NodeId
    incarnation: Incarnation
    replicas: Mapping[ShardId, Kept] = field(default_factory=dict)

    def member(self, shard: ShardId) -> Member:
        """This node as a member of the shard: with the incarnation that its replica has, or would be begun with."""
        kept = self.replicas.get(shard)
        return Member(self.node, kept.incarnation if kept else self.incarnation)

    def has_begun(self, shard: ShardId) -> bool:
        """Whether there was, or is, a replica of the present incarnation here."""
        kept = self.replicas.get(shard)
        return kept is not None and kept.present


@dataclass(frozen=True, slots=True)
class Open:
    """Open the replica of `member`, made empty if it was never begun."""

    record: Shard
    collection: Collection
    member: Member


@dataclass(frozen=True, slots=True)
class Renew:
    """Take another incarnation for a replica that is gone, damaged, or in contradiction to the primary's (9)."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class Clear:
    """Delete what an earlier incarnation left, to begin the one that the record names."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Others have the shard: take another incarnation, and delete the data (12)."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class Delete:
    """The collection was dropped on purpose: close the replica and delete its data."""

    shard: ShardId


@dataclass(frozen=True, slots=True)
class ReportDropped:
    """Tell the leader that nothing of the collection is left here."""

    uuid: str


Action = Open | Renew | Clear | GiveUp | Delete | ReportDropped
Locals = Mapping[ShardId, Local]


def decide(
    disk: Disk, state: ClusterState, local: Locals, only: AbstractSet[ShardId] | None = None
) -> Iterator[Action]:
    """Yield what the state asks of this node, in the order in which it must be done; about shards, of `only` those.

    Nothing about a shard whose record may be from before later changes that etcd has forgotten.
    """
    state = state.indexed()
    by_uuid = CollectionTable.of(state.collections).by_uuid
    for shard in sorted(local if only is None else (i for i in only if i in local)):
        record, collection = state.shards.get(shard), by_uuid.get(shard.collection)
        if shard.collection in state.drops:
            yield Delete(shard)
        elif shard in state.unsettled:
            continue
        elif record and collection and is_given_up(disk.node, record, collection, state):
            yield GiveUp(shard)
    for record in assigned(disk, state, only):
        collection = by_uuid.get(record.id.collection)
        if collection and record.id not in state.unsettled:
            yield from _take_on(disk, record, collection, local, state)
    held = {i.collection for i in local} if state.drops else frozenset[str]()
    for uuid in sorted(state.drops):
        if uuid not in held and DroppedBy(uuid, disk.node) not in state.dropped_by:
            yield ReportDropped(uuid)


def _take_on(disk: Disk, record: Shard, collection: Collection, local: Locals, state: ClusterState) -> Iterator[Action]:
    """The next step for a shard whose record names this node's member."""
    shard = record.id
    member, mine, begun = disk.member(shard), local.get(shard), disk.has_begun(shard)
    if is_gone(disk, record, local) or (mine and begun and mine.damaged):
        if may_renew(record, member):
            if is_served_elsewhere(disk.node, record, state):
                yield Renew(shard)
            return
        if mine is None:
            return  # the only copy: an empty one must never take its place
    if mine and not begun:
        if is_served_elsewhere(disk.node, record, state):
            yield Clear(shard)
    elif mine is None or not mine.is_open:
        yield Open(record, collection, member)


def shown(
    disk: Disk, state: ClusterState, local: Locals, only: AbstractSet[ShardId] | None = None
) -> Iterator[tuple[ShardId, Configuration]]:
    """Yield what each open replica is to know of its shard; of `only` those shards.

    One that is about to be renewed is told nothing more, so that it takes no part in anything.
    """
    by_uuid = CollectionTable.of(state.collections).by_uuid
    for shard in sorted(local if only is None else (i for i in only if i in local)):
        mine, record, collection = local[shard], state.shards.get(shard), by_uuid.get(shard.collection)
        if not mine.is_open or record is None or collection is None or shard in state.unsettled:
            continue
        if not (mine.damaged and is_held_by_others(record, disk.member(shard))):
            yield shard, Configuration.of(record, collection.replication_factor)


def is_at_rest(disk: Disk, state: ClusterState, local: Locals, shard: ShardId) -> bool:
    """Whether there is nothing to be done about a shard here, and nothing that is only waited for.

    It stays so until its record, its collection, or the replica itself is another.
    """
    record, mine = state.shards.get(shard), local.get(shard)
    if record is None or disk.member(shard) not in record.members or state.collection_of(shard) is None:
        return mine is None
    is_well = mine is not None and mine.is_open and mine.damaged is None and disk.has_begun(shard)
    return is_well and shard not in state.unsettled


def assigned(disk: Disk, state: ClusterState, only: AbstractSet[ShardId] | None = None) -> list[Shard]:
    """The shards of the collections that there are whose record names this node with the disk that it has, by id.

    The records of a collection that was just dropped are still there, and mean nothing any more.
    """
    there, records = CollectionTable.of(state.collections).by_uuid, state.shards
    named = state.shards_on(disk.node)
    mine = (records[i] for i in (named if only is None else [i for i in only if i in named]) if i.collection in there)
    return sorted((s for s in mine if disk.member(s.id) in s.members), key=lambda s: s.id)


def is_held_by_others(record: Shard | Configuration, member: Member) -> bool:
    """Whether a replica of another node has everything that was acknowledged."""
    return any(m.node != member.node for m in record.in_sync)


def may_renew(record: Shard | Configuration, member: Member) -> bool:
    """Whether nothing is lost if `member` is empty from now on."""
    return record.epoch == FIRST_EPOCH or is_held_by_others(record, member)


def is_served_elsewhere(me: NodeId, record: Shard, state: ClusterState) -> bool:
    """Whether another node's replica is known to be good: it serves, which one that is damaged itself does not.

    Else all copies that were damaged at once would each begin anew, each counting on the others.
    """
    if record.epoch == FIRST_EPOCH:
        return True
    load = state.alive.get(record.primary.node)
    return record.primary.node != me and load is not None and str(record.id) in load.serving


def is_unneeded(me: NodeId, record: Shard, collection: Collection) -> bool:
    """Whether this node's data is one copy more than the shard should have, and the record speaks of it no more."""
    return all(m.node != me for m in record.members) and len(record.in_sync) >= collection.replication_factor


def is_given_up(me: NodeId, record: Shard, collection: Collection, state: ClusterState) -> bool:
    """Whether this node's data can go: nobody needs it, and those who have the shard are not all away.

    If they were, it might be all that is left (lost_quorum.py).
    """
    return is_unneeded(me, record, collection) and is_served_elsewhere(me, record, state)


def is_gone(disk: Disk, record: Shard, local: Locals) -> bool:
    """Whether the replica was begun and its directory is not there any more.

    One that was never begun is the only one that is in sync only if it is from before that was noted: it served.
    """
    if record.id in local or record.epoch == FIRST_EPOCH:
        return False
    member = disk.member(record.id)
    return disk.has_begun(record.id) or (member in record.in_sync and not is_held_by_others(record, member))


def lost(disk: Disk, state: ClusterState, local: Locals) -> list[ShardId]:
    """Shards of which this disk had the only copy, and whose directory is gone."""
    return [
        s.id for s in assigned(disk, state) if is_gone(disk, s, local) and not is_held_by_others(s, disk.member(s.id))
    ]


def orphans(disk: Disk, state: ClusterState, local: Locals) -> list[ShardId]:
    """Data on this node that no record speaks of and nobody dropped: kept, and reported for a person to judge."""
    known = (state.shards, state.unsettled)
    return sorted(i for i in local if i.collection not in state.drops and not any(i in of for of in known))


def spares(disk: Disk, state: ClusterState, local: Locals) -> list[ShardId]:
    """Data of shards whose records do not name this node, kept because they have too few copies that are in sync."""
    by_uuid = CollectionTable.of(state.collections).by_uuid
    return sorted(
        i
        for i in local
        if (record := state.shards.get(i))
        and (collection := by_uuid.get(i.collection))
        and all(m.node != disk.node for m in record.members)
        and not is_unneeded(disk.node, record, collection)
    )
