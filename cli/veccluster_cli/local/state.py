"""The state directory of a local cluster: what is wanted, what is, and everything the processes keep.

    DIR/desired.json         what `up` asked for (`Desired`)
    DIR/status.json          what the supervisor sees (`Status`)
    DIR/supervisor.lock      locked for as long as a supervisor lives
    DIR/command.lock         locked by an `up` or `down` at work
    DIR/config/NODE.json     configuration of a node (0600)
    DIR/data/NAME/           data of a node or etcd member
    DIR/logs/NAME.log

A lock goes with the process that holds it, however that ends, so nothing has to be cleaned up after a crash.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from veccluster.decisions.local import Phase, Role
from veccluster_cli.local import LocalFailure
from veccluster_cli.local.etcd import Binary, Member
from veccluster_cli.local.ports import HOST
from veccluster_cli.local.processes import ProcessRef

T = TypeVar("T")
FORMAT = 1
STATE_ROOT = ".veccluster"


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` asked for."""

    format: int = FORMAT
    generation: int
    """Goes up with each `up`: processes that had been given up are tried again."""
    name: str
    namespace: str
    spec: Mapping[str, Any]
    """The `spec` of the VecCluster file as JSON."""
    node_ports: tuple[int, ...]
    zones: tuple[str, ...] = ()
    etcd: Binary | None = None
    members: tuple[Member, ...] = ()
    """The etcd servers that are ours; none when the file names endpoints of its own."""
    endpoints: tuple[str, ...] = ()

    @property
    def servers(self) -> list[str]:
        """Where clients reach the nodes."""
        return [f"http://{HOST}:{port}" for port in self.node_ports]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One child as the supervisor sees it."""

    name: str
    role: Role
    phase: Phase
    address: str
    process: ProcessRef | None = None
    """None when it does not run."""
    starts: int = 0
    short_runs: int = 0
    exit_code: int | None = None
    given_up: bool = False
    """It said that starting it again cannot help."""
    message: str = ""
    """The last line of its log, when it ended by itself."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor sees."""

    supervisor: ProcessRef
    generation: int
    """Of the `Desired` that it is working on."""
    stopping: bool = False
    processes: tuple[ProcessStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The directory of one local cluster; the path is absolute."""

    path: Path

    @property
    def desired_file(self) -> Path:
        """Its existence is what makes a directory a cluster's."""
        return self.path / "desired.json"

    @property
    def status_file(self) -> Path:
        """Written by the supervisor."""
        return self.path / "status.json"

    @property
    def supervisor_log(self) -> Path:
        """The log of the supervisor itself."""
        return self.log_of("supervisor")

    def log_of(self, name: str) -> Path:
        """The log of a process."""
        return self.path / "logs" / f"{name}.log"

    def config_of(self, name: str) -> Path:
        """The configuration of a node."""
        return self.path / "config" / f"{name}.json"

    def data_of(self, name: str) -> Path:
        """The data of a node or etcd member."""
        return self.path / "data" / name

    def create(self) -> None:
        """Make the directories, for this user alone; LocalFailure when that is not possible."""
        try:
            for path in (self.path, *(self.path / part for part in ("config", "data", "logs"))):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise LocalFailure(
                f"Cannot write to {self.path}: {error.strerror}. Choose another place with --data-dir."
            ) from error

    def desired(self) -> Desired | None:
        """What `up` asked for last; None when nobody did."""
        found = _read(self.desired_file, Desired)
        if found is not None and found.format != FORMAT:
            raise LocalFailure(
                f"{self.desired_file} was written by another version of veccluster (format {found.format}, this one "
                f"knows {FORMAT}). Use that version, or start afresh in another --data-dir."
            )
        return found

    def status(self) -> Status | None:
        """What the supervisor wrote last, which may be one that is gone; None when there never was one."""
        return _read(self.status_file, Status)

    def write_desired(self, desired: Desired) -> None:
        """Replace desired.json."""
        write_file(self.desired_file, msgspec.json.format(msgspec.json.encode(desired)))

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        write_file(self.status_file, msgspec.json.encode(status))

    @contextmanager
    def lock(self, kind: str) -> Iterator[bool]:
        """Hold `KIND.lock` for the block, if nobody else does: yields whether it is held. The directory must exist."""
        with (self.path / f"{kind}.lock").open("a+b") as file:
            yield _lock(file)

    def supervised(self) -> bool:
        """Whether a supervisor lives."""
        if not (self.path / "supervisor.lock").exists():
            return False
        with self.lock("supervisor") as free:
            return not free

    def delete(self) -> None:
        """Delete everything of the cluster, and the directory when nothing else is in it; nothing there is fine."""
        for part in ("config", "data", "logs"):
            shutil.rmtree(self.path / part, ignore_errors=True)
        for name in ("status.json", "supervisor.lock", "command.lock", "desired.json"):
            (self.path / name).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


def default_directory(name: str, base: Path | None = None) -> StateDirectory:
    """Where a cluster keeps its state unless told otherwise: `.veccluster/NAME` in the working directory."""
    return StateDirectory((base or Path.cwd()) / STATE_ROOT / name)


def known_directories(base: Path | None = None) -> list[StateDirectory]:
    """The clusters of the working directory, or of the nearest directory above that has some."""
    here = base or Path.cwd()
    for place in (here, *here.parents):
        found = sorted((place / STATE_ROOT).glob("*/desired.json"))
        if found:
            return [StateDirectory(file.parent) for file in found]
    return []


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, readable by this user alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - mode
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LocalFailure(
            f"Cannot read {path}: {error}. If nothing of this cluster is needed, delete {path.parent}."
        ) from error
