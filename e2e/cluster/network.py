"""One bridge, and on it a network namespace for each node.

Nothing leaves the machine: pods reach each other, Services, the control plane and this host, and no address beyond. So
no packet filter rule of the host is touched, and the tests cannot come to depend on the internet.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from e2e.cluster.process import HarnessError, run
from e2e.cluster.settings import BRIDGE, HOST_IP, POD_RANGE, Node, Settings


class Direction(Enum):
    """Which packets of a node get lost."""

    INCOMING = "incoming"
    OUTGOING = "outgoing"
    BOTH = "both"


# The tables are ones that kube-proxy leaves alone, at the places which see forwarded packets (of pods) as well as the
# node's own: incoming ones before, outgoing ones after a Service's address has become a pod's.
_CUTS = {
    Direction.INCOMING: ("raw", "PREROUTING", "-i", "-s"),
    Direction.OUTGOING: ("mangle", "POSTROUTING", "-o", "-d"),
}
_COMMENT = "veccluster-e2e"


def inside(namespace: Path) -> tuple[str, ...]:
    """The words that make a command run in a network namespace.

    `ip netns exec` would also give it a mount namespace of its own, in which pods miss what kubelet mounts for them.
    """
    return ("nsenter", f"--net={namespace}")


def up(settings: Settings) -> None:
    """Lay the bridge, the namespaces, the cables and the routes between the nodes' pod ranges."""
    if any(route.get("dst") in (POD_RANGE, "172.30.0.0/24") for route in json.loads(run("ip", "-j", "route") or "[]")):
        raise HarnessError(
            f"this machine has routes to 172.30.0.0/24 or {POD_RANGE} already; the test cluster needs them"
        )
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HOST_IP}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for node in settings.nodes:
        _plug_in(node, settings.nodes)


def _plug_in(node: Node, nodes: Iterable[Node]) -> None:
    namespace = ("ip", "-n", node.namespace)
    run("ip", "netns", "add", node.namespace)
    run("ip", "link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    run("ip", "link", "set", node.veth, "master", BRIDGE, "up")
    run(*namespace, "address", "add", f"{node.ip}/24", "dev", "eth0")
    run(*namespace, "link", "set", "eth0", "up")
    run(*namespace, "link", "set", "lo", "up")
    run(*namespace, "route", "add", "default", "via", HOST_IP)
    run(*inside(node.netns), "sysctl", "-qw", "net.ipv4.ip_forward=1")
    run("ip", "route", "replace", node.pods, "via", node.ip)
    for other in nodes:
        if other != node:
            run(*namespace, "route", "replace", other.pods, "via", other.ip)


def down() -> None:
    """Remove every namespace and link that `up` may have made, as far as they are there."""
    for namespace in Path("/run/netns").glob("vce2e-node-*"):
        run("ip", "netns", "delete", namespace.name, check=False)
        namespace.unlink(missing_ok=True)
    for link in sorted(Path("/sys/class/net").glob("vce2e*")):
        run("ip", "link", "delete", link.name, check=False)
    _wait_for_links()


def _wait_for_links() -> None:
    left = [link.name for link in Path("/sys/class/net").glob("vce2e*")]
    if left:
        raise HarnessError(f"the network links {left} cannot be removed")


def cable(node: Node, *, plugged: bool) -> None:
    """Pull a node's only cable, or plug it in again."""
    run("ip", "link", "set", node.veth, "up" if plugged else "down")


def cut(namespace: Path, direction: Direction, addresses: Iterable[str] = ("0.0.0.0/0",)) -> None:
    """Lose a node's packets from (or to) these addresses from now on; established connections are no exception."""
    for one in (Direction.INCOMING, Direction.OUTGOING) if direction is Direction.BOTH else (direction,):
        table, chain, interface, end = _CUTS[one]
        for address in addresses:
            run(
                *inside(namespace), "iptables", "-w", "-t", table, "-I", chain, interface, "eth0", end, address,
                "-m", "comment", "--comment", _COMMENT, "-j", "DROP",
            )  # fmt: skip


def heal(namespace: Path) -> None:
    """Take back every cut of this node."""
    for table, chain, *_ in _CUTS.values():
        iptables = (*inside(namespace), "iptables", "-w", "-t", table)
        for rule in run(*iptables, "-S", chain).splitlines():
            if _COMMENT in rule:
                with contextlib.suppress(HarnessError):
                    run(*iptables, "-D", *rule.split()[1:])
