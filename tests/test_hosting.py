"""A node opens what is its own, serves only in an epoch that it took, and deletes only what was dropped."""

import msgspec
from hypothesis import given

from support.states import collection, host, lead, load, node, shard, states
from veccluster.decisions import hosting
from veccluster.decisions.hosting import Local
from veccluster.model.cluster import ClusterState, Drop
from veccluster.model.state import Epoch, Incarnation, Member, NodeId, ShardId

ME = node(0)
WORDS = collection("words", 2)


def _state(*shards: object) -> ClusterState:
    return ClusterState(
        nodes={ME.id: ME},
        alive={ME.id: load(ME.id)},
        collections={"words": WORDS},
        shards={s.id: s for s in shards},
    )


@given(states())
def test_rounds_end_with_every_own_shard_served_and_nothing_left_to_do(state: ClusterState) -> None:
    me = state.nodes[NodeId("n0")]
    local: dict[ShardId, Local] = {}
    for _ in range(4):
        state, local = host(state, me, local)
    assert list(hosting.decide(me.id, me.incarnation, state, local)) == []
    uuids = {c.uuid for c in state.collections.values()}
    mine = {i for i, s in state.shards.items() if s.primary.node == me.id and i.collection in uuids}
    assert {i for i, one in local.items() if one.serving is not None} == mine


@given(states())
def test_leader_and_nodes_together_leave_nothing_of_a_dropped_collection(state: ClusterState) -> None:
    disks: dict[NodeId, dict[ShardId, Local]] = {n: {} for n in state.nodes}
    for _ in range(6):
        for me in state.nodes.values():
            state, disks[me.id] = host(state, me, disks[me.id])
        state = lead(state)
    assert state.drops == {}
    assert {i.collection for i in state.shards} <= {c.uuid for c in state.collections.values()}
    assert all(i.collection in {c.uuid for c in state.collections.values()} for d in disks.values() for i in d)


def test_a_restarted_primary_takes_a_new_epoch_before_it_serves() -> None:
    served = shard(0, ME, epoch=Epoch(5))
    actions = list(hosting.decide(ME.id, ME.incarnation, _state(served), {served.id: Local(is_open=True)}))
    assert actions == [hosting.TakeEpoch(served)]


def test_a_wiped_disk_opens_nothing() -> None:
    served = shard(0, ME, epoch=Epoch(5))
    assert list(hosting.decide(ME.id, "another-disk", _state(served), {})) == []


def test_a_shard_whose_directory_is_gone_is_reported_and_never_made_anew() -> None:
    served = shard(0, ME, epoch=Epoch(5))
    assert list(hosting.decide(ME.id, ME.incarnation, _state(served), {})) == []
    assert hosting.lost(ME.id, ME.incarnation, _state(served), {}) == [served.id]


def test_a_primary_stops_serving_when_another_epoch_is_on_record() -> None:
    moved = shard(0, ME, epoch=Epoch(6), primary=Member(NodeId("n1"), Incarnation("disk-1")))
    serving = {moved.id: Local(is_open=True, serving=Epoch(5))}
    assert hosting.StopServing(moved.id) in list(hosting.decide(ME.id, ME.incarnation, _state(moved), serving))


def test_late_news_of_its_own_promotion_does_not_stop_a_primary() -> None:
    old = shard(0, ME, epoch=Epoch(5))
    serving = {old.id: Local(is_open=True, serving=Epoch(6))}
    assert list(hosting.decide(ME.id, ME.incarnation, _state(old), serving)) == []


def test_data_that_nobody_dropped_is_kept_and_reported_even_when_no_record_speaks_of_it() -> None:
    orphan = {ShardId("forgotten", 0): Local()}
    assert list(hosting.decide(ME.id, ME.incarnation, _state(), orphan)) == []
    assert hosting.orphans(ME.id, _state(), orphan) == [ShardId("forgotten", 0)]


def test_dropped_data_is_deleted_before_it_is_reported() -> None:
    gone = msgspec.structs.replace(_state(), collections={}, drops={WORDS.uuid: Drop(uuid=WORDS.uuid, name="words")})
    here = {ShardId(WORDS.uuid, 0): Local(is_open=True, serving=Epoch(2))}
    assert list(hosting.decide(ME.id, ME.incarnation, gone, here)) == [hosting.Delete(ShardId(WORDS.uuid, 0))]
    assert list(hosting.decide(ME.id, ME.incarnation, gone, {})) == [hosting.ReportDropped(WORDS.uuid)]
