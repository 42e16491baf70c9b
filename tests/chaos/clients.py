"""Clients that write and read through the HTTP interface, each one thing at a time, and enter it all in the history.

A write that gets no answer is sent again under its operation id, to another node, until the client's patience ends;
what is unknown then stays so. Whatever a reply says of a value is checked against its vector, so that halves of two
writes would show.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np

from chaos.history import History, Outcome, Read, Write
from chaos.linearizability import Value
from veccluster.decisions import hashing
from veccluster.model import token

COLLECTION = "chaos"
DIMENSION = 8
GROUP = 6
"""Ids that one search looks for."""
READ_LEVELS = ("strong", "strong", "strong", "quorum", "session", "eventual")
WRITE_LEVELS = (None, None, "one", "quorum", "all")


def vector_of(value: int) -> list[float]:
    """A vector that tells which write it is from."""
    chance = np.random.default_rng(value)
    return [float(x) for x in chance.standard_normal(DIMENSION).astype(np.float32)]


@dataclass
class Load:
    """What the clients of a cycle do, and what they share."""

    urls: Sequence[str]
    history: History
    prefix: str
    shards: int
    groups: int = 5
    clients: int = 6
    pause: float = 0.01
    """Seconds between two operations of a client, on average."""
    attempt: float = 4.0
    """Seconds after which a request is given up."""
    patience: Sequence[float] = (0.0, 1.0, 12.0)
    """Seconds after which a write is not sent again: one of these."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def ids(self, group: int) -> list[str]:
        return [f"{self.prefix}{group}-{i}" for i in range(GROUP)]

    def all_ids(self) -> list[str]:
        return [one for group in range(self.groups) for one in self.ids(group)]


