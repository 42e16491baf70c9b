"""An etcd as the operator runs it, without the pods: each member is prepared by our tool, and then `etcd` starts.

`with ManagedEtcd() as etcd: ...`; `await etcd.prepare(0)` is the init container, `etcd.start(0)` the container.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trustme
import yaml

from support.etcd import _LAUNCHER, EtcdCluster, binary, free_ports
from veccluster.decisions.etcd_member import Seen
from veccluster.model.etcd import EtcdMember, Membership
from veccluster_etcd import EtcdClient
from veccluster_node.etcd_member.bootstrap import load
from veccluster_node.etcd_member.member import Preparation, look


class ManagedEtcd(EtcdCluster):
    """`size` members, numbered from 0, none of which runs at first."""

    def __init__(self, size: int = 3, *, tls: bool = False) -> None:
        super().__init__(size)
        self.bootstrapped = False
        self.members_wanted = size
        self._secured = tls
        # Looks like a number, as a token of hexadecimal digits may: etcd must still read it as text.
        self._token = f"{int.from_bytes(os.urandom(3))}e2"

    def _start_on_free_ports(self) -> None:
        self._ports = [free_ports() for _ in range(self.size)]
        if self._secured:
            self._issue_certificates()

    @property
    def directory(self) -> Path:
        """Where everything is."""
        return self._directory

    def data(self, index: int) -> Path:
        """A member's data directory."""
        return self._directory / f"volume-{index}" / "data"

    def out(self, index: int) -> Path:
        """The configuration that is written for a member."""
        return self._directory / f"etcd-{index}.yaml"

    def written(self, index: int) -> dict[str, Any]:
        """What is in it."""
        return yaml.safe_load(self.out(index).read_text())

    def peer_url(self, index: int) -> str:
        """Where its peers find a member."""
        return f"{self._scheme}://{'localhost' if self._secured else '127.0.0.1'}:{self._ports[index][1]}"

    def bootstrap(self, index: int, **changes: Any) -> Path:
        """Write what the operator tells a member."""
        host = "localhost" if self._secured else "127.0.0.1"
        members = [
            {"name": f"m{i}", "peer_url": self.peer_url(i), "client_url": f"{self._scheme}://{host}:{client}"}
            for i, (client, _, _) in enumerate(self._ports[: self.members_wanted])
        ]
        told = {
            "cluster": "demo",
            "token": self._token,
            "bootstrapped": self.bootstrapped,
            "members": members,
            "listen_host": "127.0.0.1",
            "metrics_port": self._ports[index][2],
            "heartbeat_ms": 50,
            "election_ms": 500,
            "tls": self._tls_files() if self._secured else None,
        }
        path = self._directory / f"bootstrap-{index}.json"
        path.write_text(json.dumps(told | changes))
        return path

    def preparation(self, index: int, **changes: Any) -> Preparation:
        """The init container of a member, not begun yet."""
        return Preparation(f"m{index}", self.bootstrap(index, **changes), self.data(index), self.out(index))

    async def prepare(self, index: int) -> str:
        """Run the init container until it ends; the state with which etcd may start."""
        self.out(index).unlink(missing_ok=True)
        await self.preparation(index).run()
        state: str = self.written(index)["initial-cluster-state"]
        return state

    async def run(self, *members: int) -> None:
        """Prepare and start members, until they are healthy."""
        for index in members:
            await self.prepare(index)
            self.start(index)
        self.wait_healthy(*members)

    def start(self, index: int) -> None:
        """Start etcd as it was prepared."""
        etcd = [binary("etcd"), "--config-file", str(self.out(index))]
        command = [sys.executable, "-S", "-c", _LAUNCHER, str(os.getpid()), *etcd]
        with (self._directory / f"etcd-{index}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def lose_disk(self, index: int) -> None:
        """Kill a member and give it an empty volume."""
        if index in self._processes:
            self.kill(index)
        shutil.rmtree(self.data(index).parent)

    async def members(self, *asked: int) -> Membership:
        """The members as a majority has them."""
        endpoints = tuple(self.endpoints[i] for i in asked or sorted(self._processes))
        async with EtcdClient(self.config(endpoints=endpoints, timeout=15)) as client:
            return await client.administration.members()

    async def seen_by(self, index: int) -> Seen:
        """What a member's init container hears from the others."""
        return await look(load(self.bootstrap(index)), f"m{index}")

    async def member(self, index: int) -> EtcdMember | None:
        """One of them."""
        return (await self.members()).at(self.peer_url(index))

    @property
    def _scheme(self) -> str:
        return "https" if self._secured else "http"

    def _tls_files(self) -> Mapping[str, str]:
        return {f: str(self._directory / f"{f}.pem") for f in ("ca_file", "cert_file", "key_file")}

    def _issue_certificates(self) -> None:
        authority, files = trustme.CA(), self._tls_files()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(files["ca_file"])
        leaf.cert_chain_pems[0].write_to_path(files["cert_file"])
        leaf.private_key_pem.write_to_path(files["key_file"])
