"""A node opens its own as who it is, deletes only what others have or what was dropped, and never begins anew alone."""

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from support.states import Host, collection, lead, load, node, shard, states
from veccluster.decisions import hosting
from veccluster.decisions.hosting import Disk, Kept, Local
from veccluster.model.cluster import ClusterState, Drop
from veccluster.model.state import Epoch, Incarnation, Member, NodeId, Shard, ShardId

ME, OTHER, THIRD = node(0), node(1), node(2)
WORDS = collection("words", 2)
SHARD = ShardId(WORDS.uuid, 0)
HERE, THERE = ME.member(SHARD), OTHER.member(SHARD)
LATER = Incarnation("later")
FRESH = Disk(ME.id, HERE.incarnation)
BEGUN = replace(FRESH, replicas={SHARD: Kept(HERE.incarnation, present=True)})
RENEWED = replace(FRESH, replicas={SHARD: Kept(LATER, present=False)})
AGAIN = Member(ME.id, LATER)

ALONE = shard(0, ME, epoch=Epoch(5))
SHARED = shard(0, ME, epoch=Epoch(5), in_sync=(HERE, THERE))
"""This node is primary, and another one is in sync."""


def _state(*shards: Shard, factor: int = 1) -> ClusterState:
    words = msgspec.structs.replace(WORDS, replication_factor=factor)
    return ClusterState(
        nodes={n.id: n for n in (ME, OTHER, THIRD)},
        alive={n.id: load(n.id, [s.id for s in shards if s.primary.node == n.id]) for n in (ME, OTHER, THIRD)},
        collections={"words": words},
        shards={s.id: s for s in shards},
    )


def _decided(disk: Disk, record: Shard, local: Local | None = None, factor: int = 1) -> list[hosting.Action]:
    return list(hosting.decide(disk, _state(record, factor=factor), {} if local is None else {record.id: local}))


def _open(record: Shard, member: Member = HERE) -> hosting.Open:
    return hosting.Open(record, WORDS, member)


@given(states())
def test_rounds_end_with_every_own_shard_open_and_nothing_left_to_do(state: ClusterState) -> None:
    host = Host.of(state.nodes[NodeId("n0")])
    for _ in range(4):
        state = host.round(state)
    assert list(hosting.decide(host.disk, state, host.local())) == []
    uuids = {c.uuid for c in state.collections.values()}
    mine = {i for i, s in state.shards.items() if s.member_on(host.disk.node) and i.collection in uuids}
    assert host.opened == mine


@given(states(), st.data())
def test_about_a_shard_at_rest_there_is_nothing_to_be_done(state: ClusterState, data: st.DataObject) -> None:
    host = Host.of(state.nodes[NodeId("n0")])
    for _ in range(data.draw(st.integers(0, 2))):
        state = host.round(state)
    shards = dict(state.shards)
    for gone in data.draw(st.sets(st.sampled_from(sorted(shards)))) if shards else ():
        away = Member(NodeId("elsewhere"), LATER)
        shards[gone] = msgspec.structs.replace(shards[gone], epoch=Epoch(7), primary=away, in_sync=(away,))
    host.damaged = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(host.data)))) if host.data else (), "bits")
    state, local = msgspec.structs.replace(state, shards=shards), host.local()
    known = {*local, *shards}
    restless = {i for i in known if not hosting.is_at_rest(host.disk, state, local, i)}
    assert list(hosting.decide(host.disk, state, local, restless)) == list(hosting.decide(host.disk, state, local))


@given(states())
def test_leader_and_nodes_together_leave_nothing_of_a_dropped_collection(state: ClusterState) -> None:
    hosts = [Host.of(n) for n in state.nodes.values()]
    for _ in range(6):
        for host in hosts:
            state = host.round(state)
        state = lead(state)
    assert state.drops == {}
    uuids = {c.uuid for c in state.collections.values()}
    assert {i.collection for i in state.shards} <= uuids
    assert all(i.collection in uuids for host in hosts for i in host.data)


def test_a_wiped_disk_opens_nothing() -> None:
    assert _decided(Disk(ME.id, LATER), ALONE) == []


def test_members_of_every_kind_are_opened_as_who_the_record_says() -> None:
    for record in (
        shard(0, OTHER, in_sync=(THERE, AGAIN)),
        shard(0, OTHER, learners=(AGAIN,)),
        shard(0, OTHER, primary=AGAIN, in_sync=(THERE, AGAIN)),
    ):
        assert _decided(RENEWED, record) == [_open(record, AGAIN)]


def test_the_only_copy_that_is_gone_is_reported_and_never_made_anew() -> None:
    for disk in (BEGUN, FRESH):  # node.json may be from before it said which replicas there are
        assert _decided(disk, ALONE) == []
        assert hosting.lost(disk, _state(ALONE), {}) == [SHARD]


def test_a_shard_that_was_never_served_is_made_again_when_its_directory_is_not_there() -> None:
    new = shard(0, ME, epoch=Epoch(0))
    assert _decided(BEGUN, new) == [_open(new)]
    assert hosting.lost(BEGUN, _state(new), {}) == []


def test_a_member_that_never_began_is_opened_whatever_the_epoch_is_by_now() -> None:
    assert _decided(FRESH, SHARED) == [_open(SHARED)]


