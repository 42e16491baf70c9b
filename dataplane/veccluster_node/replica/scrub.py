"""Read what a replica has on its disk, slowly, to find what has gone bad before somebody needs it.

Rows are looked at range by range, each in one short read transaction, so that nothing holds up the writer or the
checkpoint: every row against its checksums, its id against the index, all of them against the range's running digest.
The log and the generations are read against the checksums that they were written with. Nothing is mended here.
"""

import hashlib
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from veccluster.decisions.integrity import RANGE
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster_node.engine import generations
from veccluster_node.engine.digests import Checked, sum_of
from veccluster_node.engine.records import Snapshots, record_crc, vector_crc
from veccluster_node.runtime.files import unreadable
from veccluster_node.wal.log import Log

CHECK_WHOLE_BELOW = 64 << 20
"""SQLite's own check of a file is one long read; only small files are read so."""
_BLOCK = 1 << 18
_SHORTEST = 0.01
"""Seconds that are worth waiting."""
_END = (1 << 63) - 1


class Stopped(Unavailable):
    """The replica is being closed, or looked at by somebody else."""


class Pace:
    """Keeps reading below a rate, and ends it when `stopped` is set."""

    def __init__(self, rate: float, stopped: threading.Event, read: Callable[[int], None] = lambda _: None) -> None:
        """`rate` is in bytes a second; `read` is told of every byte."""
        self._rate = rate
        self._stopped = stopped
        self._read = read
        self._owed = 0
        self._free_at = time.monotonic()

    def spend(self, amount: int) -> None:
        """Wait until so many bytes may have been read; `Stopped` when it is to end."""
        self._read(amount)
        self._owed += amount
        if self._owed < self._rate * _SHORTEST and not self._stopped.is_set():
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + self._owed / self._rate
        self._owed = 0
        if self._stopped.wait(max(0.0, self._free_at - now)):
            raise Stopped("the look at the disk was ended")


def rows(path: Path, pace: Pace) -> None:
    """Check the rows in the file at `path`; `StorageCorrupt` says what is wrong."""
    snapshots = Snapshots(path)
    try:
        if path.stat().st_size <= CHECK_WHOLE_BELOW:
            _check_whole(snapshots, path, pace)
        number: int | None = -1
        while number is not None:
            with snapshots.take() as snapshot:
                try:
                    number, size = _check_next(snapshot.connection, path.name, number)
                except (TypeError, AttributeError, struct.error) as error:
                    raise StorageCorrupt(f"{path.name} is damaged: a value is of another type ({error})") from error
            pace.spend(size)
    finally:
        snapshots.close()


def _check_whole(snapshots: Snapshots, path: Path, pace: Pace) -> None:
    pace.spend(path.stat().st_size)
    with snapshots.take() as snapshot:
        (said,) = snapshot.connection.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise StorageCorrupt(f"{path.name} is damaged: {said}")


def _check_next(db: sqlite3.Connection, name: str, after: int) -> tuple[int | None, int]:
    """Check the range behind `after` that has rows, or should; which it was, and how many bytes they took."""
    start = (after + 1) * RANGE
    queries = ("SELECT min(seq) FROM records WHERE seq >= ?", "SELECT min(seq) FROM vectors WHERE seq >= ?")
    firsts = [db.execute(query, (start,)).fetchone()[0] for query in queries]
    found = [first // RANGE for first in firsts if first is not None]
    (said,) = db.execute("SELECT min(range) FROM digests WHERE range > ?", (after,)).fetchone()
    number = min([*found, *([] if said is None else [said])], default=None)
    if number is None:
        return None, 0
    between = (number * RANGE, min((number + 1) * RANGE, _END) - 1)
    checked, size = _check_rows(db, name, between)
    kept = db.execute("SELECT rows, value FROM digests WHERE range=?", (number,)).fetchone() or (0, 0)
    if sum_of(checked) != (kept[0], kept[1] & ((1 << 64) - 1)):
        raise StorageCorrupt(
            f"{name} is damaged: the {len(checked)} rows of seqs {between[0]} to {between[1]} are not the "
            f"{kept[0]} that were written"
        )
    return number, size


def _check_rows(db: sqlite3.Connection, name: str, between: tuple[int, int]) -> tuple[list[Checked], int]:
    crcs: dict[int, int] = {}
    ids: dict[str, int] = {}
    size = 0
    for seq, id_, text, crc in db.execute(
        "SELECT seq, id, metadata, crc FROM records WHERE seq BETWEEN ? AND ?", between
    ):
        metadata = text.encode()
        if crc != record_crc(seq, id_, metadata):
            raise StorageCorrupt(f"{name} is damaged: the row of seq {seq} does not match its checksum")
        crcs[seq], ids[id_] = crc, seq
        size += len(metadata) + len(id_) + 24
    for id_, seq in ids.items():
        if db.execute(
            "SELECT seq FROM records INDEXED BY sqlite_autoindex_records_1 WHERE id=?", (id_,)
        ).fetchone() != (seq,):
            raise StorageCorrupt(f"{name} is damaged: the index does not lead to the row of seq {seq}")
    checked: list[Checked] = []
    for seq, vector, crc in db.execute("SELECT seq, vector, crc FROM vectors WHERE seq BETWEEN ? AND ?", between):
        if seq not in crcs or crc != vector_crc(seq, vector):
            raise StorageCorrupt(f"{name} is damaged: the vector of seq {seq} does not match its checksum")
        checked.append((seq, crcs[seq], crc))
        size += len(vector) + 24
    if len(checked) != len(crcs):
        missing = min(crcs.keys() - {seq for seq, _, _ in checked})
        raise StorageCorrupt(f"{name} is damaged: the vector of seq {missing} is missing")
    return checked, size


def log(of: Log, pace: Pace) -> None:
    """Check the log as far as it is written; `StorageCorrupt` says what is wrong."""
    for size in of.check():
        pace.spend(size)


def generation(path: Path, pace: Pace) -> None:
    """Check the generation at `path` against its manifest; `StorageCorrupt` says what is wrong."""
    manifest = generations.read_manifest(path)
    for name, info in manifest.files.items():
        try:
            hashed = hashlib.sha256()
            for block in _blocks(path / name):
                hashed.update(block)
                pace.spend(len(block))
        except OSError as error:
            raise unreadable(f"generation {path.name}: {name}", error) from error
        if hashed.hexdigest() != info.sha256:
            raise StorageCorrupt(f"generation {path.name}: {name} does not match its checksum")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
