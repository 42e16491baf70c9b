"""Who may hold a connection of a port, and for how long.

aiohttp keeps a connection as long as its other end likes, whether it asks anything or not. Here each one is watched
from outside, by a protocol between the socket and aiohttp's:

- what has asked nothing, or not the whole head of a request, is closed after `HEAD_TIME`;
- an answer must be taken as fast as `SLOWEST`, and never pause for `GRACE`;
- where there are more connections than there may be, those that ask nothing make room, the longest idle first.

What is under way is never cut off: it may be a write. Beyond `most` connections requests are still heard, up to
`MARGIN` more, so that those that keep a cluster going are answered and all others refused in words.
"""

import asyncio
import json
import resource
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from veccluster.errors import RequestTimeout, Unavailable, VecClusterError

HEAD_TIME = 10.0
"""Seconds for the first line and the headers of a request, from the connection or their first byte on."""
YOUNG = 1.0
"""Seconds in which a connection that has asked nothing yet keeps its place: its request may be on the way."""
GRACE = 30.0
"""Seconds for which an answer may stand still."""
SLOWEST = 64 << 10
"""Bytes a second in which an answer is taken at least, beyond `GRACE`."""
MARGIN = 64
"""Connections beyond the limit on which requests are heard."""
LOOK_EVERY = 1.0
BACKLOG = 1024
"""Connections that the kernel keeps until they are taken."""
TURNED_AWAY = 64
"""Connections beyond all limits that are told so, at once."""
FAREWELL = 2.0
"""Seconds in which somebody who was turned away may still send, so that the answer is read before the end."""

log = structlog.get_logger(__name__)


class Door:
    """The connections of one port. Belongs to one event loop."""

    def __init__(
        self,
        most: int,
        *,
        head_time: float = HEAD_TIME,
        farewell: "Callable[[VecClusterError], bytes] | None" = None,
    ) -> None:
        """`farewell` gives the answer, with its head, that ends a connection on which nothing was carried out."""
        self.most = most
        self.farewell = farewell or _problem
        self.under_way = 0
        """Requests that are being read, carried out or answered."""
        self._head_time = head_time
        self._guards: dict[asyncio.BaseProtocol, Guard] = {}
        self._sent_away: set[_SentAway] = set()
        self._watching: asyncio.Task[None] | None = None
        self._said = 0.0

    def __len__(self) -> int:
        return len(self._guards)

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than there may be."""
        return len(self._guards) > self.most

    def has_room(self) -> bool:
        """Whether a request may be carried out; those that ask nothing make room for it."""
        while self.is_crowded:
            if not self._make_room(0.0):
                return False
        return True

    @property
    def guards(self) -> "Sequence[Guard]":
        """All that are watched."""
        return list(self._guards.values())

    def enter(self, inner: asyncio.BaseProtocol, guard: "Guard") -> None:
        """There is a connection."""
        self._guards[inner] = guard

    def leave(self, inner: asyncio.BaseProtocol) -> None:
        """It is gone."""
        self._guards.pop(inner, None)

    def watch(self) -> Middleware:
        """The aiohttp middleware that says when a request is under way on a connection. Put it outside the others."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            guard = self._guards.get(request.protocol)
            self.under_way += 1
            if guard is not None:
                guard.begins()
            try:
                return await handler(request)
            finally:
                self.under_way -= 1
                if guard is not None:
                    guard.ends()

        return watch

    def open(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def admit(self, make: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """The protocol of a new connection; `make` gives aiohttp's."""
        if len(self._guards) >= self.most:
            self._make_room(YOUNG)
        if len(self._guards) < self.most + MARGIN or self._make_room(0.0):
            return Guard(self, make())
        return _SentAway(self, self._sent_away)

    def _make_room(self, idle: float) -> bool:
        """Close one connection that has asked nothing for so many seconds; first one that never asked anything."""
        now = time.monotonic()
        useless = [g for g in self._guards.values() if g.asks_nothing(now) and now - g.since >= idle]
        if not useless:
            return False
        if now >= self._said + 60:
            self._said = now
            log.warning("too_many_connections", connections=len(self._guards), most=self.most)
        min(useless, key=lambda g: (g.has_asked, g.since)).close()
        return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY, self._head_time / 4))
            now = time.monotonic()
            for guard in self.guards:
                guard.look(now, self._head_time)


