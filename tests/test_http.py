"""Every route of the HTTP interface on a real cluster of three nodes: plain HTTP, and the exact shape of replies."""

import gzip
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
import requests

from support import cluster as clusters
from support.http import (
    ARROW,
    JSON,
    NDJSON,
    OCTETS,
    Collection,
    arrow,
    call,
    collection,
    floats,
    ndjson,
    problem,
    read_arrow,
)
from veccluster.model import token
from veccluster.model.limits import DEFAULTS
from veccluster.model.spec import VecClusterSpec
from veccluster_node.http import application
from veccluster_node.http.openapi import ROUTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NODES = (0, 1, 2)


def server(node: int = 0) -> str:
    return clusters.shared().servers[node]


@pytest.fixture
def words():
    with collection() as made:
        yield made


@pytest.fixture(scope="module")
def hundred():
    """100 vectors on a line: `v000` to `v099` at (i, 0, 0), with `i`, its parity, and a list."""
    with collection(filterable=["i", "even"]) as made:
        rows = [
            {"id": f"v{i:03}", "vector": [i, 0, 0], "metadata": {"i": i, "even": i % 2 == 0, "tags": [f"t{i % 10}"]}}
            for i in range(100)
        ]
        made.upsert(*rows)
        yield made


def row(id_: str, *vector: float, **metadata: object) -> dict[str, object]:
    return {"id": id_, "vector": list(vector), "metadata": metadata}


# ---- routes ----------------------------------------------------------------------------------------------------------


def test_the_routes_served_are_those_of_the_document():
    spec = VecClusterSpec()
    app = application.build(
        None, spec, DEFAULTS, application.Entrance.of(spec, connections=64, memory=1 << 30, hosts=None)
    )
    served = {(r.method, r.resource.canonical) for r in app.router.routes() if r.method != "HEAD"}
    assert served == set(ROUTES)


@pytest.mark.parametrize("node", NODES)
def test_every_node_serves_the_document(node):
    reply = call("GET", f"{server(node)}/openapi.json")
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, JSON)
    paths = {(method.upper(), path) for path, methods in reply.json()["paths"].items() for method in methods}
    assert paths == set(ROUTES)


