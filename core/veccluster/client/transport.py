"""Carry one request to whichever node answers: rotation over addresses, deadlines, retries.

What is decided about a failed attempt is in `retries`; here is the I/O. One `Transport` belongs to one event loop.
"""

import asyncio
import email.utils
import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from aiohttp.connector import AddrInfoType
from yarl import URL

from veccluster.client import retries
from veccluster.client.retries import Failure, Lost, NotSent, Refused
from veccluster.errors import InvalidRequest, OutcomeUnknown, VecClusterError, from_problem
from veccluster.model import token as tokens

CONNECT_TIMEOUT = 3.0
SHARE = 3
"""With several addresses, one attempt may use this part of the time that is left before another is asked."""

SILENCE = 3.0
"""Seconds without a word after which the machine at the other end of a connection counts as gone."""

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


@dataclass(slots=True)
class Addresses:
    """The cluster's addresses; the current one is used until it fails."""

    urls: Sequence[URL]
    current: int = 0

    @classmethod
    def parse(cls, given: str | Sequence[str]) -> "Addresses":
        """One address or several, `host:port` or `http(s)://host:port`; raises InvalidRequest."""
        texts = [given] if isinstance(given, str) else list(given)
        if not texts:
            raise InvalidRequest.field("servers", "must name at least one address, as http://127.0.0.1:8001")
        return cls([_parse_address(text) for text in texts])

    def next_after(self, failed: URL) -> None:
        """Turn away from `failed`, unless another request has done so already."""
        if self.urls[self.current] == failed:
            self.current = (self.current + 1) % len(self.urls)

    def __str__(self) -> str:
        return " or ".join(str(url).rstrip("/") for url in self.urls)


def _parse_address(text: str) -> URL:
    try:
        url = URL(text if "://" in text else f"http://{text}")
        valid = url.scheme in {"http", "https"} and url.host and url.port
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest.field("servers", f"must be like http://127.0.0.1:8001, is {text!r}")
    return url.origin()


class Transport:
    """HTTP to a cluster. `send` returns a 2xx reply or raises a `VecClusterError`."""

    def __init__(self, addresses: Addresses, headers: Mapping[str, str]) -> None:
        self.addresses = addresses
        self._headers = dict(headers)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call, timeout: float) -> Reply:
        """Send until it is answered or `timeout` seconds are over."""
        started = time.monotonic()
        deadline = started + timeout
        perhaps_done = False
        said: Refused | None = None
        attempt = 0
        while True:
            attempt += 1
            address = self.addresses.urls[self.addresses.current]
            outcome = await self._attempt(address, call, deadline - time.monotonic())
            if isinstance(outcome, Reply):
                return outcome
            if (
                perhaps_done
                and call.done_if
                and isinstance(outcome, Refused)
                and isinstance(outcome.error, call.done_if)
            ):
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
            self.addresses.next_after(address)
            await asyncio.sleep(step.pause)

    async def probe(self, address: URL, path: str, timeout: float) -> int | None:
        """The status that one address gives for a path, once; None when it does not answer."""
        try:
            limits = aiohttp.ClientTimeout(total=timeout)
            async with self._opened().get(address.join(URL(path)), timeout=limits, trace_request_ctx=_Sent()) as reply:
                return reply.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(socket_factory=_watchful_socket)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=self._headers, trace_configs=[_trace_of_sending()]
            )
        return self._session

    async def _attempt(self, address: URL, call: Call, left: float) -> Reply | Failure:
        share = SHARE if len(self.addresses.urls) > 1 else 1
        limits = aiohttp.ClientTimeout(total=max(left / share, 0.001), sock_connect=CONNECT_TIMEOUT)
        # Put together by hand: joining would take an id of ".." for a step upwards.
        url = URL(f"{str(address).rstrip('/')}{call.path}", encoded=True).with_query(call.query)
        sent = _Sent()
        try:
            async with self._opened().request(
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
