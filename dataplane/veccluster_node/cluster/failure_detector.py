"""Who is there and what they cannot do, as this node sees it: what the leader decides by, kept by every node.

A node that becomes leader has thus seen leases end before its term; only while it leads does it ask the others itself.
Times are this process's own monotonic clock.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import NamedTuple

import structlog

from veccluster.decisions.presence import Presence, Probe
from veccluster.decisions.replication import failover
from veccluster.errors import VecClusterError
from veccluster.model.spec import Failover
from veccluster.model.state import Incarnation, Load, Node, NodeId, NodeState, ShardId
from veccluster_node.metadata.store import Store
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import NothingListens, Peers

ROOMY = 0.9
"""A node whose disk is used more than this is given no more copies."""

log = structlog.get_logger(__name__)


class _Kind(Enum):
    broken = "cannot be served"
    opening = "is being opened, which may take a while"
    cut_off = "hears too few of its other copies"


class _Trouble(NamedTuple):
    shard: ShardId
    kind: _Kind


class Watch:
    """The nodes of one cluster, for one event loop."""

    def __init__(self, me: NodeId, store: Store, peers: Peers, times: Failover) -> None:
        self._me = me
        self._store = store
        self._peers = peers
        self._times = times
        self._presence = Presence(heartbeat=times.heartbeat, timeout=times.timeout)
        self._boots: dict[NodeId, str] = {}
        """Which process of each node had a lease last: another one may have its address by now."""
        self._troubles: dict[NodeId, dict[_Trouble, float]] = {}
        """What each node says, and since when."""
        self._loads: dict[NodeId, Load] = {}
        """What that was read from."""
        self._incarnations: dict[NodeId, tuple[Mapping[str, str], Mapping[ShardId, Incarnation]]] = {}
        """Of replicas that are others than their node: as registered, and as read."""
        self._asking: dict[NodeId, asyncio.Task[None]] = {}

    async def follow(self) -> None:
        """Look whenever the state changes, for ever."""
        async for _ in self._store.changes(at_least_every=self._times.heartbeat):
            self.look()

    def look(self) -> None:
        """Note what the state says now."""
        state, now = self._store.state, time.monotonic()
        self._presence.saw(state.nodes.keys(), state.alive.keys(), now)
        for node in self._loads.keys() - state.alive.keys():
            del self._loads[node], self._troubles[node]
        for node, load in state.alive.items():
            if self._loads.get(node) is not load:
                before = self._troubles.get(node, {})
                self._loads[node], self._boots[node] = load, load.boot
                self._troubles[node] = {t: before.get(t, now) for t in _troubles(load)}

    async def probe(self) -> None:
        """Ask every node whether it is there, every heartbeat, until cancelled."""
        try:
            while True:
                for node in self._store.state.nodes.keys() - self._asking.keys() - {self._me}:
                    self._asking[node] = asyncio.create_task(self._ask(node), name=f"probe {node}")
                await asyncio.sleep(self._times.heartbeat)
        finally:
            asking = list(self._asking.values())
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, node: NodeId) -> None:
        before = self._presence.is_serving(node, time.monotonic())
        try:
            how = await self._probe(node)
            self._presence.probed(node, how, time.monotonic())
        finally:
            del self._asking[node]
        if before != self._presence.is_serving(node, time.monotonic()):
            log.info("node_probed", node=node, outcome=how.name, serving=not before)
            self._store.wake()

    async def _probe(self, node: NodeId) -> Probe:
        try:
            pong = await self._peers.call(node, m.Ping(), timeout=self._presence.patience)
        except NothingListens:
            return Probe.refused
        except VecClusterError:
            return Probe.silent
        return Probe.answered if self._boots.get(node, pong.boot) == pong.boot else Probe.silent

    def away(self, node: NodeId) -> float:
        """For how many seconds a node has not been there; 0 if it is."""
        return self._presence.away(node, time.monotonic())

    def seen(self) -> dict[NodeId, failover.Seen]:
        """Every member as the leader's decisions are to see it now."""
        self.look()
        state, now = self._store.state, time.monotonic()
        return {
            node.id: failover.Seen(
                id=node.id,
                incarnation=Incarnation(node.incarnation),
                zone=node.zone,
                serving=node.id == self._me or self._presence.is_serving(node.id, now),
                away=self._presence.away(node.id, now),
                may_hold=node.state is NodeState.active and _has_room(state.alive.get(node.id)),
                incarnations=self._incarnations_of(node),
                broken=self._broken(node.id, now),
                cut_off=self._cut_off(node.id, now),
            )
            for node in state.nodes.values()
        }

    def _incarnations_of(self, node: Node) -> Mapping[ShardId, Incarnation]:
        known = self._incarnations.get(node.id)
        if known is None or known[0] is not node.incarnations:
            found = {s: Incarnation(i) for name, i in node.incarnations.items() if (s := ShardId.parse(name))}
            known = self._incarnations[node.id] = (node.incarnations, found)
        return known[1]

    def _broken(self, node: NodeId, now: float) -> Mapping[ShardId, float]:
        """What the node says that it cannot do, and what it has been about to do for too long."""
        ages = self._ages(node, now)
        return {
            trouble.shard: age
            for trouble, age in ages.items()
            if trouble.kind is _Kind.broken or (trouble.kind is _Kind.opening and age > self._times.timeout)
        }

    def _cut_off(self, node: NodeId, now: float) -> frozenset[ShardId]:
        """What it says so for long enough that the lease of a copy would be gone if its node were dead."""
        ages = self._ages(node, now)
        return frozenset(
            t.shard for t, age in ages.items() if t.kind is _Kind.cut_off and age > self._times.timeout / 2
        )

    def _ages(self, node: NodeId, now: float) -> Mapping[_Trouble, float]:
        return {t: now - since for t, since in self._troubles.get(node, {}).items()}


def _troubles(load: Load) -> Iterator[_Trouble]:
    said = {_Kind.broken: load.broken, _Kind.opening: load.recovering, _Kind.cut_off: load.cut_off}
    for kind, names in said.items():
        for shard in filter(None, map(ShardId.parse, names)):
            yield _Trouble(shard, kind)


def _has_room(load: Load | None) -> bool:
    if load is None:
        return True
    return load.room != 0 and (not load.disk_total or load.disk_used <= ROOMY * load.disk_total)
