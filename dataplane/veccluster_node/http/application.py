"""The port for clients: routes, and what wraps them."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from veccluster.errors import Unavailable
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import ShardId
from veccluster_node.http import metrics, negotiation, problems
from veccluster_node.http.routes import Api
from veccluster_node.measures import Measures
from veccluster_node.node import DataNode
from veccluster_node.peer.messages import ShardReport
from veccluster_node.storage.surroundings import Standing

MAX_LINE_SIZE = 64 << 10
"""Bytes of a request's first line, with a filter in its query string, and of one header, with tokens of many shards."""


LAST_CALL = 0.5
"""Seconds in which clients that keep connections open are told to leave them, by the answer to what they ask."""


@dataclass(frozen=True)
class ClientPort:
    """The application, ready to be given a socket."""

    runner: web.AppRunner
    _connections: "_Connections"
    _shutdown_timeout: float

    async def close(self) -> None:
        """Answer what is under way, and what still comes meanwhile (/readyz with 503); then close every connection."""
        await self._connections.drain(self._shutdown_timeout)
        await self.runner.cleanup()


async def start(node: DataNode, spec: VecClusterSpec, limits: Limits, *, shutdown_timeout: float) -> ClientPort:
    """The port, not bound yet; `shutdown_timeout` is what requests under way get at the end."""
    connections = _Connections(spec.tuning.max_connections)
    app = build(node, spec, limits, connections)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=shutdown_timeout,
        auto_decompress=negotiation.AIOHTTP_INFLATES,
        max_line_size=MAX_LINE_SIZE,
        max_field_size=MAX_LINE_SIZE,
    )
    await runner.setup()
    connections.server = runner.server
    return ClientPort(runner, connections, shutdown_timeout)


def build(node: DataNode, spec: VecClusterSpec, limits: Limits, connections: "_Connections") -> web.Application:
    """The aiohttp application."""
    api = Api(node, spec, limits, spec.tuning.batch_size)
    measured = metrics.Metrics(_Observed(node))
    wrapped_in = [measured.middleware(), problems.middleware, connections.middleware(), negotiation.compress]
    app = web.Application(middlewares=wrapped_in, client_max_size=0)  # bodies are bounded where they are read
    app.on_response_prepare.append(connections.say_goodbye)
    collection = "/v1/collections/{name:[^/]+}"  # any text, also with braces: the handlers judge it
    vector = f"{collection}/vectors/{{id:[^/]+}}"
    app.add_routes(
        [
            web.put(collection, api.create),
            web.get("/v1/collections", api.collections),
            web.get(collection, api.collection),
            web.delete(collection, api.delete_collection),
            web.post(f"{collection}/shards/{{number:[^/]+}}/recover", api.recover),
            web.post(f"{collection}/vectors", api.upsert),
            web.post(f"{collection}/search", api.search),
            web.post(f"{collection}/count", api.count),
            web.get(f"{collection}/vectors", api.vectors),
            web.get(vector, api.vector),
            web.delete(vector, api.delete_vector),
            web.post(f"{collection}/vectors/get", api.get_vectors),
            web.post(f"{collection}/vectors/delete", api.delete_vectors),
            web.get("/v1/cluster", api.cluster),
            web.get("/healthz", api.healthz),
            web.get("/readyz", api.readyz),
            web.get("/metrics", measured.answer),
            web.get("/openapi.json", api.document),
        ]
    )
    return app


class _Connections:
    """Refuses requests on more connections than there may be, and closes them; at the end closes all, one by one."""

    def __init__(self, most: int) -> None:
        self.server: web.Server | None = None
        self._most = most
        self._under_way = 0
        self._draining = False

    def middleware(self) -> Middleware:
        """The aiohttp middleware; probes are always answered."""

        @web.middleware
        async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
            crowded = self.server is not None and len(self.server.connections) > self._most
            if crowded and request.path.startswith("/v1/"):
                request.protocol.force_close()
                raise Unavailable(f"the node has {self._most} connections (maxConnections); try again, or another node")
            self._under_way += 1
            try:
                return await handler(request)
            finally:
                self._under_way -= 1

        return limit

    async def say_goodbye(self, _: web.Request, response: web.StreamResponse) -> None:
        """With each answer of a node that stops: this connection is closed."""
        if self._draining:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    async def drain(self, timeout: float) -> None:
        """Answer each connection once more and close it; returns when none is left or it has waited for long enough.

        A connection that is closed while a request is on its way to it costs the client that request.
        """
        self._draining = True
        last_call = time.monotonic() + LAST_CALL
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._is_awaited(last_call):  # noqa: ASYNC110 - aiohttp tells nobody that a connection is gone
                    await asyncio.sleep(0.02)

    def _is_awaited(self, last_call: float) -> bool:
        assert self.server is not None
        return bool(self.server.connections) and (self._under_way > 0 or time.monotonic() < last_call)


class _Observed:
    """The node as its metrics see it."""

    def __init__(self, node: DataNode) -> None:
        self._node = node

    def shard_reports(self) -> Iterable[ShardReport]:
        """Every shard that the node serves."""
        return self._node.host.reports()

    def standings(self) -> Mapping[ShardId, Standing]:
        """Where every open replica stands."""
        return self._node.host.standings()

    def measures(self) -> Measures:
        """What is counted where it happens."""
        return self._node.host.measures

    def is_ready(self) -> bool:
        """Whether /readyz would say 200."""
        return self._node.why_not_ready() is None
