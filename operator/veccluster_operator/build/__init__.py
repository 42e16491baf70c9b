"""Every Kubernetes object of a cluster, built by pure functions from its VecCluster.

The same VecCluster and context always give the same manifests. They are meant to be applied server-side: they say
what the operator cares for and nothing else, so that what others add stays.
"""

from collections.abc import Iterator

from veccluster.model.spec import VecCluster
from veccluster_operator.build import config, etcd, node, policies, services
from veccluster_operator.build.asked import asked, differences
from veccluster_operator.build.config import client_endpoints, etcd_endpoints, etcd_hosts
from veccluster_operator.build.context import Context, Manifest
from veccluster_operator.build.etcd import quota as etcd_quota
from veccluster_operator.build.immutable import immutable_differences, with_immutable_of
from veccluster_operator.build.names import metadata
from veccluster_operator.build.secret import in_words_of_the_spec

__all__ = [
    "Context",
    "Manifest",
    "asked",
    "client_endpoints",
    "differences",
    "etcd_endpoints",
    "etcd_hosts",
    "etcd_quota",
    "immutable_differences",
    "in_words_of_the_spec",
    "manifests",
    "metadata",
    "with_immutable_of",
]


def manifests(cluster: VecCluster, context: Context) -> list[Manifest]:
    """All objects, in the order in which to apply them: what pods mount or are named by comes before them.

    `InvalidSpec` names a field of the podTemplate that would make the cluster unsafe.
    """
    return [policies.service_account(cluster), *_etcd(cluster, context), *_nodes(cluster, context)]


def _etcd(cluster: VecCluster, context: Context) -> Iterator[Manifest]:
    managed = cluster.spec.metadata.managed
    if managed is not None:
        yield etcd.config_map(cluster, managed, context)
        yield services.etcd(cluster)
        yield policies.etcd_network_policy(cluster, context)
        yield policies.etcd_disruption_budget(cluster)
        yield etcd.stateful_set(cluster, managed, context)


def _nodes(cluster: VecCluster, context: Context) -> Iterator[Manifest]:
    yield config.config_map(cluster)
    yield services.nodes(cluster)
    yield services.clients(cluster)
    yield policies.node_network_policy(cluster)
    yield policies.node_disruption_budget(cluster, context)
    yield node.stateful_set(cluster, context)
