"""Where ids live and where shards go: balance, spread, zones, and as little movement as can be."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.generators import node, nodes, shards, shards_of
from veccluster.decisions import hashing
from veccluster.decisions.placement import SLACK, Placement, extend, place
from veccluster.model.state import POINTS, Node, ShardId

unhurried = settings(deadline=None, max_examples=60)
"""A machine that does other things as well is not a failure."""

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
factors = st.integers(1, 4)
zone_counts = st.integers(0, 4)

# --- ids to points, points to ranges ---


@pytest.mark.parametrize(
    ("id_", "point"),
    [
        ("", 0x2D06800538D394C2),
        ("a", 0xE6C632B61E964E1F),
        ("doc1", 0x7178099D0C37788E),
        ("é", 0xF7940A006CF10CB3),
        ("日本", 0x2C17FB837F1A1BC0),
        ("x" * 512, 0x12A81A98C393EA66),
    ],
)
def test_points_are_part_of_the_format_and_never_change(id_, point):
    assert hashing.point_of(id_) == point


@unhurried
@given(st.integers(1, 128))
def test_ranges_cover_all_points_once_and_evenly(count):
    found = hashing.ranges(count)
    assert [start for start, _ in found] == list(hashing.starts(count))
    assert (found[0][0], found[-1][1]) == (0, POINTS)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    lengths = [end - start for start, end in found]
    assert max(lengths) - min(lengths) <= 1


def test_there_is_no_collection_without_shards():
    with pytest.raises(ValueError, match="at least one shard, not 0"):
        hashing.starts(0)


@unhurried
@given(st.integers(1, 128), st.data())
def test_a_point_belongs_to_the_range_that_holds_it(count, data):
    found = hashing.ranges(count)
    edges = [p for start, end in found for p in (start, end - 1)]
    point = data.draw(st.one_of(st.sampled_from(edges), st.integers(0, POINTS - 1)))
    start, end = found[hashing.shard_of(point, found)]
    assert start <= point < end


@unhurried
@given(st.lists(ids), st.integers(1, 128))
def test_many_ids_at_once_go_where_each_goes_alone(some, count):
    found = hashing.ranges(count)
    alone = [hashing.shard_of(hashing.point_of(i), found) for i in some]
    assert hashing.shards_of(some, hashing.starts(count)).tolist() == alone


def test_ids_spread_evenly():
    counts = np.bincount(hashing.shards_of([f"doc{i}" for i in range(30_000)], hashing.starts(6)))
    assert counts.min() > 4_750 and counts.max() < 5_250


# --- shards to nodes ---


def loads(placed: Placement, among: list[Node]) -> list[int]:
    held = Counter(n for holders in placed.values() for n in holders)
    return [held[n.id] for n in among]


def of_collection(placed: Placement, collection: str) -> Placement:
    return {s: h for s, h in placed.items() if s.collection == collection}


def apart(counts: list[int]) -> int:
    return max(counts) - min(counts)


def copied(before: Placement, after: Placement) -> Counter[str]:
    """Replicas that each node must fetch."""
    return Counter(n for shard, holders in after.items() for n in holders if n not in before[shard])


A_REPLICA_OR_TWO = 2


@unhurried
@given(shards(), nodes(zones=zone_counts), factors)
def test_every_shard_has_its_replicas_on_distinct_nodes(some, among, factor):
    placed = place(some, among, factor)
    assert placed.keys() == set(some)
    for holders in placed.values():
        assert len(set(holders)) == len(holders) == min(factor, len(among))
        assert set(holders) <= {n.id for n in among}


@unhurried
@given(shards(), nodes(zones=zone_counts), factors)
def test_replicas_are_in_distinct_zones_where_there_are_enough(some, among, factor):
    zone = {n.id: n.zone for n in among}
    for holders in place(some, among, factor).values():
        assert len({zone[n] for n in holders}) == min(factor, len(set(zone.values())))


@unhurried
@given(shards(), nodes(), factors)
def test_every_collection_is_spread_evenly(some, among, factor):
    placed = place(some, among, factor)
    for collection in {s.collection for s in some}:
        assert apart(loads(of_collection(placed, collection), among)) <= 1


def test_a_collection_of_three_shards_uses_each_of_three_nodes():
    among = [node("a"), node("b"), node("c")]
    for name in "abcdefgh":
        assert loads(place(shards_of(name, 3), among, 1), among) == [1, 1, 1]


@unhurried
@given(shards(), nodes(), factors)
def test_all_replicas_together_are_spread_evenly(some, among, factor):
    placed = place(some, among, factor)
    mean = len(some) * min(factor, len(among)) / len(among)
    assert apart(loads(placed, among)) <= max(1, floor(mean * SLACK))


@unhurried
@given(shards(), nodes(), factors)
def test_primaries_are_spread(some, among, factor):
    led = {s: holders[:1] for s, holders in place(some, among, factor).items()}
    for collection in {s.collection for s in some}:
        assert apart(loads(of_collection(led, collection), among)) <= 2
    mean = len(some) / len(among)
    assert max(loads(led, among)) <= ceil(mean) + max(2, floor(mean * SLACK))


@unhurried
@given(shards(), nodes(zones=zone_counts), factors, st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_plays_no_part(some, among, factor, random):
    placed = place(some, among, factor)
    shuffled_shards, shuffled_nodes = list(some), list(among)
    random.shuffle(shuffled_shards)
    random.shuffle(shuffled_nodes)
    assert place(shuffled_shards, shuffled_nodes, factor) == placed


def test_another_process_decides_the_same():
    code = (
        "from veccluster.decisions.placement import place; from veccluster.model.state import *;"
        "ns = [Node(id=NodeId(f'n{i}'), address='', peer_address='', zone=f'z{i % 2}') for i in range(5)];"
        "print(place({ShardId(c, i) for c in 'abc' for i in range(7)}, ns, 2))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != ""


@unhurried
@given(shards(), nodes(zones=zone_counts), factors)
def test_placing_a_placement_moves_nothing(some, among, factor):
    placed = place(some, among, factor)
    assert place(some, among, factor, placed) == placed


@unhurried
@given(shards(), nodes(min_size=2, zones=zone_counts), factors, st.data())
def test_placing_settles_at_once_from_any_start(some, among, factor, data):
    start = {s: data.draw(st.lists(st.sampled_from([n.id for n in among]), max_size=4)) for s in some[:20]}
    placed = place(some, among, factor, start)
    assert place(some, among, factor, placed) == placed


@settings(max_examples=120, deadline=None)
@given(shards(), nodes(min_size=2), factors)
def test_a_node_that_joins_takes_its_share_and_nothing_else_moves(some, among, factor):
    *there, new = among
    before = place(some, there, factor)
    after = place(some, among, factor, before)
    fetched = copied(before, after)
    mean = sum(map(len, after.values())) / len(among)
    assert fetched[new.id] <= ceil(mean)
    assert fetched[new.id] >= floor(mean) - max(1, floor(mean * SLACK))
    assert fetched.total() - fetched[new.id] <= A_REPLICA_OR_TWO


@settings(max_examples=120, deadline=None)
@given(shards(), nodes(min_size=2), factors)
def test_what_a_leaving_node_held_is_spread_and_nothing_else_moves(some, among, factor):
    gone, *left = among
    before = place(some, among, factor)
    after = place(some, left, factor, before)
    lost = sum(gone.id in holders for holders in before.values()) if len(left) >= factor else 0
    fetched = copied(before, after)
    assert fetched.total() <= lost + A_REPLICA_OR_TWO
    assert apart(loads(after, left)) <= max(1, floor(sum(map(len, after.values())) / len(left) * SLACK))


@unhurried
@given(shards(), nodes(min_size=2, zones=st.integers(2, 4)), factors)
def test_with_zones_a_node_that_joins_is_nearly_all_that_fetches(some, among, factor):
    *there, new = among
    if new.zone not in {n.zone for n in there}:
        return  # a new zone is worth moving for
    before = place(some, there, factor)
    fetched = copied(before, place(some, among, factor, before))
    assert fetched.total() - fetched[new.id] <= max(A_REPLICA_OR_TWO, fetched.total() // 4)


@unhurried
@given(shards(), nodes(zones=zone_counts), factors, st.data())
def test_extending_moves_nothing_and_changes_no_primary(some, among, factor, data):
    start = {
        s: tuple(data.draw(st.lists(st.sampled_from([n.id for n in among]), unique=True, max_size=factor)))
        for s in some[:20]
    }
    extended = extend(some, among, factor, start)
    for shard, holders in start.items():
        assert set(holders) <= set(extended[shard])
        assert not holders or extended[shard][0] == holders[0]
    assert all(len(h) == min(factor, len(among)) for h in extended.values())


@unhurried
@given(shards(), nodes(min_size=3), st.data())
def test_a_new_collection_leaves_the_others_alone(some, among, data):
    before = place(some, among, 2)
    new = shards_of("new", data.draw(st.integers(1, 9)))
    after = extend([*some, *new], among, 2, before)
    assert {s: after[s] for s in some} == before
    assert apart(loads({s: after[s] for s in new}, among)) <= 1


def test_each_collection_may_have_its_own_factor():
    among = [node("a"), node("b"), node("c")]
    placed = place([ShardId("x", 0), ShardId("y", 0)], among, {"x": 1, "y": 3})
    assert [len(h) for h in placed.values()] == [1, 3]


def test_without_nodes_there_are_no_replicas():
    assert place([ShardId("x", 0)], [], 3) == {ShardId("x", 0): ()}


def test_a_new_zone_is_used_for_shards_that_had_only_one():
    before = place(shards_of("x", 8), [node("a", "east"), node("b", "east")], 2)
    after = place(shards_of("x", 8), [node("a", "east"), node("b", "east"), node("c", "west")], 2, before)
    assert all("c" in holders for holders in after.values())
    assert copied(before, after).total() == 8
