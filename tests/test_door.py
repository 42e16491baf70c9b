"""What is asked of a node at its door: connections that ask nothing, bodies that grow, answers that nobody reads."""

import asyncio
import gzip
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import web

from support import cluster as clusters
from support.http import JSON, call, collection
from support.replicas import FakeCluster
from test_failover_seen_by_clients import Front
from veccluster import AsyncClient, errors
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import NodeId
from veccluster_node.http import application, negotiation
from veccluster_node.http.web_pages import WebPages
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import PATH
from veccluster_node.peer.proofs import Doorkeeper, Secret
from veccluster_node.peer.server import PeerPort
from veccluster_node.runtime import budget, door

MIB = 1 << 20


@dataclass
class Port:
    """The port for clients of a real node, in this process."""

    number: int
    door: door.Door
    budget: budget.Budget

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.number)

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named = {"Content-Type": "application/json"} | named
        async with (
            aiohttp.ClientSession(headers=named) as session,
            session.request(method, self.url + path, data=body) as reply,
        ):
            return reply.status, await reply.json(content_type=None)


@asynccontextmanager
async def port(
    *,
    most: int = 8,
    head_time: float = 30.0,
    memory: int = 1 << 30,
    patience: float = 0.2,
    pages: WebPages | None = None,
) -> AsyncIterator[Port]:
    async with FakeCluster() as cluster:
        node, settings = cast("Any", Front(0, cluster)), VecClusterSpec(nodes=3)
        node.why_not_ready = lambda: None
        shared = budget.Budget(memory, patience=patience)
        entrance = application.Entrance(door.Door(most, head_time=head_time), shared, pages or WebPages())
        served = await application.start(node, settings, Limits(), entrance, shutdown_timeout=0.1)
        listener = socket.create_server(("127.0.0.1", 0))
        await served.listen(listener)
        try:
            yield Port(listener.getsockname()[1], entrance.door, entrance.budget)
        finally:
            await served.close()


