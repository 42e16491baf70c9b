"""What goes into a manifest beside the VecCluster, and what comes out."""

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, as JSON-like data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the builders need to know beside the VecCluster itself."""

    node_image: str
    """Image of the data pods when spec.image is left out; an existing cluster keeps the one that it runs."""
    tools_image: str
    """Image of etcd's init container: a node image of the operator's own version."""
    etcd_image: str
    replicas: int
    """Data pods that there should be now."""
    bootstrapped: bool
    """Whether the managed etcd has existed before, so that a second one must never be begun."""
    disruptions_allowed: int
    """Data pods that a drain of Kubernetes nodes may stop now: 1 when all is healthy, else 0."""
    operator_namespace: str
    """Where the operator runs, which may talk to etcd."""
