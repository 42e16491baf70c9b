"""Clients inside the cluster that store and search all the time, and what they must never notice of a fault."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from typing import Any, Self

from e2e.support.client import Client
from e2e.support.database import Database
from e2e.waiting import wait_for

PAUSE = 10.0
"""Seconds within which a write must be acknowledged, whatever broke."""
PATIENCE = 90.0
Entry = dict[str, Any]


class Steady:
    """Runs `recorder.py` in the client's pod while its context lasts, and judges what was recorded when that ends."""

    def __init__(self, client: Client, database: Database, collection: str) -> None:
        self._client, self._database, self._collection = client, database, collection
        self._entries: list[Entry] = []
        self.summary = ""

    def __enter__(self) -> Self:
        self._process = self._client.begin("recorder.py", self._database.url, self._collection)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.goes_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._listener.join(PATIENCE)
            ended = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
        self.summary = self._summary()
        print(self.summary)
        if kind is None:
            assert ended == 0, f"the recorder ended with {ended}"
            wrong = self.wrong()
            assert not wrong, "\n".join([f"{len(wrong)} things were wrong:", *wrong[:20], self.summary])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._entries.append(json.loads(line))

    # While it runs

    def goes_on(self, times: int = 3) -> None:
        """Every client has been answered so many times more."""
        before = len(self._entries)

        def answered() -> bool:
            count: dict[str, int] = defaultdict(int)
            for entry in self._entries[before:]:
                if "who" in entry and entry["error"] is None:
                    count[entry["who"]] += 1
            assert len(count) == 5, count
            return min(count.values()) >= times

        wait_for(answered, 60, "all clients to be answered again")

    def newest(self) -> Entry:
        """What the cluster said of itself last."""
        return next((e for e in reversed(self._entries) if e["what"] == "cluster"), {})

    def wait_until_in_sync(self, timeout: float = 120) -> None:
        """Until the nodes themselves say that they are all there, with every copy."""
        before = len(self._entries)

        def said() -> bool:
            newest = self.newest()
            assert newest in self._entries[before:], "nothing since"
            assert is_whole(newest), newest
            return True

        wait_for(said, timeout, "all copies to be in sync")

    def reports(self) -> list[Entry]:
        """All that the cluster said of itself."""
        return self._of("cluster")

    # Judging

    def wrong(self) -> list[str]:
        """What should not have been."""
        lost_quorum = {i for e in self.reports() for i in e["issues"] if i.startswith("Lost quorum")}
        return [
            *(f"{e['what']} of {e.get('id')} by {e['who']}: {e['error']}" for e in self._asked() if e["error"]),
            *(f"old: {e}" for e in self._of("read") if not e["error"] and e["value"] < e["least"]),
            *(f"a pause: {e}" for e in self._of("write") if e["took"] > PAUSE),
            *self._lost(),
            *sorted(lost_quorum),
        ]

    def _lost(self) -> list[str]:
        """Ids that hold something older than what was acknowledged last, or what nobody wrote."""
        writes: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._of("write"):
            writes[entry["id"]].append(entry)
        held = {e["id"]: e["value"] for e in self._of("last")}
        assert held.keys() >= writes.keys()
        found = []
        for one, asked in writes.items():
            acknowledged = max((w["value"] for w in asked if not w["error"]), default=0)
            allowed = {acknowledged, *(w["value"] for w in asked if w["value"] > acknowledged)}
            if held[one] not in allowed:
                found.append(f"lost: {one} holds {held[one]}; {acknowledged} was acknowledged")
        return found

    def _summary(self) -> str:
        longest = {what: max((e["took"] for e in self._of(what)), default=0) for what in ("write", "read", "search")}
        counts = ", ".join(f"{len(self._of(what))} {what}s, the longest {took:.1f} s" for what, took in longest.items())
        said = dict.fromkeys(i for e in self.reports() for i in (e["health"], *e["issues"]))
        return f"{counts}; the cluster said: {list(said)}"

    def _asked(self) -> list[Entry]:
        return [e for e in self._entries if "who" in e]

    def _of(self, what: str) -> list[Entry]:
        return [e for e in self._entries if e["what"] == what]


def is_whole(report: Entry) -> bool:
    """Whether every shard has all its copies, where they should be."""
    return report["health"] == "healthy" and not any(
        report["shards"][k] for k in ("under_replicated", "unavailable", "moving")
    )
