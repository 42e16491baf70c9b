"""Merge a person's PodSpec over ours as `kubectl patch --type strategic` would: the merge keys are those of the API.

Lists with a merge key are merged item by item, others (tolerations, args) replaced as a whole. A field that is null is
removed; `$patch: delete` removes an item or object, `$patch: replace` puts it in place of ours, list items included.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from veccluster.errors import InvalidSpec
from veccluster.model.validation import kind_of


@dataclass(frozen=True, slots=True)
class _Items:
    """How to merge a list: by which field its items are told apart, and which lists they have themselves."""

    key: str
    lists: Mapping[str, "_Items"] = field(default_factory=dict)


_CONTAINERS = _Items(
    "name",
    {
        "env": _Items("name"),
        "ports": _Items("containerPort"),
        "volumeMounts": _Items("mountPath"),
        "volumeDevices": _Items("devicePath"),
    },
)
_POD: Final[Mapping[str, _Items]] = {
    "containers": _CONTAINERS,
    "initContainers": _CONTAINERS,
    "volumes": _Items("name"),
    "topologySpreadConstraints": _Items("topologyKey"),
    "imagePullSecrets": _Items("name"),
    "hostAliases": _Items("ip"),
    "resourceClaims": _Items("name"),
    "schedulingGates": _Items("name"),
}


def merged_pod(base: Mapping[str, Any], patch: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The PodSpec `base` with `patch` merged over it; `InvalidSpec` names what cannot be merged, within `where`."""
    return _object(base, patch, _POD, where)


def _object(
    base: Mapping[str, Any], patch: Mapping[str, Any], lists: Mapping[str, _Items], where: str
) -> dict[str, Any]:
    result = {} if _directive(patch, where) == "replace" else copy.deepcopy(dict(base))
    for name, value in patch.items():
        path = f"{where}.{name}"
        if name == "$patch":
            continue
        if value is None or (isinstance(value, Mapping) and _directive(value, path) == "delete"):
            result.pop(name, None)
        elif name in lists:
            result[name] = _list(result.get(name) or [], value, lists[name], path)
        elif isinstance(value, Mapping):
            ours = result.get(name)
            result[name] = _object(ours if isinstance(ours, Mapping) else {}, value, {}, path)
        elif isinstance(result.get(name), Mapping):
            raise InvalidSpec.field(path, f"must be an object, is {kind_of(value)}")
        else:
            result[name] = copy.deepcopy(value)
    return result


def _list(base: list[Any], patch: Any, items: _Items, where: str) -> list[Any]:
    if not isinstance(patch, list):
        raise InvalidSpec.field(where, f"must be a list, is {kind_of(patch)}")
    if any(isinstance(item, Mapping) and item == {"$patch": "replace"} for item in patch):
        base, patch = [], [item for item in patch if item != {"$patch": "replace"}]
    merged = {item[items.key]: item for item in base}
    for number, item in enumerate(patch):
        path = f"{where}[{number}]"
        if not isinstance(item, Mapping) or not isinstance(item.get(items.key), str | int):
            raise InvalidSpec.field(path, f"must be an object with {items.key}, by which it is merged")
        key = item[items.key]
        if _directive(item, path) == "delete":
            merged.pop(key, None)
        else:
            merged[key] = _object(merged.get(key, {}), item, items.lists, path)
    return list(merged.values())


def _directive(patch: Mapping[str, Any], where: str) -> str | None:
    """What `$patch` says; other directives are for tools that compute patches, not for people."""
    for name in patch:
        if name.startswith("$") and name != "$patch":
            raise InvalidSpec.field(f"{where}.{name}", "is not known here; use $patch: delete or $patch: replace")
    said = patch.get("$patch")
    if said not in (None, "merge", "delete", "replace"):
        raise InvalidSpec.field(f"{where}.$patch", "must be delete, replace or merge")
    return said
