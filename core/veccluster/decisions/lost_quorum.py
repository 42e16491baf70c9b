"""Decide what becomes of a shard that has lost too many of its copies, when a person accepts what is lost with them.

Pure. Nothing here is ever done by a node or by the leader of its own accord: a person asks, every node is asked for the
copy that it holds, `decide` says what would be done and what that loses, and only what the person confirmed is done, by
one compare-and-swap. Rule 6 of docs/replication.md.

Invariant: a shard that can be served, or will be once nodes that are there have done their part, is left alone; and as
long as a copy that is in sync can be used, no other one is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from veccluster.decisions.etcd_history import LEAP
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.values import EMPTY as NO_LINEAGE
from veccluster.decisions.replication.values import (
    NO_EPOCH,
    NO_REVISION,
    NOTHING,
    Configuration,
    Lineage,
    Member,
    Position,
)
from veccluster.model.cluster import FIRST_EPOCH
from veccluster.model.state import Epoch, NodeId, ShardId, WriteConsistency

EMPTY = Position(NO_EPOCH, NOTHING)


@dataclass(frozen=True, slots=True)
class Copy:
    """What a node holds of the shard."""

    member: Member
    durable: Position
    """The last operation that its log has."""
    epoch: Epoch = NO_EPOCH
    """The highest that it has heard of."""
    vectors: int = 0
    """Of those operations that it knows to be committed."""
    written: float | None = None
    """When the last operation was asked for, by the clock of the primary of then; seconds since 1970."""
    doubt: str | None = None
    """Why it may lack something before `durable`."""
    trouble: str | None = None
    """Why it cannot be written to."""
    is_mendable: bool = False
    """The trouble may end by itself, or when a disk has room again."""
    committed: Position = EMPTY
    """The last operation of which it knows that it was committed."""
    lineage: Lineage = NO_LINEAGE

    def has(self, position: Position) -> bool:
        """Whether its log has this operation; a lineage need not reach back to where all logs are the same."""
        said = self.lineage.epoch_at(position.seq)
        return position.seq <= self.durable.seq and said in (position.epoch, NO_EPOCH)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a node that answered: as which member of the shard, what it holds, or why it cannot say that now."""

    member: Member
    copy: Copy | None = None
    busy: str | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """Of a node that gave no answer. `since` is when it was last known to be there, or later; seconds since 1970."""

    has_lease: bool = False
    since: float | None = None


