"""VecClusters as the operator gets them from the API server, and what it builds of them."""

from typing import Any

import yaml

from veccluster.model.spec import VecCluster
from veccluster_operator.build import Context, Manifest, manifests

CONTEXT = Context(
    node_image="registry.example/node:1",
    tools_image="registry.example/node:2",
    etcd_image="registry.example/etcd:3.5",
    replicas=3,
    bootstrapped=False,
    disruptions_allowed=1,
    operator_namespace="operators",
)

EXTERNAL = (
    "metadata: {endpoints: ['https://etcd-0:2379', 'https://etcd-1:2379'], tls: {secretName: t}, credentialsSecret: c}"
)


def cluster(spec: str = "{}", name: str = "demo") -> VecCluster:
    """The VecCluster `name` in the namespace "search" with a spec written in YAML."""
    metadata = {"name": name, "namespace": "search", "uid": "8f5c"}
    written: dict[str, Any] = {"apiVersion": "veccluster.io/v1alpha1", "kind": "VecCluster", "metadata": metadata}
    return VecCluster.parse(written | {"spec": yaml.safe_load(spec)})


def built(spec: str = "{}", context: Context = CONTEXT) -> dict[tuple[str, str], Manifest]:
    """All manifests, by kind and name, in their order."""
    found = manifests(cluster(spec), context)
    return {(m["kind"], m["metadata"]["name"]): m for m in found}


def pod_of(manifest: Manifest) -> dict[str, Any]:
    """The PodSpec of a StatefulSet."""
    return manifest["spec"]["template"]["spec"]


def data_pod(spec: str = "{}", context: Context = CONTEXT) -> dict[str, Any]:
    """The PodSpec of the data pods."""
    return pod_of(built(spec, context)["StatefulSet", "demo"])


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """A container by its name."""
    return next(c for c in pod["containers"] if c["name"] == name)
