"""The leader gives every shard to a living node once, and clears away what was dropped."""

import msgspec
from hypothesis import given

from support.states import collection, lead, load, node, states
from veccluster.decisions import assignment
from veccluster.decisions.shard_map import records_of
from veccluster.model.cluster import FIRST_EPOCH, ClusterState, Drop, DroppedBy
from veccluster.model.state import POINTS, NodeId, ShardId


@given(states())
def test_deciding_twice_changes_nothing(state: ClusterState) -> None:
    after = lead(state)
    assert lead(after) == after


@given(states())
def test_every_shard_gets_as_many_living_nodes_as_it_asks_for_or_there_are_if_they_are_enough(
    state: ClusterState,
) -> None:
    after = lead(state)
    for wanted in after.collections.values():
        made = records_of(after, wanted)
        assert len(made) == wanted.shards or wanted.min_in_sync > len(state.alive)
        for fresh in (s for s in made if s.id not in state.shards):
            holders = [m.node for m in fresh.in_sync]
            assert len(holders) == len(set(holders)) == min(wanted.replication_factor, len(state.alive))
            assert set(holders) <= set(state.alive)
            assert fresh.primary in fresh.in_sync
            assert len(holders) >= fresh.min_in_sync == wanted.min_in_sync


@given(states())
def test_the_ranges_of_a_collection_cover_every_point_once(state: ClusterState) -> None:
    for wanted in lead(state).collections.values():
        made = records_of(lead(state), wanted)
        if made:
            assert [s.start for s in made] == [0, *(s.end for s in made[:-1])]
            assert made[-1].end == POINTS


@given(states())
def test_a_shard_that_was_ever_opened_is_never_moved(state: ClusterState) -> None:
    served = {i: msgspec.structs.replace(s, epoch=FIRST_EPOCH + 1) for i, s in state.shards.items()}
    after = lead(msgspec.structs.replace(state, shards=served))
    for shard_id, before in served.items():
        if shard_id.collection not in state.drops:
            assert after.shards[shard_id] == before


@given(states())
def test_a_shard_that_was_never_served_goes_to_nodes_that_live(state: ClusterState) -> None:
    after = lead(msgspec.structs.replace(state, alive={NodeId("n0"): load(NodeId("n0"))}))
    for wanted in after.collections.values():
        for made in records_of(after, wanted):
            assert {m.node for m in made.in_sync} == {"n0"} or wanted.min_in_sync > 1


def test_a_disk_that_was_replaced_before_its_shards_were_served_is_given_them_as_the_new_one() -> None:
    nodes = {node(i).id: node(i) for i in range(2)}
    words = collection("words", 2, factor=2)
    state = lead(ClusterState(nodes=nodes, alive={i: load(i) for i in nodes}, collections={"words": words}))
    nodes[NodeId("n0")] = msgspec.structs.replace(nodes[NodeId("n0")], incarnation="new-disk")
    after = lead(msgspec.structs.replace(state, nodes=nodes))
    assert all({m.incarnation for m in s.in_sync} == {"new-disk", "disk-1"} for s in after.shards.values())


def test_a_collection_waits_until_there_are_nodes_for_the_copies_that_writes_ask_for() -> None:
    nodes = {node(i).id: node(i) for i in range(3)}
    words = collection("words", 1, factor=3)
    state = ClusterState(nodes=nodes, alive={NodeId("n0"): load(NodeId("n0"))}, collections={"words": words})
    assert lead(state).shards == {}
    two = msgspec.structs.replace(state, alive={NodeId(f"n{i}"): load(NodeId(f"n{i}")) for i in range(2)})
    assert [len(s.in_sync) for s in lead(two).shards.values()] == [2]


def test_a_drop_is_finished_only_when_every_node_has_reported() -> None:
    nodes = {node(i).id: node(i) for i in range(2)}
    state = ClusterState(nodes=nodes, alive={}, drops={"u": Drop(uuid="u", name="words")})
    one = msgspec.structs.replace(state, dropped_by=frozenset({DroppedBy("u", node(0).id)}))
    both = msgspec.structs.replace(state, dropped_by=frozenset(DroppedBy("u", n) for n in nodes))
    assert list(assignment.decide(one)) == []
    assert list(assignment.decide(both)) == [assignment.FinishDrop("u")]


def test_a_new_collection_is_spread_one_shard_a_node() -> None:
    nodes = {node(i).id: node(i) for i in range(3)}
    words = collection("words", 3)
    state = ClusterState(nodes=nodes, alive={i: load(i) for i in nodes}, collections={"words": words})
    made = lead(state).shards
    assert {s.primary.node for s in made.values()} == set(nodes)
    assert {s.epoch for s in made.values()} == {FIRST_EPOCH}
    assert made[ShardId(words.uuid, 0)].primary.incarnation.startswith("disk-")
