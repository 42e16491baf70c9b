"""Dimensions and sizes against a real cluster: nothing is cut anew on the way or is more than a node takes."""

import numpy as np
import orjson
import pytest

from support import cluster as clusters
from support.cluster import unique_name
from veccluster import Client, errors
from veccluster.client import Progress
from veccluster.model.limits import DEFAULTS


@pytest.fixture(scope="module")
def client():
    with Client(clusters.shared().servers) as client:
        yield client


@pytest.fixture
def collection(client):
    made = []

    def make(dimension):
        made.append(unique_name("sizes"))
        client.create_collection(made[-1], dimension, metric="l2", shards=1, replication_factor=1)
        return made[-1]

    yield make
    for name in made:
        client.delete_collection(name)


def test_queries_of_another_dimension_have_no_answer(client, collection):
    name = collection(4)
    client.upsert(name, list("abcdefgh"), np.eye(8, 4, dtype=np.float32))
    for shape in ((3, 8), (4, 5), (8, 2), (2, 2), (1, 8)):
        with pytest.raises(errors.VecClusterError) as caught:
            client.search_many(name, np.ones(shape, np.float32))
        assert "dimension" in str(caught.value) or "4 little-endian float32" in str(caught.value)
    with pytest.raises(errors.InvalidRequest):
        client.search(name, np.ones(8, np.float32))


@pytest.mark.e2e
def test_large_metadata_is_stored_in_requests_that_a_node_takes(client, collection):
    name = collection(2)
    metadata = [{"a": "x" * 34_000, "n": i} for i in range(2_000)]
    seen: list[Progress] = []
    ids = [str(i) for i in range(2_000)]
    assert sum(len(m["a"]) for m in metadata) > DEFAULTS.max_arrow_batch_size
    client.upload(name, [(ids, np.ones((2_000, 2)), metadata)], progress=seen.append, total=2_000)
    assert seen[-1] == Progress(2_000, 2_000) and len(seen) > 5
    assert client.count(name) == 2_000
    assert client.get(name, "1999").metadata["n"] == 1_999


@pytest.mark.e2e
def test_long_vectors_are_stored_in_requests_that_a_node_takes(client, collection):
    name = collection(8_192)
    vectors = np.random.default_rng(1).normal(size=(900, 8_192)).astype(np.float32) * 1e-20
    assert len(orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)) > DEFAULTS.max_body_size
    ids = [str(i) for i in range(900)]
    assert client.upsert(name, ids, vectors, batch_rows=1_000).upserted == 900
    np.testing.assert_array_equal(client.get(name, "899").vector, vectors[899])
