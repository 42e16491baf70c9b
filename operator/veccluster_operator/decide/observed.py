"""What a reconcile has seen of one cluster, and how to read it: JSON values from Kubernetes, the nodes and etcd."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from veccluster_operator.build.names import ASKED_ANNOTATION, COMPONENT_LABEL

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """An etcd member as the operator saw it; where `error` is set nothing else is known. Sizes in bytes."""

    name: str
    error: str | None = None
    version: str = ""
    db_size: int = 0
    db_size_in_use: int = 0
    has_leader: bool = False
    is_leader: bool = False
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One cluster at one moment. What could not be asked is None, with the reason beside it."""

    objects: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    """What the operator created, by kind and name."""
    pods: Sequence[Manifest] = ()
    claims: Sequence[Manifest] = ()
    zones: Mapping[str, str] = field(default_factory=dict)
    """Zone by name of the Kubernetes node; only of nodes whose zone is known."""
    all_zones: frozenset[str] | None = None
    """Every zone that has a Kubernetes node; None when that is not known, or nobody asked for zones."""
    nodes_down: frozenset[str] = frozenset()
    """Kubernetes nodes that are not Ready."""
    report: Mapping[str, Any] | None = None
    """The answer to GET /v1/cluster."""
    report_problem: str | None = None
    no_access: str | None = None
    """What keeps nodes from etcd and is for a person to put right, such as a Secret that is not there."""
    etcd: Sequence[Member] | None = None
    """Each member of a managed etcd; None when etcd is not ours to ask."""

    def pods_of(self, component: str) -> list[Manifest]:
        """The pods of a component that are not on their way out, by ordinal."""
        return sorted((p for p in self.pods if is_part(p, component) and not is_leaving(p)), key=ordinal)

    def stateful_set(self, name: str) -> Manifest | None:
        """A StatefulSet of the cluster."""
        return self.objects.get(("StatefulSet", name))


def is_part(manifest: Manifest, component: str) -> bool:
    """Whether an object belongs to a component (node, etcd)."""
    labels = manifest["metadata"].get("labels") or {}
    return bool(labels.get(COMPONENT_LABEL) == component)


def is_leaving(manifest: Manifest) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in manifest["metadata"]


def ordinal(pod: Manifest) -> int:
    """The number at the end of a StatefulSet's pod."""
    return int(pod["metadata"]["name"].rpartition("-")[2])


def is_ready(pod: Manifest) -> bool:
    """Whether a pod serves."""
    return _condition(pod, "Ready").get("status") == "True" and not is_leaving(pod)


def asked_of(pod: Manifest) -> Mapping[str, Any]:
    """What was asked of a pod when it was made, or a StatefulSet's template; nothing where a person has broken that."""
    annotations = pod["metadata"].get("annotations") or {}
    try:
        found = json.loads(annotations.get(ASKED_ANNOTATION, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _condition(pod: Manifest, kind: str) -> Mapping[str, Any]:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


NOT_READY = "has not become ready yet"
"""What is said of a pod of which Kubernetes knows nothing else."""


def pod_problem(pod: Manifest, nodes_down: frozenset[str] = frozenset()) -> str | None:
    """Why a pod does not serve, in words; None when it does."""
    name = pod["metadata"]["name"]
    if is_leaving(pod):
        return f"pod {name} is stopping"
    if is_ready(pod):
        return None
    if (host := pod.get("spec", {}).get("nodeName")) in nodes_down:
        return f"pod {name} is on Kubernetes node {host}, which is not Ready"
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"pod {name} cannot be scheduled: {scheduled.get('message') or scheduled.get('reason')}"
    return _container_problem(pod) or f"pod {name} {NOT_READY}"


def _container_problem(pod: Manifest) -> str | None:
    """What the first container that waits or has failed says."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    states = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in states:
        state = container.get("state") or {}
        if (waiting := state.get("waiting")) and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
            return f"pod {name}: {waiting.get('reason')}: {_why_waiting(container)}"
        if (ended := state.get("terminated")) and ended.get("exitCode"):
            return f"pod {name}: container {container['name']} ended with exit code {ended['exitCode']}"
    return None


def _why_waiting(container: Mapping[str, Any]) -> str:
    waiting = container["state"]["waiting"]
    last = (container.get("lastState") or {}).get("terminated")
    if last and last.get("message"):
        return str(last["message"]).strip().splitlines()[-1][-400:]
    code = f"; it ended with exit code {last['exitCode']}" if last else ""
    return f"{waiting.get('message') or 'no more is known'}{code}"
