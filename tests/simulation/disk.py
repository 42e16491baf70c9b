"""A disk: what was written is certain to be there after a crash only when a sync that came later has ended."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from simulation.world import World
from veccluster.decisions.replication.atomic import Ledger
from veccluster.decisions.replication.journal import FIRST, Recovered
from veccluster.decisions.replication.values import EMPTY, NO_EPOCH, NOTHING, Lineage, Record
from veccluster.errors import InsufficientStorage
from veccluster.model.state import Epoch, Seq

Table = dict[str, tuple[str, bool]]
"""By key: the operation that wrote it last, and whether that deleted it (kept, so that a checker can tell versions)."""


@dataclass(frozen=True)
class Base:
    """A state that was applied, which stands for the log up to `through`."""

    through: Seq = NOTHING
    lineage: Lineage = EMPTY
    table: Table = field(default_factory=dict)
    results: dict[str, Seq] = field(default_factory=dict)
    """Operation ids and their last seqs."""
    ledger: Ledger | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Image:
    """Everything on a disk."""

    epoch: Epoch = NO_EPOCH
    base: Base = field(default_factory=Base)
    log: tuple[Record, ...] = ()
    staged: Base | None = None
    """A snapshot that takes the place of the rest when the replica is opened again."""

    @property
    def last(self) -> Seq:
        return self.log[-1].last if self.log else self.base.through

    def has(self, op_id: str) -> bool:
        return op_id in self.base.results or any(r.op_id == op_id for r in self.log)

    def operations(self) -> set[str]:
        return self.base.results.keys() | {r.op_id for r in self.log}

    def lineage(self) -> Lineage:
        lineage = self.base.lineage
        for record in self.log:
            lineage = lineage.followed_by(record.epoch, record.first)
        return lineage

    def opened(self) -> "Image":
        """With a staged snapshot in its place."""
        return replace(self, base=self.staged, log=(), staged=None) if self.staged else self

    def found(self, applied: Seq) -> Recovered:
        lineage = self.lineage()
        return Recovered(
            epoch=self.epoch,
            lineage=lineage,
            first=Seq(self.base.through + FIRST),
            last=self.last,
            applied=applied,
            operations={r.op_id: r.last for r in self.log if r.last > applied},
        )


class Disk:
    """`now` is what a process that reads it sees; `durable` is what certainly survives."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = self.durable = Image()
        self.slow = 1.0
        self.full = False
        self.failing_rows = world.weather.failing_rows
        self.failing = False
        self._run = 0
        self._writing: Image | None = None

    def trim(self, base: Base) -> None:
        self.now = replace(self.now, base=base, log=tuple(r for r in self.now.log if r.first > base.through))

    def sync(self, then: Callable[[bool], None]) -> None:
        """Make what is there now durable, and say whether that could be done."""
        image, run = self.now, self._run
        self._writing = image

        def end() -> None:
            if run != self._run:
                return
            self._writing = None
            if not self.failing:
                self.durable = image
            then(not self.failing)

        slowness = 1 if self.world.calm else max(self.slow, self.world.weather.slowness)
        self.world.after(self.world.rng.uniform(0.0003, 0.003) * slowness, end)

    def open(self) -> Base | None:
        """Put a staged snapshot in its place, durably; what was installed."""
        installed = self.now.staged
        if installed:
            self._become(self.now.opened())
        return installed

    def crash(self) -> None:
        """What was not synced may be there or not, in part: the epoch and the log are different files. Of what was
        being cut a part may be left.
        """
        rng = self.world.rng
        images = [i for i in (self.durable, self.durable, self._writing, self.now) if i is not None]
        kept = rng.choice(images)
        if kept is not self.durable and kept.log[: len(self.durable.log)] == self.durable.log:
            kept = replace(kept, log=kept.log[: rng.randint(len(self.durable.log), len(kept.log))])
        elif kept is self.durable and (left := min(self._uncut(image) for image in images)) < len(kept.log):
            kept = replace(kept, log=kept.log[: rng.randint(left, len(kept.log))])
        epoch = rng.choice(images).epoch
        kept = replace(kept, staged=self.durable.staged)  # staging is durable when it is done
        self._become(replace(kept, epoch=max(epoch, kept.lineage().newest)))  # opening stores what the log shows

    def _uncut(self, image: Image) -> int:
        """How many of the durable records another image still has."""
        if image.base != self.durable.base:
            return len(self.durable.log)
        return sum(
            1 for _ in takewhile(lambda both: both[0] == both[1], zip(self.durable.log, image.log, strict=False))
        )

    def wipe(self) -> None:
        self._become(Image())

    def go_back(self, image: Image) -> None:
        """An older copy is put in its place."""
        self._become(image)

    def corrupt(self) -> None:
        """The log is damaged somewhere; what was before is good."""
        kept = self.world.rng.randint(0, len(self.durable.log))
        self._become(replace(self.durable, log=self.durable.log[:kept], staged=None))

    def _become(self, image: Image) -> None:
        self.now = self.durable = image
        self._writing = None
        self._run += 1


class SimulatedLog:
    """`ports.ReplicaLog` on a simulated disk."""

    damage: str | None = None

    def __init__(
        self, disk: Disk, appended: Callable[[tuple[Record, ...]], None], promised: Callable[[Epoch], None]
    ) -> None:
        """`appended` is told of records that are written, `promised` of epochs that are stored."""
        self._disk = disk
        self._appended, self._promised = appended, promised
        self.sync_failed = False
        """How the sync ended that the loop is about to be told of."""

    @property
    def is_durable(self) -> bool:
        return self._disk.now is self._disk.durable

    def store_epoch(self, epoch: Epoch) -> None:
        self._promised(epoch)
        self._disk.now = replace(self._disk.now, epoch=epoch)

    def append(self, records: Sequence[Record]) -> None:
        if self._disk.full:
            raise InsufficientStorage("the disk is full; nothing was stored")
        self._appended(tuple(records))
        self._disk.now = replace(self._disk.now, log=(*self._disk.now.log, *records))

    def truncate(self, after: Seq) -> None:
        self._disk.now = replace(self._disk.now, log=tuple(r for r in self._disk.now.log if r.last <= after))

    def stage(self, content: object) -> None:
        assert isinstance(content, Base)
        self._disk.now = replace(self._disk.now, staged=content)
        self._disk.durable = replace(self._disk.durable, staged=content)

    def sync(self) -> None:
        if self.sync_failed:
            raise OSError(5, "Input/output error")

    def read(self, after: Seq, through: Seq) -> Iterator[Record]:
        return iter([r for r in self._disk.now.log if after < r.first <= through])

    def trim(self, through: int) -> Seq:
        raise AssertionError("the node does that itself")

    def is_full(self) -> bool:
        return self._disk.full

    def make_room(self) -> None:
        pass

    def keep_reserve(self) -> None:
        pass

    def suspect_rows(self) -> None:
        raise AssertionError("simulated rows are not damaged")

    def doubt(self, why: str) -> None:
        raise AssertionError("a simulated log is not read for damage")
