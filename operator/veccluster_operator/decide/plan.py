"""Decide everything about one VecCluster: what to apply, which pod to restart, and what it says about itself.

The reconcile observes, calls `decide`, and carries the actions out in their order; each can fail or be interrupted, by
another replica too, and the next round sees what is left. On the result a second call returns no actions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecCluster
from veccluster.model.support import unsupported
from veccluster_operator import build
from veccluster_operator.build.names import BOOTSTRAPPED_LABEL, PROVEN_ANNOTATION, ZONE_ANNOTATION
from veccluster_operator.decide import etcd_upkeep, rollout, status
from veccluster_operator.decide.drift import needs_apply, stamped
from veccluster_operator.decide.observed import Manifest, Observed, asked_of, is_part, is_ready

CRASHES = 3
"""Ends of an etcd container after which its pod is made anew."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator itself was told."""

    node_image: str
    etcd_image: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Create the object or correct it. One that is there but was not seen is somebody else's: it is not taken over."""

    manifest: dict[str, Any]
    creates: bool


@dataclass(frozen=True, slots=True)
class RestartPod:
    """Delete a pod, so that it is made anew as it is asked to be now."""

    pod: Manifest
    why: str


@dataclass(frozen=True, slots=True)
class SetZone:
    """Tell a pod in which zone it runs."""

    pod: Manifest
    zone: str


@dataclass(frozen=True, slots=True)
class MarkBootstrapped:
    """Note on etcd's volume that there is a cluster: from now on none is ever begun anew beside it."""

    claim: Manifest


@dataclass(frozen=True, slots=True)
class Defragment:
    """Have an etcd member give back what it does not use."""

    member: str


@dataclass(frozen=True, slots=True)
class Disarm:
    """Lift etcd's alarm that it has no space, since it has."""


Action = Apply | SetZone | MarkBootstrapped | Defragment | Disarm | RestartPod


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order, and the status if nothing goes wrong meanwhile."""

    actions: tuple[Action, ...]
    situation: status.Situation


def parse(body: Mapping[str, Any]) -> VecCluster:
    """The VecCluster as the API server has it; `InvalidSpec` where this version of the operator cannot read it."""
    return VecCluster.parse({key: body[key] for key in ("apiVersion", "kind", "metadata", "spec")})


def refusal(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and sentence, when the file asks for what cannot be done."""
    try:
        cluster = parse(body)
    except InvalidSpec as error:
        return "InvalidSpec", error.detail
    if refused := unsupported(cluster.spec, "kubernetes"):
        return "Unsupported", "; ".join(f"{e['field']} {e['reason']}" for e in refused)
    return None


def decide(body: Mapping[str, Any], observed: Observed, settings: Settings) -> Plan:
    """What to do about a VecCluster that is not paused."""
    if why := refusal(body):
        return Plan(tuple(_zones(observed)), _refused(body, observed, why))
    cluster = parse(body)
    existing = observed.stateful_set(cluster.metadata.name)
    replicas, shrinking = _replicas(cluster, existing, observed.report)
    cluster, held_back = _with_safe_etcd(cluster, observed)
    context = _context(cluster, observed, settings, replicas)
    try:
        proven = _proven_image(existing, observed)
        wanted = [stamped(_with_proven(m, proven, cluster)) for m in build.manifests(cluster, context)]
        asked = build.asked(cluster, context)
    except InvalidSpec as error:
        return Plan(tuple(_zones(observed)), _refused(body, observed, ("InvalidSpec", error.detail)))
    wanted, frozen = _within_what_can_change(wanted, observed)
    managed = cluster.spec.metadata.managed
    upkeep = etcd_upkeep.decide(observed.etcd or (), build.etcd_quota(managed) if managed else 0)
    next_restart = rollout.decide(observed, existing, asked, build.differences)
    situation = status.Situation(
        desired=replicas,
        obstacles=(*shrinking, *held_back, *frozen, *_zones_without_machines(cluster, observed)),
        rolling=_rolling(next_restart),
        issues=upkeep.issues,
        warnings=(*upkeep.warnings, *_warnings_of_nodes(observed)),
        endpoints=tuple(build.client_endpoints(cluster)),
    )
    actions: list[Action] = [*_applies(wanted, observed), *_zones(observed), *_bootstrapped(observed), *_upkeep(upkeep)]
    actions += _crash_looping_members(observed)
    actions += _homeless_members(cluster, observed)
    if isinstance(next_restart, rollout.Restart) and not actions:
        actions.append(RestartPod(next_restart.pod, f"{', '.join(next_restart.fields)} changed"))
    return Plan(tuple(actions), situation)


def with_obstacle(plan: Plan, obstacle: str) -> Plan:
    """The plan's situation with one more thing that is in the way."""
    situation = replace(plan.situation, obstacles=(*plan.situation.obstacles, obstacle))
    return Plan(plan.actions, situation)


