"""Which shard an id belongs to, as the records say it: also once a shard was split, or while some have no record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.states import collection, node
from veccluster.decisions import hashing
from veccluster.decisions.shard_map import ShardMap
from veccluster.errors import ShardsUnavailable
from veccluster.model.state import POINTS, Epoch, Shard, ShardId

WORDS = collection("words", 4)


def records(*ranges: tuple[int, int] | None) -> dict[ShardId, Shard]:
    """Of each shard by its number; None has no record."""
    found = {}
    for number, range_ in enumerate(ranges):
        if range_:
            shard = ShardId(WORDS.uuid, number)
            me, (start, end) = node(0).member(shard), range_
            found[shard] = Shard(id=shard, epoch=Epoch(1), primary=me, in_sync=(me,), start=start, end=end)
    return found


@given(st.lists(st.text(min_size=1)), st.integers(1, 128))
def test_new_collections_are_cut_evenly_and_each_id_is_in_one_shard(ids, count):
    rows = ShardMap.even(count).rows_by_shard(ids)
    assert sorted(row for places in rows.values() for row in places) == list(range(len(ids)))
    ranges = hashing.ranges(count)
    for number, places in rows.items():
        assert ShardMap.even(count).range_of(number) == ranges[number]
        assert places == sorted(places)
        assert {hashing.shard_of(hashing.point_of(ids[row]), ranges) for row in places} == {number}


def test_shards_without_a_record_own_what_they_will_be_given():
    assert ShardMap.of(WORDS, {}) == ShardMap.even(4)
    some = records(None, hashing.ranges(4)[1])
    assert ShardMap.of(WORDS, some) == ShardMap.even(4)


def test_a_record_that_names_no_range_owns_its_even_part():
    assert ShardMap.of(WORDS, records(*[(0, POINTS)] * 4)) == ShardMap.even(4)


def test_the_records_say_where_an_id_is_not_the_count():
    """As after a split: the last shard has taken the second half of the first one."""
    quarter = POINTS // 4
    split = records((0, quarter), (2 * quarter, 3 * quarter), (3 * quarter, POINTS), (quarter, 2 * quarter))
    found = ShardMap.of(WORDS, split)
    assert found.numbers == (0, 3, 1, 2)
    assert [found.range_of(n) for n in range(4)] == [(r.start, r.end) for r in split.values()]
    ids = [f"id-{n}" for n in range(200)]
    owner = {row: number for number, rows in found.rows_by_shard(ids).items() for row in rows}
    for row, id_ in enumerate(ids):
        start, end = found.range_of(owner[row])
        assert start <= hashing.point_of(id_) < end


@pytest.mark.parametrize("end", [POINTS // 4 - 1, POINTS // 4 + 1, 0])
def test_no_id_is_sent_by_records_that_leave_points_to_nobody_or_to_two(end):
    ranges = hashing.ranges(4)
    with pytest.raises(ShardsUnavailable, match="collection words do not say"):
        ShardMap.of(WORDS, records((0, end), *ranges[1:]))
