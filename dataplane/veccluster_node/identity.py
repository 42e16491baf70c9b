"""Who a data directory belongs to: the node's id and the incarnation of what is in it (rule 9), and a lock.

The incarnation is made when the directory is; a directory that was lost and made anew can so never be taken for the
one that held the data.
"""

import fcntl
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from veccluster.errors import VecClusterError

FORMAT = 1


class WrongDirectory(VecClusterError):
    """The data directory is in use, belongs to another node, or was written by a newer version."""

    slug, title = "wrong-data-directory", "Wrong data directory"


class _Stored(msgspec.Struct, frozen=True):
    format: int
    id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity, with the lock that holds as long as the process lives."""

    id: str
    incarnation: str
    lock: IO[str]


def claim(directory: Path, node: str) -> Identity:
    """Lock the directory for this process and read its identity, or write one into an empty directory."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WrongDirectory(f"another process uses {directory}; stop it, or choose another data directory") from error
    path = directory / "node.json"
    if not path.exists():
        if any((directory / "shards").glob("*")):
            raise WrongDirectory(f"{directory} has shards but no node.json: restore that file, or empty the directory")
        _write(path, _Stored(FORMAT, node, uuid.uuid4().hex))
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except msgspec.MsgspecError as error:
        raise WrongDirectory(
            f"{path} is damaged ({error}): restore it; without it the data cannot be trusted"
        ) from error
    if stored.format != FORMAT:
        raise WrongDirectory(f"{path} has format {stored.format}, this version reads {FORMAT}: use a newer version")
    if stored.id != node:
        raise WrongDirectory(f"{directory} belongs to node {stored.id}, this is {node}: choose another data directory")
    return Identity(node, stored.incarnation, lock)


def _write(path: Path, stored: _Stored) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(stored))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
