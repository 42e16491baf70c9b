"""Running digests of the living rows: what they should be, kept apart from what they are.

Each range of seqs has a digest: how many rows live in it, and the sum (mod 2^64) of a hash of each row's seq and
checksums. It changes in the transaction that changes the rows, by what is written and what is deleted, never by looking
at what is there. So a row that is lost, or changed together with its checksum, shows as a digest that does not
hold; one range is looked at in one short read (`scrub`). The sum over all ranges is noted at ends of records, so that
replicas can be compared as of the same seq while both go on (`decisions/integrity.py`).
"""

import sqlite3
import struct
from collections import deque
from collections.abc import Iterable, Sequence

import xxhash

from veccluster.decisions.integrity import RANGE, Digest, is_noted
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Seq

SCHEMA = """
CREATE TABLE IF NOT EXISTS digests(range INTEGER PRIMARY KEY, rows INTEGER NOT NULL, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS digest_notes(seq INTEGER PRIMARY KEY, rows INTEGER NOT NULL, value INTEGER NOT NULL);
"""
AS_OF = "digests_seq"
"""In `meta`: the state that the digests tell of. A version that does not keep them leaves it behind."""
_NOTES = 64
_NONE: Digest = (0, 0)
_MASK = (1 << 64) - 1
_pack = struct.Struct("<QII").pack
_hash = xxhash.xxh3_64_intdigest

Checked = tuple[int, int, int]
"""Of a row: its seq, and the checksums of its record and its vector."""


def row_hash(seq: int, record_crc: int, vector_crc: int) -> int:
    """What a living row adds to its range's digest."""
    return _hash(_pack(seq, record_crc, vector_crc))


def sum_of(rows: Iterable[Checked]) -> Digest:
    """The digest of rows."""
    count = value = 0
    for row in rows:
        count += 1
        value += _hash(_pack(*row))
    return count, value & _MASK


def checked_by_range(rows: Iterable[Checked]) -> dict[int, Digest]:
    """The digest of each range that has rows, as the table holds them."""
    found: dict[int, Digest] = {}
    for row in rows:
        count, value = found.get(row[0] // RANGE, _NONE)
        found[row[0] // RANGE] = (count + 1, (value + _hash(_pack(*row))) & _MASK)
    return {number: _signed(digest) for number, digest in found.items()}


class Digests:
    """Of the rows in one file; belongs to whoever writes it. Changes count from `commit` on."""

    def __init__(self, db: sqlite3.Connection, applied_seq: int) -> None:
        """Read them; worked out from the rows where nobody kept them, within the caller's transaction."""
        self._db = db
        self._ranges: dict[int, Digest] = {}
        self._changed: dict[int, Digest] = {}
        self._total: Digest = _NONE
        self._next: Digest = _NONE
        self._notes: deque[tuple[Seq, Digest]] = deque(maxlen=_NOTES)
        try:
            self._read(applied_seq)
        except (TypeError, struct.error) as error:
            raise StorageCorrupt(f"the digests cannot be read: {error}") from error

    def _read(self, applied_seq: int) -> None:
        db = self._db
        as_of = db.execute("SELECT value FROM meta WHERE key=?", (AS_OF,)).fetchone()
        if (as_of[0] if as_of else 0) == applied_seq:
            self._ranges = {r: (rows, value & _MASK) for r, rows, value in db.execute("SELECT * FROM digests")}
            self._total = _add(self._ranges.values())
            notes = db.execute("SELECT seq, rows, value FROM digest_notes ORDER BY seq")
            self._notes.extend((Seq(seq), (rows, value & _MASK)) for seq, rows, value in notes)
            return
        db.execute("DELETE FROM digests")
        db.execute("DELETE FROM digest_notes")
        self.change(db.execute("SELECT seq, r.crc, v.crc FROM records r JOIN vectors v USING(seq)"), ())
        self.store(applied_seq, applied_seq)
        db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (AS_OF, applied_seq))
        self.commit(applied_seq, applied_seq)

    @property
    def rows(self) -> int:
        """How many rows there should be."""
        return self._total[0]

    def notes(self, applied_seq: int) -> dict[Seq, Digest]:
        """What was noted, and what holds now."""
        return {**dict(self._notes), Seq(applied_seq): self._total}

    # -- within one transaction

    def change(self, born: Iterable[Checked], died: Sequence[Checked]) -> None:
        """Count rows in and out."""
        try:
            self._change(born, died)
        except (TypeError, struct.error) as error:
            raise StorageCorrupt(f"a row's checksum cannot be read: {error}") from error

    def _change(self, born: Iterable[Checked], died: Sequence[Checked]) -> None:
        changed: dict[int, Digest] = {}
        pack, hashed, ranges = _pack, _hash, self._ranges
        count, total = self._total
        for rows, sign in ((born, 1), (died, -1)):
            for row in rows:
                number = row[0] // RANGE
                value = sign * hashed(pack(*row))
                there = changed.get(number) or ranges.get(number) or _NONE
                changed[number] = (there[0] + sign, (there[1] + value) & _MASK)
                count += sign
                total += value
        self._changed, self._next = changed, (count, total & _MASK)

    def store(self, before: int, applied_seq: int) -> None:
        """Write what has changed; the caller says in `meta` what it is of (`AS_OF`). `before`: the last record's first
        seq - 1.
        """
        many = self._db.executemany
        many("INSERT OR REPLACE INTO digests VALUES (?,?,?)", [(n, *_signed(d)) for n, d in self._changed.items()])
        if gone := [(n,) for n, d in self._changed.items() if d == _NONE]:
            many("DELETE FROM digests WHERE range=?", gone)
        if is_noted(before, applied_seq):
            if len(self._notes) == _NOTES:
                self._db.execute("DELETE FROM digest_notes WHERE seq <= ?", (self._notes[0][0],))
            self._db.execute("INSERT OR REPLACE INTO digest_notes VALUES (?,?,?)", (applied_seq, *_signed(self._next)))

    def commit(self, before: int, applied_seq: int) -> None:
        """The transaction was committed."""
        self._ranges |= self._changed
        for number in [n for n, d in self._changed.items() if d == _NONE]:
            del self._ranges[number]
        self._total = self._next
        if is_noted(before, applied_seq):
            self._notes.append((Seq(applied_seq), self._total))


def _add(digests: Iterable[Digest]) -> Digest:
    rows = value = 0
    for some, part in digests:
        rows, value = rows + some, value + part
    return rows, value & _MASK


def _signed(digest: Digest) -> tuple[int, int]:
    """As SQLite can hold it."""
    rows, value = digest
    return rows, value - (1 << 64) if value >> 63 else value
