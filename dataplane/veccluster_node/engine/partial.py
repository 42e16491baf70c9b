"""The rows of a shard without what its generations hold: what a snapshot says of them, so that nothing is sent, or
written at its sender, twice.

A part is a file of rows of one state, with all that belongs to it (positions, operation ids, batches over several
shards, digests), but of the rows only those behind the generations, and which of the generations' rows had died. A
receiver makes the whole file of both; the running digests say whether it is the same.
"""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from veccluster.errors import StorageCorrupt, Unavailable
from veccluster_node.engine import generations
from veccluster_node.engine.digests import Checked, checked_by_range
from veccluster_node.engine.distance import U64
from veccluster_node.engine.records import (
    FORMAT,
    PAGE,
    SCHEMA,
    Snapshot,
    Snapshots,
    connect,
    corruption_named,
    record_crc,
    vector_crc,
)

PART = "records.part"
_WHOLE = ("meta", "operations", "lineage", "digests", "digest_notes", "pending", "decided", "latest")
"""Tables that are copied as they are."""
_GONE = "CREATE TABLE gone(seq INTEGER PRIMARY KEY)"
_ROWS = 1000
_OPERATION = 200
"""Bytes of an operation that is remembered, about."""
_SMALL = 1 << 20
"""Bytes that every disk is taken to have."""


def write_part(rows: Path, using: Sequence[Path], into: Path, *, keep_free: float) -> None:
    """Write to the new file `into` what of the rows at `rows` is not in the generations `using`, beside whoever
    writes them.

    `Unavailable` where that would leave less of the disk than the part `keep_free` of it.
    """
    through = generations.range_of(using[-1].name)[1] if using else 0
    held = [np.fromfile(path / generations.SEQS, "<u8") for path in using]
    snapshots = Snapshots(rows)
    try:
        with snapshots.take() as snapshot:
            _check_room(snapshot.connection, through, into.parent, keep_free)
            with closing(_create(into)) as part:
                part.execute("BEGIN")
                _fill(part, snapshot, through, held)
                part.execute("COMMIT")
    finally:
        snapshots.close()


def _fill(part: sqlite3.Connection, snapshot: Snapshot, through: int, held: Sequence[U64]) -> None:
    source = snapshot.connection
    for table in _WHOLE:
        _copy(source, part, f"SELECT * FROM {table}", table)  # noqa: S608 - names of ours
    for table in ("records", "vectors"):
        _copy(source, part, f"SELECT * FROM {table} WHERE seq > {through}", table)  # noqa: S608 - names of ours
    gone = np.setdiff1d(np.concatenate([np.zeros(0, np.uint64), *held]), snapshot.live_seqs(through=through))
    part.executemany("INSERT INTO gone VALUES (?)", ((seq,) for seq in gone.tolist()))
    for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE type='index' AND name GLOB 'filter_*'"):
        part.execute(sql)


def _create(path: Path) -> sqlite3.Connection:
    db = connect(path, read_only=False)
    db.execute(f"PRAGMA page_size={PAGE}")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    _make_fast(db)
    db.executescript(SCHEMA + _GONE)
    db.execute(f"PRAGMA user_version={FORMAT}")
    return db


def _make_fast(db: sqlite3.Connection) -> None:
    """Nobody uses the file before it is whole and synced."""
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")


def _check_room(source: sqlite3.Connection, through: int, where: Path, keep_free: float) -> None:
    def ask(sql: str) -> int:
        return int(source.execute(sql).fetchone()[0])

    behind = ask(f"SELECT count(*) FROM records WHERE seq > {through}")  # noqa: S608 - a number
    in_use = PAGE * (ask("PRAGMA page_count") - ask("PRAGMA freelist_count"))
    size = behind * (in_use // max(1, ask("SELECT count(*) FROM records")))
    size += _OPERATION * ask("SELECT count(*) FROM operations")
    disk = shutil.disk_usage(where)
    if size > _SMALL and size > disk.free - keep_free * disk.total:
        raise Unavailable(f"the disk has no room for it: {size >> 20} MiB more would leave too little")


def _copy(source: sqlite3.Connection, part: sqlite3.Connection, query: str, table: str) -> None:
    rows = source.execute(query)
    marks = ",".join("?" * len(rows.description))
    names = ",".join(column[0] for column in rows.description)
    part.executemany(f"INSERT INTO {table}({names}) VALUES ({marks})", rows)  # noqa: S608 - names of ours


def complete(part: Path, using: Sequence[Path], into: Path) -> None:
    """Make the whole file of rows `into` of a part and the generations that it was made with.

    `StorageCorrupt`: together they are not what the digests of the part say.
    """
    into.unlink(missing_ok=True)
    shutil.copyfile(part, into)
    with corruption_named(part), closing(connect(into, read_only=False)) as db:
        _make_fast(db)
        db.execute("BEGIN")
        gone = {seq for (seq,) in db.execute("SELECT seq FROM gone")}
        for path in using:
            living = (row for row in generations.rows_of(path) if row[0] not in gone)
            while some := list(islice(living, _ROWS)):
                _insert(db, some)
        db.execute("DROP TABLE gone")
        kept = {number: (rows, value) for number, rows, value in db.execute("SELECT * FROM digests")}
        if checked_by_range(_checked(db)) != kept:
            raise StorageCorrupt(f"{part.name} and its generations are not the rows that were written")
        db.execute("COMMIT")


def _insert(db: sqlite3.Connection, rows: Sequence[tuple[int, str, bytes, bytes]]) -> None:
    records = [(seq, id_, meta.decode(), record_crc(seq, id_, meta)) for seq, id_, meta, _ in rows]
    vectors = [(seq, vector, vector_crc(seq, vector)) for seq, _, _, vector in rows]
    db.executemany("INSERT INTO records(seq, id, metadata, crc) VALUES (?,?,?,?)", records)
    db.executemany("INSERT INTO vectors(seq, vector, crc) VALUES (?,?,?)", vectors)


def _checked(db: sqlite3.Connection) -> Iterator[Checked]:
    yield from db.execute("SELECT seq, r.crc, v.crc FROM records r JOIN vectors v USING(seq)")
