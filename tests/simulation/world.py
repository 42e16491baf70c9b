"""The clock, the randomness and the network of one run."""

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from veccluster.model.state import NodeId, WriteConsistency

Action = Callable[[], None]


@dataclass(frozen=True)
class Weather:
    """How bad this run is; drawn from its seed. Times are in seconds."""

    nodes: int
    replicas: int
    min_in_sync: int
    clients: int
    haste: float
    """Operations a second that a client would ask for if they took no time."""
    keys: int
    loss: float
    doubling: float
    lateness: float
    etcd_loss: float
    etcd_lateness: float
    faults_every: float
    etcd_away: bool
    wipes: bool
    may_lose_all: bool
    moves: bool
    """Whether the shard is sent to other nodes now and then."""
    trims: float
    slowness: float
    """Of all disks: a sync takes a millisecond or two, times this."""
    window: int
    """Operations on their way to a follower."""
    isolations: int
    """How often a node is cut off, compared with other faults."""
    writes: float
    """The share of writes in what clients ask."""
    tells_ends: bool
    """Whether a primary learns soon that a member's process has ended: its machine refuses connections."""
    forgeries: float = 3.0
    """A second: messages that are not from whom they say, or say what etcd does not allow."""
    runs: int = 2
    """Epochs of which lineages say what they wrote, before the rest is forgotten."""
    dead: bool = False
    """Whether a node that can be spared stays down when all other faults are over."""
    failing_rows: float = 0.0
    """The share of batches that cannot be applied to the rows, so that the replica is opened again."""
    levels: tuple[WriteConsistency, ...] = (
        WriteConsistency.one,
        WriteConsistency.quorum,
        WriteConsistency.quorum,
        WriteConsistency.all,
    )

    @classmethod
    def of(cls, rng: Random, changes: Mapping[str, object]) -> "Weather":
        replicas = rng.choice([1, 2, 3, 3, 3, 3, 4, 5])
        drawn = cls(
            nodes=replicas + rng.choice([0, 0, 1, 1, 2]),
            replicas=replicas,
            min_in_sync=rng.randint(1, max(1, min(3, replicas - rng.choice([0, 1])))),
            clients=rng.randint(2, 8),
            haste=rng.choice([10.0, 30.0, 100.0]),
            keys=rng.randint(1, 4),
            loss=rng.choice([0, 0.01, 0.05, 0.15]),
            doubling=rng.choice([0, 0.02, 0.1]),
            lateness=rng.choice([0, 0.02, 0.1]),
            etcd_loss=rng.choice([0, 0.05, 0.2]),
            etcd_lateness=rng.choice([0, 0.05, 0.3]),
            faults_every=rng.choice([0.1, 0.2, 0.4]),
            etcd_away=rng.random() < 0.5,
            wipes=rng.random() < 0.5,
            may_lose_all=rng.random() < 0.1,
            moves=rng.random() < 0.4,
            trims=rng.choice([0, 0.05, 0.2]),
            slowness=rng.choice([1, 1, 1, 10]),
            window=rng.choice([2, 5, 1024]),
            isolations=rng.choice([1, 3, 8]),
            writes=rng.choice([0.3, 0.5, 0.7]),
            tells_ends=rng.random() < 0.5,
        )
        return replace(drawn, **dict(changes))


class World:
    """Time passes from event to event; what happens at one time happens in the order in which it was asked for."""

    def __init__(self, seed: int, changes: Mapping[str, object] | None = None, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.weather = Weather.of(self.rng, changes or {})
        self.now = 0.0
        self.calm = False
        """All faults are over."""
        self.trace = trace
        self.events = 0
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Action]] = []
        self.cut: set[tuple[str, str]] = set()
        """Pairs of nodes of which the first does not reach the second; a client is nobody's and reaches all."""

    def after(self, delay: float, action: Action) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    def run_until(self, end: float) -> None:
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            self.events += 1
            action()
        self.now = end

    def tell(self, who: str, what: object) -> None:
        if self.trace:
            print(f"{self.now:8.3f} {who:4} {what}")  # noqa: T201 - this is what a trace is for

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def send(self, source: NodeId | str, target: NodeId | str, deliver: Action) -> None:
        """Deliver now or later, or not, or twice."""
        if (source, target) in self.cut or (not self.calm and self.chance(self.weather.loss)):
            return
        copies = 2 if not self.calm and self.chance(self.weather.doubling) else 1
        for _ in range(copies):
            delay = self.rng.uniform(0.0005, 0.004)
            if not self.calm and self.chance(self.weather.lateness):
                delay += self.rng.expovariate(3.0)
            self.after(delay, deliver)
