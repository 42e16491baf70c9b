"""Decide which replica of a shard is wrong when they do not hold the same rows.

Pure. Every replica keeps running digests of its living rows (a sum over ranges of `RANGE` seqs), and notes what they
were at ends of records, which are the same places on all replicas. A primary that compares its notes with those of its
in-sync followers calls `judge`; the node carries the step out, and the next comparison sees what came of it.

Two ways to be wrong are told apart. Rows that contradict the replica's own checksums or digests are its own scrub's to
find; it mends itself. Rows that only contradict the others' show in the comparison alone: the odd one out of three or
more begins anew, and of two the one that is not primary, once the primary's rows are known to be what it wrote.
"""

from collections.abc import Mapping, Sequence
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
    """Too few copies are in sync to do without one."""


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
    differs is still a copy of the rest.
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
    against = [followers[d.member] for d in found]
    if _is_outvoted(mine, against, len(followers) + 1):
        return Judgement(found, BeginAnew(configuration.primary, found[0].seq))
    return Judgement(found, BeginAnew(found[0].member, found[0].seq))


def _is_outvoted(mine: Notes, against: Sequence[Notes], copies: int) -> bool:
    """Whether more than half of the copies agree with each other, and not with the primary, as of one seq."""
    if 2 * len(against) <= copies:
        return False
    seq = newest_common(mine, *against)
    return seq is not None and len({notes[seq] for notes in against}) == 1 and against[0][seq] != mine[seq]
