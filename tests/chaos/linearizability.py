"""Whether the operations on one id could have happened one at a time, each at some moment while it was under way.

The search of Wing and Gong (1993) as improved by Lowe: walk the calls in order, place each where it fits, go back where
one returns unplaced, and never look twice at the same set of placed operations with the same value (as porcupine and
knossos do). Linearizability is local (Herlihy and Wing 1990), so that ids are judged each for itself.

An operation of unknown outcome stays open to the end: it may take effect at any moment after it began, or never.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Value = int | None
"""What an id holds: the number of the write, of which no two are alike, or None when it is not there."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`start` and `end` are moments of one clock; `end` is None when nobody knows whether it was carried out."""

    start: int
    end: int | None
    value: Value
    """What a read showed, or what a write left."""
    reads: bool = False
    found: bool | None = None
    """Of a delete: whether it says that something was there, if it says so."""

    def after(self, held: Value) -> tuple[bool, Value]:
        """Whether this fits an id that holds `held`, and what it holds then."""
        if self.reads:
            return held == self.value, held
        return self.found in (None, held is not None), self.value

    @property
    def changes_nothing(self) -> bool:
        """Wherever it fits, the value stays: the earliest place is as good as any."""
        return self.reads or self.found is False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fits` is None when the search was given up."""

    fits: bool | None
    stuck: tuple[Operation, ...] = ()
    """Of a history that does not fit: the operations that were under way where the search got furthest."""


BUDGET = 3_000_000
"""Steps after which a search is given up; a history of some hundred operations takes some thousand."""


def judge(operations: Sequence[Operation], initial: Value = None, *, budget: int = BUDGET) -> Verdict:
    """Find an order in which the operations fit, or show that there is none."""
    return _Search(_relevant(operations), initial).run(budget)


def _relevant(operations: Sequence[Operation]) -> list[Operation]:
    """All but what plays no part: reads without an answer, and open upserts that nothing can have seen."""
    seen = {o.value for o in operations if o.reads and o.end is not None}
    tells = any(o.found for o in operations)
    kept = [
        o for o in operations if o.end is not None or (not o.reads and (o.value is None or o.value in seen or tells))
    ]
    return sorted(kept, key=lambda o: o.start)


_NOWHERE = -1


class _Search:
    """Calls and returns in a list linked both ways: what is placed is lifted out, and falls back in."""

    def __init__(self, operations: list[Operation], initial: Value) -> None:
        self.operations = operations
        self.held = initial
        moments = [(o.start, 1, i) for i, o in enumerate(operations)]
        moments += [(o.end, 0, i) for i, o in enumerate(operations) if o.end is not None]
        moments.sort()
        # Entry 0 is the head; entries count from 1. What ends at the moment at which another begins is before it.
        self.which = [_NOWHERE] + [i for _, _, i in moments]
        self.calls = [False] + [bool(call) for _, call, _ in moments]
        self.next = [*range(1, len(moments) + 1), _NOWHERE]
        self.before = [_NOWHERE, *range(len(moments))]
        self.entry = {(i, bool(call)): at for at, (_, call, i) in enumerate(moments, 1)}
        self.left = sum(o.end is not None for o in operations)

    def run(self, budget: int) -> Verdict:
        placed, path = 0, []
        known: set[tuple[int, Value]] = set()
        at, best = self.next[0], (self.left + 1, ())
        while self.left:
            if not (budget := budget - 1):
                return Verdict(None)
            if at != _NOWHERE and self.calls[at]:
                index = self.which[at]
                fits, held = self.operations[index].after(self.held)
                mark = (placed | 1 << index, held)
                if not fits or mark in known:
                    at = self.next[at]
                    continue
                known.add(mark)
                path.append((index, self.held))
                placed, self.held = mark
                self._lift(index)
                at = self.next[0]
                continue
            if self.left < best[0]:
                best = (self.left, self._under_way(at))
            while True:
                if not path:
                    return Verdict(False, best[1])
                index, self.held = path.pop()
                placed &= ~(1 << index)
                self._drop(index)
                if not self.operations[index].changes_nothing:
                    break
            at = self.next[self.entry[index, True]]
        return Verdict(True)

    def _under_way(self, at: int) -> tuple[Operation, ...]:
        """What had been called, and not been placed, when `at` returned."""
        found, entry = [], self.next[0]
        while entry not in (at, _NOWHERE):
            if self.calls[entry]:
                found.append(self.operations[self.which[entry]])
            entry = self.next[entry]
        return tuple(found)

    def _lift(self, index: int) -> None:
        for call in (True, False):
            if (at := self.entry.get((index, call))) is not None:
                self.next[self.before[at]] = self.next[at]
                if self.next[at] != _NOWHERE:
                    self.before[self.next[at]] = self.before[at]
        self.left -= self.operations[index].end is not None

    def _drop(self, index: int) -> None:
        for call in (False, True):
            if (at := self.entry.get((index, call))) is not None:
                self.next[self.before[at]] = at
                if self.next[at] != _NOWHERE:
                    self.before[self.next[at]] = at
        self.left += self.operations[index].end is not None
