"""Decide what a VecCluster says about itself: conditions, health, issues, counts.

Every sentence here is read by a person in `kubectl describe`: it says what is so and, where something is missing, the
next thing that is waited for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veccluster_operator.decide.observed import NOT_READY, Manifest, Observed, is_part, is_ready, pod_problem

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


def of(observed: Observed, situation: Situation, generation: int, previous: Mapping[str, Any] | None = None) -> Status:
    """The whole status, without transition times (`with_times` adds them).

    `previous` is the status before; where it is not given, the cluster counts as one that has been up.
    """
    pods = observed.pods_of("node")
    ready = sum(map(is_ready, pods))
    report = observed.report
    starting = previous is not None and not _has_been_up(previous) and _is_not_up(observed, situation, ready)
    issues = list(_issues(observed, situation, pods))
    health = None if starting else _health(observed, situation, issues)
    otherwise = next_obstacle(observed, situation, ready)
    conditions = [
        _ready(observed, situation, ready, health),
        _progressing(observed, situation, ready),
        _starting(observed, otherwise) if health is None else _degraded(health, issues, otherwise),
        _scaling(situation, len(pods)),
    ]
    status: Status = {
        "observedGeneration": generation,
        "conditions": [with_generation(c, generation) for c in conditions],
        **({} if health is None else {"health": health}),
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


def _has_been_up(previous: Mapping[str, Any]) -> bool:
    """Whether the cluster has ever been judged: what it lacks before that is no fault of it."""
    reasons = [c["reason"] for c in previous.get("conditions", ()) if c["type"] == "Degraded"]
    return any(reason not in _NOT_JUDGED for reason in reasons)


def _is_not_up(observed: Observed, situation: Situation, ready: int) -> bool:
    """Whether nodes are still to come, and nothing is known to be kept by those that are there."""
    report = observed.report
    return report is None or (ready < situation.desired and not report["shards"]["total"])


def _issues(observed: Observed, situation: Situation, pods: Sequence[Manifest]) -> Iterator[str]:
    """The gravest first: what cannot be done, what the nodes say, what their pods say, what etcd says."""
    if situation.refusal:
        yield situation.refusal[1]
    yield from situation.obstacles
    if observed.report is not None:
        yield from observed.report.get("issues", ())
    yield from _issues_of_pods(observed, situation, pods)
    if observed.report is None:
        yield _unasked(observed, pods)
    yield from situation.issues
    yield from situation.warnings


def _issues_of_pods(observed: Observed, situation: Situation, pods: Sequence[Manifest]) -> Iterator[str]:
    """What pods say; not of those that only come up beside nodes which have all that they should."""
    well = observed.report is not None and observed.report["health"] == "healthy"
    for pod in observed.pods:
        problem = pod_problem(pod, observed.nodes_down)
        if problem and not (well and is_part(pod, "node") and problem.endswith(NOT_READY)):
            yield f"{problem[0].upper()}{problem[1:].rstrip('.')}."
    there = {pod["metadata"]["name"] for pod in observed.pods}
    for node in (observed.report or {}).get("nodes", ()):
        if node["id"] not in there and pods and _number(node["id"]) < situation.desired:
            yield f"Pod {node['id']} is not there; the StatefulSet controller makes it anew."


def _number(node: str) -> int:
    return int(number) if (number := node.rpartition("-")[2]).isdecimal() else 0


def _unasked(observed: Observed, pods: Sequence[Manifest]) -> str:
    if not pods:
        return "No pod of a node is there."
    return f"The cluster cannot be asked how it is: {observed.report_problem or 'no node has been asked yet'}."


def _health(observed: Observed, situation: Situation, issues: Sequence[str]) -> str:
    """What the nodes say, and worse where Kubernetes knows more; warnings alone do not count."""
    if observed.report is None:
        return "critical"
    said: str = observed.report["health"]
    return "degraded" if said == "healthy" and len(issues) > len(situation.warnings) else said


def _ready(observed: Observed, situation: Situation, ready: int, health: str | None) -> Condition:
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


_NOT_JUDGED = ("Starting", "NotStarted")
"""Reasons of `Degraded` while a cluster comes up for the first time."""


def _starting(observed: Observed, obstacle: str) -> Condition:
    """Of a cluster that comes up for the first time: it is nothing yet, unless a pod cannot come up."""
    problems = [problem for pod in observed.pods if (problem := pod_problem(pod, observed.nodes_down))]
    for problem in problems:
        if not problem.endswith(NOT_READY):
            return Condition("Degraded", "True", "NotStarted", problem)
    return Condition("Degraded", "Unknown", "Starting", obstacle)


def _degraded(health: str, issues: Sequence[str], obstacle: str) -> Condition:
    if health == "healthy":
        return Condition("Degraded", "False", "Healthy", _first(issues, "nothing is wrong"))
    return Condition("Degraded", "True", health.capitalize(), _first(issues, obstacle))


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
