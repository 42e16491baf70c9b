"""The cluster: node processes and etcd members, each on a host of its own, the nodes on disks of their own.

Blocking, since faults are few; the clients run in another thread.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import requests

from chaos.arena import Host
from chaos.clocks import Clock
from chaos.disks import Disk
from support.etcd import binary
from veccluster_cli.local.processes import tied

PORT = 8000
PEER_PORT = 8001
NAME = "chaos"


class NotRecovered(AssertionError):
    """The cluster did not come back by itself in time."""


def until(condition: Callable[[], bool], what: Callable[[], str], timeout: float) -> float:
    """Until the condition holds; the seconds that it took. `NotRecovered` says what was waited for."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise NotRecovered(f"waited {timeout:.0f} s in vain for {what()}")
        time.sleep(0.05)
    return time.monotonic() - began


class Process:
    """One program on one host: started, killed, stopped; ends with this process in any case."""

    def __init__(self, base: Path, name: str, number: int) -> None:
        self.name = name
        self.host = Host(name, number)
        self.log_file = base / f"{name}.log"
        self._running: subprocess.Popen[bytes] | None = None
        self.ends: list[int] = []
        """Exit codes of those times when it ended by itself."""

    @property
    def ip(self) -> str:
        return self.host.ip

    @property
    def runs(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def spawn(self, command: Iterable[str], environment: Mapping[str, str] = {}) -> None:
        """Start it."""
        if self._running and (code := self._running.poll()) is not None:
            self.ends.append(code)
        with self.log_file.open("ab") as log:
            self._running = subprocess.Popen(
                self.host.inside(tied(list(command))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def kill(self) -> None:
        """SIGKILL; nothing if it does not run."""
        if self._running:
            self._running.kill()
            self._running.wait()
            self._running = None

    def end(self, timeout: float = 40.0) -> int | None:
        """SIGTERM; its exit code, None if it did not run."""
        if not self._running:
            return None
        running, self._running = self._running, None
        running.terminate()
        return running.wait(timeout)

    def stop(self) -> None:
        """SIGSTOP."""
        if self._running:
            self._running.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        if self._running:
            self._running.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of what it printed."""
        return self.log_file.read_text(errors="replace")[-3000:] if self.log_file.exists() else ""


class Node(Process):
    """A data node."""

    def __init__(self, base: Path, number: int, cluster: "Cluster") -> None:
        super().__init__(base, f"n{number}", 11 + number)
        self.number = number
        self.disk = Disk(base, f"disk-{number}")
        self._cluster = cluster
        self._config = base / f"{self.name}.json"
        self.clock = Clock(base, self.name)

    @property
    def url(self) -> str:
        return f"http://{self.ip}:{PORT}"

    def start(self, failpoints: str = "") -> None:
        """Start it on the disk that it has; nothing if it runs."""
        if self.runs:
            return
        self.disk.mount()
        self._config.write_text(json.dumps(self._configuration()))
        command = [sys.executable, "-m", "veccluster_node", "--config", str(self._config)]
        environment = {"VECCLUSTER_FAILPOINTS": failpoints}
        if self._cluster.clocks:
            environment |= self.clock.environment()
        self.spawn(command, environment)

    def lose_power(self) -> None:
        """Nothing of it happens any more, and the disk keeps what was on it; `start` is another boot."""
        self.stop()
        self.disk.shut_down()
        self.kill()
        self.disk.unmount()

    def reboot(self) -> None:
        """Kill it, mount its disk anew, and start it."""
        self.kill()
        self.disk.unmount()
        self.start()

    def _configuration(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "cluster": NAME,
            "data_dir": str(self.disk.path / "data"),
            "listen": f"{self.ip}:{PORT}",
            "peer_listen": f"{self.ip}:{PEER_PORT}",
            "etcd": {"endpoints": [f"{m.ip}:2379" for m in self._cluster.etcd]},
            "spec": self._cluster.spec,
        }

    def get(self, path: str, timeout: float = 5.0) -> dict[str, Any] | None:
        """What it answers; None when it gives no good answer."""
        try:
            reply = requests.get(self.url + path, timeout=timeout)
            return reply.json() if reply.ok else None
        except (requests.RequestException, ValueError):
            return None


def end_at_once(processes: Iterable[Process]) -> None:
    """SIGKILL several; none of them can do anything about the end of another, so all stand still before."""
    ending = list(processes)
    for process in ending:
        process.stop()
    for process in ending:
        process.kill()


class Member(Process):
    """A member of etcd."""

    def __init__(self, base: Path, number: int, cluster: "Cluster") -> None:
        super().__init__(base, f"e{number}", 31 + number)
        self._data = base / f"etcd-{number}"
        self._kept = base / f"etcd-{number}.copy"
        self._cluster = cluster

    def start(self) -> None:
        """Start it on the data that it has; nothing if it runs."""
        if self.runs:
            return
        members = ",".join(f"{m.name}=http://{m.ip}:2380" for m in self._cluster.etcd)
        options = {
            "name": self.name,
            "data-dir": str(self._data),
            "listen-client-urls": f"http://{self.ip}:2379",
            "advertise-client-urls": f"http://{self.ip}:2379",
            "listen-peer-urls": f"http://{self.ip}:2380",
            "initial-advertise-peer-urls": f"http://{self.ip}:2380",
            "initial-cluster": members,
            "heartbeat-interval": "100",
            "election-timeout": "1000",
            "log-level": "warn",
        }
        # It loses no power here, and a kill does not lose what the kernel has been given.
        self.spawn([binary("etcd"), *(f"--{k}={v}" for k, v in options.items()), "--unsafe-no-fsync"])

    def ctl(self, *arguments: str) -> str:
        """Run etcdctl against it; what it prints."""
        command = [binary("etcdctl"), f"--endpoints={self.ip}:2379", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    def copy(self) -> None:
        """Keep a copy of its data, while it does not run."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self._data, self._kept)

    def restore(self, snapshot: Path | None, token: str) -> None:
        """Give it the data of a snapshot, or of the copy, while it does not run."""
        shutil.rmtree(self._data)
        if snapshot is None:
            shutil.copytree(self._kept, self._data)
            return
        members = ",".join(f"{m.name}=http://{m.ip}:2380" for m in self._cluster.etcd)
        command = [binary("etcdctl"), "snapshot", "restore", str(snapshot), f"--name={self.name}"]
        command += [f"--data-dir={self._data}", f"--initial-cluster={members}", f"--initial-cluster-token={token}"]
        command += [f"--initial-advertise-peer-urls=http://{self.ip}:2380"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def is_healthy(self) -> bool:
        """Whether it serves and knows a leader."""
        try:
            return bool(requests.get(f"http://{self.ip}:2379/health", timeout=2).json()["health"] == "true")
        except (requests.RequestException, ValueError, KeyError):
            return False


class Cluster:
    """`size` nodes and three members of etcd; with `clocks`, the wall clocks of the nodes can be set."""

    def __init__(self, base: Path, size: int, factor: int, spec: Mapping[str, Any], *, clocks: bool = False) -> None:
        self.size = size
        self.factor = factor
        self.clocks = clocks
        self.spec = {"nodes": size, "replicationFactor": factor, **spec}
        self.etcd: list[Member] = []
        self.etcd.extend([Member(base, n, self) for n in range(3)])
        self.nodes = [Node(base, n, self) for n in range(size)]
        self.base = base
        """How often a node had ended by itself."""

    def start(self) -> None:
        """Start everything; returns when it is in order."""
        for member in self.etcd:
            member.start()
        self.wait_for_etcd()
        for node in self.nodes:
            node.start()
        until(lambda: all(n.get("/healthz") for n in self.nodes if self._must_run(n)), self.complaints, 60)
        self.wait_healthy(60)

    def wait_for_etcd(self) -> None:
        """Until all members of etcd serve."""
        until(lambda: all(m.is_healthy() for m in self.etcd), lambda: self.etcd[0].log(), 30)

    def _must_run(self, process: Process) -> bool:
        if not process.runs:
            raise NotRecovered(f"{process.name} does not start: {process.log()}")
        return True

    def end(self) -> None:
        """Kill everything."""
        for process in (*self.nodes, *self.etcd):
            process.kill()
        for node in self.nodes:
            node.disk.unmount()

    @property
    def urls(self) -> list[str]:
        return [n.url for n in self.nodes]

    def heal(self) -> None:
        """Take back every fault; what was killed is started."""
        for process in (*self.nodes, *self.etcd):
            process.host.heal()
            process.go_on()
        for member in self.etcd:
            member.start()
        for node in self.nodes:
            node.clock.set(0.0)
            node.disk.relieve()
            node.start()

    def wait_healthy(self, timeout: float) -> float:
        """Until every node calls the cluster healthy and every replica in sync; the seconds that it took.

        A node that ends by itself is started again, as whoever supervises it would.
        """

        def in_order() -> bool:
            for node in (n for n in self.nodes if not n.runs):
                node.start()
            return all(map(_content, self.nodes))

        return until(in_order, self.complaints, timeout)

    def surprises(self) -> list[str]:
        """Who ended by itself since this was asked last."""
        found = [f"{p.name} ended by itself with {code}" for p in (*self.nodes, *self.etcd) for code in p.ends]
        for process in (*self.nodes, *self.etcd):
            process.ends.clear()
        return found

    def complaints(self) -> str:
        """What keeps the cluster from being healthy."""
        said = []
        for process in (*self.nodes, *self.etcd):
            if not process.runs:
                said.append(f"{process.name} does not run: {process.log()[-600:]}")
        for node in self.nodes:
            state = node.get("/v1/cluster")
            said.append(f"{node.name}: " + (f"{state['health']} {state['issues']}" if state else "no answer"))
        return "; ".join(said)

    def primaries(self, collection: str) -> dict[int, Node]:
        """Which node is primary of which shard, as the first node that answers says."""
        for node in self.nodes:
            if node.runs and (found := node.get(f"/v1/collections/{collection}", 2.0)):
                by_name = {n.name: n for n in self.nodes}
                states = found["shard_states"]
                return {s["number"]: by_name[s["primary"]] for s in states if s["primary"] in by_name}
        return {}

    def keep_logs(self, into: Path) -> None:
        """Copy what everybody printed."""
        into.mkdir(parents=True, exist_ok=True)
        for process in (*self.nodes, *self.etcd):
            if process.log_file.exists():
                shutil.copy(process.log_file, into)


def _content(node: Node) -> bool:
    state = node.get("/v1/cluster")
    if state is None or state["health"] != "healthy" or node.get("/readyz?shards=all") is None:
        return False
    shards = state["shards"]
    return not (shards["under_replicated"] or shards["unavailable"])
