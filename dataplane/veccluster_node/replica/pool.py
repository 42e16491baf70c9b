"""A few threads give all replicas of a node their turns, as in TiKV's batch system and CockroachDB's scheduler.

Loops wait in one queue, each at most once, and are served in the order in which they came. A thread takes its share of
those that wait, begins their turns one after the other, and then syncs side by side what they have written: one group
commit for all, since a file system that keeps a journal makes one commit of syncs that meet
(docs/decisions/0019-loops.md has what was measured).
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import structlog

from veccluster_node.replica.loop import ReplicaLoop

BATCH = 64
"""Loops that one thread serves together, at most."""
THREADS = 4
SYNCS = 16
"""Syncs of one thread's batch and of others that may be under way at the same time."""

log = structlog.get_logger(__name__)


class LoopPool:
    """Made once for a process; `ports.Clock` as well, since whoever waits for time waits for a turn."""

    def __init__(self, threads: int = THREADS) -> None:
        self._waiting: deque[ReplicaLoop] = deque()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"loop-{number}", daemon=True) for number in range(threads)
        ]
        self._is_closing = False
        self._syncs = ThreadPoolExecutor(SYNCS, thread_name_prefix="sync")
        self._timers = _Timers()
        for thread in self._threads:
            thread.start()

    def schedule(self, loop: ReplicaLoop) -> None:
        """Give the loop a turn soon; its mailbox sees to it that it waits here at most once."""
        with self._changed:
            self._waiting.append(loop)
            self._changed.notify()

    # -- the clock

    def now(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something that returns at once, later."""
        self._timers.after(seconds, call)

    # -- the threads

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._serve(batch)
            except Exception:  # a loop answers for itself; whatever this was, the others go on
                log.exception("loops_failed")

    def _take(self) -> list[ReplicaLoop]:
        """This thread's share of the loops that wait; none to end the thread."""
        with self._changed:
            while not self._waiting:
                if self._is_closing:
                    return []
                self._changed.wait()
            share = min(BATCH, -(-len(self._waiting) // len(self._threads)))
            return [self._waiting.popleft() for _ in range(share)]

    def _serve(self, batch: list[ReplicaLoop]) -> None:
        due = [loop for loop in batch if loop.begin_turn()]
        while due:
            self._sync(due)
            due = [loop for loop in due if loop.go_on()]
        for loop in batch:
            if loop.end_turn():
                self.schedule(loop)

    def _sync(self, due: list[ReplicaLoop]) -> None:
        if len(due) == 1:
            due[0].sync()
        else:
            list(self._syncs.map(ReplicaLoop.sync, due))

    def close(self) -> None:
        """End the threads when nothing waits; loops that are closed before have their last turn."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._syncs.shutdown()
        self._timers.close()


class _Timers:
    """One thread that calls what is due; it is started when it is first needed."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), call))
            if self._thread is None and not self._is_closing:
                self._thread = threading.Thread(target=self._run, name="loop-timers", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            call()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_closing:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
        return None

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
