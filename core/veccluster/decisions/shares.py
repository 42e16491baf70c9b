"""Decide whose work is begun next where more is asked for than can be done at once.

Pure: what does the work says when it ended. Who asks for more than its share waits behind itself, not before others:
of one source no more than `share` is under way, and the sources whose work waits are served in turn.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Work that waits, by source, and how much of each is under way."""

    def __init__(self, most: int, share: int) -> None:
        """`most` at once in all, `share` at once of one source."""
        if not 1 <= share <= most:
            raise ValueError(f"a share is from 1 to {most}, is {share}")
        self._most = most
        self._share = share
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        """By source; the one whose turn is next first."""
        self._under_way: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """How much waits."""
        return sum(map(len, self._waiting.values()))

    @property
    def under_way(self) -> int:
        """How much is under way."""
        return sum(self._under_way.values())

    def ask(self, source: str, work: T) -> None:
        """Let some work wait."""
        self._waiting.setdefault(source, deque()).append(work)

    def withdraw(self, source: str, work: T) -> bool:
        """Nobody wants it any more: take it out, if it still waits; whether it did."""
        waiting = self._waiting.get(source, deque())
        if work not in waiting:
            return False
        waiting.remove(work)
        if not waiting:
            del self._waiting[source]
        return True

    def begin(self) -> Iterator[T]:
        """Yield the work that is to begin now; it is under way from then on."""
        while self.under_way < self._most and (source := self._next()) is not None:
            waiting = self._waiting[source]
            work = waiting.popleft()
            if waiting:
                self._waiting.move_to_end(source)
            else:
                del self._waiting[source]
            self._under_way[source] = self._under_way.get(source, 0) + 1
            yield work

    def end(self, source: str) -> None:
        """Some work of a source has ended."""
        self._under_way[source] -= 1
        if not self._under_way[source]:
            del self._under_way[source]

    def _next(self) -> str | None:
        return next((s for s in self._waiting if self._under_way.get(s, 0) < self._share), None)
