"""Which replica acts: a Lease in Kubernetes, held by one replica at a time, and a fence for its writes.

The rules are those of client-go's leader election: nobody compares clocks of different machines. A replica that waits
takes the Lease when it has not changed for the Lease's whole duration on the waiting replica's own clock; the holder
counts its own time from before it sent the renewal that succeeded, and stops writing `MARGIN` before that time is
over. So whoever takes over finds nobody else acting.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from veccluster_operator.adapters.kube import LEASE, ApiError, KubeApi

DURATION = 12.0
"""Seconds without a renewal after which another replica takes over."""
RETRY = 2.0
MARGIN = 3.0
"""Seconds before the end at which the holder stops: room for what is under way in the API server."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The Lease as it was seen to change last: who held it, its version, and when on our own clock."""

    holder: str
    version: str
    at: float


def may_take(sighting: Sighting | None, me: str, now: float) -> bool:
    """Whether the Lease is free for `me`: nobody's, ours, or not renewed for its duration."""
    return sighting is None or sighting.holder in ("", me) or now - sighting.at >= DURATION


class Leadership:
    """This replica's part in the election; also the fence for its writes."""

    def __init__(
        self, api: KubeApi, namespace: str, name: str, me: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.me = me
        self._api = api.fenced(_Open())
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._seen: Sighting | None = None
        self._valid_until = 0.0

    def remaining(self) -> float:
        """Seconds for which this replica is certainly the only one that acts; 0 when it is not."""
        return max(0.0, self._valid_until - MARGIN - self._clock())

    async def acquire(self) -> None:
        """Wait until this replica holds the Lease."""
        while not await self._attempt():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(RETRY)
        log.info("became_active", replica=self.me)

    async def hold(self) -> None:
        """Renew for as long as that succeeds in time; returns when this replica must stop acting."""
        while self.remaining() > 0:
            await asyncio.sleep(min(RETRY, self.remaining()))
            await self._attempt()
        log.error("no_longer_active", replica=self.me)

    async def reachable(self) -> bool:
        """Whether the Lease can be read."""
        try:
            await self._api.get(LEASE, self._namespace, self._name)
        except ApiError:
            return False
        return True

    async def release(self) -> None:
        """Let another replica take over at once."""
        self._valid_until = 0.0
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
            if lease and lease["spec"].get("holderIdentity") == self.me:
                lease["spec"] |= {"holderIdentity": "", "renewTime": _now(), "leaseDurationSeconds": 1}
                await self._api.replace(LEASE, lease)
        except ApiError as error:
            log.warning("lease_not_released", reason=error.message)

    async def _attempt(self) -> bool:
        """Take or renew the Lease if that is allowed; whether this replica holds it now."""
        try:
            async with asyncio.timeout(DURATION - MARGIN):
                return await self._try()
        except (ApiError, TimeoutError) as error:
            log.warning("lease_not_renewed", reason=str(error))
            return False

    async def _try(self) -> bool:
        started = self._clock()
        lease = await self._api.get(LEASE, self._namespace, self._name)
        if lease is None:
            await self._api.create(LEASE, self._fresh())
        else:
            self._look(lease)
            if not may_take(self._seen, self.me, self._clock()):
                self._valid_until = 0.0
                return False
            await self._api.replace(LEASE, self._taken(lease))
        self._valid_until = started + DURATION
        return True

    def _look(self, lease: dict[str, Any]) -> None:
        version = lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen.version != version:
            self._seen = Sighting(lease["spec"].get("holderIdentity") or "", version, self._clock())

    def _fresh(self) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace}
        spec = {"holderIdentity": self.me, "leaseTransitions": 0, "acquireTime": _now()}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec | _renewed()}

    def _taken(self, lease: dict[str, Any]) -> dict[str, Any]:
        spec = lease["spec"]
        if spec.get("holderIdentity") != self.me:
            spec |= {"acquireTime": _now(), "leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        return {**lease, "spec": spec | {"holderIdentity": self.me} | _renewed()}


class _Open:
    """The Lease itself is fenced by its resourceVersion."""

    def remaining(self) -> float:
        return DURATION


def _renewed() -> dict[str, Any]:
    return {"renewTime": _now(), "leaseDurationSeconds": round(DURATION)}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
