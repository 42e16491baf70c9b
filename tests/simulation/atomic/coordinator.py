"""What a node does for clients over several shards, and what the leader does about decisions: one task a request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulation.atomic.book import Book
from simulation.atomic.node import ShardNode, Shown
from simulation.atomic.rules import Rules
from simulation.atomic.tasks import Steps, ask_all, etcd, pause
from simulation.rows import ops_of
from veccluster.decisions.replication.atomic import Batch, Decision, Prepare, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Begin, Finish, GiveUp, Propose, Step, after
from veccluster.model.state import NodeId, ReadConsistency, Revision, Seq, WriteConsistency
from veccluster_node.wal.operations import encode_content

ROUND = 0.15
PAUSE = 0.02
TIME = 0.8
"""Seconds in which a batch must be decided."""
SETTLING = 0.8
"""Seconds that it is waited for after that."""
ROUNDS = 30
SWEEP = 0.25

Replicas = Sequence[Mapping[NodeId, ShardNode]]
"""By shard, then by machine."""


@dataclass
class Operation:
    """What a client asks: changes by shard."""

    name: str
    changes: dict[int, dict[str, bool]]
    level: WriteConsistency
    asked: float
    acknowledged: float | None = None
    applied: Batch | None = None
    refused: bool = False
    """The client knows that nothing was stored: no try is without an answer."""


@dataclass
class Place:
    """A machine's view of all shards."""

    me: NodeId
    replicas: Replicas
    book: Book
    rules: Rules

    @property
    def here(self) -> ShardNode:
        """The replica whose process the work belongs to; all of a machine are one process."""
        return self.replicas[0][self.me]

    def primary(self, shard: int) -> ShardNode:
        """Whom the node takes for it, or now and then somebody else."""
        known = self.replicas[shard][self.me].replica.configuration
        if known and known.primary.node in self.replicas[shard] and not self.here.world.chance(0.1):
            return self.replicas[shard][known.primary.node]
        return self.anyone(shard)

    def anyone(self, shard: int) -> ShardNode:
        return self.here.world.rng.choice(list(self.replicas[shard].values()))

    def ask(self, target: ShardNode, what: Callable[[Any], None], answer: Callable[[Any], None]) -> None:
        """Let a replica do something, and its answer come back, over the network; or not."""
        world, me = self.here.world, self.me

        def back(result: Any) -> None:
            if (target.id, me) not in world.cut:
                answer(result)

        world.send(me, target.id, lambda: what(back))


# -- writing

Answer = Callable[[str, Batch | None], None]
"""`applied`, `refused` (nothing was stored), or `unknown`."""


def carry_out(place: Place, operation: Operation, first: int, answer: Answer) -> Steps:
    """Prepare everywhere, decide once, and wait until it is applied everywhere."""
    here, until, lost = place.here, place.here.world.now + TIME, False
    step: Step | None = Begin(Batch(operation.name, first))
    while isinstance(step, Begin):
        forgotten = here.known.forgotten
        asked = step
        step = yield from _prepare(place, operation, step.batch, until)
        if isinstance(step, Propose):
            forgotten = forgotten if place.rules.notes_first else place.book.known.forgotten
            found, was_lost = yield from _decide(place, step.decision, forgotten, until + SETTLING)
            lost |= was_lost and step.decision.verdict is Verdict.applied
            if found is None:
                answer("unknown", None)
                return
            step = after(found, over=here.world.now > until) if isinstance(found, Decision) else asked
    if isinstance(step, Finish) and step.verdict is Verdict.applied:
        yield from _wait(place, operation, step.batch, answer)
    else:
        answer("unknown" if lost and isinstance(step, GiveUp) else "refused", None)


def _prepare(place: Place, operation: Operation, batch: Batch, until: float) -> Steps:
    """Ask the primaries until it is clear what to do next."""
    here, said = place.here, dict[int, Standing]()
    while True:
        over = here.world.now > until
        if step := place.rules.next_step(batch, operation.changes.keys(), said, over=over):
            return step
        missing = [shard for shard in operation.changes if shard not in said]
        said |= yield ask_all(here, {s: _preparing(place, operation, batch, s) for s in missing}, ROUND)
        yield pause(here, PAUSE)


