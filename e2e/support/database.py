"""A VecCluster in the test cluster: change it as a person would, and ask how it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2e.cluster.tools import Kubectl
from e2e.waiting import wait_for

API_VERSION = "veccluster.io/v1alpha1"
Manifest = dict[str, Any]

OWNED = ("statefulset", "service", "configmap", "serviceaccount", "poddisruptionbudget", "networkpolicy")
"""Kinds of what the operator keeps for a VecCluster."""

SMALL: Mapping[str, Any] = {
    "nodes": 1,
    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    "storage": {"size": "1Gi"},
    "metadata": {"managed": {"nodes": 1, "storage": {"size": "256Mi"}}},
}
"""The spec of a cluster that is up in seconds: one node, one member of etcd."""


def vec_cluster(name: str, /, **spec: Any) -> Manifest:
    """A VecCluster: SMALL, changed by what is given."""
    return {"apiVersion": API_VERSION, "kind": "VecCluster", "metadata": {"name": name}, "spec": {**SMALL, **spec}}


def vec_collection(name: str, cluster: str, /, **spec: Any) -> Manifest:
    """A VecCollection of three dimensions unless said otherwise."""
    asked = {"cluster": cluster, "dimension": 3, **spec}
    return {"apiVersion": API_VERSION, "kind": "VecCollection", "metadata": {"name": name}, "spec": asked}


@dataclass(frozen=True)
class Database:
    """One VecCluster that exists, or is about to."""

    kubectl: Kubectl = field(repr=False)
    namespace: str
    name: str

    @property
    def url(self) -> str:
        """Where clients inside the cluster find it: its Service."""
        return f"http://{self.name}.{self.namespace}:8001"

    @property
    def resource(self) -> str:
        """As kubectl names it."""
        return f"veccluster/{self.name}"

    # Changing

    def apply(self, **spec: Any) -> None:
        """Apply SMALL, changed by `spec`."""
        self.kubectl.apply(vec_cluster(self.name, **spec), namespace=self.namespace)

    def patch(self, **spec: Any) -> None:
        """Merge into the spec; None removes."""
        self.kubectl("patch", self.resource, "--type=merge", "-p", json.dumps({"spec": spec}), namespace=self.namespace)

    def delete(self) -> None:
        """Delete the VecCluster and wait until it and its pods are gone."""
        self.kubectl("delete", self.resource, "--timeout=60s", namespace=self.namespace)
        wait_for(lambda: not self.pods(), 90, f"the pods of {self.name} to be gone")

    # Asking

    def get(self) -> Manifest:
        """The resource."""
        found: Manifest = self.kubectl.json("get", self.resource, namespace=self.namespace)
        return found

    def exists(self) -> bool:
        """Whether it has been applied."""
        return bool(self.kubectl("get", self.resource, "--ignore-not-found", namespace=self.namespace))

    def status(self) -> Manifest:
        """Its status, which is empty until the operator has seen it."""
        found: Manifest = self.get().get("status") or {}
        return found

    def condition(self, kind: str) -> Manifest:
        """One condition; empty while it is not there."""
        return condition_of(self.get(), kind)

    def pods(self, component: str | None = None) -> list[Manifest]:
        """All pods, or those of "node" or "etcd"."""
        return self._items("pods", component)

    def claims(self, component: str | None = None) -> list[Manifest]:
        """The volume claims, of all pods or those of a component."""
        return self._items("pvc", component)

    def owned(self) -> list[Manifest]:
        """Every object that the operator keeps for it, but pods and claims."""
        found = self.kubectl.items(
            ",".join(OWNED), "-l", f"veccluster.io/cluster={self.name}", namespace=self.namespace
        )
        return sorted(found, key=called)

    def events(self) -> list[str]:
        """What the events about it say, each with its reason before it."""
        about = f"involvedObject.kind=VecCluster,involvedObject.name={self.name}"
        found = self.kubectl.items("events", "--field-selector", about, namespace=self.namespace)
        return [f"{e['reason']}: {e['message']}" for e in found]

    def _items(self, kind: str, component: str | None) -> list[Manifest]:
        labels = f"veccluster.io/cluster={self.name}" + (
            f",app.kubernetes.io/component={component}" if component else ""
        )
        return self.kubectl.items(kind, "-l", labels, namespace=self.namespace)

    # Waiting

    def wait_until_ready(self, timeout: int = 180) -> None:
        """`kubectl wait` for what the operator says of the present spec; a failure says what it waits for."""
        self.wait_until_seen()
        try:
            self.kubectl(
                "wait",
                "--for=condition=Ready",
                self.resource,
                f"--timeout={timeout}s",
                namespace=self.namespace,
                timeout=timeout + 10,
            )
        except Exception as error:
            raise AssertionError(f"{self.name} did not get Ready: {json.dumps(self.status(), indent=1)}") from error

    def wait_until_seen(self) -> None:
        """Until the operator's status is about the present spec."""

        def seen() -> bool:
            body = self.get()
            return bool(body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"])

        wait_for(seen, 30, f"the operator to see the spec of {self.name}")

    def wait_until_told(self, *words: str, kind: str = "Progressing", within: float = 60) -> None:
        """Until a condition and an event say all these words."""

        def told() -> bool:
            message = str(self.condition(kind).get("message", ""))
            assert all(word in message for word in words), message
            events = self.events()
            assert any(all(word in event for word in words) for event in events), events
            return True

        wait_for(told, within, f"a condition and an event that say {words}")

    def wait_until_healthy(self, timeout: float = 120) -> None:
        """Until all is as it should be: Ready, healthy, nothing in progress, no pod missing."""

        def healthy() -> bool:
            body, pods = self.get(), self.pods("node")
            status = body.get("status") or {}
            if (
                status.get("observedGeneration") == body["metadata"]["generation"]
                and status.get("health") == "healthy"
                and condition_of(body, "Ready").get("status") == "True"
                and condition_of(body, "Progressing").get("reason") == "Complete"
                and len(pods) == body["spec"]["nodes"]
                and all(is_ready(p) for p in self.pods())
            ):
                return True
            raise AssertionError(json.dumps({k: status.get(k) for k in ("health", "issues", "conditions")}))

        wait_for(healthy, timeout, f"{self.name} to be healthy")


def condition_of(resource: Mapping[str, Any], kind: str) -> Manifest:
    """A condition of a VecCluster or VecCollection; empty while it is not there."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether Kubernetes calls a pod ready and nobody has asked it to end."""
    conditions: Sequence[Mapping[str, Any]] = pod.get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def called(manifest: Mapping[str, Any]) -> str:
    """Kind and name."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def uid(manifest: Mapping[str, Any]) -> str:
    """Which incarnation of an object it is."""
    found: str = manifest["metadata"]["uid"]
    return found