class Client:
    """One client; `session` holds the tokens of all that it was told."""

    def __init__(self, number: int, load: Load, http: aiohttp.ClientSession, seed: str) -> None:
        self.name = f"{load.prefix}c{number}"
        self.load = load
        self.http = http
        self.chance = random.Random(f"{seed} {number}")
        self.positions: token.Positions = {}
        self.asked = 0
        self.backoff = 0.3
        """Most seconds before a write is sent again."""

    async def run(self) -> None:
        """Until the load is stopped."""
        doings: Sequence[Callable[[], Awaitable[object]]] = (self.write, self.delete, self.get, self.search)
        while not self.load.stopped.is_set():
            await self.chance.choices(doings, (5, 2, 6, 2))[0]()
            await asyncio.sleep(self.chance.expovariate(1 / self.load.pause))

    # Writing

    async def write(self, ids: Sequence[str] | None = None) -> list[Write]:
        """Store an id, or several of one group."""
        group = self.chance.randrange(self.load.groups)
        ids = ids or self.chance.sample(self.load.ids(group), self.chance.choice([1, 1, 1, 3]))
        values = [self.load.history.next_value() for _ in ids]
        vectors = [
            {"id": i, "vector": vector_of(v), "metadata": {"value": v, "group": i.rpartition("-")[0]}}
            for i, v in zip(ids, values, strict=True)
        ]
        return await self._write("/vectors", {"vectors": vectors}, dict(zip(ids, values, strict=True)), "stored")

    async def delete(self) -> list[Write]:
        """Delete an id."""
        one = self.chance.choice(self.load.ids(self.chance.randrange(self.load.groups)))
        return await self._write("/vectors/delete", {"ids": [one]}, {one: None}, "deleted")

    def patience(self) -> float:
        return self.chance.choice(self.load.patience)

    async def _write(self, path: str, body: object, values: dict[str, Value], done: str) -> list[Write]:
        """Send a write until its outcome is known or patience ends."""
        history, level = self.load.history, self.chance.choice(WRITE_LEVELS)
        self.asked += 1
        operation, start = f"{self.name}.{self.asked}", history.now()
        writes = [history.begin(Write(i, v, self.name, level, operation, start)) for i, v in values.items()]
        path += f"?consistency={level}" if level else ""
        ends = time.monotonic() + self.patience()
        stored, uncertain = set[str](), set[str]()
        while True:
            status, reply = await self._send("POST", path, body, {"Operation-Id": operation})
            certain, open_ = _outcomes(status, reply, [w.id for w in writes], done)
            stored |= certain
            uncertain |= open_
            if status == 200 or time.monotonic() > ends or 400 <= status < 500:
                break
            await asyncio.sleep(self.chance.uniform(0.02, self.backoff))
        self._settle(writes, stored, uncertain, reply)
        return writes

    def _settle(self, writes: Sequence[Write], stored: set[str], uncertain: set[str], reply: dict[str, Any]) -> None:
        history = self.load.history
        places = self._seen(reply.get("token"))
        for write in writes:
            if write.id in stored:
                write.shard, (write.epoch, write.seq) = self._place(write.id, places)
                if write.value is None and "deleted" in reply:
                    write.found = bool(reply["deleted"])
                history.settle(write, Outcome.stored)
            else:
                history.settle(write, Outcome.unknown if write.id in uncertain else Outcome.refused)
            history.requests[f"write {write.outcome}"] += 1

    def _place(self, one: str, places: token.Positions) -> tuple[int | None, tuple[int | None, int | None]]:
        number = int(hashing.shards_of([one], hashing.starts(self.load.shards))[0])
        found = {shard.number: position for shard, position in places.items()}
        return (number, found[number]) if number in found else (None, (None, None))

    # Reading

    async def get(self, one: str | None = None, level: str | None = None, url: str | None = None) -> Read | None:
        """Look at one id."""
        one = one or self.chance.choice(self.load.ids(self.chance.randrange(self.load.groups)))
        level = level or self.chance.choice(READ_LEVELS)
        start = self.load.history.now()
        path = f"/vectors/{quote(one, safe='')}?consistency={level}"
        status, reply = await self._send("GET", path, headers=self._session(), url=url)
        if status not in (200, 404):
            self.load.history.requests["get failed"] += 1
            return None
        value = self.value_of(reply) if status == 200 else None
        self.load.history.requests["get"] += 1
        self._seen(reply.get("token"))
        read = Read(one, value, self.name, level, start, self.load.history.now())
        self.load.history.saw(read)
        return read

    async def search(self) -> None:
        """Look for the ids of a group: exactly, which shows each of them or that it is not there, or by the graph."""
        group, level = self.chance.randrange(self.load.groups), self.chance.choice(READ_LEVELS)
        exact, start = self.chance.random() < 0.7, self.load.history.now()
        body = {"vector": vector_of(self.chance.randrange(99)), "k": GROUP + 4, "exact": exact, "consistency": level}
        body |= {"include": ["metadata", "vector"], "filter": {"group": f"{self.load.prefix}{group}"}}
        status, reply = await self._send("POST", "/search", body, self._session())
        if status != 200:
            self.load.history.requests["search failed"] += 1
            return
        self.load.history.requests["search"] += 1
        self._seen(reply["token"])
        end = self.load.history.now()
        hits = {hit["id"]: self.value_of(hit) for hit in reply["results"]}
        if len(hits) != len(reply["results"]):
            self.load.history.wrong.append(f"a search showed an id twice: {reply['results']}")
        for one in {*hits, *(self.load.ids(group) if exact else ())}:
            self.load.history.saw(Read(one, hits.get(one), self.name, level, start, end, "search"))

    def value_of(self, shown: dict[str, Any]) -> int:
        """Which write a vector is from; its numbers and its metadata must be of the same."""
        value = int(shown["metadata"]["value"])
        if not np.array_equal(np.float32(shown["vector"]), np.float32(vector_of(value))):
            self.load.history.wrong.append(f"{shown['id']} has the metadata of write {value} and another's vector")
        return value

    # Both

    def _session(self) -> dict[str, str]:
        return {token.HEADER: token.encode(self.positions)} if self.positions else {}

    def _seen(self, said: str | None) -> token.Positions:
        places = token.decode(said) if said else {}
        self.positions = token.merge([self.positions, places])
        return places

    async def _send(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, url: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask some node; status 0 when nobody knows what became of it, 1 when no connection was made."""
        url = (url or self.chance.choice(self.load.urls)) + f"/v1/collections/{COLLECTION}{path}"
        timeout = aiohttp.ClientTimeout(total=self.load.attempt, sock_connect=1.0)
        try:
            async with self.http.request(method, url, json=body, headers=headers, timeout=timeout) as reply:
                said = json.loads(await reply.read())
                said.setdefault("token", reply.headers.get(token.HEADER))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return 1, {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 0, {}
        if reply.status in (400, 500) or (reply.status == 404 and "vector-not-found" not in said.get("type", "")):
            self.load.history.wrong.append(f"{method} {url} was answered {reply.status}: {said.get('detail')}")
        return reply.status, said


def _outcomes(status: int, reply: dict[str, Any], ids: Sequence[str], done: str) -> tuple[set[str], set[str]]:
    """Which of the ids an answer calls stored (or deleted), and of which it leaves open what became of them."""
    if status == 200:
        return set(ids), set()
    if status in (503, 507, 504) and f"not_{done}" in reply:
        unknown = set(reply[f"maybe_{done}"])
        return set(ids) - unknown - set(reply[f"not_{done}"]), unknown
    return set(), set() if status in (1, 503, 507) else set(ids)
