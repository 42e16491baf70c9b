"""Carry one request to whichever node answers: deadlines, retries, connections.

Whom to ask is decided in `addresses`, what to do after a failed attempt in `retries`; here is the I/O. The connections
of a `Transport` belong to one event loop of one process: anywhere else it says so, instead of waiting for what cannot
come.
"""

import asyncio
import contextlib
import email.utils
import os
import random
import socket
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from aiohttp.connector import AddrInfoType
from yarl import URL

from veccluster.client import retries
from veccluster.client.addresses import Address, Addresses
from veccluster.client.retries import Failure, Lost, NotSent, Refused
from veccluster.errors import OutcomeUnknown, VecClusterError, from_problem
from veccluster.model import token as tokens

SHARE = 3
"""With several addresses, one attempt may use this part of the time that is left before another is asked."""

SILENCE = 3.0
"""Seconds without a word after which the machine at the other end of a connection counts as gone."""

LOOK_SECONDS = 2.0
"""How long a node that failed may take to say that it is ready."""

OPERATION_HEADER = "Operation-Id"


@dataclass(frozen=True, slots=True)
class Call:
    """One logical request; everything in it is the same on each attempt."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    write: bool = False
    """Whether a lost answer leaves the outcome unknown."""
    spread: bool = False
    """Whether every node that answers does so alike: a read of vectors, by what its session has seen."""
    done_if: type[VecClusterError] | None = None
    """The error that, after a lost answer, means that the lost attempt did its work (a delete, then "not found")."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A 2xx answer."""

    body: bytes = b""
    token: str | None = None
    """What the session has seen by now."""


@dataclass(slots=True)
class _Sent:
    """Whether anything of a request has left this process; filled in by a trace of the HTTP session."""

    yet: bool = False


class _Connector(aiohttp.TCPConnector):
    """Its connections are closed by `Transport`, never by being forgotten.

    That would close them with a complaint, and in a process that was forked it would take them away from the other one.
    """

    def __del__(self, *_: object) -> None:
        """Nothing."""


class Transport:
    """HTTP to a cluster. `send` returns a 2xx reply or raises a `VecClusterError`."""

    def __init__(self, addresses: Addresses, headers: Mapping[str, str]) -> None:
        self.addresses = addresses
        self._headers = dict(headers)
        self._open: _Open | None = None
        self._looks: set[asyncio.Task[None]] = set()

    async def send(self, call: Call, timeout: float) -> Reply:
        """Send until it is answered or `timeout` seconds are over."""
        started = time.monotonic()
        deadline = started + timeout
        perhaps_done = False
        said: Refused | None = None
        attempt = unreached = 0
        self._session()
        while True:
            attempt += 1
            self._look_again()
            address, connect = self.addresses.choose(spread=call.spread), retries.connect_timeout(unreached)
            outcome = await self._ask(address, call, deadline - time.monotonic(), connect)
            unreached += isinstance(outcome, NotSent)
            if isinstance(outcome, Reply):
                return outcome
            if perhaps_done and _means_done(outcome, call):
                return Reply()
            perhaps_done = perhaps_done or isinstance(outcome, Lost) or _is_unknown(outcome)
            said = outcome if isinstance(outcome, Refused) else said
            left = deadline - time.monotonic()
            step = retries.decide(attempt, outcome, remaining=left, jitter=random.random())
            if step is None:
                waited = time.monotonic() - started
                # What a node answered says more than that another one is not there to be asked.
                last = said if said is not None and isinstance(outcome, NotSent) else outcome
                raise retries.verdict(
                    last, write=call.write, perhaps_done=perhaps_done, servers=str(self.addresses), waited=waited
                )
            await asyncio.sleep(step.pause)

    async def probe(self, address: Address, path: str, timeout: float) -> int | None:
        """The status that one address gives for a path, once; None when it does not answer."""
        try:
            limits = aiohttp.ClientTimeout(total=timeout)
            url = address.url.join(URL(path))
            async with self._session().get(url, timeout=limits, trace_request_ctx=_Sent()) as reply:
                return reply.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def close(self) -> None:
        """Close the connections; the next request opens others."""
        opened, self._open = self._open, None
        if opened is None:
            return
        for look in list(self._looks):
            look.cancel()
        if opened.is_here():
            opened.let_go.detach()
            await opened.session.close()
        else:
            opened.let_go()

    # Inside

    def _session(self) -> aiohttp.ClientSession:
        if self._open is None:
            self._open = _Open.now(self, self._headers)
        elif not self._open.is_here():
            raise RuntimeError(self._open.why_not())
        return self._open.session

    def _look_again(self) -> None:
        """Ask the nodes that failed a while ago whether they are ready, while requests go to others."""
        for address in self.addresses.to_look_at(time.monotonic()) if len(self.addresses) > 1 else ():
            look = asyncio.ensure_future(self._look(address))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, address: Address) -> None:
        status = None
        try:
            status = await self.probe(address, "/readyz", LOOK_SECONDS)
        finally:
            if status is not None and status < 300:
                self.addresses.answered(address)
            else:
                self.addresses.failed(address, time.monotonic())

    async def _ask(self, address: Address, call: Call, left: float, connect: float) -> Reply | Failure:
        """One attempt, and what it says of the address."""
        self.addresses.asked(address)
        try:
            outcome = await self._attempt(address.url, call, left, connect)
        finally:
            self.addresses.left(address)
        if retries.is_answer(outcome):
            self.addresses.answered(address)
        else:
            self.addresses.failed(address, time.monotonic())
        return outcome

    async def _attempt(self, address: URL, call: Call, left: float, connect: float) -> Reply | Failure:
        share = SHARE if len(self.addresses) > 1 else 1
        limits = aiohttp.ClientTimeout(total=max(left / share, 0.001), sock_connect=connect)
        # Put together by hand: joining would take an id of ".." for a step upwards.
        url = URL(f"{str(address).rstrip('/')}{call.path}", encoded=True).with_query(call.query)
        sent = _Sent()
        try:
            async with self._session().request(
                call.method, url, data=call.body, headers=call.headers, timeout=limits, trace_request_ctx=sent
            ) as reply:
                body = await reply.read()
                return Reply(body, reply.headers.get(tokens.HEADER)) if reply.ok else _refusal(reply, body)
        except TimeoutError:
            failed = Lost if sent.yet else NotSent
            return failed(f"{address.host}:{address.port} did not answer in time")
        except (aiohttp.ClientError, OSError) as error:
            failed = Lost if sent.yet else NotSent
            return failed(f"{address.host}:{address.port} {_why(error)}")