Answers = Mapping[NodeId, Answer | Silence]
"""Of every node that is a member of the cluster."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A copy that the record calls in sync and that is not there."""

    member: Member
    why: str
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is, what would be done, and what that loses. Without a `target` nothing can be: see `refusal`."""

    shard: ShardId
    now: Configuration
    copies: tuple[Copy, ...]
    """All that were found, the best first."""
    missing: tuple[Missing, ...]
    silent: tuple[NodeId, ...]
    """Nodes that gave no answer."""
    chosen: Copy | None = None
    target: Configuration | None = None
    refusal: str | None = None
    words: tuple[str, ...] = ()
    """What is lost and what follows, for a person."""

    @property
    def loses_nothing(self) -> bool:
        """Whether it goes on with a copy that is in sync, and so has all that was acknowledged."""
        return self.chosen is not None and self.chosen.member in self.now.in_sync and not self.chosen.doubt

    @property
    def absent(self) -> tuple[NodeId, ...]:
        """Nodes that must not have come back when it is carried out: their copies would count, or might be better."""
        missing = {m.member.node for m in self.missing}
        return tuple(n for n in self.silent if n in missing or not self.loses_nothing)

    @property
    def expected(self) -> str:
        """Names the plan: the record that it starts from, and the copies that it goes on with."""
        members = sorted(self.target.in_sync) if self.target else []
        return " ".join([str(self.now.revision), *(f"{m.node}/{m.incarnation}" for m in members)])


def decide(shard: ShardId, now: Configuration, wanted: int, answers: Answers, *, outdated: bool = False) -> Plan:
    """The plan for a shard whose collection wants `wanted` copies in sync for a write.

    A record that is `outdated`, since etcd went back to an older state (restored.py), does not tell who is in sync.
    """
    found = sorted((a.copy for a in answers.values() if isinstance(a, Answer) and a.copy), key=_worth, reverse=True)
    usable = [c for c in found if _is_whole(c, now) and not outdated]
    others = [c for c in found if c not in usable]
    plan = Plan(
        shard=shard,
        now=now,
        copies=(*usable, *others),
        missing=tuple(_missing(now, answers, usable)),
        silent=tuple(sorted(n for n, a in answers.items() if isinstance(a, Silence))),
    )
    able = usable or [c for c in others if not c.trouble][:1]
    if why := _why_not(now, answers, usable, able, outdated=outdated):
        return replace(plan, refusal=why)
    target = _target(now, able, found, LEAP if outdated else 1)
    chosen = next(c for c in able if c.member == target.primary)
    plan = replace(plan, chosen=chosen, target=target)
    return replace(plan, words=tuple(_words(plan, target, chosen, wanted)))


def _is_whole(copy: Copy, now: Configuration) -> bool:
    """Whether it has all that was acknowledged and can be served; the only one that is in sync is, doubtful or not."""
    is_sole = now.in_sync == {copy.member}
    return copy.member in now.in_sync and not copy.trouble and (is_sole or not copy.doubt)


def _worth(copy: Copy) -> tuple[Position, bool, Member]:
    """Whoever has more of the last epoch has everything that any other one has and that was ever acknowledged."""
    return (copy.durable, copy.doubt is None, copy.member)


def _missing(now: Configuration, answers: Answers, usable: list[Copy]) -> Iterator[Missing]:
    there = {c.member for c in usable}
    for member in sorted(now.in_sync - there):
        answer = answers.get(member.node)
        yield Missing(member, _why_missing(member, answer), answer.since if isinstance(answer, Silence) else None)


def _why_missing(member: Member, answer: Answer | Silence | None) -> str:
    if answer is None:
        return "is no longer a member of the cluster"
    if isinstance(answer, Silence):
        return "does not answer"
    if answer.member != member:
        return "no longer has the disk that held it"
    if answer.copy is None:
        return answer.busy or "no longer has its directory"
    return f"has a copy that cannot be relied on: {answer.copy.trouble or answer.copy.doubt}"


def _why_not(
    now: Configuration, answers: Answers, usable: list[Copy], able: list[Copy], *, outdated: bool
) -> str | None:
    """Why nothing is to be done, or not yet."""
    if now.epoch == FIRST_EPOCH and not outdated:
        return "it was never opened and holds nothing; the leader gives it to nodes that are there"
    if len(usable) >= now.min_in_sync:
        return (
            f"{_listed(c.member for c in usable)} can serve it: {_copies(len(usable))} in sync, and it needs "
            f"{now.min_in_sync}; wait for the failover, or see why it waits in /v1/cluster"
        )
    if waits := list(_worth_waiting_for(now, answers, usable)):
        return "; ".join(waits)
    if not able:
        return (
            "no node that answers has a copy that could be used: start the nodes that are missing, or restore their "
            "data directories; where nothing is left, delete the collection and load it again"
        )
    return None


def _worth_waiting_for(now: Configuration, answers: Answers, usable: list[Copy]) -> Iterator[str]:
    """What may yet turn out to be a copy in sync, or a better copy than any that is there."""
    for node, answer in sorted(answers.items()):
        match answer:
            case Silence(has_lease=True) if not usable or any(m.node == node for m in now.in_sync):
                yield f"node {node} has a lease and does not answer: wait until it does, or until its lease has ended"
            case Answer(member, _, str(busy)) if member in now.in_sync or not usable:
                yield f"node {node} {busy}: wait, or stop that node to go on without its copy"
            case Answer(member, Copy(trouble=str(why), is_mendable=True), _) if member in now.in_sync or not usable:
                yield f"the copy on node {node} waits ({why}): mend that, or stop that node to go on without its copy"
            case Answer(member, Copy(trouble=str(why)), _) if now.in_sync == {member}:
                yield (
                    f"its only copy in sync is on node {node}, which answers reads: {why}; restore that directory from "
                    "a backup, or export what it holds and load that into a new collection"
                )


def _target(now: Configuration, able: list[Copy], found: list[Copy], leap: int) -> Configuration:
    """The copies that are able are all there is from now on; whoever was learning goes on doing so."""
    in_sync = frozenset(c.member for c in able)
    nodes = {m.node for m in in_sync}
    return replace(
        now,
        epoch=Epoch(max(now.epoch, *(c.epoch for c in found)) + leap),
        primary=now.primary if now.primary in in_sync else able[0].member,
        in_sync=in_sync,
        learners=frozenset(m for m in now.learners if m.node not in nodes),
        min_in_sync=min(now.min_in_sync, len(in_sync)),
        successor=None,
        revision=NO_REVISION,
    )


# ---- in words --------------------------------------------------------------------------------------------------------


def role(now: Configuration, member: Member) -> str:
    """What the record calls a copy."""
    if member in now.in_sync:
        return "in sync"
    return "learner" if member in now.learners else "not in the record"


def time_of(seconds: float | None) -> str | None:
    """The time in UTC; None where it is not known."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _words(plan: Plan, target: Configuration, chosen: Copy, wanted: int) -> Iterator[str]:
    if plan.loses_nothing:
        yield (
            f"Nothing that was acknowledged is lost: {_listed(target.in_sync)} {_has(len(target.in_sync))} been in "
            "sync all the time. Writes that got no answer, or 504, may show by then."
        )
    else:
        yield from _losses(plan, chosen)
    if plan.missing:
        yield (
            f"What is missing ({_listed(m.member for m in plan.missing)}) counts no more. If it comes back, it is made "
            "equal to the new primary, and what only it has is deleted: save its data directory first if that matters."
        )
    yield from _about_writes(target, wanted)


