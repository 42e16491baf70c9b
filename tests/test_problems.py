"""Errors and bodies on a real aiohttp server: problem documents, media types, compression, and garbage."""

import asyncio
import gzip
import json
import resource
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from veccluster.errors import InvalidRequest, ShardsUnavailable, from_problem
from veccluster_node.http import negotiation, problems
from veccluster_node.http.negotiation import ARROW, JSON, NDJSON, PROBLEM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 1 << 20


async def echo(request: web.Request) -> web.Response:
    """The body, as the type that the client accepts."""
    negotiation.check_content_type(request, JSON, NDJSON)
    accept = negotiation.choose(request, JSON, ARROW)
    body = await negotiation.read_body(request, LIMIT)
    return web.Response(body=body, content_type=accept, headers={"Operation": negotiation.operation_id(request)})


async def measure(request: web.Request) -> web.Response:
    """The length of a body of any length, and its largest piece."""
    sizes = [len(chunk) async for chunk in negotiation.body_chunks(request)]
    return web.json_response({"length": sum(sizes), "largest": max(sizes, default=0)})


async def fail(request: web.Request) -> web.Response:
    errors = {
        "invalid": InvalidRequest.field("k", "must be at least 1, is 0"),
        "surrogate": InvalidRequest.field("\udfff", "must be text"),
        "shards": ShardsUnavailable("shard 3 is away", missing_shards=[3]),
        "bug": ZeroDivisionError("secret"),
    }
    raise errors[request.match_info["how"]]


@asynccontextmanager
async def server() -> AsyncIterator[aiohttp.ClientSession]:
    app = web.Application(middlewares=[problems.middleware, negotiation.compress], client_max_size=0)
    app.add_routes([web.post("/echo", echo), web.post("/measure", measure), web.get("/fail/{how}", fail)])
    inflates = negotiation.AIOHTTP_INFLATES
    runner = web.AppRunner(app, access_log=None, auto_decompress=inflates, lingering_time=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession(base, auto_decompress=False) as session:
            yield session
    finally:
        await runner.cleanup()


# ---- problems --------------------------------------------------------------------------------------------------------


async def test_our_errors_are_problem_documents_that_become_the_same_error_again() -> None:
    async with server() as session:
        async with session.get("/fail/invalid") as reply:
            assert (reply.status, reply.content_type) == (400, PROBLEM)
            problem = json.loads(await reply.read())
        assert problem["errors"] == [{"field": "k", "reason": "must be at least 1, is 0"}]
        assert isinstance(from_problem(problem), InvalidRequest)
        async with session.get("/fail/shards") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert json.loads(await reply.read())["missing_shards"] == [3]
        async with session.get("/fail/surrogate") as reply:
            assert reply.status == 400
            assert json.loads(await reply.read())["errors"][0]["field"] == "\udfff"


async def test_what_nobody_foresaw_is_an_incident_without_its_inside(capsys: pytest.CaptureFixture[str]) -> None:
    async with server() as session, session.get("/fail/bug") as reply:
        assert (reply.status, reply.content_type) == (500, PROBLEM)
        text = (await reply.read()).decode()
    assert "secret" not in text
    assert "ZeroDivision" not in text
    incident = json.loads(text)["incident"]
    logged = "".join(capsys.readouterr())
    assert incident in logged
    assert "secret" in logged


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/nothing", 404, "there is no /nothing"),
        ("GET", "/echo", 405, "/echo takes POST, not GET"),
        ("PATCH", "/echo", 405, "not PATCH"),
        ("GET", "/%ff%00", 404, "there is no"),
    ],
)
async def test_what_aiohttp_refuses_is_a_problem_document(method: str, path: str, status: int, said: str) -> None:
    async with server() as session, session.request(method, path) as reply:
        assert (reply.status, reply.content_type) == (status, PROBLEM)
        problem = json.loads(await reply.read())
        assert said in problem["detail"]
        assert problem["status"] == status
        assert ("Allow" in reply.headers) == (status == 405)


