"""An etcd with one shard's key, leases and an election; requests and answers get lost, or are carried out late."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from simulation.world import World
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.values import Configuration, Incarnation
from veccluster.model.state import NodeId, Revision

TIMEOUT = 0.15
LEASE = 0.5


@dataclass
class Registered:
    """A node's keys: who it is, and its sign of life."""

    incarnation: Incarnation
    expires: float
    broken: bool
    cut_off: bool


@dataclass
class Etcd:
    world: World
    key: Configuration
    nodes: dict[NodeId, Registered] = field(default_factory=dict)
    placed: tuple[NodeId, ...] | None = None
    """The nodes that should hold the shard; None leaves that to the leader."""
    leader: tuple[NodeId, int, float] | None = None
    """Node, term, expiry."""
    away: set[NodeId] = field(default_factory=set)
    """Nodes that do not reach it."""
    watchers: list[Callable[[Configuration], None]] = field(default_factory=list)
    _terms: int = 0

    def request(self, node: NodeId, work: Callable[[], object], answer: Callable[[object | None], None]) -> None:
        """Do `work` and give its result to `answer`; None when the time is over, whatever became of it."""
        world, answered = self.world, []

        def once(result: object | None) -> None:
            if not answered:
                answered.append(True)
                answer(result)

        def carry_out() -> None:
            result = work()
            if self._reaches(node):
                world.after(world.rng.uniform(0.001, 0.004), lambda: once(result))

        world.after(TIMEOUT, lambda: once(None))
        if self._reaches(node):
            late = not world.calm and world.chance(world.weather.etcd_lateness)
            world.after(world.rng.uniform(0.1, 0.6) if late else world.rng.uniform(0.001, 0.004), carry_out)

    def _reaches(self, node: NodeId) -> bool:
        return node not in self.away and (self.world.calm or not self.world.chance(self.world.weather.etcd_loss))

    def swap(self, target: Configuration, expected: Revision) -> tuple[Outcome, Configuration]:
        if self.key.revision != expected:
            return Outcome.refused, self.key
        self.key = replace(target, revision=Revision(expected + 1))
        self.world.tell("etcd", self.key)
        for watch in self.watchers:
            watch(self.key)
        return Outcome.swapped, self.key

    def keep_alive(self, node: NodeId, incarnation: Incarnation, *, broken: bool, cut_off: bool) -> bool:
        self.nodes[node] = Registered(incarnation, self.world.now + LEASE, broken, cut_off)
        return True

    def is_alive(self, node: NodeId) -> bool:
        return node in self.nodes and self.nodes[node].expires > self.world.now

    def campaign(self, node: NodeId) -> int | None:
        """The term in which the node leads from now on, or None while another does."""
        if self.leader is None or self.leader[2] <= self.world.now:
            self._terms += 1
            self.leader = (node, self._terms, self.world.now + LEASE)
        if self.leader[0] != node:
            return None
        self.leader = (*self.leader[:2], self.world.now + LEASE)
        return self.leader[1]

    def is_led_by(self, node: NodeId, term: int) -> bool:
        return self.leader is not None and self.leader[:2] == (node, term)