def _losses(plan: Plan, chosen: Copy) -> Iterator[str]:
    missing = _listed(m.member for m in plan.missing)
    if chosen.durable == EMPTY:
        yield f"The copy on node {chosen.member.node} is empty: everything that the shard held is lost."
    else:
        yield (
            f"Operations after epoch {chosen.durable.epoch}, seq {chosen.durable.seq} are lost, also those that "
            f"{missing} acknowledged. How many there were is not known."
        )
    if chosen.written is not None:
        yield (
            f"The last operation of this copy was written at {time_of(chosen.written)}: at most what was written since "
            "is lost, and what was deleted since is back."
        )
    if chosen.doubt:
        yield f"This copy may lack something before that, too: {chosen.doubt}."
    for copy in plan.copies:
        if copy.trouble and copy.durable > chosen.durable:
            yield (
                f"Node {copy.member.node} has a copy up to epoch {copy.durable.epoch}, seq {copy.durable.seq} that "
                f"cannot be used ({copy.trouble}). It is deleted: save its directory first if it is to be looked at."
            )
    if unheard := [n for n in plan.silent if all(m.member.node != n for m in plan.missing)]:
        yield f"No answer came from node {', '.join(unheard)}: whether there is a better copy there is not known."
    if plan.silent:
        yield (
            "Nodes that do not answer must have ended. One that is only cut off may acknowledge writes until it hears "
            "of the new epoch: those are lost, too."
        )
    yield "Reads at `session` with tokens from what is lost get 503 until the shard has come as far again."
    yield "A batch over several shards may be there in the others and not in this one."


def _about_writes(target: Configuration, wanted: int) -> Iterator[str]:
    if target.min_in_sync < wanted:
        yield (
            f"Until others are in sync again, writes are acknowledged with {_copies(target.min_in_sync)} instead of "
            f"{wanted}; each one that joins raises that, up to {wanted}."
        )
    levels = {level: target.copies_for(level) for level in WriteConsistency}
    if few := [f"`{level}` ({copies})" for level, copies in levels.items() if copies > len(target.in_sync)]:
        yield f"Until so many copies are in sync, writes are refused at {' and at '.join(few)}."


def _listed(members: "Iterator[Member] | frozenset[Member]") -> str:
    return ", ".join(sorted(m.node for m in members)) or "the missing copies"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


# ---- afterwards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restore(failover.Change):
    """Ask for more copies in sync again, as many as there are, up to what the collection wants."""


def restore(shards: failover.Shards, wanted: Mapping[str, int]) -> Iterator[Restore]:
    """Yield what the leader does for shards that write with fewer copies than their collections (by uuid) want.

    It only raises the number, and never above the copies that are in sync at the revision that it compares. What the
    primary proposed before that compares an older one and fails, so that rule 4 holds for the new number from then on.
    """
    for shard, now in sorted(shards.items()):
        floor = min(wanted.get(shard.collection, 1), len(now.in_sync))
        if now.epoch > FIRST_EPOCH and now.min_in_sync < floor:
            yield Restore(shard, replace(now, min_in_sync=floor, revision=NO_REVISION), now.revision)
