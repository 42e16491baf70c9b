"""Wait for what the cluster will do, and say what was seen instead when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Seen = TypeVar("Seen")


def wait_for(condition: Callable[[], Seen], timeout: float, what: str, every: float = 0.5) -> Seen:
    """Poll until `condition` returns something true, and return that; an exception in it counts as not yet.

    A failure tells what was waited for, how long, and what the last try returned or raised.
    """
    begun = time.monotonic()
    while True:
        try:
            seen = condition()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is told below
            last = f"raised {type(error).__name__}: {error}"
        else:
            if seen:
                return seen
            last = f"returned {seen!r}"
        if time.monotonic() - begun > timeout:
            raise AssertionError(f"waited {timeout:.0f} s in vain for {what}; the last try {last}")
        time.sleep(every)
