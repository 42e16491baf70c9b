"""What `up` and `down` do: write down what is wanted, start or wake the supervisor, wait for what is to come."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from veccluster.client import Client
from veccluster.decisions.local import Phase, Role
from veccluster.errors import VecClusterError
from veccluster.model.spec import VecCluster
from veccluster_cli.local import LocalFailure, changes, ownership, ports, processes, supervisor
from veccluster_cli.local.state import Desired, StateDirectory, Status

POLL_SECONDS = 0.1
LETTING_GO_SECONDS = 2.0
"""A process that was killed may take a moment to let go of its port."""
SETTLING_SECONDS = 10.0
"""A cluster whose processes are all ready and that is not healthy by then needs a person, who needs it running."""
TRIES = 4
"""Starts of one process that may fail in a row before `up` gives up waiting."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far `up` is, in words; `done` of `total` processes are ready."""

    done: int
    total: int
    text: str
    issues: tuple[str, ...] = ()


@contextmanager
def starting(
    directory: StateDirectory,
    cluster: VecCluster,
    *,
    port: int | None = None,
    temporary: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Desired]:
    """Have the cluster run as its file says; the block waits for it. If that fails, what was started is stopped.

    Nobody else can do the same with this directory meanwhile. Raises InvalidSpec for what cannot be run or changed
    here, LocalFailure when the machine is in the way. `temporary`: the cluster stops, and its data goes, when this
    process ends, however it ends.
    """
    changes.require_supported(cluster)
    with ownership.claimed(directory, temporary=temporary) as claim:
        ran_before = directory.supervised()
        try:
            with _command(directory):
                claim.require()
                desired = _apply(directory, cluster, port, temporary)
            yield desired
        except BaseException:
            if not ran_before and claim.holds and down(directory):
                say("Stopped what had been started.")
            raise


def up(directory: StateDirectory, cluster: VecCluster, *, port: int | None = None, temporary: bool = False) -> Desired:
    """As `starting`, without waiting until it runs (`wait_until_healthy`)."""
    with starting(directory, cluster, port=port, temporary=temporary) as desired:
        return desired


def wait_until_healthy(directory: StateDirectory, desired: Desired, timeout: float) -> Iterator[Step]:
    """Yield progress until every process is ready and the cluster calls itself healthy; LocalFailure if that fails.

    What processes that are all ready cannot mend by themselves is no failure: the last step has the cluster's issues.
    """
    deadline = time.monotonic() + timeout
    settled = float("inf")
    total = len(desired.members) + len(desired.node_ports)
    last = Step(-1, total, "")
    with Client(desired.servers, timeout=2.0) as client:
        while True:
            status = directory.status()
            step = _progress(status, desired, total)
            if step.done == total:
                settled = min(settled, time.monotonic() + SETTLING_SECONDS)
                health, issues = _health(client)
                if health == "healthy" or (issues and time.monotonic() > min(settled, deadline)):
                    yield Step(total, total, health, issues)
                    return
                step = Step(total, total, f"waiting for the cluster to be healthy ({health})")
            if step != last:
                yield (last := step)
            _check(directory, status, desired)
            if time.monotonic() > deadline:
                raise LocalFailure(f"Not healthy after {timeout:.0f} s: {step.text}. Logs: {directory.path / 'logs'}")
            time.sleep(POLL_SECONDS)


def require_healthy(reached: Step) -> None:
    """Raise LocalFailure if `wait_until_healthy` came no further than to a cluster with issues."""
    if reached.issues:
        raise LocalFailure(f"The cluster runs and is {reached.text}: {' '.join(reached.issues)}")


def down(directory: StateDirectory) -> bool:
    """Stop everything gracefully; data stays. Returns whether anything ran."""
    if not ownership.is_clusters(directory):
        return False
    with _command(directory):
        return _stop(directory)


def delete(directory: StateDirectory) -> list[Path]:
    """Stop everything, and delete what was made for the cluster; returns what is left, being links elsewhere."""
    if not ownership.is_clusters(directory):
        return []
    with _command(directory):
        _stop(directory)
        return ownership.delete(directory)


