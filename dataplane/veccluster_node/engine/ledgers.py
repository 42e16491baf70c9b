"""The ledger of batches over several shards in the tables of a shard's rows (15): `decisions.replication.atomic`.

It changes in the transaction that applies, so that rows and ledger are always of one state, and goes wherever the rows
go. The operations of what is prepared stay on the disk until the batch is decided; the ledger in memory has the rest.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping

import google_crc32c

from veccluster.decisions.replication.atomic import Batch, Decision, Ledger, Pending, Showing, Standing, Verdict
from veccluster.decisions.replication.atomic import Prepare as Prepared
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Seq
from veccluster_node.wal.operations import Op, Prepare, Record, decode_content

LEDGER_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending(
    prepare_seq INTEGER PRIMARY KEY, operation TEXT NOT NULL, attempt INTEGER NOT NULL,
    participants TEXT NOT NULL, count INTEGER NOT NULL, content BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS decided(
    operation TEXT NOT NULL, attempt INTEGER NOT NULL, verdict TEXT NOT NULL, prepare_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL, PRIMARY KEY (operation, attempt)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decided_at ON decided(last_seq);
CREATE TABLE IF NOT EXISTS latest(shard INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
"""


class LedgerTables:
    """The tables, for who writes them; what changes them is called within a transaction, with a copy of the ledger."""

    def __init__(self, db: sqlite3.Connection, shard: int, name: str) -> None:
        """`name` is that of the file, for errors."""
        self._db = db
        self._shard = shard
        self._name = name

    def read(self) -> Ledger:
        """The ledger as the file has it, without what was decided."""
        pending: dict[Batch, Pending] = {}
        rows = self._db.execute("SELECT prepare_seq, operation, attempt, participants, count FROM pending")
        for at, operation, attempt, participants, count in rows:
            batch = Batch(operation, attempt)
            pending[batch] = Pending(Seq(at), Prepared(batch, tuple(json.loads(participants)), count, b""))
        return Ledger(self._shard, pending, latest=_latest(self._db))

    def prepare(self, ledger: Ledger, prepare: Prepare, at: Seq) -> None:
        """Apply a record that prepares."""
        ledger.prepare(prepare.meaning(), at)
        self._db.execute(
            "INSERT INTO pending(prepare_seq, operation, attempt, participants, count, content, crc) "
            "VALUES (?,?,?,?,?,?,?)",
            (
                at,
                prepare.operation,
                prepare.attempt,
                json.dumps(prepare.participants),
                prepare.count,
                prepare.content,
                _crc(at, prepare.content),
            ),
        )

    def decide(self, ledger: Ledger, decision: Decision, record: Record) -> tuple[Op, ...]:
        """Apply a record that decides: the operations that take effect there.

        `StorageCorrupt` when it applies what is not here: then something was lost.
        """
        pending = ledger.pending.get(decision.batch)
        if pending is None:
            if decision.verdict is Verdict.applied:
                raise self._damaged(f"the batch that seq {record.last_seq} applies is missing")
            return ()
        prepared = ledger.decide(decision, Seq(record.last_seq))
        decided = ledger.decided.pop(decision.batch.operation)
        ops = self._take(pending.at)
        self._db.execute(
            "INSERT OR REPLACE INTO decided(operation, attempt, verdict, prepare_seq, last_seq) VALUES (?,?,?,?,?)",
            (decision.batch.operation, decided.attempt, decision.verdict.value, pending.at, decided.at),
        )
        if prepared is None:
            return ()
        if len(ops) != record.count:
            raise self._damaged(f"seq {record.last_seq} applies {len(ops)} operations as {record.count}")
        self._set_latest(ledger.latest)
        return ops

    def _take(self, at: Seq) -> tuple[Op, ...]:
        row = self._db.execute("SELECT content, crc FROM pending WHERE prepare_seq=?", (at,)).fetchone()
        if row is None or row[1] != _crc(at, row[0]):
            raise self._damaged(f"the batch that was prepared at seq {at} does not match its checksum")
        self._db.execute("DELETE FROM pending WHERE prepare_seq=?", (at,))
        return decode_content(row[0])

    def standing(self, ledger: Ledger, batch: Batch) -> Standing | None:
        """As `Ledger.standing`."""
        row = self._db.execute(
            "SELECT attempt, last_seq, verdict FROM decided WHERE operation=? ORDER BY attempt DESC LIMIT 1",
            (batch.operation,),
        ).fetchone()
        decided = {batch.operation: Standing(row[0], Seq(row[1]), Verdict(row[2]))} if row else {}
        return Ledger(self._shard, ledger.pending, decided).standing(batch)

    def restore(self, ledger: Ledger, latest: Mapping[int, Seq], prepares: Iterable[Record]) -> None:
        """Fill the empty tables."""
        ledger.latest |= latest
        self._set_latest(ledger.latest)
        for record in prepares:
            (op,) = record.batch().ops
            if not isinstance(op, Prepare):
                raise StorageCorrupt(f"the log holds no prepared batch at seq {record.last_seq}, where one should be")
            self.prepare(ledger, op, Seq(record.last_seq))

    def prune(self) -> None:
        """Forget verdicts with the operation ids (14)."""
        self._db.execute("DELETE FROM decided WHERE last_seq < (SELECT min(last_seq) FROM operations)")

    def _set_latest(self, latest: Mapping[int, Seq]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO latest(shard, seq) VALUES (?,?)", list(latest.items()))

    def _damaged(self, how: str) -> StorageCorrupt:
        return StorageCorrupt(f"{self._name} is damaged: {how}")


def read_showing(db: sqlite3.Connection, applied: Seq) -> Showing:
    """What the state that a connection sees says of batches."""
    pending = frozenset(Seq(at) for (at,) in db.execute("SELECT prepare_seq FROM pending"))
    return Showing(applied, pending, _latest(db))


def undecided_at(db: sqlite3.Connection, through: int) -> frozenset[Seq]:
    """The prepares that were applied and not decided once `through` was, which may be a while ago."""
    rows = db.execute(
        "SELECT prepare_seq FROM pending WHERE prepare_seq <= :through UNION "
        "SELECT prepare_seq FROM decided WHERE prepare_seq <= :through AND last_seq > :through",
        {"through": through},
    )
    return frozenset(Seq(at) for (at,) in rows)


def _latest(db: sqlite3.Connection) -> dict[int, Seq]:
    return {shard: Seq(seq) for shard, seq in db.execute("SELECT shard, seq FROM latest")}


def _crc(at: int, content: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(at.to_bytes(8, "little")), content))
