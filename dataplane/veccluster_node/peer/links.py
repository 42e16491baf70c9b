"""The links on which this node's replicas send to those of other nodes: one connection to each node, for all shards.

A link may lose what it was given, and says so to nobody: replication sends again what is not answered. So nothing here
waits for a slow peer, keeps more for it than fits into its outbox, or keeps anything for one that is away. What it must
do is notice soon that a connection is dead, since everything that goes into it until then is lost.
"""

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import structlog
from aiohttp.connector import AddrInfoType

from veccluster import backoff
from veccluster.errors import Unavailable
from veccluster.model.state import Node, NodeId, ShardId
from veccluster_node.peer import connections, wire
from veccluster_node.peer.connections import CONNECT_TIMEOUT, impatient_socket, is_refused
from veccluster_node.peer.proofs import Introductions
from veccluster_node.replica.beats import NodeBeat

PATH = "/peer/v1/replication"
FRAME = 4 << 20
"""Bytes after which a frame takes no more messages."""
OUTBOX = 64 << 20
"""Bytes that may wait for one peer."""
GRACE = 2.0
"""Seconds for which what is sent to a peer that is away is kept, since it may only be restarting."""
REFUSING = 0.5
"""Seconds for which nothing listens at the address of a node whose process is taken to have ended."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between attempts to connect; from one to the next twice as many."""
LOOK_EVERY, PING_EVERY = 0.25, 0.5
SILENCE = 1.5
"""Seconds within which a peer answers a ping, besides the time that what was sent before it takes."""
UNACKNOWLEDGED = 2.0
"""Seconds after which the kernel gives up a connection whose other end does not acknowledge what was sent."""
SLOWEST = 1 << 20
"""Bytes a second that a connection carries at least, or else it is taken for dead."""

log = structlog.get_logger(__name__)


