"""What replication talks about: members, records, lineages, and a shard's configuration as etcd keeps it."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from veccluster.model.state import Epoch, Incarnation, Member, Revision, Seq, Shard, WriteConsistency

__all__ = [
    "EMPTY",
    "NOTHING",
    "NO_EPOCH",
    "NO_REVISION",
    "Configuration",
    "Incarnation",
    "Lineage",
    "Member",
    "Position",
    "Record",
    "Run",
]

NO_EPOCH = Epoch(0)
NOTHING = Seq(0)
"""The seq of an empty log; the first operation has 1."""
NO_REVISION = Revision(0)


class Position(NamedTuple):
    """A place in the history of a shard."""

    epoch: Epoch
    seq: Seq


@dataclass(frozen=True, slots=True)
class Record:
    """What one caller asked, at its place in the log: `count` seqs from `first`, durable and applied as one."""

    epoch: Epoch
    first: Seq
    count: int
    op_id: str
    payload: bytes

    @property
    def last(self) -> Seq:
        """The seq of its last operation."""
        return Seq(self.first + self.count - 1)


class Run(NamedTuple):
    """From `first` on, until the next run, everything was written in `epoch`."""

    epoch: Epoch
    first: Seq


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which epoch wrote which part of a log. Since nothing is ever written twice at one (epoch, seq), and a log that
    has an operation has all that its primary had before it, two logs say the same for as long as their lineages do (8).

    It may begin at a floor: what is before is committed, and nobody asks any more who wrote it.
    """

    runs: tuple[Run, ...] = ()

    @property
    def floor(self) -> Seq:
        """The first seq of which it knows who wrote it; 0 if it reaches back to the first operation."""
        return self.runs[0].first if self.runs and self.runs[0].first > NOTHING + 1 else NOTHING

    @property
    def newest(self) -> Epoch:
        """The epoch that wrote last."""
        return self.runs[-1].epoch if self.runs else NO_EPOCH

    def epoch_at(self, seq: Seq) -> Epoch:
        """The epoch that wrote `seq`; 0 below the floor."""
        index = bisect_right(self.runs, seq, key=_first_of)
        return self.runs[index - 1].epoch if index else NO_EPOCH

    def followed_by(self, epoch: Epoch, first: Seq) -> "Lineage":
        """The lineage if `epoch` writes everything from `first` on."""
        kept = self.cut(Seq(first - 1))
        if kept.newest == epoch:
            return kept
        return Lineage((*kept.runs, Run(epoch, first)))

    def cut(self, after: Seq) -> "Lineage":
        """The lineage of the log up to `after`."""
        if not self.runs or self.runs[-1].first <= after:
            return self
        return Lineage(tuple(run for run in self.runs if run.first <= after))

    def since(self, seq: Seq) -> "Lineage":
        """The lineage from the run on that has `seq`."""
        index = bisect_right(self.runs, seq, key=_first_of)
        return Lineage(self.runs[index - 1 :]) if index > 1 else self

    def agrees_with(self, other: "Lineage", through: Seq) -> Seq:
        """The last seq, at most `through`, up to which both may say the same: behind it is the first that differs (8).

        They are compared from the higher of the two floors on: logs that say the same there do so before it. Of one
        that ends before it nothing can be said.
        """
        floor = max(self.floor, other.floor)
        runs = {run.first for run in self.runs + other.runs if floor <= run.first <= through}
        for first in sorted(runs):
            if self.epoch_at(first) != other.epoch_at(first):
                return Seq(first - 1)
        return through


def _first_of(run: Run) -> Seq:
    return run.first


EMPTY = Lineage()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A shard's key in etcd. `replicas` is the collection's replication factor; `revision` is what a swap compares.

    The primary hands over to `successor` when there is one (12).
    """

    epoch: Epoch
    primary: Member
    in_sync: frozenset[Member]
    learners: frozenset[Member] = frozenset()
    min_in_sync: int = 1
    replicas: int = 1
    successor: Member | None = None
    revision: Revision = field(default=NO_REVISION, compare=False)

    @classmethod
    def of(cls, shard: Shard, replicas: int) -> "Configuration":
        """From the shard's record and its collection's replication factor."""
        return cls(
            epoch=shard.epoch,
            primary=shard.primary,
            in_sync=frozenset(shard.in_sync),
            learners=frozenset(shard.learners),
            min_in_sync=shard.min_in_sync,
            replicas=replicas,
            successor=shard.successor,
            revision=shard.revision,
        )

    def put_into(self, shard: Shard) -> Shard:
        """The record with this configuration; what never changes about the shard stays."""
        return msgspec.structs.replace(
            shard,
            epoch=self.epoch,
            primary=self.primary,
            in_sync=tuple(sorted(self.in_sync)),
            learners=tuple(sorted(self.learners)),
            min_in_sync=self.min_in_sync,
            successor=self.successor,
            revision=self.revision,
        )

    def copies_for(self, level: WriteConsistency) -> int:
        """How many in-sync members a write of this level needs; the level never lowers `min_in_sync` (2)."""
        wanted = {
            WriteConsistency.one: 1,
            WriteConsistency.quorum: self.replicas // 2 + 1,
            WriteConsistency.all: self.replicas,
        }
        return max(self.min_in_sync, wanted[level])
