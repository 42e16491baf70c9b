"""The log of one shard replica: segments of records, each durable before anyone is told about it.

A segment is a header (magic, format version, random seed, first seq, the seq that it follows, CRC) and records. A
segment follows the one before without a gap, except where `roll(start=...)` left one on purpose. A record is

    marker  4 bytes of the segment's seed: where a record may begin
    length  of the payload
    chain   the CRC of the record before (of the first: the seed)
    epoch, first seq, count
    durable the last seq that was known to be on the disk when this record was written
    crc     CRC32C, started with the seed, over all of the above and the payload

A record can be checked by itself, wherever it is found. That is how damage is told from a crash: behind a bad record, a
good one whose `durable` reaches the bad one's seq proves that it once was whole on the disk (`damage`: nothing may
be cut); without such a witness it is what a crash leaves of writes that nobody was told about (a torn tail: copied
aside and cut).

What is not committed may be cut again (`truncate`): later segments go first, the newest before the others, so that a
crash in between leaves a longer log and never one with a hole.

One thread writes; reading the past is safe from others, who see less than they asked for when it is cut meanwhile.
"""

import os
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import structlog

from veccluster import failpoints
from veccluster.decisions.replication.values import EMPTY, Lineage
from veccluster.errors import InsufficientStorage, OutcomeUnknown, StorageCorrupt, Unavailable
from veccluster.model.state import Epoch, Seq
from veccluster_node.runtime.files import (
    files_in,
    is_no_space,
    make_directory,
    reason,
    sync_directory,
    unreadable,
    write_durably,
)
from veccluster_node.wal.operations import Record

FORMAT = 1
_MAGIC = b"VCLSTLOG"
_HEADER = struct.Struct("<8sI8sQQI")
_RECORD = struct.Struct("<4sIIQQIQI")
_BODY = _RECORD.size - 4
"""The record's header without its CRC."""
_MARK_EVERY = 256 << 10
_WORTH_A_ROLL = 256 << 10
"""Bytes of a last segment that are not kept just because it is the last."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """A good record at `start` of some segment's bytes."""

    start: int
    end: int
    crc: int
    chain: int
    durable: int
    record: Record


class _Mark(NamedTuple):
    """A place between two records, where reading can begin: the last seq and the CRC of the record before it."""

    after: int
    at: int
    chain: int


@dataclass(slots=True)
class _Segment:
    path: Path
    first_seq: int
    follows: int
    """The last seq of the segment before: first_seq - 1, or less where there is a known gap."""
    seed: bytes
    end: _Mark
    marks: list[_Mark]
    """Some of its places, about `_MARK_EVERY` bytes apart; the first is its start."""
    lineage: Lineage = EMPTY

    @classmethod
    def empty(cls, path: Path, first_seq: int, follows: int, seed: bytes) -> "_Segment":
        start = _Mark(first_seq - 1, _HEADER.size, _crc(seed))
        return cls(path, first_seq, follows, seed, start, [start])

    @property
    def last_seq(self) -> int:
        """first_seq - 1 while it is empty."""
        return self.end.after

    @property
    def size(self) -> int:
        return self.end.at

    def grow(self, record: Record, end: _Mark) -> None:
        """Note a record that was written, or found, at the end; readers of other threads see it from now on."""
        self.lineage = self.lineage.followed_by(Epoch(record.epoch), Seq(record.first_seq))
        if end.at - self.marks[-1].at >= _MARK_EVERY:
            self.marks.append(end)
        self.end = end

    def shrink(self, end: _Mark) -> None:
        """Note that it was cut at `end`."""
        self.lineage = self.lineage.cut(Seq(end.after))
        self.marks = [mark for mark in self.marks if mark.at <= end.at]
        self.end = end

    def blocks(self, after: int) -> Iterator[tuple[_Mark, _Mark]]:
        """The parts, from mark to mark, that hold what is beyond `after`."""
        end, marks = self.end, self.marks[:]
        places = [*(mark for mark in marks if mark.at < end.at), end]
        first = max(0, bisect_right(places, after, key=lambda mark: mark.after) - 1)
        yield from zip(places[first:], places[first + 1 :], strict=False)


