"""The managed etcd: its StatefulSet, and what its members are told before they start.

Whether a member begins a cluster, joins one or goes on with what it has is decided in its init container by what it
finds on its volume and hears from the others; the manifest is the same in all three cases.
"""

from typing import Any, Final

from veccluster.model.spec import ManagedMetadata, VecCluster
from veccluster.model.units import GiB
from veccluster_operator.build import names, pods, scheduling
from veccluster_operator.build.config import as_json, etcd_hosts
from veccluster_operator.build.context import Context, Manifest
from veccluster_operator.build.guard import WHERE
from veccluster_operator.build.merge import merged_pod

BOOTSTRAP_DIRECTORY: Final = "/etc/veccluster-etcd"
BOOTSTRAP_FILE: Final = "bootstrap.json"
DATA_DIRECTORY: Final = "/var/lib/etcd"
RUN_DIRECTORY: Final = "/run/etcd"

MOST_QUOTA: Final = 8 * GiB
"""What etcd itself warns of when it is exceeded."""
QUOTA_PERCENT: Final = 40
"""Of the volume: a defragmentation writes the database a second time, and the log needs room beside both."""

LIVE: Final = "/health?exclude=NOSPACE&exclude=CORRUPT&serializable=true"
"""Whether this member answers, whatever the others do: a restart would mend neither a lost quorum nor an alarm."""
READY: Final = "/health?exclude=NOSPACE"
"""Whether it reaches a quorum. Reads go on when the quota is used up, and the operator reports the alarm itself."""


def stateful_set(cluster: VecCluster, managed: ManagedMetadata, context: Context) -> Manifest:
    """All members."""
    storage = managed.storage
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(cluster, names.etcd_name(cluster), "etcd"),
        "spec": {
            **pods.stateful(cluster, "etcd", managed.nodes),
            "serviceName": names.etcd_name(cluster),
            "template": {
                "metadata": {"labels": names.labels(cluster, "etcd")},
                "spec": _pod(cluster, context),
            },
            "volumeClaimTemplates": [pods.claim(cluster, "etcd", "data", storage.size, storage.class_name)],
        },
    }


def config_map(cluster: VecCluster, managed: ManagedMetadata, context: Context) -> Manifest:
    """What each member is told, the same for all."""
    members = [
        {
            "name": member,
            "peer_url": f"http://{host}:{names.ETCD_PEER_PORT}",
            "client_url": f"http://{host}:{names.ETCD_CLIENT_PORT}",
        }
        for member, host in etcd_hosts(cluster).items()
    ]
    bootstrap = {
        "cluster": cluster.metadata.name,
        "token": f"{cluster.metadata.namespace}/{cluster.metadata.name}/{cluster.metadata.uid}",
        "bootstrapped": context.bootstrapped,
        "members": members,
        "quota_bytes": quota(managed),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(cluster, names.etcd_name(cluster), "etcd"),
        "data": {BOOTSTRAP_FILE: as_json(bootstrap)},
    }


def quota(managed: ManagedMetadata) -> int:
    """Bytes that a member's database may have before it takes no more writes."""
    return min(MOST_QUOTA, managed.storage.size * QUOTA_PERCENT // 100)


def _pod(cluster: VecCluster, context: Context) -> dict[str, Any]:
    """Members stay where the data pods may be: the same zones, tolerations and rights to pull images."""
    optional = {
        "tolerations": scheduling.tolerations(cluster),
        "imagePullSecrets": _pull_secrets(cluster),
    }
    return {
        **pods.restricted(cluster),
        "terminationGracePeriodSeconds": 30,
        "affinity": scheduling.within_zones(scheduling.apart(cluster, "etcd"), cluster.spec.zones, "spec.zones"),
        **{name: value for name, value in optional.items() if value},
        "initContainers": [_init_container(cluster, context)],
        "containers": [_container(cluster, context)],
        "volumes": [
            {"name": "bootstrap", "configMap": {"name": names.etcd_name(cluster)}},
            {"name": "run", "emptyDir": {"sizeLimit": "16Mi"}},
            dict(pods.SCRATCH),
        ],
    }


def _pull_secrets(cluster: VecCluster) -> Any:
    template = cluster.spec.pod_template
    asked = {k: v for k, v in ((template and template.spec) or {}).items() if k == "imagePullSecrets"}
    return merged_pod({}, asked, f"{WHERE}.spec").get("imagePullSecrets")


def _init_container(cluster: VecCluster, context: Context) -> dict[str, Any]:
    arguments = {
        "--name": "$(POD_NAME)",
        "--config": f"{BOOTSTRAP_DIRECTORY}/{BOOTSTRAP_FILE}",
        "--data-dir": f"{DATA_DIRECTORY}/data",
        "--out": f"{RUN_DIRECTORY}/etcd.yaml",
    }
    return {
        "name": "member",
        "image": context.tools_image,
        "imagePullPolicy": cluster.spec.image_pull_policy,
        "command": ["veccluster-etcd-member"],
        "args": [word for option in arguments.items() for word in option],
        "env": [dict(pods.POD_NAME)],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "securityContext": dict(pods.CONTAINER_SECURITY),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "bootstrap", "mountPath": BOOTSTRAP_DIRECTORY, "readOnly": True},
            {"name": "data", "mountPath": DATA_DIRECTORY},
            {"name": "run", "mountPath": RUN_DIRECTORY},
            dict(pods.SCRATCH_MOUNT),
        ],
    }


def _container(cluster: VecCluster, context: Context) -> dict[str, Any]:
    ports = {"client": names.ETCD_CLIENT_PORT, "peer": names.ETCD_PEER_PORT, "metrics": names.ETCD_METRICS_PORT}
    return {
        "name": "etcd",
        "image": context.etcd_image,
        "imagePullPolicy": cluster.spec.image_pull_policy,
        "command": ["/usr/local/bin/etcd"],
        "args": ["--config-file", f"{RUN_DIRECTORY}/etcd.yaml"],
        "ports": [{"name": n, "containerPort": p, "protocol": "TCP"} for n, p in ports.items()],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": dict(pods.CONTAINER_SECURITY),
        # Ten minutes to be sent the others' state; then a member that answers nothing for a minute is restarted.
        "startupProbe": pods.probe("metrics", LIVE, period=5, timeout=5, failures=120),
        "readinessProbe": pods.probe("metrics", READY, period=5, timeout=5, failures=3),
        "livenessProbe": pods.probe("metrics", LIVE, period=10, timeout=10, failures=6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "data", "mountPath": DATA_DIRECTORY},
            {"name": "run", "mountPath": RUN_DIRECTORY, "readOnly": True},
        ],
    }
