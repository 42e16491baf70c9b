"""What waits for a replica's loop, and the one rule by which nothing that waits is forgotten.

A loop is idle, scheduled or in a turn. Whoever puts something into the mailbox of an idle loop has it scheduled; what
comes while it is scheduled or in a turn is seen by that turn or, at its end (`rest`), has it scheduled again.
"""

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar

from veccluster.errors import Unavailable


class Sized(Protocol):
    """Something that takes up memory while it waits."""

    @property
    def size(self) -> int:
        """Bytes."""


T = TypeVar("T", bound=Sized)


class Mailbox(Generic[T]):
    """Thread-safe; holds at most `limit` bytes of what is `bounded`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._pending = 0
        """Bytes of writes and messages that wait or have no answer yet."""
        self._is_scheduled = False
        self._is_closed = False

    def put(self, item: T, *, bounded: bool) -> bool:
        """Add an item; True when the loop has to be scheduled. `Unavailable` when there is no room, or it is closed."""
        with self._lock:
            if self._is_closed:
                raise Unavailable("the shard is being closed")
            # A single one is always taken, however large: it would never find more room.
            if bounded and self._pending and self._pending + item.size > self._limit:
                raise Unavailable(f"{self._pending} bytes of writes are waiting already")
            self._waiting.append(item)
            self._pending += item.size
            return self._schedule()

    def _schedule(self) -> bool:
        scheduled, self._is_scheduled = self._is_scheduled, True
        return not scheduled

    def release(self, size: int) -> None:
        """Something of this size has its answer."""
        with self._lock:
            self._pending -= size

    def take(self, most: int) -> list[T]:
        """What has waited longest, of so many bytes or a single item."""
        taken: list[T] = []
        size = 0
        with self._lock:
            while self._waiting and (not taken or size <= most):
                taken.append(self._waiting.popleft())
                size += taken[-1].size
        return taken

    def rest(self) -> bool:
        """End a turn; True when something came meanwhile, so that the loop has to be scheduled again."""
        with self._lock:
            self._is_scheduled = bool(self._waiting)
            return self._is_scheduled

    def close(self) -> bool:
        """Take nothing more; True when the loop has to be scheduled, to handle what waits and to end."""
        with self._lock:
            self._is_closed = True
            return self._schedule()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    @property
    def is_over(self) -> bool:
        """Whether it is closed and nothing waits."""
        with self._lock:
            return self._is_closed and not self._waiting
