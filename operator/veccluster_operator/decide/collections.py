"""Decide what becomes of the collections of a cluster: created as VecCollections ask, deleted when one asked for that.

No finalizer holds a VecCollection back, so that nothing can hang on an operator that is gone. Instead the operator
keeps a record (in a ConfigMap of the cluster) of which collections VecCollections described and what was to become of
them: a collection whose VecCollection has disappeared is deleted if the record says so, whenever the operator is back.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecCollection


@dataclass(frozen=True, slots=True)
class Entry:
    """What the record knows of a collection."""

    resource_uid: str
    """uid of the VecCollection that describes it."""
    collection_uuid: str
    deletion_policy: str
    generation: int = 0
    """Of the VecCollection, when the collection was last found to be as it asks."""

    def is_about(self, resource: Mapping[str, Any]) -> bool:
        """Whether the collection is known to be as `resource` asks now: it need only be looked at."""
        metadata = resource["metadata"]
        return bool((self.resource_uid, self.generation) == (metadata["uid"], metadata["generation"]))


Record = Mapping[str, Entry]
"""By the name that clients use."""


@dataclass(frozen=True, slots=True)
class Ensure:
    """Create the collection, or see that it is as asked."""

    resource: Mapping[str, Any]
    name: str
    options: Mapping[str, Any]
    policy: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The resource asks for what cannot be done."""

    resource: Mapping[str, Any]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete the collection: its VecCollection is gone and had asked for that."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Its VecCollection is gone and the vectors stay: strike the collection off the record."""

    name: str


Action = Ensure | Refuse | Drop | Forget


def decide(resources: Sequence[Mapping[str, Any]], record: Record) -> Iterator[Action]:
    """What `resources`, all VecCollections of one cluster, ask for."""
    described: dict[str, str] = {}
    for resource in sorted(resources, key=_age):
        who: str = resource["metadata"]["name"]
        name: str = resource["spec"].get("name") or who
        if name in described:
            yield Refuse(resource, "Duplicate", f"VecCollection {described[name]} describes collection {name} already")
            continue
        described[name] = who  # also where it cannot be read: what it describes is not to be deleted for that
        try:
            asked = parse(resource)
        except InvalidSpec as error:
            yield Refuse(resource, "InvalidSpec", error.detail)
        else:
            yield Ensure(resource, name, options(asked), asked.spec.deletion_policy)
    for name, entry in sorted(record.items()):
        if name not in described:
            yield Drop(name, entry.collection_uuid) if entry.deletion_policy == "Delete" else Forget(name)


def _age(resource: Mapping[str, Any]) -> tuple[str, str]:
    """The one that was there first describes the collection."""
    return str(resource["metadata"].get("creationTimestamp", "")), str(resource["metadata"]["name"])


def parse(resource: Mapping[str, Any]) -> VecCollection:
    """The resource; `InvalidSpec` where this version of the operator cannot read it."""
    return VecCollection.parse({key: resource[key] for key in ("apiVersion", "kind", "metadata", "spec")})


def too_early(report: Mapping[str, Any] | None, cluster: str, nodes: int) -> str | None:
    """Why a collection is not created yet; None when it can be.

    Where nothing else is asked a collection has a shard for each node that there is when it is created, for good: so
    it waits until every one has joined. One that has joined and is down holds nothing up.
    """
    if report is None:
        return f"VecCluster {cluster} does not answer yet"
    joined = len(report["nodes"])
    if joined < nodes:
        return f"{joined} of {nodes} nodes have joined VecCluster {cluster}; a collection is created when all have"
    return None


def shards_amiss(held: Mapping[str, Any]) -> str | None:
    """What of a collection, as GET /v1/collections/{name} shows it, is not served; None when all of it is."""
    missing = [s["number"] for s in held["shard_states"] if not s["available"]]
    if not missing:
        return None
    numbers = ", ".join(map(str, missing))
    return f"{len(missing)} of {held['shards']} shards of collection {held['name']} are not served: {numbers}"


def options(asked: VecCollection) -> dict[str, Any]:
    """The body of PUT /v1/collections/{name}; what is left out is as the cluster says."""
    spec = asked.spec
    body: dict[str, Any] = {"dimension": spec.dimension, "metric": spec.metric.value}
    optional = {
        "shards": spec.shards,
        "replication_factor": spec.replication_factor,
        "min_in_sync": spec.min_in_sync,
    }
    index = spec.index
    body["index"] = {
        "m": index.m,
        "ef_construction": index.ef_construction,
        "ef_search": index.ef_search,
        "precision": index.precision.value,
    }
    body["filterable"] = list(spec.filterable)
    return body | {key: value for key, value in optional.items() if value is not None}


def read_record(config_map: Mapping[str, Any] | None) -> dict[str, Entry]:
    """The record from its ConfigMap; a line that a person has broken counts as not there."""
    found = {}
    for name, text in ((config_map or {}).get("data") or {}).items():
        try:
            found[name] = Entry(**json.loads(text))
        except (ValueError, TypeError):
            continue
    return found


def write_record(record: Record) -> dict[str, str]:
    """The data of the ConfigMap."""
    return {
        name: json.dumps(
            {
                "resource_uid": e.resource_uid,
                "collection_uuid": e.collection_uuid,
                "deletion_policy": e.deletion_policy,
                "generation": e.generation,
            }
        )
        for name, e in sorted(record.items())
    }