@dataclass(frozen=True, slots=True)
class _Open:
    """Connections, and where they belong."""

    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop
    process: int
    let_go: "weakref.finalize[[aiohttp.ClientSession, _Connector, asyncio.AbstractEventLoop, int], Transport]"
    """Gives them up without a word when nobody closes them: their owner is gone, or the program ends."""

    @classmethod
    def now(cls, owner: Transport, headers: Mapping[str, str]) -> "_Open":
        """Of the loop that runs."""
        loop, process = asyncio.get_running_loop(), os.getpid()
        connector = _Connector(socket_factory=_watchful_socket)
        session = aiohttp.ClientSession(connector=connector, headers=headers, trace_configs=[_trace_of_sending()])
        return cls(session, loop, process, weakref.finalize(owner, _give_up, session, connector, loop, process))

    def is_here(self) -> bool:
        """Whether the loop that runs is theirs."""
        return self.process == os.getpid() and self.loop is asyncio.get_running_loop()

    def why_not(self) -> str:
        """What to do where they are not."""
        if self.process != os.getpid():
            return forked(self.process)
        return (
            "this AsyncClient has been used on another event loop, to which its connections belong: make one for each "
            "loop (each asyncio.run makes a new loop), or close it before it is used on the next"
        )


def forked(process: int) -> str:
    """What to do where a client was carried over a fork from `process`."""
    return (
        f"this client belongs to process {process}, of which this one, {os.getpid()}, is a fork: make a client in each "
        'process, after the fork (or start processes with the method "spawn")'
    )


def _give_up(
    session: aiohttp.ClientSession, connector: _Connector, loop: asyncio.AbstractEventLoop, process: int
) -> None:
    """Close connections that nobody needs any more; in another process than theirs they are left alone."""

    async def close() -> None:
        await connector.close()

    session.detach()
    if process == os.getpid():
        soon(loop, close)


_soon: set["asyncio.Future[None]"] = set()


def soon(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do it on a loop, from whichever thread, and do not wait for it; nothing is done where the loop is closed."""

    def begin() -> None:
        task = asyncio.ensure_future(work())
        _soon.add(task)
        task.add_done_callback(_soon.discard)

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(begin)


def _watchful_socket(address: AddrInfoType) -> socket.socket:
    """A socket that notices when the other machine is gone, while it sends as well as while it waits.

    One address may lead to many machines, as a Service of Kubernetes does: only another connection finds another one.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": 1,
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": int(SILENCE),
        "TCP_USER_TIMEOUT": int(SILENCE * 1000),
    }
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _trace_of_sending() -> aiohttp.TraceConfig:
    async def note(session: aiohttp.ClientSession, context: SimpleNamespace, _: Any) -> None:
        context.trace_request_ctx.yet = True

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(note)
    return trace


def _means_done(outcome: Failure, call: Call) -> bool:
    """Whether an answer after a lost one means that the lost attempt did its work."""
    return call.done_if is not None and isinstance(outcome, Refused) and isinstance(outcome.error, call.done_if)


def _is_unknown(outcome: Failure) -> bool:
    return isinstance(outcome, Refused) and (isinstance(outcome.error, OutcomeUnknown) or outcome.status in {502, 504})


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionRefusedError):
            return "refuses connections"
        return f"cannot be reached: {error.os_error.strerror or error.os_error}"
    return "broke off the connection" + (f" ({error})" if str(error) else "")


def _refusal(reply: aiohttp.ClientResponse, body: bytes) -> Refused:
    return Refused(_error(reply, body), reply.status, _retry_after(reply.headers.get("Retry-After")))


def _error(reply: aiohttp.ClientResponse, body: bytes) -> VecClusterError:
    problem: Any = None
    if "json" in reply.headers.get("Content-Type", ""):
        try:
            problem = msgspec.json.decode(body)
        except msgspec.DecodeError:
            problem = None
    if isinstance(problem, dict):
        return from_problem(problem)
    return VecClusterError(
        f"{reply.url.origin()} answered {reply.status} {reply.reason}, not as a VecCluster node does"
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or an HTTP date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
