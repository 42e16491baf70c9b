"""The disk effects of replication on a real log, on the simulated disk and on one that loses nothing; what a crash may
leave of them.

`python -m support.disks PATH SEED` carries out the effects of a seed on a real disk, and says how far it got.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from random import Random
from typing import Protocol

from simulation.disk import Base, Disk, Image, SimulatedLog
from simulation.world import World
from support.storage import SMALL, spec, upsert
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.journal import Journal, Recovered
from veccluster.decisions.replication.values import Lineage, Record
from veccluster.model.state import Epoch, Seq
from veccluster_node.engine.records import ROWS, Records
from veccluster_node.replica import snapshots
from veccluster_node.replica.recovery import recover
from veccluster_node.wal import epochs, operations

SETTINGS = replace(SMALL, segment_size=600)
KINDS = ["epoch", "append", "append", "append", "cut", "sync", "sync", "settle", "settle", "install"]
Step = tuple[str, int]
"""What to do, and a number that says how."""


def steps(seed: int, number: int) -> list[Step]:
    """What a seed does."""
    rng = Random(seed)
    return [(rng.choice(KINDS), rng.randrange(1000)) for _ in range(number)]


class AnyDisk(Protocol):
    """What the effects are carried out on."""

    def do(self, effect: do.DiskEffect) -> object: ...

    def settle(self) -> list[int]:
        """Let every sync that was asked for end; their tickets."""

    def crash(self, rng: Random) -> None:
        """Lose power, and be opened again."""

    def image(self) -> Image:
        """What is there."""

    def found(self) -> Recovered:
        """What a replica is told when it is opened."""


@dataclass
class Perfect:
    """Keeps everything."""

    now: Image = field(default_factory=Image)
    asked: list[int] = field(default_factory=list)

    def do(self, effect: do.DiskEffect) -> None:
        if isinstance(effect, do.Sync):
            self.asked.append(effect.ticket)
        else:
            self.now = after(self.now, effect)

    def settle(self) -> list[int]:
        asked, self.asked = self.asked, []
        return asked

    def crash(self, rng: Random) -> None:
        self.asked = []

    def image(self) -> Image:
        return self.now

    def found(self) -> Recovered:
        return self.now.found(self.now.base.through)


class Simulated:
    """The disk of the simulation."""

    def __init__(self) -> None:
        self.world = World(1)
        self.disk = Disk(self.world)
        self.log = SimulatedLog(self.disk, lambda _: None, lambda _: None)
        self.asked: list[int] = []
        self.synced: list[int] = []
        self.is_syncing = False

    def do(self, effect: do.DiskEffect) -> None:
        match effect:
            case do.StoreEpoch(epoch):
                self.log.store_epoch(epoch)
            case do.Append(records):
                self.log.append(records)
            case do.Truncate(seq):
                self.log.truncate(seq)
            case do.InstallSnapshot(_, _, content):
                self.log.stage(content)
                self.disk.open()
                self.is_syncing = False
            case do.Sync(ticket):
                self.asked.append(ticket)
                self._sync()

    def _sync(self) -> None:
        if not self.is_syncing and self.asked:
            ticket, self.is_syncing = self.asked[-1], True
            self.disk.sync(lambda _: self._ended(ticket))

    def _ended(self, ticket: int) -> None:
        self.is_syncing = False
        self.synced += [t for t in self.asked if t <= ticket]
        self.asked = [t for t in self.asked if t > ticket]
        self._sync()

    def settle(self) -> list[int]:
        self._sync()
        self.world.run_until(self.world.now + 60)
        synced, self.synced = self.synced, []
        return synced

    def crash(self, rng: Random) -> None:
        self.world.rng = rng
        self.disk.crash()
        self.asked, self.is_syncing = [], False

    def image(self) -> Image:
        return self.disk.now

    def found(self) -> Recovered:
        return self.disk.now.found(self.disk.now.base.through)


class Real:
    """A log, rows and an epoch on a file system. A power failure is a dead process, and of what was not synced a part
    is missing or was never written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[int] = []
        self._open()

    def _open(self) -> None:
        self.recovered = recover(self.root, spec(), SETTINGS)
        assert (self.recovered.damaged, self.recovered.issues) == (None, [])
        self.recovered.records.close()
        self._note_durable()

    def _note_durable(self) -> None:
        last = max((self.root / "log").glob("*.log"))
        self._durable = last, last.stat().st_size

    def do(self, effect: do.DiskEffect) -> None:
        log = self.recovered.log
        match effect:
            case do.StoreEpoch(epoch):
                epochs.write(self.root, epoch)
            case do.Append(records):
                log.append([operations.Record(r.epoch, r.first, r.count, r.payload) for r in records], sync=False)
            case do.Truncate(seq):
                log.truncate(seq)
                self._note_durable()
            case do.InstallSnapshot(through, lineage):
                self._install(through, lineage)
            case do.Sync(ticket):
                self.asked.append(ticket)

    def _install(self, through: Seq, lineage: Lineage) -> None:
        shutil.rmtree(self.root / "elsewhere", ignore_errors=True)
        (self.root / "elsewhere").mkdir()
        rows = Records(self.root / "elsewhere" / ROWS)
        rows.restore([], applied_seq=through, lineage=lineage)
        rows.close()
        offered = snapshots.export(self.root / "elsewhere", self.root / snapshots.INCOMING)
        snapshots.verify(self.root / snapshots.INCOMING, offered)
        snapshots.stage(self.root, offered)
        self.recovered.log.close()
        self._open()

    def settle(self) -> list[int]:
        self.recovered.log.sync()
        self._note_durable()
        asked, self.asked = self.asked, []
        return asked

    def crash(self, rng: Random) -> None:
        os.close(self.recovered.log._fd)
        last = max((self.root / "log").glob("*.log"))
        size = last.stat().st_size
        kept = self._durable[1] if last == self._durable[0] else self.recovered.log._segments[-1].marks[0].at
        at = rng.randint(kept, size)
        if rng.random() < 0.5:
            os.truncate(last, at)
        else:
            with last.open("r+b") as file:
                file.seek(at)
                file.write(bytes(rng.randint(0, size - at)))
        self.asked = []
        self._open()

    def image(self) -> Image:
        found = self.found()
        through = Seq(found.first - 1)
        log = tuple(
            Record(Epoch(r.epoch), Seq(r.first_seq), r.count, r.op_id, r.payload)
            for r in self.recovered.log.read(through)
        )
        return Image(epochs.read(self.root), Base(through, found.lineage.cut(through)), log)

    def found(self) -> Recovered:
        """As if it were opened now."""
        recovered = recover(self.root, spec(), SETTINGS)
        recovered.records.close()
        recovered.log.close()
        return recovered.found


