"""Write and read all the time, in a pod of the node's image, and say what came of it, until stdin ends.

    python recorder.py SERVER COLLECTION       prints JSON, an entry a line; seconds are of this process

Each id has one writer, which counts up: so any client can tell that what it is shown is older than what it knows.
Everything is asked with the Python client as anybody would: default levels, default timeout, its retries.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from veccluster import AsyncClient
from veccluster.errors import VecClusterError, VectorNotFound

WRITERS, READERS, IDS = 3, 2, 20
PAUSE, GLANCE = 0.1, 0.4
"""Seconds between two requests of a client, and between two looks at the cluster's health."""


def say(what: str, **entry: Any) -> None:
    """One line for the test."""
    print(json.dumps({"what": what, **entry}), flush=True)


class Worker:
    """One client, with a session of its own."""

    def __init__(self, name: str, client: AsyncClient, collection: str) -> None:
        self.name, self.client, self.collection = name, client, collection
        self.known: dict[str, int] = {}
        """The newest value of each id that this client has stored or been shown."""

    async def write(self, one: str, value: int) -> None:
        """Store the next value of an id."""

        async def stored() -> dict[str, Any]:
            vector = [float(1 + value % 7), float(1 + value % 5), 1.0]
            await self.client.upsert(self.collection, [one], [vector], [{"value": value}])
            self.known[one] = value
            return {}

        await self._told("write", stored, id=one, value=value)

    async def read(self, one: str) -> None:
        """Look at an id; `least` is what its value must be at least."""
        least = self.known.get(one, 0)

        async def shown() -> dict[str, Any]:
            value = await self.value(one)
            self.known[one] = max(least, value)
            return {"value": value}

        await self._told("read", shown, id=one, least=least)

    async def value(self, one: str, consistency: str | None = None) -> int:
        """What an id holds; 0 if nothing."""
        try:
            found = await self.client.get(self.collection, one, consistency=consistency)
        except VectorNotFound:
            return 0
        return int(found.metadata["value"])

    async def search(self) -> None:
        """Search for anything."""

        async def found() -> dict[str, Any]:
            return {"hits": len((await self.client.search(self.collection, [1.0, 2.0, 3.0], k=3)).hits)}

        await self._told("search", found)

    async def _told(self, what: str, ask: Callable[[], Awaitable[dict[str, Any]]], **entry: Any) -> None:
        asked, error = time.monotonic(), None
        try:
            entry |= await ask()
        except VecClusterError as raised:
            error = f"{type(raised).__name__}: {raised}"
        say(what, who=self.name, asked=asked, took=time.monotonic() - asked, error=error, **entry)


async def writing(worker: Worker, stopped: asyncio.Event) -> None:
    """Store, and look whether it is there."""
    for value in itertools.count(1):
        if stopped.is_set():
            return
        one = f"{worker.name}-{value % IDS}"
        await worker.write(one, value)
        await worker.read(one)
        await asyncio.sleep(PAUSE)


async def reading(worker: Worker, stopped: asyncio.Event) -> None:
    """Look at what others have stored, and search."""
    while not stopped.is_set():
        await worker.read(random.choice(ids()))
        await worker.search()
        await asyncio.sleep(PAUSE)


async def watching(client: AsyncClient, stopped: asyncio.Event) -> None:
    """What the cluster says of itself, by whoever answers."""
    while not stopped.is_set():
        at = time.monotonic()
        try:
            info = await client.cluster(timeout=5)
        except VecClusterError:
            continue
        details = info.details
        say("cluster", at=at, **{k: details[k] for k in ("health", "issues", "shards", "leader")})
        await asyncio.sleep(GLANCE)


def ids() -> list[str]:
    """All that is written."""
    return [f"w{n}-{i}" for n in range(WRITERS) for i in range(IDS)]


async def main(server: str, collection: str) -> None:
    """Until stdin ends; then what each id holds."""
    stopped = asyncio.Event()
    names = [f"w{n}" for n in range(WRITERS)] + [f"r{n}" for n in range(READERS)]
    clients = [AsyncClient([server]) for _ in (*names, "watching")]
    workers = [Worker(name, client, collection) for name, client in zip(names, clients, strict=False)]
    running = [
        asyncio.create_task((writing if w.name.startswith("w") else reading)(w, stopped), name=w.name) for w in workers
    ]
    running.append(asyncio.create_task(watching(clients[-1], stopped)))
    await asyncio.to_thread(sys.stdin.read)
    stopped.set()
    await asyncio.gather(*running)
    for one in ids():
        say("last", id=one, value=await workers[0].value(one, "strong"))
    for client in clients:
        await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
