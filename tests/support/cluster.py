"""A real cluster on this machine by way of the local runtime: an etcd and nodes as processes, to be used and broken.

`shared()` is one for all tests of a run that leave it as they find it; `with LocalCluster(...) as cluster` is one to
break. Both end with this process, however it ends (Linux).
"""

import atexit
import functools
import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from veccluster import Client
from veccluster.decisions.local import Phase
from veccluster.model.spec import VecCluster
from veccluster_cli.local import ports, runtime
from veccluster_cli.local.state import Desired, ProcessStatus, StateDirectory

START_TIMEOUT = 60.0


def cluster_document(name: str = "test", nodes: int = 3, **spec: Any) -> dict[str, Any]:
    """A VecCluster as one would write it; `spec` adds to it, in camelCase."""
    return {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": "VecCluster",
        "metadata": {"name": name},
        "spec": {"nodes": nodes, "metadata": {"managed": {"nodes": 1}}} | spec,
    }


class LocalCluster:
    """`nodes` nodes on free ports, with their state in `path` or a directory that goes with the context."""

    def __init__(self, nodes: int = 3, *, path: Path | None = None, spec: Mapping[str, Any] | None = None) -> None:
        self.document = cluster_document(nodes=nodes, **(spec or {}))
        self._temporary = path is None
        self.directory = StateDirectory(path or Path(tempfile.mkdtemp(prefix="veccluster-test-")).resolve())
        self.desired: Desired | None = None

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runtime.down(self.directory)
        if self._temporary:
            shutil.rmtree(self.directory.path, ignore_errors=True)

    def up(self) -> None:
        """Start, or apply a changed `document`; returns when the cluster is healthy."""
        cluster = VecCluster.parse(self.document)
        before = self.directory.desired() if self.directory.path.is_dir() else None
        port = before.node_ports[0] if before else free_run(cluster.spec.nodes)
        self.desired = runtime.up(self.directory, cluster, port=port, temporary=self._temporary)
        for _ in runtime.wait_until_healthy(self.directory, self.desired, START_TIMEOUT):
            pass

    @property
    def servers(self) -> list[str]:
        """Addresses of all nodes."""
        assert self.desired is not None
        return self.desired.servers

    def client(self, **options: Any) -> Client:
        """A client that knows all nodes."""
        return Client(self.servers, **options)

    def process(self, name: str) -> ProcessStatus:
        """A process (demo-0, etcd-0) as the supervisor sees it."""
        status = self.directory.status()
        assert status is not None
        return next(p for p in status.processes if p.name == name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process; SIGKILL is answered by the supervisor, which starts it again."""
        ref = self.process(name).process
        assert ref is not None, f"{name} does not run"
        ref.signal(number)

    def wait_for(self, name: str, phase: Phase, *, starts: int = 1) -> None:
        """Until the process, started at least `starts` times, is in a phase."""
        wait_until(lambda: (p := self.process(name)).phase is phase and p.starts >= starts, f"{name} to be {phase}")


def wait_until(condition: Any, what: str | Callable[[], str], timeout: float = START_TIMEOUT) -> None:
    """Until the condition holds; polls, since other processes do not tell us. `what` may be found out at the end."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:.0f} s in vain for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def free_run(length: int) -> int:
    """The first of `length` free ports in a row, away from where a person's own cluster would be."""
    return ports.first_free_run(ports.free_internal_ports(1)[0], length)


@functools.cache
def shared() -> LocalCluster:
    """Three healthy nodes, for tests that use collections of their own (`unique_name`) and break nothing."""
    cluster = LocalCluster().__enter__()
    atexit.register(cluster.__exit__, None, None, None)
    return cluster


_numbers = itertools.count(1)


def unique_name(stem: str = "c") -> str:
    """A name that no other test of this run uses."""
    return f"{stem}-{next(_numbers)}"
