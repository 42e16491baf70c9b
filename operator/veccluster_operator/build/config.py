"""What the nodes are told: the ConfigMap that all data pods mount, and where etcd and the cluster itself are reached.

The spec in it holds only what differs from the defaults, since a node refuses fields that it does not know: so an
older image can read what a newer operator writes, until somebody uses a field that is new.
"""

import json
from typing import Any, Final

from veccluster.model.spec import VecCluster
from veccluster_operator.build import names
from veccluster_operator.build.context import Manifest

DATA_DIRECTORY: Final = "/data"
CONFIG_DIRECTORY: Final = "/etc/veccluster"
CONFIG_FILE: Final = "node.json"
ETCD_TLS_DIRECTORY: Final = "/etc/veccluster-etcd/tls"
ETCD_CREDENTIALS_DIRECTORY: Final = "/etc/veccluster-etcd/credentials"

NODE_FIELDS: Final = ("replicationFactor", "minInSync", "shards", "consistency", "failover", "tuning", "security")
"""Fields of the spec that a node reads."""


def etcd_endpoints(cluster: VecCluster) -> list[str]:
    """Client URLs of the cluster's etcd: each member of its own, or those that were given."""
    metadata = cluster.spec.metadata
    if metadata.managed is None:
        return list(metadata.endpoints or ())
    return [f"http://{host}:{names.ETCD_CLIENT_PORT}" for host in etcd_hosts(cluster).values()]


def etcd_hosts(cluster: VecCluster) -> dict[str, str]:
    """DNS names of a managed etcd's members, by name; empty when etcd is not ours."""
    managed = cluster.spec.metadata.managed
    service = f"{names.etcd_name(cluster)}.{cluster.metadata.namespace}.svc"
    members = [f"{names.etcd_name(cluster)}-{number}" for number in range(managed.nodes if managed else 0)]
    return {member: f"{member}.{service}" for member in members}


def client_endpoints(cluster: VecCluster) -> list[str]:
    """Where clients reach the cluster from within Kubernetes."""
    return [f"http://{cluster.metadata.name}.{cluster.metadata.namespace}.svc:{names.CLIENT_PORT}"]


def config_map(cluster: VecCluster) -> Manifest:
    """The nodes' configuration; who a node is and where it runs it learns from its pod."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(cluster, names.config_name(cluster), "node"),
        "data": {CONFIG_FILE: as_json(node_config(cluster))},
    }


def node_config(cluster: VecCluster) -> dict[str, Any]:
    """The content of node.json."""
    asked = cluster.spec.as_asked()
    return {
        "cluster": cluster.metadata.name,
        "namespace": cluster.metadata.namespace,
        "data_dir": DATA_DIRECTORY,
        "listen": f"0.0.0.0:{names.CLIENT_PORT}",
        "peer_listen": f"0.0.0.0:{names.PEER_PORT}",
        "etcd": _etcd(cluster),
        # Always how many nodes there are: other fields are checked against it.
        "spec": {"nodes": cluster.spec.nodes, **{name: asked[name] for name in NODE_FIELDS if name in asked}},
    }


def _etcd(cluster: VecCluster) -> dict[str, Any]:
    metadata = cluster.spec.metadata
    told: dict[str, Any] = {"endpoints": etcd_endpoints(cluster)}
    if metadata.tls is not None:
        files = {"ca_file": "ca.crt", "cert_file": "tls.crt", "key_file": "tls.key"}
        told["tls"] = {name: f"{ETCD_TLS_DIRECTORY}/{file}" for name, file in files.items()}
    if metadata.credentials_secret is not None:
        for name in ("username", "password"):
            told[f"{name}_file"] = f"{ETCD_CREDENTIALS_DIRECTORY}/{name}"
    return told


def as_json(value: Any) -> str:
    """For people too; the same value is always the same text."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