@dataclass(frozen=True, slots=True)
class _Scan:
    segment: _Segment
    """As far as it is good."""
    problem: str | None = None
    proven: int = 0
    """The highest `durable` of good records behind the problem; 0 when there are none."""
    trailing: int = 0
    """Bytes behind the good part."""


def _crc(seed: bytes, *parts: bytes | memoryview) -> int:
    crc: int = google_crc32c.value(seed)
    for part in parts:
        crc = google_crc32c.extend(crc, bytes(part))
    return crc


def _encode(record: Record, seed: bytes, chain: int, durable: int) -> tuple[bytes, int]:
    body = _RECORD.pack(seed[:4], len(record.payload), chain, record.epoch, record.first_seq, record.count, durable, 0)[
        :_BODY
    ]
    crc = _crc(seed, body, record.payload)
    return b"".join((body, crc.to_bytes(4, "little"), record.payload)), crc


def _decode_at(data: bytes, at: int, seed: bytes) -> _Found | None:
    """Read the record that begins at `at`, or None when no whole, good record does."""
    if at + _RECORD.size > len(data):
        return None
    marker, length, chain, epoch, first_seq, count, durable, crc = _RECORD.unpack_from(data, at)
    end = at + _RECORD.size + length
    if marker != seed[:4] or end > len(data):
        return None
    payload = data[at + _RECORD.size : end]
    if crc != _crc(seed, data[at : at + _BODY], payload):
        return None
    return _Found(at, end, crc, chain, durable, Record(epoch, first_seq, count, payload))


def _good_records(data: bytes, seed: bytes, start: _Mark) -> Iterator[tuple[Record, _Mark]]:
    """Yield records, and where each ends, for as long as they are good, chained and dense; `data` begins at `start`."""
    at, end = 0, start
    while (
        (found := _decode_at(data, at, seed)) and found.chain == end.chain and found.record.first_seq == end.after + 1
    ):
        at, end = found.end, _Mark(found.record.last_seq, start.at + found.end, found.crc)
        yield found.record, end


def _proven_durable(data: bytes, start: int, seed: bytes) -> int:
    """The highest `durable` that any good record at or behind `start` claims."""
    proven, at = 0, start
    while (at := data.find(seed[:4], at)) >= 0:
        found = _decode_at(data, at, seed)
        proven = max(proven, found.durable if found else 0)
        at = found.end if found else at + 1
    return proven


def _read_header(path: Path, data: bytes) -> _Segment:
    """Check a segment's header; `StorageCorrupt` when it is damaged or newer than this version."""
    if len(data) < _HEADER.size:
        raise StorageCorrupt(f"{path.name}: the log segment is shorter than its header")
    magic, version, seed, first_seq, follows, crc = _HEADER.unpack_from(data)
    if magic == _MAGIC and version > FORMAT:
        raise StorageCorrupt(f"{path.name}: log format {version} is newer than {FORMAT}, which this version reads")
    if magic != _MAGIC or crc != google_crc32c.value(data[: _HEADER.size - 4]):
        raise StorageCorrupt(f"{path.name}: the header of the log segment is damaged")
    if path.name != _segment_name(first_seq):
        raise StorageCorrupt(f"{path.name}: the log segment says that it starts at seq {first_seq}")
    return _Segment.empty(path, first_seq, follows, seed)


def _scan(path: Path) -> _Scan:
    data = path.read_bytes()
    segment = _read_header(path, data)
    for record, end in _good_records(data[_HEADER.size :], segment.seed, segment.end):
        segment.grow(record, end)
    if segment.size == len(data):
        return _Scan(segment)
    problem = f"{path.name}: no good record at byte {segment.size}, where seq {segment.last_seq + 1} should begin"
    proven = _proven_durable(data, segment.size, segment.seed)
    return _Scan(segment, problem, proven, trailing=len(data) - segment.size)


