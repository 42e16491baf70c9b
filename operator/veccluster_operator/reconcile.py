"""One round for one VecCluster: observe, decide, act, say how it is.

Nothing is remembered between rounds that the next one needs: whatever a round leaves undone, the next one sees, in
this replica of the operator or in another.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

import structlog

from veccluster import failpoints
from veccluster.errors import InvalidSpec, Unreachable, VecClusterError
from veccluster.model.spec import VecCluster
from veccluster_operator.adapters import kube
from veccluster_operator.adapters.dataplane import DataPlane
from veccluster_operator.adapters.etcd import Etcd
from veccluster_operator.adapters.events import Recorder
from veccluster_operator.adapters.kube import ApiError, KubeApi
from veccluster_operator.adapters.nodes import KubernetesNodes
from veccluster_operator.build.names import BOOTSTRAPPED_LABEL, CLIENT_PORT, CLUSTER_LABEL, ZONE_ANNOTATION
from veccluster_operator.collections import CollectionKeeper
from veccluster_operator.decide import plan as planning
from veccluster_operator.decide import status
from veccluster_operator.decide.observed import Manifest, Observed, is_leaving, is_part, is_ready

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """Which VecCluster."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round leaves behind for the glances until the next one."""

    servers: tuple[str, ...] = ()
    """URLs of the nodes; none when there is nothing to look at."""
    report: Mapping[str, Any] | None = None
    at: float = 0.0
    gone: bool = False
    """There is no such VecCluster, or it is being deleted: nothing more is to be done."""


class Reconciler:
    """Rounds for all clusters; holds connections and no state."""

    def __init__(
        self,
        api: KubeApi,
        data: DataPlane,
        etcd: Etcd,
        nodes: KubernetesNodes,
        recorder: Recorder,
        settings: planning.Settings,
    ) -> None:
        self._api = api
        self._data = data
        self._etcd = etcd
        self._nodes = nodes
        self._recorder = recorder
        self._settings = settings
        self._collections = CollectionKeeper(api, data, recorder)

    async def round(self, key: Key) -> Outcome:
        """One round; raises `ApiError` or `NotActive` where it could not be finished."""
        body = await self._api.get(kube.VEC_CLUSTER, key.namespace, key.name)
        if body is None or is_leaving(body):
            await self._collections.without_cluster(key.namespace, key.name)
            return Outcome(gone=True)
        if body["spec"].get("paused"):
            paused = status.paused(body.get("status") or {}, body["metadata"]["generation"])
            await self._say(body, paused)
            return Outcome()
        cluster = _parsed(body)
        observed = await self._observe(key, body, cluster)
        told = planning.in_words_of_the_spec(observed, cluster) if cluster else observed
        plan = planning.decide(body, told, self._settings)
        for action in plan.actions:
            plan = await self._carry_out(body, cluster, plan, action)
        said = status.of(told, plan.situation, body["metadata"]["generation"], body.get("status") or {})
        await self._say(body, said)
        servers = _servers(observed)
        if cluster is not None:
            await self._collections.round(body, cluster, servers, observed.report)
        return Outcome(servers, observed.report, time.monotonic())

    async def has_changed(self, outcome: Outcome) -> bool:
        """A glance at the nodes between two rounds: whether they say something else than at the last one."""
        if not outcome.servers:
            return False
        try:
            report: Mapping[str, Any] | None = await self._data.cluster(outcome.servers)
        except VecClusterError:
            report = None
        counts = time.monotonic() - outcome.at >= COUNTS_EVERY
        return _told(report, counts=counts) != _told(outcome.report, counts=counts)

    # Observing

    async def _observe(self, key: Key, body: Manifest, cluster: VecCluster | None) -> Observed:
        selector = f"{CLUSTER_LABEL}={key.name}"
        lists = await asyncio.gather(
            *(self._api.list(kind, key.namespace, selector) for kind in (*kube.BUILT, kube.POD, kube.CLAIM))
        )
        *built, pods, claims = lists
        uid = body["metadata"]["uid"]
        objects = {(o["kind"], o["metadata"]["name"]): o for found in built for o in found if _owned_by(o, uid)}
        hosts = await self._nodes.of(pods, all_zones=bool(cluster and cluster.spec.zones))
        seen = Observed(objects=objects, pods=pods, claims=claims)
        report, problem = await self._ask(_servers(seen))
        return Observed(
            objects=objects,
            pods=pods,
            claims=claims,
            zones=hosts.zones,
            all_zones=hosts.all_zones,
            nodes_down=hosts.down,
            report=report,
            report_problem=problem,
            etcd=await self._etcd.members(cluster, seen) if cluster else None,
        )

    async def _ask(self, servers: Sequence[str]) -> tuple[Mapping[str, Any] | None, str | None]:
        try:
            return await self._data.cluster(servers), None
        except Unreachable as error:
            return None, error.detail
        except VecClusterError as error:
            return None, f"a node answered: {error.detail}"

    # Acting

    async def _carry_out(
        self, body: Manifest, cluster: VecCluster | None, plan: planning.Plan, action: planning.Action
    ) -> planning.Plan:
        """Do it; what the API server refuses for good is an obstacle to tell, not a failure of the round."""
        try:
            await self._do(body, cluster, action)
        except _Foreign as foreign:
            return planning.with_obstacle(plan, str(foreign))
        except VecClusterError as error:  # etcd's upkeep is tried again at the next round
            log.warning("not_done", cluster=body["metadata"]["name"], action=_describe(action), reason=error.detail)
        except ApiError as error:
            if not error.is_invalid:
                raise
            log.warning("refused", cluster=body["metadata"]["name"], action=_describe(action), reason=error.message)
            return planning.with_obstacle(plan, f"the API server refuses {_describe(action)}: {error.message}")
        return plan

    async def _do(self, body: Manifest, cluster: VecCluster | None, action: planning.Action) -> None:
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        self._api.require_active()
        log.info("acting", cluster=str(key), action=_describe(action))
        match action:
            case planning.Apply(manifest, creates):
                await self._apply(manifest, creates=creates)
            case planning.RestartPod(pod, why):
                await self._recorder.note(body, "RestartingPod", f"restarting pod {pod['metadata']['name']}: {why}")
                await self._api.delete(kube.POD, pod)
            case planning.SetZone(pod, zone):
                await self._api.merge(kube.POD, pod, {"metadata": {"annotations": {ZONE_ANNOTATION: zone}}})
            case planning.MarkBootstrapped(claim):
                await self._api.merge(kube.CLAIM, claim, {"metadata": {"labels": {BOOTSTRAPPED_LABEL: "true"}}})
            case planning.Defragment(member):
                assert cluster is not None, "decided from its spec"
                await self._etcd.defragment(cluster, member)
            case planning.Disarm():
                assert cluster is not None, "decided from its spec"
                await self._etcd.disarm(cluster)
            case _:
                assert_never(action)
        failpoints.hit("operator.acted")

    async def _apply(self, manifest: dict[str, Any], *, creates: bool) -> None:
        """What is there under this name although it was not seen among ours belongs to somebody else."""
        if creates:
            metadata = manifest["metadata"]
            kind = kube.kind_of(manifest)
            there = await self._api.get(kind, metadata["namespace"], metadata["name"])
            if there is not None and not _owned_by(there, metadata["ownerReferences"][0]["uid"]):
                raise _Foreign(
                    f"{kind.name} {metadata['name']} exists and does not belong to this VecCluster: "
                    "delete or rename it, or give the VecCluster another name"
                )
        await self._api.apply(manifest)

    # Saying

    async def _say(self, body: Manifest, wanted: status.Status) -> None:
        """Write the status if it says anything new, and tell what has changed as events."""
        previous = body.get("status") or {}
        if not status.differs(wanted, previous):
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._api.write_status(kube.VEC_CLUSTER, body, status.with_times(wanted, previous, now))
        failpoints.hit("operator.said")
        for change in status.news(wanted, previous):
            await self._recorder.note(body, change.reason, change.message, warning=change.warning)


