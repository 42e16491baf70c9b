"""A server that misbehaves on demand, and remembers what it was asked."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from veccluster import errors

CLOSING = web.AppKey("closing", asyncio.Event)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Faulty:
    """A server that gives the scripted answers in order, the last one again and again, and remembers the requests."""

    script: list[Answer]
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    runner: web.AppRunner | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, str(request.rel_url), dict(request.headers), await request.read()))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await answer(request)

    async def left_alone(self) -> None:
        """Until no connection is open any more."""
        assert self.runner is not None and self.runner.server is not None
        while self.runner.server.connections:  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(0.01)

    def headers(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, _, headers, _ in self.requests]


@asynccontextmanager
async def faulty(*script: Answer):
    server = Faulty(list(script))
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", server.handle)
    app[CLOSING] = asyncio.Event()
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.runner = runner
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        app[CLOSING].set()
        await runner.cleanup()


def gives(body: dict, status: int = 200, **headers: str) -> Answer:
    async def answer(request):
        kind = "application/problem+json" if status >= 400 else "application/json"
        return web.json_response(body, status=status, headers=headers, content_type=kind)

    return answer


def refuses(error: errors.VecClusterError, **headers: str) -> Answer:
    return gives(error.problem(), error.status, **headers)


async def cuts_before_answering(request):
    request.transport.abort()
    return web.Response()


async def cuts_mid_reply(request):
    reply = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await reply.prepare(request)
    await reply.write(b'{"upserted": ')
    request.transport.abort()
    return reply


async def hangs(request):
    await request.app[CLOSING].wait()
    return web.Response()


BUSY = refuses(errors.Unavailable("too busy"), **{"Retry-After": "0"})
STORED = gives({"upserted": 1, "token": ""})
