"""What the model describes and this version cannot do yet: refused by name, never ignored.

A field that nobody has listed here as supported is refused, so that a new field cannot slip through unnoticed.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from veccluster.model.spec import VecClusterSpec
from veccluster.model.validation import FieldError, path

Runtime = Literal["local", "kubernetes"]

Verdict = str | Callable[[Any], str | None] | None
"""Why a field is refused; None when it is not. It may depend on the value."""


def unsupported(spec: VecClusterSpec, runtime: Runtime) -> list[FieldError]:
    """Every field of `spec` that asks for something that `runtime` cannot do yet; empty when it can do all of it.

    Fields that say no more than their default are fine everywhere. Paths start at "spec".
    """
    return [
        FieldError(field=path(where, "spec"), reason=reason)
        for where, value in _asked(spec.as_written(), VecClusterSpec().as_written())
        if (reason := _refusal(where, value, _TABLES[runtime]))
    ]


def _asked(given: Mapping[str, Any], default: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of the leaves of `given` that differ from `default`. Lists are leaves."""
    for name, value in given.items():
        usual = default.get(name)
        if isinstance(value, dict) and value:
            for where, leaf in _asked(value, usual if isinstance(usual, dict) else {}):
                yield (name, *where), leaf
        elif value != usual:
            yield (name,), value


def _refusal(where: tuple[str, ...], value: Any, table: Mapping[str, Verdict]) -> str | None:
    """What the longest entry of the table that leads to the field says of the value."""
    for length in range(len(where), 0, -1):
        name = ".".join(where[:length])
        if name in table:
            verdict = table[name]
            return verdict(value) if callable(verdict) else verdict
    return _LATER


_KUBERNETES_ONLY = "is for pods, and a laptop has none; leave it out"
_LATER = "is not there yet; leave it out"

_EVERYWHERE: Final[Mapping[str, Verdict]] = {
    "nodes": None,
    "replicationFactor": None,
    "minInSync": None,
    "shards": None,
    "consistency": None,
    "zones": None,
    "autoscaling": "autoscaling is not there yet; set nodes and leave it out",
    "metadata.managed.nodes": None,
    "metadata.endpoints": None,
    "failover": None,
    "tuning.batchSize": None,
    "tuning.maxConnections": None,
    "tuning.queryTimeout": None,
    "tuning.walSync": None,
    "tuning.walSyncInterval": None,
    "tuning.maxWALSize": None,
    "tuning.snapshotInterval": None,
    "tuning.maxTail": None,
    "tuning.maxGeneration": None,
    "tuning.maxMemory": None,
    "tuning.maxBodySize": None,
    "tuning.maxBatch": None,
    "tuning.maxK": None,
    "tuning.maxDimension": None,
    "tuning.maxMetadataSize": None,
    "tuning.maxMetadataDepth": None,
    "tuning.maxFilterDepth": None,
    "tuning.cors": None,
    "tuning.allowedHosts": None,
    "tuning": _LATER,
}

_ON_A_LAPTOP: Final[Mapping[str, Verdict]] = {
    **_EVERYWHERE,
    "image": "is for pods; a laptop runs the program that is installed; leave it out",
    "imagePullPolicy": _KUBERNETES_ONLY,
    "resources": "is for pods; on a laptop the nodes share the machine (see tuning.maxMemory); leave it out",
    "storage": "is for volumes; on a laptop the nodes share its disk; leave it out",
    "storage.retain": "cannot be false on a laptop: data is kept until `veccluster down --delete-data`; leave it out",
    "affinity": _KUBERNETES_ONLY,
    "tolerations": _KUBERNETES_ONLY,
    "topologySpread": _KUBERNETES_ONLY,
    "podTemplate": _KUBERNETES_ONLY,
    "metadata.managed.storage": "is for volumes; on a laptop etcd uses its disk; leave it out",
    "metadata.tls": "a Secret cannot be read on a laptop; leave it out",
    "metadata.credentialsSecret": "a Secret cannot be read on a laptop; leave it out",
    "security": "security is not there yet: nodes on a laptop listen on this machine only; leave it out",
    "paused": _LATER,
    "hibernate": "is not there yet; `veccluster down` stops the nodes and keeps their data",
}

_IN_KUBERNETES: Final[Mapping[str, Verdict]] = {
    **_EVERYWHERE,
    "image": None,
    "imagePullPolicy": None,
    "resources": None,
    "storage": None,
    "storage.autogrow": "volumes that grow by themselves are not there yet; set storage.size and leave it out",
    "affinity": None,
    "tolerations": None,
    "topologySpread": None,
    "podTemplate": None,
    "metadata.managed.storage": None,
    "metadata.tls": None,
    "metadata.credentialsSecret": None,
    "security": "security is not there yet: let a NetworkPolicy say who may reach the nodes, and leave it out",
    "paused": None,
    "hibernate": "is not there yet; with storage.retain, deleting the VecCluster keeps its volumes for the next one",
}

_TABLES: Final[Mapping[Runtime, Mapping[str, Verdict]]] = {"local": _ON_A_LAPTOP, "kubernetes": _IN_KUBERNETES}
"""For fields set to something else than their default; an entry speaks for all that is below it."""
