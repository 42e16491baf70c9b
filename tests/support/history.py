"""A checker that remembers every acknowledgement: what may an id hold after all that was asked and answered?

Each id is written by one writer, one operation at a time, so its operations have an order. After the last acknowledged
one, only operations whose outcome is unknown may have changed it further: the id must hold one of these states. Every
value ever written is unique, so that an old one that comes back is recognised.
"""

import threading
from collections import defaultdict
from dataclasses import dataclass, field

Value = int | None
"""What an id holds: the number of the write, or None when it is deleted."""


@dataclass
class _Past:
    allowed: set[Value] = field(default_factory=lambda: {None})


class History:
    """All ids of a run; safe to use from several writers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: dict[str, _Past] = defaultdict(_Past)
        self.acknowledged = 0
        self.unknown = 0

    def invoke(self, ids: list[str], value: Value) -> None:
        """A write is about to be sent: from now on its value may show."""
        with self._lock:
            for one in ids:
                self._past[one].allowed.add(value)

    def acknowledge(self, ids: list[str], value: Value) -> None:
        """The write was acknowledged: nothing older may show any more."""
        with self._lock:
            self.acknowledged += len(ids)
            for one in ids:
                self._past[one].allowed = {value}

    def lose_sight(self, ids: list[str]) -> None:
        """The outcome is not known: old and new stay allowed."""
        with self._lock:
            self.unknown += len(ids)

    def violations(self, held: dict[str, int]) -> list[str]:
        """What `held` (id to value, for the ids that are there) contradicts."""
        with self._lock:
            wrong = [
                f"{one} holds {held.get(one)}, allowed are {sorted(past.allowed, key=str)}"
                for one, past in self._past.items()
                if held.get(one) not in past.allowed
            ]
            return wrong + [f"{one} was never written" for one in held if one not in self._past]
