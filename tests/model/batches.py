"""Rule 15, batches over several shards, as steps from state to state. Its words are those of docs/replication.md.

Rules 1 to 13 make of each shard one log, which only grows. So a shard is its log here, and who speaks for it knows any
beginning of that: another replica, a primary that has not applied all of it, or one that is primary no more. Who has
confirmed its epoch knows all of it. What was asked stays asked: a request to prepare may come to a shard, and a
proposal to etcd, for as long as something could come of it. So what is late, doubled or lost needs no steps of its own,
and a coordinator that has ended is one that takes no more steps.

Not here: snapshots, which carry what the log says; other writes; and that a client is told that nothing was stored.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import Literal, NamedTuple

WITHOUT = {
    "all prepared": "a batch is applied before every participant has it",
    "create": "a later decision replaces the first",
    "drops alone": "a primary drops a batch without asking etcd",
    "drops": "nobody drops what its coordinator left",
    "order": "a shard takes decisions in any order",
    "hold up": "a decision overtakes one whose prepare is not applied yet",
    "forgotten at once": "decisions are forgotten at once",
    "forgotten by all": "a decision is forgotten when one shard has applied it",
    "compare": "a decision is made although some were forgotten since",
    "note first": "what was last forgotten is noted when a decision is proposed",
    "confirm": "who is primary no more says that a batch has no decision",
    "known to be dropped": "a retry is the next attempt, whatever became of the last",
    "hidden": "what is prepared shows",
    "read again": "parts are taken as they come",
    "undecided": "a part counts as showing a batch that it has prepared",
    "named": "parts do not name the batches that they share with others",
    "applied by all": "a batch is acknowledged when it is decided",
}
"""The rules that can be left out, and what is done then."""

Verdict = Literal["applied", "dropped"]
Places = tuple[int, ...]
"""By shard, where in its log it has prepared an attempt; 0: not known, or not at all."""


class Attempt(NamedTuple):
    """The key in etcd belongs to this, and so do the entries in the logs."""

    batch: int
    number: int

    def __str__(self) -> str:
        return f"attempt {self.number} at {'ABC'[self.batch]}"


class Prepare(NamedTuple):
    attempt: Attempt


class Decision(NamedTuple):
    """What the key says, and then every participant's log."""

    attempt: Attempt
    verdict: Verdict
    prepared: Places

    def __str__(self) -> str:
        return f"{self.attempt} is {self.verdict}"


Log = tuple[Prepare | Decision, ...]


class Proposal(NamedTuple):
    """Makes a decision, if there is none and nothing was forgotten since `noted`."""

    decision: Decision
    noted: int


class Coordinator(NamedTuple):
    """`said` is where shards have the attempt undecided, as they have said since it noted what was last forgotten."""

    attempt: Attempt
    noted: int
    said: Places


class State(NamedTuple):
    """`begun` is by batch the last attempt that anybody was asked to prepare; `keys` are etcd's, as they were made."""

    logs: tuple[Log, ...]
    begun: tuple[int, ...]
    coordinators: tuple[Coordinator, ...]
    keys: tuple[Decision, ...] = ()
    forgotten: int = 0
    proposed: frozenset[Proposal] = frozenset()
    made: frozenset[tuple[Attempt, Verdict]] = frozenset()
    acknowledged: frozenset[int] = frozenset()

    def append(self, shard: int, entry: Prepare | Decision) -> "State":
        log = (*self.logs[shard], entry)
        return self._replace(logs=(*self.logs[:shard], log, *self.logs[shard + 1 :]))

    def coordinate(self, index: int, coordinator: Coordinator) -> "State":
        others = self.coordinators
        return self._replace(coordinators=(*others[:index], coordinator, *others[index + 1 :]))


class Bounds(NamedTuple):
    """How much may happen. `batches` has the participants of each; `coordinators` are how many are at work on each at
    the same time, while a client may try again any number of times.
    """

    batches: tuple[tuple[int, ...], ...] = ((0, 1),)
    coordinators: int = 1
    attempts: int = 1
    forgets: int = 0


Steps = Iterator[tuple[str, State]]


# -- what a log says


class Standing(NamedTuple):
    """How a batch stands in a shard; the verdict is None where it is only prepared."""

    attempt: Attempt
    place: int
    verdict: Verdict | None


