"""Clients over several shards: one asks for batches, tries again under their names and remembers; others read."""

from collections.abc import Callable, Sequence
from random import Random

from simulation import checks
from simulation.atomic.checks import BatchChecks
from simulation.atomic.coordinator import Operation, Place, Question, carry_out, read
from simulation.atomic.tasks import Task
from simulation.world import World
from veccluster.decisions.replication.atomic import Batch
from veccluster.model.state import ReadConsistency, Seq

PATIENCE = 2.0
TRIES = 5
DEATHS = 0.03
"""How likely a coordinator is to end at each of its steps."""
LEVELS = (ReadConsistency.strong, ReadConsistency.eventual, ReadConsistency.session)


class Client:
    """Asks one thing at a time, at any machine."""

    def __init__(self, number: int, world: World, places: Sequence[Place], judge: BatchChecks) -> None:
        self.number, self.world, self.places, self.judge = number, world, places, judge
        self.stopped = False
        self.done = 0

    @property
    def rng(self) -> Random:
        return self.world.rng

    def start(self) -> None:
        self.world.after(self.rng.uniform(0, 0.1), self._next)

    def _later(self) -> None:
        self.world.after(self.rng.expovariate(20.0 if self.world.calm else self.world.weather.haste), self._next)

    def _next(self) -> None:
        if not self.stopped:
            self.done += 1
            self._ask()

    def _ask(self) -> None:
        raise NotImplementedError

    def _place(self) -> Place:
        up = [p for p in self.places if p.here.up]
        return self.rng.choice(up or list(self.places))

    def _shards(self) -> list[int]:
        shards = range(len(self.places[0].replicas))
        return sorted(self.rng.sample(shards, self.rng.randint(2, len(shards))))

    def _keys(self) -> list[str]:
        keys = self.world.weather.keys
        return [f"k{k}" for k in sorted(self.rng.sample(range(keys), self.rng.randint(1, min(2, keys))))]

    def _once(self, answer: Callable[..., None]) -> Callable[..., None]:
        came: list[bool] = []

        def once(*result: object) -> None:
            if not came:
                came.append(True)
                answer(*result)

        return once


class Writer(Client):
    def _ask(self) -> None:
        changes = {s: {k: self.rng.random() < 0.3 for k in self._keys()} for s in self._shards()}
        level = self.rng.choice(self.world.weather.levels)
        operation = Operation(f"b{self.number}.{self.done}", changes, level, self.world.now)
        self.judge.operations[operation.name] = operation
        self._try(operation, 1, certain=True)

    def _try(self, operation: Operation, number: int, *, certain: bool) -> None:
        place = self._place()

        def answered(outcome: str, batch: Batch | None) -> None:
            if outcome == "applied" and batch:
                self.judge.acknowledged(operation, batch)
                self._later()
            elif number < TRIES and not self.stopped:
                sure = certain and outcome == "refused"
                self.world.after(self.rng.uniform(0.01, 0.2), lambda: self._try(operation, number + 1, certain=sure))
            else:
                operation.refused = certain and outcome == "refused"
                self._later()

        once = self._once(answered)
        first = number if place.rules.retries_anew else 1
        if place.here.up:
            dies = 0.0 if self.world.calm else DEATHS
            Task(place.here, carry_out(place, operation, first, once), dies)
        self.world.after(PATIENCE, lambda: once("unknown", None))


class Clearer(Client):
    """Deletes what is there in one shard, now and then."""

    def _later(self) -> None:
        self.world.after(self.rng.expovariate(3.0), self._next)

    def _ask(self) -> None:
        self._try(self.rng.randrange(len(self.places[0].replicas)), f"clear {self.number}.{self.done}", 1)

    def _try(self, shard: int, name: str, number: int) -> None:
        place = self._place()
        target = place.primary(shard)

        def answered(ok: bool | None) -> None:
            if ok:
                self.judge.shards[shard].writes[name].acknowledged = self.world.now
            if ok or number == TRIES or self.stopped:
                self._later()
            else:
                self._try(shard, name, number + 1)

        once = self._once(answered)
        place.ask(target, lambda back: target.clear(name, back), once)
        self.world.after(PATIENCE / TRIES, lambda: once(None))


class Reader(Client):
    def __init__(self, number: int, world: World, places: Sequence[Place], judge: BatchChecks) -> None:
        super().__init__(number, world, places, judge)
        self.seen: dict[int, Seq] = {}

    def _ask(self) -> None:
        level, place = self.rng.choice(LEVELS), self._place()
        at_least = dict(self.seen) if level is ReadConsistency.session else {}
        question = Question({s: tuple(self._keys()) for s in self._shards()}, level, at_least, self.world.now)

        def answered(complete: bool) -> None:
            if complete:
                self._heard(question)
            self._later()

        once = self._once(answered)
        if place.here.up:
            Task(place.here, read(place, question, once))
        self.world.after(PATIENCE, lambda: once(False))

    def _heard(self, question: Question) -> None:
        self.judge.read(question)
        for shard, shown in question.found.items():
            for key, version in shown.versions.items():
                self.judge.shards[shard].reads.append(
                    checks.Shown(
                        self.number,
                        question.level,
                        key,
                        version,
                        question.asked,
                        self.world.now,
                        shown.position,
                        question.at_least.get(shard, Seq(0)),
                    )
                )
            if question.level is ReadConsistency.session:
                self.seen[shard] = max(self.seen.get(shard, Seq(0)), shown.position.seq)
