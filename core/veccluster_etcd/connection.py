"""One way for every request to etcd: pick a member, send, judge a failure, go on or give up.

All rules about retries are in `verdicts.py`; this module does what they say.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from grpc import aio

from veccluster import backoff
from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster_etcd import admission, wire
from veccluster_etcd.config import EtcdConfig, missing
from veccluster_etcd.members import (
    Member,
    Metadata,
    NotConnected,
    Pem,
    Rotation,
    StreamEnded,
    cancelled_from_outside,
    credentials_of,
    pem_of,
)
from veccluster_etcd.values import Compacted
from veccluster_etcd.verdicts import Verdict, judge, may_repeat

log = structlog.get_logger(__name__)

T = TypeVar("T")
Attempt = Callable[[Member, Metadata, float], Awaitable[T]]
"""Sends a request to a member with metadata and a timeout in seconds, and gives its answer."""

# Members that know no leader refuse on arrival and end their watches, instead of leaving us with a partitioned one.
_REQUIRE_LEADER: Final = ("hasleader", "true")
_PAUSE_FIRST: Final = 0.05
_PAUSE_LONGEST: Final = 1.0
_LOGIN_AGAIN: Final = 1.0
"""Seconds until a login that was refused is tried again unless it has changed: each costs etcd a good part of one."""


class ClientClosed(MetadataUnavailable):
    """The client was closed: trying again is of no use, unlike after any other `MetadataUnavailable`."""

    def __init__(self) -> None:
        super().__init__("the etcd client is closed")


class NotAdmitted(MetadataUnavailable):
    """etcd is there and does not let us in. What is wrong is in files, so it may be put right at any time."""


class Connection:
    """The members, which of them is asked, and the token that they want."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._members: tuple[Member, ...] = ()
        self._pem: Pem = (None, None, None)
        self._rotation = Rotation(len(config.endpoints), start=random.randrange(len(config.endpoints)))
        self._token: str | None = None
        self._refused: tuple[tuple[str, str], float] | None = None
        """The login that etcd refused last, and until when it is not worth another try."""
        self._authenticating = asyncio.Lock()
        self._closed = False
        self.closing: list[Callable[[], None]] = []
        """Called when this is closed, by what renews leases beside the event loop."""

    def open(self) -> None:
        """Make the channels; nothing is sent yet. Raises `InvalidSpec` when a TLS file cannot be read."""
        try:
            self._pem = pem_of(self.config)
        except FileNotFoundError as e:
            raise InvalidSpec.field("tls", missing(Path(e.filename))) from e
        except OSError as e:
            raise InvalidSpec.field("tls", f"{e.filename} must be a readable PEM file: {e.strerror}") from e
        credentials = credentials_of(self.config, self._pem)
        self._members = tuple(Member(address, credentials) for address in self.config.addresses)

    async def _use_renewed_certificates(self) -> None:
        """Connect anew if the TLS files have changed since: whoever renews a certificate need not restart us."""
        try:
            pem = pem_of(self.config)
        except OSError:
            return  # they are being replaced
        if pem != self._pem and not self._closed:
            self._pem = pem
            log.info("etcd.certificates_read_again")
            await asyncio.gather(*(m.reopen(credentials_of(self.config, pem)) for m in self._members))

    async def close(self) -> None:
        """End every request and watch. They raise `ClientClosed`, or `OutcomeUnknown` where that is so."""
        self._closed = True
        for end in tuple(self.closing):
            end()
        await asyncio.gather(*(m.close() for m in self._members))

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order of the endpoints; raises `ClientClosed`, also before `open`."""
        if self._closed or not self._members:
            raise ClientClosed
        return self._members

    @property
    def pem(self) -> Pem:
        """What the TLS files held when they were read last."""
        return self._pem

    @property
    def known_token(self) -> str | None:
        """The token that is used at present, if there is one."""
        return self._token or None

    @property
    def current(self) -> Member:
        """The member to ask now."""
        return self.members[self._rotation.current]

    def failed(self, member: Member, reason: str) -> None:
        """Leave `member` for the next."""
        news = self._rotation.failed(self._members.index(member))
        if not self._closed:
            tell = log.warning if news else log.debug
            tell("etcd.endpoint_failed", endpoint=member.address, reason=reason, next=self.current.address)

    def answered(self, member: Member) -> None:
        """Note that `member` is well."""
        self._rotation.answered(self._members.index(member))

    async def call(
        self,
        attempt: Attempt[T],
        *,
        repeatable: bool,
        timeout: float | None = None,
        attempt_timeout: float | None = None,
        authenticated: bool = True,
    ) -> T:
        """The answer of the first member that gives one within `timeout` seconds.

        `repeatable` says that sending the request twice is as good as once: then it is asked of member after member,
        each for `attempt_timeout` at first and longer every round. Otherwise it is sent again only where it is certain
        that it was not applied, and `OutcomeUnknown` is raised when that is not certain.
        Raises `MetadataUnavailable` at the deadline, `MetadataRefused` and `Compacted` when etcd says so.
        """
        total = self.config.timeout if timeout is None else timeout
        patience = attempt_timeout or self.config.attempt_timeout
        deadline = time.monotonic() + total
        tries = 0
        last = "there was no time to ask"
        while (left := deadline - time.monotonic()) > 0:
            member = self.current
            allowed = backoff.pause(patience, 1 + tries // len(self._members), left) if repeatable else left
            try:
                reply = await self._attempt(attempt, member, left, allowed, authenticated=authenticated)
            except _Failed as failure:
                last = await self._after_failure(member, failure, repeatable=repeatable)
            else:
                self.answered(member)
                return reply
            tries += 1
            await self._pause_between_rounds(tries, deadline)
        if why := admission.why_not(last, self.config):
            await self._use_renewed_certificates()
            raise NotAdmitted(why)
        raise MetadataUnavailable(f"no etcd member answered within {total:g} s; the last error: {last}")

    async def _attempt(
        self, attempt: Attempt[T], member: Member, left: float, allowed: float, *, authenticated: bool
    ) -> T:
        """Ask `member` once; raises `_Failed`."""
        token: str | None = None
        try:
            await member.connected(min(left, self.config.connect_timeout))
            if authenticated:
                token = await self.token(left)
            return await attempt(member, self.metadata(token), allowed)
        except NotConnected as e:
            raise _Failed(Verdict.not_applied, str(e)) from None
        except StreamEnded as e:
            raise _Failed(Verdict.unknown, str(e)) from None
        except aio.AioRpcError as e:
            raise _Failed(judge(e.code().name, e.details() or ""), describe(e), token) from None
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            raise _Failed(Verdict.unknown, "the connection was closed") from None

    async def _after_failure(self, member: Member, failure: "_Failed", *, repeatable: bool) -> str:
        """Make ready for the next try and return the reason for it, or raise what the caller is to know."""
        if failure.verdict is Verdict.unauthenticated:
            if not self.config.logs_in:
                raise MetadataRefused(f"etcd wants a user name and password ({failure.reason})")
            self.forget_token(failure.token)
            return failure.reason
        if failure.verdict is Verdict.refused:
            raise MetadataRefused(f"etcd refused the request: {failure.reason}")
        if failure.verdict is Verdict.compacted:
            raise Compacted(f"etcd has compacted the revision asked for: {failure.reason}")
        self.failed(member, failure.reason)
        if not may_repeat(failure.verdict, repeatable=repeatable):
            raise OutcomeUnknown(f"etcd may or may not have carried it out: {failure.reason}")
        return failure.reason

    async def _pause_between_rounds(self, tries: int, deadline: float) -> None:
        """Once every member has had its turn, wait a little: longer each round, never past the deadline."""
        rounds, turn = divmod(tries, len(self._members))
        if turn == 0:
            await asyncio.sleep(min(pause(rounds), max(0.0, deadline - time.monotonic())))

    def metadata(self, token: str | None, *, require_leader: bool = True) -> Metadata:
        """What goes with every request."""
        return (*([_REQUIRE_LEADER] if require_leader else []), *([("token", token)] if token else []))

    async def token(self, timeout: float | None = None) -> str | None:
        """The token to use, asked for when there is none; None when none is needed."""
        if not self.config.logs_in:
            return None
        async with self._authenticating:
            if self._token is None:
                self._token = await self._authenticate(*self._login(), timeout)
            return self._token or None

    def _login(self) -> tuple[str, str]:
        """Who we say we are; a Secret that is being replaced may be unreadable for a moment."""
        try:
            return self.config.login() or ("", "")
        except InvalidSpec as e:
            raise NotAdmitted(reason_of(e)) from e

    def forget_token(self, stale: str | None) -> None:
        """Ask for a new token next time, unless another request has done so since `stale` was handed out."""
        if (self._token or None) == stale:
            self._token = None

    async def _authenticate(self, username: str, password: str, timeout: float | None) -> str:
        """A new token; "" when etcd runs without authentication, which is then as good."""
        if self._refused and self._refused[0] == (username, password) and time.monotonic() < self._refused[1]:
            raise NotAdmitted(admission.wrong_login(self.config))

        async def attempt(member: Member, metadata: Metadata, timeout: float) -> Any:
            request = wire.authenticate_request(username, password)
            return await member.auth.Authenticate(request, metadata=metadata, timeout=timeout)

        try:
            reply = await self.call(attempt, repeatable=True, timeout=timeout, authenticated=False)
        except MetadataRefused as e:
            if "authentication is not enabled" in e.detail:
                log.warning("etcd.authentication_not_enabled")
                return ""
            if self.config.password_file is None or "authentication failed" not in e.detail:
                raise
            self._refused = ((username, password), time.monotonic() + _LOGIN_AGAIN)
            raise NotAdmitted(admission.wrong_login(self.config)) from None
        token: str = reply.token
        return token


class _Failed(Exception):
    """One attempt failed; `token` is the one it was made with."""

    def __init__(self, verdict: Verdict, reason: str, token: str | None = None) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason
        self.token = token


def pause(rounds: int) -> float:
    """Seconds to wait after `rounds` rounds without success, with jitter so that clients do not march in step."""
    return backoff.pause(_PAUSE_FIRST, rounds, _PAUSE_LONGEST) * random.uniform(0.5, 1.0)


def reason_of(error: InvalidSpec) -> str:
    """What is wrong, without the name of our own field: the reason names the file."""
    return str(error.errors[0]["reason"]) if error.errors else error.detail


def describe(error: Any) -> str:
    """A gRPC error in a few words."""
    return f"{error.code().name}: {error.details()}"