def test_a_node_says_that_it_lives_and_is_ready_and_what_it_measures():
    assert call("GET", f"{server()}/healthz").json() == {"status": "ok"}
    assert call("GET", f"{server()}/readyz").json() == {"status": "ready", "opening": []}
    metrics = call("GET", f"{server()}/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'veccluster_http_requests_total{method="GET",route="/readyz",status="200"}' in metrics.text
    assert "veccluster_node_ready 1.0" in metrics.text


def test_the_cluster_is_healthy_and_names_its_nodes(hundred):
    said = call("GET", f"{server()}/v1/cluster").json()
    assert said.keys() == {"health", "issues", "leader", "nodes", "shards", "vectors", "version"} | {
        "etcd_version",
        "etcd_went_back",
    }
    assert (said["health"], said["issues"]) == ("healthy", [])
    ids = [n["id"] for n in said["nodes"]]
    assert ids == ["test-0", "test-1", "test-2"] and said["leader"] in ids
    assert {n["state"] for n in said["nodes"]} == {"active"}
    assert said["nodes"][0].keys() == {"id", "address", "zone", "state", "version", "needed", "opening"}
    assert [f"http://{n['address']}" for n in said["nodes"]] == clusters.shared().servers
    assert said["shards"].keys() == {"total", "under_replicated", "unavailable", "moving"}
    assert said["shards"]["unavailable"] == 0 and said["shards"]["total"] >= 3
    assert said["vectors"] >= 100


def test_head_is_get_without_the_body(hundred):
    reply = hundred.call("HEAD", "/vectors/v001")
    assert (reply.status_code, reply.content) == (200, b"")
    assert hundred.call("HEAD", "/vectors/none").status_code == 404


# ---- collections -----------------------------------------------------------------------------------------------------


def test_a_collection_is_created_shown_listed_and_deleted():
    made = Collection(clusters.unique_name("life"))
    asked = {
        "dimension": 4,
        "metric": "cosine",
        "shards": 2,
        "filterable": ["pos", "a.b"],
        "index": {"m": 8, "ef_construction": 100, "ef_search": 40, "precision": "f16"},
        "read_consistency": "strong",
        "write_consistency": "all",
    }
    created = made.call("PUT", body=asked)
    assert created.status_code == 201
    shown = created.json()
    assert shown == asked | {"name": made.name, "uuid": shown["uuid"], "replication_factor": 3, "min_in_sync": 2}
    for node in NODES:
        detail = made.json("GET", node=node)
        shards = detail.pop("shard_states")
        assert detail == shown | {"count": 0, "index_state": "ready"}
        assert [s["number"] for s in shards] == [0, 1]
        for shard in shards:
            assert shard["available"] and shard["vectors"] == 0 and shard["epoch"] >= 1
            assert shard.keys() == {
                *("number", "primary", "epoch", "available", "vectors"),
                *("indexed", "building", "disk_bytes", "memory_bytes"),
            }
        assert shown in call("GET", f"{server(node)}/v1/collections").json()["collections"]
    gone = made.call("DELETE")
    assert (gone.status_code, gone.content) == (204, b"")
    assert problem(made.call("DELETE"), 404)["type"].endswith("/collection-not-found")
    for node in NODES:
        assert problem(made.call("GET", node=node), 404)["detail"] == f"there is no collection {made.name}"


def test_the_same_collection_again_is_fine_and_another_is_a_conflict(words):
    again = words.call("PUT", body={"dimension": 3, "metric": "l2", "read_consistency": "strong"}, node=1)
    assert again.status_code == 200
    assert again.json()["uuid"] == words.json("GET")["uuid"]
    said = problem(words.call("PUT", body={"dimension": 4, "metric": "dot", "shards": 7}, node=2), 409)
    assert said["type"].endswith("/conflict")
    for difference in ("dimension is 3, not 4", "metric is l2, not dot", "shards is auto, not 7"):
        assert difference in said["detail"]


def test_of_many_creations_at_once_one_creates():
    made = Collection(clusters.unique_name("race"))
    with ThreadPoolExecutor(6) as pool:
        replies = list(
            pool.map(lambda n: made.call("PUT", body={"dimension": 3, "metric": "l2"}, node=n % 3), range(6))
        )
    assert sorted(r.status_code for r in replies) == [200] * 5 + [201]
    assert len({r.json()["uuid"] for r in replies}) == 1
    made.call("DELETE")


def test_a_collection_made_anew_under_its_name_is_empty():
    made = Collection(clusters.unique_name("anew"))
    asked = {"metric": "l2", "read_consistency": "strong"}
    for dimension in (3, 5):
        assert made.call("PUT", body={"dimension": dimension, **asked}).status_code == 201
        assert [made.count(node=n) for n in NODES] == [0, 0, 0]
        stored = made.upsert(row("a", *[1.0] * dimension), node=1)
        assert made.search([0.0] * dimension, node=2)[0]["id"] == "a"
        assert made.call("DELETE", node=2).status_code == 204
    assert made.call("PUT", body={"dimension": 5, **asked}).status_code == 201
    old = {"Session-Token": stored["token"]}
    assert made.json("GET", "/vectors", headers=old) == {"vectors": [], "cursor": None}
    made.call("DELETE")


# ---- writing and reading ---------------------------------------------------------------------------------------------


def test_what_one_node_stored_every_node_answers(words):
    reply = words.upsert(*(row(f"w{i}", i, 1, 0.5, n=i) for i in range(30)), node=1)
    assert reply.keys() == {"upserted", "token"} and reply["upserted"] == 30
    for node in NODES:
        assert words.count(node=node) == 30
        assert words.ids(node=node) == sorted(f"w{i}" for i in range(30))
        for i in (0, 7, 29):
            expected = {"id": f"w{i}", "vector": [i, 1, 0.5], "metadata": {"n": i}}
            assert words.json("GET", f"/vectors/w{i}", node=node) == expected
        assert [h["id"] for h in words.search([12, 1, 0.5], k=1, node=node)] == ["w12"]


def test_an_upsert_replaces_the_vector_everywhere_at_once(words):
    for n in range(10):
        words.upsert(row("same", n, 0, 0, version=n), row(f"other{n}", 100 + n, 0, 0), node=n % 3)
        for node in NODES:
            assert words.json("GET", "/vectors/same", node=node) == row("same", n, 0, 0, version=n)
            hits = words.search([n, 0, 0], k=100, include=["metadata"], node=node)
            assert [(h["distance"], h["metadata"]) for h in hits if h["id"] == "same"] == [(0, {"version": n})]
            assert words.count({"version": {"$lt": n}}, node=node) == 0


def test_the_deleted_never_comes_back(words):
    words.upsert(*(row(f"v{i}", i, 0, 0, half=i % 2) for i in range(40)))
    single = words.call("DELETE", "/vectors/v1", node=1)
    assert (single.status_code, single.json()["deleted"]) == (200, 1)
    assert single.json().keys() == {"deleted", "token"}
    assert words.json("POST", "/vectors/delete", {"ids": ["v3", "v3", "v5", "nobody"]}, node=2)["deleted"] == 2
    assert words.json("POST", "/vectors/delete", {"filter": {"half": 0}})["deleted"] == 20
    left = sorted(f"v{i}" for i in range(7, 40, 2))
    for node in NODES:
        assert words.ids(node=node) == left
        assert sorted(h["id"] for h in words.search([0, 0, 0], k=100, node=node)) == left
        assert sorted(h["id"] for h in words.search([0, 0, 0], k=100, exact=True, node=node)) == left
        for gone in ("v1", "v3", "v4"):
            assert problem(words.call("GET", f"/vectors/{gone}", node=node), 404)["type"].endswith("/vector-not-found")
    problem(words.call("DELETE", "/vectors/v1"), 404)
    words.upsert(row("v1", 9, 9, 9))
    assert words.json("GET", "/vectors/v1", node=2)["vector"] == [9, 9, 9]


ODD_IDS = [
    "a/b",
    "a b",
    ".",
    "..",
    "é",
    "%",
    "%FF",
    "+",
    "?x=1",
    "#",
    "{id}",
    "delete",
    "\0",
    "\n",
    "\"'",
    "\U0001d54f",
    "x" * 512,
]


def test_any_text_is_an_id_and_has_an_address(words):
    words.upsert(*(row(i, n, 0, 0) for n, i in enumerate(ODD_IDS)))
    assert words.ids() == sorted(ODD_IDS, key=str.encode)
    for n, odd in enumerate(ODD_IDS):
        everything_escaped = "".join(f"%{byte:02X}" for byte in odd.encode())
        for written in {everything_escaped, quote(odd, safe="")}:
            # requests would resolve .. by itself
            prepared = requests.Request("GET", f"{server()}/").prepare()
            prepared.url = f"{server()}/v1/collections/{words.name}/vectors/{written}"
            with requests.Session() as session:
                assert session.send(prepared).json()["vector"] == [n, 0, 0], odd
    assert words.json("POST", "/vectors/delete", {"ids": ODD_IDS})["deleted"] == len(ODD_IDS)


def test_metadata_and_vectors_come_back_as_they_were_given(words):
    metadata = {"z": [1, 2.5, True, None, {"a": "é\u0000"}], "a": {}, "": 2**64 - 1, "neg": -(2**63), "f": 1.0}
    given = [0.1, -2.5e-20, 3.4e14]
    words.upsert({"id": "m", "vector": given, "metadata": metadata}, {"id": "n", "vector": [1, 2, 3]})
    reply = words.call("GET", "/vectors/m")
    assert reply.json()["metadata"] == metadata and '"f":1.0' in reply.text
    assert np.array_equal(np.float32(reply.json()["vector"]), np.float32(given))
    assert words.json("GET", "/vectors/n")["metadata"] == {}
    words.upsert({"id": "m", "vector": [1, 2, 3], "metadata": None})
    assert words.json("GET", "/vectors/m")["metadata"] == {}


ROWS = [row(f"r{i}", i, i % 7, 1, i=i) for i in range(2500)]


@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [(JSON, json.dumps({"vectors": ROWS}).encode()), (NDJSON, ndjson(*ROWS)), (ARROW, arrow(*ROWS, batch=700))],
)
def test_upserts_in_every_form_and_compression_store_the_same(words, kind, body, encoding):
    packed = {None: bytes, "gzip": gzip.compress, "zstd": zstd.compress}[encoding](body)
    headers = {"Content-Encoding": encoding} if encoding else {}
    assert words.json("POST", "/vectors", packed, kind=kind, headers=headers)["upserted"] == 2500
    assert words.count(node=1) == 2500
    assert words.json("GET", "/vectors/r1234", node=2) == ROWS[1234]