class Ledger(NamedTuple):
    """What a log amounts to that is applied up to `end`."""

    end: int
    prepared: dict[Attempt, int]
    decided: dict[Attempt, Decision]
    pending: dict[Attempt, int]
    applied: tuple[Decision, ...]

    def standing(self, attempt: Attempt) -> Standing | None:
        """As far as the batch has come here, in this attempt or a later one."""
        later = [a for a in self.prepared if a.batch == attempt.batch and a >= attempt]
        if decided := [a for a in later if a in self.decided]:
            return Standing(max(decided), 0, self.decided[max(decided)].verdict)
        return Standing(max(later), self.prepared[max(later)], None) if later else None


@cache
def ledger(log: Log) -> Ledger:
    prepared = {entry.attempt: place for place, entry in enumerate(log, 1) if isinstance(entry, Prepare)}
    decided = {entry.attempt: entry for entry in log if isinstance(entry, Decision)}
    pending = {attempt: place for attempt, place in prepared.items() if attempt not in decided}
    return Ledger(len(log), prepared, decided, pending, tuple(d for d in decided.values() if d.verdict == "applied"))


@cache
def beginnings(log: Log) -> tuple[Ledger, ...]:
    """What anybody may know who speaks for the shard; last, who has confirmed its epoch."""
    return tuple(ledger(log[:end]) for end in range(len(log) + 1))


@cache
def answers(log: Log, attempt: Attempt, without: str | None) -> frozenset[Standing]:
    """What a coordinator may hear. A verdict is true for good, whoever says it."""
    *old, newest = [known.standing(attempt) for known in beginnings(log)]
    said = [standing for standing in old if standing and (standing.verdict or without == "confirm")]
    return frozenset([*said, newest] if newest else said)


@cache
def due(shard: int, log: Log, keys: tuple[Decision, ...], without: str | None) -> frozenset[Decision]:
    """What a primary may put in its log next."""
    found = set[Decision]()
    for known in beginnings(log):
        for decision in keys:
            is_pending = decision.attempt in known.pending
            if is_pending and decision.attempt not in ledger(log).decided:
                found.add(decision)
                if without != "order":
                    break
            elif decision.prepared[shard] > known.end and without not in ("order", "hold up"):
                break
    return frozenset(found)


# -- what reads show


def shown(known: Ledger, without: str | None) -> set[int]:
    """The batches that a part from this state shows."""
    attempts = known.prepared if without == "hidden" else (decision.attempt for decision in known.applied)
    return {attempt.batch for attempt in attempts}


def lacks(part: Ledger, shard: int, other: Ledger, without: str | None) -> bool:
    """Whether the shard's part is to be read again: the other shows a batch that this does not have, or undecided."""
    shared = [decision.prepared[shard] for decision in other.applied if decision.prepared[shard]]
    if not shared or without in ("named", "read again"):
        return False
    return shared[-1] > part.end or (shared[-1] in part.pending.values() and without != "undecided")


# -- what must never be


class Pair(NamedTuple):
    """Two shards, their logs, and the batches in which both take part."""

    shards: tuple[int, int]
    logs: tuple[Log, Log]
    shared: frozenset[int]


@cache
def disagreement(pair: Pair, without: str | None) -> str | None:
    """What two shards have applied, or show, that does not go together."""
    one, other = map(ledger, pair.logs)
    both = one.decided.keys() & other.decided.keys()
    if any(one.decided[attempt].verdict != other.decided[attempt].verdict for attempt in both):
        return "half of a batch is applied"
    orders = [[d.attempt.batch for d in known.applied if d.attempt.batch in pair.shared] for known in (one, other)]
    if any(mine != yours for mine, yours in zip(*orders, strict=False)):
        return "shards disagree about the order of batches"
    parts = product(beginnings(pair.logs[0]), beginnings(pair.logs[1]))
    is_torn = any(is_half(pair, mine, yours, without) for mine, yours in parts)
    return "a read shows half of a batch" if is_torn else None


def is_half(pair: Pair, one: Ledger, other: Ledger, without: str | None) -> bool:
    """Whether these parts count as fitting, and show a batch in one shard only."""
    if not (shown(one, without) ^ shown(other, without)) & pair.shared:
        return False
    return not lacks(one, pair.shards[0], other, without) and not lacks(other, pair.shards[1], one, without)


# -- what happens