class Guard(asyncio.Protocol):
    """One connection: hands everything on to aiohttp's protocol and keeps the time."""

    def __init__(self, door: Door, inner: asyncio.Protocol) -> None:
        self.has_asked = False
        """Whether there was a request on it."""
        self.is_busy = False
        """Whether a request is being read, carried out or answered."""
        self.since = time.monotonic()
        """When it came, or its last request ended."""
        self._door = door
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._head_since: float | None = self.since
        self._behind: tuple[float, int, int] | None = None
        """Since when an answer waits to be taken, how large it was, and how much is left of it."""
        self._moved = self.since
        """When that last became less."""
        self._heard = False
        """Whether a part of the next request's head is there."""

    # -- a request

    def begins(self) -> None:
        """The head of a request is there."""
        self.is_busy = self.has_asked = True
        self._head_since, self._heard = None, False

    def ends(self) -> None:
        """It is answered."""
        self.is_busy = False
        self.since = time.monotonic()

    # -- time

    def asks_nothing(self, now: float) -> bool:
        """Whether no request is under way on it, nor likely to be in a moment."""
        comes = self._heard and self._head_since is not None and now - self._head_since < YOUNG
        return not self.is_busy and not comes

    def look(self, now: float, head_time: float) -> None:
        """Close the connection if its time is over."""
        if self._transport is None:
            return
        if not self.is_busy and self._head_since is not None and now - self._head_since >= head_time:
            self.close(RequestTimeout(f"the head of the request did not arrive within {head_time:g} s"))
        elif self._behind is not None and self._is_too_slow(now):
            log.info("answer_not_taken", left=self._behind[2])
            self._transport.abort()

    def _is_too_slow(self, now: float) -> bool:
        assert self._behind is not None and self._transport is not None
        since, size, left = self._behind
        still = self._transport.get_write_buffer_size()
        if still < left:
            self._moved = now
        self._behind = since, size, still
        return now - self._moved > GRACE or now - since > GRACE + (size - still) / SLOWEST

    def close(self, why: VecClusterError | None = None) -> None:
        """End it, as nothing is under way on it; with a word where a part of a request is there."""
        self._door.leave(self._inner)
        if self._transport is None:
            return
        if why is not None and self._heard:
            self._transport.write(self._door.farewell(why))
        self._transport.close()

    # -- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to count."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._door.enter(self._inner, self)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        self._transport = None
        self._door.leave(self._inner)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The time for a request's head begins with its first byte."""
        if not self.is_busy:
            self._heard = True
            if self._head_since is None:
                self._head_since = time.monotonic()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """As aiohttp likes."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The time for the answer to be taken begins."""
        if self._transport is not None:
            size = self._transport.get_write_buffer_size()
            self._moved = time.monotonic()
            self._behind = self._moved, size, size
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It is taken, but for a little."""
        self._behind = None
        self._inner.resume_writing()


class _SentAway(asyncio.Protocol):
    """A connection beyond all limits: told so, without anything of what it asks being looked at."""

    def __init__(self, door: Door, others: "set[_SentAway]") -> None:
        self._door = door
        self._others = others
        self._transport: asyncio.Transport | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a moment for what it asks: an answer before the question is taken for none."""
        assert isinstance(transport, asyncio.Transport)
        if len(self._others) >= TURNED_AWAY:
            transport.abort()
            return
        self._others.add(self)
        self._transport = transport
        self._end = asyncio.get_running_loop().call_later(FAREWELL, transport.close)

    def data_received(self, data: bytes) -> None:
        """Answer the first bytes; what follows is thrown away until the time is over."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.write(
                self._door.farewell(Unavailable("the node has no room for another connection; nothing was done"))
            )
            with suppress(NotImplementedError, OSError):
                transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._others.discard(self)
        if self._end is not None:
            self._end.cancel()


def _problem(error: VecClusterError) -> bytes:
    return answer_of(error, "application/problem+json", json.dumps(error.problem()).encode())


def answer_of(error: VecClusterError, kind: str, body: bytes) -> bytes:
    """An answer on a connection that ends with it."""
    again = f"Retry-After: {error.retry_after}\r\n" if error.retry_after is not None else ""
    head = (
        f"HTTP/1.1 {error.status} {error.title}\r\nContent-Type: {kind}\r\n{again}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def connections_for(asked: int, part: int = 2) -> int:
    """How many connections a port may have: as many as is asked, or a part of the files that the process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return asked if files == resource.RLIM_INFINITY else max(1, min(asked, files // part))


class DoorSite(web.BaseSite):
    """A listening socket behind a door."""

    def __init__(self, runner: web.BaseRunner, listener: socket.socket, door: Door) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._listener = listener
        self._door = door

    @property
    def name(self) -> str:
        """Where it listens."""
        host, port, *_ = self._listener.getsockname()
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Take connections."""
        await super().start()
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self._door.admit(server), sock=self._listener, backlog=self._backlog
        )
        self._door.open()

    async def stop(self) -> None:
        """Take no more."""
        await super().stop()
        await self._door.close()
