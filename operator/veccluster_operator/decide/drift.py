"""Decide whether an object must be applied: it is not there, another one is wanted, or somebody changed what is ours.

What was wanted last is remembered as a digest on the object itself, so nothing is kept in memory and a new replica
decides the same. Fields that the manifest does not name belong to others and are left alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

DIGEST_ANNOTATION = "veccluster.io/applied"


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its own digest as an annotation."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), DIGEST_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def needs_apply(wanted: Mapping[str, Any], existing: Mapping[str, Any] | None) -> bool:
    """Whether `wanted` (stamped) must be applied over `existing`.

    The API server writes some values in another way than they were given (1000m as 1): such an object is applied
    again at each look, which changes nothing.
    """
    return existing is None or not covers(existing, wanted)


def covers(existing: Any, wanted: Any) -> bool:
    """Whether everything that `wanted` says is so in `existing`, which may say more."""
    if isinstance(wanted, Mapping):
        return isinstance(existing, Mapping) and all(
            k in existing and covers(existing[k], v) for k, v in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(existing, list) and _covers_list(existing, wanted)
    return bool(existing == wanted)


def _covers_list(existing: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Items with a name are found by it, since others may add their own; all else must agree one by one."""
    if wanted and all(isinstance(item, Mapping) and "name" in item for item in wanted):
        by_name = {item["name"]: item for item in existing if isinstance(item, Mapping) and "name" in item}
        return all(item["name"] in by_name and covers(by_name[item["name"]], item) for item in wanted)
    return len(existing) == len(wanted) and all(covers(e, w) for e, w in zip(existing, wanted, strict=True))
