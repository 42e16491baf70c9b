"""A replica's whole state as files, for a replica that needs everything: offered by one, installed by another.

A snapshot is the generations in use, what of the rows is not in them (`partial`: the state may be newer), and CURRENT;
the log of whoever installs it begins behind it, empty. Its sender writes next to nothing: generations never change, so
that a link keeps them. Versions before this one sent all rows as a file, and what they offer is still taken.

What was received is put aside (`incoming/`), and nothing of the replica changes until all of it is there, checked and
durable. Then one rename to `installing/` decides: from there on the snapshot is the replica, however often a crash
interrupts the moving of files (`finish`, first thing when a replica is opened). The stored epoch is a promise of the
replica itself, and stays.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from veccluster import failpoints
from veccluster.decisions.replication.values import Lineage
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster.model.state import Epoch, Seq
from veccluster_node.engine import generations
from veccluster_node.engine.generations import MANIFEST, Current, FileInfo, Shelf
from veccluster_node.engine.partial import PART, complete, write_part
from veccluster_node.engine.records import ROWS, SUSPECT, Snapshots
from veccluster_node.runtime.files import raise_error, sha256, sync_directory, sync_file
from veccluster_node.wal.log import Log

INCOMING = "incoming"
"""Where a receiver puts files; thrown away when the replica is opened."""
OUTGOING = "outgoing"
"""Where exports may be made; thrown away when the replica is opened."""
INSTALLING = "installing"
DOUBT = "doubt"
"""Says why this copy may lack something that was acknowledged; gone when all of it was replaced."""
CURRENT = "CURRENT"
LOG = "log"
GENERATIONS = "generations"
_OVERHEAD = 1.25
"""Of rows in their file, over what they hold."""
KEEP_FREE = 0.05
"""Part of the disk that a snapshot leaves free, where it is made and where it goes."""
_TRIES = 5
"""A list of generations may be replaced while it is being linked, but not that often in a row."""


class Offered(msgspec.Struct, frozen=True):
    """A state of a shard: everything up to `through`, as files by their paths below the replica's directory."""

    through: Seq
    epoch: Epoch
    """That wrote last."""
    lineage: Lineage
    files: dict[str, FileInfo]

    def __post_init__(self) -> None:
        """ValueError for a path that no export names: it comes from another node, and files are written to it."""
        for name in self.files:
            parts = PurePosixPath(name).parts
            fits = name in {ROWS, PART, CURRENT} or (len(parts) == 3 and parts[0] == GENERATIONS)
            if not fits or ".." in parts or "/".join(parts) != name or "\0" in name:
                raise ValueError(f"a snapshot has no file of the name {name!r}")
        if CURRENT not in self.files or (ROWS in self.files) == (PART in self.files):
            raise ValueError(f"a snapshot must hold {CURRENT} and either {PART} or {ROWS}")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(info.size for info in self.files.values())

    @property
    def rows_size(self) -> int:
        """Bytes, about, of the rows that are made of the files when they are there."""
        if PART not in self.files:
            return 0
        made_of = (generations.VECTORS, generations.RECORDS, PART)
        size = sum(info.size for name, info in self.files.items() if PurePosixPath(name).name in made_of)
        return int(_OVERHEAD * size)


# -- who has it


def export(root: Path, into: Path) -> Offered:
    """Make a snapshot of the replica in `root`, which may be in use, in the directory `into`, which must be on the same
    disk (`root / OUTGOING / ...` is a good place); it takes the room of the rows that are in no generation.

    `Unavailable`: not now, since generations are being made anew or the disk has no room. `StorageCorrupt`: something
    here is damaged.
    """
    if (root / SUSPECT).exists():
        raise Unavailable("the rows are about to be made anew")
    files = _link_generations(root, into)
    write_part(root / ROWS, _generations(into), into / PART, keep_free=KEEP_FREE)
    for name in (PART, CURRENT):
        files[name] = FileInfo((into / name).stat().st_size, sha256(into / name))
    through, lineage = _state_of(into / PART)
    return Offered(through, lineage.newest, lineage, files)


def discard(into: Path) -> None:
    """Remove what `export` made."""
    shutil.rmtree(into, ignore_errors=True)


def _link_generations(root: Path, into: Path) -> dict[str, FileInfo]:
    """Link the generations that are in use now, and write a CURRENT that names them."""
    for _ in range(_TRIES):
        discard(into)
        (into / GENERATIONS).mkdir(parents=True)
        names = Shelf(root).current.generations
        (into / CURRENT).write_bytes(msgspec.json.encode(Current(generations=names)))
        try:
            return {path: info for name in names for path, info in _link(root, into, f"{GENERATIONS}/{name}")}
        except FileNotFoundError:
            continue
    raise Unavailable("generations are being made anew")