class Links:
    """The way from this node's replicas to those of every other node."""

    def __init__(
        self,
        me: NodeId,
        members: Callable[[], Mapping[NodeId, Node]],
        introductions: Introductions,
        *,
        outbox: int = OUTBOX,
    ) -> None:
        self._me = me
        self._introductions = introductions
        self._members = members
        self._limit = outbox
        self._links: dict[NodeId, _Link] = {}
        self._making = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- from any thread

    def send(self, node: NodeId, shard: ShardId, message: wire.Sendable) -> None:
        """Send a message, or lose it; returns at once."""
        link = self._link(node)
        if link is None:
            return
        tell = link.outbox.put(wire.encode(shard, message)) if link.is_worth_it else link.outbox.ask()
        if tell:
            self._soon(link.wanted.set)

    def send_beat(self, node: NodeId, beat: NodeBeat) -> None:
        """Send the node's own heartbeat, or an answer to one, as any message."""
        self.send(node, wire.NO_SHARD, beat)

    def reaches(self, node: NodeId) -> bool:
        """Whether sending makes sense: False when the node has been away for a while, until it is connected again."""
        link = self._links.get(node)
        return link is None or link.is_worth_it

    def is_connected(self, node: NodeId) -> bool:
        """Whether there is a connection."""
        link = self._links.get(node)
        return link is not None and link.away_since is None

    def has_ended(self, node: NodeId) -> bool:
        """Whether the node's machine has said for a while that nothing listens there."""
        link = self._links.get(node)
        return link is not None and link.refusing is not None and time.monotonic() >= link.refusing + REFUSING

    def _link(self, node: NodeId) -> "_Link | None":
        if node == self._me or self._loop is None:
            return None
        if (link := self._links.get(node)) is None:
            if node not in self._members():
                return None  # there may be no such node: nothing is kept for names
            with self._making:
                if (link := self._links.get(node)) is None:
                    link = self._links[node] = _Link(node, _Outbox(self._limit))
                    self._soon(lambda: self._start(link))
        return link

    def _soon(self, function: Callable[[], None]) -> None:
        if loop := self._loop:
            with suppress(RuntimeError):  # closed in this moment
                loop.call_soon_threadsafe(function)

    # -- on the loop

    async def open(self) -> None:
        """Take messages from now on, and send them from the running loop."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Take no more, and drop what waits."""
        self._loop = None
        with self._making:
            tasks = [link.task for link in self._links.values() if link.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, link: "_Link") -> None:
        if self._loop:
            link.task = asyncio.create_task(self._keep(link))

    async def _keep(self, link: "_Link") -> None:
        """Have a connection whenever there is something to send."""
        failures = 1
        while True:
            await link.wanted.wait()
            began = time.monotonic()
            try:
                # A task of its own: one whose group has failed stays marked as cancelled before Python 3.13, and with
                # Python 3.11.2 (Debian 12) the next timeout in it would end it for good.
                await asyncio.create_task(self._connect(link))
            except* (aiohttp.ClientError, OSError) as group:
                link.lost(group)
            if self._loop is None:
                return  # it broke just as it was to end, and whoever cancelled it waits
            # A connection that did not last is none: its end comes again.
            failures = 1 if time.monotonic() > began + LONGEST_PAUSE else failures + 1
            await asyncio.sleep(backoff.pause(FIRST_PAUSE, failures, LONGEST_PAUSE))
            link.forget_if_away()

    async def _connect(self, link: "_Link") -> None:
        """Make a connection and use it until it breaks."""
        async with self._connection(link) as connection, asyncio.TaskGroup() as tasks:
            link.connected()
            tasks.create_task(_write(link, connection))
            tasks.create_task(_listen(connection))
            tasks.create_task(self._watch(connection, tasks))

    @asynccontextmanager
    async def _connection(self, link: "_Link") -> AsyncIterator["_Connection"]:
        member = self._members().get(link.node)
        if member is None:
            raise ConnectionError("it is not a member of the cluster")
        address = member.peer_address
        sockets: list[socket.socket] = []

        def make(address: AddrInfoType) -> socket.socket:
            sockets.append(impatient_socket(address, UNACKNOWLEDGED))
            return sockets[-1]

        async with connections.session(make=make) as session:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    url = connections.url(member, PATH)
                    ends = {"from": self._me, "to": link.node}
                    proof = await self._introductions.to(member, session)
                    stream = await session.ws_connect(
                        url, params=ends, headers=proof, autoping=False, max_msg_size=FRAME
                    )
                yield _Connection(link.node, address, stream)
            except Unavailable as error:
                raise ConnectionError(error.detail) from error
            except aiohttp.WSServerHandshakeError:
                self._introductions.refused(member)
                raise
            finally:
                for made in sockets:
                    with suppress(OSError):  # what is still buffered for a peer that does not read is dropped
                        made.shutdown(socket.SHUT_RDWR)

    def _address_of(self, node: NodeId) -> str | None:
        member = self._members().get(node)
        return member.peer_address if member else None

    async def _watch(self, connection: "_Connection", tasks: asyncio.TaskGroup) -> None:
        """End a connection whose other end gives no sign of life, or is not where the node is now."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK_EVERY)
            now = time.monotonic()
            connection.check(now, overslept=now - before - LOOK_EVERY)
            if self._address_of(connection.node) != connection.address:
                raise ConnectionError("its address has changed")
            if connection.may_ask(now):
                tasks.create_task(connection.ask(now))


async def _write(link: "_Link", connection: "_Connection") -> None:
    while True:
        if waiting := link.outbox.take(FRAME):
            await connection.send(wire.frame(waiting))
        else:
            await link.wanted.wait()
            link.wanted.clear()


async def _listen(connection: "_Connection") -> None:
    """The peer sends nothing on this connection but signs of life, and its end."""
    async for message in connection.stream:
        if message.type is aiohttp.WSMsgType.PONG:
            connection.answered()
        elif message.type is aiohttp.WSMsgType.ERROR:
            break
    raise ConnectionError("it closed the connection")


class _Outbox:
    """What waits for one peer. Of too much the oldest goes: the newest says most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._asked = False
        """Whether somebody was told that there is something."""

    def put(self, message: bytes) -> bool:
        """Keep a message; True when somebody has to be told."""
        with self._lock:
            self._waiting.append(message)
            self._size += len(message)
            while self._size > self._most() and len(self._waiting) > 1:
                self._drop()
            return self._ask()

    def _most(self) -> int:
        """What may wait, beside a message that is larger than all that may."""
        return self._limit + (len(self._waiting[0]) if self._is_oversized() else 0)

    def _is_oversized(self) -> bool:
        return len(self._waiting[0]) > self._limit

    def _drop(self) -> None:
        """Lose the oldest, unless that is an oversized one: small ones would drive it out again and again."""
        place = 1 if self._is_oversized() and len(self._waiting) > 2 else 0
        self._size -= len(self._waiting[place])
        del self._waiting[place]

    def ask(self) -> bool:
        """Keep nothing; True when somebody has to be told that the peer is needed."""
        with self._lock:
            return self._ask()

    def _ask(self) -> bool:
        asked, self._asked = self._asked, True
        return not asked

    def take(self, most: int) -> list[bytes]:
        """The oldest messages, of so many bytes or a single one; none when somebody will be told of the next."""
        taken: list[bytes] = []
        with self._lock:
            size = 0
            while self._waiting and (not taken or size + len(self._waiting[0]) <= most):
                taken.append(self._waiting.popleft())
                size += len(taken[-1])
            self._size -= size
            if not taken:
                self._asked = False
        return taken

    def clear(self) -> None:
        """Drop everything; somebody will be told of the next."""
        with self._lock:
            self._waiting.clear()
            self._size, self._asked = 0, False


