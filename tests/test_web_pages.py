"""No web page writes to, deletes from or reads a cluster unless the cluster's file names its origin."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import numpy as np
import pytest

from test_door import Port, port
from veccluster import AsyncClient
from veccluster.decisions.web_pages import Asked, refusal
from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecClusterSpec
from veccluster.model.support import unsupported
from veccluster_node.http.web_pages import WebPages
from veccluster_node.runtime.config import Etcd, NodeConfig

EVIL, APP = "https://evil.example", "https://app.example"
JSON = "application/json"
FORBIDDEN = "https://veccluster.io/problems/forbidden"


@pytest.fixture
async def served() -> AsyncIterator[Port]:
    """The port of a node on the loopback, which the pages of one origin may use; its collection holds `a`."""
    async with port(pages=WebPages(frozenset({APP}), frozenset({"db.example"}))) as made:
        async with AsyncClient(made.url) as client:
            await client.upsert("c", ["a"], np.zeros((1, 1)))
        yield made


async def ask(
    served: Port, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
) -> tuple[int, Mapping[str, str], Any]:
    """An answer to exactly these headers."""
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.request(method, served.url + path, data=body, headers=headers) as reply,
    ):
        text = await reply.read()
        return reply.status, reply.headers, await reply.json(content_type=None) if text else None


UPSERT = b'{"vectors": [{"id": "evil", "vector": [1]}]}'
REQUESTS = [
    ("POST", "/v1/collections/c/vectors", UPSERT),
    ("POST", "/v1/collections/c/vectors/delete", b'{"ids": ["a"]}'),
    ("POST", "/v1/collections/c/search", b'{"vector": [0]}'),
    ("POST", "/v1/collections/c/count", b"{}"),
    ("PUT", "/v1/collections/evil", b'{"dimension": 1, "metric": "l2"}'),
    ("POST", "/v1/collections/c/shards/0/recover", b"{}"),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_a_body_must_say_what_it_is(served: Port, method: str, path: str, body: bytes) -> None:
    simple = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    for kind in (None, *simple):
        status, _, said = await ask(served, method, path, body, {"Content-Type": kind} if kind else {})
        assert status == 415, kind
        assert "Content-Type must be" in said["detail"] and JSON in said["detail"]
    assert await ids(served) == ["a"]


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:3000", f"{APP}:444", "http://app.example"])
async def test_pages_of_other_origins_do_nothing_here(served: Port, origin: str) -> None:
    for method, path, body in (*REQUESTS, ("DELETE", "/v1/collections/c/vectors/a", None), ("GET", "/healthz", None)):
        status, headers, said = await ask(served, method, path, body, {"Content-Type": JSON, "Origin": origin})
        assert (status, said["type"]) == (403, FORBIDDEN)
        assert "tuning.cors.origins" in said["detail"] and origin in said["detail"]
        assert "Access-Control-Allow-Origin" not in headers
    assert await ids(served) == ["a"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8001", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8001", 200),
        ("127.3.2.1", 200),
        ("[::1]:8001", 200),
        ("db.example:8001", 200),
        ("db.example.", 200),
        ("evil.example:8001", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.7:8001", 403),
        ("db.example:8001:1", 403),
    ],
)
async def test_on_the_loopback_a_node_is_asked_by_its_own_names(served: Port, host: str, status: int) -> None:
    found, _, said = await ask(served, "GET", "/v1/collections/c/vectors/a", headers={"Host": host})
    assert found == status
    if status == 403:
        assert said["type"] == FORBIDDEN and "tuning.allowedHosts" in said["detail"]


async def test_a_page_whose_origin_is_named_asks_before_it_sends_and_reads_the_answer(served: Port) -> None:
    before = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,operation-id",
    }
    status, said, _ = await ask(served, "OPTIONS", "/v1/collections/c/vectors", headers=before)
    assert status == 204
    assert said["Access-Control-Allow-Origin"] == APP
    assert said["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS, POST" == said["Allow"]
    assert said["Access-Control-Allow-Headers"] == "Content-Type, Content-Encoding, Operation-Id, Session-Token"
    assert "Origin" in said["Vary"]
    body = b'{"vectors": [{"id": "b", "vector": [1]}]}'
    status, said, _ = await ask(
        served, "POST", "/v1/collections/c/vectors", body, {"Content-Type": JSON, "Origin": APP}
    )
    assert (status, said["Access-Control-Allow-Origin"]) == (200, APP)
    assert "Session-Token" in said["Access-Control-Expose-Headers"]
    status, said, _ = await ask(served, "GET", "/nothing", headers={"Origin": APP})  # it may read what went wrong, too
    assert (status, said["Access-Control-Allow-Origin"]) == (404, APP)


async def test_options_without_an_origin_says_what_a_path_takes(served: Port) -> None:
    status, said, _ = await ask(served, "OPTIONS", "/v1/collections/c/vectors/a")
    assert (status, said["Allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
    assert "Access-Control-Allow-Origin" not in said
    assert (await ask(served, "OPTIONS", "/nothing"))[0] == 404
    asks = {"Origin": EVIL, "Access-Control-Request-Method": "DELETE"}
    status, said, _ = await ask(served, "OPTIONS", "/v1/collections/c/vectors/a", headers=asks)
    assert status == 403
    assert not [name for name in said if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (Asked(method="GET"), False),
        (Asked(method="POST", site="none"), False),
        (Asked(method="POST", site="same-origin", origin="http://localhost:1", host="localhost:1"), False),
        (Asked(method="POST", site="cross-site"), True),
        (Asked(method="GET", site="cross-site", mode="no-cors"), True),
        (Asked(method="GET", site="same-site", mode="cors"), True),
        (Asked(method="GET", site="cross-site", mode="navigate"), False),  # somebody follows a link
        (Asked(method="POST", site="cross-site", mode="navigate"), True),  # a form
        (Asked(method="POST", site="cross-site", origin=APP), False),
        (Asked(method="GET", host="anything.example"), True),
    ],
)
def test_what_gives_a_page_away(asked: Asked, refused: bool) -> None:
    assert (refusal(asked, origins={APP}, hosts=()) is not None) == refused


def test_only_a_node_on_the_loopback_cares_for_the_name_by_which_it_is_asked() -> None:
    def known(listen: str, advertise: str | None = None) -> frozenset[str] | None:
        config = NodeConfig(cluster="c", data_dir="d", listen=listen, advertise=advertise, etcd=Etcd(endpoints=()))
        return config.known_hosts()

    assert known("127.0.0.1:8001") == known("[::1]:8001") == known("localhost:8001") == frozenset()
    assert known("127.0.0.1:8001", "My-Laptop") == {"my-laptop"}
    assert known("0.0.0.0:8001", "demo-0") is None
    assert refusal(Asked(method="GET", host="demo.default.svc:8001"), origins=(), hosts=None) is None


@pytest.mark.parametrize(
    "origin",
    ["*", "app.example", "https://app.example/", "https://App.example", "https://a.example:x", "https://", "null"],
)
def test_an_origin_that_is_none_is_refused_by_name(origin: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        VecClusterSpec.parse({"tuning": {"cors": {"origins": [origin]}}}, "spec")
    assert refused.value.errors[0]["field"] == "spec.tuning.cors.origins[0]"
    assert "scheme://host" in refused.value.errors[0]["reason"]


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000", "http://[::1]:3000", "chrome-extension://abcdef"])
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    spec = VecClusterSpec.parse({"tuning": {"cors": {"origins": [origin]}, "allowedHosts": ["db.example"]}})
    assert spec.tuning.cors.origins == (origin,)
    assert not unsupported(spec, "local") and not unsupported(spec, "kubernetes")


async def ids(served: Port) -> list[str]:
    async with AsyncClient(served.url) as client:
        return [vector.id async for vector in client.iterate("c")]
