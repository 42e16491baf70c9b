"""The peer port: answers what other nodes ask about the shards of this one."""

import msgspec
import structlog
from aiohttp import web

from veccluster.errors import VecClusterError
from veccluster_node.peer.client import MEDIA_TYPE, PATH, Handler
from veccluster_node.peer.messages import AnyRequest

MAX_BODY = 512 * 1024 * 1024
"""A coordinator's own limits are far below; this only bounds what a stranger could send."""

log = structlog.get_logger()
_decoder = msgspec.msgpack.Decoder(AnyRequest)


def application(handler: Handler) -> web.Application:
    """The aiohttp application of the peer port."""

    async def answer(request: web.Request) -> web.Response:
        try:
            message = _decoder.decode(await request.read())
        except msgspec.DecodeError as error:
            return _packed({"title": "Not a message between nodes", "detail": str(error)}, status=400)
        try:
            return _packed(await handler(message))
        except VecClusterError as error:
            return _packed(error.problem(), status=error.status)
        except Exception:  # the other node must get an answer it can read, whatever broke here
            log.exception("peer_request_failed", message=type(message).__name__)
            problem = VecClusterError(f"the node failed while it handled {type(message).__name__}; see its log")
            return _packed(problem.problem(), status=problem.status)

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post(PATH, answer)
    return app


def _packed(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(value), status=status, content_type=MEDIA_TYPE)
