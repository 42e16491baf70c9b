"""The port for clients: routes, and what wraps them."""

import asyncio
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from veccluster.errors import Unavailable
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import ShardId
from veccluster_node.http import abandoned, metrics, negotiation, problems
from veccluster_node.http.routes import Api
from veccluster_node.http.web_pages import WebPages
from veccluster_node.node.data_node import DataNode
from veccluster_node.replica.ports import Standing
from veccluster_node.runtime.budget import Budget
from veccluster_node.runtime.door import Door, DoorSite
from veccluster_node.runtime.metrics import Measures
from veccluster_node.service.shard_service import ShardReport

MAX_LINE_SIZE = 64 << 10
"""Bytes of a request's first line, with a filter in its query string, and of one header, with tokens of many shards."""


LAST_CALL = 0.5
"""Seconds in which clients that keep connections open are told to leave them, by the answer to what they ask."""


LINGERING = 5.0
"""Seconds for which the rest of a body is taken after an answer that did not need it, so that the answer is read."""

ALWAYS = frozenset(
    {"/v1/cluster", "/v1/collections", "/v1/collections/{name}", "/healthz", "/readyz", "/metrics", "/openapi.json"}
)
"""Routes that are answered on every connection that is heard: with them people and the operator keep a cluster up."""


@dataclass(frozen=True)
class ClientPort:
    """The application, ready to be given a socket."""

    runner: web.AppRunner
    door: Door
    _connections: "_Connections"
    _shutdown_timeout: float

    async def listen(self, listener: socket.socket) -> None:
        """Take connections."""
        await DoorSite(self.runner, listener, self.door).start()

    async def close(self) -> None:
        """Answer what is under way, and what still comes meanwhile (/readyz with 503); then close every connection."""
        await self._connections.drain(self._shutdown_timeout)
        await self.runner.cleanup()


@dataclass(frozen=True)
class Entrance:
    """What every request passes before anything of it is carried out."""

    door: Door
    budget: Budget
    pages: WebPages = field(default_factory=WebPages)

    @classmethod
    def of(cls, spec: VecClusterSpec, *, connections: int, memory: int, hosts: Collection[str] | None) -> "Entrance":
        """For a node that may have so many connections and use so many bytes, asked by these names if only by some."""
        known = None if hosts is None else {*hosts, *spec.tuning.allowed_hosts}
        return cls(
            Door(connections),
            Budget.of_memory(memory),
            WebPages(frozenset(spec.tuning.cors.origins), known),
        )


async def start(
    node: DataNode, spec: VecClusterSpec, limits: Limits, entrance: Entrance, *, shutdown_timeout: float
) -> ClientPort:
    """The port, not bound yet; `shutdown_timeout` is what requests under way get at the end."""
    connections = _Connections(entrance.door)
    app = build(node, spec, limits, entrance, connections)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=shutdown_timeout,
        lingering_time=0,  # see `_linger`
        auto_decompress=negotiation.AIOHTTP_INFLATES,
        max_line_size=MAX_LINE_SIZE,
        max_field_size=MAX_LINE_SIZE,
    )
    await runner.setup()
    return ClientPort(runner, entrance.door, connections, shutdown_timeout)


def build(
    node: DataNode, spec: VecClusterSpec, limits: Limits, entrance: Entrance, connections: "_Connections | None" = None
) -> web.Application:
    """The aiohttp application."""
    api = Api(node, spec, limits, spec.tuning.batch_size)
    measured = metrics.Metrics(_Observed(node))
    connections = connections or _Connections(entrance.door)
    wrapped_in = [
        abandoned.middleware,
        measured.middleware(),
        entrance.door.watch(),
        _whole_answers(entrance.budget),
        entrance.pages.label(),
        problems.middleware,
        entrance.pages.check(),
        connections.limit(),
        negotiation.compress,
    ]
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


def _whole_answers(budget: Budget) -> Middleware:
    """Keep what a request has taken of the budget until its answer is on the way, and not only until it is there."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        with budget.ticket() as ticket:
            request[negotiation.TICKET] = ticket
            response = await handler(request)
            await response.prepare(request)
            await response.write_eof()
        await _linger(request)
        return response

    return answer


async def _linger(request: web.Request) -> None:
    """Take what is still to come of a body that the answer did not need: who is cut off may never read the answer."""
    with suppress(TimeoutError, web.RequestPayloadError):
        async with asyncio.timeout(LINGERING):
            while not request.content.is_eof():
                await request.content.readany()


class _Connections:
    """Refuses requests on more connections than there may be, and closes them; at the end closes all, one by one."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._draining = False

    def limit(self) -> Middleware:
        """The aiohttp middleware; probes and what keeps a cluster going are always answered."""

        @web.middleware
        async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
            route = request.match_info.route.resource
            may_wait = route is not None and route.canonical not in ALWAYS
            if may_wait and not self._door.has_room():
                raise Unavailable(
                    f"the node has {self._door.most} connections, as many as it may (maxConnections); "
                    "nothing was done: try again, or another node"
                )
            return await handler(request)

        return limit

    async def say_goodbye(self, _: web.Request, response: web.StreamResponse) -> None:
        """With each answer of a node that stops or is crowded: this connection is closed."""
        if self._draining or self._door.is_crowded:
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
        return len(self._door) > 0 and (self._door.under_way > 0 or time.monotonic() < last_call)


class _Observed:
    """The node as its metrics see it."""

    def __init__(self, node: DataNode) -> None:
        self._node = node

    def shard_reports(self) -> Iterable[ShardReport]:
        """Every shard that the node serves."""
        return self._node.status.reports()

    def standings(self) -> Mapping[ShardId, Standing]:
        """Where every open replica stands."""
        return self._node.status.standings()

    def measures(self) -> Measures:
        """What is counted where it happens."""
        return self._node.host.measures

    def is_ready(self) -> bool:
        """Whether /readyz would say 200."""
        return self._node.why_not_ready() is None