def test_a_stream_is_stored_while_it_is_sent(words):
    half_is_stored = threading.Event()

    def lines():
        yield ndjson(*ROWS[:2200])
        assert half_is_stored.wait(30)
        yield ndjson(*ROWS[2200:])

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(words.json, "POST", "/vectors", lines(), kind=NDJSON)
        clusters.wait_until(lambda: words.count(node=1) == 2000, "the first two batches")
        half_is_stored.set()
        assert sending.result()["upserted"] == 2500
    assert words.count(node=2) == 2500


def test_in_a_stream_the_last_vector_of_an_id_wins(words):
    rows = [row("twice", 1, 0, 0), row("once", 2, 0, 0), row("twice", 3, 0, 0)]
    assert words.json("POST", "/vectors", ndjson(*rows), kind=NDJSON)["upserted"] == 3
    assert words.count() == 2
    assert words.json("GET", "/vectors/twice")["vector"] == [3, 0, 0]


def test_a_stream_that_goes_wrong_says_how_much_is_stored_and_may_be_mended_and_sent_again(words):
    bad = [*ROWS[:2300], row("bad", 1), *ROWS[2300:]]
    headers = {"Operation-Id": "load-1"}
    said = problem(words.call("POST", "/vectors", ndjson(*bad), kind=NDJSON, headers=headers))
    assert said["upserted"] == 2000 == words.count()
    assert said["errors"] == [
        {
            "index": 2300,
            "id": "bad",
            "field": "vector",
            "reason": "must have 3 numbers, the collection's dimension; has 1",
        }
    ]
    words.json("POST", "/vectors/delete", {"ids": ["r0"]})
    assert words.json("POST", "/vectors", ndjson(*ROWS), kind=NDJSON, headers=headers)["upserted"] == 2500
    assert words.count() == 2499, "the batches that were stored before were stored again"