def in_words_of_the_spec(observed: Observed, cluster: VecCluster) -> Observed:
    """The same, with what the nodes say in the terms of the file: they know Secrets as files of their own."""
    if observed.report is None:
        return observed
    said = [str(issue) for issue in observed.report.get("issues", ())]
    issues = [build.in_words_of_the_spec(issue, cluster) for issue in said]
    about_secrets = [now for now, before in zip(issues, said, strict=True) if now != before]
    return replace(observed, report={**observed.report, "issues": issues}, no_access=next(iter(about_secrets), None))


def _zones_without_machines(cluster: VecCluster, observed: Observed) -> Iterator[str]:
    """A zone that is asked for and has no machine is most likely misspelt."""
    if observed.all_zones is None:
        return
    if missing := [zone for zone in cluster.spec.zones if zone not in observed.all_zones]:
        there = f"there are {', '.join(sorted(observed.all_zones))}" if observed.all_zones else "no node has a zone"
        yield f"spec.zones: no Kubernetes node is in zone {', '.join(missing)}; {there}"


def _refused(body: Mapping[str, Any], observed: Observed, why: tuple[str, str]) -> status.Situation:
    """What runs goes on as it is until the file is corrected."""
    existing = observed.stateful_set(body["metadata"]["name"])
    desired = existing["spec"]["replicas"] if existing else body["spec"].get("nodes", 0)
    return status.Situation(desired=desired if isinstance(desired, int) else 0, refusal=why)


def _replicas(
    cluster: VecCluster, existing: Manifest | None, report: Mapping[str, Any] | None
) -> tuple[int, list[str]]:
    """How many data nodes there should be; never fewer than may hold shards, since nothing moves them away yet.

    A pod that has not become a member of the cluster holds none: so a hand that scales the StatefulSet is corrected.
    """
    wanted, there = cluster.spec.nodes, existing["spec"]["replicas"] if existing else 0
    if report is not None:
        members = {node["id"] for node in report["nodes"]}
        while there > wanted and f"{cluster.metadata.name}-{there - 1}" not in members:
            there -= 1
    if wanted >= there:
        return wanted, []
    says = (
        f"spec.nodes cannot go down from {there} to {wanted} yet, since the shards of the nodes that would "
        f"go are not moved away; use {there} or more"
    )
    return there, [says]


def _with_safe_etcd(cluster: VecCluster, observed: Observed) -> tuple[VecCluster, list[str]]:
    """The cluster with as many etcd members as it may have now, and a sentence where that is not what is asked.

    Fewer would leave members on etcd's list that no longer run, and with them no majority. More before the first
    ones have found each other could make two etcd clusters.
    """
    managed, there = cluster.spec.metadata.managed, _members_told(cluster, observed)
    if managed is None or there in (0, managed.nodes) or (managed.nodes > there and _is_bootstrapped(observed)):
        return cluster, []
    why = "members are not taken off yet" if managed.nodes < there else "the first ones have to find each other first"
    says = f"spec.metadata.managed.nodes stays {there} and does not become {managed.nodes}: {why}"
    kept = managed.model_copy(update={"nodes": there})
    metadata = cluster.spec.metadata.model_copy(update={"managed": kept})
    return cluster.model_copy(update={"spec": cluster.spec.model_copy(update={"metadata": metadata})}), [says]


def _members_told(cluster: VecCluster, observed: Observed) -> int:
    """How many members etcd was told that it has; a StatefulSet scaled by hand has pods that are none of them."""
    name = f"{cluster.metadata.name}-etcd"
    try:
        told = json.loads(observed.objects["ConfigMap", name]["data"]["bootstrap.json"])
        return len(told["members"])
    except (KeyError, TypeError, ValueError):  # it is not there yet, or a person has broken it
        existing = observed.stateful_set(name)
        return int(existing["spec"]["replicas"]) if existing else 0


def _crash_looping_members(observed: Observed) -> Iterator[RestartPod]:
    """An etcd that cannot go on with what its init container decided needs another decision, so another pod.

    Kubernetes starts only the container that ended, and a member that was taken off the list meanwhile, say, would
    end again and again.
    """
    for pod in observed.pods_of("etcd"):
        for container in pod.get("status", {}).get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") == "CrashLoopBackOff" and container.get("restartCount", 0) >= CRASHES:
                yield RestartPod(pod, f"etcd ended {container['restartCount']} times; how it starts is decided anew")


def _homeless_members(cluster: VecCluster, observed: Observed) -> Iterator[RestartPod]:
    """A member for which no machine was found is made anew when the file says something else of where it may be.

    Nothing else restarts etcd for a new template: what runs goes on as it is.
    """
    stateful_set = observed.stateful_set(f"{cluster.metadata.name}-etcd")
    if stateful_set is None or rollout.template_unknown(stateful_set):
        return
    newest = stateful_set.get("status", {}).get("updateRevision")
    for pod in observed.pods_of("etcd"):
        made_of = (pod["metadata"].get("labels") or {}).get("controller-revision-hash")
        if newest and made_of and made_of != newest and not pod.get("spec", {}).get("nodeName"):
            yield RestartPod(pod, "it found no machine, and where it may run has changed")


