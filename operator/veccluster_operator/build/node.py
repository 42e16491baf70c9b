"""The data pods: their StatefulSet, and the pod that it makes, with a person's podTemplate merged over ours."""

import json
from typing import Any, Final

from veccluster.model.pods import PodTemplate
from veccluster.model.spec import VecCluster
from veccluster_operator.build import guard, names, pods, scheduling
from veccluster_operator.build.asked import asked, image
from veccluster_operator.build.config import (
    CONFIG_DIRECTORY,
    CONFIG_FILE,
    DATA_DIRECTORY,
)
from veccluster_operator.build.context import Context, Manifest
from veccluster_operator.build.merge import merged_pod
from veccluster_operator.build.secret import secrets

POD_DIRECTORY: Final = "/etc/veccluster-pod"
ZONE_FILE: Final = "zone"

USUAL_REQUESTS: Final = {"cpu": "250m", "memory": "512Mi"}
"""Reserved for a node when nothing is asked: enough for a first hundred thousand vectors. No limits: how much memory
the vectors take is known only to whoever has them."""

GRACE: Final = 60
LEAVE: Final = 5
"""Seconds between a pod's leaving the Services and its being told to stop, so that no request is sent to it then."""


def stateful_set(cluster: VecCluster, context: Context) -> Manifest:
    """All data pods."""
    storage = cluster.spec.storage
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(cluster, cluster.metadata.name, "node"),
        "spec": {
            **pods.stateful(cluster, "node", context.replicas),
            "serviceName": names.nodes_name(cluster),
            "template": _template(cluster, context),
            "volumeClaimTemplates": [pods.claim(cluster, "node", guard.DATA, storage.size, storage.class_name)],
        },
    }


def _template(cluster: VecCluster, context: Context) -> dict[str, Any]:
    """One pod. The zones hold whatever affinity the podTemplate or the spec gives."""
    overrides = cluster.spec.pod_template or PodTemplate()
    built = _pod(cluster, context)
    pod = merged_pod(built, overrides.spec or {}, f"{guard.WHERE}.spec")
    guard.check(overrides, built, pod)
    where = f"{guard.WHERE}.spec.affinity" if "affinity" in (overrides.spec or {}) else "spec.affinity"
    if affinity := scheduling.within_zones(pod.get("affinity"), cluster.spec.zones, where):
        pod["affinity"] = affinity
    what = json.dumps(asked(cluster, context), sort_keys=True, separators=(",", ":"))
    return {
        "metadata": {
            "labels": {**overrides.metadata.labels, **names.labels(cluster, "node")},
            "annotations": {**overrides.metadata.annotations, names.ASKED_ANNOTATION: what},
        },
        "spec": pod,
    }


def _pod(cluster: VecCluster, context: Context) -> dict[str, Any]:
    optional = {
        "affinity": cluster.spec.affinity,
        "tolerations": scheduling.tolerations(cluster),
    }
    return {
        **pods.restricted(cluster),
        "terminationGracePeriodSeconds": GRACE,
        "topologySpreadConstraints": scheduling.spread(cluster),
        **{name: value for name, value in optional.items() if value},
        "containers": [_container(cluster, context)],
        "volumes": _volumes(cluster),
    }


def _container(cluster: VecCluster, context: Context) -> dict[str, Any]:
    host = f"$(POD_NAME).{names.nodes_name(cluster)}.{cluster.metadata.namespace}.svc"
    arguments = {
        "--config": f"{CONFIG_DIRECTORY}/{CONFIG_FILE}",
        "--id": "$(POD_NAME)",
        "--advertise": host,
        "--zone-file": f"{POD_DIRECTORY}/{ZONE_FILE}",
    }
    return {
        "name": guard.NODE,
        "image": image(cluster, context),
        "imagePullPolicy": cluster.spec.image_pull_policy,
        "command": ["veccluster-node"],
        "args": [word for option in arguments.items() for word in option],
        "env": [dict(pods.POD_NAME), dict(pods.PEER_HOST)],
        "ports": [
            {"name": "http", "containerPort": names.CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": names.PEER_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(cluster),
        "securityContext": dict(pods.CONTAINER_SECURITY),
        # An hour for etcd to be there; a node whose loop stands still is restarted after a minute. That a node is ready
        # means that it answers; whether it serves all of its shards is asked before another one is restarted (rollout).
        "startupProbe": pods.probe("http", "/readyz", period=5, timeout=5, failures=720),
        "readinessProbe": pods.probe("http", "/readyz", period=5, timeout=5, failures=2),
        "livenessProbe": pods.probe("http", "/healthz", period=10, timeout=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE}}},
        # What the node says last when it gives up is what `kubectl describe` and the status show.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(cluster),
    }


def _resources(cluster: VecCluster) -> dict[str, Any]:
    """As asked; Kubernetes itself reserves what is limited, so only what is in neither gets our usual request."""
    asked_for = cluster.spec.resources
    usual = {k: v for k, v in USUAL_REQUESTS.items() if k not in asked_for.limits}
    requests = {**usual, **asked_for.requests}
    given = {"requests": requests, "limits": asked_for.limits}
    return {kind: {k: str(v) for k, v in quantities.items()} for kind, quantities in given.items() if quantities}


def _volumes(cluster: VecCluster) -> list[dict[str, Any]]:
    zone = {
        "path": ZONE_FILE,
        "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{names.ZONE_ANNOTATION}']"},
    }
    return [
        {"name": "config", "configMap": {"name": names.config_name(cluster)}},
        {"name": "pod", "downwardAPI": {"items": [zone]}},
        dict(pods.SCRATCH),
        *(
            {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440, "optional": True}}
            for name, (secret, _) in secrets(cluster).items()
        ),
    ]


def _mounts(cluster: VecCluster) -> list[dict[str, Any]]:
    return [
        {"name": guard.DATA, "mountPath": DATA_DIRECTORY},
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "pod", "mountPath": POD_DIRECTORY, "readOnly": True},
        dict(pods.SCRATCH_MOUNT),
        *({"name": name, "mountPath": where, "readOnly": True} for name, (_, where) in secrets(cluster).items()),
    ]
