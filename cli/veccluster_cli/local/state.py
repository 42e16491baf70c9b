"""The state directory of a local cluster: what is wanted, what is, and everything the processes keep.

    DIR/made.json            what was made here (`Made`): it makes a directory a cluster's (`ownership.py`)
    DIR/desired.json         what `up` asked for (`Desired`)
    DIR/status.json          what the supervisor sees (`Status`)
    DIR/supervisor.lock      locked for as long as a supervisor lives
    DIR/up.lock              locked by an `up`, until it has seen the cluster run
    DIR/command.lock         locked by an `up` or `down` that changes what is here
    DIR/config/NODE.json     configuration of a node (0600)
    DIR/data/NAME/           data of a node or etcd member
    DIR/logs/NAME.log

A lock goes with the process that holds it, however that ends, so nothing has to be cleaned up after a crash.
"""

import fcntl
import os
import time
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
LOCK_POLL_SECONDS = 0.02


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What was made for a cluster in a directory that held nothing before, and so what may be deleted with it."""

    format: int
    directories: tuple[str, ...]
    """Those that were not there before, this one and above, outermost first."""
    names: tuple[str, ...]
    """The processes that were ever asked for: each has its data, its configuration and its log."""


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
        """Written by `up`."""
        return self.path / "desired.json"

    @property
    def made_file(self) -> Path:
        """The first file that is written to a directory, and the last that is deleted."""
        return self.path / "made.json"

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

    def made(self) -> Made | None:
        """What was made here; None when no cluster was, even if there is a file of this name."""
        try:
            return msgspec.json.decode(self.made_file.read_bytes(), type=Made)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

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

    def write_made(self, made: Made) -> None:
        """Replace made.json."""
        write_file(self.made_file, msgspec.json.format(msgspec.json.encode(made)))

    @contextmanager
    def lock(self, kind: str, *, patience: float = 0.0) -> Iterator[IO[bytes] | None]:
        """Hold `KIND.lock` for the block: yields the file, or None if somebody else has it for `patience` seconds.

        Raises FileNotFoundError when the directory does not exist, or ceases to while we look.
        """
        path = self.path / f"{kind}.lock"
        deadline = time.monotonic() + patience
        while True:
            with path.open("a+b") as file:
                held = _lock(file, fcntl.LOCK_EX)
                if held and not is_at(file, path):
                    continue  # it was deleted while we waited: what is there now is another file
                if held or time.monotonic() >= deadline:
                    yield file if held else None
                    return
            time.sleep(LOCK_POLL_SECONDS)

    def supervised(self) -> bool:
        """Whether a supervisor lives."""
        try:
            with (self.path / "supervisor.lock").open("rb") as file:
                return not _lock(file, fcntl.LOCK_SH)  # shared: several may look at once, and see no supervisor
        except (FileNotFoundError, NotADirectoryError):
            return False


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


def is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one that is at the path now; FileNotFoundError if none is."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LocalFailure(f"Cannot read {path}, which `veccluster up` wrote: {error}.") from error
