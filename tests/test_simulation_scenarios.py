"""What a fault must and must not cost, each by itself, in a simulation in which nothing else goes wrong."""

from dataclasses import replace

import pytest

from simulation.checks import Violation
from simulation.leader import SHARD
from simulation.node import Node
from simulation.run import Rules, Simulation
from veccluster.decisions import lost_quorum
from veccluster.decisions.etcd_history import LEAP
from veccluster.decisions.replication.messages import Accepted, Contradicted, Header
from veccluster.decisions.replication.primary import Primary
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import NOTHING, Configuration, Member
from veccluster.model.state import Epoch, Revision, WriteConsistency

FAIR = {
    "loss": 0,
    "doubling": 0,
    "lateness": 0,
    "etcd_loss": 0,
    "etcd_lateness": 0,
    "faults_every": 1e9,
    "slowness": 1,
    "clients": 4,
    "haste": 20.0,
    "trims": 0,
    "levels": (WriteConsistency.quorum,),
}
"""Nothing goes wrong by itself."""


def three(
    seed: int = 1, *, nodes: int = 3, min_in_sync: int = 2, replica: type[Replica] = Replica, **other: object
) -> Simulation:
    weather = {**FAIR, "nodes": nodes, "replicas": 3, "min_in_sync": min_in_sync, **other}
    simulation = Simulation(seed, Rules(replica=replica, weather=weather))
    simulation.run_until(1.0)
    assert simulation.key.in_sync == {n.member for n in simulation.everyone[:3]}
    return simulation


def primary(simulation: Simulation) -> Node:
    return simulation.nodes[simulation.key.primary.node]


def acknowledged_during(simulation: Simulation, seconds: float) -> int:
    before = simulation.acknowledged
    simulation.run_until(simulation.world.now + seconds)
    return simulation.acknowledged - before


def test_while_etcd_is_away_a_healthy_shard_answers_every_write() -> None:
    simulation = three()
    writes = len(simulation.checks.writes)
    simulation.etcd.away |= set(simulation.nodes)
    acknowledged = acknowledged_during(simulation, 20.0)
    asked = len(simulation.checks.writes) - writes
    assert acknowledged >= 0.98 * asked > 150  # the rest are on their way, or found nobody who knew the primary
    assert simulation.checks.promotions == 1


def test_a_dead_follower_costs_no_more_than_the_time_in_which_it_is_noticed() -> None:
    simulation = three()
    (other, *_) = sorted(simulation.key.in_sync - {simulation.key.primary})
    simulation.nodes[other.node].crash()
    assert acknowledged_during(simulation, 0.3) <= 4  # one for each client that was under way
    simulation.run_until(simulation.world.now + 0.5)
    assert acknowledged_during(simulation, 1.0) > 4  # clients lose time with the dead node
    assert other not in simulation.key.in_sync


def test_a_dead_primary_is_replaced_and_nothing_is_lost() -> None:
    simulation = three()
    before = simulation.key
    primary(simulation).crash()
    simulation.run_until(simulation.world.now + 1.5)
    assert simulation.key.epoch > before.epoch
    assert simulation.key.primary in before.in_sync - {before.primary}
    assert acknowledged_during(simulation, 2.0) > 4  # clients lose time with the dead node


def test_a_primary_that_stands_still_is_fenced_not_believed() -> None:
    simulation = three()
    old = primary(simulation)
    old.stalled_until = simulation.world.now + 3.0
    simulation.run_until(simulation.world.now + 2.0)
    assert simulation.key.primary.node != old.id
    assert old.replica.primary is not None  # it does not know yet
    acknowledged_during(simulation, 2.0)
    assert old.replica.primary is None


def test_with_one_of_two_gone_nothing_is_acknowledged_and_nobody_is_let_go() -> None:
    simulation = three()
    members = sorted(simulation.key.in_sync - {simulation.key.primary})
    simulation.nodes[members[0].node].crash()
    simulation.run_until(simulation.world.now + 1.0)
    simulation.nodes[members[1].node].crash()
    simulation.run_until(simulation.world.now + 0.1)
    assert acknowledged_during(simulation, 5.0) == 0
    assert len(simulation.key.in_sync) == 2
    for member in members:
        simulation.start(simulation.nodes[member.node])
    simulation.run_until(simulation.world.now + 1.0)
    assert acknowledged_during(simulation, 1.0) > 10


def test_a_spare_node_takes_the_place_of_one_that_stays_away() -> None:
    simulation = three(nodes=4)
    (gone, *_) = sorted(simulation.key.in_sync - {simulation.key.primary})
    simulation.nodes[gone.node].crash()
    simulation.run_until(simulation.world.now + 4.0)
    assert simulation.nodes["n3"].member in simulation.key.in_sync
    assert len(simulation.key.in_sync) == 3
    assert gone not in simulation.key.in_sync | simulation.key.learners


