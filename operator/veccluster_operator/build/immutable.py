"""What Kubernetes does not let change in a StatefulSet that exists, so that the rest can be applied all the same."""

import copy
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from veccluster.model.units import Size
from veccluster_operator.build.context import Manifest
from veccluster_operator.build.names import COMPONENT_LABEL

_FIELDS: Final = ("podManagementPolicy", "selector", "serviceName", "volumeClaimTemplates")
_STORAGE: Final = {"node": "spec.storage", "etcd": "spec.metadata.managed.storage"}
"""Where the VecCluster says what the volumes are, by component."""


def immutable_differences(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Fields that cannot be as `wanted`, as the VecCluster calls them; what we do not set is not compared.

    A field of the StatefulSet that no field of the VecCluster stands for keeps its own name.
    """
    storage = _STORAGE[wanted["metadata"]["labels"][COMPONENT_LABEL]]
    before, after = existing["spec"], wanted["spec"]
    found = [f"StatefulSet.spec.{name}" for name in _FIELDS[:-1] if not _agrees(before.get(name), after[name])]
    before_claims = {c["metadata"]["name"]: c for c in before.get("volumeClaimTemplates") or []}
    for claim in after["volumeClaimTemplates"]:
        there = before_claims.get(claim["metadata"]["name"])
        found += _claim_differences(there["spec"], claim["spec"], storage) if there else [storage]
    return found


def with_immutable_of(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> Manifest:
    """`wanted`, with what cannot be changed as it is in `existing`."""
    kept = {name: copy.deepcopy(existing["spec"][name]) for name in _FIELDS if name in existing["spec"]}
    return {**wanted, "spec": {**wanted["spec"], **kept}}


def _claim_differences(before: Mapping[str, Any], after: Mapping[str, Any], storage: str) -> list[str]:
    found = []
    if _bytes(before["resources"]["requests"]["storage"]) != _bytes(after["resources"]["requests"]["storage"]):
        found.append(f"{storage}.size")
    # Without a class in the spec the API server fills nothing in here: the claims get the default one.
    if before.get("storageClassName") != after.get("storageClassName"):
        found.append(f"{storage}.className")
    if before.get("accessModes") != after["accessModes"]:
        found.append("StatefulSet.spec.volumeClaimTemplates.accessModes")
    return found


def _agrees(existing: Any, wanted: Any) -> bool:
    """Whether all that is wanted is so, whatever else there is."""
    if isinstance(wanted, Mapping):
        return isinstance(existing, Mapping) and all(_agrees(existing.get(k), v) for k, v in wanted.items())
    return bool(existing == wanted)


def _bytes(quantity: object) -> Decimal:
    return Size.exact(str(quantity))
