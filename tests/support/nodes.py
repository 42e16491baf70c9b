"""Data nodes as processes that a test starts, kills and starts again itself, on an etcd that it can break too.

`LocalCluster` is what a user has, with a supervisor that waits before it restarts what keeps dying; here nothing waits.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import requests

from support.cluster import free_run, unique_name, wait_until
from support.ending import kill_at_once
from support.etcd import EtcdCluster
from veccluster import Client
from veccluster.client import CollectionInfo
from veccluster.model.state import Shard, ShardId
from veccluster_cli.local.processes import tied
from veccluster_node.metadata.keys import decode_shard

FAST = {"failover": {"heartbeat": "200ms", "timeout": "1s"}}
"""A spec whose nodes are missed soon."""


class Nodes:
    """`size` nodes of one cluster, numbered from 0, with one copy of each shard unless something else is asked for.

    `etcd` is theirs alone unless one is given.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        etcd: EtcdCluster | None = None,
        spec: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        files: int | None = None,
    ) -> None:
        """`files` is how many files each node may open, be that less than usual."""
        self.size = size
        self._files = files
        self.name = unique_name("test")
        self.spec = {"nodes": size, "replicationFactor": 1, **(spec or {})}
        self.environment = dict(environment or {})
        self._config = dict(config or {})
        """What every node's configuration says besides."""
        self._own_etcd = EtcdCluster(1) if etcd is None else None
        self.etcd = etcd or self._own_etcd
        self._directory = tempfile.TemporaryDirectory(prefix="veccluster-nodes-")
        self.path = Path(self._directory.name)
        self._port = free_run(size)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            if self._own_etcd:
                self._own_etcd.__enter__()
            for number in range(self.size):
                self.start(number)
            for number in range(self.size):
                self.wait_ready(number)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._processes):
            self.kill(number)
        if self._own_etcd:
            self._own_etcd.__exit__(None, None, None)
        self._directory.cleanup()

    @property
    def servers(self) -> list[str]:
        """Addresses of all nodes."""
        return [self.url(n) for n in range(self.size)]

    def url(self, number: int) -> str:
        """Address of one node."""
        return f"http://127.0.0.1:{self._port + number}"

    def data(self, number: int) -> Path:
        """Data directory of one node."""
        return self.path / f"data-{number}"

    def record(self, shard: ShardId) -> Shard:
        """What etcd says of a shard now."""
        key = f"/veccluster/default/{self.name}/shards/{shard.collection}/{shard.number}"
        return decode_shard(shard, self.etcd.ctl("get", key, "--print-value-only").encode(), 1)

    def client(self, **options: Any) -> Client:
        """A client that knows all nodes."""
        return Client(self.servers, **options)

    def config(self, number: int, **changes: Any) -> Path:
        """Write a node's configuration."""
        assert self.etcd is not None
        file = self.path / f"node-{number}.json"
        config = {
            "id": f"n{number}",
            "cluster": self.name,
            "data_dir": str(self.data(number)),
            "listen": f"127.0.0.1:{self._port + number}",
            "etcd": {"endpoints": self.etcd.endpoints},
            "spec": self.spec,
        }
        file.write_text(json.dumps(config | self._config | changes))
        return file

    def start(self, number: int, arguments: Sequence[str] = (), **changes: Any) -> None:
        """Start a node on the data that it has, with `changes` of its configuration."""
        config = self.config(number, **changes)
        command = [sys.executable, "-m", "veccluster_node", "--config", str(config), *arguments]
        if self._files is not None:
            command = ["/bin/sh", "-c", f'ulimit -n {self._files} && exec "$@"', "sh", *command]
        with self.log_file(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def wait_ready(self, number: int, timeout: float = 60.0) -> None:
        """Until the node serves what it should."""
        wait_until(lambda: self._is_ready(number), lambda: self._why_not_ready(number), timeout)

    def wait_healthy(self) -> None:
        """Until every node calls the cluster healthy."""
        for number in range(self.size):
            wait_until(lambda n=number: self.cluster(n).get("health") == "healthy", f"node {number} to be content")

    def cluster(self, number: int) -> dict[str, Any]:
        """What the node says of the cluster; empty when it cannot be asked."""
        try:
            return requests.get(self.url(number) + "/v1/cluster", timeout=5).json()
        except requests.RequestException:
            return {}

    def kill(self, *numbers: int) -> None:
        """SIGKILL nodes, all at once: none of them can do a thing while another one is gone already."""
        kill_at_once([self._processes.pop(number) for number in numbers])

    def pid(self, number: int) -> int:
        """The process of a node."""
        return self._processes[number].pid

    def stop(self, number: int) -> int:
        """SIGTERM a node; its exit code."""
        process = self._processes.pop(number)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)

    def wait_exit(self, number: int, timeout: float = 30.0) -> int:
        """Until a node has ended by itself; its exit code."""
        return self._processes.pop(number).wait(timeout)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        self._processes[number].send_signal(what)

    def log_file(self, number: int) -> Path:
        """What a node prints."""
        return self.path / f"node-{number}.log"

    def log(self, number: int) -> str:
        """The end of it."""
        file = self.log_file(number)
        return file.read_text()[-4000:] if file.exists() else ""

    def _why_not_ready(self, number: int) -> str:
        try:
            said = requests.get(self.url(number) + "/readyz?shards=all", timeout=5).text
        except requests.RequestException as error:
            said = repr(error)
        return f"node {number} to be ready, which says {said}; its log:\n{self.log(number)}"

    def _is_ready(self, number: int) -> bool:
        process = self._processes[number]
        if process.poll() is not None:
            raise AssertionError(f"node {number} ended with {process.returncode}:\n{self.log(number)}")
        try:
            return requests.get(self.url(number) + "/readyz?shards=all", timeout=5).ok
        except requests.RequestException:
            time.sleep(0.01)
            return False


def filled(nodes: Nodes, client: Client, vectors: np.ndarray, metric: str = "cosine") -> CollectionInfo:
    """A collection of one shard; three nodes have its vectors, "id-0" and so on."""
    nodes.wait_healthy()
    name = unique_name("words")
    made = client.create_collection(
        name, dimension=vectors.shape[1], metric=metric, shards=1, replication_factor=3, min_in_sync=2
    )
    client.upsert(name, [f"id-{i}" for i in range(len(vectors))], vectors)
    nodes.wait_healthy()
    return made


def record_of(nodes: Nodes, words: CollectionInfo) -> Shard:
    """What etcd says of the only shard of a collection."""
    return nodes.record(ShardId(words.details["uuid"], 0))
