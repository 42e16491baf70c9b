"""Asking a node about its shards: by a direct call when it is this one, over HTTP otherwise.

What can go wrong is sorted here, because only here is it known: a refused connection means that nothing happened; a
connection lost after sending means that nobody knows. A write that nobody knows of is asked again with its operation
id, which the primary applies once; only when that fails too does the caller learn `OutcomeUnknown`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import aiohttp
import msgspec

from veccluster.errors import OutcomeUnknown, Unavailable, from_problem
from veccluster.model.state import Node, NodeId
from veccluster_node.peer import connections
from veccluster_node.peer.messages import AnyRequest, DeleteIds, DeleteWhere, Problem, R, Reply, Request, Upsert
from veccluster_node.peer.proofs import Introductions, Secret

PATH = "/peer/v1"
MEDIA_TYPE = "application/vnd.msgpack"
PAUSE_BETWEEN_TRIES = 0.1

Handler = Callable[[AnyRequest], Awaitable[Reply]]


class NothingListens(Unavailable):
    """The node's machine answered, and no process takes connections there: the node's own has ended, or not begun."""


class _NotAdmitted(Unavailable):
    """The node does not know that this is one of its cluster, or not yet."""


class Peers:
    """The way to every node of the cluster."""

    def __init__(self, me: NodeId, here: Handler, members: Callable[[], Mapping[NodeId, Node]], secret: Secret) -> None:
        self._me = me
        self._introductions = Introductions(me, secret)
        self._here = here
        self._members = members
        self._session: aiohttp.ClientSession | None = None

    async def call(self, node: NodeId, request: Request[R], *, timeout: float) -> R:
        """The answer of `node` within `timeout` seconds.

        Raises what the node answered with; `Unavailable` if it cannot be reached, `NothingListens` if that is because
        its process is not there; `OutcomeUnknown` if a write was sent and no answer came.
        """
        if node == self._me:
            return cast("R", await self._here(cast("AnyRequest", request)))
        member = self._members().get(node)
        if member is None:
            raise Unavailable(f"node {node} is not a member of the cluster")
        body = msgspec.msgpack.encode(request)
        is_write = isinstance(request, Upsert | DeleteIds | DeleteWhere)
        raw = await self._post(member, body, timeout=timeout, is_write=is_write)
        return cast("R", msgspec.msgpack.decode(raw, type=type(request).reply))

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, member: Node, body: bytes, *, timeout: float, is_write: bool) -> bytes:
        deadline = time.monotonic() + timeout
        maybe_done = False
        while True:
            left, sent = deadline - time.monotonic(), False
            try:
                async with asyncio.timeout(max(left, 0.001)):
                    proof = await self._introductions.to(member, self._connections())
                    sent = True
                    return await self._post_once(member, body, proof)
            except _NotAdmitted as error:  # nothing was done
                self._introductions.refused(member)
                if time.monotonic() + PAUSE_BETWEEN_TRIES >= deadline:
                    raise (_unknown(member, error) if maybe_done else error) from None
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if maybe_done:
                    raise _unknown(member, error) from error
                why = NothingListens if connections.is_refused(error) else Unavailable
                raise why(f"node {member.id} ({member.peer_address}) cannot be reached: {error}") from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                maybe_done = maybe_done or (is_write and sent)
                if time.monotonic() + PAUSE_BETWEEN_TRIES >= deadline:
                    if maybe_done:
                        raise _unknown(member, error) from error
                    raise Unavailable(f"node {member.id} gave no answer within {timeout:g} s: {error!r}") from error
            await asyncio.sleep(PAUSE_BETWEEN_TRIES)

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = connections.session()
        return self._session

    async def _post_once(self, member: Node, body: bytes, proof: Mapping[str, str]) -> bytes:
        url, headers = connections.url(member, PATH), {"Content-Type": MEDIA_TYPE, **proof}
        async with self._connections().post(url, data=body, headers=headers) as response:
            raw = await response.read()
            if response.status in {401, 403}:
                raise _NotAdmitted(f"node {member.id} does not let this one in: {raw.decode(errors='replace')}")
            if response.status != 200:
                raise from_problem(msgspec.msgpack.decode(raw, type=Problem))
            return raw


def _unknown(member: Node, error: Exception) -> OutcomeUnknown:
    return OutcomeUnknown(f"node {member.id} was sent the write and gave no answer: {error!r}")
