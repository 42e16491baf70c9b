"""kubectl and helm, bound to one cluster: no ~/.kube, no KUBECONFIG, no current context of somebody's can interfere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from e2e.cluster.process import run

Manifest = Mapping[str, Any]


class Kubectl:
    """kubectl with the cluster's administrator's rights."""

    def __init__(self, binary: Path, kubeconfig: Path) -> None:
        self.binary = binary
        self.kubeconfig = kubeconfig

    def __call__(
        self,
        *arguments: str | Path,
        namespace: str | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> str:
        """Run it and return what it printed; its failure raises with all that it said."""
        where = ("--namespace", namespace) if namespace else ()
        command = (self.binary, "--kubeconfig", self.kubeconfig, *where, *arguments)
        return run(*command, check=check, stdin=stdin, timeout=timeout, env=clean_environment(self.kubeconfig.parent))

    def json(self, *arguments: str, namespace: str | None = None) -> Any:
        """The answer of a command that understands `-o json`."""
        return json.loads(self(*arguments, "-o", "json", namespace=namespace))

    def items(self, kind: str, *arguments: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """The objects of a kind, perhaps chosen by further arguments such as `-l app=x`."""
        found: list[dict[str, Any]] = self.json("get", kind, *arguments, namespace=namespace)["items"]
        return found

    def apply(self, manifests: str | Manifest | Iterable[Manifest], namespace: str | None = None) -> str:
        """Server-side apply of YAML, or of one object or several."""
        if not isinstance(manifests, str):
            objects = [manifests] if isinstance(manifests, Mapping) else list(manifests)
            manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self("apply", "--server-side", "-f", "-", namespace=namespace, stdin=manifests)


class Helm:
    """helm, with its folders in the cluster's work directory."""

    def __init__(self, binary: Path, kubeconfig: Path) -> None:
        self.binary = binary
        self.kubeconfig = kubeconfig

    def __call__(
        self, *arguments: str | Path, namespace: str | None = None, check: bool = True, timeout: float = 600
    ) -> str:
        """Run it and return what it printed; its failure raises with all that it said."""
        where = ("--namespace", namespace) if namespace else ()
        command = (self.binary, "--kubeconfig", self.kubeconfig, *where, *arguments)
        return run(*command, check=check, timeout=timeout, env=clean_environment(self.kubeconfig.parent))


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without anything by which these tools would find another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "HELM_"))}
    return {**kept, "HOME": str(home)}
