"""What the operator gives to the pods and volumes of a cluster. A laptop has neither."""

from typing import Annotated, Any, Literal

from pydantic import Field

from veccluster.model.names import Labels, ObjectName
from veccluster.model.rules import Lasting, Part, Rule
from veccluster.model.units import Anything, GiB, Quantity, Size

Quantities = Annotated[dict[str, Annotated[int | str, Quantity()]], Field(max_length=16)]


class Resources(Part):
    """CPU and memory of each node's pod, as in any pod."""

    requests: Quantities = Field(default={})
    """What the scheduler reserves."""
    limits: Quantities = Field(default={})
    """What the pod may use at most."""


class Autogrow(Part):
    """Let volumes grow before they are full."""

    max: Annotated[int, Size("1Gi", "64Ti")]
    """Never grow beyond this size."""
    at_percent: Annotated[int, Field(ge=50, le=95)] = 80
    """Grow when the volume is this full, in percent."""


class Storage(Part):
    """Each node's volume."""

    rules = (
        Rule(
            "autogrow.max",
            "must be at least size ({size}), is {autogrow.max}",
            "!has(self.autogrow) || quantity(self.autogrow.max).compareTo(quantity(self.size)) >= 0",
            lambda s: s.autogrow is None or s.autogrow.max >= s.size,
        ),
    )
    lasting = (
        Lasting(
            "size",
            "must not be smaller than before: volumes cannot shrink",
            "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
            lambda old, new: new.size >= old.size,
        ),
        Lasting(
            "className",
            "cannot be changed: existing volumes would keep their class",
            "has(self.className) == has(oldSelf.className)"
            " && (!has(self.className) || self.className == oldSelf.className)",
            lambda old, new: new.class_name == old.class_name,
        ),
    )

    size: Annotated[int, Size("1Gi", "64Ti")] = 10 * GiB
    """Size of each node's volume."""
    class_name: ObjectName | None = None
    """StorageClass of the volumes; the cluster's default class when left out."""
    retain: bool = True
    """Keep the volumes when the VecCluster is deleted, so that one of the same name finds its data again."""
    autogrow: Autogrow | None = None
    """Let volumes grow before they are full; never when left out."""


class Toleration(Part):
    """A taint that the pods put up with, as in any pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """The taint's key; any when left out."""
    operator: Literal["Exists", "Equal"] | None = None
    """How to compare the taint's value; "Equal" when left out."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; any when left out."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """With "NoExecute": how long the pod stays; for ever when left out."""


class TopologySpread(Part):
    """How to spread the pods, as in any pod; the selector is filled in."""

    max_skew: Annotated[int, Field(ge=1, le=100)] = 1
    """By how many pods two domains may differ."""
    topology_key: Annotated[str, Field(min_length=1, max_length=316)]
    """The node label whose values are the domains."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What to do with a pod that would break it."""


class TemplateMetadata(Part):
    """What is added to the pods' own metadata."""

    labels: Labels = Field(default={})
    """Labels to add."""
    annotations: Labels = Field(default={})
    """Annotations to add."""


class PodTemplate(Part):
    """Overrides that are merged over the pods that the operator builds."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations to add."""
    spec: Annotated[dict[str, Any], Anything()] | None = None
    """A PodSpec, merged strategically; containers by name (the node's is "node")."""
