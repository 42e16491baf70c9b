"""Every part of rule 15 taken away in turn, to show that the simulation would notice."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from simulation.atomic.rules import Rules
from veccluster.decisions.replication import atomic_deciding as deciding
from veccluster.decisions.replication.atomic import Batch, Decision, Ledger, Participant, Prepare, Showing, Standing
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import NOTHING
from veccluster.model.state import Seq


@dataclass(frozen=True)
class Mutation:
    """What is done instead of a part of the rule."""

    instead: str
    rules: Rules


BUSY: dict[str, object] = {"haste": 60.0, "keys": 1}
FORGETFUL: Mapping[str, object] = {"etcd_lateness": 0.5, "haste": 60.0, "faults_every": 0.2}
"""etcd carries changes out long after their time is over."""
CUT_OFF: dict[str, object] = {"replicas": 3, "nodes": 3, "min_in_sync": 1, "isolations": 30, "loss": 0}
CUT_OFF |= {"faults_every": 0.12, "etcd_away": True, "wipes": False, "moves": False, "clients": 8, "etcd_loss": 0.2}
"""Primaries are cut off from others, and not from etcd or coordinators."""
FAILING: dict[str, object] = {"replicas": 3, "nodes": 3, "min_in_sync": 1, "clients": 16, "keys": 1, "haste": 100.0}
FAILING |= {"faults_every": 0.3, "isolations": 0, "etcd_away": False, "moves": False, "slowness": 10}
"""Primaries crash while many batches are on their way."""
LEARNING: Mapping[str, object] = {"trims": 0.4, "replicas": 2, "nodes": 4, "min_in_sync": 1, "moves": True}
"""Many replicas begin with a snapshot."""

# -- the coordinator


def _decide_early(
    batch: Batch, participants: Collection[Participant], said: Mapping[Participant, Standing], *, over: bool
) -> deciding.Step | None:
    step = deciding.next_step(batch, participants, said, over=over)
    prepared = {shard: s.at for shard, s in said.items() if s.attempt == batch.attempt and s.verdict is None}
    if step is None and prepared:
        return deciding.Propose(Decision(batch, deciding.Verdict.applied, prepared))
    return step


# -- a primary


def _as_they_come(ledger: Ledger, applied: Seq, known: Known) -> Iterator[Decision]:
    yield from (d for d in reversed(known.decisions) if d.batch in ledger.pending)


def _overtake(ledger: Ledger, applied: Seq, known: Known) -> Iterator[Decision]:
    yield from (d for d in deciding.in_order(known.decisions) if d.batch in ledger.pending)


# -- the leader


def _forget_at_once(known: Known, shown: Mapping[Participant, Showing]) -> Iterator[Decision]:
    yield from known.decisions


def _forget_after_one(known: Known, shown: Mapping[Participant, Showing]) -> Iterator[Decision]:
    for d in known.decisions:
        if any(at != NOTHING and s in shown and shown[s].is_past(at) for s, at in d.prepared.items()):
            yield d


# -- readers


def _never_lacking(shown: Mapping[Participant, Showing]) -> dict[Participant, frozenset[Seq]]:
    return {}


def _lacking_by_place(shown: Mapping[Participant, Showing]) -> dict[Participant, frozenset[Seq]]:
    named = [(other, at) for one in shown.values() for other, at in one.latest.items()]
    return {other: frozenset({at}) for other, at in named if other in shown and shown[other].applied < at}


# -- the applied state


class _NamesNobody(Ledger):
    def decide(self, decision: Decision, last: Seq) -> Prepare | None:
        prepare = super().decide(decision, last)
        self.latest.clear()
        return prepare


def _without_pending(ledger: Ledger) -> Ledger:
    return type(ledger)(ledger.shard, {}, ledger.decided, ledger.latest)


def _without_latest(ledger: Ledger) -> Ledger:
    return type(ledger)(ledger.shard, ledger.pending, ledger.decided)


def _without_decided(ledger: Ledger) -> Ledger:
    return type(ledger)(ledger.shard, ledger.pending, {}, ledger.latest)


MUTATIONS: dict[str, Mutation] = {
    "DecideEarly": Mutation("a batch is applied before every participant has it", Rules(next_step=_decide_early)),
    "TwoVerdicts": Mutation("a later decision replaces the first", Rules(compares_key=False)),
    "LateDecision": Mutation(
        "a decision is made although some were forgotten since", Rules(compares_forgotten=False, weather=FORGETFUL)
    ),
    "LateNote": Mutation(
        "a coordinator notes what was last forgotten after it has asked the participants",
        Rules(notes_first=False, weather=FORGETFUL),
    ),
    "Unconfirmed": Mutation(
        "a primary says that there is no decision without asking whether its epoch holds",
        Rules(confirms=False, weather=CUT_OFF | BUSY | {"faults_every": 0.2}),
    ),
    "DropAlone": Mutation("a primary drops a batch that waits too long by itself", Rules(drops_alone=True)),
    "NeverDrop": Mutation("nobody proposes to drop a batch whose coordinator is gone", Rules(overdue=lambda *_: ())),
    "NoTakeUp": Mutation("a new primary forgets the batches that it finds prepared", Rules(takes_up=False)),
    "AsTheyCome": Mutation("a shard applies decisions in any order", Rules(due=_as_they_come, weather=BUSY)),
    "Overtake": Mutation(
        "a decision overtakes one whose prepare is not applied yet", Rules(due=_overtake, weather=FAILING)
    ),
    "ForgetAtOnce": Mutation("decisions are forgotten at once", Rules(forgettable=_forget_at_once)),
    "ForgetAfterOne": Mutation(
        "decisions are forgotten when one participant has applied them", Rules(forgettable=_forget_after_one)
    ),
    "RetryAnew": Mutation("a retry is another attempt, whatever became of the last", Rules(retries_anew=True)),
    "AckAtDecision": Mutation("a client is told before all shards have applied it", Rules(waits_for_all=False)),
    "ShowPrepared": Mutation("prepared operations are visible", Rules(shows_prepared=True)),
    "NeverReread": Mutation("replies are taken as they come", Rules(lacking=_never_lacking)),
    "PlaceIsEnough": Mutation(
        "a reply counts as showing a batch that it has prepared", Rules(lacking=_lacking_by_place)
    ),
    "NamesNobody": Mutation("replies do not name the batches that they share with others", Rules(ledger=_NamesNobody)),
    "SnapshotLacksPending": Mutation(
        "snapshots lack prepared batches", Rules(carried=_without_pending, weather=LEARNING)
    ),
    "SnapshotLacksDecided": Mutation(
        "snapshots lack what was decided", Rules(carried=_without_decided, weather=LEARNING)
    ),
    "ClearEarly": Mutation(
        "what deletes by a filter does not wait for decisions before it", Rules(clears_in_order=False, weather=BUSY)
    ),
    "SnapshotLacksLatest": Mutation(
        "snapshots lack the last shared batches", Rules(carried=_without_latest, weather=LEARNING)
    ),
}