async def until(true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - sockets tell nobody
            await asyncio.sleep(0.01)
    assert true(), what


HEAD = "POST /v1/collections/c/vectors HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


# ---- connections -----------------------------------------------------------------------------------------------------


async def test_connections_that_ask_nothing_are_closed_and_those_that_stop_within_a_head_are_told() -> None:
    async with port(head_time=0.3) as served:
        silent, _ = await served.connect()
        halting, writer = await served.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: loc")
        async with asyncio.timeout(10):
            assert await silent.read() == b""
            said = await halting.read()
        assert said.startswith(b"HTTP/1.1 408 ") and b"the head of the request did not arrive" in said
        assert len(served.door) == 0


async def test_a_connection_between_two_requests_is_kept() -> None:
    async with port(head_time=0.2) as served:
        reader, writer = await served.connect()
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await reader.readline()
            assert (await reader.readuntil(b"}")).endswith(b"}")
            await asyncio.sleep(0.6)  # longer than a head may take


@pytest.mark.parametrize("young", [0.0, 1000.0])
async def test_silent_connections_shut_nobody_out(monkeypatch: pytest.MonkeyPatch, young: float) -> None:
    monkeypatch.setattr(door, "YOUNG", young)
    async with port(most=8) as served:
        silent = [await served.connect() for _ in range(100)]
        async with AsyncClient(served.url, timeout=10) as client:
            await client.upsert("c", ["a"], np.zeros((1, 1)))
            assert (await served.ask("GET", "/healthz"))[0] == 200
            assert len((await client.search("c", np.zeros(1))).hits) == 1
        assert len(served.door) <= 8
        for _, writer in silent:
            writer.close()


async def busy(served: Port, count: int) -> list[asyncio.StreamWriter]:
    """Requests whose bodies are still to come, one a connection."""
    writers: list[asyncio.StreamWriter] = []
    for _ in range(count):
        _, writer = await served.connect()
        writer.write(f"{HEAD}Content-Length: 9\r\n\r\n".encode())
        writers.append(writer)  # one after the other: one that has asked nothing yet makes room
        await until(lambda: sum(g.is_busy for g in served.door.guards) == len(writers), "it to be under way")
    return writers


async def test_beyond_the_limit_a_write_is_refused_in_words_and_known_not_to_be_stored() -> None:
    async with port(most=8) as served:
        writers = await busy(served, 8)
        async with AsyncClient(served.url, timeout=1) as client:
            for rows in (1, 20_000):  # also where the body is larger than what fits into the sockets
                with pytest.raises(errors.Unavailable, match=r"8 connections, as many as it may \(maxConnections\)"):
                    await client.upsert("c", [f"a{i}" for i in range(rows)], np.zeros((rows, 1)), batch_rows=rows)
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/v1/collections/NO", 400)):
            assert (await served.ask("GET", path))[0] == status
        for writer in writers:
            writer.close()
        async with AsyncClient(served.url, timeout=10) as client:
            assert await client.count("c") == 0


async def test_beyond_all_limits_connections_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MARGIN", 2)
    async with port(most=8) as served:
        writers = await busy(served, 10)
        async with AsyncClient(served.url, timeout=1) as client:
            with pytest.raises(errors.Unavailable, match="no room for another connection"):
                await client.upsert("c", ["a"], np.zeros((1, 1)))
        for writer in writers:
            writer.close()


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "GRACE", 0.3)
    monkeypatch.setattr(door, "LOOK_EVERY", 0.05)
    ended = asyncio.Event()

    async def large(request: web.Request) -> web.StreamResponse:
        try:
            response = web.Response(body=bytes(64 * MIB))
            await response.prepare(request)
            await response.write_eof()
            return response
        finally:
            ended.set()

    app = web.Application()
    app.add_routes([web.get("/large", large)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await door.DoorSite(runner, listener, door.Door(8)).start()
    address = listener.getsockname()
    try:
        _, writer = await asyncio.open_connection(*address, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            await ended.wait()
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{address[1]}/large") as reply:
            assert len(await reply.read()) == 64 * MIB
        writer.close()
    finally:
        await runner.cleanup()


# ---- bytes -----------------------------------------------------------------------------------------------------------


def bomb(mib: int) -> bytes:
    """A JSON upsert that is not at its end: what it inflates to is held until more comes."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(b'{"vectors": [') + packer.compress(b" " * (mib * MIB))
    return packed + packer.flush(zlib.Z_SYNC_FLUSH)


async def hold(served: Port, mib: int) -> asyncio.StreamWriter:
    """Have so many MiB of a body held."""
    _, writer = await served.connect()
    packed = bomb(mib)
    writer.write(f"{HEAD}Content-Encoding: gzip\r\nContent-Length: {len(packed) + 9}\r\n\r\n".encode() + packed)
    before = served.budget.used
    await until(lambda: served.budget.used >= before + (budget.WEIGHT * mib - 1) * MIB, "it to be held")
    return writer


async def test_bodies_together_are_bounded_and_small_requests_go_on() -> None:
    async with port(memory=40 * MIB) as served:
        first = await hold(served, 12)
        packed = gzip.compress(b'{"vectors": [' + b" " * (12 * MIB) + b"]}")
        assert len(packed) < 64 << 10
        for status, said in await asyncio.gather(
            *(served.ask("POST", "/v1/collections/c/vectors", packed, Content_Encoding="gzip") for _ in range(6))
        ):
            assert (status, said["type"]) == (503, "https://veccluster.io/problems/unavailable")
            assert "of 40 MiB, which follow from maxMemory" in said["detail"]
        assert served.budget.used < 40 * MIB
        async with AsyncClient(served.url, timeout=5) as client:
            await client.upsert("c", ["a"], np.zeros((1, 1)))
            assert len((await client.search("c", np.zeros(1))).hits) == 1
        first.close()
        await until(lambda: served.budget.used == 0, "all to be given back")
        status, said = await served.ask("POST", "/v1/collections/c/vectors", packed, Content_Encoding="gzip")
        assert (status, said["type"]) == (400, "https://veccluster.io/problems/invalid-request")


async def test_streams_take_from_the_same_budget() -> None:
    async with port(memory=40 * MIB) as served:
        first = await hold(served, 12)
        row = b'{"id": "a", "vector": [1], "metadata": {"a": "' + b"x" * 60_000 + b'"}}\n'
        kind = "application/x-ndjson"
        rows = b"".join(row.replace(b'"a"', b'"%d"' % i, 1) for i in range(200))
        status, said = await served.ask("POST", "/v1/collections/c/vectors", rows, Content_Type=kind)
        assert (status, said["upserted"]) == (503, 0)
        first.close()
        status, said = await served.ask("POST", "/v1/collections/c/vectors", rows, Content_Type=kind)
        assert (status, said["upserted"]) == (200, 200)
        await until(lambda: served.budget.used == 0, "all to be given back")


async def test_the_oldest_request_always_gets_on_and_others_as_soon_as_there_is_room() -> None:
    shared = budget.Budget(10 * MIB, patience=5)
    with shared.ticket() as old:
        await old.hold(9 * MIB)
        with shared.ticket() as young:
            waiting = asyncio.create_task(young.hold(6 * MIB))
            await asyncio.sleep(0)
            await old.hold(30 * MIB)  # it waits for nobody
            assert not waiting.done()
            await old.hold(2 * MIB)
            await waiting
            assert shared.used == 8 * MIB - 2 * budget.FREE
    assert shared.used == 0


async def test_a_request_that_finds_no_room_is_refused_after_a_moment_and_holds_nothing() -> None:
    shared = budget.Budget(10 * MIB, patience=0.05)
    with shared.ticket() as old:
        await old.hold(9 * MIB)
        with shared.ticket() as young:
            with pytest.raises(errors.Unavailable, match="holds as much of requests and answers as it may"):
                await young.hold(6 * MIB)
            await young.hold(budget.FREE)  # small ones wait for nobody
        assert shared.used == 9 * MIB - budget.FREE
    assert shared.used == 0


def test_the_budget_follows_from_the_memory() -> None:
    assert budget.Budget.of_memory(400 * MIB).most == 100 * MIB
    assert budget.Budget.of_memory(1 << 40).most == budget.MOST


# ---- shapes of queries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "numbers", "said"),
    [
        ("", 2, "queries: must be given, or else dimension: the body may be 2 vectors of 1 or others"),
        ("many=true", 2, "queries: must be given, or else dimension: the body may be 2 vectors of 1 or others"),
        ("queries=3", 6, "must be vectors of 1 numbers, the collection's dimension; the body holds 3 of 2"),
        ("queries=4", 6, "must be as many as the body holds of 1 float32 each, 6; is 4"),
        ("dimension=2", 6, "dimension: must be 1, the collection's; is 2"),
        ("dimension=1&queries=3", 6, "must be vectors of 1 numbers, the collection's dimension; the body holds 3 of 2"),
    ],
)
async def test_a_body_that_may_be_other_vectors_than_those_meant_is_refused(
    query: str, numbers: int, said: str
) -> None:
    async with port() as served:
        body = np.zeros(numbers, "<f4").tobytes()
        path = f"/v1/collections/c/search?{query}"
        status, answer = await served.ask("POST", path, body, Content_Type=negotiation.OCTETS)
        assert (status, said in answer["detail"]) == (400, True), answer


async def test_a_client_whose_queries_have_another_dimension_is_told_both() -> None:
    async with port() as served, AsyncClient(served.url) as client:
        assert len((await client.search_many("c", np.zeros((3, 1)))).results) == 3
        for wrong in (np.zeros((3, 2)), np.zeros((1, 5))):
            with pytest.raises(errors.InvalidRequest, match=rf"must be 1, the collection's; is {wrong.shape[1]}"):
                await client.search_many("c", wrong)
        with pytest.raises(errors.InvalidRequest, match="must be 1, the collection's; is 4"):
            await client.search("c", np.zeros(4))


# ---- the port for other nodes ----------------------------------------------------------------------------------------


@asynccontextmanager
async def peer_port(**options: Any) -> AsyncIterator[tuple[str, int]]:
    """A node's port for others, that says to each question how long it has been there."""

    async def answer(_: m.AnyRequest) -> m.Reply:
        return m.Pong("here")

    doorkeeper = Doorkeeper(
        NodeId("n0"), Secret(), dict, lambda: [NodeId("older")]
    )  # so that nobody has to prove itself
    served = PeerPort(
        NodeId("n0"), doorkeeper=doorkeeper, answer=answer, receive=lambda *_: None, file=lambda *_: None, **options
    )
    runner = web.AppRunner(served.application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await door.DoorSite(runner, listener, served.door).start()
    try:
        yield listener.getsockname()
    finally:
        await runner.cleanup()


async def test_silent_connections_do_not_stay_at_the_port_for_other_nodes() -> None:
    async with peer_port(door=door.Door(8, head_time=0.3)) as address:
        silent, _ = await asyncio.open_connection(*address)
        async with asyncio.timeout(10):
            assert await silent.read() == b""


async def test_questions_of_other_nodes_are_bounded_together_and_small_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "PATIENCE", 0.2)
    async with peer_port(held=4 * MIB) as address:
        first = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, writer in first:
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: n0\r\nContent-Length: {9 * MIB}\r\n\r\n".encode())
            writer.write(bytes(3 * MIB // 2))
            await writer.drain()
        answered, _ = await asyncio.wait(
            [asyncio.create_task(reader.readline()) for reader, _ in first], return_when=asyncio.FIRST_COMPLETED
        )
        assert [b" 503 " in line.result() for line in answered] == [True]
        async with aiohttp.ClientSession() as session:
            ping = msgspec.msgpack.encode(m.Ping())
            async with session.post(f"http://127.0.0.1:{address[1]}{PATH}", data=ping) as reply:
                assert reply.status == 200
        for _, writer in first:
            writer.close()


# ---- all of it on a real node ----------------------------------------------------------------------------------------


def held_by(number: int) -> int:
    """Bytes of memory that only the process of a node has."""
    usage = psutil.Process(clusters.shared().process(f"test-{number}").process.pid).memory_full_info()
    return int(usage.uss)


def test_a_thousand_silent_connections_shut_nobody_out_of_a_node():
    with collection(1) as words:
        host, number = clusters.shared().servers[0].removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(number)), timeout=10) for _ in range(1030)]
        try:
            words.upsert({"id": "a", "vector": [1]})
            assert words.search([1.0])[0]["id"] == "a"
            for path in ("/healthz", "/readyz", "/v1/cluster"):
                assert call("GET", clusters.shared().servers[0] + path).status_code == 200
        finally:
            for connection in silent:
                connection.close()


@pytest.mark.e2e
def test_twenty_small_requests_that_inflate_do_not_take_the_memory_of_a_node():
    with collection(1) as words:
        packed = gzip.compress(b'{"vectors": [' + b" " * (60 * MIB) + b"]}")
        assert len(packed) < 64 << 10
        before, most = held_by(0), 0
        with ThreadPoolExecutor(20) as threads:
            asked = [
                threads.submit(words.call, "POST", "/vectors", packed, kind=JSON, headers={"Content-Encoding": "gzip"})
                for _ in range(20)
            ]
            while not all(one.done() for one in asked):
                most = max(most, held_by(0))
                time.sleep(0.01)
        assert {one.result().status_code for one in asked} <= {400, 503}
        assert most - before < budget.MOST + 200 * MIB
        words.upsert({"id": "a", "vector": [1]})