def _read_between(path: Path, start: _Mark, end: _Mark) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start.at)
            return file.read(end.at - start.at)
    except OSError as error:
        raise unreadable(f"{path.name}: the log segment", error) from error


def _segment_name(first_seq: int) -> str:
    return f"{first_seq:020d}.log"


@dataclass(slots=True)
class Log:
    """Use `Log.open`. Attributes are for reading only.

    `damage` says what is wrong with a log that must not be written any more; what was good before the damage can be
    read. `torn` says what was cut off when it was opened.
    """

    path: Path
    segment_size: int
    durable_seq: int = 0
    """Everything up to here survives a power failure."""
    torn: str | None = None
    damage: str | None = None
    _segments: list[_Segment] = field(default_factory=list)
    _fd: int = -1
    _failed: str | None = None
    _cuts: int = 0
    """How often something was taken away: what a reader of another thread misses then is no damage."""

    @classmethod
    def open(cls, path: Path, *, segment_size: int = 16 << 20, start: int = 1) -> "Log":
        """Open the log in directory `path`, or create one whose first seq is `start`; a torn tail is cut here."""
        make_directory(path)
        for leftover in files_in(path, ".tmp"):
            leftover.unlink()
        log = cls(path, segment_size)
        names = files_in(path, ".log")
        if names:
            log._recover(names)
        else:
            log._start_segment(start)
        log.durable_seq = log.last_seq
        return log

    @property
    def first_seq(self) -> int:
        """The first seq that it still holds (or will hold)."""
        return self._segments[0].first_seq if self._segments else 1

    @property
    def last_seq(self) -> int:
        """The last seq that was written, durable or not."""
        return self._segments[-1].last_seq if self._segments else 0

    @property
    def dense_from(self) -> int:
        """The first seq from which on it holds everything: its first one, or the one behind its last known gap."""
        gaps = (s.first_seq for s in reversed(self._segments) if s.follows < s.first_seq - 1)
        return next(gaps, self.first_seq)

    @property
    def lineage(self) -> Lineage:
        """Which epoch wrote what it holds from `dense_from` on."""
        lineage, start = EMPTY, self.dense_from
        for segment in self._segments:
            for run in segment.lineage.runs if segment.first_seq >= start else ():
                lineage = lineage.followed_by(run.epoch, run.first)
        return lineage

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(s.size for s in self._segments)

    def size_behind(self, seq: int) -> int:
        """Bytes of the segments that hold anything beyond `seq`: what trimming through it would leave."""
        return sum(s.size for s in self._segments if s.last_seq > seq)

    def _recover(self, paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                scan = _scan(path)
            except StorageCorrupt as error:
                self.damage = error.detail
                return
            if self._segments and scan.segment.follows != self.last_seq:
                self.damage = f"{path.name}: what should be between seq {self.last_seq} and this segment is missing"
                return
            self._segments.append(scan.segment)
            if scan.problem and (path != paths[-1] or scan.proven > scan.segment.last_seq):
                self.damage = scan.problem
                return
            if scan.problem:
                self._cut_torn_tail(scan)
        self._fd = os.open(self._segments[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.fsync(self._fd)

    def _cut_torn_tail(self, scan: _Scan) -> None:
        segment = scan.segment
        aside = self.path / f"torn-{segment.path.stem}-{segment.size}-{time.time_ns()}"
        with segment.path.open("rb") as file:
            file.seek(segment.size)
            write_durably(aside, file.read())
        os.truncate(segment.path, segment.size)
        self.torn = f"{scan.problem}; the {scan.trailing} bytes there were cut off, and are kept in {aside.name}"

    def append(self, records: Sequence[Record], *, sync: bool = True) -> None:
        """Write records behind the last one in one piece, and make them durable if `sync`.

        `InsufficientStorage`: nothing of it was stored, and the log goes on. `OutcomeUnknown`: the log is sealed
        until it is opened again, since after a failed fsync nobody knows what the disk holds.
        """
        self.check_writable()
        if self._segments[-1].size >= self.segment_size:
            self.roll()
        segment = self._segments[-1]
        if records[0].first_seq != segment.last_seq + 1:
            raise ValueError(f"seq {records[0].first_seq} does not follow {segment.last_seq}")
        parts, ends = [], [segment.end]
        for record in records:
            data, chain = _encode(record, segment.seed, ends[-1].chain, self.durable_seq)
            parts.append(data)
            ends.append(_Mark(record.last_seq, ends[-1].at + len(data), chain))
        try:
            self._write(b"".join(parts))
            failpoints.hit("log.written")
        except OSError as error:
            self._undo(error)
        for record, end in zip(records, ends[1:], strict=True):
            segment.grow(record, end)
        if sync:
            self.sync()

    def _write(self, data: bytes) -> None:
        failpoints.hit("log.write")
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _undo(self, error: OSError) -> None:
        """Take back a failed write; always raises."""
        try:
            os.ftruncate(self._fd, self._segments[-1].size)
        except OSError as second:
            self._seal(f"a write failed ({reason(error)}) and so did taking it back ({reason(second)})", error)
        if is_no_space(error):
            raise InsufficientStorage("the disk is full; nothing was stored") from error
        self._seal(f"a write failed: {reason(error)}", error)

    def sync(self) -> None:
        """Make everything written so far durable; `OutcomeUnknown` seals the log."""
        self.check_writable()
        last = self.last_seq
        try:
            failpoints.hit("log.sync")
            os.fdatasync(self._fd)
        except OSError as error:
            self._seal(f"the disk could not confirm a write ({reason(error)})", error)
        failpoints.hit("log.synced")
        self.durable_seq = last

    def _seal(self, why: str, error: OSError) -> None:
        self._failed = why
        _log.error("log_sealed", path=str(self.path), durable_seq=self.durable_seq, detail=why)
        raise OutcomeUnknown(f"the log was sealed, since {why}; whether this write was stored is not known") from error

    def check_writable(self) -> None:
        """Raise what a writer must be told: `StorageCorrupt` for a damaged log, `Unavailable` for a sealed one."""
        if self.damage:
            raise StorageCorrupt(f"the log is damaged, so the shard is read-only: {self.damage}")
        if self._failed:
            raise Unavailable(f"the log is sealed until the shard is opened again, since {self._failed}")

    def roll(self, *, start: int | None = None) -> None:
        """Go on in a new segment, whose first seq is the next one, or `start` when what is between is kept
        elsewhere.
        """
        first_seq, previous = start or self.last_seq + 1, self._fd
        if self._segments[-1].first_seq == first_seq:
            return
        self.sync()
        try:
            self._start_segment(first_seq)
        except OSError as error:
            if is_no_space(error):
                raise InsufficientStorage("the disk is full; nothing was stored") from error
            self._seal(f"a new segment could not be made ({reason(error)})", error)
        os.close(previous)
        self.durable_seq = max(self.durable_seq, self.last_seq)

    def _start_segment(self, first_seq: int) -> None:
        seed = os.urandom(8)
        path = self.path / _segment_name(first_seq)
        follows = self.last_seq if self._segments else first_seq - 1
        header = _HEADER.pack(_MAGIC, FORMAT, seed, first_seq, follows, 0)[:-4]
        failpoints.hit("log.roll")
        write_durably(path, header + google_crc32c.value(header).to_bytes(4, "little"))
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._segments.append(_Segment.empty(path, first_seq, follows, seed))

    def read(self, after: int, through: int | None = None) -> Iterator[Record]:
        """Yield the records that hold seqs beyond `after` and begin at or before `through`, in order; without
        `through`, up to the last one of now.

        `StorageCorrupt`: one that was good when the log was opened can no longer be read.
        """
        last = self.last_seq if through is None else min(through, self.last_seq)
        cuts = self._cuts
        for segment in list(self._segments):
            if segment.last_seq > after and segment.first_seq <= last:
                try:
                    yield from self._read(segment, after, last)
                except StorageCorrupt:
                    if cuts == self._cuts:
                        raise
                    return

    @staticmethod
    def _read(segment: _Segment, after: int, last: int) -> Iterator[Record]:
        for start, end in segment.blocks(after):
            reached = start
            for record, place in _good_records(_read_between(segment.path, start, end), segment.seed, start):
                reached = place
                if record.first_seq > last:
                    return
                if record.last_seq > after:
                    yield record
            if reached != end:
                raise StorageCorrupt(f"{segment.path.name}: seq {reached.after + 1} can no longer be read")

    def check(self) -> Iterator[int]:
        """Read everything that it holds now once more, and yield how many bytes were good, bit by bit.

        `StorageCorrupt`: what was good when it was written is so no longer.
        """
        cuts = self._cuts
        for segment in list(self._segments):
            try:
                _read_header(segment.path, _read_between(segment.path, _Mark(0, 0, 0), _Mark(0, _HEADER.size, 0)))
                for record in self._read(segment, segment.first_seq - 1, segment.last_seq):
                    yield _RECORD.size + len(record.payload)
            except StorageCorrupt:
                if cuts == self._cuts:
                    raise
                return

    def truncate(self, after: int) -> None:
        """Cut everything behind seq `after`, durably; a crash meanwhile leaves a part of it, from its start.

        `after` is the last seq of a record, or `dense_from` - 1. `OutcomeUnknown` seals the log.
        """
        self.check_writable()
        if not self.dense_from - 1 <= after <= self.last_seq:
            raise ValueError(f"cannot cut behind seq {after}: the log holds {self.dense_from} to {self.last_seq}")
        if after == self.last_seq:
            return
        kept = next(s for s in reversed(self._segments) if s.first_seq <= after + 1)
        end = self._end_of(kept, after)
        self._cuts += 1
        try:
            self._unlink_behind(kept)
            failpoints.hit("log.cut")
            os.ftruncate(self._fd, end.at)
            failpoints.hit("log.cut_written")
            os.fsync(self._fd)
        except OSError as error:
            self._seal(f"its end could not be cut ({reason(error)})", error)
        kept.shrink(end)
        self.durable_seq = after

    def _end_of(self, segment: _Segment, after: int) -> _Mark:
        """Where the record ends whose last seq is `after`."""
        start = next((start for start, _ in segment.blocks(after)), segment.end)
        if start.after == after:
            return start
        data = _read_between(segment.path, start, segment.end)
        ends = (end for _, end in _good_records(data, segment.seed, start))
        if found := next((end for end in ends if end.after >= after), None):
            if found.after == after:
                return found
            raise ValueError(f"cannot cut behind seq {after}: it is in the middle of a record")
        raise StorageCorrupt(f"{segment.path.name}: seq {after} can no longer be read")

    def _unlink_behind(self, kept: _Segment) -> None:
        """Make `kept` the last segment: the newest goes first, and for good, so that no hole is ever left."""
        if self._segments[-1] is kept:
            return
        os.close(self._fd)
        self._fd = os.open(kept.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        while self._segments[-1] is not kept:
            failpoints.hit("log.unlink")
            self._segments.pop().path.unlink()
            sync_directory(self.path)

    def trim(self, through: int) -> None:
        """Forget whole segments that end at or before seq `through`. The newest one always stays; if it is large and
        not needed either, a new one is begun.
        """
        if self._segments[-1].last_seq <= through and self._segments[-1].size > _WORTH_A_ROLL:
            with suppress(InsufficientStorage):
                self.roll()
        self._cuts += 1
        while len(self._segments) > 1 and self._segments[0].last_seq <= through:
            failpoints.hit("log.trim")
            self._segments.pop(0).path.unlink()
        sync_directory(self.path)

    def close(self) -> None:
        """Make what can be made durable so, and let go of the file."""
        if self._fd >= 0:
            try:
                if not self._failed and not self.damage:
                    os.fdatasync(self._fd)
            finally:
                os.close(self._fd)
                self._fd = -1
