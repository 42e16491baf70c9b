"""What a person asked of a data pod that needs a restart to change: the reason for every restart, and the only one.

Each pod carries it as an annotation. Pods are compared by it and not by their template, so that an operator which
builds another template restarts nothing. Only what differs from the model's defaults counts, so that a field which a
newer model adds changes nothing until somebody uses it. For the same reason a default that a newer version changes
reaches pods that exist only with their next restart.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from veccluster.model.spec import VecCluster
from veccluster_operator.build.context import Context

NEEDS_RESTART: Final[Mapping[str, bool]] = {
    "nodes": False,  # nodes learn of each other through etcd
    "replicationFactor": True,
    "minInSync": True,
    "shards": True,
    "consistency": True,
    "image": True,
    "imagePullPolicy": True,
    "resources": True,
    "storage": False,  # volumes grow while they are used
    "zones": True,
    "affinity": True,
    "tolerations": True,
    "topologySpread": True,
    "podTemplate": True,
    "autoscaling": False,  # the operator's own business, as are paused and hibernate
    "metadata": True,
    "metadata.managed.storage": False,  # etcd's volumes, not the nodes'
    "failover": True,
    "tuning": True,
    "security": True,
    "paused": False,
    "hibernate": False,
}
"""An entry speaks for all that is below it. To turn one to True restarts the pods of every cluster that uses it."""


def asked(cluster: VecCluster, context: Context) -> dict[str, Any]:
    """By field of the spec, as written; the image always, and otherwise only what is not the default."""
    found = _needing_restart(cluster.spec.as_asked(), "")
    return {**found, "image": image(cluster, context)}


def image(cluster: VecCluster, context: Context) -> str:
    """Image of the data pods."""
    return cluster.spec.image or context.node_image


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ, such as "tuning.maxK"; empty when a pod of `before` does for `now`."""
    return sorted(_differing(before, now, ""))


def _needing_restart(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`value` without the fields that need no restart, and without objects that are empty then."""
    found = {}
    for name, inner in value.items():
        path = where + name
        if any(known.startswith(path + ".") for known in NEEDS_RESTART):
            inner = _needing_restart(inner, path + ".")
        if inner != {} and NEEDS_RESTART.get(path, True):
            found[name] = inner
    return found


_ABSENT: Final = object()


def _differing(before: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(before, Mapping) and before and now is _ABSENT:
        now = {}
    if isinstance(now, Mapping) and now and before is _ABSENT:
        before = {}
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in before.keys() | now.keys():
            path = f"{where}.{name}" if where else name
            yield from _differing(before.get(name, _ABSENT), now.get(name, _ABSENT), path)
    elif before != now:
        yield where