def _context(cluster: VecCluster, observed: Observed, settings: Settings, replicas: int) -> build.Context:
    return build.Context(
        node_image=_proven_image(observed.stateful_set(cluster.metadata.name), observed) or settings.node_image,
        tools_image=settings.node_image,
        etcd_image=settings.etcd_image,
        replicas=replicas,
        bootstrapped=_is_bootstrapped(observed),
        disruptions_allowed=1 if _can_spare_a_pod(observed, replicas) else 0,
        operator_namespace=settings.namespace,
    )


def _proven_image(stateful_set: Manifest | None, observed: Observed) -> str | None:
    """The image that a data pod last served with: it is kept until the file names another one.

    An image that never served is not kept: a file without one mends a cluster to which a wrong one was given.
    """
    if stateful_set is None:
        return None
    given = asked_of(stateful_set["spec"]["template"]).get("image")
    if given and any(is_ready(p) and asked_of(p).get("image") == given for p in observed.pods_of("node")):
        return str(given)
    known = (stateful_set["metadata"].get("annotations") or {}).get(PROVEN_ANNOTATION)
    return str(known) if known else None


def _with_proven(manifest: dict[str, Any], image: str | None, cluster: VecCluster) -> dict[str, Any]:
    """The manifest; that of the nodes' StatefulSet with the proven image noted on it."""
    metadata = manifest["metadata"]
    if image is None or (manifest["kind"], metadata["name"]) != ("StatefulSet", cluster.metadata.name):
        return manifest
    annotations = {**(metadata.get("annotations") or {}), PROVEN_ANNOTATION: image}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _is_bootstrapped(observed: Observed) -> bool:
    labelled = any(BOOTSTRAPPED_LABEL in (c["metadata"].get("labels") or {}) for c in observed.claims)
    return labelled or _works(observed)


def _works(observed: Observed) -> bool:
    return bool(observed.etcd) and etcd_upkeep.has_quorum(observed.etcd or ())


def _can_spare_a_pod(observed: Observed, replicas: int) -> bool:
    """Whether somebody may drain a Kubernetes node: everything is up and nothing is being restarted."""
    report = observed.report
    if report is None or report["health"] == "critical" or len(observed.pods_of("node")) < replicas:
        return False
    if observed.etcd and not etcd_upkeep.has_quorum(observed.etcd):
        return False  # nobody could take over from it
    if rollout.opening_shards(report):
        return False
    active = sum(n["state"] == "active" for n in report["nodes"])
    return active >= replicas and not any(report["shards"][k] for k in ("unavailable", "under_replicated", "moving"))


def _within_what_can_change(
    wanted: Sequence[dict[str, Any]], observed: Observed
) -> tuple[list[dict[str, Any]], list[str]]:
    """The manifests with what Kubernetes does not let change left as it is, and a sentence about each such field."""
    found, says = [], []
    for manifest in wanted:
        existing = observed.objects.get((manifest["kind"], manifest["metadata"]["name"]))
        is_set = manifest["kind"] == "StatefulSet" and existing is not None
        fields = build.immutable_differences(existing, manifest) if is_set and existing else []
        if fields and existing:
            says.append(
                f"{', '.join(fields)} cannot be changed for volumes that exist, and growing them is not there "
                f"yet; StatefulSet {manifest['metadata']['name']} keeps what it has"
            )
        found.append(build.with_immutable_of(existing, manifest) if fields and existing else manifest)
    return found, says


def _applies(wanted: Sequence[dict[str, Any]], observed: Observed) -> Iterator[Apply]:
    for manifest in wanted:
        existing = observed.objects.get((manifest["kind"], manifest["metadata"]["name"]))
        if needs_apply(manifest, existing):
            yield Apply(manifest, creates=existing is None)


def _zones(observed: Observed) -> Iterator[SetZone]:
    for pod in observed.pods_of("node"):
        zone = observed.zones.get(pod.get("spec", {}).get("nodeName", ""), "")
        told = (pod["metadata"].get("annotations") or {}).get(ZONE_ANNOTATION, "")
        if zone and zone != told:
            yield SetZone(pod, zone)


def _bootstrapped(observed: Observed) -> Iterator[MarkBootstrapped]:
    if not _works(observed):
        return
    for claim in observed.claims:
        if is_part(claim, "etcd") and BOOTSTRAPPED_LABEL not in (claim["metadata"].get("labels") or {}):
            yield MarkBootstrapped(claim)


def _upkeep(upkeep: etcd_upkeep.Upkeep) -> Iterator[Defragment | Disarm]:
    if upkeep.defragment:
        yield Defragment(upkeep.defragment)
    if upkeep.disarm:
        yield Disarm()


def _warnings_of_nodes(observed: Observed) -> Iterator[str]:
    """What the nodes see of an etcd that is not the operator's to look into."""
    if observed.etcd is None and observed.report is not None:
        yield from etcd_upkeep.too_old([observed.report.get("etcd_version") or ""])


def _rolling(next_restart: rollout.Restart | rollout.Held | None) -> str | None:
    match next_restart:
        case rollout.Restart(pod, fields):
            return f"restarting pod {pod['metadata']['name']}: {', '.join(fields)} changed"
        case rollout.Held(waiting, because):
            return f"{waiting} pods must restart; the next one waits: {because}"
        case None:
            return None
