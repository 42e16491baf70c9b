"""Somebody who stores and searches all the time, to notice what a test does to the cluster meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Self

from e2e.support.client import Client
from e2e.support.database import Database
from e2e.waiting import wait_for

VECTOR = [1.0, 2.0, 3.0]


class Traffic(threading.Thread):
    """Stores a vector and searches for it, again and again; what did not work is kept."""

    def __init__(self, client: Client, database: Database, collection: str) -> None:
        super().__init__(daemon=True)
        self.client, self.database, self.collection = client, database, collection
        self.done = 0
        self.failed: list[str] = []
        self._ended = threading.Event()

    def run(self) -> None:
        """Until the context ends."""
        for number in itertools.count():
            if self._ended.is_set():
                return
            try:
                self._once(number)
                self.done += 1
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.failed.append(f"{time.strftime('%X')} {type(error).__name__}: {error}")

    def _once(self, number: int) -> None:
        path = f"/v1/collections/{self.collection}"
        body = {"vectors": [{"id": f"{self.name} {number}", "vector": VECTOR}]}
        stored = self.client.ask(self.database, "POST", f"{path}/vectors", body)
        assert stored["status"] == 200, stored
        found = self.client.ask(self.database, "POST", f"{path}/search", {"vector": VECTOR, "k": 1})
        assert found["status"] == 200, found
        assert found["body"]["results"], found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def goes_on(self, times: int = 3) -> None:
        """It has worked so many times since now, and never not."""
        before = self.done
        wait_for(lambda: self.done >= before + times, 60, f"{times} writes and searches (failed: {self.failed})")
        assert self.failed == []