@dataclass(slots=True, eq=False)
class _Link:
    """The link to one node, connected or not."""

    node: NodeId
    outbox: _Outbox
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    away_since: float | None = field(default_factory=time.monotonic)
    refusing: float | None = None
    """Since when nothing has listened at its address, each time it was tried."""
    _said: bool = False

    @property
    def is_worth_it(self) -> bool:
        """Whether what is sent now is likely to arrive."""
        since = self.away_since
        return since is None or time.monotonic() < since + GRACE

    def connected(self) -> None:
        """There is a connection."""
        self.away_since, self.refusing, self._said = None, None, False
        log.info("link_connected", node=self.node)

    def lost(self, errors: BaseExceptionGroup[Exception]) -> None:
        """There is none, or none any more. It is wanted all the same: who asked for it last was told of one."""
        self.away_since = self.away_since or time.monotonic()
        self.wanted.set()
        error = errors.exceptions[0]
        self.refusing = (self.refusing or time.monotonic()) if is_refused(error) else None
        if not self._said:
            log.warning("link_lost", node=self.node, reason=str(error) or type(error).__name__)
            self._said = True

    def forget_if_away(self) -> None:
        """Keep nothing for a peer that is away for long, and try it again only when it is needed again."""
        if not self.is_worth_it:
            self.wanted.clear()
            self.outbox.clear()


class _Connection:
    """One connection to a peer, and what is known of the peer's life."""

    def __init__(self, node: NodeId, address: str, stream: aiohttp.ClientWebSocketResponse) -> None:
        self.node = node
        self.address = address
        self.stream = stream
        self._sent = self._proved = self._asked_behind = 0
        """Bytes: all; those before the last ping that was answered; those before the ping that was not yet."""
        self._asked_at = 0.0
        self._due: float | None = None

    async def send(self, data: bytes) -> None:
        self._sent += len(data)
        await self.stream.send_bytes(data)

    def may_ask(self, now: float) -> bool:
        """Whether it is time for the next ping."""
        return self._due is None and now >= self._asked_at + PING_EVERY

    async def ask(self, now: float) -> None:
        """Ping. It waits behind what was sent before."""
        self._asked_at, self._asked_behind = now, self._sent
        self._due = now + SILENCE + (self._sent - self._proved) / SLOWEST
        await self.stream.ping()

    def answered(self) -> None:
        """A pong came: everything before the ping has arrived."""
        self._proved, self._due = self._asked_behind, None

    def check(self, now: float, *, overslept: float) -> None:
        """Raise when the pong is overdue; what this node overslept itself does not count."""
        if self._due is not None:
            self._due += overslept
            if now > self._due:
                raise TimeoutError("it gives no sign of life")
