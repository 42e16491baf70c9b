"""Looks at the states of a model: all of them, the nearest first, or along random walks where there are too many.

A model is what can be (`S`, hashable), what may happen next, and what must never be (Lamport's TLA+, and its checker
TLC, in small). What happens may be unlikely; that it is possible is enough.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S")


class Model(Protocol[S]):
    """What is explored."""

    def initial(self) -> S:
        """Where everything begins."""
        ...

    def steps(self, state: S) -> Iterator[tuple[str, S]]:
        """What may happen next: a name for a person, and the state after it."""
        ...

    def violation(self, state: S) -> str | None:
        """The promise that is broken in this state."""
        ...


@dataclass(frozen=True)
class Found:
    """`complete` says that there is no state that was not looked at; `path` leads to the violation, if there is one."""

    states: int
    complete: bool
    violation: str | None = None
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        looked = f"{self.states} states, {'all there are' if self.complete else 'of more'}"
        return "\n  ".join((f"{self.violation}, after", *self.path)) if self.violation else f"{looked}: no violation"


def search(model: Model[S], *, states: int) -> Found:
    """Look at up to `states` states, breadth first, so that the path to a violation is as short as can be."""
    start = model.initial()
    came: dict[S, tuple[S, str] | None] = {start: None}
    layer = [start]
    while layer:
        following = []
        for state in layer:
            if broken := model.violation(state):
                return Found(len(came), complete=False, violation=broken, path=_path(came, state))
            for name, then in model.steps(state):
                if then not in came:
                    came[then] = (state, name)
                    following.append(then)
            if len(came) > states:
                return Found(len(came), complete=False)
        layer = following
    return Found(len(came), complete=True)


def walk(model: Model[S], *, walks: int, length: int, seed: int = 0) -> Found:
    """Go `length` steps at random, `walks` times."""
    seen = 0
    for number in range(seed, seed + walks):
        rng = random.Random(number)
        state, path = model.initial(), []
        for _ in range(length):
            if not (ways := list(model.steps(state))):
                break
            name, state = rng.choice(ways)
            path.append(name)
            seen += 1
            if broken := model.violation(state):
                return Found(seen, complete=False, violation=f"{broken} (walk {number})", path=tuple(path))
    return Found(seen, complete=False)


def _path(came: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    names: list[str] = []
    while before := came[state]:
        state, name = before
        names.append(name)
    return tuple(reversed(names))


def follow(model: Model[S], story: Sequence[str]) -> Found:
    """Go the steps that a story names; it ends early where the model does not allow the next."""
    state = model.initial()
    for number, wanted in enumerate(story):
        then = next((then for name, then in model.steps(state) if name == wanted), None)
        if then is None:
            return Found(number, complete=False, path=tuple(story[:number]))
        if broken := model.violation(state := then):
            return Found(number + 1, complete=False, violation=broken, path=tuple(story[: number + 1]))
    return Found(len(story), complete=False, path=tuple(story))
