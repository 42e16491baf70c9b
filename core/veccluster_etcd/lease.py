"""Leases that end by our own clock, never later than etcd's.

etcd counts a lease from when it handled the last keep-alive; we count from before we sent it. So when we say it is
held, etcd says so too; the other way round we may give up a little early. It is a hint all the same, never a lock:
what protects data is compared in a transaction (`Term.fence`).
"""

import asyncio
import math
import threading
import time
from collections.abc import Coroutine
from concurrent import futures
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from veccluster.decisions import etcd_history
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable
from veccluster.model.state import Revision
from veccluster_etcd import wire
from veccluster_etcd.connection import ClientClosed, Connection
from veccluster_etcd.keepalive import KeepAlive, NotRenewed, Renewed
from veccluster_etcd.listing import newest
from veccluster_etcd.members import Member, Metadata, StreamEnded
from veccluster_etcd.values import LeaseId

T = TypeVar("T")

log = structlog.get_logger(__name__)

_RENEWALS: Final = 3
"""Keep-alives in a lease's time: two may fail."""
_RETRY: Final = 0.1
"""Seconds between tries once a renewal has failed at every member."""
PULSE: Final = 1.0
"""Seconds between two signs that the event loop still does something."""
LONGEST_STALL = 15.0
"""Seconds for which an event loop may do nothing before its leases are left to end: busy it may be, stuck for ever it
must not seem alive."""


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell (Linux)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """A lease that a thread renews until it is revoked or lost; made by `EtcdClient.grant`.

    The thread needs nothing of the event loop as long as a member answers it (`keepalive.py`).

    `lost` is set once, as soon as the event loop runs after the end, and never cleared; a lease that is lost stays
    lost even if etcd would still renew it. `remaining()` needs no event loop and is right even after a stall.
    """

    def __init__(
        self, connection: Connection, lease_id: LeaseId, ttl: float, sent: float, seen: etcd_history.Seen
    ) -> None:
        """`seen` is which etcd granted it, and how far that had come."""
        self.id = lease_id
        self._seen = seen
        self.ttl = ttl
        self.lost = asyncio.Event()
        self._connection = connection
        self._ends = sent + ttl
        self._revoked = False
        self._loop = asyncio.get_running_loop()
        self._ran = _clock()
        """When the event loop was last seen to do anything."""
        self._timer = self._loop.call_later(PULSE, self._on_timer)
        self._stopped = threading.Event()
        connection.closing.append(self._stopped.set)
        threading.Thread(target=self._renew, name=f"etcd-lease-{lease_id:x}", daemon=True).start()

    def remaining(self) -> float:
        """Seconds for which the lease is certainly held if nothing more is heard from etcd; 0 when it is lost."""
        return 0.0 if self.lost.is_set() else max(0.0, self._ends - _clock())

    def check(self) -> None:
        """Raise `LeaseLost` unless the lease is held."""
        if self.remaining() <= 0:
            self._lose("its time is over")
            raise LeaseLost(f"the lease {self.id:x} of {self.ttl:g} s has ended")

    async def revoke(self) -> None:
        """End the lease and its keys now. When that raises `MetadataUnavailable`, they end when their time is over."""
        self._revoked = True
        self._lose("revoked")

        async def attempt(member: Member, metadata: Metadata, timeout: float) -> None:
            await member.lease.LeaseRevoke(wire.revoke_request(self.id), metadata=metadata, timeout=timeout)

        try:
            await self._connection.call(attempt, repeatable=True)
        except MetadataRefused as e:
            if "lease not found" not in e.detail:
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def end(self) -> None:
        """Revoke it; where etcd cannot be reached, it ends by itself."""
        try:
            await self.revoke()
        except MetadataUnavailable as e:
            log.warning("etcd.lease_not_revoked", lease=f"{self.id:x}", reason=e.detail)

    def _renew(self) -> None:
        """Keep the lease alive until it is lost, in a thread of its own."""
        asking = KeepAlive(self._connection)
        wait = self.remaining() - self.ttl * (1 - 1 / _RENEWALS)
        try:
            while not self._stopped.wait(max(0.0, wait)) and self.remaining() > 0:
                if _clock() - self._ran > LONGEST_STALL:
                    log.warning("etcd.lease_not_renewed", lease=f"{self.id:x}", reason="the event loop stands still")
                    wait = _RETRY
                else:
                    wait = self._renew_once(asking)
        except ClientClosed:
            pass  # The timer says when it is lost.
        except RuntimeError as e:
            if not self._loop.is_closed():
                log.exception("etcd.lease_not_renewed", lease=f"{self.id:x}", reason=str(e))
        finally:
            asking.close()

    def _renew_once(self, asking: KeepAlive) -> float:
        """Seconds until the next time."""
        sent = _clock()
        try:
            try:
                renewed = asking.ask(self.id, self._quick)
            except NotRenewed:
                sent, renewed = self._by_loop(self._keep_alive())
            why = self._why_void(renewed)
        except (MetadataUnavailable, MetadataRefused) as e:
            if isinstance(e, ClientClosed):
                raise
            left = round(self.remaining(), 3)
            log.warning("etcd.lease_not_renewed", lease=f"{self.id:x}", remaining=left, reason=e.detail)
            return _RETRY
        if why:
            self._loop.call_soon_threadsafe(self._lose, why)
            self._stopped.set()
        elif self.remaining() > 0:
            self._ends = max(self._ends, sent + renewed.granted)
        return self.ttl / _RENEWALS - (_clock() - sent)

    def _by_loop(self, asked: Coroutine[None, None, T]) -> T:
        """What the event loop finds out, which knows about tokens and certificates; it may have no time."""
        if self._loop.is_closed():
            asked.close()
            raise ClientClosed
        doing = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return doing.result(max(_RETRY, self.remaining() / 2))  # so that there is time to ask the members again
        except TimeoutError:
            doing.cancel()
            raise MetadataUnavailable("the event loop had no time for it") from None
        except futures.CancelledError:
            raise ClientClosed from None

    @property
    def _quick(self) -> float:
        """Seconds that a member is given, so that there is time to ask another."""
        return min(self._connection.config.attempt_timeout, self.ttl / (2 * _RENEWALS))

    async def _keep_alive(self) -> tuple[float, Renewed]:
        """Renew once as any other request: when what was answered had been sent, and the answer.

        A keep-alive is a stream of its own each time: there is no old one whose late answers could be taken for new.
        """

        async def attempt(member: Member, metadata: Metadata, timeout: float) -> tuple[float, Renewed]:
            sent = _clock()
            async with member.stream(member.lease.LeaseKeepAlive, metadata, timeout) as stream:
                await stream.send(wire.keep_alive_request(self.id))
                reply: Any = await stream.receive(timeout)
            if reply is None:
                raise StreamEnded(f"{member.address} did not renew the lease in time")
            return sent, Renewed(float(reply.TTL), reply.header.cluster_id, Revision(reply.header.revision))

        left = self.remaining()
        return await self._connection.call(attempt, repeatable=True, timeout=left, attempt_timeout=self._quick)

    def _why_void(self, renewed: Renewed) -> str:
        """Why the lease is over, or the etcd that renewed it not the one that granted it, in words.

        One that was restored to an older state may know the lease, and what hangs on it is something else.
        """
        if renewed.granted <= 0:
            return "etcd has ended it"
        revision = renewed.revision
        if etcd_history.went_back(self._seen, renewed.cluster, revision):
            try:  # a member that is behind the others says a smaller revision, too: all of them together know
                cluster, revision = self._by_loop(newest(self._connection))
            except (MetadataUnavailable, MetadataRefused):
                return ""
            if why := etcd_history.went_back(self._seen, cluster, revision):
                return why
        self._seen.revision = max(self._seen.revision, revision)
        return ""

    def _on_timer(self) -> None:
        self._ran = _clock()
        left = self.remaining()
        if left > 0:
            self._timer = self._loop.call_later(min(left, PULSE), self._on_timer)
        else:
            self._lose("its time is over")

    def _lose(self, why: str) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self._timer.cancel()
        self._stopped.set()
        self._connection.closing.remove(self._stopped.set)
        if not self._revoked:
            log.warning("etcd.lease_lost", lease=f"{self.id:x}", ttl=self.ttl, reason=why)


async def grant(connection: Connection, ttl: float, timeout: float | None) -> Lease:
    """A new lease of `ttl` seconds, rounded up to whole ones and to etcd's minimum.

    Asked again when the answer is lost: the lease that may have been made is nobody's and ends by itself.
    """

    async def attempt(member: Member, metadata: Metadata, left: float) -> Lease:
        sent = _clock()
        reply = await member.lease.LeaseGrant(
            wire.grant_request(max(1, math.ceil(ttl))), metadata=metadata, timeout=left
        )
        seen = etcd_history.Seen(reply.header.cluster_id, Revision(reply.header.revision))
        return Lease(connection, LeaseId(reply.ID), float(reply.TTL), sent, seen)

    return await connection.call(attempt, repeatable=True, timeout=timeout)
