"""Files that are there whole or not at all, and how to know that they are unchanged."""

import errno
import hashlib
import os
import sqlite3
import time
from pathlib import Path

from veccluster.errors import StorageCorrupt, Unavailable

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_no_space(error: BaseException | None) -> bool:
    """Whether something failed since the disk (or our part of it) is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def unreadable(what: str, error: OSError) -> Unavailable:
    """What to say of a file that cannot be read: it is damaged, unless this process only has too many files open."""
    kind = Unavailable if error.errno in _EXHAUSTED else StorageCorrupt
    return kind(f"{what} cannot be read ({reason(error)})")


def reason(error: BaseException) -> str:
    """Why something failed, in a few words for a person: no path, no number, one line."""
    if is_no_space(error):
        return "no space left on the disk"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(said.split()) or type(error).__name__
    return words[:1].lower() + words[1:].rstrip(".")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that they are there after a crash."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def sync_file(path: Path) -> None:
    """Make the contents of a closed file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that after a crash there is the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sha256(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(path: Path, suffix: str) -> list[Path]:
    """The files in a directory whose names end so, in order.

    An OSError is raised: to `Path.glob` (of Python 3.13) what cannot be read for want of a file handle is empty.
    """
    return sorted(p for p in path.iterdir() if p.name.endswith(suffix))


def raise_error(error: OSError) -> None:
    """For `os.walk`, which else passes over what it cannot read."""
    raise error


def disk_usage(path: Path) -> float:
    """How full the disk under `path` is for us, from 0 to 1, as df counts."""
    stat = os.statvfs(path)
    used = stat.f_blocks - stat.f_bfree
    return used / max(1, used + stat.f_bavail)


class TreeSize:
    """Bytes of all files below a path, as they were not long ago: a walk takes too long to be made for whoever asks."""

    def __init__(self, path: Path, *, every: float = 5.0) -> None:
        """Nothing is known before the first look, and at most one is taken every so many seconds."""
        self.bytes = 0
        self._path = path
        self._every = every
        self._due = 0.0

    def look(self) -> bool:
        """Walk, if it is time for that, and say whether it was; blocks."""
        if is_due := time.monotonic() >= self._due:
            self.bytes = tree_size(self._path)
            self._due = time.monotonic() + self._every
        return is_due


def tree_size(path: Path) -> int:
    """Bytes of all files below `path`; files that go away meanwhile count as gone."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
