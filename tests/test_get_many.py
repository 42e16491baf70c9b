"""Many vectors by their ids in one request, over HTTP and by the client, on a real cluster of three nodes."""

import json

import numpy as np
import pyarrow as pa
import pytest

from support import cluster as clusters
from support.cluster import unique_name
from support.http import ARROW, PROBLEM, Collection, call, problem
from veccluster import AsyncClient, Client, errors
from veccluster.model import token

COUNT = 2_500
VECTORS = np.random.default_rng(3).normal(size=(COUNT, 4)).astype(np.float32)
IDS = [f"n{i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def servers():
    return clusters.shared().servers


@pytest.fixture(scope="module")
def client(servers):
    with Client(servers) as client:
        yield client


@pytest.fixture(scope="module")
def filled(client):
    name = unique_name("many")
    client.create_collection(name, 4, metric="l2", shards=3)
    client.upload(name, [(IDS, VECTORS, [{"number": i} for i in range(COUNT)])])
    yield name
    client.delete_collection(name)


def test_what_is_there_comes_in_the_order_of_the_ids_and_what_is_not_is_said(client, filled):
    got = client.get_many(filled, ["n7", "nobody", "n3", "n7", "n2400", "ü ✓"])
    assert got.ids == ["n7", "n3", "n2400"] and got.missing == ("nobody", "ü ✓")
    np.testing.assert_array_equal(np.stack([one.vector for one in got]), VECTORS[[7, 3, 2400]])
    assert [one.metadata for one in got] == [{"number": 7}, {"number": 3}, {"number": 2400}]
    assert got[0].vector.dtype == np.float32


def test_only_what_is_included_comes(client, filled):
    for include in ([], ["metadata"], ["vector"], ["vector", "metadata"]):
        (one,) = client.get_many(filled, ["n1"], include=include)
        assert (one.vector is not None, one.metadata is not None) == ("vector" in include, "metadata" in include)


def test_more_ids_than_a_node_takes_at_once_are_asked_for_in_parts(client, filled):
    got = client.get_many(filled, [*IDS[::-1], "nobody"], include=["metadata"])
    assert got.ids == IDS[::-1] and got.missing == ("nobody",)
    assert client.get_many(filled, []).ids == []


async def test_the_asyncio_client_does_the_same(servers, filled):
    async with AsyncClient(servers) as client:
        got = await client.get_many(filled, ["n1", "x"])
    assert (got.ids, got.missing) == (["n1"], ("x",))


def test_what_was_written_is_got_at_once_from_any_node(client, servers, filled):
    for i in range(30):
        client.upsert(filled, ["w"], [[i, 0, 0, 0]], [{"i": i}])
        (one,) = client.get_many(filled, ["w"])
        assert one.metadata == {"i": i} and client.get(filled, "w").metadata == {"i": i}
    client.delete(filled, ["w"])
    for _ in servers:
        assert client.get_many(filled, ["w"]).missing == ("w",)
    for level in ("eventual", "session", "quorum", "strong"):
        assert client.get_many(filled, ["n5"], consistency=level).ids == ["n5"]


def test_a_level_that_is_none_and_a_collection_that_is_not_there_are_refused(client, filled):
    with pytest.raises(errors.InvalidRequest, match="consistency"):
        client.get_many(filled, ["n1"], consistency="sometimes")
    with pytest.raises(errors.InvalidRequest, match="include"):
        client.get_many(filled, ["n1"], include=["everything"])
    with pytest.raises(errors.CollectionNotFound):
        client.get_many("nowhere", ["n1"])


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def test_the_reply_has_what_is_there_what_is_missing_and_a_token(filled):
    made = Collection(filled)
    for node in range(3):
        reply = made.call("POST", "/vectors/get", {"ids": ["n2", "x", "n1"], "include": ["metadata"]}, node=node)
        assert reply.json() == {
            "vectors": [{"id": "n2", "metadata": {"number": 2}}, {"id": "n1", "metadata": {"number": 1}}],
            "missing": ["x"],
        }
        assert token.decode(reply.headers[token.HEADER])
    (one,) = made.json("POST", "/vectors/get", {"ids": ["n1"]})["vectors"]
    assert one == made.json("GET", "/vectors/n1")
    assert made.json("POST", "/vectors/get", {"ids": ["n1"], "include": []}) == {
        "vectors": [{"id": "n1"}],
        "missing": [],
    }


def test_in_arrow_the_reply_can_be_stored_again(filled):
    made = Collection(filled)
    reply = made.call("POST", "/vectors/get", {"ids": ["n2", "x", "n1"]}, headers={"Accept": ARROW})
    table = pa.ipc.open_stream(reply.content).read_all()
    assert table["id"].to_pylist() == ["n2", "n1"] and json.loads(table.schema.metadata[b"missing"]) == ["x"]
    assert np.stack(table["vector"].to_pylist()).tolist() == VECTORS[[2, 1]].tolist()
    assert made.json("POST", "/vectors", reply.content, kind=ARROW)["upserted"] == 2
    reply = made.call("POST", "/vectors/get", {"ids": ["x"], "include": ["vector"]}, headers={"Accept": ARROW})
    assert pa.ipc.open_stream(reply.content).read_all().schema.names == ["id", "vector"]


def test_a_read_that_sends_a_token_sees_what_the_token_saw_or_is_refused(filled):
    made = Collection(filled)
    seen = token.decode(made.upsert({"id": "t", "vector": [1, 2, 3, 4]})["token"])
    for node in range(3):
        sent = {token.HEADER: token.encode(seen)}
        assert made.json("POST", "/vectors/get", {"ids": ["t"]}, node=node, headers=sent)["missing"] == []
    future = {shard: (epoch, seq + 1_000) for shard, (epoch, seq) in seen.items()}
    reply = made.call("POST", "/vectors/get", {"ids": ["t"]}, headers={token.HEADER: token.encode(future)})
    assert reply.status_code == 503 and reply.headers["Content-Type"] == PROBLEM
    eventual = {"ids": ["t"], "consistency": "eventual"}
    assert made.json("POST", "/vectors/get", eventual, headers={token.HEADER: token.encode(future)})["missing"] == []


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "ids", "must be given"),
        ({"ids": []}, "ids", "at least 1 items"),
        ({"ids": "n1"}, "ids", "must be a list, is a string"),
        ({"ids": ["n1", 7]}, "ids[1]", "is a number"),
        ({"ids": [""]}, "ids[0]", "has 0"),
        ({"ids": [str(i) for i in range(1_001)]}, "ids", "must hold at most 1000 ids, holds 1001"),
        ({"ids": ["n1"], "include": ["id"]}, "include[0]", "must be 'metadata' or 'vector'"),
        ({"ids": ["n1"], "filter": {}}, "filter", "is not a known field"),
        ({"ids": ["n1"], "consistency": "all"}, "consistency", "must be 'eventual'"),
    ],
    ids=str,
)
def test_what_cannot_be_got_is_refused_in_words(filled, body, field, words):
    (error,) = problem(Collection(filled).call("POST", "/vectors/get", body))["errors"]
    assert error["field"] == field and words in error["reason"]


def test_a_vector_whose_id_is_the_name_of_the_route_is_a_vector(filled, servers):
    made = Collection(filled)
    made.upsert({"id": "get", "vector": [1, 2, 3, 4]})
    assert made.json("GET", "/vectors/get")["id"] == "get"
    assert made.json("DELETE", "/vectors/get")["deleted"] == 1
    assert problem(call("POST", f"{servers[0]}/v1/collections/nowhere/vectors/get", {"ids": ["a"]}), 404)
    assert made.call("POST", "/vectors/get", b"{}", kind="text/plain").status_code == 415
    assert made.call("POST", "/vectors/get", {"ids": ["a"]}, headers={"Accept": "text/html"}).status_code == 406