def _decide(place: Place, decision: Decision, forgotten: Revision, until: float) -> Steps:
    """The decision that is there now; False: some were forgotten, all is to be asked anew; None: unknown. And whether
    an answer was lost.
    """
    here, lost = place.here, False
    while (found := (yield etcd(here, lambda: place.book.propose(decision, forgotten)))) is None:
        lost = True
        if here.world.now > until:
            return None, lost
    if found[0] is not None:
        return found[0], lost
    if known := (yield etcd(here, lambda: place.book.known)):
        here.learn(known[0])
    return False, lost


def _preparing(place: Place, operation: Operation, batch: Batch, shard: int) -> Callable[[Any], None]:
    changes = operation.changes[shard]
    prepare = Prepare(batch, tuple(operation.changes), len(changes), encode_content(ops_of(changes)))
    target = place.primary(shard)
    return lambda answer: place.ask(target, lambda back: target.prepare(prepare, operation.level, back), answer)


def _wait(place: Place, operation: Operation, batch: Batch, answer: Answer) -> Steps:
    here, until = place.here, place.here.world.now + SETTLING
    left = set(operation.changes) if place.rules.waits_for_all else set()
    while left:
        if here.world.now > until:
            answer("unknown", None)
            return
        left -= (yield ask_all(here, {s: _settling(place, operation, batch, s) for s in left}, ROUND)).keys()
        yield pause(here, PAUSE / 4)
    answer("applied", batch)


def _settling(place: Place, operation: Operation, batch: Batch, shard: int) -> Callable[[Any], None]:
    target = place.primary(shard)
    return lambda answer: place.ask(target, lambda back: target.settle(batch, operation.level, back), answer)


# -- reading


@dataclass
class Question:
    """A read of keys in several shards."""

    keys: dict[int, tuple[str, ...]]
    level: ReadConsistency
    at_least: dict[int, Seq]
    asked: float
    rounds: int = 0
    found: dict[int, Shown] = field(default_factory=dict)


def read(place: Place, question: Question, answer: Callable[[bool], None]) -> Steps:
    """Read all shards at once, and again those whose part does not fit the others'."""
    here, wanted = place.here, dict.fromkeys(question.keys, frozenset[Seq]())
    while wanted and question.rounds < ROUNDS:
        question.rounds += 1
        asks = {s: _reading(place, question, s, decided) for s, decided in wanted.items()}
        question.found |= yield ask_all(here, asks, ROUND)
        lacking = place.rules.lacking({s: shown.showing for s, shown in question.found.items()})
        absent = dict.fromkeys(question.keys.keys() - question.found.keys(), frozenset[Seq]())
        wanted = {s: wanted.get(s, frozenset()) | lacking[s] for s in lacking} | absent
    answer(not wanted)


def _reading(place: Place, question: Question, shard: int, decided: frozenset[Seq]) -> Callable[[Any], None]:
    target = place.primary(shard) if question.level is ReadConsistency.strong else place.anyone(shard)
    keys, least = question.keys[shard], question.at_least.get(shard, Seq(0))
    return lambda answer: place.ask(
        target, lambda back: target.read_many(keys, question.level, least, decided, back), answer
    )


# -- forgetting


def sweep(place: Place) -> Steps:
    """Delete decisions that nobody needs any more."""
    here = place.here
    known = yield etcd(here, lambda: place.book.known)
    if known and known[0].decisions:
        shards = {shard for decision in known[0].decisions for shard in decision.prepared}
        shown = yield ask_all(here, {s: _showing(place, s) for s in sorted(shards)}, ROUND)
        gone = list(place.rules.forgettable(known[0], shown))
        yield etcd(here, lambda: place.book.forget(gone, known[0].forgotten))


def _showing(place: Place, shard: int) -> Callable[[Any], None]:
    target = place.primary(shard)
    return lambda answer: place.ask(target, lambda back: target.show(back), answer)
