"""How a read that nobody waits for any more is stopped, in whatever it is just doing: SQL, a scan, a graph."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from veccluster.errors import Unavailable


class Abandoned(Unavailable):
    """The read was stopped since nobody waits for its answer any more."""


class Stop:
    """Told from one thread, heard in another, which reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = False
        self._connection: sqlite3.Connection | None = None

    def tell(self) -> None:
        """Nobody waits any more; returns at once, from any thread."""
        with self._lock:
            self._told = True
            if self._connection is not None:
                self._connection.interrupt()

    def check(self) -> None:
        """Raise `Abandoned` when nobody waits any more: to be called wherever work is cut into slices."""
        if self._told:
            raise Abandoned("nobody waits for the answer any more")

    @contextmanager
    def interrupts(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Have what SQLite does on this connection end when nobody waits any more.

        SQLite forgets an interruption that finds no statement under way; so there is one for as long as the context
        lasts, which makes it hold for whatever is asked next.
        """
        pending = connection.execute("VALUES (1), (2)")
        try:
            with self._lock:
                self._connection = connection
            self.check()
            yield
        finally:
            with self._lock:
                self._connection = None
            pending.close()


NEVER = Stop()
"""For reads that are always waited for. Nobody may tell it."""
