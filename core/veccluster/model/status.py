"""What a resource says about itself, as `kubectl get` shows it. Written by the operator, never by a person."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from veccluster.model.rules import Part

Count = Annotated[int, Field(ge=0)]


class Health(StrEnum):
    """How a cluster is: `degraded` works with less to spare than it should, `critical` refuses some requests."""

    healthy = "healthy"
    degraded = "degraded"
    critical = "critical"


class Condition(Part):
    """One aspect of the state, as Kubernetes' own conditions."""

    type: Annotated[str, Field(max_length=316)]
    """Which aspect: Ready, Progressing, Degraded or Scaling."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, as one word for machines."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence for people."""
    observed_generation: Count | None = None
    """The generation of the resource that this is about."""
    last_transition_time: Annotated[str, Field(max_length=64)] | None = None
    """When `status` last changed, as RFC 3339."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


class NodesStatus(Part):
    """How many nodes there are."""

    desired: Count = 0
    """Nodes that there should be."""
    ready: Count = 0
    """Nodes that serve."""
    draining: Count = 0
    """Nodes that are being emptied."""


class ShardsStatus(Part):
    """How the shards of all collections are."""

    total: Count = 0
    """Shards of all collections."""
    under_replicated: Count = 0
    """Shards with fewer copies than they should have."""
    unavailable: Count = 0
    """Shards that cannot serve."""
    moving: Count = 0
    """Shards on their way to other nodes."""


class VecClusterStatus(Part):
    """What a cluster says about itself."""

    conditions: Conditions = ()
    """Ready, Progressing, Degraded and Scaling."""
    observed_generation: Count | None = None
    """The generation of the spec that the rest is about."""
    health: Health | None = None
    """In one word."""
    issues: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=100)] = ()
    """What a person should know, in sentences."""
    nodes: NodesStatus | None = None
    """How many nodes there are."""
    leader: Annotated[str, Field(max_length=253)] | None = None
    """The node that leads."""
    shards: ShardsStatus | None = None
    """How the shards are."""
    vectors: Count | None = None
    """Vectors in all collections."""
    version: Annotated[str, Field(max_length=64)] | None = None
    """The version that runs."""
    endpoints: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=16)] = ()
    """URLs at which clients reach the cluster."""


class VecCollectionStatus(Part):
    """What a collection says about itself."""

    conditions: Conditions = ()
    """Ready and Progressing."""
    observed_generation: Count | None = None
    """The generation of the spec that the rest is about."""
    uuid: Annotated[str, Field(max_length=64)] | None = None
    """The collection's identity; another one after it was deleted and created again."""
    shards: Count | None = None
    """Number of shards."""
    vectors: Count | None = None
    """Vectors in the collection."""