async def exchange(session: aiohttp.ClientSession, request: bytes) -> bytes:
    """What the server answers to bytes that need not be HTTP; it closes, or says no more."""
    port = session._base_url.port if session._base_url else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(1 << 16), 5)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n",
    ],
)
async def test_garbage_gets_a_400_and_the_server_goes_on(garbage: bytes) -> None:
    async with server() as session:
        answer = await exchange(session, garbage)
        assert b" 400 " in answer.split(b"\r\n")[0]
        async with session.post("/echo", data=b"{}", headers={"Content-Type": JSON}) as reply:
            assert (reply.status, await reply.read()) == (200, b"{}")


@pytest.mark.parametrize("path", ["/echo", "/measure"])
async def test_a_body_that_stops_arriving_is_given_up(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(negotiation, "PATIENCE", 0.05)
    monkeypatch.setattr(negotiation, "WHOLE", 0.05)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n"
    async with server() as session:
        answer = await exchange(session, head.encode() + b"{}")
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"the body arrives too slowly, or has stopped" in answer


async def test_a_body_that_is_read_whole_may_not_trickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "WHOLE", 0.3)

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(500):
            yield b" "
            await asyncio.sleep(0.02)

    async with (
        server() as session,
        session.post("/echo", data=trickle(), headers={"Content-Type": JSON}) as reply,
    ):
        assert (reply.status, reply.content_type) == (408, PROBLEM)


async def test_an_expectation_that_nobody_knows_is_refused() -> None:
    async with server() as session:
        answer = await exchange(session, b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 0\r\n\r\n")
        assert b" 417 " in answer.split(b"\r\n")[0]


# ---- media types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (ARROW, ARROW),
        (f"{JSON};q=0.5, {ARROW}", ARROW),
        (f"{JSON};q=0.5, {ARROW};q=0.4", JSON),
        (f"*/*;q=0.1, {ARROW};q=0.2", ARROW),
        (f"*/*, {JSON};q=0", ARROW),
        ("Application/JSON; charset=utf-8", JSON),
        (f"text/html, {ARROW};q=0.001", ARROW),
        ("text/html", None),
        (f"{JSON};q=0", None),
        (f"{JSON};q=7", None),
        (";;,,q=1", None),
    ],
)
async def test_the_reply_is_what_accept_likes_best(accept: str | None, expected: str | None) -> None:
    headers = {"Content-Type": JSON} | ({} if accept is None else {"Accept": accept})
    skip = ["Accept"] if accept is None else []
    async with server() as session, session.post("/echo", data=b"{}", headers=headers, skip_auto_headers=skip) as reply:
        assert reply.content_type == (expected or PROBLEM)
        if expected is None:
            assert reply.status == 406
            assert json.loads(await reply.read())["available"] == [JSON, ARROW]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (JSON, 200),
        ("APPLICATION/json ; charset=UTF-8", 200),
        ('application/json; charset="utf-8"', 200),
        (NDJSON, 200),
        ("application/json; charset=latin-1", 415),
        ("application/x-www-form-urlencoded", 415),
        ("json", 415),
        ("", 415),
    ],
)
async def test_bodies_of_other_types_are_refused(kind: str, status: int) -> None:
    async with server() as session, session.post("/echo", data=b"{}", headers={"Content-Type": kind}) as reply:
        assert reply.status == status


async def test_operation_ids_are_handed_on_or_refused() -> None:
    async with server() as session:
        for given, status in (("abc-1", 200), ("x" * 128, 200), ("x" * 129, 400), ("a b", 400), ("", 400)):
            headers = {"Content-Type": JSON, "Operation-Id": given}
            async with session.post("/echo", data=b"{}", headers=headers) as reply:
                assert reply.status == status
                assert status == 400 or reply.headers["Operation"] == given
        async with session.post("/echo", data=b"{}", headers={"Content-Type": JSON}) as reply:
            assert len(reply.headers["Operation"]) == 32


# ---- compression -----------------------------------------------------------------------------------------------------

TEXT = b'{"a": "' + b"hello " * 1000 + b'"}'
GZIPPED = gzip.compress(TEXT, mtime=0)  # no time in it, so that every test process names its cases alike