def test_a_wiped_node_learns_everything_anew_and_is_in_sync_again() -> None:
    simulation = three()
    (wiped, *_) = sorted(simulation.key.in_sync - {simulation.key.primary})
    node = simulation.nodes[wiped.node]
    node.crash()
    node.lose(corrupt=False)
    simulation.start(node)
    simulation.run_until(simulation.world.now + 2.0)
    assert wiped not in simulation.key.in_sync
    assert node.member in simulation.key.in_sync


def test_when_every_copy_that_was_in_sync_is_lost_nobody_pretends_to_have_it() -> None:
    simulation = three()
    for node in simulation.everyone:
        node.crash()
        node.lose(corrupt=False)
    simulation.checks.doomed = True
    before = simulation.key
    for node in simulation.everyone:
        simulation.start(node)
    assert acknowledged_during(simulation, 5.0) == 0
    assert (simulation.key.epoch, simulation.key.in_sync) == (before.epoch, before.in_sync)


@pytest.mark.parametrize("direction", ["coming", "going", "both"])
def test_a_primary_that_only_its_followers_do_not_hear_is_replaced(direction: str) -> None:
    simulation = three()
    old = primary(simulation)
    others = [n for n in simulation.everyone if n is not old]
    going, coming = ({(old.id, n.id) for n in others}, {(n.id, old.id) for n in others})
    simulation.world.cut |= {"coming": coming, "going": going, "both": coming | going}[direction]
    simulation.run_until(simulation.world.now + 2.0)
    assert simulation.key.primary.node != old.id
    assert old.member not in simulation.key.in_sync
    assert acknowledged_during(simulation, 2.0) > 10
    simulation.finish()


def test_a_primary_cut_off_from_its_followers_but_not_from_clients_answers_no_strong_read_of_a_past_epoch() -> None:
    simulation = three()
    old = primary(simulation)
    others = [n for n in simulation.everyone if n is not old]
    simulation.world.cut |= {p for n in others for p in ((old.id, n.id), (n.id, old.id))}
    simulation.etcd.away.add(old.id)
    simulation.run_until(simulation.world.now + 5.0)
    assert simulation.key.primary.node != old.id
    simulation.finish()  # judges every read and write


@pytest.mark.parametrize("seed", range(3))
def test_all_nodes_at_once_lose_what_was_not_synced_and_nothing_that_was_acknowledged(seed: int) -> None:
    simulation = three(seed)
    for _ in range(5):
        for node in simulation.everyone:
            node.crash()
        for node in simulation.everyone:
            simulation.start(node)
        assert acknowledged_during(simulation, 2.0) > 10
    simulation.finish()


class _TrustingPrimary(Primary):
    """Says nothing by which a disk could be found to be an old one, and hears nothing of it."""

    def _header(self, to: Member) -> Header:
        return replace(super()._header(to), waits=False, holds=NOTHING)

    def disproof(self, message: Accepted | Contradicted) -> None:
        return None


class Trusting(Replica):
    primary_type = _TrustingPrimary


def go_back(simulation: Simulation, node: Node, *, age: float, away: float) -> None:
    """Put a copy of a node's disk in its place that is `age` seconds old, when it has been away for some."""
    image = node.disk.durable
    simulation.run_until(simulation.world.now + age)
    node.crash()
    simulation.run_until(simulation.world.now + away)
    node.go_back(image)
    simulation.start(node)


def an_old_copy_of(simulation: Simulation, which: str, away: float) -> bool:
    """Whether it was found out when it was put back, and nothing was lost by it."""
    before = simulation.key
    node = primary(simulation) if which == "primary" else simulation.nodes[min(before.in_sync - {before.primary}).node]
    member = node.member
    go_back(simulation, node, age=1.0, away=away)
    simulation.run_until(simulation.world.now + 3.0)
    found_out = member not in simulation.key.in_sync and node.member in simulation.key.in_sync
    simulation.finish()
    return found_out


@pytest.mark.parametrize(("which", "away"), [("primary", 0.0), ("primary", 0.2), ("follower", 0.0), ("follower", 2.0)])
def test_an_old_copy_of_a_disk_is_found_out_and_loses_nothing(which: str, away: float) -> None:
    assert all(an_old_copy_of(three(seed), which, away) for seed in range(5))


def test_an_old_copy_of_the_disk_of_one_that_was_replaced_long_ago_learns_what_it_lacks() -> None:
    assert not any(an_old_copy_of(three(seed), "primary", 2.0) for seed in range(5))


@pytest.mark.parametrize("which", ["primary", "follower"])
def test_an_old_copy_of_a_disk_that_nobody_looks_for_is_taken_for_what_it_was(which: str) -> None:
    with pytest.raises(Violation):
        an_old_copy_of(three(replica=Trusting), which, 0.0)


