"""A few threads keep all replicas of a node in shape; what is to be done is decided elsewhere (`builder.py`).

A replica is looked at when something changed or a time that it named has come, never on the chance that something
might have: one that rests costs nothing. What looking finds to be built waits for the one thread that builds, so that
a long build holds up no look at another replica.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count

import structlog

LOOKS = 2
"""Threads that look."""

log = structlog.get_logger(__name__)


class Maintenance:
    """Made once for a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Upkeep]] = []
        """When whom to look at; an entry counts only as long as its time is that of the replica."""
        self._building: deque[Upkeep] = deque()
        self._order = count()
        self._is_closing = False
        works = [("looks", self._take_look)] * LOOKS + [("builds", self._take_build)]
        self._threads = [
            threading.Thread(target=self._run, args=(take,), name=f"{name}-{number}", daemon=True)
            for number, (name, take) in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def look(self, upkeep: "Upkeep", within: float) -> None:
        """Have a replica looked at in so many seconds, or sooner if that was asked for before."""
        with self._changed:
            at = time.monotonic() + within
            if not upkeep.is_closed and (upkeep.due is None or at < upkeep.due):
                upkeep.due = at
                self._wait(upkeep)

    def _wait(self, upkeep: "Upkeep") -> None:
        if upkeep.due is not None and not upkeep.is_busy:
            heapq.heappush(self._due, (upkeep.due, next(self._order), upkeep))
            self._changed.notify_all()

    def end(self, upkeep: "Upkeep") -> None:
        """Do nothing more for a replica; returns when what is under way has ended."""
        with self._changed:
            upkeep.is_closed = True
            if upkeep in self._building:
                self._building.remove(upkeep)
                upkeep.is_busy = False
            while upkeep.is_busy:
                self._changed.wait()

    def close(self) -> None:
        """End the threads, after what they are doing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # -- the threads

    def _run(self, take: "Callable[[], tuple[Upkeep, Callable[[], bool]] | None]") -> None:
        while taken := take():
            upkeep, work = taken
            is_build_due = False
            try:
                is_build_due = work()
            except Exception:  # whoever works answers for it; whatever this was, the other replicas need the thread
                log.exception("upkeep_failed")
            with self._changed:
                if is_build_due and not upkeep.is_closed:
                    self._building.append(upkeep)
                else:
                    upkeep.is_busy = False
                    self._wait(upkeep)
                self._changed.notify_all()

    def _take_look(self) -> "tuple[Upkeep, Callable[[], bool]] | None":
        with self._changed:
            while not self._is_closing:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    at, _, upkeep = heapq.heappop(self._due)
                    if upkeep.due == at and not upkeep.is_busy and not upkeep.is_closed:
                        upkeep.due, upkeep.is_busy = None, True
                        return upkeep, upkeep.look
                else:
                    self._changed.wait(wait)
        return None

    def _take_build(self) -> "tuple[Upkeep, Callable[[], bool]] | None":
        with self._changed:
            while not self._is_closing:
                if self._building:
                    upkeep = self._building.popleft()
                    return upkeep, upkeep.build
                self._changed.wait()
        return None


class Upkeep:
    """What is done for one replica: one thing at a time. The attributes are `Maintenance`'s."""

    def __init__(self, look: Callable[[], bool], build: Callable[[], bool]) -> None:
        """`look` says whether to call `build`, which says whether to call it again."""
        self.look, self.build = look, build
        self.due: float | None = None
        """When to look, if there is a time."""
        self.is_busy = False
        """Whether something is under way, or a build waits."""
        self.is_closed = False
