"""The leader promotes only who has everything, waits for nodes before it replaces them, and comes to rest."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from support.replication import (
    SHARDS,
    Nodes,
    Shards,
    configuration,
    follow,
    lead,
    member,
    nodes,
    placements,
    seen,
    shards,
)
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.failover import Dismiss, Enlist, Promote, Unavailable
from veccluster.model.state import NodeId, ShardId

in_its_own_time = settings(deadline=None)


def _serves(nodes: Nodes, shard: ShardId, who: object) -> bool:
    node = nodes.get(who.node)
    return node is not None and node.serving and node.member(shard) == who and shard not in node.broken


@in_its_own_time
@given(shards(), nodes())
def test_only_a_member_that_is_in_sync_on_its_recorded_disk_is_promoted(shards: Shards, nodes: Nodes) -> None:
    for action in lead(shards, nodes)[1]:
        if isinstance(action, Promote):
            before = shards[action.shard]
            assert action.target.primary in before.in_sync
            assert _serves(nodes, action.shard, action.target.primary)
            others = [m for m in before.in_sync - {before.primary} if _serves(nodes, action.shard, m)]
            old = frozenset({before.primary} if len(others) >= before.min_in_sync else ())
            assert action.target.in_sync == before.in_sync - old, "who is replaced learns if enough others serve"
            learns = {nodes[m.node].member(action.shard) if m.node in nodes else m for m in old}
            assert action.target.learners == before.learners | learns
            sets = {"in_sync": action.target.in_sync, "learners": action.target.learners}
            assert action.target == replace(before, primary=action.target.primary, epoch=before.epoch + 1, **sets)


@in_its_own_time
@given(shards(), nodes())
def test_a_primary_that_serves_stays_and_one_that_does_not_is_replaced_or_missed(shards: Shards, nodes: Nodes) -> None:
    done = {a.shard: a for a in lead(shards, nodes)[1] if isinstance(a, Promote | Unavailable)}
    for shard, before in shards.items():
        if _serves(nodes, shard, before.primary):
            assert shard not in done
        elif any(_serves(nodes, shard, m) for m in before.in_sync):
            assert isinstance(done[shard], Promote)
        else:
            assert done[shard] == Unavailable(shard, tuple(sorted(before.in_sync)))


@in_its_own_time
@given(shards(), nodes())
def test_a_primary_that_hears_too_few_makes_room_if_the_others_are_enough(shards: Shards, nodes: Nodes) -> None:
    told = {i: replace(n, cut_off=frozenset(shards)) for i, n in nodes.items()}
    calm, done = ({a.shard: a for a in lead(shards, seen)[1] if isinstance(a, Promote)} for seen in (nodes, told))
    for shard, before in shards.items():
        others = [m for m in before.in_sync - {before.primary} if _serves(nodes, shard, m)]
        if not _serves(nodes, shard, before.primary):
            assert (shard in done) == (shard in calm)
        elif len(others) >= before.min_in_sync:
            assert done[shard].target.primary in others
        else:
            assert shard not in done


@in_its_own_time
@given(shards(), nodes())
def test_nobody_is_ever_added_to_an_in_sync_set_and_the_primary_is_never_taken_from_it(
    shards: Shards, nodes: Nodes
) -> None:
    for action in lead(shards, nodes)[1]:
        if isinstance(action, failover.Change):
            before = shards[action.shard]
            assert action.target.in_sync <= before.in_sync
            assert action.target.primary in action.target.in_sync
            gone = before.in_sync - action.target.in_sync
            left = [m for m in action.target.in_sync if _serves(nodes, action.shard, m)]
            few = before.min_in_sync if gone == {before.primary} else before.replicas
            assert not gone or len(left) >= few


@in_its_own_time
@given(shards(), nodes())
def test_it_comes_to_rest(shards: Shards, nodes: Nodes) -> None:
    for _ in range(5):
        shards, actions = lead(shards, nodes)
    assert all(isinstance(a, Unavailable) for a in actions)


@in_its_own_time
@given(shards(), nodes())
def test_at_rest_a_shard_has_as_many_copies_as_it_asks_for_if_there_are_nodes_for_them(
    shards: Shards, nodes: Nodes
) -> None:
    for _ in range(5):
        shards, _ = lead(shards, nodes)
    fit = {i for i, n in nodes.items() if n.serving and n.may_hold and not n.broken}
    for shard, now in shards.items():
        if _serves(nodes, shard, now.primary):
            copies = {m.node for m in now.in_sync | now.learners if nodes.get(m.node)}
            assert len(copies) >= min(now.replicas, len(fit))


@in_its_own_time
@given(shards(), nodes())
def test_a_learner_is_a_node_that_serves_with_the_disk_that_it_has_now(shards: Shards, nodes: Nodes) -> None:
    for action in lead(shards, nodes)[1]:
        if isinstance(action, Enlist):
            for new in action.target.learners - shards[action.shard].learners:
                assert _serves(nodes, action.shard, new)


@in_its_own_time
@given(st.data(), shards(), nodes())
def test_a_move_ends_where_it_should_and_never_has_fewer_copies_in_sync_on_the_way(
    data: st.DataObject, shards: Shards, nodes: Nodes
) -> None:
    nodes = {i: replace(n, serving=True, away=0.0, broken={}) for i, n in nodes.items()}
    shards = {i: s for i, s in shards.items() if all(_serves(nodes, i, m) for m in s.in_sync)}
    placed = data.draw(placements(shards, nodes))
    for _ in range(8):
        before = shards
        shards, actions = lead(follow(shards, nodes), nodes, placed)
        for shard, now in shards.items():
            copies = {m.node for m in now.in_sync}
            assert len(copies) >= min(now.replicas, len({m.node for m in before[shard].in_sync}))
            assert now.primary in now.in_sync
    assert actions == []
    for shard, where in placed.items():
        if shard in shards:
            assert {m.node for m in shards[shard].in_sync} == set(where)
            assert shards[shard].primary.node in where


SHARD = SHARDS[0]
THREE = configuration(0, 1, 2)


def _nodes(*found: failover.Seen) -> Nodes:
    return {n.id: n for n in found}


def test_a_node_that_is_away_for_a_moment_is_not_replaced() -> None:
    away = _nodes(seen(0), seen(1), seen(2, serving=False, away=30.0), seen(3))
    assert lead({SHARD: THREE}, away)[1] == []


def test_a_node_that_stays_away_is_replaced() -> None:
    away = _nodes(seen(0), seen(1), seen(2, serving=False, away=3600.0), seen(3))
    after, actions = lead({SHARD: THREE}, away)
    assert [type(a) for a in actions] == [Enlist]
    assert after[SHARD].learners == {member(3)}
    assert after[SHARD].in_sync == THREE.in_sync  # the primary lets go of it, when it may


def test_a_replica_that_stays_broken_on_a_node_that_is_there_is_replaced_elsewhere() -> None:
    broken = seen(2, broken={SHARD: 3600.0})
    assert lead({SHARD: THREE}, _nodes(seen(0), seen(1), broken, seen(3)))[0][SHARD].learners == {member(3)}
    assert lead({SHARD: THREE}, _nodes(seen(0), seen(1), seen(2, broken={SHARD: 9.0}), seen(3)))[1] == []


def test_a_wiped_node_learns_anew_at_once() -> None:
    wiped = _nodes(seen(0), seen(1), seen(2, incarnation=member(2, disk=2).incarnation))
    assert lead({SHARD: THREE}, wiped)[0][SHARD].learners == {member(2, disk=2)}


def test_a_damaged_replica_on_a_sound_node_is_another_member_and_is_not_promoted() -> None:
    damaged = seen(1, incarnations={SHARD: member(1, disk=2).incarnation})
    after, _ = lead({SHARD: configuration(0, 1, 2)}, _nodes(seen(0, serving=False), damaged, seen(2)))
    assert after[SHARD].primary == member(2)


def test_a_copy_that_is_not_in_sync_is_never_promoted_even_if_it_is_all_that_is_left() -> None:
    lost = _nodes(seen(0, serving=False, away=9999.0), seen(1))
    left = configuration(0, learners=frozenset({member(1)}), replicas=2)
    assert lead({SHARD: left}, lost)[1] == [Unavailable(SHARD, (member(0),))]


def test_the_shards_of_a_dead_node_are_spread_over_the_others() -> None:
    all_led_by_0 = {ShardId("words", n): configuration(0, 1, 2) for n in range(10)}
    after, _ = lead(all_led_by_0, _nodes(seen(0, serving=False), seen(1), seen(2)))
    assert Counter(s.primary.node for s in after.values()) == {NodeId("n1"): 5, NodeId("n2"): 5}


def test_a_replica_too_many_goes_when_enough_others_serve() -> None:
    four = configuration(0, 1, 2, 3, replicas=3)
    after, actions = lead({SHARD: four}, _nodes(seen(0), seen(1), seen(2), seen(3)))
    assert [type(a) for a in actions] == [Dismiss]
    assert len(after[SHARD].in_sync) == 3
    assert lead({SHARD: four}, _nodes(seen(0), seen(1), seen(2, serving=False, away=1.0), seen(3)))[1] == []


def test_a_primary_that_should_be_elsewhere_is_asked_to_hand_over_to_a_member_that_is_in_sync() -> None:
    there = _nodes(seen(0), seen(1), seen(2), seen(3))
    where = {SHARD: [NodeId("n1"), NodeId("n2"), NodeId("n3")]}
    learning, actions = lead({SHARD: THREE}, there, where)
    assert [type(a) for a in actions] == [Enlist]
    after, actions = lead(learning, there, where)
    assert [type(a) for a in actions] == [failover.HandOver]
    assert after[SHARD].successor == member(1)
    assert after[SHARD].in_sync == THREE.in_sync
    back, actions = lead(after, there, {SHARD: [NodeId("n0"), NodeId("n1"), NodeId("n2")]})
    assert lead(back, there, {SHARD: [NodeId("n0"), NodeId("n1"), NodeId("n2")]})[0][SHARD].successor is None
