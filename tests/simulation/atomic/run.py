"""One run with batches: faults for some seconds, then calm, then judgement."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from simulation.atomic.book import Book
from simulation.atomic.checks import BatchChecks, ShardChecks
from simulation.atomic.clients import PATIENCE, Clearer, Reader, Writer
from simulation.atomic.coordinator import SWEEP, Place, sweep
from simulation.atomic.node import ShardNode
from simulation.atomic.rules import Rules
from simulation.atomic.tasks import Task
from simulation.clients import Client
from simulation.etcd import Etcd
from simulation.faults import Faults
from simulation.leader import Leader, initial
from simulation.node import Kinds, Node
from simulation.run import with_limits
from simulation.world import World
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.replica import Replica
from veccluster.model.state import NodeId

STORM = 4.0
CALM = 2.0
QUIET = 1.5
"""Seconds of faults; of clients without faults; and of nothing, for everyone to catch up."""


@dataclass(frozen=True)
class Result:
    events: int
    acknowledged: int
    batches: int
    reads: int
    rounds: int
    promotions: int
    dropped: int
    doomed: bool = False


class _Disks:
    """The disk of a machine: what is so for it is so for all its replicas."""

    def __init__(self, replicas: list[ShardNode]) -> None:
        object.__setattr__(self, "replicas", replicas)

    def __setattr__(self, name: str, value: object) -> None:
        for replica in self.replicas:  # type: ignore[attr-defined]
            setattr(replica.disk, name, value)


class Machine:
    """A process with a replica of every shard; faults happen to all at once."""

    def __init__(self, name: NodeId, replicas: list[ShardNode]) -> None:
        self.id, self.replicas = name, replicas
        self.disk = _Disks(replicas)

    @property
    def stalled_until(self) -> float:
        return max(r.stalled_until for r in self.replicas)

    @stalled_until.setter
    def stalled_until(self, until: float) -> None:
        for replica in self.replicas:
            replica.stalled_until = until

    def crash(self) -> None:
        for replica in self.replicas:
            replica.crash()


class _Faults(Faults):
    etcds: list[Etcd]
    judges: list[ShardChecks]

    def _move(self) -> None:
        for etcd in self.etcds:
            etcd.placed = tuple(self.world.rng.sample([n.id for n in self.nodes], etcd.key.replicas))
            self.world.tell("", f"a shard should be on {etcd.placed}")

    def _lose_disk(self, *, corrupt: bool) -> None:
        machine: Any = self._one()
        for etcd, checks in zip(self.etcds, self.judges, strict=True):
            others = [m for m in etcd.key.in_sync if m.node != machine.id and checks._intact(m)]
            if not others:
                return
        machine.crash()
        for replica in machine.replicas:
            replica.lose(corrupt=corrupt)
        self.world.after(self._some_time(), lambda: self._start(machine))


class Simulation:
    """A world with a collection of several shards in it, ready to run."""

    def __init__(self, seed: int, rules: Rules | None = None, *, trace: bool = False) -> None:
        self.rules = rules = rules or Rules()
        self.world = world = World(seed, _weather(seed) | dict(rules.weather), trace=trace)
        world.tell("", world.weather)
        self.book = Book(world, rules, lambda what: self.judge.fail(what))
        self.etcds: list[Etcd] = []
        self.checks: list[ShardChecks] = []
        self.judge = BatchChecks(self.checks)
        self.judge.book = self.book
        kinds = Kinds(with_limits(Replica, world.weather), rules.loop)
        for number in range(world.rng.choice([2, 2, 3])):
            self._add_shard(number, kinds)
        self.machines = [Machine(n, [c.nodes[n] for c in self.checks]) for n in self.checks[0].nodes]  # type: ignore[misc]
        nodes = [c.nodes for c in self.checks]
        self.places = [Place(m.id, nodes, self.book, rules) for m in self.machines]  # type: ignore[arg-type]
        for machine in self.machines:
            for replica in machine.replicas:
                Leader(replica, failover.decide)
        self.writers = [Writer(n, world, self.places, self.judge) for n in range(max(2, world.weather.clients // 2))]
        self.readers = [Reader(100 + n, world, self.places, self.judge) for n in range(2)]
        self.plain = [Client(n, world, list(c.nodes.values()), c, False) for c in self.checks for n in range(1)]
        self.clearers = [Clearer(200, world, self.places, self.judge)]
        self.clients = [*self.writers, *self.readers, *self.clearers, *self.plain]
        self.faults = _Faults(world, self.etcds[0], self.machines, self.start, self.checks[0])  # type: ignore[arg-type]
        self.faults.etcds, self.faults.judges = self.etcds, self.checks
        for machine in self.machines:
            self.start(machine)
        for client in self.clients:
            client.start()
        self.faults.start()
        self._sweep()

    def _add_shard(self, number: int, kinds: Kinds) -> None:
        etcd = Etcd(self.world, None)  # type: ignore[arg-type] # it takes nodes to make the key
        etcd.away = self.etcds[0].away if self.etcds else etcd.away
        checks = ShardChecks(self.world, etcd)
        checks.begin(number, self.judge)
        for machine in range(self.world.weather.nodes):
            name = NodeId(f"n{machine}")
            plain = (self.world, etcd, checks, name, kinds, checks.nodes)
            checks.nodes[name] = ShardNode(*plain, shard=number, book=self.book, rules=self.rules)
        nodes: list[Node] = list(checks.nodes.values())
        turned = nodes[number % len(nodes) :] + nodes[: number % len(nodes)]
        etcd.key = initial(turned, self.world.weather.replicas, self.world.weather.min_in_sync)
        etcd.watchers.insert(0, checks.watch)
        self.etcds.append(etcd)
        self.checks.append(checks)

    def start(self, machine: Machine) -> None:
        """Start a machine that is down, and what runs on it."""
        for replica in machine.replicas:
            if not replica.up:
                replica.start()

    def _sweep(self) -> None:
        """Somebody leads, and forgets what can be forgotten; two may do so at once."""
        place = self.world.rng.choice(self.places)
        if place.here.up:
            Task(place.here, sweep(place))
        self.world.after(self.world.rng.uniform(0.5, 1.5) * SWEEP, self._sweep)

    def finish(self) -> None:
        """End all faults; after some time everything must be as it should, and the whole history is judged."""
        self.faults.heal()
        now = max(self.world.now, *(m.stalled_until for m in self.machines))
        self.world.run_until(now)
        before = self._batches()
        self.world.run_until(now + CALM)
        patience = now + PATIENCE + CALM  # who got no answer because of the last fault asks again only after so long
        while self._batches() == before and self.world.now < patience:
            self.world.run_until(self.world.now + CALM / 4)
        if not self._is_doomed() and self._batches() == before:
            self.judge.fail(f"stuck: no batch was acknowledged in {PATIENCE + CALM} s without faults")
        for client in self.clients:
            client.stopped = True
        self.world.run_until(self.world.now + QUIET)
        for checks in self.checks:
            checks.finish()
            checks.settled()
        if not self._is_doomed():
            self.judge.finish()

    def _is_doomed(self) -> bool:
        """Every copy of some shard is gone: a change of the in-sync set came late, after the other disk was lost."""
        return any(c.doomed for c in self.checks)

    def _batches(self) -> int:
        return sum(o.applied is not None for o in self.judge.operations.values())

    def result(self) -> Result:
        return Result(
            events=self.world.events,
            acknowledged=sum(c.acknowledged for c in self.plain) + self._batches(),
            batches=self._batches(),
            reads=self.judge.reads,
            rounds=self.judge.rounds,
            promotions=sum(c.promotions for c in self.checks),
            dropped=sum(v == "dropped" for v in self.book.made.values()),
            doomed=self._is_doomed(),
        )


def _weather(seed: int) -> Mapping[str, object]:
    """What is different where there are several shards; drawn apart, since the rest is drawn from the seed itself."""
    rng = Random(f"atomic {seed}")
    replicas = rng.choice([1, 2, 3, 3, 3])
    return {
        "replicas": replicas,
        "nodes": max(2, replicas + rng.choice([0, 0, 1])),
        "min_in_sync": rng.randint(1, min(2, replicas)),
        "may_lose_all": False,
        "keys": rng.randint(1, 3),
        "haste": rng.choice([10.0, 30.0]),
        "faults_every": rng.choice([0.2, 0.4, 0.8]),
    }


def simulate(seed: int, rules: Rules | None = None, *, trace: bool = False) -> Result:
    """Run a seed; `Violation` if a promise was broken, and any other exception is a defect too."""
    simulation = Simulation(seed, rules, trace=trace)
    simulation.world.run_until(STORM)
    simulation.finish()
    return simulation.result()
