"""The operator's own port: liveness, readiness and metrics. Nothing here can change anything."""

from collections.abc import Callable

from aiohttp import web

from veccluster_operator.adapters.metrics import Metrics

STALE = 300.0
"""Seconds without a success after which the operator is to be restarted."""


async def serve(port: int, metrics: Metrics, ready: Callable[[], bool]) -> web.AppRunner:
    """Listen on every address of the pod; the caller cleans the runner up."""

    async def healthz(_: web.Request) -> web.Response:
        age = metrics.success_age()
        body = {"status": "ok" if age < STALE else "stale", "last_success_age_seconds": round(age, 1)}
        return web.json_response(body, status=200 if age < STALE else 503)

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ready" if ready() else "starting"}, status=200 if ready() else 503)

    async def text(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", text)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
