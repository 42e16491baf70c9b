"""What every request to the replicas of a shard needs: the cluster as it is known, a way to ask, and asking again.

`Asking` is shared by all requests of a node. It remembers how long answers took and who gave none in time, so that a
node that stands still costs the requests of one moment a short wait, and the ones after it nothing.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

from veccluster import backoff
from veccluster.decisions import routing
from veccluster.errors import OutcomeUnknown, ShardsUnavailable, Unavailable, VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import NodeId, Shard, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.service.shard_service import Request, ShardService, Write

T = TypeVar("T")
Wait = Callable[[Callable[[ClusterState], bool], float], Awaitable[bool]]
ShardsOf = Callable[[NodeId, float], ShardService]
"""The shards of a node, each request to which gets so many seconds."""

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.4
"""Seconds between two attempts while nothing is heard of a change."""

REMEMBERED = 64
"""Answers of a kind whose time is remembered."""
SHORTEST_WAIT, FIRST_WAIT = 0.05, 0.25
"""Seconds that a read waits before it asks another member too: at least, and while nothing is known."""
SLOW_FOR = 2.0
"""Seconds for which a node is asked after all others because it gave no answer in time."""
PING_EVERY, PING_PATIENCE = 0.5, 1.0
"""Seconds between two questions whether a node that works on something slow is still there, and for an answer."""
LITTLE_PATIENCE = 1.0
"""Seconds for which a node is asked whose lease has ended: it may still answer."""


class Patience:
    """How long to wait for an answer before somebody else is asked too."""

    def __init__(self) -> None:
        self._took: dict[str, deque[float]] = {}

    def learn(self, kind: str, seconds: float) -> None:
        """An answer of this kind took so long."""
        self._took.setdefault(kind, deque(maxlen=REMEMBERED)).append(seconds)

    def wait(self, kind: str, *, most: float) -> float:
        """Seconds in which nearly every answer of this kind comes; twice as long as the slower ones took."""
        took = self._took.get(kind, ())
        if len(took) < REMEMBERED // 8:
            return min(FIRST_WAIT, most)
        return min(max(2 * sorted(took)[len(took) * 95 // 100], SHORTEST_WAIT), most)


@dataclass(frozen=True, slots=True)
class NotYet(Generic[T]):
    """An attempt came to nothing that is final: it is to be made again, unless there is no time left."""

    give_up: Callable[[], T]
    """What it came to if there is none; may raise."""
    shards: Sequence[ShardId] = ()
    """A change of one of these is worth a new attempt at once."""
    at_once: bool = False
    """Something has changed already."""


class Asking:
    """The way to the replicas; `wait` returns when the state fulfils something, or after so many seconds."""

    def __init__(
        self, me: NodeId, state: Callable[[], ClusterState], wait: Wait, peers: Peers, shards_of: ShardsOf
    ) -> None:
        self.me = me
        self.state = state
        self.wait = wait
        self.patience = Patience()
        self._peers = peers
        self._shards_of = shards_of
        self._slow: dict[NodeId, float] = {}
        self._left: set[asyncio.Task[Any]] = set()

    def vantage(self) -> routing.Vantage:
        """Where this node stands now, for one request."""
        now = time.monotonic()
        slow = frozenset(node for node, until in self._slow.items() if until > now)
        return routing.Vantage(self.me, self.state().alive.keys(), slow, random.getrandbits(32))

    def is_slow(self, node: NodeId, slow: bool) -> None:
        """The node gave no answer in time; or it did."""
        if slow:
            self._slow[node] = time.monotonic() + SLOW_FOR
        else:
            self._slow.pop(node, None)

    def record(self, shard: ShardId) -> Shard:
        """The shard's record; `ShardsUnavailable` before it has one."""
        found = self.state().shards.get(shard)
        if found is None:
            raise ShardsUnavailable(
                f"shard {shard.number} has not been given to a node yet", missing_shards=[shard.number]
            )
        return found

    async def call(self, node: NodeId, request: Request[T], timeout: float) -> T:
        """What a node answers within so many seconds, also where that is this one.

        A read is stopped when nobody waits for it any more. A write is left to end by itself: it may be half done.
        """
        shards = self._shards_of(node, timeout)
        if node != self.me:
            return await request.ask(shards)
        if request.is_read:
            return await self._read_here(request, shards, timeout)
        task = asyncio.ensure_future(request.ask(shards))
        self._left.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=timeout)
        if task.done():
            return task.result()
        if isinstance(request, Write):
            raise OutcomeUnknown(f"node {node} has not carried out the write within {timeout:g} s, and still may")
        raise Unavailable(f"node {node} gave no answer within {timeout:g} s")

    async def _read_here(self, request: Request[T], shards: ShardService, timeout: float) -> T:
        try:
            async with asyncio.timeout(timeout):
                return await request.ask(shards)
        except TimeoutError:
            raise Unavailable(f"node {self.me} gave no answer within {timeout:g} s") from None

    async def is_there(self, node: NodeId) -> bool:
        """Whether the node answers at all, on the loop that serves clients."""
        try:
            await self._peers.call(node, m.Ping(), timeout=PING_PATIENCE)
        except VecClusterError:
            return False
        return True

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # who asked has heard of it, or waits no more

    async def until_final(
        self, attempt: Callable[[], Awaitable[T | NotYet[T]]], deadline: float, *, room: float = 0.0
    ) -> T:
        """What an attempt comes to that is final, or the last one before the deadline.

        `room` is how many seconds must be left for another one to be worth while.
        """
        failures = 0
        while True:
            found = await attempt()
            if not isinstance(found, NotYet):
                return found
            failures += 1
            pause = backoff.pause(FIRST_PAUSE, failures, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
            if time.monotonic() + pause + room >= deadline:
                return found.give_up()
            if not found.at_once:
                await self._change(found.shards, pause)
                if time.monotonic() + room >= deadline:
                    return found.give_up()

    def again(self, asked: Shard, error: VecClusterError, told: VecClusterError) -> NotYet[Any]:
        """Another attempt after `error`, where one may help; otherwise, and when time is up, `told` is raised."""
        state = self.state()
        step = routing.again(asked, state.shards.get(asked.id), error, state.alive.keys())
        if step is routing.Again.no:
            fail(told, error)
        return NotYet(partial(fail, told, error), [asked.id], at_once=step is routing.Again.at_once)

    async def _change(self, shards: Iterable[ShardId], timeout: float) -> None:
        """Wait until one of the shards stands differently, at most so many seconds."""
        before = {shard: routing.standing(self.state(), shard) for shard in shards}
        await self.wait(lambda now: any(routing.standing(now, i) != was for i, was in before.items()), timeout)


def fail(told: VecClusterError, error: VecClusterError) -> NoReturn:
    """Raise what is told of an error."""
    raise told from (None if told is error else error)


async def either(*calls: "asyncio.Future[Any]") -> None:
    """Until one of them has ended."""
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)


async def together(*calls: Awaitable[T]) -> list[T]:
    """What all of them give; when one fails, or the caller is cancelled, the others are ended."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
