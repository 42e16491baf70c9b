"""Start, find and kill processes that outlive the command which started them.

Every daemon carries a mark in its environment, which its children inherit. So whatever a crash left behind is found
without a pid file, and nothing else is ever killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

MARK = "VECCLUSTER_E2E_PROCESS"


class HarnessError(Exception):
    """What stopped the harness, in words for the person who runs it."""


class CommandFailed(HarnessError):
    """A command exited with something else than 0."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said
        """All that it printed."""


def run(
    *command: str | Path,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 900,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command and return what it printed; its failure says all that it printed."""
    arguments = [str(word) for word in command]
    done = subprocess.run(
        arguments, input=stdin, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd, check=False
    )
    if check and done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise CommandFailed(f"`{shlex.join(arguments)}` exited with {done.returncode}:\n{said[-4000:]}", said)
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise HarnessError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(0.1)


def start(component: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a daemon that goes on when we end, and return its pid."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **(env or {}), MARK: component},
        )
    return process.pid


def marked(component: str = "") -> list[int]:
    """The living processes of one component, or of the whole cluster; for containerd its shims count too."""
    wanted = f"{MARK}={component}"
    found = []
    for pid, directory in _processes():
        with contextlib.suppress(OSError):
            environment = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
            if any(entry == wanted if component else entry.startswith(wanted) for entry in environment):
                found.append(pid)
    return found


def in_network(namespace: Path) -> list[int]:
    """The processes in a network namespace."""
    with contextlib.suppress(OSError):
        inode = namespace.stat().st_ino
        return [pid for pid, directory in _processes() if _network(directory) == inode]
    return []


def in_cgroup(directories: Iterable[Path]) -> list[int]:
    """The processes in these cgroups and all below them."""
    pids: set[int] = set()
    for directory in directories:
        for file in directory.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in file.read_text().split())
    return sorted(pids)


def kill(find: Callable[[], Iterable[int]], timeout: float = 20) -> None:
    """Kill what `find` finds until it finds nothing more; a process may fork while we look."""
    deadline = time.monotonic() + timeout
    while pids := [pid for pid in find() if pid > 1 and pid != os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise HarnessError(f"processes {pids} do not die")
        time.sleep(0.05)


def _processes() -> Iterator[tuple[int, Path]]:
    """Every process but zombies, which are dead already."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if not re.search(r"^State:\s+[ZX]", (directory / "status").read_text(), re.MULTILINE):
                    yield int(directory.name), directory


def _network(process: Path) -> int:
    with contextlib.suppress(OSError):
        return (process / "ns" / "net").stat().st_ino
    return 0
