"""One batch over several shards, applied by all of them or by none (15): prepared everywhere, decided once, awaited.

What comes next is decided by `decisions.replication.atomic_deciding`; this asks the shards and etcd, in the time that
there is. Whoever asks the same again, here or at another node, goes on from wherever this got to.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from veccluster.decisions import routing
from veccluster.decisions.replication.atomic import Batch, Decision, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Begin, Finish, GiveUp, Propose, Step, after, next_step
from veccluster.errors import MetadataRefused, MetadataUnavailable, OutcomeUnknown, Unavailable, VecClusterError
from veccluster.model.state import Revision, Shard
from veccluster_node.coordinator.asking import Asking, NotYet, fail, together
from veccluster_node.coordinator.writes import ask_primary
from veccluster_node.service.shard_service import Prepare, Request, Settle, Written

R = TypeVar("R")
Decide = Callable[[Decision, Revision], Awaitable[Decision | Revision]]
"""Makes a decision unless there is one, or some were forgotten since that revision: what there is instead."""

DECIDING = 0.6
"""Part of the time in which it must be decided; the rest is for the shards to apply it."""


class AtomicWrite:
    """One request; `parts` are what each shard is to prepare, by its number."""

    def __init__(
        self,
        asking: Asking,
        parts: Mapping[int, Prepare],
        *,
        forgotten: Callable[[], Revision],
        decide: Decide,
        timeout: float,
    ) -> None:
        """`forgotten` is when decisions were last forgotten, as far as this node has seen."""
        self._asking = asking
        self._parts = parts
        self._forgotten = forgotten
        self._decide = decide
        now = time.monotonic()
        self._until, self._deadline = now + DECIDING * timeout, now + timeout
        self._refusals: dict[int, VecClusterError] = {}
        self._late: VecClusterError = Unavailable("the shards did not take the batch in time")
        self._may_be_applied = False
        """Whether etcd was asked to apply it and never said what came of that."""

    async def run(self) -> dict[int, Written]:
        """What became of it in each shard; `OutcomeUnknown` if that is not known, otherwise nothing was stored."""
        step: Step = Begin(next(iter(self._parts.values())).batch)
        forgotten = self._forgotten()
        while isinstance(step, Begin):
            begun, forgotten = step, max(forgotten, self._forgotten())
            step = await self._prepare(begun.batch)
            if isinstance(step, Propose):
                found = await self._propose(step.decision, forgotten)
                if isinstance(found, Decision):
                    step = after(found, over=self._is_over)
                else:
                    step, forgotten = begun, found
        if isinstance(step, Finish) and step.verdict is Verdict.applied:
            return await self._settle(step.batch)
        if isinstance(step, GiveUp) and self._may_be_applied:
            raise OutcomeUnknown(f"neither etcd nor a shard said what became of the batch: {self._refusal().detail}")
        raise self._refusal()

    @property
    def _is_over(self) -> bool:
        return time.monotonic() > self._until or bool(self._refusals)

    def _refusal(self) -> VecClusterError:
        """Why nothing was stored: what the client did wrong, if anything."""
        reasons = sorted(self._refusals.values(), key=lambda error: error.status)
        why = reasons[0] if reasons else self._late
        return Unavailable(f"nothing was stored: {why.detail}") if isinstance(why, OutcomeUnknown) else why

    async def _prepare(self, batch: Batch) -> Step:
        """Ask the primaries until it is clear what to do next."""
        said: dict[int, Standing] = {}

        def step(*, over: bool) -> Step | None:
            return next_step(batch, self._parts.keys(), said, over=over)

        def give_up() -> Step:
            found = step(over=True)
            assert found is not None
            return found

        async def attempt() -> Step | NotYet[Step]:
            missing = [n for n in self._parts if n not in said]
            before = {n: self._record(n) for n in missing}
            for n, answer in zip(missing, await asyncio.gather(*(self._ask(n, batch) for n in missing)), strict=True):
                if isinstance(answer, Standing):
                    said[n] = answer
                else:
                    self._note(n, before[n], answer)
            left = [self._parts[n].shard for n in missing if n not in said]
            return step(over=self._is_over) or NotYet(give_up, left)

        return await self._asking.until_final(attempt, self._until)

    async def _ask(self, number: int, batch: Batch) -> Standing | VecClusterError:
        try:
            return await self._ask_primary(number, replace(self._parts[number], batch=batch), self._until)
        except VecClusterError as error:
            return error

    async def _ask_primary(self, number: int, request: Request[R], deadline: float) -> R:
        return await ask_primary(self._asking, self._asking.record(self._parts[number].shard), request, deadline)

    def _note(self, number: int, asked: Shard | None, error: VecClusterError) -> None:
        """Remember what speaks against the batch, unless it may pass."""
        self._late = error
        known, alive = self._record(number), self._asking.state().alive.keys()
        if asked is None or routing.again(asked, known, error, alive) is routing.Again.no:
            self._refusals[number] = error

    def _record(self, number: int) -> Shard | None:
        return self._asking.state().shards.get(self._parts[number].shard)

    async def _propose(self, decision: Decision, forgotten: Revision) -> Decision | Revision:
        """What is decided; the revision of what was forgotten meanwhile, in which case all is to be asked anew."""
        drops = decision.verdict is Verdict.dropped

        async def attempt() -> Decision | Revision | NotYet[Decision | Revision]:
            try:
                return await self._decide(decision, forgotten)
            except (OutcomeUnknown, MetadataUnavailable, MetadataRefused) as error:
                self._may_be_applied |= isinstance(error, OutcomeUnknown) and not drops
                told: VecClusterError = error
                if self._may_be_applied or drops:
                    told = OutcomeUnknown(f"etcd did not say what became of the batch: {error.detail}")
                if isinstance(error, MetadataRefused):
                    fail(told, error)
                return NotYet(partial(fail, told, error))

        return await self._asking.until_final(attempt, self._deadline)

    async def _settle(self, batch: Batch) -> dict[int, Written]:
        """Wait until every shard has applied it."""
        written = await together(*(self._settle_one(number, batch) for number in self._parts))
        return dict(zip(self._parts, written, strict=True))

    async def _settle_one(self, number: int, batch: Batch) -> Written:
        part = self._parts[number]
        request = Settle(shard=part.shard, batch=batch, level=part.level, principal=part.principal, trace=part.trace)

        async def attempt() -> Written | NotYet[Written]:
            asked = self._record(number)
            try:
                return await self._ask_primary(number, request, self._deadline)
            except VecClusterError as error:
                late = OutcomeUnknown(f"the batch is stored, but shard {number} does not show it yet: {error.detail}")
                if asked is None:
                    fail(late, error)
                return self._asking.again(asked, error, late)

        return await self._asking.until_final(attempt, self._deadline)