COUNTS_EVERY = 15.0
"""Seconds after which another number of vectors is worth a round."""


def _parsed(body: Manifest) -> VecCluster | None:
    """The VecCluster; None where this version cannot read it, which the plan tells."""
    try:
        return planning.parse(body)
    except InvalidSpec:
        return None


class _Foreign(Exception):
    """An object is in the way that is not ours."""


def _told(report: Mapping[str, Any] | None, *, counts: bool) -> str:
    """What of a report is worth a round, as a digest."""
    if report is None:
        return ""
    kept = {k: v for k, v in report.items() if counts or k != "vectors"}
    return hashlib.sha256(json.dumps(_steady(kept), sort_keys=True).encode()).hexdigest()


def _steady(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sentences tell how long something has been so, which is no news."""
    issues = ["".join(c for c in i if not c.isdigit()) for i in report.get("issues", ())]
    return {**report, "issues": issues}


def _owned_by(manifest: Mapping[str, Any], uid: str) -> bool:
    return any(o.get("uid") == uid for o in manifest["metadata"].get("ownerReferences") or ())


def _servers(observed: Observed) -> tuple[str, ...]:
    """URLs of the nodes, those that are ready first."""
    pods = [p for p in observed.pods if is_part(p, "node") and p.get("status", {}).get("podIP")]
    ordered = sorted(pods, key=lambda p: not is_ready(p))
    return tuple(f"http://{_host(p['status']['podIP'])}:{CLIENT_PORT}" for p in ordered)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _describe(action: planning.Action) -> str:
    match action:
        case planning.Apply(manifest, creates):
            return f"{'create' if creates else 'correct'} {manifest['kind']} {manifest['metadata']['name']}"
        case planning.RestartPod(pod, why):
            return f"restart pod {pod['metadata']['name']} ({why})"
        case planning.SetZone(pod, zone):
            return f"tell pod {pod['metadata']['name']} that its zone is {zone}"
        case planning.MarkBootstrapped(claim):
            return f"mark claim {claim['metadata']['name']} as bootstrapped"
        case planning.Defragment(member):
            return f"defragment etcd member {member}"
        case planning.Disarm():
            return "lift etcd's alarm"
        case _:
            assert_never(action)
