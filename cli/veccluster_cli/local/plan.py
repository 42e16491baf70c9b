"""Build what the supervisor runs from what `up` asked for: command lines, configurations, revisions. Pure."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from veccluster.decisions.local import Role, Wanted
from veccluster_cli.local import etcd
from veccluster_cli.local.ports import HOST
from veccluster_cli.local.state import Desired, StateDirectory

NODE_COMMAND = ("-c", "from veccluster_node.main import main; main()")
"""What the script `veccluster-node` does, whether or not it is on PATH."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One process: how to start it, and where to ask whether it is ready."""

    name: str
    role: Role
    command: Sequence[str]
    probe_url: str
    address: str
    config: bytes | None = None
    """Content of its configuration file, if it has one."""
    revision: str = ""

    @property
    def wanted(self) -> Wanted:
        """What the decision sees of it."""
        return Wanted(self.name, self.role, self.revision)


def plan(desired: Desired, directory: StateDirectory, python: str) -> Iterator[Plan]:
    """All processes of the cluster, in the order in which they start."""
    for member in desired.members:
        yield _member(desired, member, directory)
    for number, port in enumerate(desired.node_ports):
        yield _node(desired, number, port, directory, python)


def node_name(cluster: str, number: int) -> str:
    """The id of a node, as a StatefulSet would give it."""
    return f"{cluster}-{number}"


def _member(desired: Desired, member: etcd.Member, directory: StateDirectory) -> Plan:
    assert desired.etcd is not None
    command = etcd.command(desired.etcd, member, desired.members, directory.data_of(member.name), desired.name)
    return Plan(
        member.name,
        Role.metadata,
        command,
        probe_url=f"{member.client_url}/health",
        address=f"{HOST}:{member.client_port}",
        revision=_digest(command),
    )


def _node(desired: Desired, number: int, port: int, directory: StateDirectory, python: str) -> Plan:
    name = node_name(desired.name, number)
    address = f"{HOST}:{port}"
    config = {
        "id": name,
        "cluster": desired.name,
        "namespace": desired.namespace,
        "data_dir": str(directory.data_of(name)),
        "listen": address,
        "peer_listen": f"{HOST}:0",
        "zone": desired.zones[number % len(desired.zones)] if desired.zones else "",
        "etcd": {"endpoints": list(desired.endpoints) or [member.client_url for member in desired.members]},
        "spec": dict(desired.spec),
    }
    return Plan(
        name,
        Role.node,
        [python, *NODE_COMMAND, "--config", str(directory.config_of(name))],
        probe_url=f"http://{address}/readyz?shards=all",
        address=address,
        config=msgspec.json.format(msgspec.json.encode(config)),
        revision=_digest(_without_size(config)),
    )


def _without_size(config: Mapping[str, Any]) -> dict[str, Any]:
    """A node need not restart when the cluster grows: it learns of the others through etcd."""
    spec = {key: value for key, value in config["spec"].items() if key != "nodes"}
    return {**config, "spec": spec}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]
