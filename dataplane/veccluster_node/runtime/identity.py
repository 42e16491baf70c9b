"""Who a data directory belongs to: the node's id, the incarnation of what is in it (rule 9), and a lock.

The incarnation is made when the directory is; a directory that was lost and made anew can so never be taken for the
one that held the data. Of each replica it is written down that it was begun, before its own directory is made, so that
one that is gone is never taken for one that is new; a replica that was lost, damaged or given up has an incarnation of
its own from then on.
"""

import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import msgspec

from veccluster.decisions.hosting import Disk, Kept
from veccluster.errors import VecClusterError
from veccluster.model.state import Incarnation, Member, NodeId, ShardId

FORMAT = 2
"""Format 1 said nothing of replicas: a directory meant that there was one."""


class WrongDirectory(VecClusterError):
    """The data directory is in use, belongs to another node, or was written by a newer version."""

    slug, title = "wrong-data-directory", "Wrong data directory"


class _Replica(msgspec.Struct, frozen=True):
    incarnation: str
    present: bool


class _Stored(msgspec.Struct, frozen=True):
    format: int
    id: str
    incarnation: str
    replicas: dict[str, _Replica] = {}
    """By shard (`UUID.N`)."""


class Identity:
    """An identity, with the lock that holds as long as the process lives.

    Changes block until they are durable and may come from any thread; those that come together share a write.
    """

    def __init__(self, path: Path, disk: Disk, lock: IO[str]) -> None:
        self.lock = lock
        self._path = path
        self._disk = self._next = disk
        """What is durable, and what will be."""
        self._changes = self._written = 0
        self._changing = threading.Lock()
        self._writing = threading.Lock()

    @property
    def id(self) -> str:
        """The node's id."""
        return self._disk.node

    @property
    def incarnation(self) -> Incarnation:
        """Of the directory as a whole."""
        return self._disk.incarnation

    @property
    def disk(self) -> Disk:
        """What is written down."""
        return self._disk

    def member(self, shard: ShardId) -> Member:
        """This node as a member of the shard."""
        return self._disk.member(shard)

    def overrides(self) -> dict[str, str]:
        """By shard (`UUID.N`), the incarnations that are not the directory's: for the node's registration."""
        disk = self._disk
        return {str(i): k.incarnation for i, k in disk.replicas.items() if k.incarnation != disk.incarnation}

    def begin(self, shard: ShardId) -> None:
        """A replica is about to be made."""
        self._change(lambda now: {**now, shard: Kept(self._next.member(shard).incarnation, present=True)})

    def renew(self, shard: ShardId) -> None:
        """What was here of the shard counts no more: another incarnation, of which nothing is here."""
        self._change(lambda now: {**now, shard: Kept(Incarnation(uuid.uuid4().hex), present=False)})

    def forget(self, collection: str) -> None:
        """The collection with this uuid was dropped, and there will never be another one with it."""
        self._change(lambda now: {i: k for i, k in now.items() if i.collection != collection})

    def _change(self, change: Callable[[Mapping[ShardId, Kept]], Mapping[ShardId, Kept]]) -> None:
        with self._changing:
            self._next = replace(self._next, replicas=change(self._next.replicas))
            self._changes += 1
            mine = self._changes
        with self._writing:
            if mine <= self._written:
                return
            with self._changing:
                newest, count = self._next, self._changes
            _write(self._path, newest)
            self._disk, self._written = newest, count


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
        _write(path, Disk(NodeId(node), Incarnation(uuid.uuid4().hex)))
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        disk = _disk_of(stored)
    except (msgspec.MsgspecError, ValueError) as error:
        raise WrongDirectory(
            f"{path} is damaged ({error}): restore it; without it the data cannot be trusted"
        ) from error
    if stored.format > FORMAT:
        raise WrongDirectory(f"{path} has format {stored.format}, this version reads {FORMAT}: use a newer version")
    if stored.id != node:
        raise WrongDirectory(f"{directory} belongs to node {stored.id}, this is {node}: choose another data directory")
    if stored.format == 1:
        begun = [shard for p in (directory / "shards").glob("*") if (shard := ShardId.parse(p.name))]
        disk = replace(disk, replicas={shard: Kept(disk.incarnation, present=True) for shard in begun})
        _write(path, disk)
    return Identity(path, disk, lock)


def _disk_of(stored: _Stored) -> Disk:
    kept = {_shard(name): Kept(Incarnation(r.incarnation), r.present) for name, r in stored.replicas.items()}
    return Disk(NodeId(stored.id), Incarnation(stored.incarnation), kept)


def _shard(name: str) -> ShardId:
    if (shard := ShardId.parse(name)) is None:
        raise ValueError(f"{name!r} is no shard")
    return shard


def _write(path: Path, disk: Disk) -> None:
    replicas = {str(i): _Replica(k.incarnation, k.present) for i, k in sorted(disk.replicas.items())}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(msgspec.json.encode(_Stored(FORMAT, disk.node, disk.incarnation, replicas)))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
