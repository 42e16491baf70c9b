"""What the pods of every component have in common: the restricted profile, volumes that outlive them, probes."""

from collections.abc import Mapping
from typing import Any, Final

from veccluster.model.spec import VecCluster
from veccluster.model.units import Size
from veccluster_operator.build.names import Component, labels, selector

USER: Final = 10001
"""As which every process runs."""

POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",  # a large volume is not walked at each start
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}

POD_NAME: Final[Mapping[str, Any]] = {
    "name": "POD_NAME",
    "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
}
"""The pod's name as a variable, which `$(POD_NAME)` in a command stands for."""

PEER_HOST: Final[Mapping[str, Any]] = {
    "name": "VECCLUSTER_PEER_HOST",
    "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}},
}
"""Where a node listens for the others: at the pod's address and no other. A variable, since images of before know no
argument for it."""

SCRATCH: Final[Mapping[str, Any]] = {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}
SCRATCH_MOUNT: Final[Mapping[str, Any]] = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - the pod's own


def restricted(cluster: VecCluster) -> dict[str, Any]:
    """The part of a PodSpec that keeps a pod from what it has no business with."""
    return {
        "serviceAccountName": cluster.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
    }


def probe(port: str, path: str, *, period: int, timeout: int, failures: int) -> dict[str, Any]:
    """A GET that must answer with success; times in seconds."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def stateful(cluster: VecCluster, component: Component, replicas: int) -> dict[str, Any]:
    """The part of a StatefulSet's spec that is the same for all.

    All pods start at once, since they wait for each other where they must; only the operator restarts one; and a
    volume goes only when the VecCluster itself does and was told not to retain it.
    """
    return {
        "replicas": replicas,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector(cluster, component)},
        "persistentVolumeClaimRetentionPolicy": {
            "whenDeleted": "Retain" if cluster.spec.storage.retain else "Delete",
            "whenScaled": "Retain",
        },
    }


def claim(cluster: VecCluster, component: Component, name: str, size: int, class_name: str | None) -> dict[str, Any]:
    """A volumeClaimTemplate of `size` bytes."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": Size("0", "64Ti").format(size)}},
    }
    if class_name is not None:
        spec["storageClassName"] = class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": labels(cluster, component)},
        "spec": spec,
    }