def _link(root: Path, into: Path, name: str) -> Iterator[tuple[str, FileInfo]]:
    (into / name).mkdir()
    for file in [f for f in (root / name).iterdir() if f.is_file()]:
        (into / name / file.name).hardlink_to(file)
    linked = {file.name for file in (into / name).iterdir()}
    if MANIFEST not in linked or not linked >= (manifest := generations.read_manifest(into / name)).files.keys():
        raise FileNotFoundError(errno.ENOENT, "it is being removed", name)
    generations.verify(into / name, manifest)
    for file_name, info in manifest.files.items():
        yield f"{name}/{file_name}", info
    path = into / name / MANIFEST
    yield f"{name}/{MANIFEST}", FileInfo(path.stat().st_size, sha256(path))


def _generations(root: Path) -> list[Path]:
    """Those that the CURRENT there names, oldest first."""
    return [
        root / GENERATIONS / name
        for name in msgspec.json.decode((root / CURRENT).read_bytes(), type=Current).generations
    ]


def _state_of(rows: Path) -> tuple[Seq, Lineage]:
    snapshots = Snapshots(rows)
    try:
        with snapshots.take() as snapshot:
            return Seq(snapshot.applied_seq), snapshot.lineage()
    finally:
        snapshots.close()


# -- who needs it


def verify(incoming: Path, offered: Offered) -> None:
    """Check that `incoming` holds exactly what was offered, make the whole file of rows of it, and all of it durable,
    so that `stage` need not take long; `StorageCorrupt` names the first file that differs.
    """
    found = {path.relative_to(incoming).as_posix() for path in incoming.rglob("*") if path.is_file()}
    if PART in offered.files:
        found.discard(ROWS)  # made here, of the others
    if wrong := sorted(found ^ offered.files.keys()):
        raise StorageCorrupt(
            f"the received snapshot: {wrong[0]} is {'missing' if wrong[0] not in found else 'unknown'}"
        )
    for name, info in offered.files.items():
        path = incoming / name
        if path.stat().st_size != info.size or sha256(path) != info.sha256:
            raise StorageCorrupt(f"the received snapshot: {name} does not match its checksum")
    if PART in offered.files:
        _check_current(incoming, offered)
        complete(incoming / PART, _generations(incoming), incoming / ROWS)
    if _state_of(incoming / ROWS) != (offered.through, offered.lineage):
        raise StorageCorrupt(f"the received snapshot: {ROWS} is of another state than was offered")
    _sync_tree(incoming)


def _check_current(incoming: Path, offered: Offered) -> None:
    names = {name.split("/")[1] for name in offered.files if name.startswith(f"{GENERATIONS}/")}
    if {path.name for path in _generations(incoming)} != names:
        raise StorageCorrupt(f"the received snapshot: {CURRENT} names other generations than there are")


def stage(root: Path, offered: Offered) -> None:
    """Decide that what is in `incoming`, verified, is the replica in `root` from now on; durable when it returns.

    The replica must then be opened again. `Unavailable`: another snapshot waits for that already.
    """
    incoming, installing = root / INCOMING, root / INSTALLING
    if installing.exists():
        raise Unavailable("another snapshot waits to be installed already")
    (incoming / GENERATIONS).mkdir(exist_ok=True)
    shutil.rmtree(incoming / LOG, ignore_errors=True)
    Log.open(incoming / LOG, start=offered.through + 1).close()
    _sync_tree(incoming)
    failpoints.hit("snapshot.stage")
    incoming.rename(installing)
    sync_directory(root)
    failpoints.hit("snapshot.staged")


def finish(root: Path) -> bool:
    """Put a staged snapshot in the place of what was there, if there is one, and say whether; for a replica that is not
    open. After a crash it goes on where it ended: what was moved is not in `installing` any more.
    """
    for leftover in (INCOMING, OUTGOING):
        shutil.rmtree(root / leftover, ignore_errors=True)
    installing = root / INSTALLING
    if not installing.exists():
        return False
    for name in (LOG, GENERATIONS, ROWS, CURRENT):
        if (installing / name).exists():
            _replace(root, installing, name)
    for doubt in (SUSPECT, DOUBT):
        (root / doubt).unlink(missing_ok=True)
    failpoints.hit("snapshot.finish")
    shutil.rmtree(installing)
    sync_directory(root)
    return True


def _replace(root: Path, installing: Path, name: str) -> None:
    """Move one entry; what was there goes first, for good: rows must not meet the write-ahead log of others."""
    failpoints.hit("snapshot.replace")
    for old in root.glob(f"{name}*") if name == ROWS else [root / name]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    sync_directory(root)
    failpoints.hit("snapshot.removed")
    (installing / name).rename(root / name)
    sync_directory(root)
    sync_directory(installing)


def _sync_tree(path: Path) -> None:
    for directory, _, names in os.walk(path, topdown=False, onerror=raise_error):
        for name in names:
            sync_file(Path(directory) / name)
        sync_directory(Path(directory))
