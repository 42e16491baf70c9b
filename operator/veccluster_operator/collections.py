"""One round for the VecCollections of a cluster; what is to be done about them is decided in decide/collections.py."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from veccluster.errors import CollectionNotFound, Conflict, InvalidRequest, VecClusterError
from veccluster.model.spec import VecCluster
from veccluster_operator.adapters import kube
from veccluster_operator.adapters.dataplane import DataPlane
from veccluster_operator.adapters.events import Recorder
from veccluster_operator.adapters.kube import KubeApi, Manifest
from veccluster_operator.build import metadata
from veccluster_operator.decide import collections as decisions
from veccluster_operator.decide import status as statuses
from veccluster_operator.decide.collections import Entry
from veccluster_operator.decide.status import Condition

log = structlog.get_logger(__name__)


class CollectionKeeper:
    """Keeps the collections of clusters as VecCollections ask."""

    def __init__(self, api: KubeApi, data: DataPlane, recorder: Recorder) -> None:
        self._api = api
        self._data = data
        self._recorder = recorder

    async def without_cluster(self, namespace: str, cluster: str) -> None:
        """Tell the VecCollections of a cluster that is not there what they wait for."""
        for resource in await self._resources(namespace, cluster):
            says = f"there is no VecCluster {cluster} in namespace {namespace}"
            await self._say(resource, Condition("Ready", "False", "ClusterNotFound", says))

    async def round(
        self,
        body: Mapping[str, Any],
        cluster: VecCluster,
        servers: Sequence[str],
        report: Mapping[str, Any] | None,
    ) -> None:
        """Create, check and drop collections; each resource says how its own fares."""
        namespace, name = cluster.metadata.namespace, cluster.metadata.name
        resources = await self._resources(namespace, name)
        held = await self._api.get(kube.CONFIG_MAP, namespace, f"{name}-collections")
        record = decisions.read_record(held)
        if not resources and not record:
            return
        after = dict(record)
        for action in decisions.decide(resources, record):
            match action:
                case decisions.Refuse(resource, reason, message):
                    await self._say(resource, Condition("Ready", "False", reason, message))
                case decisions.Forget(forgotten):
                    after.pop(forgotten)
                case decisions.Drop(dropped, uuid):
                    if report is not None and await self._drop(body, servers, dropped, uuid):
                        after.pop(dropped)
                case decisions.Ensure():
                    if entry := await self._ensure(cluster, action, record.get(action.name), servers, report):
                        after[action.name] = entry
        if after != record or held is None:
            await self._api.apply(_record_of(cluster, after))

    async def _resources(self, namespace: str, cluster: str) -> list[Manifest]:
        found = await self._api.list(kube.VEC_COLLECTION, namespace)
        return [r for r in found if r["spec"].get("cluster") == cluster]

    async def _ensure(
        self,
        cluster: VecCluster,
        asked: decisions.Ensure,
        known: Entry | None,
        servers: Sequence[str],
        report: Mapping[str, Any] | None,
    ) -> Entry | None:
        """Create the collection or find it as asked; the resource's status says which, or what is in the way."""
        nodes = 0 if known else cluster.spec.nodes
        if says := decisions.too_early(report, cluster.metadata.name, nodes):
            await self._say(asked.resource, Condition("Ready", "False", "ClusterNotReady", says))
            return None
        try:
            held = await self._held(asked, known, servers)
        except Conflict as error:
            await self._say(asked.resource, Condition("Ready", "False", "Different", error.detail))
            return None
        except InvalidRequest as error:
            await self._say(asked.resource, Condition("Ready", "False", "Refused", _reasons(error)))
            return None
        except VecClusterError as error:
            await self._say(asked.resource, Condition("Ready", "False", "ClusterNotReady", error.detail))
            return None
        ready = Condition("Ready", "True", "Created", f"collection {asked.name} is there, in {held['shards']} shards")
        if amiss := decisions.shards_amiss(held):
            ready = Condition("Ready", "False", "ClusterNotReady", amiss)
        counted = {"uuid": held["uuid"], "shards": held["shards"], "vectors": held.get("count")}
        await self._say(asked.resource, ready, counted)
        metadata = asked.resource["metadata"]
        return Entry(metadata["uid"], held["uuid"], asked.policy, metadata["generation"])

    async def _held(self, asked: decisions.Ensure, known: Entry | None, servers: Sequence[str]) -> Mapping[str, Any]:
        """The collection, created where it is not there. One that was once found to be as asked is only looked at.

        Creation is answered when every shard is served, for which a round that has something to tell must not wait.
        """
        if known is not None and known.is_about(asked.resource):
            with contextlib.suppress(CollectionNotFound):
                held = await self._data.collection(servers, asked.name)
                if held["uuid"] == known.collection_uuid:
                    return held
        self._api.require_active()
        await self._data.create(servers, asked.name, asked.options)
        return await self._data.collection(servers, asked.name)

    async def _drop(self, cluster: Mapping[str, Any], servers: Sequence[str], name: str, uuid: str) -> bool:
        """Delete the collection of a VecCollection that is gone, unless it is another by now; whether it is gone."""
        try:
            held = await self._data.collection(servers, name)
            if held.get("uuid") == uuid:
                self._api.require_active()
                await self._data.delete(servers, name)
                says = f"collection {name} was deleted with its VecCollection (deletionPolicy: Delete)"
                await self._recorder.note(cluster, "CollectionDeleted", says)
        except CollectionNotFound:
            return True
        except VecClusterError as error:
            log.warning("collection_not_deleted", collection=name, reason=error.detail)
            return False
        return True

    async def _say(
        self, resource: Manifest | Mapping[str, Any], ready: Condition, counted: Mapping[str, Any] | None = None
    ) -> None:
        """Write the status of a VecCollection if it says anything new."""
        previous = resource.get("status") or {}
        generation = resource["metadata"]["generation"]
        waits = "True" if ready.reason == "ClusterNotReady" else "False"
        progress = Condition("Progressing", waits, ready.reason, ready.message)
        if ready.status == "True":
            progress = Condition("Progressing", "False", "Complete", "everything is as the file asks")
        kept = {k: v for k, v in previous.items() if k in ("uuid", "shards", "vectors")}
        wanted = {
            **kept,
            **{k: v for k, v in (counted or {}).items() if v is not None},
            "observedGeneration": generation,
            "conditions": [statuses.with_generation(c, generation) for c in (ready, progress)],
        }
        if not statuses.differs(wanted, previous):
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        full = {**resource, "kind": kube.VEC_COLLECTION.name, "apiVersion": kube.VEC_COLLECTION.api_version}
        await self._api.write_status(kube.VEC_COLLECTION, full, statuses.with_times(wanted, previous, now))
        for change in statuses.news(wanted, previous):
            await self._recorder.note(full, change.reason, change.message, warning=ready.status != "True")


def _reasons(error: InvalidRequest) -> str:
    return "; ".join(f"{e.get('field')} {e.get('reason')}" for e in error.errors) or error.detail


def _record_of(cluster: VecCluster, record: decisions.Record) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, f"{cluster.metadata.name}-collections", "node"),
        "data": decisions.write_record(record),
    }