# ---- operation ids and sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JSON, NDJSON, ARROW])
def test_a_write_with_an_operation_id_is_carried_out_once(words, kind):
    rows = [row("a", 1, 0, 0), row("b", 2, 0, 0), row("c", 3, 0, 0)]
    body = {JSON: json.dumps({"vectors": rows}).encode(), NDJSON: ndjson(*rows), ARROW: arrow(*rows)}[kind]
    once = {"kind": kind, "headers": {"Operation-Id": "op-1"}}
    first = words.json("POST", "/vectors", body, **once)
    words.upsert(row("a", 9, 9, 9))
    words.call("DELETE", "/vectors/b")
    for node in NODES:
        again = words.json("POST", "/vectors", body, node=node, **once)
        assert again["upserted"] == first["upserted"] == 3
    assert words.ids() == ["a", "c"]
    assert words.json("GET", "/vectors/a")["vector"] == [9, 9, 9]


def test_deletions_with_an_operation_id_are_carried_out_once(words):
    words.upsert(row("a", 1, 0, 0, old=True), row("b", 2, 0, 0, old=True))
    for path, method, body in (
        ("/vectors/a", "DELETE", None),
        ("/vectors/delete", "POST", {"ids": ["a"]}),
        ("/vectors/delete", "POST", {"filter": {"old": True}}),
    ):
        words.upsert(row("a", 1, 0, 0, old=True))
        options = {"headers": {"Operation-Id": f"delete-{method}-{body}".replace(" ", "")}}
        first = words.json(method, path, body, **options)["deleted"]
        words.upsert(row("a", 5, 0, 0, old=True))
        assert words.json(method, path, body, **options)["deleted"] == first >= 1
        assert words.json("GET", "/vectors/a")["vector"] == [5, 0, 0]