def test_a_copy_that_is_gone_or_damaged_gets_another_incarnation_if_another_is_in_sync() -> None:
    led = msgspec.structs.replace(SHARED, primary=THERE)
    assert _decided(BEGUN, led) == [hosting.Renew(SHARD)]
    for is_open in (True, False):
        assert _decided(BEGUN, led, Local(is_open=is_open, damaged="flipped bits")) == [hosting.Renew(SHARD)]


def test_copies_that_are_damaged_do_not_count_on_one_another() -> None:
    damaged = Local(damaged="flipped bits")
    assert _decided(BEGUN, SHARED, damaged) == [], "another one must be primary first"
    state = _state(msgspec.structs.replace(SHARED, primary=THERE))
    silent = msgspec.structs.replace(state, alive={OTHER.id: load(OTHER.id)})
    assert list(hosting.decide(BEGUN, silent, {SHARD: damaged})) == [], "that one does not serve"


def test_a_learner_that_is_gone_gets_another_incarnation_since_the_primary_remembers_what_it_had() -> None:
    assert _decided(BEGUN, shard(0, OTHER, epoch=Epoch(5), learners=(HERE,))) == [hosting.Renew(SHARD)]


def test_the_only_copy_is_opened_although_it_is_damaged() -> None:
    damaged = Local(damaged="flipped bits")
    assert _decided(BEGUN, ALONE, damaged) == [_open(ALONE)]
    assert _decided(BEGUN, ALONE, replace(damaged, is_open=True)) == []


def test_another_disk_of_the_same_node_is_no_reason_to_renew() -> None:
    record = shard(0, ME, epoch=Epoch(5), in_sync=(HERE, AGAIN))
    assert _decided(BEGUN, record, Local(damaged="flipped bits")) == [_open(record)]


def test_what_an_earlier_incarnation_left_stays_until_the_record_names_the_new_one_beside_another_that_is_in_sync() -> (
    None
):
    assert _decided(RENEWED, SHARED, Local()) == []
    assert _decided(RENEWED, shard(0, ME, epoch=Epoch(5), primary=AGAIN, in_sync=(AGAIN,)), Local()) == []
    learning = shard(0, OTHER, epoch=Epoch(6), in_sync=(HERE, THERE), learners=(AGAIN,))
    assert _decided(RENEWED, learning, Local()) == [hosting.Clear(SHARD)]
    assert _decided(RENEWED, learning) == [_open(learning, AGAIN)]


def test_data_is_given_up_when_enough_others_are_in_sync_and_not_before() -> None:
    moved = shard(0, OTHER, epoch=Epoch(6), in_sync=(THERE, THIRD.member(SHARD)))
    assert _decided(BEGUN, moved, Local(is_open=True), factor=2) == [hosting.GiveUp(SHARD)]
    assert _decided(BEGUN, moved, Local(is_open=True), factor=3) == []
    assert hosting.spares(BEGUN, _state(moved, factor=3), {SHARD: Local()}) == [SHARD]


def test_data_that_others_should_have_is_kept_until_one_of_them_serves_it() -> None:
    moved = shard(0, OTHER, epoch=Epoch(6), in_sync=(THERE, THIRD.member(SHARD)))
    state = _state(moved, factor=2)
    for alive in ({}, {OTHER.id: load(OTHER.id)}):
        lost = msgspec.structs.replace(state, alive={ME.id: load(ME.id), **alive})
        assert list(hosting.decide(BEGUN, lost, {SHARD: Local()})) == []


def test_data_is_kept_while_the_record_names_any_disk_of_this_node() -> None:
    for record in (shard(0, OTHER, learners=(HERE,)), shard(0, OTHER, in_sync=(THERE, HERE))):
        assert hosting.GiveUp(SHARD) not in _decided(RENEWED, record, Local())


def test_open_replicas_are_shown_what_the_record_says() -> None:
    state = _state(SHARED, factor=2)
    ((seen, configuration),) = hosting.shown(BEGUN, state, {SHARD: Local(is_open=True)})
    assert (seen, configuration.epoch, configuration.primary, configuration.replicas) == (SHARD, 5, HERE, 2)
    assert list(hosting.shown(BEGUN, state, {SHARD: Local()})) == []


def test_a_damaged_replica_is_shown_something_only_if_nobody_else_is_in_sync() -> None:
    damaged = {SHARD: Local(is_open=True, damaged="flipped bits")}
    assert list(hosting.shown(BEGUN, _state(SHARED), damaged)) == []
    assert [i for i, _ in hosting.shown(BEGUN, _state(ALONE), damaged)] == [SHARD]


def test_data_that_nobody_dropped_is_kept_and_reported_even_when_no_record_speaks_of_it() -> None:
    orphan = {ShardId("forgotten", 0): Local()}
    assert list(hosting.decide(FRESH, _state(), orphan)) == []
    assert hosting.orphans(FRESH, _state(), orphan) == [ShardId("forgotten", 0)]


def test_dropped_data_is_deleted_before_it_is_reported() -> None:
    gone = msgspec.structs.replace(_state(), collections={}, drops={WORDS.uuid: Drop(uuid=WORDS.uuid, name="words")})
    assert list(hosting.decide(BEGUN, gone, {SHARD: Local(is_open=True)})) == [hosting.Delete(SHARD)]
    assert list(hosting.decide(BEGUN, gone, {})) == [hosting.ReportDropped(WORDS.uuid)]