class Batches:
    """The rule, but for a part that may be left out."""

    def __init__(self, bounds: Bounds, without: str | None = None) -> None:
        assert without is None or without in WITHOUT
        self.bounds, self.without = bounds, without
        self.shards = 1 + max(max(participants) for participants in bounds.batches)

    def initial(self) -> State:
        batches, each = range(len(self.bounds.batches)), range(self.bounds.coordinators)
        coordinators = tuple(self._anew(Attempt(batch, 1), 0) for batch in batches for _ in each)
        return State(((),) * self.shards, (1,) * len(batches), coordinators)

    def steps(self, state: State) -> Steps:
        yield from self._prepare(state)
        yield from self._go_on(state)
        yield from self._forget(state)
        for index, coordinator in enumerate(state.coordinators):
            yield from self._try_again(state, index, coordinator)
            yield from self._hear(state, index, coordinator)
            yield from self._decide(state, index, coordinator)
            yield from self._acknowledge(state, index, coordinator.attempt.batch)

    def _go_on(self, state: State) -> Steps:
        """What happens to what is prepared although no coordinator is left."""
        for shard, log in enumerate(state.logs):
            for decision in due(shard, log, state.keys, self.without):
                yield f"shard {shard}: {decision}", state.append(shard, decision)
            yield from self._drop(state, shard, ledger(log))
        for decision, noted in state.proposed:
            if self._is_open(state, decision.attempt, noted):
                yield f"etcd: {decision}", self._made(state, decision)

    # -- shards

    def _prepare(self, state: State) -> Steps:
        """A request to prepare comes, and the batch has not come as far there yet."""
        for batch, participants in enumerate(self.bounds.batches):
            for attempt in (Attempt(batch, number) for number in range(1, state.begun[batch] + 1)):
                for shard in participants:
                    if ledger(state.logs[shard]).standing(attempt) is None:
                        yield f"shard {shard} prepares {attempt}", state.append(shard, Prepare(attempt))

    def _drop(self, state: State, shard: int, known: Ledger) -> Steps:
        """A primary has had a batch for too long without a decision."""
        waiting = known.prepared if self.without == "confirm" else known.pending
        for attempt, place in waiting.items():
            decision = Decision(attempt, "dropped", _put((0,) * self.shards, shard, place))
            if self.without == "drops alone":
                yield f"shard {shard} drops {attempt}", state.append(shard, decision)
            elif self.without != "drops":
                yield from self._propose(state, f"shard {shard}", decision, state.forgotten)

    # -- etcd, and the leader

    def _propose(self, state: State, who: str, decision: Decision, noted: int) -> Steps:
        proposal = Proposal(decision, noted)
        if proposal not in state.proposed and self._is_open(state, decision.attempt, noted):
            yield f"{who} proposes: {decision}", state._replace(proposed=state.proposed | {proposal})

    def _is_open(self, state: State, attempt: Attempt, noted: int) -> bool:
        """Whether a decision would be made."""
        is_new = self.without == "create" or all(key.attempt != attempt for key in state.keys)
        return is_new and (noted == state.forgotten or self.without == "compare")

    def _made(self, state: State, decision: Decision) -> State:
        others = tuple(key for key in state.keys if key.attempt != decision.attempt)
        made = state.made | {(decision.attempt, decision.verdict)}
        return self._tidy(state._replace(keys=(*others, decision), made=made))

    def _forget(self, state: State) -> Steps:
        """The leader deletes a decision that is applied wherever it says that the attempt is prepared."""
        for key in state.keys if state.forgotten < self.bounds.forgets else ():
            has = [key.attempt in ledger(log).decided for log, at in zip(state.logs, key.prepared, strict=True) if at]
            is_done = any(has) if self.without == "forgotten by all" else all(has)
            if is_done or self.without == "forgotten at once":
                left = tuple(other for other in state.keys if other != key)
                yield f"forgotten: {key}", self._tidy(state._replace(keys=left, forgotten=state.forgotten + 1))

    def _is_of_use(self, state: State, attempt: Attempt, noted: int) -> bool:
        """Whether a decision may be made by this, now or later: the two comparisons say so, where both are made."""
        return self.without in ("create", "compare", "note first") or self._is_open(state, attempt, noted)

    def _tidy(self, state: State) -> State:
        """Without what is of no use any more, so that there are fewer states."""
        coordinators = tuple(
            c if self._is_of_use(state, c.attempt, c.noted) else self._anew(c.attempt, state.forgotten)
            for c in state.coordinators
        )
        proposed = frozenset(p for p in state.proposed if self._is_of_use(state, p.decision.attempt, p.noted))
        return state._replace(coordinators=coordinators, proposed=proposed)

    # -- coordinators

    def _anew(self, attempt: Attempt, forgotten: int) -> Coordinator:
        return Coordinator(attempt, forgotten, (0,) * self.shards)

    def _begin(self, state: State, index: int, batch: int, number: int) -> Steps:
        """Note what was last forgotten, then ask for this attempt."""
        begins = self._anew(Attempt(batch, number), state.forgotten)
        if number <= self.bounds.attempts and begins != state.coordinators[index]:
            begun = _put(state.begun, batch, max(number, state.begun[batch]))
            yield f"coordinator {index} begins {begins.attempt}", state._replace(begun=begun).coordinate(index, begins)

    def _try_again(self, state: State, index: int, me: Coordinator) -> Steps:
        """The client asks again, after this coordinator's end; or the coordinator finds that the attempt is dropped."""
        batch, number = me.attempt
        yield from self._begin(state, index, batch, 1)
        is_dropped = any(key.attempt == me.attempt and key.verdict == "dropped" for key in state.keys)
        if is_dropped or self.without == "known to be dropped":
            yield from self._begin(state, index, batch, number + 1)

    def _hear(self, state: State, index: int, me: Coordinator) -> Steps:
        """A shard says how the batch stands there."""
        for shard, log in enumerate(state.logs):
            for found, place, verdict in answers(log, me.attempt, self.without):
                if verdict == "dropped":
                    yield from self._begin(state, index, found.batch, found.number + 1)
                elif verdict is None and found > me.attempt:
                    yield from self._begin(state, index, found.batch, found.number)
                elif verdict is None and place != me.said[shard] and self._is_of_use(state, me.attempt, me.noted):
                    heard = me._replace(said=_put(me.said, shard, place))
                    yield f"coordinator {index} hears of {me.attempt} in shard {shard}", state.coordinate(index, heard)

    def _decide(self, state: State, index: int, me: Coordinator) -> Steps:
        """Propose to apply what all have prepared; otherwise to drop it, when its time is over."""
        if not any(me.said):
            return
        has_all = all(me.said[shard] for shard in self.bounds.batches[me.attempt.batch])
        decision = Decision(me.attempt, "applied" if has_all or self.without == "all prepared" else "dropped", me.said)
        noted = state.forgotten if self.without == "note first" else me.noted
        yield from self._propose(state, f"coordinator {index}", decision, noted)

    def _acknowledge(self, state: State, index: int, batch: int) -> Steps:
        if self.without == "applied by all":
            is_done = any(key.attempt.batch == batch and key.verdict == "applied" for key in state.keys)
        else:
            is_done = self._is_applied(state, batch)
        if is_done and batch not in state.acknowledged:
            acknowledged = state.acknowledged | {batch}
            yield f"coordinator {index} acknowledges {'ABC'[batch]}", state._replace(acknowledged=acknowledged)

    def _is_applied(self, state: State, batch: int) -> bool:
        return all(batch in shown(ledger(state.logs[shard]), None) for shard in self.bounds.batches[batch])

    # -- promises

    def violation(self, state: State) -> str | None:
        """How it broke one."""
        if len({attempt for attempt, _ in state.made}) < len(state.made):
            return "two verdicts"
        if not all(self._is_applied(state, batch) for batch in state.acknowledged):
            return "an acknowledged batch is not applied everywhere"
        if any(len({d.attempt.batch for d in known.applied}) < len(known.applied) for known in map(ledger, state.logs)):
            return "a batch is applied twice"
        pairs = combinations(range(self.shards), 2)
        return next(filter(None, (self._disagree(state, pair) for pair in pairs)), None) or self._left(state)

    def _disagree(self, state: State, pair: tuple[int, int]) -> str | None:
        one, other = pair
        shared = frozenset(b for b, those in enumerate(self.bounds.batches) if one in those and other in those)
        return disagreement(Pair(pair, (state.logs[one], state.logs[other]), shared), self.without)

    def _left(self, state: State) -> str | None:
        """If no coordinator ever takes another step, what is prepared is still decided."""
        is_left = any(ledger(log).pending for log in state.logs) and not any(self._go_on(state))
        return "a batch stays prepared for ever" if is_left else None


def _put(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
