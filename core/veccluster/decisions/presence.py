"""Judge which nodes are there, from their leases and from what they answer when they are asked.

Pure: whoever observes says what it saw and when, by its own monotonic clock. A node serves if its lease is there or it
answers. Both may be wrong: a node that is taken for dead and is not is fenced by its replicas' next epochs, so that a
mistake costs time, never data. docs/replication.md, rules 6 and 12.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from veccluster.model.state import NodeId


class Probe(Enum):
    """How asking a node ended."""

    answered = "answered"
    silent = "gave no answer in time"
    refused = "nothing listens at its address"


@dataclass(slots=True)
class _Sight:
    """What is known of one node."""

    began: float
    leased: bool = False
    left: float | None = None
    """When its lease was seen to be gone."""
    probe: Probe | None = None
    probed: float = 0.0
    answered: float | None = None
    refusing: float | None = None
    """Since when nothing has listened at its address, each time it was asked."""


class Presence:
    """Every node as one observer sees it, since it began to look."""

    def __init__(self, *, heartbeat: float, timeout: float) -> None:
        self.patience = max(heartbeat, timeout / 2)
        """Seconds within which a node that is there answers."""
        self._fresh = heartbeat + self.patience
        self._heartbeat = heartbeat
        self._timeout = timeout
        self._sights: dict[NodeId, _Sight] = {}

    def saw(self, members: Collection[NodeId], leased: Collection[NodeId], now: float) -> None:
        """Note who has a lease; who is no member any more is forgotten."""
        self._sights = {n: self._sights.get(n) or _Sight(now) for n in members}
        for node, sight in self._sights.items():
            if sight.leased and node not in leased:
                sight.left = now
            sight.leased = node in leased

    def probed(self, node: NodeId, how: Probe, now: float) -> None:
        """Note how asking a node ended."""
        if sight := self._sights.get(node):
            sight.probe, sight.probed = how, now
            sight.refusing = (sight.refusing or now) if how is Probe.refused else None
            if how is Probe.answered:
                sight.answered = now

    def is_serving(self, node: NodeId, now: float) -> bool:
        """Whether the node is there.

        One whose lease ended while this observer looked is not, as soon as asking it has failed; one that never had a
        lease here is given the whole timeout, unless nothing listens at its address. Where nothing has listened for a
        heartbeat the process has ended, and its lease is only what it left behind.
        """
        sight = self._sights.get(node)
        if sight is None:
            return False
        if sight.leased:
            return sight.refusing is None or sight.probed - sight.refusing < self._heartbeat
        probe = sight.probe if now - sight.probed <= self._fresh else None
        if probe in (Probe.answered, Probe.refused):
            return probe is Probe.answered
        if sight.left is None:
            return now - sight.began <= self._timeout
        return probe is None and now - sight.left <= self.patience

    def away(self, node: NodeId, now: float) -> float:
        """For how many seconds the node has not been serving; 0 if it is."""
        sight = self._sights.get(node)
        if sight is None or self.is_serving(node, now):
            return 0.0
        gone = sight.refusing if sight.leased else sight.left
        return now - max(t for t in (sight.began, gone, sight.answered) if t is not None)
