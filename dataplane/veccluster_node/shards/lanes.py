"""The threads in which a node reads, opens, closes and deletes: each kind has its own, so that none waits for another.

Reads that are cheap by nature, such as a get by id, have threads that a filter cannot occupy. Of the threads of each
kind of read one source (the address of a client) gets half at most. Work that nobody waits for any more is never
begun, or stopped.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from veccluster.decisions.shares import Turns
from veccluster.errors import Unavailable
from veccluster_node.engine.stopping import Stop

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Something that waits for its turn."""

    source: str
    call: Callable[[], Any]
    begun: "asyncio.Future[Future[Any]]"


class Lane:
    """Threads for one kind of work; for one event loop."""

    def __init__(self, name: str, threads: int, *, share: int | None = None) -> None:
        """One source gets `share` of the threads, all if there is none."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns: Turns[_Work] = Turns(threads, share or threads)
        self._stops: set[Stop] = set()

    async def run(self, call: Callable[[Stop], T], source: str = "") -> T:
        """What the call gives, in a thread; when the caller is cancelled it is told to stop, or not even begun."""
        stop, loop = Stop(), asyncio.get_running_loop()

        def begin() -> T:
            stop.check()
            return call(stop)

        work = _Work(source, begin, loop.create_future())
        self._stops.add(stop)
        self._turns.ask(source, work)
        self._go_on(loop)
        try:
            done = asyncio.wrap_future(await work.begun, loop=loop)
            done.add_done_callback(_heard)
            result: T = await asyncio.shield(done)
        except asyncio.CancelledError:
            stop.tell()
            if self._turns.withdraw(source, work):
                work.begun.cancel()
            raise
        finally:
            self._stops.discard(stop)
        return result

    def stop(self) -> None:
        """Tell all that is under way, or waits."""
        for stop in self._stops:
            stop.tell()

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin what may begin."""
        for work in self._turns.begin():
            try:
                future = self._threads.submit(work.call)
            except RuntimeError:  # shut down
                future = Future()
                future.set_exception(Unavailable("the node is stopping"))
            future.add_done_callback(partial(self._ended, work.source, loop))
            if not work.begun.done():
                work.begun.set_result(future)

    def _ended(self, source: str, loop: asyncio.AbstractEventLoop, _: Future[Any]) -> None:
        """In the thread that worked."""

        def next_one() -> None:
            self._turns.end(source)
            self._go_on(loop)

        with suppress(RuntimeError):  # the loop has ended: the node stops
            loop.call_soon_threadsafe(next_one)

    def shut_down(self) -> None:
        """Wait for what is under way, and begin no more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _heard(done: "asyncio.Future[Any]") -> None:
    """Nobody may be left to hear what went wrong."""
    if not done.cancelled():
        done.exception()


class Lanes:
    """All of a node's."""

    def __init__(self, processors: int) -> None:
        """So many can compute at once: one source can use all of them, and leaves as many threads to others."""
        self.quick = Lane("read", 2 * processors, share=processors)
        """Reads that cost about the same however much there is."""
        self.slow = Lane("slow-read", 2 * processors, share=processors)
        """Reads that may look at every row."""
        self.opening = Lane("open", processors)
        self.closing = Lane("close", processors)
        self.deleting = Lane("delete", 1)

    def shut_down(self) -> None:
        """Wait for what is under way, but for reads, which are stopped; and begin no more."""
        self.quick.stop()
        self.slow.stop()
        for lane in (self.quick, self.slow, self.opening, self.closing, self.deleting):
            lane.shut_down()