def test_another_write_with_the_same_operation_id_is_another_write(words):
    headers = {"Operation-Id": "careless"}
    words.upsert(row("a", 1, 0, 0), headers=headers)
    words.upsert(row("a", 2, 0, 0), row("b", 1, 0, 0), headers=headers)
    assert words.json("GET", "/vectors/a")["vector"] == [2, 0, 0]
    assert words.ids() == ["a", "b"]
    assert words.json("POST", "/vectors/delete", {"ids": ["a"]}, headers=headers)["deleted"] == 1
    assert words.ids() == ["b"]


def test_a_session_token_is_in_body_and_header_and_grows_with_what_was_seen(words):
    written = words.call("POST", "/vectors", {"vectors": [row("a", 1, 0, 0)]})
    given = written.headers["Session-Token"]
    assert written.json()["token"] == given
    session = {"Session-Token": given}
    for node in NODES:
        assert words.call("GET", "/vectors/a", headers=session, node=node).headers["Session-Token"] == given
        found = words.call("POST", "/search", {"vector": [1, 0, 0]}, headers=session, node=node)
        assert found.json()["token"] == found.headers["Session-Token"]
        both = {"Session-Token": f"{found.json()['token']}, {given}"}
        assert words.count(headers=both, node=node) == 1


def test_a_token_of_what_has_not_happened_yet_is_not_answered_with_less(words):
    words.upsert(*(row(f"v{i}", i, 0, 0) for i in range(20)))
    seen = token.decode(words.json("POST", "/search", {"vector": [0, 0, 0]})["token"])
    ahead = token.encode({shard: (epoch, seq + 10) for shard, (epoch, seq) in seen.items()})
    reply = words.call("POST", "/count", {}, headers={"Session-Token": ahead})
    assert problem(reply, 503)["missing_shards"] == sorted(shard.number for shard in seen)
    assert reply.headers["Retry-After"] == "1"


# ---- searches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("l2", [("b", 1.0, -1.0), ("a", 4.0, -4.0), ("c", 4.0, -4.0)]),
        ("dot", [("b", -6.0, 6.0), ("a", -2.0, 2.0), ("c", 2.0, -2.0)]),
        ("cosine", [("a", 0.0, 1.0), ("b", 0.0, 1.0), ("c", 1 + 1 / math.sqrt(5), -1 / math.sqrt(5))]),
    ],
)
def test_distance_and_score_are_as_documented(metric, expected, exact):
    vectors = {"l2": {"a": [0, 0], "b": [2, 1], "c": [4, 0]}, "dot": {"a": [1, 7], "b": [3, 0], "c": [-1, 0]}}
    stored = vectors.get(metric, {"a": [1, 0], "b": [9, 0], "c": [-1, 2]})
    with collection(2, metric) as made:
        made.upsert(*({"id": i, "vector": v} for i, v in stored.items()))
        for node in NODES:
            hits = made.search([2, 0], exact=exact, node=node)
            assert [h["id"] for h in hits] == [i for i, _, _ in expected]
            for hit, (_, distance, score) in zip(hits, expected, strict=True):
                assert hit.keys() == {"id", "distance", "score"}
                assert (hit["distance"], hit["score"]) == pytest.approx((distance, score), abs=1e-12)


