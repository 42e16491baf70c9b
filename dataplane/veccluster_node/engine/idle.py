"""Connections to the rows of shards that nobody reads from just now, kept since opening one takes a while.

There is one pool for the whole process: what is kept for shards that are seldom read is closed first, so that the files
that it holds open do not grow with the number of shards.
"""

import sqlite3
import threading
from collections import OrderedDict

MOST = 512


class Idle:
    """Connections by whose they are, the one that was used last at the end."""

    def __init__(self, most: int = MOST) -> None:
        """Keep `most` at most."""
        self.most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[sqlite3.Connection, object] = OrderedDict()
        self._of: dict[object, list[sqlite3.Connection]] = {}

    def take(self, owner: object) -> sqlite3.Connection | None:
        """One of the owner's, if any is kept."""
        with self._lock:
            mine = self._of.get(owner)
            if not mine:
                return None
            db = mine[-1]
            self._forget(db)
            return db

    def keep(self, owner: object, db: sqlite3.Connection) -> None:
        """Keep one for the owner; what is too much by then is closed."""
        with self._lock:
            self._kept[db] = owner
            self._of.setdefault(owner, []).append(db)
            excess = []
            while len(self._kept) > self.most:
                excess.append(next(iter(self._kept)))
                self._forget(excess[-1])
        for old in excess:
            old.close()

    def drop(self, owner: object) -> None:
        """Close all of the owner's."""
        with self._lock:
            mine = list(self._of.get(owner, ()))
            for db in mine:
                self._forget(db)
        for db in mine:
            db.close()

    def _forget(self, db: sqlite3.Connection) -> None:
        owner = self._kept.pop(db)
        self._of[owner].remove(db)
        if not self._of[owner]:
            del self._of[owner]


IDLE = Idle()
"""That of this process."""
