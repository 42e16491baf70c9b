"""Open what a crash, or a tired disk, left of a shard: never a wrong answer, and as much as the files can give.

The log is the truth; rows are its derivative, and generations are derivatives of the rows. So a damaged generation
is made anew from the rows (and searched exactly from memory meanwhile), damaged rows from generations and log, and a
damaged log leaves the shard as it is: read-only, with an alarm. What is mended is a warning in the log and no more;
what needs a person is said in `issues` and `broken`, what is being mended in `mending`. Where other replicas have the
shard, a copy that is `damaged` is not worth a person's time: it is to be fetched anew from them.

Nothing of the log is applied here: what is behind the rows may never have been committed (10).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import structlog

from veccluster.decisions.replication.journal import Recovered as Found
from veccluster.decisions.replication.values import EMPTY, NO_EPOCH, Lineage
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Epoch, Seq
from veccluster_node.engine import generations, vacuum
from veccluster_node.engine.distance import U64
from veccluster_node.engine.feed import LocalFeed, Slot
from veccluster_node.engine.generations import Generation, Shelf
from veccluster_node.engine.records import ROWS, SUSPECT, Records, Snapshot, Snapshots
from veccluster_node.engine.view import ALIVE, Segment, Tail, segment_of
from veccluster_node.replica import snapshots
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.replica.snapshots import DOUBT
from veccluster_node.runtime.files import files_in, make_directory, sync_directory, write_durably
from veccluster_node.wal import epochs
from veccluster_node.wal.log import Log

__all__ = ["ROWS", "SUSPECT", "Recovered", "Recovery", "recover"]

_READ = 4096
"""Vectors read from the rows at once."""
_END_UNKNOWN = (
    "the end of the log, behind seq {seq}, was torn and the rows were lost, too: whether anything acknowledged was "
    "there is not known; look for what was written last, and write again what is missing"
)

_END_LOST = (
    "the log ends at seq {last}, but the rows hold everything up to {applied}, and it goes on from there: nothing that "
    "the rows show is lost; what else was durable behind it is"
)

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Recovered:
    """An opened shard. `broken` says why it is read-only; `mending` holds until no generation is damaged.

    `damaged` says why this copy may lack something that was acknowledged, or cannot be trusted: it holds until the
    copy is replaced. What is `broken` is damaged, too.
    """

    log: Log
    records: Records
    shelf: Shelf
    feed: LocalFeed
    found: Found
    issues: list[str] = field(default_factory=list)
    mending: list[str] = field(default_factory=list)
    broken: str | None = None
    damaged: str | None = None


class Recovery:
    """Opens one shard; use `recover`."""

    def __init__(self, path: Path, spec: ReplicaSpec, settings: StorageSettings) -> None:
        self.path = path
        self.spec = spec
        self.settings = settings
        self.issues: list[str] = []
        self.mending: list[str] = []
        self.broken: list[str] = []
        self.doubts: list[str] = []

    def run(self) -> Recovered:
        """Open log, rows, generations, in this order, and make them agree."""
        make_directory(self.path)
        if snapshots.finish(self.path):
            _log.info("snapshot_installed", shard=str(self.spec.shard))
        if (self.path / DOUBT).exists():
            self.doubts.append((self.path / DOUBT).read_text(errors="replace"))
        epoch = self._read_epoch()
        shelf = self._open_shelf()
        log = self._open_log()
        records = self._open_records(log, shelf)
        try:
            found = self._join(log, records, epoch)
            feed = self._open_feed(records, shelf)
        except BaseException:
            records.close()
            log.close()
            raise
        shelf.clean()
        return Recovered(
            log,
            records,
            shelf,
            feed,
            found,
            self.issues,
            self.mending,
            broken="; ".join(self.broken) or None,
            damaged="; ".join(self.broken + self.doubts) or None,
        )

    def _warn(self, event: str, sentence: str, **facts: object) -> str:
        """Log what is not as it should be; the sentence with its shard, for whoever has to be told too."""
        _log.warning(event, shard=str(self.spec.shard), **facts, detail=sentence)
        return f"Shard {self.spec.shard}: {sentence}"

    def _fail(self, event: str, sentence: str) -> None:
        """Go on read-only."""
        self._warn(event, sentence)
        self.broken.append(sentence)

    def _doubt(self, sentence: str) -> None:
        """Remember for good that something acknowledged may be missing: what shows it is mended now."""
        self.doubts.append(sentence)
        write_durably(self.path / DOUBT, "; ".join(self.doubts).encode())

    def _read_epoch(self) -> Epoch:
        try:
            return epochs.read(self.path)
        except StorageCorrupt as error:
            if "is newer than" in error.detail:
                raise
            self._fail("epoch_damaged", error.detail)
            return NO_EPOCH

    # -- log

    def _open_log(self) -> Log:
        path = self.path / "log"
        anything_else = any((self.path / name).exists() for name in (ROWS, "CURRENT", epochs.FILE))
        fresh = not path.is_dir() or not files_in(path, ".log")
        log = Log.open(path, segment_size=min(self.settings.segment_size, max(1, self.settings.max_wal_size // 8)))
        if log.torn:
            self._warn("log_torn", log.torn, seq=log.last_seq)
        if log.damage:
            self._fail("log_damaged", f"the log is damaged: {log.damage}")
        elif fresh and anything_else:
            self._fail("log_missing", "the log is missing")
            log.damage = "it is missing"
        return log

    def _join(self, log: Log, records: Records, epoch: Epoch) -> Found:
        """See that the log goes on where the rows end, and say what there is."""
        applied = records.applied_seq
        if log.last_seq > applied and log.dense_from > applied + 1:
            self._fail("log_gap", f"operations {applied + 1} to {log.dense_from - 1} are missing")
            return Found(epoch, records.lineage, Seq(applied + 1), Seq(applied), Seq(applied))
        if log.last_seq < applied and not log.damage:
            sentence = _END_LOST.format(last=log.last_seq, applied=applied)
            self._warn("log_behind", sentence, seq=applied)
            if self.settings.wal_sync == "always":
                self._doubt(sentence)
            records.sync()
            log.roll(start=applied + 1)
        lineage = _joined(records.lineage, log, applied)
        if lineage.newest > epoch and not self.broken:
            epoch = lineage.newest
            epochs.write(self.path, epoch)  # the log shows it now, and may be cut
        return Found(
            epoch=epoch,
            lineage=lineage,
            first=Seq(log.dense_from if log.last_seq >= applied else applied + 1),
            last=Seq(max(log.last_seq, applied)),
            applied=Seq(applied),
            operations={record.op_id: Seq(record.last_seq) for record in log.read(applied)},
        )

    # -- rows

    def _open_records(self, log: Log, shelf: Shelf) -> Records:
        path, suspect = self.path / ROWS, self.path / SUSPECT
        why = f"a checksum in {ROWS} did not hold" if suspect.exists() else None
        if why is None and not path.exists() and (log.first_seq > 1 or shelf.current.generations):
            why = f"{ROWS} is missing"
        lost = why is not None
        if why is None and path.exists() and vacuum.renew(path):
            _log.info("rows_renewed", shard=str(self.spec.shard))
        if why is None:
            try:
                records = self._records(path, history=log.lineage)
            except StorageCorrupt as error:
                if "is newer than" in error.detail:
                    raise
                why, lost = error.detail, True
            else:
                if log.dense_from <= records.applied_seq + 1 or not self._can_go_on(log, shelf):
                    return records
                why = f"they end at seq {records.applied_seq}, and the log begins at {log.dense_from}"
                records.close()
        suspect.touch()
        sync_directory(self.path)
        records = self._rebuild_records(path, log, shelf, why, lost=lost)
        records.sync()
        suspect.unlink()
        return records

    def _records(self, path: Path, history: Lineage = EMPTY) -> Records:
        spec, kept = self.spec, self.settings.operations_kept
        return Records(path, number=spec.shard.number, filterable=spec.filterable, history=history, kept=kept)

    def _can_go_on(self, log: Log, shelf: Shelf) -> bool:
        """Whether rows that are made from generations would reach to where the log begins; they are older if not."""
        lists = (shelf.current.generations, shelf.current.previous)
        return any(self._whole_before(log.dense_from, shelf, names) for names in lists)

    def _whole_before(self, first: int, shelf: Shelf, names: Sequence[str]) -> list[Generation] | None:
        """The generations of a list, if all of them can be read and nothing before `first` is needed besides."""
        whole = self._open_whole(shelf, names)
        if whole is None:
            return None
        needed = (whole[-1].manifest.through + 1, *whole[-1].manifest.undecided) if whole else (1,)
        return whole if min(needed) >= first else None

    def _rebuild_records(self, path: Path, log: Log, shelf: Shelf, why: str, *, lost: bool) -> Records:
        """Make the rows from the newest list of generations that is whole; the log behind it is replayed later.

        `lost`: what was there cannot say any more whether the log's end is all that it was.
        """
        if log.torn and lost:
            self._doubt(_END_UNKNOWN.format(seq=log.last_seq))
        for older in self.path.glob(f"damaged-{ROWS}*"):
            older.unlink()
        for file in self.path.glob(f"{ROWS}*"):
            file.replace(file.with_name(f"damaged-{file.name}"))
        records = self._records(path)
        for names in (shelf.current.generations, shelf.current.previous, ()):
            whole = self._whole_before(log.first_seq, shelf, names)
            if whole is None:
                continue
            through = whole[-1].manifest.through if whole else 0
            undecided = whole[-1].manifest.undecided if whole else ()
            records.restore(
                _living_rows(whole),
                applied_seq=through,
                lineage=whole[-1].manifest.history() if whole else EMPTY,
                latest=whole[-1].manifest.latest if whole else {},
                prepares=[next(log.read(at - 1, at)) for at in undecided],
                since=_noted_at(log, through),
            )
            self._warn(
                "records_rebuilt",
                f"the rows are made anew from generations and log, since {why}",
                seq=through,
            )
            if log.torn and lost:
                self.issues.append(self._warn("end_unknown", _END_UNKNOWN.format(seq=log.last_seq)))
            floor = max((g.manifest.floor for g in whole), default=0)
            if log.last_seq < floor:
                self._fail("records_incomplete", f"operations {log.last_seq + 1} to {floor} are missing: {why}")
            return records
        self._fail("records_lost", f"{why}, and neither generations nor log hold everything before seq {log.first_seq}")
        return records

    def _open_whole(self, shelf: Shelf, names: Sequence[str]) -> list[Generation] | None:
        try:
            return [self._open(shelf, name) for name in names]
        except StorageCorrupt:
            return None

    # -- generations and tail

    def _open_shelf(self) -> Shelf:
        try:
            return Shelf(self.path)
        except StorageCorrupt as error:
            if "is newer than" in error.detail:
                raise
            (self.path / "CURRENT").replace(self.path / "damaged-CURRENT")
            shelf = Shelf(self.path)
            shelf.switch(shelf.rebuilt_from_directories().generations)
            self._warn("current_rebuilt", f"{error.detail}; the list of generations was made anew from what is there")
            return shelf

    def _open(self, shelf: Shelf, name: str) -> Generation:
        generation = generations.open_generation(shelf.path / name, handles=self.settings.search_handles)
        manifest = generation.manifest
        if (manifest.dimension, manifest.metric) != (self.spec.dimension, self.spec.metric):
            raise StorageCorrupt(f"generation {name} is of {manifest.dimension} dimensions under {manifest.metric}")
        return generation

    def _open_feed(self, records: Records, shelf: Shelf) -> LocalFeed:
        snapshots = Snapshots(self.path / ROWS)
        try:
            with snapshots.take() as snapshot:
                slots = [self._open_slot(shelf, name, snapshot) for name in shelf.current.generations]
                tail = Tail(self.spec.dimension, slots[-1].through if slots else 0)
                for segment in self._segments(snapshot, snapshot.live_seqs(tail.after)):
                    tail.append(segment.seqs.tolist(), segment.vectors)
        finally:
            snapshots.close()
        return LocalFeed(slots, tail, floor=records.applied_seq, dimension=self.spec.dimension)

    def _open_slot(self, shelf: Shelf, name: str, snapshot: Snapshot) -> Slot:
        after, through = generations.range_of(name)
        living = snapshot.live_seqs(after, through)
        try:
            segment = self._open(shelf, name).segment
            rows, here = segment.find(living)
            if not here.all():
                raise StorageCorrupt(f"generation {name} lacks {np.count_nonzero(~here)} vectors")  # noqa: TRY301
            segment.died[:] = 0
            segment.died[rows] = ALIVE
            return Slot(name, after, through, segment)
        except StorageCorrupt as error:
            if "is newer than" in error.detail:
                raise
            said = self._warn("generation_damaged", f"{error.detail}; it is being rebuilt from the rows")
            self.mending.append(said)
            shelf.set_aside(name)
        return Slot(name, after, through, self._resident(snapshot, living), damaged=True)

    def _resident(self, snapshot: Snapshot, living: U64) -> Segment:
        return resident(snapshot, living, self.spec.dimension)

    def _segments(self, snapshot: Snapshot, seqs: U64) -> Iterator[Segment]:
        return _segments(snapshot, seqs, self.spec.dimension)


def resident(snapshot: Snapshot, living: U64, dimension: int) -> Segment:
    """The rows of a generation in memory, to search exactly while it is damaged."""
    parts = list(_segments(snapshot, living, dimension))
    vectors = [p.vectors for p in parts] or [np.zeros((0, dimension), np.float32)]
    return segment_of(living, np.concatenate(vectors))


def _segments(snapshot: Snapshot, seqs: U64, dimension: int) -> Iterator[Segment]:
    for i in range(0, len(seqs), _READ):
        some = seqs[i : i + _READ]
        yield segment_of(some, snapshot.vectors(some.tolist(), dimension))


def recover(path: Path, spec: ReplicaSpec, settings: StorageSettings) -> Recovered:
    """Open the shard in directory `path`, or make an empty one."""
    return Recovery(path, spec, settings).run()


def _noted_at(log: Log, through: int) -> int:
    """A time that no operation up to `through` was noted after, as far as the log says; 0 if there were none."""
    if not through:
        return 0
    near = (r.time_ns for r in log.read(max(through, log.first_seq) - 1, log.last_seq))
    return next(near, time.time_ns())


def _living_rows(whole: Sequence[Generation]) -> Iterator[tuple[int, str, bytes, bytes]]:
    """The rows of a list of generations that were alive when the newest was built."""
    dead = set(np.concatenate([np.zeros(0, np.uint64), *(generations.dead_seqs(g.path) for g in whole)]).tolist())
    return (row for row in chain.from_iterable(generations.rows_of(g.path) for g in whole) if row[0] not in dead)


def _joined(rows: Lineage, log: Log, applied: int) -> Lineage:
    """The lineage of the rows, and of the log behind them."""
    if log.last_seq <= applied:
        return rows
    lineage, behind = rows, log.lineage
    for first in (applied + 1, *(run.first for run in behind.runs if run.first > applied + 1)):
        lineage = lineage.followed_by(behind.epoch_at(Seq(first)), Seq(first))
    return lineage
