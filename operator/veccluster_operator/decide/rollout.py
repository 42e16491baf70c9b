"""Decide which pod is restarted next so that it runs as it is asked to now: one at a time, never below what is needed.

Pods are compared by what a person asked of them when they were made (`build.asked`), not by the StatefulSet's
template: a new version of the operator, whose templates differ, so restarts nothing. Each predicate that holds a
restart back is a sentence, and the sentence is what people read.

1. The StatefulSet must know the new template, or the pod would come back as it was.
2. A pod that is not ready and that no shard needs goes first: so a bad file can always be corrected by a good one.
   While another pod is away, a node whose pod is not ready may hold one of the last copies that writes need.
3. Otherwise every other pod must be ready, every node active with all of its shards open (a pod is ready before that),
   every shard have all its copies in sync, and etcd its quorum, without which no other node could take over: a restart
   must never meet another fault. Other reasons to be degraded do not count: the restart may be what mends them.
4. The leader goes last, so that it moves once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veccluster_operator.decide import etcd_upkeep
from veccluster_operator.decide.observed import Manifest, Observed, asked_of, is_ready, ordinal

Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]


@dataclass(frozen=True, slots=True)
class Restart:
    """Delete this pod, so that its StatefulSet makes it anew; `fields` of the spec are why."""

    pod: Manifest
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """Pods must restart, and this is why none does now."""

    waiting: int
    because: str


def decide(
    observed: Observed, stateful_set: Manifest | None, asked: Mapping[str, Any], differences: Differences
) -> Restart | Held | None:
    """The next restart, why it has to wait, or None when every pod runs as it is asked to."""
    pods = observed.pods_of("node")
    outdated = {id(p): tuple(fields) for p in pods if (fields := differences(asked_of(p), asked))}
    if not outdated or stateful_set is None:
        return None
    if because := template_unknown(stateful_set):
        return Held(len(outdated), because)
    candidates = [p for p in pods if id(p) in outdated]
    broken = [p for p in candidates if not is_ready(p)]
    chosen = next((p for p in broken if _nobody_needs(p, observed, pods)), None)
    if chosen is None:
        chosen = max(broken or candidates, key=lambda p: (p["metadata"]["name"] != _leader(observed), ordinal(p)))
        others = [p for p in pods if p is not chosen]
        if because := _something_is_amiss(observed, others, stateful_set["spec"]["replicas"] - 1):
            return Held(len(outdated), because)
    return Restart(chosen, outdated[id(chosen)])


def template_unknown(stateful_set: Manifest) -> str | None:
    """Why pods that are made now would be as before; None when they would be as asked."""
    seen = stateful_set.get("status", {}).get("observedGeneration", 0)
    if seen < stateful_set["metadata"].get("generation", 0):
        return "the StatefulSet controller has not seen the new template yet"
    return None


def _nobody_needs(pod: Manifest, observed: Observed, pods: Sequence[Manifest]) -> bool:
    """Whether a pod that is not ready can go although something else may be amiss (2)."""
    if not _runs(pod):
        return True
    if observed.report is None:
        return not any(map(is_ready, pods))
    known = {n["id"]: n for n in observed.report["nodes"]}
    node = known.get(pod["metadata"]["name"])
    return node is None or node["state"] == "down" or not node.get("needed", True)


def _runs(pod: Manifest) -> bool:
    containers = pod.get("status", {}).get("containerStatuses") or []
    return any("running" in (c.get("state") or {}) for c in containers)


def _something_is_amiss(observed: Observed, others: Sequence[Manifest], wanted: int) -> str | None:
    """Why the pod beside these may not be restarted now (3)."""
    if waiting := [p["metadata"]["name"] for p in others if not is_ready(p)]:
        return f"{', '.join(waiting)} must be ready first"
    if len(others) < wanted:
        return f"{wanted - len(others)} of {wanted + 1} pods are not there yet"
    if observed.report is None:
        return f"the state of the cluster is not known ({observed.report_problem})"
    if down := [n["id"] for n in observed.report["nodes"] if n["state"] != "active"]:
        return f"node {', '.join(down)} must be active first"
    if opening := opening_shards(observed.report):
        return opening
    if observed.etcd and not etcd_upkeep.has_quorum(observed.etcd):
        return "etcd has no quorum"
    shards = observed.report["shards"]
    if missing := [f"{shards[k]} shards are {k.replace('_', ' ')}" for k in _SHARD_TROUBLE if shards[k]]:
        return "; ".join(missing)
    return None


def opening_shards(report: Mapping[str, Any]) -> str | None:
    """Which nodes do not serve all of their shards yet, if any; nodes of an older version do not say."""
    each = [f"node {n['id']} is still opening {', '.join(n['opening'])}" for n in report["nodes"] if n.get("opening")]
    return "; ".join(each) or None


_SHARD_TROUBLE = ("unavailable", "under_replicated", "moving")


def _leader(observed: Observed) -> str | None:
    return observed.report.get("leader") if observed.report else None
