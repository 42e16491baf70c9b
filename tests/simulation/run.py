"""One run: faults for some seconds, then calm, then judgement."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from simulation.checks import Checks
from simulation.clients import Client
from simulation.etcd import Etcd
from simulation.faults import Faults
from simulation.leader import Leader, initial
from simulation.node import Node
from simulation.world import World
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import NodeId

STORM = 5.0
CALM = 4.0
QUIET = 1.0
"""Seconds of faults; of clients without faults; and of nothing, for everyone to catch up."""


@dataclass(frozen=True)
class Rules:
    """The rules in force; a mutation replaces some of them."""

    replica: type[Replica] = Replica
    decide: Callable[..., Iterable[failover.Action]] = failover.decide
    keeps_incarnation: bool = False
    """Whether a disk that lost its contents goes by its old name."""
    leader_compares: bool = True
    """Whether the leader's changes compare the revision that they are based on."""
    leader_is_fenced: bool = True
    """Whether they compare its term."""
    weather: Mapping[str, object] = field(default_factory=dict)
    """What is to be so in every run; the rest is drawn from the seed."""


@dataclass(frozen=True)
class Result:
    events: int
    acknowledged: int
    reads: int
    promotions: int
    epochs: int
    doomed: bool


def simulate(seed: int, rules: Rules | None = None, *, trace: bool = False) -> Result:
    """Run a seed; `Violation` if a promise was broken, and any other exception is a defect too."""
    rules = rules or Rules()
    world = World(seed, rules.weather, trace=trace)
    world.tell("", world.weather)
    etcd = Etcd(world, None)  # type: ignore[arg-type]
    checks = Checks(world, etcd)
    nodes: dict[NodeId, Node] = {}
    replica = _with_window(rules.replica, world.weather.window)
    for number in range(world.weather.nodes):
        name = NodeId(f"n{number}")
        nodes[name] = Node(world, etcd, checks, name, replica, nodes, rules.keeps_incarnation)
    checks.nodes = nodes
    everyone = list(nodes.values())
    etcd.key = initial(everyone, world.weather.replicas, world.weather.min_in_sync)
    etcd.watchers.insert(0, checks.watch)
    leaders = [
        Leader(node, rules.decide, compares=rules.leader_compares, is_fenced=rules.leader_is_fenced)
        for node in everyone
    ]
    clients = [Client(number, world, everyone, checks) for number in range(world.weather.clients)]
    faults = Faults(world, etcd, everyone, leaders, checks)
    for node, leader in zip(everyone, leaders, strict=True):
        node.start()
        leader.start()
    for client in clients:
        client.start()
    faults.start()
    _play(world, faults, clients, checks)
    return _result(world, clients, checks, etcd.key)


def _with_window(replica: type[Replica], window: int) -> type[Replica]:
    primary = type("Primary", (replica.primary_type,), {"window": window})
    return type("Replica", (replica,), {"primary_type": primary})


def _play(world: World, faults: Faults, clients: list[Client], checks: Checks) -> None:
    world.run_until(STORM)
    faults.heal()
    before = sum(c.acknowledged for c in clients)
    world.run_until(STORM + CALM)
    if not checks.doomed and sum(c.acknowledged for c in clients) == before:
        checks.fail(f"stuck: no write succeeded in {CALM} s without faults: {checks.etcd.key}")
    for client in clients:
        client.stopped = True
    world.run_until(STORM + CALM + QUIET)
    checks.finish()
    checks.settled()


def _result(world: World, clients: list[Client], checks: Checks, key: Configuration) -> Result:
    return Result(
        events=world.events,
        acknowledged=sum(c.acknowledged for c in clients),
        reads=len(checks.reads),
        promotions=checks.promotions,
        epochs=key.epoch,
        doomed=checks.doomed,
    )