def test_a_search_answers_with_its_envelope_and_what_it_was_asked_to_include(hundred):
    reply = hundred.json("POST", "/search", {"vector": [50.25, 0, 0], "k": 2, "include": ["metadata", "vector"]})
    assert reply.keys() == {"results", "partial", "missing_shards", "token", "took_ms"}
    assert (reply["partial"], reply["missing_shards"]) == (False, []) and reply["took_ms"] > 0
    nearest = reply["results"][0]
    assert nearest["distance"] == 0.0625 and nearest["score"] == -nearest["distance"]
    assert nearest["vector"] == [50, 0, 0]
    assert nearest["metadata"] == {"i": 50, "even": True, "tags": ["t0"]}
    assert [h["id"] for h in reply["results"]] == ["v050", "v051"]


def test_equally_near_vectors_come_by_id(words):
    words.upsert(*(row(f"t{i:02}", 1, 1, 1) for i in range(30)))
    for node in NODES:
        assert [h["id"] for h in words.search([0, 0, 0], k=10, node=node)] == [f"t{i:02}" for i in range(10)]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, [f"v{i:03}" for i in range(10)]),
        ({"k": 3}, ["v000", "v001", "v002"]),
        ({"k": 3, "ef": 1}, ["v000", "v001", "v002"]),
        ({"k": 1000, "ef": 1000}, [f"v{i:03}" for i in range(100)]),
        ({"k": 1000, "exact": True}, [f"v{i:03}" for i in range(100)]),
        ({"k": 2, "filter": {"even": False}}, ["v001", "v003"]),
        ({"k": 2, "filter": {"i": {"$gte": 90}}}, ["v090", "v091"]),
        ({"filter": {"i": {"$gte": 1000}}}, []),
        ({"k": 2, "filter": {"$or": [{"tags": {"$contains": "t9"}}, {"$id": "v050"}]}}, ["v009", "v019"]),
        ({"k": 2, "filter": {"$id": {"$in": ["v097", "v098", "v099", "no"]}}, "exact": True}, ["v097", "v098"]),
        ({"k": 2, "filter": {"i": {"$exists": False}}}, []),
        ({"k": 1, "filter": {}, "consistency": "strong", "allow_partial": True}, ["v000"]),
    ],
)
def test_a_search_finds_the_nearest_that_match(hundred, members, expected):
    for node in NODES:
        assert [h["id"] for h in hundred.search([-1, 0, 0], node=node, **members)] == expected


def test_many_searches_in_one_request_are_answered_in_their_order(hundred):
    queries = [[i, 0, 0] for i in (99, 0, 42)]
    reply = hundred.json("POST", "/search", {"vectors": queries, "k": 1})
    assert [[h["id"] for h in hits] for hits in reply["results"]] == [["v099"], ["v000"], ["v042"]]
    assert hundred.json("POST", "/search", {"vectors": queries[:1], "k": 1})["results"][0][0]["id"] == "v099"


def test_a_binary_search_is_the_json_search(hundred):
    def ask(query: str, *vectors: list[float]) -> object:
        return hundred.json("POST", f"/search?{query}", floats(*vectors), kind=OCTETS)["results"]

    assert ask("k=2", [7, 0, 0]) == hundred.search([7, 0, 0], k=2)
    assert [[h["id"] for h in hits] for hits in ask("k=1&queries=2", [7, 0, 0], [8, 0, 0])] == [["v007"], ["v008"]]
    assert [[h["id"] for h in hits] for hits in ask("k=1&many=true", [7, 0, 0])] == [["v007"]]
    options = {"k": 3, "filter": {"even": False}, "include": ["metadata", "vector"], "exact": True, "ef": 50}
    query = 'k=3&filter={"even":false}&include=metadata,vector&exact=true&ef=50&consistency=session'
    assert ask(query, [7, 0, 0]) == hundred.search([7, 0, 0], **options)


