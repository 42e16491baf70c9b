"""Immutable mappings that share with their successors what has not changed, and indexes that go with them.

A cluster's state has a row for each shard, and another state follows with each change. With plain dicts each would be a
copy of everything; here it is a copy of what lies beside the rows that changed.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from veccluster.model.state import Collection, NodeId, Shard, ShardId

K = TypeVar("K")
V = TypeVar("V")

BUCKETS = 512
"""Into so many dicts the rows are spread by their hashes: a change copies one of them, and the list of all."""


class Table(Mapping[K, V], Generic[K, V]):
    """An immutable mapping."""

    __slots__ = ("_buckets", "_count")

    def __init__(self, rows: Mapping[K, V] | None = None) -> None:
        self._buckets: tuple[dict[K, V], ...] = ({},) * BUCKETS
        self._count = 0
        if rows:
            self._fill(rows)

    def __getitem__(self, key: K) -> V:
        return self._buckets[hash(key) % BUCKETS][key]

    def __contains__(self, key: object) -> bool:
        return key in self._buckets[hash(key) % BUCKETS]

    def __iter__(self) -> Iterator[K]:
        for bucket in self._buckets:
            yield from bucket

    def __len__(self) -> int:
        return self._count

    def changed(self, news: Mapping[K, V | None]) -> "Table[K, V]":
        """What follows when these rows are as said, or gone."""
        after: Table[K, V] = Table()
        after._buckets, after._count = self._buckets, self._count
        after._fill(news)
        return after

    def _fill(self, news: Mapping[K, V | None]) -> None:
        buckets = list(self._buckets)
        fresh: set[int] = set()
        for key, value in news.items():
            at = hash(key) % BUCKETS
            if at not in fresh:
                fresh.add(at)
                buckets[at] = dict(buckets[at])
            bucket = buckets[at]
            self._count -= len(bucket)
            if value is None:
                bucket.pop(key, None)
            else:
                bucket[key] = value
            self._count += len(bucket)
        self._buckets = tuple(buckets)


class ShardTable(Mapping[ShardId, Shard]):
    """Records of shards, by id, by the nodes that they name, and by collection."""

    __slots__ = ("_by_collection", "_by_node", "_rows", "led")

    def __init__(self, rows: Mapping[ShardId, Shard] | None = None) -> None:
        self._rows: Table[ShardId, Shard] = Table()
        self._by_node: dict[NodeId, Table[ShardId, bool]] = {}
        self._by_collection: Table[str, frozenset[ShardId]] = Table()
        self.led: Mapping[NodeId, int] = {}
        """How many shards each node is primary of."""
        if rows:
            self._fill(rows)

    @classmethod
    def of(cls, shards: Mapping[ShardId, Shard]) -> "ShardTable":
        """The mapping as such a table."""
        return shards if isinstance(shards, cls) else cls(shards)

    def __getitem__(self, shard: ShardId) -> Shard:
        return self._rows[shard]

    def __contains__(self, shard: object) -> bool:
        return shard in self._rows

    def __iter__(self) -> Iterator[ShardId]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def on(self, node: NodeId) -> Mapping[ShardId, bool]:
        """The shards whose records name the node, be it as the one to hand over to."""
        return self._by_node.get(node, _NONE)

    def within(self, collection: str) -> frozenset[ShardId]:
        """The shards of the collection with this uuid that have records."""
        return self._by_collection.get(collection, frozenset())

    def changed(self, news: Mapping[ShardId, Shard | None]) -> "ShardTable":
        """What follows when these records are as said, or gone."""
        after = ShardTable()
        after._rows, after._by_node = self._rows, dict(self._by_node)
        after._by_collection, after.led = self._by_collection, self.led
        after._fill(news)
        return after

    def _fill(self, news: Mapping[ShardId, Shard | None]) -> None:
        nodes: dict[NodeId, dict[ShardId, bool | None]] = {}
        collections: dict[str, set[ShardId]] = {}
        led = dict(self.led)
        for shard, after in news.items():
            before = self._rows.get(shard)
            for node in _named(before):
                nodes.setdefault(node, {})[shard] = None
            for node in _named(after):
                nodes.setdefault(node, {})[shard] = True
            for record, by in ((before, -1), (after, 1)):
                if record:
                    led[record.primary.node] = led.get(record.primary.node, 0) + by
            if (before is None) != (after is None):
                held = collections.setdefault(shard.collection, set(self.within(shard.collection)))
                (held.add if after else held.discard)(shard)
        self._rows = self._rows.changed(news)
        for node, shards in nodes.items():
            self._by_node[node] = self._by_node.get(node, _NONE).changed(shards)
        self._by_collection = self._by_collection.changed(
            {c: frozenset(held) or None for c, held in collections.items()}
        )
        self.led = led


_NONE: Table[ShardId, bool] = Table()


def _named(record: Shard | None) -> Iterable[NodeId]:
    if record is None:
        return ()
    members = (*record.in_sync, *record.learners, record.primary)
    return {m.node for m in (*members, record.successor) if m}


class CollectionTable(Mapping[str, Collection]):
    """Collections by name, and by uuid."""

    __slots__ = ("_by_uuid", "_rows")

    def __init__(self, rows: Mapping[str, Collection] | None = None) -> None:
        self._rows: Table[str, Collection] = Table(rows)
        self._by_uuid: Table[str, Collection] = Table({c.uuid: c for c in (rows or {}).values()})

    @classmethod
    def of(cls, collections: Mapping[str, Collection]) -> "CollectionTable":
        """The mapping as such a table."""
        return collections if isinstance(collections, cls) else cls(collections)

    def __getitem__(self, name: str) -> Collection:
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def by_uuid(self) -> Mapping[str, Collection]:
        """The same by their uuids."""
        return self._by_uuid

    def changed(self, news: Mapping[str, Collection | None]) -> "CollectionTable":
        """What follows when these collections are as said, or gone."""
        uuids: dict[str, Collection | None] = {self._rows[n].uuid: None for n in news if n in self._rows}
        uuids |= {c.uuid: c for c in news.values() if c}
        after = CollectionTable()
        after._rows, after._by_uuid = self._rows.changed(news), self._by_uuid.changed(uuids)
        return after
