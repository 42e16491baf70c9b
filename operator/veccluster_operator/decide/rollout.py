"""Decide which pod is restarted next so that it runs as it is asked to now: one at a time, never below what is needed.

Pods are compared by what a person asked of them when they were made (`build.asked`), not by the StatefulSet's
template: a new version of the operator, whose templates differ, so restarts nothing. Each predicate that holds a
restart back is a sentence, and the sentence is what people read.

1. The StatefulSet must know the new template, or the pod would come back as it was.
2. A pod that is not ready has nothing to lose and goes first: so a bad file can always be corrected by a good one.
3. Otherwise every pod must be ready, every node active and every shard as it should be: a restart must never meet
   another fault. Other reasons to be degraded do not count: the restart may be what mends them.
4. The leader goes last, so that it moves once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    if broken:
        return Restart(broken[0], outdated[id(broken[0])])
    if because := _something_is_amiss(observed, pods, stateful_set["spec"]["replicas"]):
        return Held(len(outdated), because)
    chosen = max(candidates, key=lambda p: (p["metadata"]["name"] != _leader(observed), ordinal(p)))
    return Restart(chosen, outdated[id(chosen)])


def template_unknown(stateful_set: Manifest) -> str | None:
    """Why pods that are made now would be as before; None when they would be as asked."""
    seen = stateful_set.get("status", {}).get("observedGeneration", 0)
    if seen < stateful_set["metadata"].get("generation", 0):
        return "the StatefulSet controller has not seen the new template yet"
    return None


def _something_is_amiss(observed: Observed, pods: Sequence[Manifest], wanted: int) -> str | None:
    """Why no healthy pod may be restarted now (3)."""
    if waiting := [p["metadata"]["name"] for p in pods if not is_ready(p)]:
        return f"{', '.join(waiting)} must be ready first"
    if len(pods) < wanted:
        return f"{wanted - len(pods)} of {wanted} pods are not there yet"
    if observed.report is None:
        return f"the state of the cluster is not known ({observed.report_problem})"
    if down := [n["id"] for n in observed.report["nodes"] if n["state"] != "active"]:
        return f"node {', '.join(down)} must be active first"
    shards = observed.report["shards"]
    if missing := [f"{shards[k]} shards are {k.replace('_', ' ')}" for k in _SHARD_TROUBLE if shards[k]]:
        return "; ".join(missing)
    return None


_SHARD_TROUBLE = ("unavailable", "under_replicated", "moving")


def _leader(observed: Observed) -> str | None:
    return observed.report.get("leader") if observed.report else None