def test_arrow_replies_hold_what_json_replies_hold(hundred):
    asked = {"vectors": [[7, 0, 0], [1, 0, 0]], "k": 2, "include": ["metadata", "vector"], "filter": {"even": True}}
    plain = hundred.json("POST", "/search", asked)
    reply = hundred.call("POST", "/search", asked, headers={"Accept": ARROW})
    assert reply.headers["Content-Type"] == ARROW
    table, envelope = read_arrow(reply.content)
    assert envelope.keys() == {"partial", "missing_shards", "token", "took_ms"}
    assert table.column_names == ["query", "id", "score", "distance", "metadata", "vector"]
    hits = [{"query": q, **hit} for q, some in enumerate(plain["results"]) for hit in some]
    assert [r | {"metadata": json.loads(r["metadata"])} for r in table.to_pylist()] == hits

    page = hundred.call("GET", "/vectors?limit=3", headers={"Accept": ARROW})
    table, envelope = read_arrow(page.content)
    assert table.column("id").to_pylist() == ["v000", "v001", "v002"]
    assert envelope["cursor"] == page.headers["Cursor"] == hundred.json("GET", "/vectors?limit=3")["cursor"]


@pytest.mark.parametrize(("encoding", "unpack"), [("gzip", gzip.decompress), ("zstd", zstd.decompress)])
def test_replies_are_compressed_as_asked(hundred, encoding, unpack):
    with hundred.call("GET", "/vectors", headers={"Accept-Encoding": encoding}, stream=True) as reply:
        assert reply.headers["Content-Encoding"] == encoding
        raw = reply.raw.read(decode_content=False)
    assert json.loads(unpack(raw)) == hundred.json("GET", "/vectors")


# ---- listing and counting --------------------------------------------------------------------------------------------


def pages(made: Collection, query: str) -> list[str]:
    ids, cursor = [], ""
    for number in range(1000):
        page = made.json("GET", f"/vectors?{query}{cursor}", node=number % 3)
        ids += [v["id"] for v in page["vectors"]]
        if page["cursor"] is None:
            return ids
        cursor = f"&cursor={page['cursor']}"
    raise AssertionError("a listing without an end")


def test_a_listing_goes_on_where_it_stopped_on_any_node(hundred):
    everything = [f"v{i:03}" for i in range(100)]
    for limit in (1, 7, 50, 100, 1000):
        assert pages(hundred, f"limit={limit}") == everything
    assert pages(hundred, 'limit=7&filter={"even":true}') == everything[::2]
    first = hundred.json("GET", "/vectors?limit=1")
    assert first["vectors"] == [{"id": "v000", "vector": [0, 0, 0], "metadata": {"i": 0, "even": True, "tags": ["t0"]}}]
    assert hundred.json("GET", "/vectors?cursor=enp6") == {"vectors": [], "cursor": None}  # after "zzz"


