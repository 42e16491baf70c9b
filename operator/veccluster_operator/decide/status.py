"""Decide what a VecCluster says about itself: conditions, health, issues, counts.

Every sentence here is read by a person in `kubectl describe`: it says what is so and, where something is missing, the
next thing that is waited for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veccluster_operator.decide.observed import NOT_READY, Manifest, Observed, is_ready, pod_problem

Status = dict[str, Any]
MAX_ISSUES, MAX_ISSUE = 100, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the plan knows beside what was observed."""

    desired: int
    """Data nodes that there should be."""
    refusal: tuple[str, str] | None = None
    """Reason and sentence, when the file asks for what cannot be done: nothing is changed until it is corrected."""
    obstacles: Sequence[str] = ()
    """What keeps the objects from being as they should."""
    rolling: str | None = None
    """What is being restarted, or why it waits."""
    issues: Sequence[str] = ()
    warnings: Sequence[str] = ()
    endpoints: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its times."""

    type: str
    status: str
    reason: str
    message: str


def paused(previous: Status, generation: int) -> Status:
    """The status of a cluster that the operator leaves alone: only the conditions that say so change."""
    says = "paused: true: the operator leaves everything as it is until it is set to false"
    kept = [c for c in previous.get("conditions", []) if c["type"] not in ("Progressing", "Ready")]
    conditions = [
        Condition("Ready", "Unknown", "Paused", says),
        Condition("Progressing", "False", "Paused", says),
    ]
    merged = [*kept, *(with_generation(c, generation) for c in conditions)]
    return {**previous, "observedGeneration": generation, "conditions": merged}


def of(observed: Observed, situation: Situation, generation: int) -> Status:
    """The whole status, without transition times (`with_times` adds them)."""
    pods = observed.pods_of("node")
    ready = sum(map(is_ready, pods))
    report = observed.report
    issues = list(_issues(observed, situation, pods))
    health = _health(observed, situation, ready, issues)
    conditions = [
        _ready(observed, situation, ready, health),
        _progressing(observed, situation, ready),
        _degraded(health, issues),
        _scaling(situation, len(pods)),
    ]
    status: Status = {
        "observedGeneration": generation,
        "conditions": [with_generation(c, generation) for c in conditions],
        "health": health,
        "issues": [i[:MAX_ISSUE] for i in issues[:MAX_ISSUES]],
        "nodes": {"desired": situation.desired, "ready": ready, "draining": 0},
        "endpoints": list(situation.endpoints),
    }
    if report is not None:
        shards = report["shards"]
        status["shards"] = {
            "total": shards["total"],
            "underReplicated": shards["under_replicated"],
            "unavailable": shards["unavailable"],
            "moving": shards["moving"],
        }
        status |= {k: report[k] for k in ("leader", "vectors", "version") if report.get(k) is not None}
    return status


def _issues(observed: Observed, situation: Situation, pods: Sequence[Manifest]) -> Iterator[str]:
    """The gravest first: what cannot be done, what the nodes say, what their pods say, what etcd says."""
    if situation.refusal:
        yield situation.refusal[1]
    yield from situation.obstacles
    if observed.report is not None:
        yield from observed.report.get("issues", ())
    for pod in observed.pods:
        if problem := pod_problem(pod, observed.nodes_down):
            yield f"{problem[0].upper()}{problem[1:].rstrip('.')}."
    if observed.report is None and observed.report_problem and pods:
        yield f"The cluster cannot be asked how it is: {observed.report_problem}."
    yield from situation.issues
    yield from situation.warnings


def _health(observed: Observed, situation: Situation, ready: int, issues: Sequence[str]) -> str:
    """What the nodes say, and worse where Kubernetes knows more; warnings alone do not count."""
    if observed.report is None:
        return "critical"
    said: str = observed.report["health"]
    if said == "healthy" and (ready < situation.desired or len(issues) > len(situation.warnings)):
        return "degraded"
    return said


def _ready(observed: Observed, situation: Situation, ready: int, health: str) -> Condition:
    if ready < situation.desired or observed.report is None:
        reason = "NoAccessToEtcd" if observed.no_access else "WaitingForNodes"
        return Condition("Ready", "False", reason, next_obstacle(observed, situation, ready))
    if health == "critical":
        return Condition(
            "Ready", "False", "Critical", _first(observed.report.get("issues"), "some data is unavailable")
        )
    return Condition("Ready", "True", "NodesReady", f"all {ready} nodes serve")


def next_obstacle(observed: Observed, situation: Situation, ready: int) -> str:
    """The next thing that has to happen before the cluster is ready."""
    counted = f"{ready} of {situation.desired} nodes are ready"
    if situation.refusal:
        return f"{counted}; {situation.refusal[1]}"
    if situation.obstacles:
        return f"{counted}; {situation.obstacles[0]}"
    for component in ("etcd", "node"):
        for pod in observed.pods_of(component):
            if problem := pod_problem(pod, observed.nodes_down):
                says = observed.no_access or _own_words(observed) if problem.endswith(NOT_READY) else None
                return f"{counted}; {says or problem}"
    if len(observed.pods_of("node")) < situation.desired:
        return f"{counted}; the StatefulSet controller is making the others"
    return f"{counted}; {observed.report_problem or 'the others have not reported yet'}"


def _own_words(observed: Observed) -> str | None:
    """What a node that is not ready says of itself, which is more than Kubernetes knows."""
    issues = (observed.report or {}).get("issues") or ()
    return next((str(i).rstrip(".") for i in issues if " is not ready: " in str(i)), None)


def _progressing(observed: Observed, situation: Situation, ready: int) -> Condition:
    if situation.refusal:
        return Condition("Progressing", "False", *situation.refusal)
    if situation.obstacles:
        return Condition("Progressing", "False", "Blocked", situation.obstacles[0])
    if situation.rolling:
        return Condition("Progressing", "True", "RollingOut", situation.rolling)
    if ready < situation.desired:
        return Condition("Progressing", "True", "StartingNodes", next_obstacle(observed, situation, ready))
    return Condition("Progressing", "False", "Complete", "everything is as the file asks")


def _degraded(health: str, issues: Sequence[str]) -> Condition:
    if health == "healthy":
        return Condition("Degraded", "False", "Healthy", _first(issues, "nothing is wrong"))
    return Condition("Degraded", "True", health.capitalize(), _first(issues, "no reason is known"))


def _scaling(situation: Situation, there: int) -> Condition:
    if there < situation.desired:
        return Condition("Scaling", "True", "AddingNodes", f"{there} of {situation.desired} nodes are there")
    return Condition("Scaling", "False", "Complete", f"{situation.desired} nodes, as asked")


def _first(items: Sequence[str] | None, otherwise: str) -> str:
    return items[0] if items else otherwise


def with_generation(condition: Condition, generation: int) -> Status:
    """The condition as the resource has it."""
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message[:32768],
        "observedGeneration": generation,
    }


def with_times(status: Status, previous: Mapping[str, Any], now: str) -> Status:
    """The status with the time at which each condition last changed its `status`; `now` as RFC 3339."""
    before = {c["type"]: c for c in previous.get("conditions", [])}

    def since(condition: Mapping[str, Any]) -> str:
        old = before.get(condition["type"])
        same = old is not None and old["status"] == condition["status"]
        return str(old.get("lastTransitionTime") or now) if same and old else now

    return {**status, "conditions": [{**c, "lastTransitionTime": since(c)} for c in status["conditions"]]}


def differs(status: Status, previous: Mapping[str, Any]) -> bool:
    """Whether there is anything to write, times aside."""
    return _timeless(status) != _timeless(previous)


def _timeless(status: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status.get("conditions", [])]
    return {**status, "conditions": sorted(conditions, key=lambda c: str(c["type"]))}


@dataclass(frozen=True, slots=True)
class News:
    """What an event tells."""

    reason: str
    message: str
    warning: bool


def news(status: Status, previous: Mapping[str, Any]) -> Iterator[News]:
    """What has changed since the previous status that a person would want to be told, each sentence once."""
    before = {c["type"]: c for c in previous.get("conditions", [])}
    told: set[str] = set()
    for condition in status["conditions"]:
        old = before.get(condition["type"], {})
        changed = any(old.get(k) != condition[k] for k in _NEWSWORTHY[condition["type"]])
        if changed and condition["message"] not in told:
            told.add(condition["message"])
            yield News(condition["reason"], condition["message"], _is_bad(condition))


_NEWSWORTHY = {
    "Ready": ("status", "reason", "message"),
    "Progressing": ("status", "reason", "message"),
    "Degraded": ("status",),
    "Scaling": (),
}


def _is_bad(condition: Mapping[str, Any]) -> bool:
    return (condition["type"], condition["status"]) == ("Degraded", "True") or condition["reason"] in (
        "Critical",
        "InvalidSpec",
        "Unsupported",
        "Blocked",
        "NoAccessToEtcd",
    )