def test_a_primary_with_a_disk_from_before_its_epoch_does_not_serve_it_a_second_time() -> None:
    for seed in range(5):
        simulation = three(seed)
        images = {n.id: n.disk.durable for n in simulation.everyone}
        first = primary(simulation)
        first.crash()
        simulation.run_until(simulation.world.now + 1.5)
        second = primary(simulation)
        simulation.start(first)
        simulation.run_until(simulation.world.now + 2.0)
        assert second is not first and second is primary(simulation)
        second.crash()
        second.go_back(images[second.id])
        simulation.start(second)
        simulation.run_until(simulation.world.now + 3.0)
        assert primary(simulation) is not second and second.member in simulation.key.in_sync
        simulation.finish()


def test_a_node_with_an_old_copy_of_the_disk_that_learns_is_found_out_too() -> None:
    simulation = three(nodes=3)
    (member, *_) = sorted(simulation.key.in_sync - {simulation.key.primary})
    go_back(simulation, simulation.nodes[member.node], age=0.5, away=1.0)
    assert member in simulation.key.learners
    simulation.run_until(simulation.world.now + 2.0)
    assert member not in simulation.key.in_sync | simulation.key.learners
    simulation.finish()


def accept_loss(simulation: Simulation) -> lost_quorum.Plan:
    """What a person does when too few are left: ask who is there for copies, and confirm what that comes to."""
    answers = {n.id: _answer_of(n) for n in simulation.everyone}
    plan = lost_quorum.decide(SHARD, simulation.key, simulation.world.weather.min_in_sync, answers)
    assert plan.target is not None and plan.chosen is not None, plan.refusal
    simulation.checks.accept_loss(plan.chosen.member)
    simulation.etcd.swap(plan.target, plan.now.revision)
    return plan


def _answer_of(node: Node) -> lost_quorum.Answer | lost_quorum.Silence:
    if not node.up:
        return lost_quorum.Silence()
    journal = node.replica.journal
    return lost_quorum.Answer(node.member, lost_quorum.Copy(node.member, journal.position, journal.durable_epoch))


def lose_one_after_the_other(simulation: Simulation) -> list[Node]:
    """All but one of the nodes; the one that is left is in sync, and cannot do anything."""
    first, second, left = sorted(simulation.everyone, key=lambda n: n.member != simulation.key.primary)
    first.crash()
    simulation.run_until(simulation.world.now + 2.0)
    assert first.member not in simulation.key.in_sync
    second.crash()
    assert acknowledged_during(simulation, 2.0) == 0
    assert simulation.key.in_sync == {second.member, left.member}
    return [first, second, left]


@pytest.mark.parametrize("seed", range(5))
def test_with_a_copy_in_sync_left_a_person_goes_on_and_nothing_is_lost(seed: int) -> None:
    simulation = three(seed, levels=(WriteConsistency.one,))
    first, second, left = lose_one_after_the_other(simulation)
    assert accept_loss(simulation).loses_nothing
    assert acknowledged_during(simulation, 4.0) > 0
    assert simulation.key.in_sync == {left.member} and simulation.key.min_in_sync == 1
    for node in (first, second):
        simulation.start(node)
        simulation.run_until(simulation.world.now + 1.0)
    assert simulation.key.min_in_sync == 2
    simulation.finish()


@pytest.mark.parametrize("seed", range(5))
def test_with_an_old_copy_left_a_person_goes_on_with_that_and_what_comes_back_is_made_equal(seed: int) -> None:
    simulation = three(seed, levels=(WriteConsistency.one,))
    first, second, left = lose_one_after_the_other(simulation)
    left.crash()
    simulation.start(first)
    assert acknowledged_during(simulation, 2.0) == 0
    plan = accept_loss(simulation)
    assert not plan.loses_nothing and plan.target is not None and plan.target.in_sync == {first.member}
    assert acknowledged_during(simulation, 4.0) > 0
    for node in (second, left):
        simulation.start(node)
        simulation.run_until(simulation.world.now + 1.0)
    assert simulation.key.min_in_sync == 2
    simulation.finish()


def test_an_etcd_that_was_put_back_to_an_older_epoch_does_not_stop_the_shard() -> None:
    simulation = three()
    before = simulation.key
    for _ in range(3):
        node = primary(simulation)
        node.crash()
        simulation.run_until(simulation.world.now + 2.0)
        simulation.start(node)
        simulation.run_until(simulation.world.now + 1.0)
    assert simulation.key.epoch > before.epoch + 2
    # As etcd's own tool does it: what it held before, at revisions beyond all that were. Nobody goes by it.
    newest, simulation.checks.put_back = simulation.key, True
    _becomes(simulation, replace(before, revision=Revision(newest.revision + 1000)))
    acknowledged_during(simulation, 1.0)
    assert {n.replica.configuration for n in simulation.everyone if n.up} == {newest}
    # Then the leader has asked the nodes, and writes down what they know (restored.py).
    _becomes(simulation, replace(newest, epoch=Epoch(newest.epoch + LEAP), revision=Revision(newest.revision + 1001)))
    assert acknowledged_during(simulation, 10.0) > 50
    simulation.finish()


def _becomes(simulation: Simulation, key: Configuration) -> None:
    simulation.etcd.key = key
    for watch in simulation.etcd.watchers:
        watch(key)
