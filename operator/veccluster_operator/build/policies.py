"""What others may do to the pods: talk to them, evict them, act in their name."""

from typing import Any

from veccluster.model.spec import VecCluster
from veccluster_operator.build import names
from veccluster_operator.build.context import Context, Manifest
from veccluster_operator.build.names import Component


def service_account(cluster: VecCluster) -> Manifest:
    """Who the pods are; it may do nothing, and they hold no token of it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(cluster, cluster.metadata.name, "node"),
        "automountServiceAccountToken": False,
    }


def node_disruption_budget(cluster: VecCluster, context: Context) -> Manifest:
    """Draining Kubernetes nodes stops one data pod at a time, and none while something is amiss."""
    return _budget(cluster, cluster.metadata.name, "node", context.disruptions_allowed)


def etcd_disruption_budget(cluster: VecCluster) -> Manifest:
    """One member at a time. That holds for a single member too: its absence stops changes to the cluster, but no
    reads and writes of healthy shards, while a budget of 0 would hold up the drain of its machine for ever."""
    return _budget(cluster, names.etcd_name(cluster), "etcd", 1)


def node_network_policy(cluster: VecCluster) -> Manifest:
    """Clients may come from anywhere; the port between nodes is theirs."""
    return _network_policy(
        cluster,
        cluster.metadata.name,
        "node",
        [_from_anywhere(names.CLIENT_PORT), _from([_pods(cluster, "node")], names.PEER_PORT)],
    )


def etcd_network_policy(cluster: VecCluster, context: Context) -> Manifest:
    """Only the cluster itself and the operator reach etcd; its metrics, which its probes use too, anybody."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": context.operator_namespace}},
        "podSelector": {"matchLabels": dict(names.OPERATOR_LABELS)},
    }
    nodes, members = _pods(cluster, "node"), _pods(cluster, "etcd")
    return _network_policy(
        cluster,
        names.etcd_name(cluster),
        "etcd",
        [
            _from([nodes, members, operator], names.ETCD_CLIENT_PORT),
            _from([members], names.ETCD_PEER_PORT),
            _from_anywhere(names.ETCD_METRICS_PORT),
        ],
    )


def _budget(cluster: VecCluster, name: str, component: Component, unavailable: int) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(cluster, name, component),
        "spec": {"maxUnavailable": unavailable, "selector": {"matchLabels": names.selector(cluster, component)}},
    }


def _network_policy(cluster: VecCluster, name: str, component: Component, ingress: list[dict[str, Any]]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(cluster, name, component),
        "spec": {
            "podSelector": {"matchLabels": names.selector(cluster, component)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _pods(cluster: VecCluster, component: Component) -> dict[str, Any]:
    """Pods of the cluster, in its own namespace."""
    return {"podSelector": {"matchLabels": names.selector(cluster, component)}}


def _from(peers: list[dict[str, Any]], port: int) -> dict[str, Any]:
    return {"from": peers, **_from_anywhere(port)}


def _from_anywhere(port: int) -> dict[str, Any]:
    return {"ports": [{"protocol": "TCP", "port": port}]}
