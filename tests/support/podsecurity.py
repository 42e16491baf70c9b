"""The Pod Security Standards of Kubernetes 1.34, profile "restricted", which includes "baseline"."""

from collections.abc import Iterator, Mapping
from typing import Any

ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Everything for which the API server would refuse this PodSpec in a namespace that enforces the profile."""
    return [*_pod(pod), *(f"{c['name']}: {problem}" for c in containers(pod) for problem in _container(c, pod))]


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _pod(pod: Mapping[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", []):
        if kinds := volume.keys() - {"name"} - ALLOWED_VOLUMES:
            yield f"volume {volume['name']}: {kinds}"
    security = pod.get("securityContext", {})
    if security.get("sysctls"):
        yield "sysctls"
    if "seLinuxOptions" in security or "windowsOptions" in security:
        yield "seLinuxOptions or windowsOptions"


def _container(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**pod.get("securityContext", {}), **own}
    if own.get("privileged") or own.get("procMount", "Default") != "Default":
        yield "privileged or procMount"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "hostPort"
