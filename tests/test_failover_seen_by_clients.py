"""A client that asks again sees nothing of a failover of a few seconds: not when it reads, not when it writes.

Client, HTTP and coordinators are ours and real; the replicas behind them die and stand still on demand.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Self, cast

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from support.replicas import UUID, FakeCluster
from veccluster import AsyncClient, errors
from veccluster.model import token
from veccluster.model.cluster import ClusterState
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import ReadConsistency, ShardId, WriteConsistency
from veccluster_node.http import application
from veccluster_node.peer import messages as m
from veccluster_node.runtime.metrics import Measures

FAILOVER = 1.5
"""Seconds until another node is primary."""


class Front:
    """A node as its clients see it: the port for clients, with a coordinator behind it."""

    def __init__(self, number: int, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.id = f"n{number}"
        self.coordinator = cluster.coordinator(number, read_timeout=10, write_timeout=30)
        self.settings = SimpleNamespace(query_timeout=10.0)
        self.host = SimpleNamespace(measures=Measures())
        self.url = ""
        self.opening = list
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._runner: web.AppRunner | None = None

    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    async def __aenter__(self) -> Self:
        node, spec = cast("Any", self), VecClusterSpec(nodes=3)
        app = application.build(
            node, spec, Limits(), application.Entrance.of(spec, connections=64, memory=1 << 30, hosts=None)
        )

        @web.middleware
        async def stand_still(request: web.Request, handler: Handler) -> web.StreamResponse:
            await self._goes_on.wait()
            return await handler(request)

        app.middlewares.insert(0, stand_still)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._goes_on.set()
        await self.die()

    async def die(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    def stand_still(self) -> None:
        self._goes_on.clear()


@asynccontextmanager
async def fronts() -> AsyncIterator[tuple[FakeCluster, list[Front]]]:
    async with FakeCluster() as cluster:
        made = [Front(number, cluster) for number in range(3)]
        async with made[0], made[1], made[2]:
            yield cluster, made


@pytest.mark.parametrize("fault", ["dies", pytest.param("stands still", marks=pytest.mark.e2e)])
@pytest.mark.parametrize("level", list(ReadConsistency))
async def test_a_client_sees_nothing_of_a_failover(fault: str, level: ReadConsistency) -> None:
    async with fronts() as (cluster, nodes):
        stop = asyncio.Event()
        urls = [node.url for node in nodes]
        async with AsyncClient(urls, timeout=12) as writer, AsyncClient(urls[1:] + urls[:1], timeout=12) as reader:

            async def write() -> list[str]:
                stored = []
                for number in itertools.count():
                    ids = [f"{number}-{i}" for i in range(6)]
                    assert (await writer.upsert("c", ids, np.zeros((6, 1)))).upserted == 6
                    stored += ids
                    if stop.is_set():
                        return stored
                raise AssertionError

            reads: list[int] = []

            async def read() -> None:
                while not stop.is_set():
                    assert not (await reader.search("c", [0.0], k=3, consistency=level)).partial
                    reads.append(len(reads))

            work = asyncio.gather(write(), read())
            await cluster.until(lambda: len(cluster.done) > 20)
            if fault == "dies":
                await asyncio.gather(cluster.nodes[1].die(), nodes[1].die())
            else:
                cluster.nodes[1].stand_still()
                nodes[1].stand_still()
            await asyncio.sleep(FAILOVER)
            cluster.lease_ends(1)
            cluster.record(1, [2, 0])
            before = len(cluster.done), len(reads)
            await cluster.until(lambda: len(cluster.done) > before[0] + 20 and len(reads) > before[1] + 20)
            stop.set()
            stored, _ = await work
        assert set(stored) == set().union(*cluster.rows.values())
        assert sum(cluster.seqs.values()) == len(stored), "nothing was carried out twice"


async def test_requests_over_http_say_their_level_or_the_collections() -> None:
    async with fronts() as (cluster, nodes), AsyncClient(nodes[0].url) as client, aiohttp.ClientSession() as plain:
        url = f"{nodes[0].url}/v1/collections/c/vectors"
        for level in WriteConsistency:
            body = {"vectors": [{"id": str(i), "vector": [1]} for i in range(9)]}
            async with plain.post(url, params={"consistency": level}, json=body) as reply:
                assert reply.status == 200
            async with plain.post(f"{url}/delete", params={"consistency": level}, json={"ids": ["1"]}) as reply:
                assert reply.status == 200
            async with plain.delete(f"{url}/2", params={"consistency": level}) as reply:
                assert reply.status == 200
            assert _levels(cluster) == {level}
        await client.upsert("c", ["a"], [[1.0]])
        assert _levels(cluster) == {cluster.collection.write_consistency}
        for read in (ReadConsistency.eventual, ReadConsistency.session, ReadConsistency.strong):
            await client.search("c", [1.0], consistency=read)
            await client.get("c", "a", consistency=read)
            async with plain.post(url.replace("vectors", "count"), json={"consistency": read}) as reply:
                assert reply.status == 200
            assert _levels(cluster) == {read}
        await client.search("c", [1.0])
        await client.count("c")
        assert _levels(cluster) == {cluster.collection.read_consistency}


def _levels(cluster: FakeCluster) -> set[str]:
    """What was asked for since the last call."""
    told = {r.level for node in cluster.nodes for r in node.requests}
    for node in cluster.nodes:
        node.requests.clear()
    return told


async def test_a_page_shows_the_vectors_of_all_its_ids_wherever_they_are_read() -> None:
    async with fronts() as (cluster, nodes), aiohttp.ClientSession() as plain:
        ids = cluster.fill(2)
        url = f"{nodes[0].url}/v1/collections/c/vectors?consistency=strong"
        async with plain.get(url) as reply:
            assert sorted(ids) == [v["id"] for v in (await reply.json())["vectors"]]
            seen = token.decode(reply.headers[token.HEADER])
        assert seen == {ShardId(UUID, n): (1, 2) for n in range(3)}
        seen_by_number = dict.fromkeys(range(3), (1, 2))
        (get,) = [r for node in cluster.nodes for r in node.asked(m.Get)]
        assert get.at_least == seen_by_number and get.level is ReadConsistency.session


async def test_a_refusal_asks_the_client_to_come_back() -> None:
    async with fronts() as (cluster, nodes), aiohttp.ClientSession() as plain:
        cluster.nodes[1].refuses[1] = errors.TooFewReplicas("1 is in sync, 2 are asked for")
        ids = cluster.ids(1)
        body = {"vectors": [{"id": i, "vector": [1]} for i in ids]}
        async with plain.post(f"{nodes[0].url}/v1/collections/c/vectors", json=body) as reply:
            said = await reply.json()
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert said["type"].endswith("/too-few-replicas")
        assert said["upserted"] == 2 and len(said["not_stored"]) == 1 and said["missing_shards"] == [1]
