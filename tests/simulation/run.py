"""One run: faults for some seconds, then calm, then judgement."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from simulation.checks import Checks
from simulation.clients import Client
from simulation.etcd import Etcd
from simulation.faults import Faults
from simulation.leader import Leader, initial
from simulation.node import REST_AFTER, SILENT_AFTER, Kinds, Node
from simulation.stranger import Stranger
from simulation.world import Weather, World
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import NodeId
from veccluster_node.replica.beats import NodeBeats
from veccluster_node.replica.loop import ReplicaLoop

STORM = 6.0
CALM = 3.0
QUIET = 1.0
"""Seconds of faults; of clients without faults; and of nothing, for everyone to catch up."""
NOTICE = 2.5
"""Seconds within which it is noticed that a node has ended."""


@dataclass(frozen=True)
class Rules:
    """The rules in force; a mutation replaces some of them."""

    replica: type[Replica] = Replica
    loop: type[ReplicaLoop] = ReplicaLoop
    beats: type[NodeBeats] = NodeBeats
    decide: Callable[..., Iterable[failover.Action]] = failover.decide
    keeps_incarnation: bool = False
    """Whether a disk that lost its contents goes by its old name."""
    leader_compares: bool = True
    """Whether the leader's changes compare the revision that they are based on."""
    leader_is_fenced: bool = True
    """Whether they compare its term."""
    quorum_asks_anyone: bool = False
    """Whether quorum reads ask learners too."""
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


class Simulation:
    """A world with a shard in it, ready to run."""

    def __init__(self, seed: int, rules: Rules | None = None, *, trace: bool = False) -> None:
        rules = rules or Rules()
        self.world = world = World(seed, rules.weather, trace=trace)
        world.tell("", world.weather)
        self.etcd = Etcd(world, None)  # type: ignore[arg-type] # it takes nodes to make the key
        self.checks = Checks(world, self.etcd)
        self.nodes: dict[NodeId, Node] = self.checks.nodes
        kinds = Kinds(with_limits(rules.replica, world.weather), rules.loop, rules.beats)
        for number in range(world.weather.nodes):
            name = NodeId(f"n{number}")
            self.nodes[name] = Node(world, self.etcd, self.checks, name, kinds, self.nodes, rules.keeps_incarnation)
        self.everyone = list(self.nodes.values())
        self.etcd.key = initial(self.everyone, world.weather.replicas, world.weather.min_in_sync)
        self.etcd.watchers.insert(0, self.checks.watch)
        compares, is_fenced = rules.leader_compares, rules.leader_is_fenced
        for node in self.everyone:
            Leader(node, rules.decide, compares=compares, is_fenced=is_fenced)
        self.clients = [
            Client(n, world, self.everyone, self.checks, rules.quorum_asks_anyone) for n in range(world.weather.clients)
        ]
        self.faults = Faults(world, self.etcd, self.everyone, self.start, self.checks)
        for node in self.everyone:
            self.start(node)
        for client in self.clients:
            client.start()
        self.faults.start()
        self.stranger = Stranger(world, self.etcd, self.everyone)
        self.stranger.start()

    @property
    def key(self) -> Configuration:
        return self.etcd.key

    @property
    def acknowledged(self) -> int:
        return sum(c.acknowledged for c in self.clients)

    def start(self, node: Node) -> None:
        """Start a node that is down."""
        if not node.up:
            node.start()

    def run_until(self, end: float) -> None:
        self.world.run_until(end)

    def finish(self) -> None:
        """End all faults; after some time everything must be as it should, and the whole history is judged."""
        self.faults.heal()
        now = max(self.world.now, *(n.stalled_until for n in self.everyone))
        self.run_until(now)
        before = self.acknowledged
        self.run_until(now + CALM)
        if not self.checks.doomed and self.acknowledged == before:
            self.checks.fail(f"stuck: no write succeeded in {CALM} s without faults: {self.key}")
        for client in self.clients:
            client.stopped = True
        self.run_until(now + CALM + QUIET)
        self.checks.finish()
        self.checks.settled()
        if not self.checks.doomed:
            self._disturb_rest()

    def _disturb_rest(self) -> None:
        """By now everybody rests, and still it is noticed when a node ends, or comes back with less than it had."""
        self._until_all_rest()
        self._wake_for_nothing()
        node = self.world.rng.choice([self.nodes[m.node] for m in sorted(self.key.in_sync)])
        comes_back = self.world.chance(0.5) or len(self.key.in_sync) <= self.key.min_in_sync
        node.crash()
        if comes_back:
            self.world.after(self.world.rng.uniform(0.01, SILENT_AFTER), lambda: self.start(node))
        self.run_until(self.world.now + NOTICE)
        if comes_back:
            self._until_all_rest()
            self.checks.settled()
        elif node.member in self.key.in_sync:
            self.checks.fail(f"stuck: {node.id} has ended and is still taken for in sync: {self.key}")

    def _wake_for_nothing(self) -> None:
        """Who has rested for long enough to be taken for silent has been heard all the same."""
        self.run_until(self.world.now + 2 * SILENT_AFTER)
        before = self.key
        self.nodes[before.primary.node].loop.feed(on.Tick())
        self.run_until(self.world.now + SILENT_AFTER)
        if not before.learners and self.key.revision != before.revision:
            self.checks.fail(f"restless: {before} became {self.key} although everybody was there all the time")

    def _until_all_rest(self) -> None:
        until = self.world.now + QUIET
        while (restless := self.checks.restless()) and self.world.now < until:
            self.run_until(self.world.now + REST_AFTER)
        if restless:
            self.checks.fail(f"restless: {restless} do not rest although there is nothing to do")


def simulate(seed: int, rules: Rules | None = None, *, trace: bool = False) -> Result:
    """Run a seed; `Violation` if a promise was broken, and any other exception is a defect too."""
    simulation = Simulation(seed, rules, trace=trace)
    simulation.run_until(STORM)
    simulation.finish()
    return Result(
        events=simulation.world.events,
        acknowledged=simulation.acknowledged,
        reads=len(simulation.checks.reads),
        promotions=simulation.checks.promotions,
        epochs=simulation.key.epoch,
        doomed=simulation.checks.doomed,
    )


def with_limits(replica: type[Replica], weather: Weather) -> type[Replica]:
    primary = type("Primary", (replica.primary_type,), {"window": weather.window, "away_after": 0})
    journal = type("Journal", (replica.journal_type,), {"runs": weather.runs})
    return type("Replica", (replica,), {"primary_type": primary, "journal_type": journal})
