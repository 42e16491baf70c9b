"""Kubernetes nodes: in which zone a pod runs, and whether its machine is there.

Only the nodes that run a cluster's pods are asked for, and each at most every `TTL` seconds, unless a pod on it is not
ready: that a machine is gone is told by its pods, once. All of them are asked for where a cluster asks for zones, of
which one may have none. Without the right to read nodes nothing is known, and the operator does without.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from veccluster_operator.adapters.kube import NODE, ApiError, KubeApi
from veccluster_operator.build.names import ZONE_LABEL

TTL = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hosts:
    """What is known of the nodes that run some pods."""

    zones: Mapping[str, str]
    down: frozenset[str]
    all_zones: frozenset[str] | None = None


class KubernetesNodes:
    """Nodes by name, as they were a moment ago."""

    def __init__(self, api: KubeApi, *, allowed: bool) -> None:
        self._api = api
        self._allowed = allowed
        self._known: dict[str, tuple[float, Mapping[str, Any] | None]] = {}
        self._all_zones: tuple[float, frozenset[str] | None] = (0.0, None)

    async def of(self, pods: Sequence[Mapping[str, Any]], *, all_zones: bool = False) -> Hosts:
        """The nodes on which `pods` run; with `all_zones` also the zones that there are."""
        names = {name for p in pods if (name := p.get("spec", {}).get("nodeName"))}
        doubtful = {p.get("spec", {}).get("nodeName") for p in pods if not _is_ready(p)}
        found = {n: await self._node(n, 0.0 if n in doubtful else TTL) for n in sorted(names)} if self._allowed else {}
        zones = {n: zone for n, node in found.items() if node and (zone := _zone(node))}
        down = frozenset(n for n, node in found.items() if node is not None and not _is_ready(node))
        return Hosts(zones, down, await self._zones_there_are() if all_zones and self._allowed else None)

    async def _zones_there_are(self) -> frozenset[str] | None:
        at, zones = self._all_zones
        if time.monotonic() - at >= TTL:
            try:
                zones = frozenset(zone for node in await self._api.list(NODE) if (zone := _zone(node)))
            except ApiError as error:
                log.warning("nodes_not_listed", reason=error.message)
                zones = None
            self._all_zones = (time.monotonic(), zones)
        return zones

    async def _node(self, name: str, at_most: float) -> Mapping[str, Any] | None:
        """A node as it was at most so many seconds ago."""
        at, node = self._known.get(name, (0.0, None))
        if time.monotonic() - at < at_most:
            return node
        try:
            node = await self._api.get(NODE, None, name)
        except ApiError as error:
            if error.status == 403:
                self._allowed = False
                log.warning("nodes_not_readable", reason="no right to read nodes: zones stay unknown")
            node = None
        self._known[name] = (time.monotonic(), node)
        return node


def _zone(node: Mapping[str, Any]) -> str:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return labels.get(ZONE_LABEL, "")


def _is_ready(resource: Mapping[str, Any]) -> bool:
    """Whether a node or a pod is."""
    conditions = resource.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
