"""Work that goes on when whoever asked for it is gone: what changes something is not to be left half done."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

_going_on: set["asyncio.Future[Any]"] = set()
"""The event loop itself keeps no task alive."""


async def to_its_end(work: Awaitable[T]) -> T:
    """What the work gives; it goes on when the caller is cancelled."""
    task = asyncio.ensure_future(work)
    _going_on.add(task)
    task.add_done_callback(_ended)
    return await asyncio.shield(task)


def _ended(task: "asyncio.Future[Any]") -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()  # who asked has heard of it, or is gone
