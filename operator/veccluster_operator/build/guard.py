"""Refuse what a podTemplate must not change, because the cluster would not be safe, or not be a cluster, without it.

All else is allowed that Kubernetes allows: more containers, volumes and environment, other probe times, a writable
root. Each refusal names the field and what would be right.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from veccluster.model.pods import PodTemplate
from veccluster.model.rules import invalid
from veccluster.model.validation import FieldError

WHERE = "spec.podTemplate"
NODE = "node"
"""Name of the container that runs the node."""
DATA = "data"
"""Name of the volume that a pod's claim becomes."""
MIN_GRACE = 30
"""Seconds; with less a node could be killed while it writes down what it has, and with 0 twice the same node could
run at once."""

Check = Callable[[Mapping[str, Any]], bool]


_CONFINED = ("RuntimeDefault", "Localhost")


def _unset(name: str) -> Check:
    return lambda part: not part.get(name)


_POD: Final[Mapping[str, tuple[Check, str]]] = {
    "automountServiceAccountToken": (_unset("automountServiceAccountToken"), "must be false: pods hold no API token"),
    "serviceAccount": (_unset("serviceAccount"), "cannot be changed; leave it out"),
    "hostNetwork": (_unset("hostNetwork"), "must be false: the nodes' ports are the pods', not the machines'"),
    "hostPID": (_unset("hostPID"), "must be false: the pods are restricted"),
    "hostIPC": (_unset("hostIPC"), "must be false: the pods are restricted"),
    "hostname": (_unset("hostname"), "is given by the StatefulSet; leave it out"),
    "subdomain": (_unset("subdomain"), "is given by the StatefulSet; leave it out"),
    "setHostnameAsFQDN": (_unset("setHostnameAsFQDN"), "must be false: a node is known by its pod's name"),
    "nodeName": (_unset("nodeName"), "would put every pod on one machine; use nodeSelector or spec.affinity"),
    "activeDeadlineSeconds": (_unset("activeDeadlineSeconds"), "would end the nodes; leave it out"),
    "restartPolicy": (lambda pod: pod.get("restartPolicy") in (None, "Always"), "must be Always"),
    "terminationGracePeriodSeconds": (
        lambda pod: _number(pod.get("terminationGracePeriodSeconds", MIN_GRACE)) >= MIN_GRACE,
        f"must be at least {MIN_GRACE}: a node takes its leave before it stops",
    ),
}
"""By field of the PodSpec: what must hold after the merge, and what to say if not."""

_POD_SECURITY: Final[Mapping[str, tuple[Check, str]]] = {
    "runAsNonRoot": (lambda s: s.get("runAsNonRoot") is True, "must be true"),
    "runAsUser": (lambda s: s.get("runAsUser") != 0, "must not be 0"),
    "seccompProfile": (lambda s: _seccomp(s) in _CONFINED, f"must be of type {' or '.join(_CONFINED)}"),
}
_CONTAINER_SECURITY: Final[Mapping[str, tuple[Check, str]]] = {
    "privileged": (_unset("privileged"), "must be false"),
    "runAsNonRoot": (lambda s: s.get("runAsNonRoot") in (None, True), "must be true"),
    "runAsUser": (lambda s: s.get("runAsUser") != 0, "must not be 0"),
    "seccompProfile": (lambda s: _seccomp(s) in (None, *_CONFINED), f"must be of type {' or '.join(_CONFINED)}"),
    "allowPrivilegeEscalation": (lambda s: s.get("allowPrivilegeEscalation") is False, "must be false"),
    "capabilities": (lambda s: s.get("capabilities") == {"drop": ["ALL"]}, "cannot be changed: a node needs none"),
}

_NODE: Final[Mapping[str, str]] = {
    "command": "cannot be changed: it is how a node starts",
    "args": "cannot be changed: it is how a node starts; use spec.tuning",
    "image": "cannot be changed here; use spec.image",
}
"""By field of the node's container: what to say when it is not as we built it."""

_HANDLERS = ("httpGet", "exec", "tcpSocket", "grpc")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check(template: PodTemplate, built: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """`InvalidSpec` lists everything in which `merged`, the PodSpec after the merge, is unsafe; `built` is ours."""
    if errors := [*_metadata(template), *_pod(built, merged), *_volumes(built, merged), *_node(built, merged)]:
        raise invalid(errors)


def _error(where: str, reason: str) -> FieldError:
    return FieldError(field=f"{WHERE}.{where}", reason=reason)


def _metadata(template: PodTemplate) -> Iterator[FieldError]:
    for kind, given in (("labels", template.metadata.labels), ("annotations", template.metadata.annotations)):
        for name in given:
            prefix, _, rest = name.rpartition("/")
            ours = prefix == "veccluster.io" or prefix.endswith(".veccluster.io")
            if ours or (prefix == "app.kubernetes.io" and rest in ("name", "instance", "managed-by", "component")):
                yield _error(f"metadata.{kind}[{name}]", "is the operator's own; leave it out")


def _pod(built: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[FieldError]:
    if merged.get("serviceAccountName") != built["serviceAccountName"]:
        yield _error("spec.serviceAccountName", f"must be {built['serviceAccountName']}; leave it out")
    yield from _broken(_POD, merged, "spec")
    yield from _broken(_POD_SECURITY, merged.get("securityContext") or {}, "spec.securityContext")


def _volumes(built: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[FieldError]:
    found = _by_name(merged.get("volumes"))
    if DATA in found:
        yield _error(f"spec.volumes[{DATA}]", "is the node's own volume; see spec.storage")
    for name, volume in _by_name(built["volumes"]).items():
        if found.get(name) != volume:
            yield _error(f"spec.volumes[{name}]", "cannot be changed: the node needs it; use another name")


def _node(built: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[FieldError]:
    where, ours = f"spec.containers[{NODE}]", _by_name(built["containers"])[NODE]
    node = _by_name(merged.get("containers")).get(NODE)
    if node is None:
        yield _error(where, "cannot be removed: it is the node")
        return
    for name, reason in _NODE.items():
        if node.get(name) != ours[name]:
            yield _error(f"{where}.{name}", reason)
    yield from _kept(ours, node, "env", "name", where)
    yield from _kept(ours, node, "ports", "containerPort", where)
    yield from _kept(ours, node, "volumeMounts", "mountPath", where)
    for probe in _PROBES:
        given = node.get(probe) or {}
        if {k: given[k] for k in _HANDLERS if k in given} != {"httpGet": ours[probe]["httpGet"]}:
            yield _error(f"{where}.{probe}", "must keep its httpGet; its times may be changed")
    yield from _broken(_CONTAINER_SECURITY, node.get("securityContext") or {}, f"{where}.securityContext")


def _kept(ours: Mapping[str, Any], node: Mapping[str, Any], name: str, key: str, where: str) -> Iterator[FieldError]:
    """What we put into a list of the container must be there as we put it."""
    given = {item[key]: item for item in node.get(name) or []}
    for item in ours[name]:
        if given.get(item[key]) != item:
            yield _error(f"{where}.{name}[{item[key]}]", "cannot be changed: the node needs it")


def _broken(checks: Mapping[str, tuple[Check, str]], part: Mapping[str, Any], where: str) -> Iterator[FieldError]:
    for name, (holds, reason) in checks.items():
        if not holds(part):
            yield _error(f"{where}.{name}", reason)


def _by_name(items: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    return {item["name"]: item for item in items or []}


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


def _seccomp(security: Mapping[str, Any]) -> object:
    return (security.get("seccompProfile") or {}).get("type")