def after(image: Image, effect: do.DiskEffect) -> Image:
    """What should be there after an effect."""
    match effect:
        case do.StoreEpoch(epoch):
            return replace(image, epoch=epoch)
        case do.Append(records):
            return replace(image, log=image.log + records)
        case do.Truncate(seq):
            return replace(image, log=tuple(r for r in image.log if r.last <= seq))
        case do.InstallSnapshot(through, lineage):
            return replace(image, base=Base(through, lineage), log=())
        case do.Sync():
            return image


class Story:
    """What a journal does to a disk, and what may be there after a crash: `history` is what was there after each
    effect, from the last one that is certainly durable on.
    """

    def __init__(self, disk: AnyDisk) -> None:
        self.disk = disk
        self._names = count(1)
        self._begin()

    def _begin(self) -> None:
        self.journal = Journal(self.disk.found())
        self.history = [self.disk.image()]
        self._asked: dict[int, int] = {}
        """By ticket, what was there when it was asked for: a place in the history."""

    def take(self, step: Step) -> None:
        kind, number = step
        if kind == "settle":
            self._synced(self.disk.settle())
        elif kind == "crash":
            self.disk.crash(Random(number))
            self.check(self.disk.image(), self.disk.found())
            self._begin()
        else:
            for effect in self._effects(kind, number):
                self.history.append(after(self.history[-1], effect))
                if isinstance(effect, do.Sync):
                    self._asked[effect.ticket] = len(self.history) - 1
                self.disk.do(effect)

    def _effects(self, kind: str, number: int) -> Iterable[do.DiskEffect]:
        journal, now = self.journal, self.history[-1]
        match kind:
            case "epoch":
                return journal.store_epoch(Epoch(journal.epoch + 1 + number % 3))
            case "append" if journal.epoch:
                return journal.append(self._records(number))
            case "cut":
                places = [now.base.through, *(r.last for r in now.log)]
                return journal.cut(places[-1 - min(number % 7, len(places) - 1)])
            case "sync":
                return journal.sync()
            case "install" if journal.epoch and number % 3 == 0:
                through = Seq(journal.last + 1 + number % 5)
                lineage = journal.lineage.followed_by(journal.epoch, Seq(journal.last + 1))
                return journal.install(through, lineage, Base(through, lineage))
        return ()

    def _records(self, number: int) -> tuple[Record, ...]:
        made: list[Record] = []
        first = Seq(self.journal.last + 1)
        for i in range(1 + number % 4):
            op_id = f"op{next(self._names)}"
            ops = [upsert(f"id{j}", [number] * 8, text="x" * (number % 70)) for j in range(1 + (number + i) % 3)]
            payload = operations.encode_batch(number, op_id, ops)
            made.append(Record(self.journal.epoch, first, len(ops), op_id, payload))
            first = Seq(made[-1].last + 1)
        return tuple(made)

    def _synced(self, tickets: list[int]) -> None:
        for ticket in tickets:
            self.journal.synced(ticket)
        if tickets:
            durable = self._asked[tickets[-1]]
            self.history = self.history[durable:]
            self._asked = {t: at - durable for t, at in self._asked.items() if at > durable}

    def check(self, left: Image, found: Recovered) -> None:
        """What was synced is there, and beyond it nothing but a part, from its start, of what was written."""
        assert left.epoch in {image.epoch for image in self.history}
        assert found == left.found(left.base.through)
        written = [image for image in self.history if _base(image) == _base(left)]
        assert any(image.log[: len(left.log)] == left.log for image in written), "it was never written like this"
        synced = self.history[0]
        if _base(synced) == _base(left):
            assert len(left.log) >= min(_in_common(synced, image) for image in written), "what was synced is missing"
        journal = self.journal
        assert found.epoch >= journal.durable_epoch
        assert found.last >= journal.durable
        assert found.lineage.agrees_with(journal.lineage, journal.durable) == journal.durable


def _base(image: Image) -> tuple[Seq, Lineage]:
    return image.base.through, image.base.lineage


def _in_common(one: Image, other: Image) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.log, other.log, strict=False)))


def main() -> None:
    """Take the steps of a seed on a real disk; say which one begins."""
    root, seed, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    story = Story(Real(root))
    for i, step in enumerate(steps(seed, number)):
        sys.stdout.write(f"step {i}\n")
        sys.stdout.flush()
        story.take(step)


if __name__ == "__main__":
    main()
