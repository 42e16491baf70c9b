"""How batches over several shards are decided: the coordinator's steps, a primary's, and the leader's (15).

Pure, and callable again at any time: every step may have been taken before, by anyone, and is the same then.

Invariant: a batch has one verdict for ever. Its key is created only if it is absent and nothing was forgotten since
`forgotten`, a revision that the proposer had read *before* a participant said, as its confirmed primary (13), that the
batch is prepared there and not decided. So no key that would have applied it was there before that revision and is
gone now, since a decision is forgotten only when every participant that it names has it decided, and who applies names
all; and none was forgotten since. A decision to drop may be forgotten while a participant that it does not name has the
batch: that one makes a second key, with the same verdict, since one participant that has decided is enough to keep
others from applying it. A transaction that is carried out late can do no harm for the same reason.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from veccluster.decisions.replication.atomic import (
    Batch,
    Decision,
    Ledger,
    Participant,
    Showing,
    Standing,
    Verdict,
)
from veccluster.decisions.replication.values import NO_REVISION, NOTHING
from veccluster.model.state import Revision, Seq


@dataclass(frozen=True, slots=True)
class Known:
    """All decisions of a collection in etcd at `revision`, and the revision at which some were last forgotten."""

    revision: Revision = NO_REVISION
    forgotten: Revision = NO_REVISION
    decisions: tuple[Decision, ...] = ()


# -- the coordinator


@dataclass(frozen=True, slots=True)
class Begin:
    """Note what was last forgotten, then ask every participant to prepare this attempt."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Propose:
    """Create the key with this decision, if there is none; what is there then, counts."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Finish:
    """It is decided. When it is applied: wait until every participant has it, then tell the client."""

    batch: Batch
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No participant is known to have prepared it, and nobody will apply this attempt unless asked again."""


Step = Begin | Propose | Finish | GiveUp


def next_step(
    batch: Batch, participants: Collection[Participant], said: Mapping[Participant, Standing], *, over: bool
) -> Step | None:
    """What the coordinator does about what it heard since it began this attempt; None: it asks on.

    It is `over` when the time is, or a participant refuses for good.
    """
    if applied := [s for s in said.values() if s.verdict is Verdict.applied]:
        return Finish(Batch(batch.operation, applied[0].attempt), Verdict.applied)
    if dropped := [s for s in said.values() if s.verdict is Verdict.dropped and s.attempt >= batch.attempt]:
        last = Batch(batch.operation, max(s.attempt for s in dropped))
        return Finish(last, Verdict.dropped) if over else Begin(_next(last))
    prepared = {shard: s.at for shard, s in said.items() if s.attempt == batch.attempt}
    if later := [s.attempt for s in said.values() if s.attempt > batch.attempt]:
        return Begin(Batch(batch.operation, max(later)))
    if _are_all(participants, prepared):
        return Propose(Decision(batch, Verdict.applied, prepared))
    if not over:
        return None
    everywhere = {shard: prepared.get(shard, NOTHING) for shard in participants}
    return Propose(Decision(batch, Verdict.dropped, everywhere)) if prepared else GiveUp()


def after(found: Decision, *, over: bool) -> Begin | Finish:
    """What the coordinator does when it finds the decision, its own or another's."""
    if found.verdict is Verdict.dropped and not over:
        return Begin(_next(found.batch))
    return Finish(found.batch, found.verdict)


def _next(dropped: Batch) -> Batch:
    return dropped._replace(attempt=dropped.attempt + 1)


def _are_all(participants: Collection[Participant], prepared: Mapping[Participant, Seq]) -> bool:
    return prepared.keys() >= set(participants)


# -- a shard's primary


def due(ledger: Ledger, applied: Seq, known: Known) -> Iterator[Decision]:
    """The decisions that a primary is to have in its log now, in this order.

    It asks for each as for any write; what is in its log already is recognised by the operation id. A decision about a
    batch whose prepare is in the log and not applied yet holds up those that were made after it.
    """
    for decision in in_order(known.decisions):
        if decision.batch in ledger.pending:
            yield decision
        elif decision.prepared.get(ledger.shard, NOTHING) > applied:
            return


def in_order(decisions: Iterable[Decision]) -> list[Decision]:
    """As etcd made them."""
    return sorted(decisions, key=lambda d: d.revision)


def overdue(ledger: Ledger, known: Known, waited: Collection[Batch]) -> Iterator[Decision]:
    """What a primary proposes about batches whose decision it has `waited` for too long: to drop them.

    `ledger` is confirmed later than `known` was read: the primary has served a strong read from it in between (13).
    """
    decided = {decision.batch for decision in known.decisions}
    for batch in sorted(waited):
        if (pending := ledger.pending.get(batch)) and batch not in decided:
            prepared = dict.fromkeys(pending.prepare.participants, NOTHING) | {ledger.shard: pending.at}
            yield Decision(batch, Verdict.dropped, prepared)


# -- the leader


def forgettable(known: Known, shown: Mapping[Participant, Showing]) -> Iterator[Decision]:
    """The decisions that every participant that had the batch prepared has applied, by what any of its replicas shows.

    They are deleted in one transaction that writes the key of what was last forgotten, and compares its revision.
    """
    for decision in known.decisions:
        if all(_is_done(at, shown.get(shard)) for shard, at in decision.prepared.items()):
            yield decision


def _is_done(prepared: Seq, showing: Showing | None) -> bool:
    return prepared == NOTHING or (showing is not None and showing.is_past(prepared))


def made_at(decision: Decision, revision: Revision) -> Decision:
    """The decision as it is once its key is there."""
    return replace(decision, revision=revision)
