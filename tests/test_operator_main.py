"""The operator's process before it works: it waits for its CRDs, whatever the API server says meanwhile."""

import asyncio

import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration

from veccluster_operator import main
from veccluster_operator.adapters.kube import KubeApi
from veccluster_operator.adapters.metrics import Metrics
from veccluster_operator.main import _are_defined

GROUP, CLUSTERS, COLLECTIONS = "veccluster.io", "vecclusters", "veccollections"


class ApiServer:
    """Says which kinds it knows, over HTTP; `defined` and `broken` may change at any time."""

    def __init__(self):
        self.defined, self.broken, self.asked = set(), False, asyncio.Condition()

    async def groups(self, _):
        async with self.asked:
            self.asked.notify_all()
        if self.broken:
            return web.json_response({"message": "etcdserver: request timed out"}, status=500)
        return web.json_response({"groups": [{"name": "apps"}, *([{"name": GROUP}] if self.defined else [])]})

    async def kinds(self, _):
        return web.json_response({"resources": [{"name": name} for name in sorted(self.defined)]})

    async def is_asked(self, times=2):
        """It has been asked so often from now on, so at least once since what it says was changed."""
        async with self.asked:
            for _ in range(times):
                await asyncio.wait_for(self.asked.wait(), 5)


@pytest.fixture
async def server():
    return ApiServer()


@pytest.fixture
async def api(server, monkeypatch):
    monkeypatch.setattr(main, "DEFINITIONS_EVERY", 0.02)
    app = web.Application()
    app.add_routes([web.get("/apis", server.groups), web.get(f"/apis/{GROUP}/v1alpha1", server.kinds)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, port = runner.addresses[0]
    api = KubeApi(ApiClient(Configuration(host=f"http://127.0.0.1:{port}")), lambda _: None)
    yield api
    await api.close()
    await runner.cleanup()


async def test_an_operator_waits_for_both_of_its_kinds_and_is_well_meanwhile(server, api):
    metrics, stopped = Metrics(), asyncio.Event()
    waiting = asyncio.create_task(_are_defined(api, metrics, stopped))
    for known in (set(), {CLUSTERS}, {COLLECTIONS}):
        server.defined = known
        metrics._last_success -= 1000
        await server.is_asked()
        assert not waiting.done(), known
        assert metrics.success_age() < 100, "or its liveness probe would restart it"
    server.broken = True
    await server.is_asked()
    server.defined = {CLUSTERS, COLLECTIONS}
    await server.is_asked()
    assert not waiting.done(), "what the API server does not answer is not known"
    server.broken = False
    assert await asyncio.wait_for(waiting, 5)


async def test_an_operator_that_waits_for_its_kinds_ends_when_told_to(server, api):
    stopped = asyncio.Event()
    waiting = asyncio.create_task(_are_defined(api, Metrics(), stopped))
    await server.is_asked()
    stopped.set()
    assert not await asyncio.wait_for(waiting, 5)
