"""A disk: what was written is certain to be there after a crash only when a sync that came later has ended."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from simulation.world import World
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.journal import FIRST, Recovered
from veccluster.decisions.replication.values import EMPTY, NO_EPOCH, NOTHING, Lineage, Record
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


@dataclass(frozen=True)
class Image:
    """Everything on a disk."""

    epoch: Epoch = NO_EPOCH
    base: Base = field(default_factory=Base)
    log: tuple[Record, ...] = ()

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

    def __init__(self, world: World, synced: Callable[[int], None], failed: Callable[[], None]) -> None:
        self.world = world
        self.now = self.durable = Image()
        self.slow = 1.0
        self.full = False
        self.failing = False
        self._synced, self._failed = synced, failed
        self._asked = self._done = 0
        self._run = 0
        self._writing: Image | None = None

    def do(self, effect: do.DiskEffect) -> bool:
        """Carry an effect out; whether that could be done."""
        match effect:
            case do.StoreEpoch(epoch):
                self.now = replace(self.now, epoch=epoch)
            case do.Append(records):
                if self.full:
                    return False
                self.now = replace(self.now, log=self.now.log + records)
            case do.Truncate(after):
                self.now = replace(self.now, log=tuple(r for r in self.now.log if r.last <= after))
            case do.InstallSnapshot(_, _, content):
                assert isinstance(content, Base)
                self.now = replace(self.now, base=content, log=())
            case do.Sync(ticket):
                self._asked = ticket
                if self._writing is None:
                    self._sync()
        return True

    def trim(self, base: Base) -> None:
        self.now = replace(self.now, base=base, log=tuple(r for r in self.now.log if r.first > base.through))

    def _sync(self) -> None:
        ticket, image, run = self._asked, self.now, self._run
        self._writing = image

        def end() -> None:
            if run != self._run:
                return
            self._writing = None
            if self.failing:
                self._failed()
                return
            self.durable = image
            if self._asked > ticket:
                self._sync()
            self._synced(ticket)

        self.world.after(
            self.world.rng.uniform(0.0003, 0.003)
            * (1 if self.world.calm else max(self.slow, self.world.weather.slowness)),
            end,
        )

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
        self._become(replace(self.durable, log=self.durable.log[: self.world.rng.randint(0, len(self.durable.log))]))

    def _become(self, image: Image) -> None:
        self.now = self.durable = image
        self._writing = None
        self._run += 1
        self._asked = 0
