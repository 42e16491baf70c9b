"""The leader gives every shard to a living node once, and clears away what was dropped."""

import msgspec
from hypothesis import given

from support.states import collection, lead, load, node, states
from veccluster.decisions import assignment
from veccluster.model.cluster import FIRST_EPOCH, ClusterState, Drop, DroppedBy
from veccluster.model.state import POINTS, NodeId, ShardId


@given(states())
def test_deciding_twice_changes_nothing(state: ClusterState) -> None:
    after = lead(state)
    assert lead(after) == after


@given(states())
def test_every_shard_of_every_collection_gets_a_living_node_when_there_is_one(state: ClusterState) -> None:
    after = lead(state)
    for wanted in after.collections.values():
        made = after.shards_of(wanted)
        fresh = [s for s in made if s.id not in state.shards]
        assert all(s.primary.node in state.alive for s in fresh)
        assert len(made) == wanted.shards or not state.alive


@given(states())
def test_the_ranges_of_a_collection_cover_every_point_once(state: ClusterState) -> None:
    for wanted in lead(state).collections.values():
        made = lead(state).shards_of(wanted)
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
def test_a_shard_that_a_dead_node_never_opened_goes_to_a_living_one(state: ClusterState) -> None:
    after = lead(msgspec.structs.replace(state, alive={NodeId("n0"): load(NodeId("n0"))}))
    uuids = {c.uuid for c in after.collections.values()}
    assert all(s.primary.node == "n0" for i, s in after.shards.items() if i.collection in uuids)


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
