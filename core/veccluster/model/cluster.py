"""A cluster as one reader of etcd sees it at one revision: the input of every decision about it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from veccluster.model.state import Collection, Load, Node, NodeId, Revision, Shard, ShardId
from veccluster.model.tables import CollectionTable, ShardTable


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """`intents/drop/UUID`: a deleted collection whose shards' data the nodes still have to delete."""

    uuid: str
    name: str


class DroppedBy(NamedTuple):
    """`intents/drop/UUID/done/NODE`: the node holds nothing of the dropped collection any more."""

    uuid: str
    node: NodeId


class History(msgspec.Struct, frozen=True, kw_only=True):
    """`history`: written anew whenever a node finds that etcd went back to an older state (decisions/restored.py).

    A shard's record that does not name it is from before that, and nobody acts by it until it was looked at.
    """

    id: str = ""
    """Empty as long as etcd never went back."""
    before: tuple[str, ...] = ()
    """The ids that were in force before this one, as far as its writer knew."""
    why: str = ""
    """How it was found out, in words."""
    at: float = 0.0
    """When, by the clock of the node that found out; seconds since 1970."""

    def follows(self, known: "History") -> bool:
        """Whether it was written by somebody who knew that one, or a later one."""
        return known.id in self.before


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything under the cluster's prefix, decoded."""

    revision: Revision = Revision(0)
    collections: Mapping[str, Collection] = msgspec.field(default_factory=dict)
    """By name."""
    nodes: Mapping[NodeId, Node] = msgspec.field(default_factory=dict)
    alive: Mapping[NodeId, Load] = msgspec.field(default_factory=dict)
    shards: Mapping[ShardId, Shard] = msgspec.field(default_factory=dict)
    drops: Mapping[str, Drop] = msgspec.field(default_factory=dict)
    """By uuid."""
    dropped_by: frozenset[DroppedBy] = frozenset()
    leader: NodeId | None = None
    history: History = History()
    unsettled: Mapping[ShardId, Shard] = msgspec.field(default_factory=dict)
    """What etcd says of shards and nobody may act by, since it went back and may have forgotten later changes. `shards`
    has what was known of them before, if anything was: enough to find those who serve them."""
    unreadable: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Keys whose values cannot be read, and why. What they said before still counts, if they ever said anything."""

    def collection_of(self, shard: ShardId) -> Collection | None:
        """The collection that the shard belongs to; None when it was dropped."""
        return CollectionTable.of(self.collections).by_uuid.get(shard.collection)

    def indexed(self) -> "ClusterState":
        """The same with tables for mappings, if it was made by hand without: so that it is looked through only once."""
        if isinstance(self.shards, ShardTable) and isinstance(self.collections, CollectionTable):
            return self
        tables = {"shards": ShardTable.of(self.shards), "unsettled": ShardTable.of(self.unsettled)}
        return msgspec.structs.replace(self, **tables, collections=CollectionTable.of(self.collections))

    def shards_on(self, node: NodeId) -> Mapping[ShardId, bool]:
        """The shards whose records name the node."""
        return ShardTable.of(self.shards).on(node)

    def shards_within(self, collection: str) -> frozenset[ShardId]:
        """The shards of the collection with this uuid that have records, be they settled or not."""
        tables = (ShardTable.of(self.shards), ShardTable.of(self.unsettled))
        return tables[0].within(collection) | tables[1].within(collection)

    def live_nodes(self) -> Iterable[Node]:
        """The nodes whose lease is there, by id."""
        return (self.nodes[i] for i in sorted(self.nodes) if i in self.alive)


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """How a state may differ from an earlier one: of shards and collections all else is as it was. Nodes are few, and
    whoever decides by them looks at all."""

    everything: bool = False
    shards: frozenset[ShardId] = frozenset()
    """Whose records were written, or are gone."""
    collections: frozenset[str] = frozenset()
    """The uuids of those that were created or deleted, or of which a node deleted its part."""

    def then(self, later: "Changes") -> "Changes":
        """These, and others after them."""
        if self.everything or later.everything:
            return EVERYTHING
        return Changes(shards=self.shards | later.shards, collections=self.collections | later.collections)


EVERYTHING = Changes(everything=True)

FIRST_EPOCH = 0
"""A shard is written down in this epoch, which nobody ever serves; its primary takes the next one first (rule 7)."""