def test_a_listing_shows_all_that_stayed_while_others_came_and_went(words):
    words.upsert(*(row(f"keep{i:03}", i, 0, 0, kept=True) for i in range(200)))
    stop = threading.Event()

    def write() -> int:
        rounds = 0
        while not stop.is_set():
            words.upsert(*(row(f"keep{i:03}-{rounds % 5}", i, 1, 0, kept=False) for i in range(0, 200, 5)))
            words.upsert(*(row(f"keep{i:03}", i, rounds, 0, kept=True) for i in range(0, 200, 9)))
            words.json("POST", "/vectors/delete", {"filter": {"kept": False}})
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for limit in (3, 10, 40, 64):
                kept = pages(words, f'limit={limit}&filter={{"kept":true}}')
                assert kept == [f"keep{i:03}" for i in range(200)]
                assert (listed := pages(words, f"limit={limit}")) == sorted(set(listed))
                assert set(kept) <= set(listed)
        finally:
            stop.set()
        assert writing.result() > 1


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (None, 100),
        ({}, 100),
        ({"even": True}, 50),
        ({"even": 1}, 0),
        ({"i": {"$in": [1, 2.0, "3", 1000]}}, 2),
        ({"i": {"$gt": 10, "$lte": 20}}, 10),
        ({"$not": {"i": {"$lt": 90}}}, 10),
        ({"tags": {"$contains": "t3"}}, 10),
        ({"missing": {"$ne": 3}}, 100),
        ({"missing": None}, 0),
        ({"$id": {"$lt": "v010"}}, 10),
        ({"$id": {"$nin": ["v000"]}, "even": True}, 49),
    ],
)
def test_a_count_counts_what_matches(hundred, filter_, expected):
    assert [hundred.count(filter_, node=node) for node in NODES] == [expected] * 3


def test_a_count_without_a_body_counts_everything(hundred):
    assert hundred.json("POST", "/count")["count"] == 100


@pytest.mark.parametrize("level", ["eventual", "session", "quorum", "strong"])
def test_every_level_of_reading_is_served(hundred, level):
    assert hundred.search([0, 0, 0], k=1, consistency=level)[0]["id"] == "v000"
    assert hundred.json("POST", "/count", {"consistency": level})["count"] == 100
    assert hundred.json("GET", f"/vectors/v001?consistency={level}")["id"] == "v001"
    assert len(hundred.json("GET", f"/vectors?limit=2&consistency={level}")["vectors"]) == 2


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_every_level_of_writing_is_served(words, level):
    query = f"?consistency={level}"
    assert words.json("POST", f"/vectors{query}", {"vectors": [row("a", 1, 0, 0), row("b", 1, 0, 0)]})["upserted"] == 2
    assert words.json("DELETE", f"/vectors/a{query}")["deleted"] == 1
    assert words.json("POST", f"/vectors/delete{query}", {"ids": ["b"]})["deleted"] == 1


def test_a_batch_in_one_shard_may_be_atomic():
    with collection(shards=1) as made:
        body = {"vectors": [row("a", 1, 0, 0), row("b", 1, 0, 0)], "atomic": True}
        assert made.json("POST", "/vectors", body, node=1)["upserted"] == 2


def test_a_batch_over_several_shards_may_be_atomic_and_is_applied_once():
    with collection(shards=8) as made:
        body = {"vectors": [row(f"id-{i}", 1, 0, i) for i in range(30)], "atomic": True}
        headers = {"Operation-Id": "all-or-nothing"}
        for node in (0, 1, 2):
            assert made.json("POST", "/vectors", body, node=node, headers=headers)["upserted"] == 30
        assert made.json("POST", "/count", {}, node=2)["count"] == 30
        assert made.json("DELETE", "/vectors/id-3")["deleted"] == 1
        made.json("POST", "/vectors", body, headers=headers)
        assert made.json("POST", "/count", {}, node=1)["count"] == 29, "it was applied before"


def test_what_one_node_created_or_deleted_every_node_knows_at_once():
    name = clusters.unique_name("news")
    for round_ in range(9):
        made = Collection(name)
        first, second, third = (round_ % 3, (round_ + 1) % 3, (round_ + 2) % 3)
        assert made.call("PUT", body={"dimension": 3, "metric": "l2"}, node=first).status_code == 201
        assert made.upsert(row("a", 1, 0, 0), row("b", 0, 1, 0), row("c", 0, 0, 1), node=second)["upserted"] == 3
        assert [h["id"] for h in made.search([1, 0, 0], k=1, node=third)] == ["a"]
        assert made.call("DELETE", node=second).status_code == 204
        assert all(made.call("GET", node=n).status_code == 404 for n in (first, second, third))
