"""The port for clients: routes, and what wraps them."""

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from veccluster.errors import Unavailable
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster_node.http import metrics, negotiation, problems
from veccluster_node.http.routes import Api
from veccluster_node.node import DataNode
from veccluster_node.peer.messages import ShardReport

MAX_LINE_SIZE = 64 << 10
"""Bytes of a request's first line, with a filter in its query string, and of one header, with tokens of many shards."""


async def start(node: DataNode, spec: VecClusterSpec, limits: Limits, *, shutdown_timeout: float) -> web.AppRunner:
    """The application, ready to be given a socket; `shutdown_timeout` is what requests under way get at the end."""
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
    return runner


def build(node: DataNode, spec: VecClusterSpec, limits: Limits, connections: "_Connections") -> web.Application:
    """The aiohttp application."""
    api = Api(node, spec, limits, spec.tuning.batch_size)
    measured = metrics.Metrics(_Observed(node))
    wrapped_in = [measured.middleware(), problems.middleware, connections.middleware(), negotiation.compress]
    app = web.Application(middlewares=wrapped_in, client_max_size=0)  # bodies are bounded where they are read
    collection = "/v1/collections/{name:[^/]+}"  # any text, also with braces: the handlers judge it
    vector = f"{collection}/vectors/{{id:[^/]+}}"
    app.add_routes(
        [
            web.put(collection, api.create),
            web.get("/v1/collections", api.collections),
            web.get(collection, api.collection),
            web.delete(collection, api.delete_collection),
            web.post(f"{collection}/vectors", api.upsert),
            web.post(f"{collection}/search", api.search),
            web.post(f"{collection}/count", api.count),
            web.get(f"{collection}/vectors", api.vectors),
            web.get(vector, api.vector),
            web.delete(vector, api.delete_vector),
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
    """Refuses requests on more connections than there may be, and closes them."""

    def __init__(self, most: int) -> None:
        self.server: web.Server | None = None
        self._most = most

    def middleware(self) -> Middleware:
        """The aiohttp middleware; probes are always answered."""

        @web.middleware
        async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
            crowded = self.server is not None and len(self.server.connections) > self._most
            if crowded and request.path.startswith("/v1/"):
                request.protocol.force_close()
                raise Unavailable(f"the node has {self._most} connections (maxConnections); try again, or another node")
            return await handler(request)

        return limit


class _Observed:
    """The node as its metrics see it."""

    def __init__(self, node: DataNode) -> None:
        self._node = node

    def shard_reports(self) -> Iterable[ShardReport]:
        """Every shard that the node serves."""
        return self._node.host.reports()

    def is_ready(self) -> bool:
        """Whether /readyz would say 200."""
        return self._node.why_not_ready() is None
