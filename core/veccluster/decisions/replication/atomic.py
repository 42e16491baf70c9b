"""Batches over several shards, applied by all of them or by none: what a shard knows of them (15).

Three steps: every shard's log gets the operations (a `Prepare`), one key in etcd is created with the `Decision`, and
every shard's log gets that decision. To the rules of a single shard, prepare and decision are records like others; the
`Ledger` is what they amount to, a part of the applied state, the same in every replica that has applied as much.

A batch takes its place in the shard's order where its *decision* is: until then its operations are durable and nobody
sees them, nothing waits for them, and what others write or delete meanwhile comes before them. Decisions come in every
shard in the order in which etcd made them, so that all shards agree about the order of the batches that they share,
and whoever has applied one of them has applied those that were decided before.

An operation may take several attempts; a later one is begun only when the earlier one is known to be dropped, so that
at most one is ever applied (14).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from veccluster.decisions.replication.values import NO_REVISION, NOTHING
from veccluster.model.state import Revision, Seq

Participant = int
"""The number of a shard; all are of one collection."""


class Batch(NamedTuple):
    """One attempt at what a client asked. The operation names its contents too, hence its participants."""

    operation: str
    attempt: int

    @property
    def prepare_id(self) -> str:
        """The operation id of the record that prepares it."""
        return f"prepare {self.attempt} {self.operation}"

    @property
    def decide_id(self) -> str:
        """The operation id of the record that decides it."""
        return f"decide {self.attempt} {self.operation}"


class Verdict(StrEnum):
    """What becomes of a batch, in all its shards."""

    applied = "applied"
    dropped = "dropped"


@dataclass(frozen=True, slots=True)
class Prepare:
    """What a record says that prepares a batch: this shard's `count` operations, which nothing here looks into.

    The record takes one seq; the operations get theirs with the decision.
    """

    batch: Batch
    participants: tuple[Participant, ...]
    count: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """What the batch's key in etcd says, and then the record in every participant's log.

    `prepared` has every participant, with the seq of its prepare record, or NOTHING where that is not known, which it
    always is when the batch is applied. `revision` is that of the key, whose value need not say it.
    """

    batch: Batch
    verdict: Verdict
    prepared: Mapping[Participant, Seq]
    revision: Revision = field(default=NO_REVISION, compare=False)


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch that is prepared and not decided, as far as this state goes; `at` is where."""

    at: Seq
    prepare: Prepare


@dataclass(frozen=True, slots=True)
class Standing:
    """How an operation stands in a shard: an attempt that is prepared (no verdict) at `at`, or decided at `at`."""

    attempt: int
    at: Seq
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Showing:
    """What a reply says besides what was asked, so that it can be told whether replies fit together.

    `pending` are the places of prepares without a decision in the state that was read. `latest` names for each other
    shard the place *there* of the prepare of the last batch that both have and this state shows.
    """

    applied: Seq = NOTHING
    pending: frozenset[Seq] = frozenset()
    latest: Mapping[Participant, Seq] = field(default_factory=dict)

    def is_past(self, prepared: Seq) -> bool:
        """Whether the batch with its prepare there is decided in this state; that stays so in all later ones."""
        return self.applied >= prepared and prepared not in self.pending


class Ledger:
    """The batches in one shard's applied state. Snapshots carry it, and whoever becomes primary goes on from it."""

    def __init__(
        self,
        shard: Participant,
        pending: Mapping[Batch, Pending] | None = None,
        decided: Mapping[str, Standing] | None = None,
        latest: Mapping[Participant, Seq] | None = None,
    ) -> None:
        self.shard = shard
        self.pending = dict(pending or {})
        self.decided = dict(decided or {})
        """By operation, the highest attempt that was decided here: remembered for as long as operation ids are (14)."""
        self.latest = dict(latest or {})

    def copy(self) -> "Ledger":
        """Another one that says the same."""
        return type(self)(self.shard, self.pending, self.decided, self.latest)

    def prepare(self, prepare: Prepare, at: Seq) -> None:
        """Apply a record that prepares. Its operation id lets it happen once, so never behind its decision (14)."""
        self.pending[prepare.batch] = Pending(at, prepare)

    def decide(self, decision: Decision, last: Seq) -> Prepare | None:
        """Apply a record that decides and ends at `last`: what is to be applied at that place, if anything."""
        batch = decision.batch
        pending = self.pending.pop(batch, None)
        if pending is None:
            return None
        known = self.decided.get(batch.operation)
        if known is None or known.attempt < batch.attempt:  # an earlier attempt may be dropped here later than others
            self.decided[batch.operation] = Standing(batch.attempt, last, decision.verdict)
        if decision.verdict is Verdict.dropped:
            return None
        self.latest |= {other: at for other, at in decision.prepared.items() if other != self.shard}
        return pending.prepare

    def standing(self, batch: Batch) -> Standing | None:
        """How the operation stands here, in this attempt or a later one; None: the attempt may be prepared.

        A verdict is true for good. That there is none yet is only as new as this state: it counts for who decides by
        it if the shard's primary has confirmed its epoch since (13).
        """
        decided = self.decided.get(batch.operation)
        if decided and decided.attempt >= batch.attempt:
            return decided
        later = [b for b in self.pending if b.operation == batch.operation and b.attempt >= batch.attempt]
        return max((Standing(b.attempt, self.pending[b].at) for b in later), key=_attempt, default=None)

    def showing(self, applied: Seq) -> Showing:
        """What a reply from this state says of it."""
        return Showing(applied, frozenset(p.at for p in self.pending.values()), dict(self.latest))


def _attempt(standing: Standing) -> int:
    return standing.attempt


def lacking(shown: Mapping[Participant, Showing]) -> dict[Participant, frozenset[Seq]]:
    """The shards whose replies lack a batch that another reply shows, and which batches, by their prepares' places.

    They are to be read again, once those are decided there; what shows is then looked at anew. Nothing lacks: nobody
    sees half of a batch, since a shard that shows the last batch shared with another shows all that both have before.
    """
    named = [(other, at) for one in shown.values() for other, at in one.latest.items()]
    return _by_shard((other, at) for other, at in named if other in shown and not shown[other].is_past(at))


def _by_shard(places: Iterable[tuple[Participant, Seq]]) -> dict[Participant, frozenset[Seq]]:
    found: dict[Participant, frozenset[Seq]] = {}
    for shard, at in places:
        found[shard] = found.get(shard, frozenset()) | {at}
    return found
