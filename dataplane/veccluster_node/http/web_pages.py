"""Requests of web pages: which are answered, and what browsers are told (CORS)."""

from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from veccluster.decisions import web_pages
from veccluster.errors import Forbidden, NotFound
from veccluster.model import token
from veccluster_node.http.negotiation import OPERATION_HEADER

SENT = ", ".join(("Content-Type", "Content-Encoding", OPERATION_HEADER, token.HEADER))
"""Headers that a page may send beside those that any may."""
READ = ", ".join((token.HEADER, "Cursor", "Retry-After"))
"""Headers of answers that a page may read beside those that any may."""
GOOD_FOR = "600"
"""Seconds for which a browser need not ask again whether it may."""


@dataclass(frozen=True, slots=True)
class WebPages:
    """Which pages may ask, and by which names."""

    origins: Collection[str] = ()
    hosts: Collection[str] | None = None
    """None: by any."""

    def check(self) -> Middleware:
        """The aiohttp middleware that refuses what no page may send, and answers OPTIONS. Put it inside `label`'s."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if why := web_pages.refusal(_asked(request), origins=self.origins, hosts=self.hosts):
                raise Forbidden(why)
            return self._options(request) if request.method == hdrs.METH_OPTIONS else await handler(request)

        return check

    def label(self) -> Middleware:
        """The aiohttp middleware that lets a page read its answer, errors too. Put it around the one for errors."""

        @web.middleware
        async def label(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if self.origins:
                response.headers.add(hdrs.VARY, hdrs.ORIGIN)
            if web_pages.allows(origin := request.headers.get(hdrs.ORIGIN), origins=self.origins):
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = str(origin)
                response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = READ
            return response

        return label

    def _options(self, request: web.Request) -> web.Response:
        """What a path takes; to a browser that asks before it sends, also what the page may send."""
        why = request.match_info.http_exception
        if not isinstance(why, web.HTTPMethodNotAllowed):
            raise NotFound(f"there is no {request.path}; /openapi.json lists what there is")
        methods = ", ".join(sorted({*why.allowed_methods, hdrs.METH_OPTIONS}))
        response = web.Response(status=204, headers={hdrs.ALLOW: methods})
        asks_before = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if asks_before and web_pages.allows(request.headers.get(hdrs.ORIGIN), origins=self.origins):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = methods
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = SENT
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = GOOD_FOR
            if request.headers.get("Access-Control-Request-Private-Network") == "true":
                response.headers["Access-Control-Allow-Private-Network"] = "true"
        return response


def _asked(request: web.Request) -> web_pages.Asked:
    said = request.headers
    return web_pages.Asked(
        method=request.method,
        host=said.get(hdrs.HOST),
        origin=said.get(hdrs.ORIGIN),
        site=said.get("Sec-Fetch-Site"),
        mode=said.get("Sec-Fetch-Mode"),
    )
