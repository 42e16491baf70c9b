"""The data plane as the operator asks it: over HTTP, like any client, at whichever node answers."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from veccluster.errors import Unreachable, VecClusterError, from_problem

PATIENCE = 4.0
"""Seconds for an answer about the state of the cluster."""
CREATION_PATIENCE = 20.0
"""Seconds for the creation of a collection, which is answered when its shards are served."""


class DataPlane:
    """The HTTP interface of clusters; `servers` are URLs of nodes of one, asked in turn until one answers."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def cluster(self, servers: Sequence[str]) -> Mapping[str, Any]:
        """What `GET /v1/cluster` says; `Unreachable` when no node answers."""
        return await self._ask("GET", servers, "/v1/cluster")

    async def collections(self, servers: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Every collection, as it was created."""
        reply = await self._ask("GET", servers, "/v1/collections")
        found: Sequence[Mapping[str, Any]] = reply["collections"]
        return found

    async def collection(self, servers: Sequence[str], name: str) -> Mapping[str, Any]:
        """One collection with its count."""
        return await self._ask("GET", servers, f"/v1/collections/{name}")

    async def create(self, servers: Sequence[str], name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Create a collection; `Conflict` when there is one that differs."""
        return await self._ask("PUT", servers, f"/v1/collections/{name}", options, CREATION_PATIENCE)

    async def delete(self, servers: Sequence[str], name: str) -> None:
        """Delete a collection with all its vectors; `CollectionNotFound` when there is none."""
        await self._ask("DELETE", servers, f"/v1/collections/{name}", patience=CREATION_PATIENCE)

    async def _ask(
        self,
        method: str,
        servers: Sequence[str],
        path: str,
        body: Mapping[str, Any] | None = None,
        patience: float = PATIENCE,
    ) -> Mapping[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64, force_close=True))
        why = "there is no node to ask yet"
        until = time.monotonic() + patience
        for server in servers:
            # What changes something is waited for once, at whichever node: the next one would wait for the same.
            left = patience if method == "GET" else max(until - time.monotonic(), 0.1)
            timeout = aiohttp.ClientTimeout(total=left, sock_connect=1.0)
            data = None if body is None else orjson.dumps(body)
            headers = {"Content-Type": "application/json"} if body is not None else {}
            try:
                async with self._session.request(
                    method, server + path, data=data, headers=headers, timeout=timeout
                ) as response:
                    return _answer(response.status, await response.read())
            except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
                why = f"{server}: {_words(error)}"
        raise Unreachable(f"no node of the cluster answers: {why}")


def _words(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be connected to ({os.strerror(error.errno) if error.errno else error.os_error})"
    return "gave no answer in time" if isinstance(error, TimeoutError) else f"gave no answer ({error})"


def _answer(status: int, raw: bytes) -> Mapping[str, Any]:
    """The reply; the error that it describes otherwise."""
    if status < 400:
        reply: Mapping[str, Any] = orjson.loads(raw) if raw else {}
        return reply
    error: VecClusterError = from_problem(orjson.loads(raw))
    raise error
