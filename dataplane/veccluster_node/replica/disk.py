"""A replica's disk as its loop uses it: the log, the stored epoch, a staged snapshot, and the room for them."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from veccluster import failpoints
from veccluster.decisions.replication.atomic import Ledger
from veccluster.decisions.replication.values import NOTHING, Record
from veccluster.model.state import Epoch, Seq
from veccluster_node.engine.feed import LocalFeed
from veccluster_node.engine.records import SUSPECT, Records
from veccluster_node.replica import snapshots
from veccluster_node.replica.settings import StorageSettings
from veccluster_node.runtime.files import disk_usage, write_durably
from veccluster_node.wal import epochs, operations
from veccluster_node.wal.log import Log
from veccluster_node.wal.operations import Written
from veccluster_node.wal.recent import RecentRecords


class ReplicaDisk:
    """`ports.ReplicaLog` on the replica's directory."""

    def __init__(self, path: Path, log: Log, settings: StorageSettings) -> None:
        self._path = path
        self._log = log
        self._settings = settings
        self._recent = RecentRecords()
        self._reserve = path / "reserve"

    @property
    def damage(self) -> str | None:
        """What is wrong with a log that must not be written any more."""
        return self._log.damage

    @damage.setter
    def damage(self, why: str | None) -> None:
        self._log.damage = why

    @property
    def is_durable(self) -> bool:
        """Whether all that was written is on the disk."""
        return self._log.durable_seq >= self._log.last_seq

    def store_epoch(self, epoch: Epoch) -> None:
        """Remember the highest epoch seen; durable when it returns."""
        epochs.write(self._path, epoch)

    def append(self, records: Sequence[Record]) -> None:
        """Write records behind the last one."""
        self._log.append([operations.Record(r.epoch, r.first, r.count, r.payload) for r in records], sync=False)
        self._recent.add(records)

    def truncate(self, after: Seq) -> None:
        """Cut what is behind `after`; durable when it returns."""
        self._recent.cut(after)
        self._log.truncate(after)

    def stage(self, content: object) -> None:
        """Let a verified snapshot take the replica's place; durable when it returns."""
        assert isinstance(content, snapshots.Offered)
        snapshots.stage(self._path, content)

    def sync(self) -> None:
        """Make the log durable."""
        self._log.sync()

    def read(self, after: Seq, through: Seq) -> Iterator[Record]:
        """The records that begin in (after, through]: from memory, if they were just written."""
        if self._recent.covers(after):
            yield from self._recent.between(after, through)
            return
        for r in self._log.read(after, through):
            if after < r.first_seq <= through:
                yield Record(Epoch(r.epoch), Seq(r.first_seq), r.count, r.op_id, r.payload)

    def trim(self, through: int) -> Seq:
        """Forget the log's segments up to `through`; what it begins with now."""
        self._log.trim(through)
        return Seq(self._log.first_seq)

    # -- room

    def is_full(self) -> bool:
        """Whether the disk has no room for upserts any more."""
        return disk_usage(self._path) >= self._settings.full_at

    def make_room(self) -> None:
        """Give up the reserve."""
        self._reserve.unlink(missing_ok=True)

    def keep_reserve(self) -> None:
        """Have the reserve, if there is room."""
        if not self._reserve.exists() and not self.is_full():
            with suppress(OSError):
                self._reserve.write_bytes(b"\0" * self._settings.reserve)

    # -- what the next opening should know

    def suspect_rows(self) -> None:
        """Have the rows made anew."""
        (self._path / SUSPECT).touch()

    def doubt(self, why: str) -> None:
        """Have this copy count as one that may lack what was acknowledged."""
        write_durably(self._path / snapshots.DOUBT, why.encode())


class LocalRows:
    """`ports.Rows` on the rows and the view of this process."""

    def __init__(self, records: Records, feed: LocalFeed) -> None:
        self._records = records
        self._feed = feed
        self.result_of = records.result_of
        self.standing = records.standing
        self.ids_matching = records.ids_matching
        self.known_since = records.known_since

    @property
    def applied_seq(self) -> int:
        """How far the log is applied."""
        return self._records.applied_seq

    @property
    def ledger(self) -> Ledger:
        """The cross-shard transactions that are prepared and not decided."""
        return self._records.ledger

    def apply(self, records: Sequence[Record], floor: Seq = NOTHING) -> list[Written]:
        """Apply records in one transaction, and show what they do."""
        failpoints.hit("apply")
        group = [operations.Record(r.epoch, r.first, r.count, r.payload) for r in records]
        return self._records.apply(group, self._feed.apply, floor=floor).results
