"""A machine room of its own: networks, mounts and processes that end with this process and that nobody else sees.

The program starts itself again in namespaces of its own (network, mounts, process ids). In there, every node and every
member of etcd has a network namespace with one cable to a common bridge, so that cuts are rules about addresses.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

_INSIDE = "VECCLUSTER_CHAOS_INSIDE"
_BRIDGE = "chaos"
_NAMES = Path("/run/netns")
TOOLS = ("unshare", "nsenter", "ip", "iptables", "mount", "losetup", "mkfs.ext4")
CLIENTS = "10.77.0.1"
"""Where clients are: this process."""


class Direction(StrEnum):
    incoming = "in"
    outgoing = "out"
    both = "both"


def missing() -> str | None:
    """Why there can be no arena here; None when there can."""
    if os.geteuid() != 0:
        return "root is needed, for namespaces and file systems of its own"
    if lost := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"this machine lacks {', '.join(lost)}"
    return None


def enter(arguments: Sequence[str]) -> None:
    """Become a process inside; returns when this one is."""
    if os.environ.get(_INSIDE):
        return
    namespaces = ("--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--mount")
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", *namespaces, sys.executable, "-m", "chaos", *arguments])


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command; what it printed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def build() -> None:
    """Lay the bridge, once."""
    _NAMES.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "netns", _NAMES)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", _BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{CLIENTS}/24", "dev", _BRIDGE)
    run("ip", "link", "set", _BRIDGE, "up")


class Host:
    """A network namespace with an address of its own, in which processes are started."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.ip = f"10.77.0.{number}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"v-{name}", "master", _BRIDGE, "up")
        run("ip", "-n", name, "address", "add", f"{self.ip}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", link, "up")

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, made to run here."""
        return ["nsenter", f"--net={_NAMES / self.name}", *command]

    def cut(self, addresses: Iterable[str], direction: Direction = Direction.both) -> None:
        """Lose packets from or to these addresses, those of open connections too, until `heal`."""
        for address in addresses:
            if direction is not Direction.outgoing:
                self._iptables("-A", "INPUT", "-s", address, "-j", "DROP")
            if direction is not Direction.incoming:
                self._iptables("-A", "OUTPUT", "-d", address, "-j", "DROP")

    def heal(self) -> None:
        """Lose nothing any more."""
        for chain in ("INPUT", "OUTPUT"):
            self._iptables("-F", chain)

    def _iptables(self, *rule: str) -> None:
        run(*self.inside(["iptables", "-w", *rule]))
