"""Examples for every rule across fields, what it takes and what it refuses: for the model, the CRD, the API server."""

from typing import Any

from veccluster.model.pods import Storage
from veccluster.model.rules import Part
from veccluster.model.security import Auth, Security
from veccluster.model.spec import Autoscaling, Failover, MetadataStore, VecClusterSpec, VecCollectionSpec

COLLECTION = {"cluster": "demo", "dimension": 3}

RULES: dict[type[Part], list[tuple[dict[str, Any], dict[str, Any]]]] = {
    VecClusterSpec: [
        ({"nodes": 3, "replicationFactor": 3}, {"nodes": 2, "replicationFactor": 3}),
        ({"replicationFactor": 3, "minInSync": 3}, {"replicationFactor": 2, "minInSync": 3}),
        ({"nodes": 3, "minInSync": 3}, {"nodes": 2, "minInSync": 3}),
        (
            {"replicationFactor": 3, "autoscaling": {"enabled": True, "minNodes": 3, "maxNodes": 5}},
            {"replicationFactor": 3, "autoscaling": {"enabled": True, "minNodes": 2, "maxNodes": 5}},
        ),
    ],
    Autoscaling: [
        ({"minNodes": 3, "maxNodes": 3}, {"minNodes": 4, "maxNodes": 3}),
        ({"enabled": True, "minNodes": 1, "maxNodes": 3}, {"enabled": True, "maxNodes": 3}),
        ({"enabled": False}, {"enabled": True, "minNodes": 3}),
    ],
    MetadataStore: [
        ({"managed": {"nodes": 1}}, {"managed": {}, "endpoints": ["http://etcd:2379"]}),
        ({"endpoints": ["http://etcd:2379"]}, {}),
        ({"endpoints": ["https://etcd:2379"], "tls": {"secretName": "a"}}, {"managed": {}, "tls": {"secretName": "a"}}),
        ({"endpoints": ["http://etcd:2379"], "credentialsSecret": "a"}, {"managed": {}, "credentialsSecret": "a"}),
    ],
    Failover: [({"heartbeat": "1s", "timeout": "2s"}, {"heartbeat": "1s", "timeout": "1s999ms"})],
    Storage: [({"size": "10Gi", "autogrow": {"max": "10Gi"}}, {"size": "10Gi", "autogrow": {"max": "10239Mi"}})],
    Auth: [
        ({"method": "basic", "secretName": "users"}, {"method": "basic"}),
        ({"method": "none"}, {"method": "mtls", "secretName": "users"}),
        (
            {"method": "jwt", "jwt": {"issuer": "https://a", "audience": "b", "jwksURL": "https://a/keys"}},
            {"method": "jwt"},
        ),
        ({}, {"jwt": {"issuer": "https://a", "audience": "b", "jwksURL": "https://a/keys"}}),
    ],
    Security: [
        ({"tls": {"enabled": True}, "auth": {"method": "mtls"}}, {"auth": {"method": "mtls"}}),
        ({"tls": {"enabled": True}, "auth": {"method": "mtls"}, "acl": {}}, {"acl": {}}),
    ],
    VecCollectionSpec: [
        (COLLECTION | {"replicationFactor": 3, "minInSync": 2}, COLLECTION | {"replicationFactor": 1, "minInSync": 2})
    ],
}
CHANGES: dict[type[Part], list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]] = {
    Storage: [
        ({"size": "10Gi"}, {"size": "20Gi"}, {"size": "9Gi"}),
        ({"className": "a"}, {"className": "a", "size": "20Gi"}, {"className": "b"}),
    ],
    MetadataStore: [({"managed": {}}, {"managed": {"nodes": 1}}, {"endpoints": ["http://etcd:2379"]})],
    VecCollectionSpec: [
        (COLLECTION, COLLECTION | {"minInSync": 1}, COLLECTION | {"cluster": "other"}),
        (COLLECTION | {"name": "a"}, COLLECTION | {"name": "a", "minInSync": 1}, COLLECTION),
        (COLLECTION, COLLECTION | {"filterable": ["a"]}, COLLECTION | {"dimension": 4}),
        (COLLECTION, COLLECTION | {"metric": "cosine"}, COLLECTION | {"metric": "l2"}),
        (COLLECTION | {"shards": 3}, COLLECTION | {"shards": 3, "minInSync": 1}, COLLECTION | {"shards": "auto"}),
    ],
}
"""For each rule about changes: before, an allowed after, a refused after."""
