"""The operator as a person installs it: with Helm, from the chart in this checkout, with the images of this code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e2e.cluster import images
from e2e.cluster.handle import Cluster
from e2e.cluster.settings import CHECKOUT
from e2e.waiting import wait_for

CHART = CHECKOUT / "charts" / "veccluster"
RELEASE, NAMESPACE = "veccluster", "veccluster-system"
LEASE = f"{RELEASE}-operator"
DEV_IMAGES = ("image.tag=dev", "node.image.tag=dev", f"etcd.image={images.ETCD_IMAGE}")
SELECTOR = f"app.kubernetes.io/name=veccluster-operator,app.kubernetes.io/instance={RELEASE}"


class Operator:
    """One release of the chart, with two replicas unless said otherwise."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._kubectl = cluster.kubectl

    def install(self, *values: str) -> None:
        """`helm install` with `--set` of `values`, and wait until it works. Other releases of the chart go first."""
        for release in self.releases():
            self._cluster.helm("uninstall", release["name"], "--wait", namespace=release["namespace"])
        # CRDs of a release that is gone are taken over: what another one left, or a person tried by hand.
        how = ("--create-namespace", "--take-ownership")
        self._helm("install", RELEASE, CHART, *how, *_settings(values))

    def upgrade(self, *values: str, chart: Path = CHART) -> None:
        """`helm upgrade` with `--set` of `values` and nothing else that was set before, and wait until it works."""
        self._helm("upgrade", RELEASE, chart, *_settings(values))

    def rollback(self, revision: int) -> None:
        """`helm rollback` to a revision, and wait until it works."""
        self._helm("rollback", RELEASE, str(revision))

    @property
    def revision(self) -> int:
        """Which revision of the release is installed."""
        told = self._cluster.helm("status", RELEASE, "-o", "json", namespace=NAMESPACE)
        return int(json.loads(told)["version"])

    def uninstall(self) -> None:
        """`helm uninstall`, which is fine when it is gone already."""
        self._cluster.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", namespace=NAMESPACE)

    def releases(self) -> list[dict[str, Any]]:
        """Every release of the chart that there is."""
        listed = json.loads(self._cluster.helm("list", "--all-namespaces", "-o", "json"))
        return [r for r in listed if r["chart"].startswith("veccluster-")]

    def pods(self) -> list[dict[str, Any]]:
        """The operator's pods."""
        return self._kubectl.items("pods", "-l", SELECTOR, namespace=NAMESPACE)

    def active(self) -> str | None:
        """The pod that holds the Lease, if it is one that is there and stays."""
        lease = self._kubectl.json("get", "lease", LEASE, namespace=NAMESPACE)
        holder: str | None = lease["spec"].get("holderIdentity")
        return next((n for p in self._staying() if (n := p["metadata"]["name"]) in str(holder)), None)

    def _staying(self) -> list[dict[str, Any]]:
        return [p for p in self.pods() if "deletionTimestamp" not in p["metadata"]]

    def wait_until_one_acts(self, timeout: float = 60) -> str:
        """Wait until a pod holds the Lease, and say which."""
        return wait_for(self.active, timeout, "one replica of the operator to hold the Lease") or ""

    def _helm(self, *arguments: str | Path) -> None:
        self._cluster.helm(*arguments, "--wait", "--timeout=3m", namespace=NAMESPACE)
        self.wait_until_one_acts()


def _settings(values: Iterable[str]) -> list[str]:
    return [word for value in (*DEV_IMAGES, *values) for word in ("--set", value)]
