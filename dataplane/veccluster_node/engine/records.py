"""The rows that answers are made of, in SQLite: derived from the log, and the one judge of what is alive.

A row's key is its seq: replacing an id deletes the old row and inserts one under the new seq. So within one read
transaction `seq in records` means: alive in the state that this transaction sees, which is the state after
`applied_seq`.

Every row carries a CRC32C of what it says, checked before it is given out. One `Records` writes; any number of
`Snapshots`, in this process or others, read. Which epoch wrote what was applied is kept with the rows, since the log
forgets its beginning.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
import xxhash

from veccluster import failpoints
from veccluster.decisions import repetitions
from veccluster.decisions.filters import FUNCTIONS, Filter, index_expressions, to_sql
from veccluster.decisions.replication.atomic import Batch as Part
from veccluster.decisions.replication.atomic import Ledger, Showing, Standing
from veccluster.decisions.replication.values import EMPTY, NOTHING, Lineage, Run
from veccluster.errors import ShardsUnavailable, StorageCorrupt, Unavailable
from veccluster.model.state import Epoch, Seq
from veccluster_node.engine import digests
from veccluster_node.engine.digests import Checked, Digests
from veccluster_node.engine.distance import F32, U64
from veccluster_node.engine.idle import IDLE
from veccluster_node.engine.ledgers import LEDGER_SCHEMA, LedgerTables, read_showing, undecided_at
from veccluster_node.engine.stopping import NEVER, Abandoned, Stop
from veccluster_node.runtime.files import is_no_space, reason, sync_directory
from veccluster_node.wal.operations import (
    Batch,
    Decide,
    Delete,
    Looked,
    Nothing,
    Prepare,
    Record,
    Upsert,
    Written,
    parts_of,
)

FORMAT = 1
ROWS = "records.sqlite"
SUSPECT = "records.suspect"
"""While a file of this name is there, the rows are not trusted: opening makes them anew."""
_T = TypeVar("_T")
_SINCE = "operations_since"
PAGE = 8192
_FREE = 128
"""Free pages that are not worth giving back."""
_STEP = 256
"""Pages that are given back in one transaction."""
_SHORT_WAL = 256 << 10
_PATIENCE = 60
"""Seconds to wait for a lock of SQLite's."""
_CHUNK = 500
_INDEX_FROM = 8
"""To order more than one row in so many by id, the whole index of ids is read: that is faster than to pick."""
_DISK_FAILURES = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}
)

SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS records(
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS vectors(seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operations(
    last_seq INTEGER PRIMARY KEY, op_id TEXT NOT NULL UNIQUE, first_seq INTEGER NOT NULL,
    upserted INTEGER NOT NULL, deleted INTEGER NOT NULL, time_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS lineage(first_seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL);
"""
    + digests.SCHEMA
    + LEDGER_SCHEMA
)

_DELETE = tuple(
    f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?)) RETURNING seq, crc"  # noqa: S608
    for table in ("records", "vectors")
)

_IDS_OF = "SELECT id FROM records WHERE seq IN (SELECT value FROM json_each(?))"


def record_crc(seq: int, id_: str, metadata: bytes) -> int:
    """Checksum of a row of `records`."""
    name = id_.encode()
    head = seq.to_bytes(8, "little") + len(name).to_bytes(4, "little") + name
    return int(google_crc32c.extend(google_crc32c.value(head), metadata))


def vector_crc(seq: int, vector: bytes) -> int:
    """Checksum of a row of `vectors`."""
    return int(google_crc32c.extend(google_crc32c.value(seq.to_bytes(8, "little")), vector))


@dataclass(frozen=True, slots=True)
class Row:
    """What is stored under a seq, checked. `metadata` is JSON."""

    seq: int
    id: str
    metadata: bytes


@dataclass(slots=True)
class Changes:
    """What a group of batches does to the stored rows: what is born, and by which seq what was there before died."""

    applied_seq: int
    born: dict[int, Upsert] = field(default_factory=dict)
    died: dict[int, int] = field(default_factory=dict)
    results: list[Written] = field(default_factory=list)


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; every statement is a transaction of its own unless one is begun."""
    mode = "ro" if read_only else "rwc"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_PATIENCE)
    for name, (function, arguments) in FUNCTIONS.items():
        connection.create_function(name, arguments, function, deterministic=True)
    connection.execute("PRAGMA mmap_size=0")
    return connection


@contextmanager
def corruption_named(path: Path) -> Iterator[None]:
    """Turn what SQLite says about a damaged file into `StorageCorrupt`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise StorageCorrupt(f"{path.name} is damaged: what SQLite says of it cannot be read") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError) and not _is_damage(error):
            raise
        raise StorageCorrupt(f"{path.name} is damaged: {error}") from error


@contextmanager
def _failures_named() -> Iterator[None]:
    """Turn what SQLite says about a failing disk into `Unavailable`: another replica may answer, and later this one."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if _code(error) == sqlite3.SQLITE_INTERRUPT:
            raise Abandoned("nobody waits for the answer any more") from error
        if _code(error) not in _DISK_FAILURES:
            raise
        if _code(error) == sqlite3.SQLITE_CANTOPEN:
            raise Unavailable(f"its rows cannot be opened now: {reason(error)}") from error
        raise Unavailable(f"the disk failed: {reason(error)}") from error


def _is_damage(error: sqlite3.Error) -> bool:
    """What only damage can cause: only UTF-8 and JSON is ever stored."""
    if _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return True
    return str(error).startswith(("Could not decode to UTF-8", "malformed JSON"))


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code, where the error comes from SQLite itself."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


class Records:
    """The writing side. Not thread-safe: it belongs to the thread that applies."""

    def __init__(
        self,
        path: Path,
        *,
        number: int = 0,
        filterable: Sequence[str] = (),
        check_below: int = 512 << 20,
        history: Lineage = EMPTY,
        kept: int = repetitions.KEPT,
    ) -> None:
        """Open or create; `StorageCorrupt` when the file is damaged (checked whole when smaller than `check_below`
        bytes). `number` is the shard's. `history` is what the log knows: it fills in for rows from before lineages
        were kept. `kept` operations are remembered however old they are.
        """
        self.path = path
        self._kept = kept
        self.lineage = EMPTY
        """Which epoch wrote what was applied."""
        self.ledger: Ledger
        """The batches over several shards that are prepared and not decided (without their operations)."""
        with corruption_named(path):
            self._db = connect(path, read_only=False)
            try:
                self._prepare(filterable, check_below)
                self._know_lineage(history)
                self._tables = LedgerTables(self._db, number, path.name)
                self.ledger = self._tables.read()
                self._wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, filterable: Sequence[str], check_below: int) -> None:
        db = self._db
        db.execute(f"PRAGMA page_size={PAGE}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        db.execute("PRAGMA journal_size_limit=16777216")
        self._empty_wal()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise StorageCorrupt(f"{self.path.name}: format {version} is newer than {FORMAT}, which this version reads")
        if self.path.stat().st_size <= check_below:
            said = (line for (text,) in db.execute("PRAGMA integrity_check(5)") for line in text.splitlines())
            problems = [line for line in said if line != "ok"]
            if problems:
                raise StorageCorrupt(f"{self.path.name} is damaged: {'; '.join(problems)}")
        db.executescript(SCHEMA)
        db.execute(f"PRAGMA user_version={FORMAT}")
        self._index(filterable)
        self._know_since()
        self.applied_seq = self._meta("applied_seq")
        self.epoch = self._meta("epoch")
        self.live = self._meta("live")
        for table in ("records", "vectors"):
            (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            if rows != self.live:
                raise StorageCorrupt(f"{self.path.name} is damaged: {rows} rows in {table} where {self.live} should be")
        with self._transaction():
            self.digests = Digests(db, self.applied_seq)
        if self.digests.rows != self.live:
            raise StorageCorrupt(f"{self.path.name} is damaged: digests of {self.digests.rows} rows, not {self.live}")

    def _know_since(self) -> None:
        """In a file from before that was kept: what is forgotten was older than what is not."""
        if self._db.execute("SELECT 1 FROM meta WHERE key=?", (_SINCE,)).fetchone():
            self._since = self._meta(_SINCE)
            return
        first, oldest = self._db.execute("SELECT min(first_seq), min(time_ns) FROM operations").fetchone()
        self._know(repetitions.since_without(oldest) if first and first > 1 else 0)

    def _empty_wal(self) -> bool:
        """Bring everything into the file itself and give SQLite's own log up, if nobody reads; whether that was done.

        What an earlier process could not make durable is so once this has succeeded.
        """
        self._db.execute("PRAGMA busy_timeout=0")
        try:
            ((busy, *_),) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as error:
            if not is_no_space(error):
                raise
            return False
        finally:
            self._db.execute(f"PRAGMA busy_timeout={_PATIENCE * 1000}")
        return not busy

    def _know_lineage(self, history: Lineage) -> None:
        """Read it, or work it out: what nobody knows the epoch of counts as written in the first that is known."""
        self.lineage = _read_lineage(self._db)
        if self.lineage.newest == self.epoch:
            return
        known = history.cut(Seq(self.applied_seq)).runs
        lineage = EMPTY.followed_by(known[0].epoch if known else Epoch(self.epoch), Seq(1))
        for run in (*known, Run(Epoch(self.epoch), Seq(self.applied_seq))):
            lineage = lineage.followed_by(run.epoch, run.first)
        with self._transaction():
            self._db.execute("DELETE FROM lineage")
            self._add_runs(lineage.runs)
        self.lineage = lineage

    def _add_runs(self, runs: Iterable[Run]) -> None:
        self._db.executemany("INSERT INTO lineage(epoch, first_seq) VALUES (?,?)", runs)

    def _forget_before(self, floor: Seq) -> None:
        if floor > self.lineage.floor:
            self._db.execute("DELETE FROM lineage WHERE first_seq < ?", (floor,))

    def _index(self, filterable: Sequence[str]) -> None:
        """Give the declared fields, and no others, their expression indexes."""
        expressions = [e for name in filterable for e in index_expressions(name)]
        wanted = {f"filter_{xxhash.xxh3_64_hexdigest(e.encode())}": e for e in expressions}
        have = {
            name
            for (name,) in self._db.execute(
                "SELECT name FROM sqlite_master WHERE type='index' AND name GLOB 'filter_*'"
            )
        }
        for name in have - wanted.keys():
            self._db.execute(f"DROP INDEX {name}")
        for name in wanted.keys() - have:
            self._db.execute(f"CREATE INDEX {name} ON records({wanted[name]})")

    def _meta(self, key: str) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def apply(
        self,
        records: Sequence[Record],
        publish: Callable[[Changes], None] = lambda _: None,
        *,
        floor: Seq = NOTHING,
    ) -> Changes:
        """Apply batches that follow `applied_seq`, in one transaction.

        `publish` is told what will change before it can be seen by any reader. Who wrote what is before `floor` is
        forgotten. When this raises, nothing was applied.
        """
        lineage, ledger = self.lineage, self.ledger.copy()
        for record in records:
            lineage = lineage.followed_by(Epoch(record.epoch), Seq(record.first_seq))
        fresh, lineage = lineage.runs[len(self.lineage.runs) :], lineage.since(floor)
        with corruption_named(self.path), self._transaction():
            batches = [(record, self._meant(ledger, record, record.batch())) for record in records]
            changes = self._plan(batches)
            self._store(changes, batches)
            self._add_runs(fresh)
            self._forget_before(lineage.floor)
            publish(changes)
            failpoints.hit("records.commit")
        self.digests.commit(records[-1].first_seq - 1, changes.applied_seq)
        self.applied_seq, self.epoch, self.lineage = changes.applied_seq, records[-1].epoch, lineage
        self.ledger = ledger
        self.live += len(changes.born) - len(changes.died)
        return changes

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _meant(self, ledger: Ledger, record: Record, batch: Batch) -> Batch:
        """What a record does to the rows, once the ledger has what it says of a batch over several shards (15)."""
        match batch.ops:
            case (Prepare() as prepare,):
                self._tables.prepare(ledger, prepare, Seq(record.last_seq))
                return Batch(batch.time_ns, batch.op_id, (Nothing(),))
            case (Decide() as decide,):
                ops = self._tables.decide(ledger, decide.meaning(), record)
                return Batch(batch.time_ns, batch.op_id, ops or (Nothing(),))
        return batch

    def standing(self, part: Part) -> Standing | None:
        """How an operation over several shards stands here, in this attempt or a later one (`Ledger.standing`)."""
        with corruption_named(self.path):
            return self._tables.standing(self.ledger, part)

    def _plan(self, batches: Sequence[tuple[Record, Batch]]) -> Changes:
        """Work out, in order, which rows the batches make and unmake; a row replaced within the group is never
        stored.
        """
        changes = Changes(applied_seq=batches[-1][0].last_seq)
        current = self.seqs_of({op.id for _, batch in batches for op in batch.ops if isinstance(op, Upsert | Delete)})
        for record, batch in batches:
            upserted = deleted = 0
            for seq, op in enumerate(batch.ops, record.first_seq):
                if not isinstance(op, Upsert | Delete):
                    continue
                old = current.pop(op.id, None)
                if old is not None and changes.born.pop(old, None) is None:
                    changes.died[old] = seq
                if isinstance(op, Upsert):
                    current[op.id], changes.born[seq] = seq, op
                    upserted += 1
                else:
                    deleted += old is not None
            changes.results.append(Written(record.first_seq, record.last_seq, upserted, deleted))
        return changes

    def seqs_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The seqs of those ids that are there."""
        found: dict[str, int] = {}
        for some in _chunks(list(ids)):
            marks = ",".join("?" * len(some))
            found.update(self._db.execute(f"SELECT id, seq FROM records WHERE id IN ({marks})", some))  # noqa: S608
        return found

    def _store(self, changes: Changes, batches: Sequence[tuple[Record, Batch]]) -> None:
        many = self._db.executemany
        died = self._delete(list(changes.died))
        born = self._insert((seq, op.id, op.metadata, op.vector) for seq, op in changes.born.items())
        self.digests.change(born, died)
        self.digests.store(batches[-1][0].first_seq - 1, changes.applied_seq)
        many(
            "INSERT OR IGNORE INTO operations(last_seq, op_id, first_seq, upserted, deleted, time_ns) "
            "VALUES (?,?,?,?,?,?)",
            [
                (w.last_seq, batch.op_id, w.first_seq, w.upserted, w.deleted, batch.time_ns)
                for w, (_, batch) in zip(changes.results, batches, strict=True)
            ],
        )
        if changes.applied_seq // self._kept > self.applied_seq // self._kept:
            self._forget(batches[-1][1].time_ns)
        live = self.live + len(changes.born) - len(changes.died)
        as_of = {digests.AS_OF: changes.applied_seq}
        self._set_meta(applied_seq=changes.applied_seq, epoch=batches[-1][0].epoch, live=live, **as_of)

    def _forget(self, newest: int) -> None:
        """Forget operations that are neither among the newest nor young (decisions/repetitions.py)."""
        before = repetitions.forgettable(newest, time.time_ns())
        beyond = self._db.execute(
            "SELECT last_seq FROM operations ORDER BY last_seq DESC LIMIT 1 OFFSET ?", (self._kept,)
        ).fetchone()
        if beyond is None:
            return
        young = self._db.execute(
            "SELECT last_seq FROM operations WHERE time_ns >= ? ORDER BY last_seq LIMIT 1", (before,)
        ).fetchone()
        last = min(beyond[0], young[0] - 1 if young else beyond[0])
        if self._db.execute("DELETE FROM operations WHERE last_seq <= ?", (last,)).rowcount:
            self._know(max(self._since, repetitions.since_without(before)))
            self._tables.prune()

    def known_since(self, now: int) -> int:
        """Every operation whose id was made at this time or later, and that was applied, is remembered.

        One that no clock can have meant would refuse everything for ever: then it is now.
        """
        if self._since > now + repetitions.FARTHEST:
            with self._transaction():
                self._know(now)
        return self._since

    def _know(self, since: int) -> None:
        self._since = since
        self._set_meta(**{_SINCE: since})

    def _delete(self, seqs: Sequence[int]) -> list[Checked]:
        """Delete rows; what they were."""
        died: list[Checked] = []
        for some in _chunks(seqs):
            records, vectors = (dict(self._db.execute(sql, (json.dumps(some),))) for sql in _DELETE)
            died.extend((seq, crc, vectors.get(seq, 0)) for seq, crc in records.items())
        return died

    def _insert(self, rows: Iterable[tuple[int, str, bytes, bytes]]) -> list[Checked]:
        """Insert rows (seq, id, metadata, vector); what they are."""
        born: list[Checked] = []
        for some in _chunks(list(rows)):
            records = [(seq, id_, meta.decode(), record_crc(seq, id_, meta)) for seq, id_, meta, _ in some]
            vectors = [(seq, vector, vector_crc(seq, vector)) for seq, _, _, vector in some]
            self._db.executemany("INSERT INTO records(seq, id, metadata, crc) VALUES (?,?,?,?)", records)
            self._db.executemany("INSERT INTO vectors(seq, vector, crc) VALUES (?,?,?)", vectors)
            born.extend((record[0], record[3], vector[2]) for record, vector in zip(records, vectors, strict=True))
        return born

    def _set_meta(self, **values: int) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta(key, value) VALUES (?,?)", list(values.items()))

    def restore(
        self,
        rows: Iterable[tuple[int, str, bytes, bytes]],
        *,
        applied_seq: int,
        lineage: Lineage,
        latest: Mapping[int, Seq] = {},
        prepares: Iterable[Record] = (),
        since: int = 0,
    ) -> None:
        """Fill an empty file with rows (seq, id, metadata, vector) as they were known at `applied_seq`; `prepares` are
        the records of the batches over several shards that were not decided then, `latest` is as in `Showing`.

        The operations that led there are not remembered; the last of them was noted at `since`.
        """
        epoch, ledger = lineage.newest, self.ledger.copy()
        with self._transaction():
            self._tables.restore(ledger, latest, prepares)
            self.digests.change(self._insert(rows), ())
            self.digests.store(applied_seq, applied_seq)
            failpoints.hit("records.restore")
            (self.live,) = self._db.execute("SELECT count(*) FROM records").fetchone()
            self._set_meta(applied_seq=applied_seq, epoch=epoch, live=self.live, **{digests.AS_OF: applied_seq})
            self._know(repetitions.since_without(since) if since else 0)
            self._add_runs(lineage.runs)
        self.digests.commit(applied_seq, applied_seq)
        self.applied_seq, self.epoch, self.lineage, self.ledger = applied_seq, epoch, lineage, ledger

    def result_of(self, op_id: str) -> Written | None:
        """What became of the batch with this operation id, as long as that is remembered."""
        row = self._db.execute(
            "SELECT first_seq, last_seq, upserted, deleted FROM operations WHERE op_id=?", (op_id,)
        ).fetchone()
        if row is None:
            return None
        (of_parts,) = self._db.execute(
            "SELECT coalesce(sum(deleted), 0) FROM operations WHERE op_id >= ? AND op_id < ?", parts_of(op_id)
        ).fetchone()
        return Written(row[0], row[1], row[2], row[3] + of_parts, replayed=True)

    def time_of(self, seq: int) -> int | None:
        """When the batch that ends at `seq` was asked for, as long as that is remembered; nanoseconds since 1970."""
        row = self._db.execute("SELECT time_ns FROM operations WHERE last_seq=?", (seq,)).fetchone()
        return int(row[0]) if row else None

    def ids_matching(self, filter_: Filter, looked: Looked | None = None) -> list[str]:
        """The ids that a filter matches now; `looked` is what it matched in an earlier state."""
        sql = to_sql(filter_)
        since = looked.applied_seq if looked else 0
        known = looked.seqs.tolist() if looked else []
        query = f"SELECT id FROM records WHERE seq > ? AND ({sql.where})"  # noqa: S608
        with corruption_named(self.path):
            ids = [i for some in _chunks(known) for (i,) in self._db.execute(_IDS_OF, (json.dumps(some),))]
            return ids + [i for (i,) in self._db.execute(query, (since, *sql.params))]

    def bytes_in_use(self) -> int:
        """Bytes of the file that hold something."""
        pages, free = self._pages()
        return (pages - free) * PAGE

    def _pages(self) -> tuple[int, int]:
        """How many there are, and how many of them are free."""
        pages, free = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return pages, free

    def give_back(self) -> bool:
        """Give some of the pages back to the disk that were freed by deleting, if they are many; whether that is worth
        doing again. A full disk may not let it.
        """
        pages, free = self._pages()
        if free <= max(_FREE, pages // 8):
            return False
        try:
            with corruption_named(self.path):
                self._db.executescript(f"PRAGMA incremental_vacuum({_STEP})")  # `execute` would end after one page
        except sqlite3.OperationalError as error:
            if not is_no_space(error):
                raise
            return False
        return self._pages()[1] < free

    def rest(self) -> None:
        """Nothing was written for a while: SQLite's own log need not keep its size."""
        if os.fstat(self._wal).st_size > _SHORT_WAL:
            with corruption_named(self.path), _failures_named():
                self._empty_wal()

    def sync(self) -> Seq:
        """Make everything durable that was applied when this was called, from any thread; returns through where.

        A commit is in SQLite's own log, which a checkpoint syncs only if it has something to copy: not while somebody
        reads an older state. So it is synced here. SQLite begins that log anew only once it is synced into the file.
        `Unavailable`: the disk did not confirm it; nobody knows what it holds until the rows have been opened again.
        """
        applied = Seq(self.applied_seq)
        try:
            failpoints.hit("records.sync")
            os.fsync(self._wal)
            sync_directory(self.path.parent)
        except OSError as error:
            raise Unavailable(f"the disk could not confirm the rows: {reason(error)}") from error
        return applied

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._wal)
        self._db.close()


class Snapshot:
    """One state of the rows, within one read transaction; see `Snapshots.take`."""

    def __init__(self, db: sqlite3.Connection, path: Path, stop: Stop = NEVER) -> None:
        self.connection = self._db = db
        self.stop = stop
        """Ends what SQLite does here when nobody waits for it any more; to be checked by what else takes long."""
        self._path = path
        meta = dict(db.execute("SELECT key, value FROM meta"))
        self.applied_seq: int = meta.get("applied_seq", 0)
        self.epoch: int = meta.get("epoch", 0)
        self.live: int = meta.get("live", 0)

    def lineage(self) -> Lineage:
        """Which epoch wrote what had been applied."""
        return _read_lineage(self._db)

    def showing(self) -> Showing:
        """What this state says of batches over several shards (15)."""
        return read_showing(self._db, Seq(self.applied_seq))

    def undecided(self, through: int) -> frozenset[Seq]:
        """The prepares that were in the log and not decided when `through` was applied, as far as is remembered."""
        return undecided_at(self._db, through)

    def matching(self, filter_: Filter, limit: int = -1) -> U64:
        """Seqs (n,) that a filter matches, ascending; when there are more than `limit`, just any `limit` of them."""
        sql = to_sql(filter_)
        rows = self._db.execute(f"SELECT seq FROM records WHERE ({sql.where}) LIMIT ?", (*sql.params, limit))  # noqa: S608
        return np.sort(np.fromiter((seq for (seq,) in rows), np.uint64))

    def among(self, filter_: Filter, seqs: U64) -> U64:
        """Those of `seqs` that a filter matches, ascending."""
        sql = to_sql(filter_)
        query = f"SELECT seq FROM records WHERE seq IN (SELECT value FROM json_each(?)) AND ({sql.where})"  # noqa: S608
        rows = self._db.execute(query, (json.dumps(seqs.tolist()), *sql.params))
        return np.sort(np.fromiter((seq for (seq,) in rows), np.uint64))

    def count(self, filter_: Filter | None) -> int:
        """How many rows there are, or how many a filter matches."""
        if filter_ is None:
            return self.live
        sql = to_sql(filter_)
        (count,) = self._db.execute(f"SELECT count(*) FROM records WHERE ({sql.where})", sql.params).fetchone()  # noqa: S608
        return int(count)

    def ids(self, after: str | None, limit: int, filter_: Filter | None) -> list[str]:
        """Ids in the order of their UTF-8 bytes, beyond `after`."""
        terms, params = [], []
        if after is not None:
            terms, params = ["id > ?"], [after]
        if filter_ is not None:
            sql = to_sql(filter_)
            terms.append(f"({sql.where})")
            params.extend(sql.params)
        where = " AND ".join(terms) or "1"
        query = f"SELECT id FROM records WHERE {where} ORDER BY id LIMIT ?"  # noqa: S608
        return [id_ for (id_,) in self._db.execute(query, (*params, limit))]

    def by_id(self, seqs: U64) -> U64:
        """These `seqs`, all alive, in the order of their ids' UTF-8 bytes; no row is read, only the index of ids."""
        if len(seqs) * _INDEX_FROM > self.live:
            rows = self._db.execute("SELECT seq FROM records ORDER BY id")
            ordered = np.fromiter((seq for (seq,) in rows), np.uint64)
            return ordered[np.isin(ordered, seqs)]
        query = "SELECT seq FROM records WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY id"
        return np.fromiter((seq for (seq,) in self._db.execute(query, (json.dumps(seqs.tolist()),))), np.uint64)

    def rows(self, seqs: Sequence[int]) -> dict[int, Row]:
        """The rows under these seqs, by seq; those that are not alive are not there."""
        return {row.seq: row for some in _chunks(seqs) for row in self._rows("seq", some)}

    def rows_of(self, ids: Sequence[str]) -> dict[str, Row]:
        """The rows of these ids, by id."""
        return {row.id: row for some in _chunks(ids) for row in self._rows("id", some)}

    def _rows(self, key: str, values: Sequence[int | str]) -> Iterator[Row]:
        query = f"SELECT seq, id, metadata, crc FROM records WHERE {key} IN (SELECT value FROM json_each(?))"  # noqa: S608
        if key == "id":
            query = f"SELECT seq, id, metadata, crc FROM records WHERE id IN ({','.join('?' * len(values))})"  # noqa: S608
        for seq, id_, text, crc in self._db.execute(query, (json.dumps(values),) if key == "seq" else values):
            metadata = text.encode()
            if crc != record_crc(seq, id_, metadata):
                raise StorageCorrupt(f"{self._path.name} is damaged: the row of seq {seq} does not match its checksum")
            yield Row(seq, id_, metadata)

    def vectors(self, seqs: Sequence[int], dimension: int) -> F32:
        """Vectors (n, dimension) of seqs that are alive, as they were given, in the order of `seqs`."""
        blobs = {seq: blob for some in _chunks(seqs) for seq, blob in self._vectors(some)}
        if len(blobs) != len(set(seqs)):
            missing = next(seq for seq in seqs if seq not in blobs)
            raise StorageCorrupt(f"{self._path.name} is damaged: the vector of seq {missing} is missing")
        return np.frombuffer(b"".join(blobs[seq] for seq in seqs), "<f4").reshape(-1, dimension)

    def _vectors(self, seqs: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        query = "SELECT seq, vector, crc FROM vectors WHERE seq IN (SELECT value FROM json_each(?))"
        for seq, blob, crc in self._db.execute(query, (json.dumps(seqs),)):
            if crc != vector_crc(seq, blob):
                raise StorageCorrupt(
                    f"{self._path.name} is damaged: the vector of seq {seq} does not match its checksum"
                )
            yield seq, blob

    def live_seqs(self, after: int = 0, through: int = (1 << 63) - 1) -> U64:
        """The seqs that are alive in (after, through], ascending."""
        rows = self._db.execute("SELECT seq FROM records WHERE seq > ? AND seq <= ? ORDER BY seq", (after, through))
        return np.fromiter((seq for (seq,) in rows), np.uint64)


class Snapshots:
    """Read-only connections to the rows, for any number of threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def take(self, stop: Stop = NEVER) -> Iterator[Snapshot]:
        """See one state for as long as the context lasts; `ShardsUnavailable` once it was closed.

        `Abandoned` as soon as `stop` was told.
        """
        with self._lock:
            self._check()
        db = IDLE.take(self)
        with corruption_named(self._path), _failures_named():
            db = db or connect(self._path, read_only=True)
            try:
                db.execute("BEGIN")
                with stop.interrupts(db):
                    snapshot = Snapshot(db, self._path, stop)
                    self._check()  # only by now all files are open: another replica's may be at this path since
                    yield snapshot
            finally:
                self._give_back(db)

    def _check(self) -> None:
        if self._closed:
            raise ShardsUnavailable("this replica was closed")

    def _give_back(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            db.close()
            return
        with self._lock:
            if not self._closed:
                IDLE.keep(self, db)
                return
        db.close()

    def close(self) -> None:
        """Close the idle connections now, and the busy ones when they come back."""
        with self._lock:
            self._closed = True
        IDLE.drop(self)


def _read_lineage(db: sqlite3.Connection) -> Lineage:
    rows = db.execute("SELECT epoch, first_seq FROM lineage ORDER BY first_seq")
    return Lineage(tuple(Run(Epoch(epoch), Seq(first)) for epoch, first in rows))


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for i in range(0, len(values), _CHUNK):
        yield values[i : i + _CHUNK]
