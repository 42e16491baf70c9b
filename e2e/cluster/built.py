"""The cluster built of its parts: bring it up, see how it is, take it down.

Down does not trust any record of what up did: it looks for what carries the cluster's names and removes that. So it
works after a crash and after half an up, and up itself begins with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.cluster import binaries, control_plane, images, network, node, process, volumes
from e2e.cluster.binaries import INSTEAD, locked, say
from e2e.cluster.process import HarnessError, run, wait_until
from e2e.cluster.settings import CHECKOUT, RUN, Settings
from e2e.cluster.tools import Kubectl

MARKER = "veccluster-e2e"  # the ConfigMap in kube-system that tells which cluster this is


def make_sure_it_can() -> None:
    """Raise, with what to do about it, on a machine on which no cluster can be made this way."""
    if sys.platform != "linux":
        raise HarnessError(f"a cluster out of parts is made of Linux namespaces, and this is {sys.platform}; {INSTEAD}")
    if os.geteuid() != 0:
        raise HarnessError(f"namespaces, mounts and cgroups want root, so become that; {INSTEAD}")
    binaries.debian_mirror()


def prepare(settings: Settings) -> None:
    """Put all that a cluster is made of into the cache: some quarter of an hour on a fresh machine, else seconds."""
    binaries.install_packages()
    binaries.etcd(settings.cache)
    binaries.tools(settings.cache)
    images.foundation(settings.cache)
    images.project(settings.cache)
    binaries.coredns(settings.cache)
    binaries.kube(settings.cache)


def up(settings: Settings) -> None:
    """Make sure that the cluster runs, with images of the present code; a healthy one is left as it is.

    The project's images come last: when they cannot be built, that is an error, but of a cluster that runs.
    """
    with locked(Path("/run/veccluster-e2e.lock")):
        _claim_folder(settings)
        if problems(settings):
            binaries.install_packages()
            kube, coredns = binaries.kube(settings.cache), binaries.coredns(settings.cache)
            etcd, basic = binaries.etcd(settings.cache), images.foundation(settings.cache)
            _remove(settings)
            say("starting the cluster")
            _start(settings, kube, coredns, etcd, basic)
        refresh_images(settings)


def _start(settings: Settings, kube: Path, coredns: Path, etcd: Path, basic: list[images.Image]) -> None:
    shutil.rmtree(settings.logs, ignore_errors=True)
    settings.volumes.mkdir(parents=True)
    network.up(settings)
    for one in settings.nodes:
        node.prepare(settings, one)
    with ThreadPoolExecutor(settings.node_count) as pool:
        runtimes = [pool.submit(node.start_containerd, settings, one) for one in settings.nodes]
        control_plane.start_api(settings, kube, etcd)
        control_plane.start_controllers(settings, kube, coredns)
        for runtime in runtimes:
            runtime.result()
    images.load(settings, basic)
    for one in settings.nodes:
        node.start_kubelet(settings, one, kube)
    _start_provisioner(settings)
    kubectl = kubectl_for(settings)
    identity = secrets.token_hex(16)
    kubectl.apply([*volumes.storage_classes(), marker(identity)])
    settings.identity.write_text(identity)
    wait_until(lambda: _healthy(settings), 120, f"the cluster to be healthy; its logs are in {settings.logs}")


def _healthy(settings: Settings) -> bool:
    """Whether all is well; a component that has ended will not come back, so that is said at once."""
    if dead := _not_running(settings):
        raise HarnessError(f"{', '.join(dead)} ended; the logs are in {settings.logs}")
    return not problems(settings)


def marker(identity: str) -> dict[str, object]:
    """The object by which the harness knows that a cluster is its own."""
    metadata = {"name": MARKER, "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"id": identity}}


def make_sure_it_is_ours(settings: Settings, kubectl: Kubectl) -> None:
    """Raise unless kubectl speaks to the cluster that was made in this work directory."""
    expected = settings.identity.read_text() if settings.identity.exists() else None
    query = ("get", "configmap", MARKER, "-n", "kube-system", "--ignore-not-found", "-o", "jsonpath={.data.id}")
    if expected is None or kubectl.kubeconfig != settings.kubeconfig or kubectl(*query) != expected:
        raise HarnessError(
            f"{kubectl.kubeconfig} does not lead to the cluster that the harness made; nothing was done to it"
        )


def refresh_images(settings: Settings) -> None:
    """Build what changed and load it into the running nodes."""
    binaries.install_packages()
    images.load(settings, images.project(settings.cache))


def problems(settings: Settings) -> list[str]:
    """What is missing for a healthy cluster."""
    if not settings.kubeconfig.exists():
        return ["no cluster"]
    found = [f"{component} does not run" for component in _not_running(settings)]
    if not settings.identity.exists():
        found.append("it was never completed")
    if not found and not control_plane.Api(settings).ready():
        found.append("the API server does not serve")
    return found or _unready(settings)


def _not_running(settings: Settings) -> list[str]:
    expected = [*control_plane.COMPONENTS, *(node.component(n, c) for n in settings.nodes for c in node.COMPONENTS)]
    return [component for component in expected if not process.marked(component)]


def _unready(settings: Settings) -> list[str]:
    kubectl = kubectl_for(settings)
    ready = {item["metadata"]["name"] for item in kubectl.items("nodes") if _is_ready(item)}
    found = [f"{one.name} is not ready" for one in settings.nodes if one.name not in ready]
    if not control_plane.dns_ready():
        found.append("DNS is not ready")
    if not kubectl("get", "serviceaccount", "default", "-n", "default", "--ignore-not-found"):
        found.append("the namespace default has no service account yet")
    return found


def _is_ready(item: dict[str, object]) -> bool:
    status = item["status"]
    assert isinstance(status, dict)
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))


def down(settings: Settings) -> None:
    """Remove the cluster and every trace of it but its logs."""
    with locked(Path("/run/veccluster-e2e.lock")):
        _claim_folder(settings)
        _remove(settings)


def _remove(settings: Settings) -> None:
    process.kill(process.marked)
    node.kill_pods()
    for namespace in Path("/run/netns").glob("vce2e-node-*"):
        process.kill(lambda namespace=namespace: process.in_network(namespace))  # type: ignore[misc]
    _unmount(settings)
    for device in volumes.devices_below(settings.work):
        run("losetup", "--detach", device)
    network.down()
    node.remove_cgroups()
    shutil.rmtree(RUN, ignore_errors=True)
    for path in settings.work.iterdir():
        if path not in (settings.logs, settings.work / ".veccluster-e2e"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _unmount(settings: Settings) -> None:
    """Deepest first; nothing is deleted while something is still mounted below."""

    def mounted() -> list[str]:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith((f"{settings.work}/", f"{RUN}/"))]

    for point in sorted(mounted(), reverse=True):
        with contextlib.suppress(HarnessError):
            run("umount", point)
    for point in sorted(mounted(), reverse=True):
        run("umount", "-l", point, check=False)
    if left := mounted():
        raise HarnessError(f"cannot unmount {left}")


def _claim_folder(settings: Settings) -> None:
    """Use only a work directory that is empty or was used before: everything in it gets deleted."""
    flag = settings.work / ".veccluster-e2e"
    settings.work.mkdir(parents=True, exist_ok=True)
    if not flag.exists():
        if any(settings.work.iterdir()):
            raise HarnessError(
                f"{settings.work} has files of something else; set VECCLUSTER_E2E_DIR to an empty folder"
            )
        flag.touch()


def _start_provisioner(settings: Settings) -> None:
    command = ("env", f"PYTHONPATH={CHECKOUT}", sys.executable, "-m", "e2e.cluster.volumes")
    place = {"VECCLUSTER_E2E_DIR": str(settings.work), "VECCLUSTER_E2E_NODES": str(settings.node_count)}
    process.start("provisioner", command, settings.logs / "provisioner.log", env=place)


def kubectl_for(settings: Settings) -> Kubectl:
    """kubectl for this cluster and no other."""
    return Kubectl(binaries.tools(settings.cache) / "kubectl", settings.kubeconfig)
