"""Where a cluster lives and what its parts are called; parsed from the environment once.

A machine carries at most one cluster: the names of its bridge, its network namespaces and its addresses are fixed, so
that what a crashed one left behind can always be found and removed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BRIDGE = "vce2e0"
RUN = Path("/run/veccluster-e2e")  # sockets: a path to one may have 107 bytes, so not below the work directory
HOST_IP = "172.30.0.1"
PRIVATE_IP = "127.77.0.1"  # for what only the control plane itself may reach; 127.0.0.1 belongs to everybody's tests
API_PORT = 6443
SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
ZONES = ("zone-1", "zone-2", "zone-3")


@dataclass(frozen=True, slots=True)
class Node:
    """The names and addresses that follow from a node's number (from 1 on)."""

    number: int

    @property
    def name(self) -> str:
        """What Kubernetes calls it."""
        return f"node-{self.number}"

    @property
    def zone(self) -> str:
        """The value of its label topology.kubernetes.io/zone."""
        return ZONES[(self.number - 1) % len(ZONES)]

    @property
    def namespace(self) -> str:
        """Its network namespace; its cgroup has the same name."""
        return f"vce2e-node-{self.number}"

    @property
    def veth(self) -> str:
        """The host's end of its cable; the other end is its eth0."""
        return f"vce2e{self.number}"

    @property
    def ip(self) -> str:
        """Its address on the bridge."""
        return f"172.30.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The range that its pods get their addresses from."""
        return f"10.244.{self.number}.0/24"

    @property
    def run(self) -> Path:
        """Its containerd's state and socket."""
        return RUN / self.name

    @property
    def socket(self) -> Path:
        """Its containerd's socket."""
        return self.run / "containerd.sock"

    @property
    def netns(self) -> Path:
        """The file that keeps its network namespace alive."""
        return Path("/run/netns") / self.namespace


@dataclass(frozen=True, slots=True)
class Settings:
    """One cluster: everything of it lives under `work`; what is worth keeping for the next one is in `cache`."""

    work: Path
    cache: Path
    node_count: int = 3

    @classmethod
    def from_environment(cls) -> Settings:
        """Read VECCLUSTER_E2E_DIR, VECCLUSTER_CACHE and VECCLUSTER_E2E_NODES."""
        cache = os.environ.get("VECCLUSTER_CACHE") or Path.home() / ".cache" / "veccluster" / "e2e"
        return cls(
            work=Path(os.environ.get("VECCLUSTER_E2E_DIR") or "/var/lib/veccluster-e2e").absolute(),
            cache=Path(cache).absolute(),
            node_count=int(os.environ.get("VECCLUSTER_E2E_NODES") or 3),
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The worker nodes; there are no others, the control plane runs beside them."""
        return tuple(Node(number) for number in range(1, self.node_count + 1))

    def node(self, name: str) -> Node:
        """The node that Kubernetes calls `name`."""
        return next(node for node in self.nodes if node.name == name)

    def home(self, node: Node) -> Path:
        """What the node has on disk."""
        return self.work / node.name

    @property
    def kubeconfig(self) -> Path:
        """The administrator's way in."""
        return self.work / "kubeconfig"

    @property
    def identity(self) -> Path:
        """The random id that was drawn when the cluster was made; the cluster carries the same one."""
        return self.work / "id"

    @property
    def logs(self) -> Path:
        """One file a component; kept after `down`, until the next `up`."""
        return self.work / "logs"

    @property
    def volumes(self) -> Path:
        """Disk images and their mount points."""
        return self.work / "volumes"

    @property
    def api(self) -> str:
        """The API server's address, on the bridge: reached from this machine and its pods, from nowhere else."""
        return f"https://{HOST_IP}:{API_PORT}"
