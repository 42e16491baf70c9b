"""The client on a real cluster of three nodes: everything that the interface offers, numpy in and out."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from support import cluster as clusters
from support.cluster import unique_name, wait_until
from veccluster import AsyncClient, Client, errors
from veccluster.client import Progress

DIMENSION = 8
COUNT = 300


@pytest.fixture(scope="module")
def servers():
    return clusters.shared().servers


@pytest.fixture
def client(servers):
    with Client(servers) as client:
        yield client


@pytest.fixture
def vectors():
    return np.random.default_rng(7).normal(size=(COUNT, DIMENSION)).astype(np.float32)


@pytest.fixture
def filled(client, vectors):
    """A collection with COUNT vectors; vector i has the id of its number and says whether it is even."""
    name = unique_name("filled")
    client.create_collection(name, DIMENSION, metric="l2", filterable=["even"])
    metadata = [{"even": i % 2 == 0, "number": i} for i in range(COUNT)]
    assert client.upsert(name, list(map(str, range(COUNT))), vectors, metadata).upserted == COUNT
    yield name
    client.delete_collection(name)


def nearest(vectors, query, k):
    return [str(i) for i in np.argsort(((vectors - query) ** 2).sum(axis=1), kind="stable")[:k]]


def test_a_collection_lives_from_create_to_delete(client):
    name = unique_name()
    info = client.create_collection(name, 4, metric="cosine", shards=2, filterable=["a"], index={"m": 8})
    assert (info.name, info.dimension, info.metric, info.shards) == (name, 4, "cosine", 2)
    assert client.create_collection(name, 4, metric="cosine", shards=2, filterable=["a"], index={"m": 8}) == info
    with pytest.raises(errors.Conflict, match="dimension"):
        client.create_collection(name, 5, metric="cosine", shards=2)
    assert name in [c.name for c in client.collections()]
    shown = client.collection(name)
    assert shown.count == 0 and len(shown.shard_states) == 2 and shown.filterable == ("a",)
    client.delete_collection(name)
    with pytest.raises(errors.CollectionNotFound):
        client.collection(name)
    with pytest.raises(errors.CollectionNotFound):
        client.delete_collection(name)


def test_what_was_written_is_read_at_once_from_any_node(servers, filled, vectors):
    for server in servers:
        with Client(server) as client:
            assert client.count(filled, consistency="strong") == COUNT
            found = client.get(filled, "17", consistency="strong")
            assert found.metadata == {"even": False, "number": 17}
            np.testing.assert_array_equal(found.vector, vectors[17])
            assert found.vector.dtype == np.float32


def test_a_search_gives_the_nearest_with_scores_and_what_was_asked_for(client, filled, vectors):
    query = vectors[5] + 0.01
    found = client.search(filled, query, k=7, include=["metadata", "vector"], exact=True)
    assert found.ids == nearest(vectors, query, 7)
    assert not found.partial and found.missing_shards == () and found.took_ms > 0
    np.testing.assert_allclose(found.distances, ((vectors[[int(i) for i in found.ids]] - query) ** 2).sum(axis=1), 1e-4)
    hit = found[0]
    assert hit.score == -hit.distance and hit.metadata["number"] == 5
    np.testing.assert_array_equal(hit.vector, vectors[5])
    assert found[1].metadata is not None and client.search(filled, query)[0].metadata is None


@pytest.mark.parametrize("queries", [1, 2, 30])
def test_many_searches_in_one_request_are_the_same_as_one_by_one(client, filled, vectors, queries):
    many = client.search_many(filled, vectors[:queries], k=3, exact=True)
    assert many.ids == [client.search(filled, v, k=3, exact=True).ids for v in vectors[:queries]]
    assert many.distances.shape == (queries, 3)


def test_float64_lists_and_slices_are_vectors_too(client, filled, vectors):
    want = client.search(filled, vectors[3]).ids
    strided = np.asfortranarray(vectors.astype(np.float64))[3]
    for query in (vectors[3].tolist(), strided, tuple(vectors[3])):
        assert client.search(filled, query).ids == want


def test_a_filter_limits_search_count_list_and_delete(client, filled, vectors):
    even = {"even": True}
    found = client.search(filled, vectors[1], k=20, filter=even, include=["metadata"], exact=True)
    assert len(found) == 20 and all(hit.metadata["even"] for hit in found)
    assert client.count(filled, filter=even) == COUNT // 2
    assert {v.id for v in client.iterate(filled, filter=even)} == {str(i) for i in range(0, COUNT, 2)}
    assert client.delete(filled, filter={"number": {"$lt": 10}}).deleted == 10
    assert client.count(filled) == COUNT - 10


def test_a_filter_that_is_too_long_for_a_query_string_works_as_well(client, filled, vectors):
    ids = [f"{i:>030}" for i in range(500)] + ["5"]
    assert client.search(filled, vectors[0], filter={"$id": {"$in": ids}}).ids == ["5"]
    assert client.search_many(filled, vectors[:2], filter={"$id": {"$in": ids}}).ids == [["5"], ["5"]]


def test_iterating_over_pages_gives_every_vector_once(client, filled):
    seen = [v.id for v in client.iterate(filled, page_rows=37)]
    assert sorted(seen) == sorted(map(str, range(COUNT)))
    first = client.page(filled, limit=10)
    assert len(first.vectors) == 10 and first.cursor is not None


def test_what_one_client_wrote_another_reads_at_strong(client, servers, filled):
    client.delete(filled, ["0"])
    with Client(servers) as other:
        assert other.count(filled, consistency="strong") == COUNT - 1
        assert "0" not in [v.id for v in other.page(filled, limit=COUNT, consistency="strong").vectors]
        assert "0" not in [v.id for v in other.iterate(filled, consistency="strong")]
        for read in (other.count, other.page):
            with pytest.raises(errors.InvalidRequest, match="consistency"):
                read(filled, consistency="sometimes")


def test_deleting_by_ids_says_how_many_were_there(client, filled):
    assert client.delete(filled, ["1", "2", "nobody"]).deleted == 2
    with pytest.raises(errors.VectorNotFound):
        client.get(filled, "1")


def test_an_upsert_replaces_and_never_doubles(client, filled, vectors):
    client.upsert(filled, ["0"], [vectors[9]], [{"again": True}])
    assert client.count(filled) == COUNT
    assert client.get(filled, "0").metadata == {"again": True}
    assert set(client.search(filled, vectors[9], k=2, exact=True).ids) == {"0", "9"}


@pytest.mark.parametrize("vector_id", ["a/b", "ü ✓ 语", "..", "%2F", "a?b#c", " ", "\x01", "x" * 512])
def test_any_id_can_be_stored_fetched_and_deleted(client, filled, vectors, vector_id):
    client.upsert(filled, [vector_id], vectors[:1])
    assert client.get(filled, vector_id).id == vector_id
    assert client.delete(filled, [vector_id]).deleted == 1


def test_items_are_the_same_as_columns(client, filled, vectors):
    client.upsert_items(
        filled,
        [{"id": "x", "vector": vectors[1].tolist(), "metadata": {"a": [1, None]}}, {"id": "y", "vector": vectors[2]}],
    )
    assert client.get(filled, "x").metadata == {"a": [1, None]}
    np.testing.assert_array_equal(client.get(filled, "y").vector, vectors[2])
    assert client.get(filled, "y").metadata == {}


def as_table(ids, vectors, metadata):
    columns = {
        "id": pa.array(ids),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "metadata": pa.array(metadata, pa.string()),
    }
    return pa.table(columns)


def test_bulk_uploads_take_arrow_and_numpy_and_report_progress(client, vectors):
    name = unique_name()
    client.create_collection(name, DIMENSION)
    ids = [f"t{i}" for i in range(COUNT)]
    seen: list[Progress] = []
    table = as_table(ids, vectors, [f'{{"n": {i}}}' for i in range(COUNT)])
    assert client.upload(name, table, progress=seen.append, rows_per_request=100).upserted == COUNT
    assert [(p.done, p.total) for p in seen] == [(100, COUNT), (200, COUNT), (COUNT, COUNT)]
    pieces = ((ids[i : i + 50], vectors[i : i + 50], None) for i in range(0, COUNT, 50))
    assert client.upload(name, pieces).upserted == COUNT
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    assert client.upload(name, reader).upserted == COUNT
    assert client.count(name) == COUNT
    assert client.get(name, "t7").metadata == {"n": 7}
    client.delete_collection(name)


def test_a_bad_row_of_a_batch_is_named_and_counted_from_the_first(client, filled, vectors):
    ids = [*(f"good{i}" for i in range(9)), ""]
    with pytest.raises(errors.InvalidRequest) as caught:
        client.upsert(filled, ids, vectors[:10], batch_rows=4)
    assert caught.value.errors[0]["index"] == 9
    assert caught.value.extra["stored"] == 8
    assert client.count(filled) == COUNT + 8


def test_a_wrong_dimension_is_said_and_nothing_is_stored(client, filled):
    with pytest.raises(errors.InvalidRequest, match="8"):
        client.upsert(filled, ["a"], [[1.0, 2.0]])
    with pytest.raises(errors.InvalidRequest):
        client.search(filled, [1.0, 2.0])
    assert client.count(filled) == COUNT


def test_the_cluster_tells_its_health_nodes_and_shards(client, servers, filled):
    wait_until(lambda: client.cluster().health == "healthy", "collections of other tests to be gone")
    info = client.cluster()
    assert info.health == "healthy" and info.issues == ()
    assert {f"http://{node.address}" for node in info.nodes} == set(servers)
    assert info.leader in {node.id for node in info.nodes}
    assert info.shards.total >= 3 and info.shards.unavailable == 0
    assert client.health() == dict.fromkeys(servers, "ready")


def test_one_client_serves_many_threads(client, filled, vectors):
    def work(i: int) -> str:
        client.upsert(filled, [f"thread{i}"], vectors[i : i + 1] + 50)
        return client.search(filled, vectors[i] + 50, k=1)[0].id

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == [f"thread{i}" for i in range(40)]


async def test_the_asyncio_client_does_the_same(servers, vectors):
    name = unique_name()
    async with AsyncClient(servers) as client:
        await client.create_collection(name, DIMENSION)
        await client.upsert(name, ["a", "b"], vectors[:2])
        assert (await client.search(name, vectors[0])).ids[0] == "a"
        assert [v.id async for v in client.iterate(name, page_rows=1)] == ["a", "b"]
        await client.delete_collection(name)


def test_closing_after_an_interrupted_call_leaves_no_task_behind(caplog: pytest.LogCaptureFixture) -> None:
    """As after Ctrl-C in the middle of a call that takes a moment to let go."""
    client = Client("http://127.0.0.1:1")
    ended = threading.Event()

    async def slow_to_let_go() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    call = asyncio.run_coroutine_threadsafe(slow_to_let_go(), client._loop)
    time.sleep(0.05)
    call.cancel()
    client.close()
    gc.collect()
    assert ended.is_set()
    assert "Task was destroyed" not in caplog.text
