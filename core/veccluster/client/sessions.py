"""Remember what this client has seen, so that it reads its own writes ("session" consistency)."""

import threading

from veccluster.model import token as tokens


class Sessions:
    """One merged token for each collection; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tokens.Positions] = {}

    def headers(self, collection: str) -> dict[str, str]:
        """What a request about the collection carries."""
        with self._lock:
            seen = self._seen.get(collection)
        return {tokens.HEADER: tokens.encode(seen)} if seen else {}

    def learn(self, collection: str, token: str | None) -> None:
        """Take in the token of a reply; the shards of an earlier collection of this name are forgotten."""
        if not token:
            return
        new = tokens.decode(token)
        current = {shard.collection for shard in new}
        with self._lock:
            known = {s: p for s, p in self._seen.get(collection, {}).items() if s.collection in current}
            self._seen[collection] = tokens.merge([known, new])

    def forget(self, collection: str) -> None:
        """The collection is gone."""
        with self._lock:
            self._seen.pop(collection, None)