def with_window(log: int) -> bytes:
    """A zstd frame that asks for 2^log bytes of memory to be inflated."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
    return packer.compress(TEXT) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", GZIPPED),
        ("GZip", GZIPPED),
        ("x-gzip", GZIPPED),
        ("zstd", zstd.compress(TEXT)),
        ("zstd", with_window(23)),
        ("identity", TEXT),
        ("identity, gzip", GZIPPED),
    ],
)
async def test_compressed_requests_are_inflated(encoding: str, body: bytes) -> None:
    async with server() as session:
        headers = {"Content-Type": JSON, "Content-Encoding": encoding}
        async with session.post("/echo", data=body, headers=headers, skip_auto_headers=["Accept-Encoding"]) as reply:
            assert (reply.status, await reply.read()) == (200, TEXT)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", GZIPPED[:30], 400, "it is cut off"),
        ("gzip", GZIPPED[:-1], 400, "it is cut off"),
        ("zstd", zstd.compress(TEXT)[:-1], 400, "it is cut off"),
        ("gzip", GZIPPED[:-8] + b"\0" * 8, 400, "incorrect data check"),
        ("gzip", TEXT, 400, "is not what Content-Encoding says, gzip"),
        ("zstd", TEXT, 400, "is not what Content-Encoding says, zstd"),
        ("gzip", GZIPPED + b"more", 400, "bytes follow its end"),
        ("zstd", zstd.compress(TEXT) + b"more", 400, "bytes follow its end"),
        ("zstd", with_window(27), 400, "requires too much memory"),
        ("deflate", zlib.compress(TEXT), 415, "Content-Encoding must be gzip or zstd, is deflate"),
        ("br", TEXT, 415, "Content-Encoding must be gzip or zstd, is br"),
        ("gzip, zstd", TEXT, 415, "Content-Encoding must be gzip or zstd"),
    ],
)
async def test_bodies_that_are_not_what_their_encoding_says_are_refused(
    encoding: str, body: bytes, status: int, said: str
) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}
    async with server() as session, session.post("/echo", data=body, headers=headers) as reply:
        assert reply.status == status
        assert said in (await reply.read()).decode(errors="replace")


async def test_a_bomb_is_refused_at_the_limit_and_costs_no_memory() -> None:
    zeros = bytes(1 << 20)
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([packer.compress(zeros) for _ in range(300)]) + packer.flush()
    async with server() as session:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with session.post(
            "/echo", data=bomb, headers={"Content-Type": JSON, "Content-Encoding": "gzip"}
        ) as reply:
            assert reply.status == 413
            assert b"at most 1048576 bytes, after decompression" in await reply.read()
        async with session.post("/measure", data=bomb, headers={"Content-Encoding": "gzip"}) as reply:
            said = json.loads(await reply.read())
        assert said["length"] == 300 << 20
        assert said["largest"] <= negotiation.PIECE
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < 50 << 20


async def test_bodies_over_the_limit_are_refused_whether_they_say_so_or_not() -> None:
    async def unsaid() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(100_000)

    async with server() as session:
        for body in (bytes(LIMIT + 1), unsaid()):
            async with session.post("/echo", data=body, headers={"Content-Type": JSON}) as reply:
                assert (reply.status, reply.content_type) == (413, PROBLEM)
        async with session.post("/echo", data=bytes(LIMIT), headers={"Content-Type": JSON}) as reply:
            assert reply.status == 200


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.5", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        (None, None),
    ],
)
async def test_large_replies_are_compressed_as_the_client_likes(accept: str | None, encoding: str | None) -> None:
    headers = {"Content-Type": JSON} | ({} if accept is None else {"Accept-Encoding": accept})
    skip = ["Accept-Encoding"] if accept is None else []
    async with server() as session:
        async with session.post("/echo", data=TEXT, headers=headers, skip_auto_headers=skip) as reply:
            body = await reply.read()
            assert reply.headers.get("Content-Encoding") == encoding
            assert reply.headers["Vary"] == "Accept-Encoding"
            assert int(reply.headers["Content-Length"]) == len(body)
        unpack = {"gzip": gzip.decompress, "zstd": zstd.decompress, None: bytes}[encoding]
        assert unpack(body) == TEXT
        async with session.post("/echo", data=b"{}", headers=headers, skip_auto_headers=skip) as reply:
            assert "Content-Encoding" not in reply.headers
