"""Who works on which VecCluster when: one worker a cluster, woken by events, and by the clock where there are none.

An event carries nothing but a name. Any number of them during a round lead to one more round; a round that fails is
tried again after a pause that grows; and every cluster is looked at again after the resync time, whatever was missed.
"""

import asyncio
import random
import time

import structlog

from veccluster import backoff
from veccluster_operator.adapters.kube import ApiError, NotActive
from veccluster_operator.adapters.metrics import Metrics
from veccluster_operator.reconcile import Key, Outcome, Reconciler

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
GLANCE = 5.0
"""Seconds between glances at the nodes of a cluster."""
SETTLE = 0.2
"""Seconds that a worker lets further events arrive before it begins."""
AT_ONCE = 8
"""Rounds at the same time."""

log = structlog.get_logger(__name__)


class Workers:
    """The workers of all clusters."""

    def __init__(self, reconciler: Reconciler, metrics: Metrics, resync: float) -> None:
        self._reconciler = reconciler
        self._metrics = metrics
        self._resync = resync
        self._wakes: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._failing: set[Key] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    def wake(self, key: Key) -> None:
        """Have a round for this cluster soon."""
        if key not in self._tasks:
            self._wakes[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._work(key), name=f"cluster {key}")
            self._metrics.clusters.set(len(self._tasks))
        self._wakes[key].set()

    async def close(self) -> None:
        """End every worker."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _work(self, key: Key) -> None:
        woken, failures = self._wakes[key], 0
        while True:
            await asyncio.sleep(SETTLE)
            woken.clear()
            outcome = await self._round(key)
            failures = 0 if outcome else failures + 1
            if outcome and outcome.gone and not woken.is_set():
                del self._tasks[key], self._wakes[key]  # should it come back, its event makes another worker
                self._count()
                return
            if outcome is None:
                await _first(woken, backoff.pause(FIRST_PAUSE, failures, LONGEST_PAUSE))
            else:
                await self._idle(woken, outcome)

    async def _idle(self, woken: asyncio.Event, outcome: Outcome) -> None:
        """Until something wakes the worker, a glance shows a change, or the resync time is over."""
        until = time.monotonic() + self._resync * random.uniform(0.9, 1.1)
        while time.monotonic() < until:
            if await _first(woken, GLANCE if outcome.servers else until - time.monotonic()):
                return
            if await self._reconciler.has_changed(outcome):
                return

    async def _round(self, key: Key) -> Outcome | None:
        """One round; None when it failed."""
        async with self._room:
            started = time.monotonic()
            try:
                outcome = await self._reconciler.round(key)
            except NotActive:
                result, outcome = "not_active", None
            except ApiError as error:
                result, outcome = "conflict" if error.is_conflict else "failed", None
                log.warning("round_failed", cluster=str(key), status=error.status, reason=error.message)
            except Exception:  # a defect in the care for one cluster must not end the care for the others
                result, outcome = "defect", None
                log.exception("round_failed", cluster=str(key))
            else:
                result = "ok"
                self._metrics.succeeded()
        self._metrics.duration.observe(time.monotonic() - started)
        self._metrics.reconciles.labels(result).inc()
        (self._failing.discard if result == "ok" else self._failing.add)(key)
        self._count()
        return outcome

    def _count(self) -> None:
        self._metrics.clusters.set(len(self._tasks))
        self._metrics.failing.set(len(self._failing))


async def _first(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event came within so many seconds."""
    try:
        async with asyncio.timeout(max(seconds, 0.0)):
            await event.wait()
    except TimeoutError:
        return False
    return True
