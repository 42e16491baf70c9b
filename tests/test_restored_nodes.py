"""etcd goes back to an older state under running nodes: what they have acknowledged counts, not what etcd remembers."""

from collections.abc import Iterator

import numpy as np
import pytest

from support.cluster import wait_until
from support.nodes import FAST, Nodes, filled, record_of
from veccluster import Client
from veccluster.client.results import CollectionInfo

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VECTORS = np.eye(16, dtype=np.float32)
IDS = [f"id-{i}" for i in range(16)]
MORE = ["later-0", "later-1"]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes(3, spec=FAST, config={"replace_after": 300.0}) as made:
        yield made


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with nodes.client(timeout=30.0) as made:
        yield made


def primary_of(nodes: Nodes, words: CollectionInfo) -> int:
    return int(record_of(nodes, words).primary.node[1:])


def moved(nodes: Nodes, words: CollectionInfo, before: int) -> bool:
    return primary_of(nodes, words) != before


def has_all(client: Client, words: CollectionInfo) -> None:
    for id_ in (*IDS, *MORE):
        client.get(words.name, id_, consistency="strong")


def fail_over(nodes: Nodes, words: CollectionInfo) -> int:
    """Another node becomes primary, while the one before stays away; which one that is."""
    old = primary_of(nodes, words)
    nodes.kill(old)
    wait_until(lambda: moved(nodes, words, old), "a failover")
    return old


@pytest.mark.parametrize("how", ["snapshot", "same-cluster", "copy"])
def test_etcd_that_goes_back_is_brought_forward_and_everything_goes_on(nodes: Nodes, client: Client, how: str) -> None:
    words = filled(nodes, client, VECTORS)
    taken = nodes.etcd.copy_data() if how == "copy" else nodes.etcd.snapshot()
    nodes.wait_healthy()
    old = fail_over(nodes, words)
    client.upsert(words.name, MORE, VECTORS[:2])
    nodes.start(old)
    nodes.wait_ready(old)
    nodes.wait_healthy()
    epoch = record_of(nodes, words).epoch

    nodes.etcd.restore(taken, token="etcd-cluster" if how == "same-cluster" else "restored")
    wait_until(lambda: record_of(nodes, words).epoch > epoch, "etcd to be brought forward")
    nodes.wait_healthy()
    has_all(client, words)

    later = client.create_collection("later", dimension=4, metric="l2", shards=2, replication_factor=3)
    client.upsert(later.name, ["a"], np.ones((1, 4), dtype=np.float32))
    fail_over(nodes, words)
    has_all(client, words)
    client.upsert(words.name, ["last"], VECTORS[:1])


def test_a_copy_that_etcd_calls_in_sync_again_is_not_promoted_for_that(nodes: Nodes, client: Client) -> None:
    words = filled(nodes, client, VECTORS)
    taken = nodes.etcd.snapshot()
    behind = next(int(m.node[1:]) for m in record_of(nodes, words).in_sync if m != record_of(nodes, words).primary)
    nodes.kill(behind)
    wait_until(lambda: len(record_of(nodes, words).in_sync) == 2, "the primary to let it go")
    client.upsert(words.name, MORE, VECTORS[:2])
    others = [n for n in range(3) if n != behind]
    for number in others:
        nodes.kill(number)
    nodes.etcd.restore(taken)
    assert len(record_of(nodes, words).in_sync) == 3, "etcd has forgotten it"

    nodes.start(behind)
    wait_until(lambda: nodes.cluster(behind).get("leader") == f"n{behind}", "it to lead, alone as it is")
    for number in others:
        nodes.start(number)
    wait_until(lambda: record_of(nodes, words).history != "", "the record to be settled")
    for number in range(3):
        nodes.wait_ready(number)
    nodes.wait_healthy()
    has_all(client, words)


def test_a_shard_that_etcd_says_was_never_opened_keeps_its_data(nodes: Nodes, client: Client) -> None:
    words = filled(nodes, client, VECTORS)
    key = f"/veccluster/default/{nodes.name}/shards/{words.details['uuid']}/0"
    value = nodes.etcd.ctl("get", key, "--print-value-only").strip()
    nodes.etcd.ctl("put", key, value.replace(f'"epoch":{record_of(nodes, words).epoch}', '"epoch":0'))
    client.upsert(words.name, MORE, VECTORS[:2])
    taken = nodes.etcd.snapshot()
    nodes.etcd.ctl("put", "/elsewhere", "1")
    nodes.etcd.restore(taken)
    wait_until(lambda: record_of(nodes, words).epoch > 1, "etcd to be brought forward")
    nodes.wait_healthy()
    has_all(client, words)
    assert all(any(nodes.data(n).glob("shards/*")) for n in range(3))
