"""How many bytes of requests and answers a node holds at once, over all connections of a port.

The limits of one request bound one request; twenty at their limits would still take a node's memory. So whoever reads a
body or builds a large answer takes from the budget first, in the measure in which it grows. What does not fit waits for
a moment and is then refused with nothing done. The oldest request always gets on, so that requests which each hold a
part of the budget cannot wait for each other.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from veccluster.errors import Unavailable

SHARE = 4
"""A port may hold this part of the memory that a node may use."""
MOST = 256 << 20
"""Bytes that a port holds however much memory there is."""
FREE = 64 << 10
"""Bytes that every request may hold without taking them, so that small ones go on whatever the large ones do."""
WEIGHT = 3
"""Times that a body's bytes are there at once: as they came, as arrays, and as messages to replicas."""
PATIENCE = 3.0
"""Seconds that a request waits for room."""
CROWD = 100
"""Requests that may wait for room at once."""


class Budget:
    """The bytes of one port. Belongs to one event loop."""

    def __init__(self, most: int, *, patience: float | None = None) -> None:
        self.most = most
        self._patience = PATIENCE if patience is None else patience
        self._used = 0
        self._numbers = itertools.count()
        self._holding: dict[int, Ticket] = {}
        """By number, so the oldest first: those that hold something or wait for it."""
        self._waiting: list[asyncio.Future[None]] = []

    @classmethod
    def of_memory(cls, usable: int) -> "Budget":
        """For a node that may use so many bytes of memory."""
        return cls(min(usable // SHARE, MOST))

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return self._used

    @contextmanager
    def ticket(self) -> Iterator["Ticket"]:
        """What one request takes; it is given back at the end."""
        ticket = Ticket(self, next(self._numbers))
        try:
            yield ticket
        finally:
            ticket.hold_nothing()

    async def take(self, ticket: "Ticket", more: int) -> None:
        """So many bytes more for a request; `Unavailable` when there is no room for them."""
        self._holding.setdefault(ticket.number, ticket)
        until = time.monotonic() + self._patience
        while not self._has_room(ticket, more):
            left = until - time.monotonic()
            if left <= 0 or len(self._waiting) >= CROWD:
                raise Unavailable(
                    f"the node holds as much of requests and answers as it may: {self._used >> 20} of "
                    f"{self.most >> 20} MiB, which follow from maxMemory. Nothing was done; "
                    "send it again later, in smaller parts, or to another node"
                )
            await self._wait(left)
        self._used += more

    def _has_room(self, ticket: "Ticket", more: int) -> bool:
        return self._used + more <= self.most or next(iter(self._holding)) == ticket.number

    async def _wait(self, seconds: float) -> None:
        freed = asyncio.get_running_loop().create_future()
        self._waiting.append(freed)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await freed
        finally:
            if freed in self._waiting:
                self._waiting.remove(freed)

    def give_back(self, ticket: "Ticket", bytes_: int, *, all_: bool) -> None:
        """So many bytes less for a request, which may be all that it had."""
        self._used -= bytes_
        if all_:
            self._holding.pop(ticket.number, None)
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)


class Ticket:
    """What one request has taken."""

    def __init__(self, budget: Budget | None, number: int = 0) -> None:
        self.number = number
        self._budget = budget
        self._held = 0
        self._taken = 0

    async def hold(self, bytes_: int) -> None:
        """From now on hold so many bytes; `Unavailable` when there is no room for more."""
        self._held = bytes_
        due = max(bytes_ - FREE, 0)
        if self._budget is None or due == self._taken:
            return
        if due < self._taken:
            self._budget.give_back(self, self._taken - due, all_=not due)
        else:
            await self._budget.take(self, due - self._taken)
        self._taken = due

    async def hold_more(self, bytes_: int) -> None:
        """Hold so many bytes besides."""
        await self.hold(self._held + bytes_)

    def hold_nothing(self) -> None:
        """Give everything back."""
        if self._budget is not None:
            self._budget.give_back(self, self._taken, all_=True)
        self._held = self._taken = 0


UNBOUNDED = Ticket(None)
"""Where nothing is counted."""
