"""A client that goes away: what it only wanted to look at is stopped, what it wanted to change is carried out."""

from aiohttp import web
from aiohttp.typedefs import Handler

from veccluster_node.runtime.shielded import to_its_end

_READS = ("/search", "/count")
"""How the paths of requests end that only look although they are POST."""


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost: aiohttp cancels the handlers of clients that are gone (`handler_cancellation`)."""
    if only_looks(request.method, request.path):
        return await handler(request)
    return await to_its_end(handler(request))


def only_looks(method: str, path: str) -> bool:
    """Whether a request changes nothing."""
    return method in {"GET", "HEAD"} or (method == "POST" and path.endswith(_READS))
