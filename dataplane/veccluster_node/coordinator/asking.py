"""What every request to the replicas of a shard needs: the cluster as it is known, a way to ask, and some patience.

`Asking` is shared by all requests of a node. It remembers how long answers took and who gave none in time, so that a
node that stands still costs the requests of one moment a short wait, and the ones after it nothing.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from veccluster.decisions import routing
from veccluster.errors import OutcomeUnknown, ShardsUnavailable, Unavailable, VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import NodeId, Shard, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers

R = TypeVar("R", bound=m.Reply)
T = TypeVar("T")
Wait = Callable[[Callable[[ClusterState], bool], float], Awaitable[bool]]

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


class Asking:
    """The way to the replicas; `wait` returns when the state fulfils something, or after so many seconds."""

    def __init__(self, me: NodeId, state: Callable[[], ClusterState], wait: Wait, peers: Peers) -> None:
        self.me = me
        self.state = state
        self.wait = wait
        self.patience = Patience()
        self._peers = peers
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

    async def call(self, node: NodeId, request: m.Request[R], timeout: float) -> R:
        """As `Peers.call`, with a limit also on what this node asks itself.

        A read is stopped when nobody waits for it any more. A write is left to end by itself: it may be half done.
        """
        if node != self.me:
            return await self._peers.call(node, request, timeout=timeout)
        if m.is_read(request):
            return await self._read_here(request, timeout)
        task = asyncio.ensure_future(self._peers.call(node, request, timeout=timeout))
        self._left.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=timeout)
        if task.done():
            return task.result()
        if isinstance(request, m.Write):
            raise OutcomeUnknown(f"node {node} has not carried out the write within {timeout:g} s, and still may")
        raise Unavailable(f"node {node} gave no answer within {timeout:g} s")

    async def _read_here(self, request: m.Request[R], timeout: float) -> R:
        try:
            async with asyncio.timeout(timeout):
                return await self._peers.call(self.me, request, timeout=timeout)
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

    async def change(self, shards: Iterable[ShardId], timeout: float) -> None:
        """Wait until one of the shards stands differently, at most so many seconds."""
        before = {shard: routing.standing(self.state(), shard) for shard in shards}
        await self.wait(lambda now: any(routing.standing(now, i) != was for i, was in before.items()), timeout)


def pauses() -> Iterable[float]:
    """The seconds to wait before each further attempt."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(2 * pause, LONGEST_PAUSE)


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
