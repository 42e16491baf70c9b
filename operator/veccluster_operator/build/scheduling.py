"""Where pods may run and how they spread, in the terms of the scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any

from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecCluster
from veccluster.model.validation import kind_of
from veccluster_operator.build.names import HOST_LABEL, ZONE_LABEL, Component, selector

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def spread(cluster: VecCluster) -> list[dict[str, Any]]:
    """Data pods over zones and machines as evenly as can be; what a person says of the same key replaces ours."""
    usual: list[dict[str, Any]] = [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway"} for key in (ZONE_LABEL, HOST_LABEL)
    ]
    asked = [
        {"maxSkew": s.max_skew, "topologyKey": s.topology_key, "whenUnsatisfiable": s.when_unsatisfiable}
        for s in cluster.spec.topology_spread
    ]
    named = {s["topologyKey"] for s in asked}
    pods = {"matchLabels": selector(cluster, "node")}
    return [{**s, "labelSelector": pods} for s in [*(u for u in usual if u["topologyKey"] not in named), *asked]]


def apart(cluster: VecCluster, component: Component) -> dict[str, Any]:
    """An affinity that keeps the pods of a component on distinct machines if it can, and in distinct zones too."""
    pods = {"matchLabels": selector(cluster, component)}
    terms = [
        {"weight": weight, "podAffinityTerm": {"topologyKey": key, "labelSelector": pods}}
        for weight, key in ((100, HOST_LABEL), (50, ZONE_LABEL))
    ]
    return {"podAntiAffinity": {_PREFERRED: terms}}


def within_zones(affinity: Any, zones: Sequence[str], where: str) -> dict[str, Any]:
    """`affinity`, and only in `zones` if there are any; `InvalidSpec` names what of it is no affinity, within `where`.

    Terms of a node selector are alternatives, so the zones are required in each of them.
    """
    result = _object(affinity, where)
    if not zones:
        return result
    here = {"key": ZONE_LABEL, "operator": "In", "values": list(zones)}
    where += ".nodeAffinity"
    node_affinity = _object(result.get("nodeAffinity"), where)
    where += f".{_REQUIRED}"
    required = _object(node_affinity.get(_REQUIRED), where)
    terms = _objects(required.get("nodeSelectorTerms"), f"{where}.nodeSelectorTerms") or [{}]
    for number, term in enumerate(terms):
        said = _objects(term.get("matchExpressions"), f"{where}.nodeSelectorTerms[{number}].matchExpressions")
        term["matchExpressions"] = [*said, here]
    return {**result, "nodeAffinity": {**node_affinity, _REQUIRED: {**required, "nodeSelectorTerms": terms}}}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping | None):
        raise InvalidSpec.field(where, f"must be an object, is {kind_of(value)}")
    return dict(value or {})


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | None):
        raise InvalidSpec.field(where, f"must be a list, is {kind_of(value)}")
    return [_object(item, f"{where}[{number}]") for number, item in enumerate(value or [])]


def tolerations(cluster: VecCluster) -> list[dict[str, Any]]:
    """As any pod has them."""
    return [t.as_written() for t in cluster.spec.tolerations]
