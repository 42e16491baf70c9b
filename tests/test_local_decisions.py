"""The local runtime's decisions, run on simulated processes that start, get ready, die and stop as chance has it."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veccluster.decisions import local
from veccluster.decisions.local import Phase, Role, Seen, Start, Stop, Wanted

ETCD = Wanted("etcd-0", Role.metadata, "a")
NODES = tuple(Wanted(f"demo-{n}", Role.node, "a") for n in range(3))
CLUSTER = (ETCD, *NODES)


def seen(wanted: Wanted, phase: Phase, **more) -> Seen:
    return Seen(wanted.role, more.pop("revision", wanted.revision), phase, started=more.pop("started", 0.0), **more)


def all_ready(wanted=CLUSTER):
    return {w.name: seen(w, Phase.ready) for w in wanted}


def decide(wanted, found, now=1000.0):
    return list(local.decide(wanted, found, now=now))


@dataclass
class World:
    """Processes that do what they are told, and what chance tells them."""

    now: float = 0.0
    processes: dict[str, Seen] = field(default_factory=dict)
    starts: list[tuple[float, str]] = field(default_factory=list)

    def act(self, wanted) -> list:
        actions = decide(wanted, self.processes, self.now)
        by_name = {w.name: w for w in wanted}
        for action in actions:
            before = self.processes.get(action.name)
            if isinstance(action, Start):
                assert before is None or before.phase is Phase.exited, "a running process was started again"
                self.processes[action.name] = local.started(by_name[action.name], before, now=self.now)
                self.starts.append((self.now, action.name))
            else:
                self.processes[action.name] = replace(before, asked_to_stop=True)
        return actions

    def step(self, name: str, fate: str) -> None:
        process = self.processes.get(name)
        if process is None or process.phase is Phase.exited:
            return
        if fate == "ready" and not process.asked_to_stop:
            self.processes[name] = replace(process, phase=Phase.ready)
        elif fate == "die" or process.asked_to_stop:
            self.processes[name] = local.ended(process, -9, now=self.now)


def settle(world: World, wanted, rounds: int = 60) -> None:
    """Time goes on, and every process that runs gets ready or stops as asked."""
    for _ in range(rounds):
        world.act(wanted)
        for name in list(world.processes):
            world.step(name, "ready")
        world.now += local.LONGEST_PAUSE


fates = st.lists(
    st.tuples(st.sampled_from([w.name for w in CLUSTER]), st.sampled_from(["ready", "die"]), st.floats(0, 40)),
    max_size=40,
)


@given(fates)
@settings(deadline=None)
def test_whatever_dies_the_cluster_comes_up_again(events):
    world = World()
    for name, fate, passed in events:
        world.act(CLUSTER)
        world.step(name, fate)
        world.now += passed
    settle(world, CLUSTER)
    assert {n: p.phase for n, p in world.processes.items()} == {w.name: Phase.ready for w in CLUSTER}


@given(fates)
@settings(deadline=None)
def test_deciding_twice_changes_nothing(events):
    world = World()
    for name, fate, passed in events:
        world.act(CLUSTER)
        assert world.act(CLUSTER) == []
        world.step(name, fate)
        world.now += passed


@given(fates)
@settings(deadline=None)
def test_a_node_starts_only_while_etcd_answers(events):
    world = World()
    for name, fate, passed in events:
        answers = (e := world.processes.get("etcd-0")) is not None and e.phase is Phase.ready
        actions = world.act(CLUSTER)
        assert answers or all(a == Start("etcd-0") for a in actions)
        world.step(name, fate)
        world.now += passed


@given(fates)
@settings(deadline=None)
def test_on_the_way_down_etcd_is_last(events):
    world = World()
    for name, fate, passed in events:
        world.act(CLUSTER)
        world.step(name, fate)
        world.now += passed
    for _ in range(10):
        nodes_run = any(p.phase is not Phase.exited for n, p in world.processes.items() if n != "etcd-0")
        actions = world.act(())
        assert all(isinstance(a, Stop) for a in actions)
        assert not (nodes_run and any(a.name == "etcd-0" for a in actions))
        for name in list(world.processes):
            world.step(name, "stop")
    assert all(p.phase is Phase.exited for p in world.processes.values())


def test_a_crash_loop_slows_down():
    world = World()
    for _ in range(2000):
        world.act((ETCD,))
        world.step("etcd-0", "die")
        world.now += 0.1
    gaps = [b[0] - a[0] for a, b in zip(world.starts, world.starts[1:], strict=False)]
    assert gaps[0] < 1 and max(gaps) >= local.LONGEST_PAUSE * 0.9
    assert len(world.starts) < 20


def test_a_death_after_a_steady_run_is_made_good_at_once_or_nearly():
    dead = seen(ETCD, Phase.exited, exited=1000.0, exit_code=-9, short_runs=1)
    assert decide((ETCD,), {"etcd-0": dead}, now=1000.0) == []
    assert local.next_look((ETCD,), {"etcd-0": dead}, now=1000.0) == local.FIRST_PAUSE
    assert decide((ETCD,), {"etcd-0": dead}, now=1000.0 + local.FIRST_PAUSE) == [Start("etcd-0")]


def test_what_can_never_run_is_left_alone_until_it_is_to_run_differently():
    node = NODES[0]
    found = {
        ETCD.name: seen(ETCD, Phase.ready),
        node.name: seen(node, Phase.exited, exit_code=4, short_runs=2, hopeless_runs=2),
    }
    assert decide((ETCD, node), found) == []
    assert local.is_hopeless(node, found[node.name])
    assert local.next_look((ETCD, node), found, now=0.0) is None
    assert decide((ETCD, replace(node, revision="b")), found) == [Start(node.name)]


@pytest.mark.parametrize("history", [(4,), (-9, 4), (4, -9, 4)])
def test_a_node_is_tried_again_before_it_is_left_alone(history):
    node, last = NODES[0], None
    for code in history:
        last = local.ended(local.started(node, last, now=0.0), code, now=1.0)
    found = {ETCD.name: seen(ETCD, Phase.ready), node.name: last}
    assert decide((ETCD, node), found, now=100.0) == [Start(node.name)]
    again = local.ended(local.started(node, last, now=2.0), 4, now=3.0)
    assert decide((ETCD, node), found | {node.name: again}, now=100.0) == []


def test_new_settings_reach_one_node_at_a_time_and_wait_for_the_others():
    changed = (ETCD, *(replace(n, revision="b") for n in NODES))
    world = World(processes=all_ready())
    restarted = []
    for _ in range(40):
        ready = sum(p.phase is Phase.ready for p in world.processes.values())
        for action in world.act(changed):
            if isinstance(action, Stop):
                assert ready == len(CLUSTER)
                restarted.append(action.name)
        for name in list(world.processes):
            world.step(name, "ready")
        world.now += 1
    assert restarted == [n.name for n in NODES]
    assert all(p.revision == "b" for n, p in world.processes.items() if n != "etcd-0")


def test_new_settings_reach_a_node_that_is_not_ready_without_waiting():
    found = all_ready() | {"demo-1": seen(NODES[1], Phase.running), "demo-2": seen(NODES[2], Phase.running)}
    wanted = (ETCD, NODES[0], replace(NODES[1], revision="b"), NODES[2])
    assert [a.name for a in decide(wanted, found)] == ["demo-1"]


def test_a_cluster_that_grows_starts_the_new_nodes_and_touches_no_other():
    grown = (*CLUSTER, Wanted("demo-3", Role.node, "a"))
    assert decide(grown, all_ready()) == [Start("demo-3")]


def test_nothing_is_done_to_a_cluster_that_is_as_wanted():
    assert decide(CLUSTER, all_ready()) == []
