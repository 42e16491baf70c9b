"""The operator's replicas from outside: who holds the Lease, what each has done and when, and their processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e2e.cluster.process import HarnessError
from e2e.cluster.tools import Kubectl, clean_environment
from e2e.support.operator import LEASE, NAMESPACE
from e2e.waiting import wait_for

_HELD = '{.spec.acquireTime} {.spec.holderIdentity}{"\\n"}'


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One line of a replica's log."""

    at: datetime
    replica: str
    event: str
    about: str


class Recorder:
    """Records from now on who holds the Lease, and keeps what replicas log beyond their pods' end."""

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self._kubectl = kubectl
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        self.since = datetime.now(UTC)
        self._lease = folder / "lease"
        self._start(self._lease, "get", "lease", LEASE, "--watch", "-o", f"jsonpath={_HELD}")

    def close(self) -> None:
        """Record no longer."""
        for process in self._running:
            process.terminate()
            process.wait()

    def follow(self, pod: str) -> None:
        """Keep what this pod's present container logs; asked again, it does nothing."""
        file = self._folder / f"{pod}.log"
        if not file.exists():
            self._start(file, "logs", "--follow", pod)

    def log(self) -> list[Line]:
        """Every line since the beginning, of every replica that is followed, in the order of time."""
        lines = (line for file in self._folder.glob("*.log") for line in read_log(file.stem, file.read_text()))
        return sorted(line for line in lines if line.at >= self.since)

    def holders(self) -> list[tuple[datetime, str]]:
        """Who got the Lease when, in the order of time; nobody's name is empty."""
        found: list[tuple[datetime, str]] = []
        for line in self._lease.read_text().splitlines():
            since, _, holder = line.partition(" ")
            if holder and (not found or found[-1][1] != holder):
                found.append((datetime.fromisoformat(since), holder))
        return found

    def _start(self, output: Path, *arguments: str) -> None:
        where: list[str | Path] = ["--kubeconfig", self._kubectl.kubeconfig, "--namespace", NAMESPACE]
        environment = clean_environment(self._kubectl.kubeconfig.parent)
        with output.open("wb") as file:
            process = subprocess.Popen(
                [self._kubectl.binary, *where, *arguments], stdout=file, stderr=subprocess.DEVNULL, env=environment
            )
        self._running.append(process)


@contextmanager
def recorded(kubectl: Kubectl) -> Iterator[Recorder]:
    """A recorder for a while."""
    with tempfile.TemporaryDirectory(prefix="veccluster-e2e-") as folder:
        recorder = Recorder(kubectl, Path(folder))
        try:
            yield recorder
        finally:
            recorder.close()


def read_log(replica: str, text: str) -> list[Line]:
    """What a replica logged; lines that are not its own JSON, such as a traceback, are left out."""
    found = []
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and "timestamp" in said:
            about = said.get("action") or said.get("reason") or ""
            cluster = f"{said['cluster']}: " if "cluster" in said else ""
            at = datetime.fromisoformat(said["timestamp"])
            found.append(Line(at, replica, said["event"], f"{cluster}{about}"))
    return found


def actions(lines: list[Line], namespace: str) -> list[str]:
    """What was done for the clusters of a namespace, in the order of time."""
    return [line.about for line in lines if line.event == "acting" and line.about.startswith(f"{namespace}/")]


def processes(pod: dict[str, Any]) -> list[int]:
    """The operator's processes of a pod, as this machine knows them."""
    uid = pod["metadata"]["uid"]
    spellings = (f"pod{uid}/", f"pod{uid.replace('-', '_')}.slice/")
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            cgroups = (directory / "cgroup").read_text()
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if any(s in cgroups for s in spellings) and b"veccluster-operator" in command:
            found.append(int(directory.name))
    return found


def freeze(pod: dict[str, Any]) -> list[int]:
    """Stop a replica where it is, as a machine that is suspended does; the processes to be given to `thaw`."""
    found = processes(pod)
    if not found:
        raise HarnessError(f"no process of pod {pod['metadata']['name']} was found on this machine")
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    return found


def thaw(pids: list[int]) -> None:
    """Let a frozen replica go on."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def scrape(kubectl: Kubectl, pod: str) -> dict[str, float]:
    """A replica's metrics, by name and labels."""
    text = kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics")
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def scale(kubectl: Kubectl, replicas: int) -> None:
    """Have so many replicas, all of them ready and no other left."""
    kubectl("scale", "deployment", LEASE, f"--replicas={replicas}", namespace=NAMESPACE)
    kubectl("rollout", "status", f"deployment/{LEASE}", "--timeout=90s", namespace=NAMESPACE)

    def settled() -> bool:
        selector = "app.kubernetes.io/name=veccluster-operator"
        return len(kubectl.items("pods", "-l", selector, namespace=NAMESPACE)) == replicas

    wait_for(settled, 60, f"{replicas} pods of the operator")