def _apply(directory: StateDirectory, cluster: VecCluster, port: int | None, temporary: bool) -> Desired:
    """The part of `up` that nobody else may do at the same time."""
    old = directory.desired()
    running = directory.supervised()
    desired = changes.desired_of(cluster, old, port, running)
    changes.require_possible(old, desired)
    if not running:
        supervisor.end_orphans(directory)
    ours = set(old.node_ports) if old and running else set()
    ports.require_free((p for p in desired.node_ports if p not in ours), LETTING_GO_SECONDS if old else 0.0)
    if not running:
        desired = msgspec.structs.replace(desired, members=changes.with_free_ports(desired.members))
    ownership.note(directory, ownership.names_of(desired))
    directory.write_desired(desired)
    if running:
        _wake(directory)
    else:
        _start_supervisor(directory, temporary)
    return desired


def _start_supervisor(directory: StateDirectory, temporary: bool) -> None:
    command = [sys.executable, "-m", "veccluster_cli.local.supervisor", str(directory.path)]
    if temporary:
        command += ["--for", str(os.getpid())]
    directory.status_file.unlink(missing_ok=True)
    started = processes.start_detached(command, directory.supervisor_log)
    try:
        _await_first_status(directory, started)
    except BaseException:  # also when interrupted: nobody could find it through its status yet
        started.terminate()
        started.wait()
        raise


def _await_first_status(directory: StateDirectory, started: subprocess.Popen[bytes]) -> None:
    while directory.status() is None:
        if started.poll() is not None:
            reason = processes.last_line(directory.supervisor_log)
            raise LocalFailure(f"The supervisor ended at once: {reason}. Log: {directory.supervisor_log}")
        time.sleep(POLL_SECONDS / 4)


def _wake(directory: StateDirectory) -> None:
    status = directory.status()
    if status is not None:
        status.supervisor.signal(signal.SIGHUP)


def _stop(directory: StateDirectory) -> bool:
    status = directory.status()
    if not directory.supervised():
        left = [p.process for p in status.processes if p.process and p.process.alive()] if status else []
        processes.end_all(left, supervisor.GRACE_SECONDS)
        return bool(left)
    if status is not None:
        status.supervisor.signal(signal.SIGTERM)
    deadline = time.monotonic() + 2 * supervisor.GRACE_SECONDS + 5
    while directory.supervised() or (status is not None and status.supervisor.alive()):
        if time.monotonic() > deadline:
            if status is not None:
                status.supervisor.signal(signal.SIGKILL)
            raise LocalFailure(f"The supervisor did not stop and was killed. Log: {directory.supervisor_log}")
        time.sleep(POLL_SECONDS / 2)
    return True


@contextmanager
def _command(directory: StateDirectory) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(directory.lock("command"))
        except FileNotFoundError as error:
            raise ownership.deleted(directory) from error
        if mine is None:
            raise LocalFailure(
                f"Another `veccluster up` or `down` is at work in {directory.path}; try again when it is done."
            )
        yield


def _progress(status: Status | None, desired: Desired, total: int) -> Step:
    if status is None or status.generation < desired.generation:
        return Step(0, total, "starting")
    waiting = [p for p in status.processes if p.phase is not Phase.ready]
    done = len(status.processes) - len(waiting)
    for role, words in ((Role.metadata, "etcd"), (Role.node, "nodes")):
        names = [p.name for p in waiting if p.role is role]
        if names:
            return Step(done, total, f"waiting for {words}: {', '.join(names)}")
    return Step(done, total, "starting nodes" if done < total else "ready")


def _health(client: Client) -> tuple[str, tuple[str, ...]]:
    try:
        info = client.cluster()
    except VecClusterError as error:
        return error.detail, ()
    return info.health, tuple(info.issues)


def _check(directory: StateDirectory, status: Status | None, desired: Desired) -> None:
    """Raise LocalFailure as soon as waiting longer cannot help."""
    if not directory.supervised():
        raise LocalFailure(
            f"The supervisor has ended: {processes.last_line(directory.supervisor_log)}. "
            f"Log: {directory.supervisor_log}"
        )
    if status is None or status.generation < desired.generation:
        return
    for process in status.processes:
        if process.given_up or process.short_runs >= TRIES:
            raise LocalFailure(
                f"{process.name} cannot start (exit code {process.exit_code}): {process.message}. "
                f"Its log: {directory.log_of(process.name)}"
            )
