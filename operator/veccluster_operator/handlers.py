"""What wakes the workers: kopf's events of our own resources, and a watch for each kind of object that belongs to them.

The handlers decide nothing and remember nothing. kopf stores no annotations and adds no finalizers for handlers of
plain events, so a VecCluster can always be deleted, with or without the operator. What belongs to clusters is watched
by label on the server's side, which kopf cannot do, so that pods of others never reach the operator.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import kopf

from veccluster_operator.adapters import kube
from veccluster_operator.adapters.kube import Kind, KubeApi
from veccluster_operator.build.names import CLUSTER_LABEL
from veccluster_operator.reconcile import Key
from veccluster_operator.work import Workers

PAUSE = 2.0
"""Seconds before a watch that failed is begun again."""

GROUP, VERSION = "veccluster.io", "v1alpha1"


def registry(workers: Workers) -> kopf.OperatorRegistry:
    """The handlers that kopf runs."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    @kopf.on.event(GROUP, VERSION, kube.VEC_CLUSTER.plural, registry=found)
    async def cluster_changed(**event_of: Any) -> None:
        workers.wake(Key(event_of["namespace"], event_of["name"]))

    @kopf.on.event(GROUP, VERSION, kube.VEC_COLLECTION.plural, registry=found)
    async def collection_changed(**event_of: Any) -> None:
        if cluster := event_of["spec"].get("cluster"):
            workers.wake(Key(event_of["namespace"], cluster))

    return found


def settings() -> kopf.OperatorSettings:
    """kopf without what we do ourselves (events) or have no rights for (namespaces, definitions)."""
    configured = kopf.OperatorSettings()
    configured.posting.enabled = False
    configured.scanning.disabled = True
    configured.watching.server_timeout = kube.WATCH_SECONDS
    configured.watching.client_timeout = kube.WATCH_SECONDS + 30
    return configured


async def watch_parts(api: KubeApi, workers: Workers, namespaces: Sequence[str]) -> None:
    """Wake the worker of a cluster whenever something that belongs to it changes."""
    scopes: Sequence[str | None] = namespaces or [None]
    async with asyncio.TaskGroup() as tasks:
        for kind in (*kube.BUILT, kube.POD, kube.CLAIM):
            for namespace in scopes:
                tasks.create_task(_watch(api, workers, kind, namespace))


async def _watch(api: KubeApi, workers: Workers, kind: Kind, namespace: str | None) -> None:
    async for changed in kube.follow(api, kind, namespace, CLUSTER_LABEL, PAUSE):
        metadata = changed["metadata"]
        if cluster := (metadata.get("labels") or {}).get(CLUSTER_LABEL):
            workers.wake(Key(metadata["namespace"], cluster))
