"""The election on one node, and what the node does while it leads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from simulation.etcd import LEASE, Registered
from simulation.node import Node
from veccluster.decisions import lost_quorum
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import NodeId, ShardId

SHARD = ShardId("simulated", 0)
ROUND = 0.12
REPLACE_AFTER = 1.5


@dataclass
class Leader:
    node: Node
    decide: Callable[..., Iterable[failover.Action]]
    compares: bool = True
    is_fenced: bool = True
    _away_since: dict[NodeId, float] = field(default_factory=dict)
    _broken_since: dict[NodeId, float] = field(default_factory=dict)
    _cut_off_since: dict[NodeId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node.started.append(self.start)

    def start(self) -> None:
        self._away_since, self._broken_since, self._cut_off_since = {}, {}, {}
        self.node.guarded(self.node.world.rng.uniform(0, ROUND), self._round)

    def _round(self) -> None:
        etcd, me = self.node.etcd, self.node.id

        def look() -> object:
            term = etcd.campaign(me)
            return term and (term, etcd.key, dict(etcd.nodes), {n for n in etcd.nodes if etcd.is_alive(n)}, etcd.placed)

        etcd.request(me, look, lambda found: self.node.guarded(0, lambda: self._lead(found)))
        self.node.guarded(ROUND, self._round)

    def _lead(self, found: object) -> None:
        if not isinstance(found, tuple):
            return
        term, now, registered, alive, placed = found
        view, where = self._view(registered, alive), {SHARD: placed} if placed else None
        asked = lost_quorum.restore({SHARD: now}, {SHARD.collection: self.node.world.weather.min_in_sync})
        for action in (*self.decide({SHARD: now}, view, replace_after=REPLACE_AFTER, placed=where), *asked):
            self.node.world.tell(self.node.id, f"leads in term {term}: {action}")
            if isinstance(action, failover.Change):
                self._apply(term, action)

    def _apply(self, term: int, action: failover.Change) -> None:
        etcd, me = self.node.etcd, self.node.id

        def work() -> None:
            if etcd.is_led_by(me, term) or not self.is_fenced:
                etcd.swap(action.target, action.revision if self.compares else etcd.key.revision)

        etcd.request(me, work, lambda _: None)

    def _view(self, registered: Mapping[NodeId, Registered], alive: set[NodeId]) -> dict[NodeId, failover.Seen]:
        now = self.node.world.now
        self._away_since = {n: self._away_since.get(n, now) for n in registered if n not in alive}
        broken = [n for n, r in registered.items() if r.broken]
        self._broken_since = {n: self._broken_since.get(n, now) for n in broken}
        cut_off = [n for n, r in registered.items() if r.cut_off]
        self._cut_off_since = {n: self._cut_off_since.get(n, now) for n in cut_off}
        cut_off = [n for n in cut_off if now - self._cut_off_since[n] > LEASE / 2]
        return {
            n: failover.Seen(
                id=n,
                incarnation=r.incarnation,
                serving=n in alive,
                away=now - self._away_since.get(n, now),
                broken={SHARD: now - self._broken_since[n]} if r.broken else {},
                cut_off=frozenset({SHARD} if n in cut_off else ()),
            )
            for n, r in registered.items()
        }


def initial(nodes: list[Node], replicas: int, min_in_sync: int) -> Configuration:
    """A shard as it is written down when its collection is created."""
    members = [n.member for n in nodes[:replicas]]
    return Configuration(
        epoch=failover.Epoch(1),
        primary=members[0],
        in_sync=frozenset(members),
        min_in_sync=min_in_sync,
        replicas=replicas,
        revision=failover.Revision(1),
    )
