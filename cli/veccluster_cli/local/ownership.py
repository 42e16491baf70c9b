"""Whose a directory is: `up` writes to an empty one or a cluster's, and only what was made there is ever deleted.

A person may name any directory: the working directory, a home, a mounted disk, `/`. So the first thing that is written
is `made.json`, to a directory that holds nothing; what it names is all that is deleted with the cluster.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from veccluster_cli.local import LocalFailure
from veccluster_cli.local.plan import node_name
from veccluster_cli.local.state import FORMAT, Desired, Made, StateDirectory, is_at

PARTS = ("config", "data", "logs")
CLAIM = "up"
CLAIM_LOCK = f"{CLAIM}.lock"
"""The first file in a directory and the last: who finds it there and holds it sees all of the rest, or nothing."""
LOCKS = ("supervisor.lock", "command.lock", CLAIM_LOCK)
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Claim:
    """That nobody else brings up a cluster in this directory."""

    directory: StateDirectory
    lock: IO[bytes]

    @property
    def holds(self) -> bool:
        """Whether the directory is still the one that was claimed: `down` may have deleted it meanwhile."""
        try:
            return is_at(self.lock, self.directory.path / CLAIM_LOCK)
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Raise LocalFailure if it is not."""
        if not self.holds:
            raise deleted(self.directory)


def deleted(directory: StateDirectory) -> LocalFailure:
    """The error of a command under which `down` has deleted the directory."""
    return LocalFailure(f"{directory.path} has just been deleted; try again.")


@contextmanager
def claimed(directory: StateDirectory, *, temporary: bool = False) -> Iterator[Claim]:
    """The directory for the block, made if it is not there; LocalFailure if it is not to be had.

    A block that fails before it has written what is wanted leaves nothing behind. `temporary`: an empty directory that
    is there already was made for this cluster.
    """
    with ExitStack() as stack:
        with _writing_to(directory):
            claim = _claim(directory, stack, temporary=temporary)
        try:
            yield claim
        finally:
            if claim.holds and directory.desired() is None:
                delete(directory)


def is_clusters(directory: StateDirectory) -> bool:
    """Whether a cluster was made in the directory; older versions marked it with nothing but what was wanted."""
    return directory.made() is not None or _made_before_marks(directory) is not None


def note(directory: StateDirectory, names: Iterable[str]) -> None:
    """Write down that processes of these names keep things here, before they do."""
    made = directory.made()
    assert made is not None, "names are noted in a directory that was claimed"
    directory.write_made(msgspec.structs.replace(made, names=tuple(sorted({*made.names, *names}))))


def names_of(desired: Desired) -> list[str]:
    """The processes of a cluster."""
    nodes = [node_name(desired.name, number) for number in range(len(desired.node_ports))]
    return [*(member.name for member in desired.members), *nodes]


def delete(directory: StateDirectory) -> list[Path]:
    """Delete what was made for the cluster, and nothing else; returns what is left of it, being links elsewhere.

    Of directories those go that were made, once they are empty.
    """
    made = directory.made() or _made_before_marks(directory)
    if made is None:
        return []
    left = [path for path in _files_of(directory, made) if not _remove(path, directory.path)]
    for part in PARTS:
        _remove_empty(directory.path / part)
    for name in ("status.json", "desired.json", "made.json"):
        for unfinished in directory.path.glob(f".{name}.*"):  # of a command that was killed
            unfinished.unlink(missing_ok=True)
        (directory.path / name).unlink(missing_ok=True)
    for name in LOCKS:
        (directory.path / name).unlink(missing_ok=True)
    for path in reversed(made.directories):
        _remove_empty(Path(path))
    return left


def _claim(directory: StateDirectory, stack: ExitStack, *, temporary: bool) -> Claim:
    while True:
        try:
            _require_ours(directory, locked=False)
            made = _make_directories(directory.path)
            lock = stack.enter_context(directory.lock(CLAIM))
            if lock is None:
                raise LocalFailure(f"Another `veccluster up` is at work in {directory.path}.")
            _require_ours(directory, locked=True)
            _mark(directory, (str(directory.path),) if temporary else made)
        except FileNotFoundError:  # whoever had it has deleted it just now
            stack.close()
            continue
        return Claim(directory, lock)


def _require_ours(directory: StateDirectory, *, locked: bool) -> None:
    if is_clusters(directory):
        return
    for outer in directory.path.parents:
        if directory.path.relative_to(outer).parts[0] in PARTS and is_clusters(StateDirectory(outer)):
            raise LocalFailure(f"{directory.path} is inside the cluster in {outer}. Choose another --data-dir.")
    found = sorted(path.name for path in directory.path.iterdir()) if directory.path.exists() else []
    if not locked and CLAIM_LOCK in found:
        return  # somebody is at work here, or was killed at it: the lock tells
    found = [name for name in found if name not in LOCKS and not name.startswith(".made.json.")]
    if found:
        names = ", ".join(found[:SHOWN_NAMES]) + (", ..." if len(found) > SHOWN_NAMES else "")
        raise LocalFailure(
            f"{directory.path} is neither empty nor a cluster's (it holds {names}). "
            "Choose another place with --data-dir, such as a new directory in it."
        )


def _mark(directory: StateDirectory, made: Sequence[str]) -> None:
    if directory.made() is None:
        directory.write_made(_made_before_marks(directory) or Made(format=FORMAT, directories=tuple(made), names=()))
    for part in PARTS:
        (directory.path / part).mkdir(mode=0o700, exist_ok=True)


def _made_before_marks(directory: StateDirectory) -> Made | None:
    """What a version without marks made."""
    try:
        desired = msgspec.json.decode(directory.desired_file.read_bytes(), type=Desired)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    return Made(format=FORMAT, directories=(), names=tuple(sorted(names_of(desired))))


def _make_directories(path: Path) -> tuple[str, ...]:
    """Make what is missing of the path; returns what that was, outermost first."""
    made = []
    for place in reversed([place for place in (path, *path.parents) if not place.exists()]):
        try:
            place.mkdir(mode=0o700 if place == path else 0o777)
        except FileExistsError:  # somebody else made it just now: then it is theirs
            if place.is_symlink() and not place.exists():
                raise LocalFailure(f"{place} is a link to what is not there. Choose another --data-dir.") from None
        else:
            made.append(str(place))
    return tuple(made)


@contextmanager
def _writing_to(directory: StateDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalFailure(
            f"Cannot write to {directory.path}: {error.strerror}. Choose another place with --data-dir."
        ) from error


def _files_of(directory: StateDirectory, made: Made) -> Iterator[Path]:
    yield directory.supervisor_log
    yield directory.supervisor_log.with_name("supervisor.log.1")
    for name in made.names:
        yield directory.data_of(name)
        yield directory.config_of(name)
        yield directory.log_of(name)
        yield directory.log_of(name).with_name(f"{name}.log.1")


def _remove(path: Path, root: Path) -> bool:
    """Delete a file or a directory, unless a link leads elsewhere; whether nothing of it is left."""
    if path.is_symlink() or not path.resolve().is_relative_to(root.resolve()):
        return not path.exists()
    while path.is_dir():
        with suppress(FileNotFoundError):  # something else deleted a file in it meanwhile: once more
            shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return True


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
