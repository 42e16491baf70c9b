"""What /metrics of real nodes says of replication while replicas stand still, die, and lose what they had."""

import shutil
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from support.cluster import wait_until
from support.etcd import EtcdCluster
from support.nodes import FAST, Nodes, filled, record_of
from veccluster import Client
from veccluster.client.results import CollectionInfo

pytestmark = pytest.mark.e2e

VECTORS = np.eye(16, dtype=np.float32)
BEHIND = "veccluster_replica_behind_operations"
LATE = "veccluster_replica_behind_seconds"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with EtcdCluster(1) as etcd, Nodes(3, etcd=etcd, spec=FAST) as made:
        yield made


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with nodes.client(timeout=30.0) as made:
        yield made


@pytest.fixture
def words(nodes: Nodes, client: Client) -> Iterator[CollectionInfo]:
    made = filled(nodes, client, VECTORS)
    yield made
    client.delete_collection(made.name)


def measured(nodes: Nodes, number: int, name: str, **labels: str) -> float:
    """The sum of the samples of that name with those labels, at one node."""
    text = requests.get(f"{nodes.url(number)}/metrics", timeout=10).text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def primary_of(nodes: Nodes, words: CollectionInfo) -> int:
    return int(record_of(nodes, words).primary.node[1:])


def test_a_copy_that_stands_still_is_seen_to_fall_behind_and_to_catch_up(
    nodes: Nodes, client: Client, words: CollectionInfo
) -> None:
    primary = primary_of(nodes, words)
    still = (primary + 1) % 3
    name = f"n{still}"
    assert measured(nodes, primary, "veccluster_shard_replicas") == 3
    assert measured(nodes, primary, "veccluster_shard_in_sync") == 3
    assert measured(nodes, primary, BEHIND) == 0
    nodes.signal(still, signal.SIGSTOP)
    try:
        client.upsert(words.name, [f"later-{i}" for i in range(16)], VECTORS)
        wait_until(lambda: measured(nodes, primary, "veccluster_shard_in_sync") == 2, "two to be in sync")
        assert measured(nodes, primary, BEHIND, node=name) == measured(nodes, primary, BEHIND) == 16
        wait_until(lambda: measured(nodes, primary, LATE, node=name) > 1, "a second without it")
        assert measured(nodes, primary, LATE) < 1 + measured(nodes, primary, LATE, node=name)
    finally:
        nodes.signal(still, signal.SIGCONT)
    wait_until(lambda: measured(nodes, primary_of(nodes, words), "veccluster_shard_in_sync") == 3, "all to be in sync")
    assert measured(nodes, primary_of(nodes, words), BEHIND) == 0
    nodes.wait_healthy()


def test_failovers_refused_writes_and_refetches_are_counted(
    nodes: Nodes, client: Client, words: CollectionInfo
) -> None:
    lost = primary_of(nodes, words)
    others = [n for n in range(3) if n != lost]
    refused = "veccluster_writes_refused_total"
    before = {n: measured(nodes, n, "veccluster_failover_seconds_count") for n in others}
    refused_before = {n: measured(nodes, n, refused, reason="too-few-replicas") for n in others}
    nodes.kill(lost)
    client.upsert(words.name, ["later"], VECTORS[:1])

    (leads,) = [n for n in others if measured(nodes, n, "veccluster_failover_seconds_count") == before[n] + 1]
    assert 0 < measured(nodes, leads, "veccluster_failover_seconds_sum") < 30

    now = primary_of(nodes, words)
    body = {"vectors": [{"id": "all", "vector": VECTORS[0].tolist()}]}
    url = f"{nodes.url(now)}/v1/collections/{words.name}/vectors?consistency=all"
    reply = requests.post(url, json=body, timeout=60)
    assert (reply.status_code, reply.json()["type"].rpartition("/")[2]) == (503, "too-few-replicas")
    assert measured(nodes, now, refused, reason="too-few-replicas") > refused_before[now]

    shutil.rmtree(nodes.data(lost) / "shards" / f"{words.details['uuid']}.0")
    nodes.start(lost)
    nodes.wait_healthy()
    assert measured(nodes, lost, "veccluster_replica_refetches_total") == 1
