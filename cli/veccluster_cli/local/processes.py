"""Processes of this machine: start one that dies with us, recognise one again, end it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import psutil

LARGEST_LOG = 10 * 1024 * 1024
"""Bytes at which the log of a process is set aside (as `.1`) when the process starts again."""


class ProcessRef(msgspec.Struct, frozen=True):
    """A process beyond doubt: pids are used again, a pid with its start time is not."""

    pid: int
    started: float
    """As psutil's `create_time`: seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> "ProcessRef | None":
        """The process that has this pid now."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < 1.0
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def tied(command: Sequence[str]) -> list[str]:
    """The command, made to die with this process."""
    launcher = Path(__file__).with_name("launch.py")
    return [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *command]


def start_detached(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon: in a session of its own, so that the terminal's Ctrl-C does not reach it."""
    with open_log(log) as output:
        return subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )


def open_log(path: Path) -> "subprocess.IO[bytes]":  # type: ignore[name-defined]
    """The log of a process, to append to."""
    if path.exists() and path.stat().st_size > LARGEST_LOG:
        path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def last_words(log: Path) -> str:
    """The last line of a log for a person: of a structured one the event and what belongs to it."""
    line = last_line(log)
    try:
        record = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return line
    if not isinstance(record, dict):
        return line
    event = str(record.pop("event", record.pop("msg", "")))
    details = ", ".join(f"{k}={v}" for k, v in record.items() if k not in {"level", "timestamp", "ts", "caller"})
    return f"{event} ({details})" if details else event


def end_all(processes: Iterable[ProcessRef], grace: float) -> None:
    """End processes that are not our children: SIGTERM, and SIGKILL for what is still there after `grace` seconds."""
    found = []
    for ref in processes:
        if ref.alive():
            found.append(psutil.Process(ref.pid))
            ref.signal(signal.SIGTERM)
    _, stubborn = psutil.wait_procs(found, timeout=grace)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=grace)
