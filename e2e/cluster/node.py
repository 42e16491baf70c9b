"""A node: containerd, kubelet and kube-proxy with a network namespace, a cgroup and a disk folder of their own.

Killed as a machine that loses its power, and started again as one that gets it back.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import yaml

from e2e.cluster import control_plane, images, network, process
from e2e.cluster.process import HarnessError, run, wait_until
from e2e.cluster.settings import HOST_IP, POD_RANGE, Node, Settings

COMPONENTS = ("containerd", "kubelet", "proxy")


def component(node: Node, name: str) -> str:
    """What a component of this node is called among all processes of the cluster."""
    return f"{node.name}-{name}"


def prepare(settings: Settings, node: Node) -> None:
    """Write its configuration and make its cgroup."""
    home = settings.home(node)
    (home / "cni").mkdir(parents=True)
    node.run.mkdir(parents=True)
    (home / "containerd.toml").write_text(_containerd(settings, node))
    (home / "cni" / "10-pods.conflist").write_text(json.dumps(_cni(settings, node)))
    (home / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(settings, node)))
    (home / "proxy.yaml").write_text(yaml.safe_dump(_proxy(settings, node)))
    (home / "resolv.conf").write_text(f"nameserver {HOST_IP}\n")
    for hierarchy in _cgroup_hierarchies():
        cgroup = hierarchy / node.namespace
        with contextlib.suppress(OSError):  # a hierarchy of another kind than kubelet uses may refuse
            cgroup.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # on cgroup v1 a new one has none, and nothing can run in it
            if (cgroup / file).exists() and not (cgroup / file).read_text().strip():
                with contextlib.suppress(OSError):
                    (cgroup / file).write_text((hierarchy / file).read_text())


def start_containerd(settings: Settings, node: Node) -> None:
    """Start its container runtime, into which images can then be loaded."""
    node.socket.unlink(missing_ok=True)
    _start(settings, node, "containerd", "containerd", "--config", settings.home(node) / "containerd.toml")

    def answers() -> bool:
        return bool(run("ctr", "-a", node.socket, "version", check=False, timeout=10).strip().count("Version:") == 2)

    wait_until(answers, 60, f"containerd of {node.name}")


def start_kubelet(settings: Settings, node: Node, kube: Path) -> None:
    """Start what makes it a node of the cluster."""
    home = settings.home(node)
    labels = f"topology.kubernetes.io/zone={node.zone},topology.kubernetes.io/region=region-1"
    _start(
        settings, node, "kubelet", kube, "kubelet", "--kubeconfig", control_plane.kubeconfig(settings, node.name),
        "--config", home / "kubelet.yaml", "--hostname-override", node.name, "--root-dir", home / "kubelet",
        "--cert-dir", home / "certificates", "--node-ip", node.ip, "--node-labels", labels,
    )  # fmt: skip
    _start(settings, node, "proxy", kube, "kube-proxy", "--config", home / "proxy.yaml")


def kill(settings: Settings, node: Node) -> None:
    """End all that runs on the node at once, its pods included.

    The cable goes first: of a machine without power nobody hears that its connections are closed.
    """
    network.cable(node, plugged=False)
    for name in ("kubelet", "containerd"):  # or they would start again what is killed after them
        process.kill(lambda name=name: process.marked(component(node, name)))  # type: ignore[misc]
    kill_pods(node.namespace)
    process.kill(lambda: process.in_network(node.netns))
    for leftover in _task_mounts(node):
        run("umount", "-l", leftover, check=False)


def kill_pods(cgroups: str = "vce2e-node-*") -> None:
    """Kill whatever is in a node's cgroup, or in every node's."""
    found = [cgroup for hierarchy in _cgroup_hierarchies() for cgroup in hierarchy.glob(cgroups)]
    process.kill(lambda: process.in_cgroup(found))


def start_again(settings: Settings, node: Node, kube: Path) -> None:
    """Give a killed node its power back."""
    network.cable(node, plugged=True)
    start_containerd(settings, node)
    start_kubelet(settings, node, kube)


def remove_cgroups() -> None:
    """Remove the cgroups of all nodes, whose processes are dead."""
    deadline = time.monotonic() + 20
    for hierarchy in _cgroup_hierarchies():
        for top in hierarchy.glob("vce2e-node-*"):
            while top.exists():
                for cgroup in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                    with contextlib.suppress(OSError):
                        cgroup.rmdir()
                with contextlib.suppress(OSError):
                    top.rmdir()
                if time.monotonic() > deadline:
                    raise HarnessError(f"the cgroup {top} cannot be removed")


def _start(settings: Settings, node: Node, name: str, *command: str | Path) -> None:
    log = settings.logs / f"{component(node, name)}.log"
    process.start(component(node, name), (*network.inside(node.netns), *command), log)


def _task_mounts(node: Node) -> list[str]:
    """The root filesystems of its dead containers, which containerd would trip over."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{node.run}/io.containerd.runtime")), reverse=True)


def _cgroup_hierarchies() -> list[Path]:
    """The mount points of cgroup v1's hierarchies, and of v2's single one."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = [(Path(fields[4]), fields[fields.index("-") + 1]) for fields in mounts]
    return [point for point, kind in kinds if kind in ("cgroup", "cgroup2")]


def _containerd(settings: Settings, node: Node) -> str:
    """restrict_oom_score_adj: without CAP_SYS_RESOURCE a process may not protect itself from the OOM killer.

    The pods' network namespaces are kept below the state directory, where `down` can tell them from others' ones.
    """
    home = settings.home(node)
    return f"""version = 2
root = "{home}/containerd"
state = "{node.run}"
[grpc]
  address = "{node.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def _cni(settings: Settings, node: Node) -> dict[str, object]:
    """ptp, not bridge: without br_netfilter a pod on a bridge cannot reach a Service that leads to its own node."""
    ranges = {
        "type": "host-local",
        "dataDir": str(settings.home(node) / "addresses"),
        "ranges": [[{"subnet": node.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    ptp = {"type": "ptp", "ipMasq": False, "ipam": ranges}
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [ptp, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def _kubelet(settings: Settings, node: Node) -> dict[str, object]:
    """What differs from the defaults lets several kubelets share a machine, with no privileges but a container's."""
    home = settings.home(node)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.ip,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.namespace}",
        "cgroupsPerQOS": True,
        "clusterDNS": [HOST_IP],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,  # what it would remove cannot be pulled again
        "localStorageCapacityIsolation": False,
        "podLogsDir": str(home / "pod-logs"),  # kubelets delete each other's in a common one
        "resolvConf": str(home / "resolv.conf"),
        "syncFrequency": "10s",  # in which a changed Secret reaches its pods; a test would wait for a minute and a half
    }


def _proxy(settings: Settings, node: Node) -> dict[str, object]:
    """conntrack's limits are the machine's, so they are left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(control_plane.kubeconfig(settings, "proxy"))},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": node.name,
        "mode": "iptables",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    }
