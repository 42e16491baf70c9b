"""Decide which replica of a shard is wrong when they do not hold the same rows.

Pure. Every replica keeps running digests of its living rows (a sum over ranges of `RANGE` seqs), and notes what they
were at ends of records, which are the same places on all replicas. A primary that compares its notes with those of its
in-sync followers calls `judge`; the node carries the step out, and the next comparison sees what came of it.

Two ways to be wrong are told apart. Rows that contradict the replica's own checksums or digests are its own scrub's to
find; it mends itself. Rows that only contradict the others' show in the comparison alone: the odd one out of three or
more begins anew, and of two the one that is not primary, once the primary's rows are known to be what it wrote.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import Member, Seq

RANGE = 4096
"""Seqs of one range: each has a digest, and the state at the end of the first record that reaches the next is noted."""

Digest = tuple[int, int]
"""How many rows, and the sum of their hashes."""
Notes = Mapping[Seq, Digest]
"""What the rows were as of some seqs."""


def is_noted(before: int, last: int) -> bool:
    """Whether the state behind a record that takes the seqs (before, last] is noted."""
    return before // RANGE != last // RANGE


class Scrubbed(Enum):
    """What the primary's look at its own rows said, since it was last seen to differ from others."""

    not_yet = auto()
    clean = auto()


@dataclass(frozen=True, slots=True)
class Difference:
    """A member's rows are not the primary's as of `seq`."""

    member: Member
    seq: Seq


@dataclass(frozen=True, slots=True)
class ScrubFirst:
    """The primary has to look at its own rows before it may accuse anyone; what it finds there it mends itself."""


@dataclass(frozen=True, slots=True)
class BeginAnew:
    """This member is wrong, and should fetch everything again."""

    member: Member
    seq: Seq


@dataclass(frozen=True, slots=True)
class Wait:
    """Too few copies are in sync to do without one, or to know which is wrong."""


Step = ScrubFirst | BeginAnew | Wait


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who differs from the primary, and what to do next, if anybody does."""

    differences: tuple[Difference, ...] = ()
    step: Step | None = None


def newest_common(*notes: Notes) -> Seq | None:
    """The last seq of which all notes tell; None when there is none."""
    return max(set.intersection(*(set(one) for one in notes)), default=None)


def differs_at(mine: Notes, other: Notes) -> Seq | None:
    """The newest seq of which both tell, if they do not tell the same; None while nothing shows a difference.

    What differed earlier and is the same now was replaced since: it is of no account.
    """
    seq = newest_common(mine, other)
    return seq if seq is not None and mine[seq] != other[seq] else None


def judge(
    configuration: Configuration, mine: Notes, others: Mapping[Member, Notes], scrubbed: Scrubbed = Scrubbed.not_yet
) -> Judgement:
    """Compare the primary's notes with those of in-sync followers.

    One member at a time begins anew, and only where enough others are in sync, or all that there can be: a copy that
    differs is still a copy of the rest. Nobody begins anew before all that are in sync have told of one and the same
    seq, and, where there are to be three copies or more, before three are in sync: the one that is missing may be the
    one that knows better than the primary.
    """
    followers = {m: n for m, n in sorted(others.items()) if m in configuration.in_sync and m != configuration.primary}
    found = tuple(Difference(m, seq) for m, notes in followers.items() if (seq := differs_at(mine, notes)) is not None)
    if not found:
        return Judgement()
    if scrubbed is Scrubbed.not_yet:
        return Judgement(found, ScrubFirst())
    left, wanted = len(configuration.in_sync) - 1, configuration.min_in_sync
    if left < wanted and left + 1 < configuration.replicas:
        return Judgement(found, Wait())
    are_all = followers.keys() == configuration.in_sync - {configuration.primary}
    seq = newest_common(mine, *followers.values())
    if not are_all or seq is None or left + 1 < min(configuration.replicas, 3):
        return Judgement(found, Wait())
    return Judgement(found, _odd_one_out(configuration.primary, mine, followers, seq))


def _odd_one_out(primary: Member, mine: Notes, followers: Mapping[Member, Notes], seq: Seq) -> BeginAnew | Wait:
    """The primary where more than half of all agree with each other and not with it, else who differs from it."""
    votes = Counter(notes[seq] for notes in followers.values() if notes[seq] != mine[seq])
    if not votes:
        return Wait()  # what differs did so later, and will be of a state that all know
    if 2 * max(votes.values()) > len(followers) + 1:
        return BeginAnew(primary, seq)
    return BeginAnew(next(m for m, notes in followers.items() if notes[seq] != mine[seq]), seq)
