"""How everything is called and labelled that is created for a cluster.

Selectors are two labels that never change, since a StatefulSet's selector cannot; the others are for people and tools.
"""

from typing import Any, Literal

from veccluster.model.spec import API_VERSION, VecCluster

Component = Literal["node", "etcd"]

CLIENT_PORT, PEER_PORT = 8001, 8002
ETCD_CLIENT_PORT, ETCD_PEER_PORT, ETCD_METRICS_PORT = 2379, 2380, 2381

CLUSTER_LABEL = "veccluster.io/cluster"
COMPONENT_LABEL = "app.kubernetes.io/component"
BOOTSTRAPPED_LABEL = "veccluster.io/bootstrapped"
ASKED_ANNOTATION = "veccluster.io/asked"
PROVEN_ANNOTATION = "veccluster.io/proven-image"
ZONE_ANNOTATION = "veccluster.io/zone"
ZONE_LABEL = "topology.kubernetes.io/zone"
HOST_LABEL = "kubernetes.io/hostname"

OPERATOR_LABELS = {"app.kubernetes.io/name": "veccluster-operator"}
"""What the chart labels the operator's pods with."""


def nodes_name(cluster: VecCluster) -> str:
    """The headless Service that gives each data pod its DNS name."""
    return f"{cluster.metadata.name}-nodes"


def config_name(cluster: VecCluster) -> str:
    """The ConfigMap with the nodes' configuration."""
    return f"{cluster.metadata.name}-config"


def etcd_name(cluster: VecCluster) -> str:
    """Everything of the managed etcd."""
    return f"{cluster.metadata.name}-etcd"


def selector(cluster: VecCluster, component: Component) -> dict[str, str]:
    """Labels by which the pods of a component are found."""
    return {CLUSTER_LABEL: cluster.metadata.name, COMPONENT_LABEL: component}


def labels(cluster: VecCluster, component: Component) -> dict[str, str]:
    """Labels of every object of a component."""
    return {
        "app.kubernetes.io/name": "veccluster",
        "app.kubernetes.io/instance": cluster.metadata.name,
        "app.kubernetes.io/managed-by": "veccluster-operator",
        **selector(cluster, component),
    }


def metadata(cluster: VecCluster, name: str, component: Component) -> dict[str, Any]:
    """Metadata of an object that goes when the VecCluster goes."""
    assert cluster.metadata.uid, "a VecCluster that the API server has not seen yet can own nothing"
    owner = {
        "apiVersion": API_VERSION,
        "kind": "VecCluster",
        "name": cluster.metadata.name,
        "uid": cluster.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "name": name,
        "namespace": cluster.metadata.namespace,
        "labels": labels(cluster, component),
        "ownerReferences": [owner],
    }
