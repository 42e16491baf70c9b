"""Which shards a collection has, and which points each of them owns: the one place that says so.

The records say it, by their ranges. A shard that has no record yet, since no node was given it, owns what it will be
given: an even part. Who wants all shards of a collection, or the shard of an id, asks the map and never counts, so that
a shard can later be split in two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from veccluster.decisions import hashing
from veccluster.errors import ShardsUnavailable
from veccluster.model.cluster import FIRST_EPOCH, ClusterState
from veccluster.model.state import POINTS, Collection, Shard, ShardId


class Range(NamedTuple):
    """The points from `start` on, before `end`."""

    start: int
    end: int


EVERYTHING = Range(0, POINTS)


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The shards' numbers in the order of their ranges, and the first point of each."""

    numbers: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def even(cls, shards: int) -> "ShardMap":
        """A new collection's: as many shards, numbered from 0, of even ranges."""
        return cls(tuple(range(shards)), hashing.starts(shards))

    @classmethod
    def of(cls, collection: Collection, records: Mapping[ShardId, Shard]) -> "ShardMap":
        """A collection's, by what the records say; `ShardsUnavailable` where they leave points to nobody, or to two."""
        planned = cls.even(collection.shards)
        ranges = [_range(records.get(ShardId(collection.uuid, n)), planned, n) for n in planned.numbers]
        found = _tiled(tuple(ranges))
        if found is None:
            raise ShardsUnavailable(
                f"the records of collection {collection.name} do not say of every id which one shard has it",
                missing_shards=list(planned.numbers),
            )
        return found

    def range_of(self, number: int) -> Range:
        """The points that a shard owns."""
        place = self.numbers.index(number)
        return Range(self.starts[place], (*self.starts, POINTS)[place + 1])

    def rows_by_shard(self, ids: Sequence[str]) -> dict[int, list[int]]:
        """The places of ids in their list by the number of the shard that has them, in the order of the list."""
        rows: dict[int, list[int]] = {}
        for row, place in enumerate(hashing.shards_of(ids, self.starts).tolist()):
            rows.setdefault(self.numbers[place], []).append(row)
        return rows


def _range(record: Shard | None, planned: ShardMap, number: int) -> Range:
    written = Range(record.start, record.end) if record else EVERYTHING
    return planned.range_of(number) if written == EVERYTHING else written  # which also stands for no range


@lru_cache(maxsize=256)
def _tiled(ranges: tuple[Range, ...]) -> ShardMap | None:
    """The map of these ranges, by number; None unless each point is in one of them."""
    numbers = sorted(range(len(ranges)), key=ranges.__getitem__)
    starts = [ranges[n].start for n in numbers]
    ends = [ranges[n].end for n in numbers]
    if [*starts, POINTS] != [0, *ends] or sorted(set(starts)) != starts:
        return None
    return ShardMap(tuple(numbers), tuple(starts))


def records_of(state: ClusterState, collection: Collection) -> list[Shard]:
    """The collection's shards that exist, by number."""
    ids = (ShardId(collection.uuid, n) for n in ShardMap.even(collection.shards).numbers)
    return [state.shards[i] for i in ids if i in state.shards]


def is_complete(state: ClusterState, collection: Collection) -> bool:
    """Whether every shard of the collection has been given to a node that has opened it once."""
    records = records_of(state, collection)
    return len(records) == collection.shards and all(s.epoch > FIRST_EPOCH for s in records)
