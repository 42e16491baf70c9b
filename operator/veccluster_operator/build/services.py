"""How pods and clients find each other."""

from typing import Any

from veccluster.model.spec import VecCluster
from veccluster_operator.build import names
from veccluster_operator.build.context import Manifest
from veccluster_operator.build.names import Component


def clients(cluster: VecCluster) -> Manifest:
    """For clients: any data pod that serves."""
    return _service(
        cluster,
        cluster.metadata.name,
        "node",
        {"type": "ClusterIP", "ports": [_port("http", names.CLIENT_PORT, "http") | {"appProtocol": "http"}]},
    )


def nodes(cluster: VecCluster) -> Manifest:
    """A DNS name for each data pod."""
    ports = [_port("client", names.CLIENT_PORT, "http"), _port("peer", names.PEER_PORT, "peer")]
    return _headless(cluster, names.nodes_name(cluster), "node", ports)


def etcd(cluster: VecCluster) -> Manifest:
    """A DNS name for each etcd member."""
    ports = {"client": names.ETCD_CLIENT_PORT, "peer": names.ETCD_PEER_PORT, "metrics": names.ETCD_METRICS_PORT}
    return _headless(cluster, names.etcd_name(cluster), "etcd", [_port(n, p, n) for n, p in ports.items()])


def _headless(cluster: VecCluster, name: str, component: Component, ports: list[dict[str, Any]]) -> Manifest:
    """Names that exist before their pods are ready: they must find each other to become so."""
    spec = {"type": "ClusterIP", "clusterIP": "None", "publishNotReadyAddresses": True, "ports": ports}
    return _service(cluster, name, component, spec)


def _service(cluster: VecCluster, name: str, component: Component, spec: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(cluster, name, component),
        "spec": {**spec, "selector": names.selector(cluster, component)},
    }


def _port(name: str, number: int, target: str) -> dict[str, Any]:
    return {"name": name, "port": number, "targetPort": target, "protocol": "TCP"}
