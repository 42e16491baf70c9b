"""One write to one shard: asked of the primary, whoever that is by now, until it is known what became of it.

While another replica may take over, a write that was refused or lost is asked again under its name, which a primary
applies once (rule 14). It is asked of the next primary as soon as there is one, even if the last one still owes an
answer: it can acknowledge nothing any more that the next one does not have.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

from veccluster.decisions import routing
from veccluster.errors import OutcomeUnknown, VecClusterError
from veccluster.model.state import Shard
from veccluster_node.coordinator.asking import Asking, NotYet, either
from veccluster_node.service.shard_service import Request, Write, Written

R = TypeVar("R")

QUICK = 0.5
"""Seconds after which the shard's record is watched as well: nearly every write has been answered by then."""


async def write(asking: Asking, request: Write, *, timeout: float) -> Written:
    """The answer to a write; `OutcomeUnknown` if it may have been carried out and nobody said so."""
    deadline = time.monotonic() + timeout
    lost: list[OutcomeUnknown] = []

    async def attempt() -> Written | NotYet[Written]:
        asked = asking.record(request.shard)
        try:
            return await ask_primary(asking, asked, request, deadline)
        except OutcomeUnknown as error:
            lost.append(error)
            return asking.again(asked, error, error)
        except VecClusterError as error:
            if error.status < 500:
                raise
            return asking.again(asked, error, _unless_lost(error, lost))

    return await asking.until_final(attempt, deadline)


def _unless_lost(error: VecClusterError, lost: Sequence[OutcomeUnknown]) -> VecClusterError:
    """What is told: a refusal is none for an attempt before it whose answer was lost."""
    return OutcomeUnknown(f"an earlier attempt got no answer; at last: {error.detail}") if lost else error


async def ask_primary(asking: Asking, asked: Shard, request: Request[R], deadline: float) -> R:
    """Its answer, unless another node becomes primary first."""
    left = max(deadline - time.monotonic(), 0.001)
    call = asyncio.ensure_future(asking.call(asked.primary.node, request, left))
    moved: asyncio.Future[bool] | None = None
    try:
        await asyncio.wait({call}, timeout=QUICK)
        if not call.done():
            watched = {asked.id: asked}
            moved = asyncio.ensure_future(asking.wait(lambda now: routing.has_moved(now, watched), left))
            await either(call, moved)
            if not call.done() and not moved.result():
                await asyncio.wait({call})
        if call.done():
            return call.result()
        raise OutcomeUnknown(f"node {asked.primary.node} was sent the write and is no longer the primary")
    finally:
        call.cancel()
        if moved:
            moved.cancel()
