"""Make things break the way they break: a node without power, a network that loses packets, a disk that is full.

Every fault first makes sure that the cluster is the harness' own, and `undo` takes all of them back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from e2e.cluster import binaries, built, kind, network, node
from e2e.cluster.network import Direction
from e2e.cluster.process import HarnessError, run
from e2e.cluster.settings import HOST_IP, Settings
from e2e.cluster.tools import Kubectl

CONTROL_PLANE = "control-plane"  # as a peer that a node can be cut off from: API server and DNS
_FILLER = "filler"  # beside the directory that pods see


class Faults:
    """The faults of one cluster, and what it takes to undo those that were made."""

    def __init__(self, settings: Settings, kubectl: Kubectl, *, on_kind: bool) -> None:
        self._settings = settings
        self._kubectl = kubectl
        self._on_kind = on_kind
        self._killed: set[str] = set()
        self._cut: set[str] = set()
        self._filled: set[Path] = set()

    def kill_node(self, name: str) -> None:
        """Take a node's power away: kubelet, containerd, the proxy and all pods end at once, and no packet says so.

        Kubernetes calls the node NotReady some 20 to 25 s later and evicts its pods after another 5 minutes, unless
        they tolerate less.
        """
        self._ours()
        self._killed.add(name)
        if self._on_kind:
            kind.power(name, on=False)
        else:
            node.kill(self._settings, self._settings.node(name))

    def start_node(self, name: str) -> None:
        """Give a killed node its power back; its pods start again by themselves."""
        self._ours()
        if self._on_kind:
            kind.power(name, on=True)
        else:
            node.start_again(self._settings, self._settings.node(name), binaries.kube(self._settings.cache))
        self._killed.discard(name)

    def cut(self, name: str, direction: Direction = Direction.BOTH, peers: Iterable[str] = ()) -> None:
        """Lose a node's packets, those of its pods included: all, or only from and to some peers.

        Peers are names of nodes (which stand for their pods, too) or CONTROL_PLANE. What stays on a node arrives.
        """
        self._ours()
        self._cut.add(name)
        network.cut(self._network(name), direction, self._addresses(peers))

    def heal(self, name: str) -> None:
        """Take every cut of a node back."""
        self._ours()
        network.heal(self._network(name))
        self._cut.discard(name)

    def fill_volume(self, namespace: str, claim: str, leave: int = 0) -> None:
        """Use up a claim's volume until only about `leave` bytes are free; the pods see no new file."""
        self._ours()
        disk = self._disk(namespace, claim)
        self._filled.add(disk)
        with (disk / _FILLER).open("ab") as file:
            _allocate(file.fileno(), disk, leave)

    def free_volume(self, namespace: str, claim: str) -> None:
        """Give back what `fill_volume` took."""
        self._ours()
        disk = self._disk(namespace, claim)
        (disk / _FILLER).unlink(missing_ok=True)
        self._filled.discard(disk)

    def undo(self) -> None:
        """Take back all faults that were made and are still there."""
        for name in sorted(self._cut):
            self.heal(name)
        for name in sorted(self._killed):
            self.start_node(name)
        for disk in self._filled:
            with contextlib.suppress(FileNotFoundError):  # the volume may be gone with its namespace
                (disk / _FILLER).unlink()
        self._filled.clear()

    def _ours(self) -> None:
        built.make_sure_it_is_ours(self._settings, self._kubectl)

    def _network(self, name: str) -> Path:
        return kind.network_of(name) if self._on_kind else self._settings.node(name).netns

    def _addresses(self, peers: Iterable[str]) -> list[str]:
        """Where packets of these peers come from and go to."""
        if not (peers := list(peers)):
            return ["0.0.0.0/0"]
        if self._on_kind:
            raise HarnessError("on kind a node can only be cut off from everything")
        found = [f"{HOST_IP}/32"] if CONTROL_PLANE in peers else []
        for peer in (self._settings.node(name) for name in peers if name != CONTROL_PLANE):
            found += [f"{peer.ip}/32", peer.pods]
        return found

    def _disk(self, namespace: str, claim: str) -> Path:
        if self._on_kind:
            raise HarnessError("on kind volumes have no real size")
        volume = self._kubectl.json("get", "pvc", claim, namespace=namespace)["spec"].get("volumeName")
        disk = self._settings.volumes / str(volume)
        if not disk.is_mount():
            raise HarnessError(f"the claim {namespace}/{claim} has no volume")
        return disk


def _allocate(file: int, disk: Path, leave: int) -> None:
    """Take all but `leave` bytes in ever smaller pieces: the filesystem has less to give than it says."""
    piece = 1 << 40
    while piece >= 4096:
        status = os.statvfs(disk)
        if status.f_bavail * status.f_frsize - piece < leave:
            piece //= 2
            continue
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, piece)
        except OSError:
            piece //= 2
    run("sync", "-f", disk)
