"""The cluster made by kind, where there are a Docker daemon and kind.

Written from kind's documentation and never run: the machine that this project is built on has no Docker daemon. What
it lacks beside the cluster built of parts: volumes have no real size, so none can be filled or grown; only the
project's own images are loaded, others are pulled by the nodes.
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from e2e.cluster import binaries, images
from e2e.cluster.built import marker
from e2e.cluster.process import run
from e2e.cluster.settings import CHECKOUT, Settings
from e2e.cluster.tools import Kubectl

NAME = "veccluster-e2e"


def usable() -> bool:
    """Whether kind and a Docker daemon that answers are at hand."""
    return bool(
        shutil.which("kind") and shutil.which("docker") and run("docker", "info", "-f", "{{.ID}}", check=False).strip()
    )


def make_sure_it_can() -> None:
    """Whoever has a Docker daemon and kind can."""


def prepare(settings: Settings) -> None:
    """Get kubectl and helm; kind fetches all else when it makes the cluster."""
    binaries.tools(settings.cache)


def up(settings: Settings) -> None:
    """Create the cluster if it does not exist, and load the project's images."""
    settings.work.mkdir(parents=True, exist_ok=True)
    if problems(settings):
        down(settings)
        zones = [{"topology.kubernetes.io/zone": node.zone} for node in settings.nodes]
        nodes = [{"role": "control-plane"}, *({"role": "worker", "labels": zone} for zone in zones)]
        config = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}
        create = ("kind", "create", "cluster", "--name", NAME, "--kubeconfig", settings.kubeconfig, "--wait", "180s")
        run(*create, "--config", "-", stdin=json.dumps(config))
        identity = secrets.token_hex(16)
        kubectl = Kubectl(binaries.tools(settings.cache) / "kubectl", settings.kubeconfig)
        kubectl.apply(marker(identity))
        settings.identity.write_text(identity)
    refresh_images(settings)


def refresh_images(settings: Settings) -> None:
    """Build the project's images and load them into the nodes."""
    for dockerfile, tag in images.PROJECT.items():
        if (CHECKOUT / dockerfile).exists():
            images.build_with_docker(tag, CHECKOUT / dockerfile)
            run("kind", "load", "docker-image", tag, "--name", NAME)


def down(settings: Settings) -> None:
    """Delete the cluster, if there is one."""
    run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", settings.kubeconfig)
    settings.identity.unlink(missing_ok=True)
    settings.kubeconfig.unlink(missing_ok=True)


def problems(settings: Settings) -> list[str]:
    """What is missing for a usable cluster."""
    if NAME not in run("kind", "get", "clusters", check=False).split() or not settings.identity.exists():
        return ["no cluster"]
    return []


def network_of(node: str) -> Path:
    """The network namespace of a node's container."""
    pid = run("docker", "inspect", "-f", "{{.State.Pid}}", node).strip()
    return Path("/proc") / pid / "ns" / "net"


def power(node: str, *, on: bool) -> None:
    """Kill a node's container, or start it again."""
    run("docker", "start" if on else "kill", node)
