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

One thread writes; reading the past is safe from others.
"""

import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import structlog

from veccluster.errors import InsufficientStorage, OutcomeUnknown, StorageCorrupt, Unavailable
from veccluster_node.storage import failpoints
from veccluster_node.storage.files import is_no_space, reason, sync_directory, write_durably
from veccluster_node.storage.operations import Record

FORMAT = 1
_MAGIC = b"VCLSTLOG"
_HEADER = struct.Struct("<8sI8sQQI")
_RECORD = struct.Struct("<4sIIQQIQI")
_BODY = _RECORD.size - 4
"""The record's header without its CRC."""

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


@dataclass(slots=True)
class _Segment:
    path: Path
    first_seq: int
    follows: int
    """The last seq of the segment before: first_seq - 1, or less where there is a known gap."""
    seed: bytes
    last_seq: int
    """first_seq - 1 while it is empty."""
    size: int = _HEADER.size
    chain: int = 0


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


def _encode(record: Record, segment: _Segment, durable: int) -> tuple[bytes, int]:
    body = _RECORD.pack(
        segment.seed[:4], len(record.payload), segment.chain, record.epoch, record.first_seq, record.count, durable, 0
    )[:_BODY]
    crc = _crc(segment.seed, body, record.payload)
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


def _good_records(data: bytes, segment: _Segment) -> Iterator[_Found]:
    """Yield records from the start for as long as they are good, chained and dense."""
    at, chain, seq = _HEADER.size, _crc(segment.seed), segment.first_seq
    while (found := _decode_at(data, at, segment.seed)) and found.chain == chain and found.record.first_seq == seq:
        yield found
        at, chain, seq = found.end, found.crc, found.record.last_seq + 1


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
    return _Segment(path, first_seq, follows, seed, last_seq=first_seq - 1, chain=_crc(seed))


def _scan(path: Path) -> _Scan:
    data = path.read_bytes()
    segment = _read_header(path, data)
    for found in _good_records(data, segment):
        segment.last_seq, segment.size, segment.chain = found.record.last_seq, found.end, found.crc
    if segment.size == len(data):
        return _Scan(segment)
    problem = f"{path.name}: no good record at byte {segment.size}, where seq {segment.last_seq + 1} should begin"
    proven = _proven_durable(data, segment.size, segment.seed)
    return _Scan(segment, problem, proven, trailing=len(data) - segment.size)


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

    @classmethod
    def open(cls, path: Path, *, segment_size: int = 16 << 20, start: int = 1) -> "Log":
        """Open the log in directory `path`, or create one whose first seq is `start`; a torn tail is cut here."""
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob("*.tmp"):
            leftover.unlink()
        log = cls(path, segment_size)
        names = sorted(path.glob("*.log"))
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
        before = (segment.last_seq, segment.size, segment.chain)
        parts = []
        for record in records:
            data, segment.chain = _encode(record, segment, self.durable_seq)
            segment.last_seq, segment.size = record.last_seq, segment.size + len(data)
            parts.append(data)
        try:
            self._write(b"".join(parts))
            failpoints.hit("log.written")
        except OSError as error:
            segment.last_seq, segment.size, segment.chain = before
            self._undo(error)
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
        self._segments.append(_Segment(path, first_seq, follows, seed, first_seq - 1, chain=_crc(seed)))

    def read(self, after: int) -> Iterator[Record]:
        """Yield the good records that hold seqs beyond `after`, in order, up to the last written one of now."""
        last = self.last_seq
        for segment in list(self._segments):
            if segment.last_seq <= after:
                continue
            for found in _good_records(segment.path.read_bytes(), segment):
                if found.record.first_seq > last:
                    return
                if found.record.last_seq > after:
                    yield found.record

    def trim(self, through: int) -> None:
        """Forget whole segments that end at or before seq `through`; the newest one always stays."""
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
