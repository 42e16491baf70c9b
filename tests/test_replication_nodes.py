"""Real nodes with three copies of a shard: one goes away in some way, nothing is lost, and it is made good again."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from support.cluster import wait_until
from support.etcd import EtcdCluster
from support.nodes import FAST, Nodes, filled, record_of
from veccluster import Client
from veccluster.client.results import CollectionInfo

pytestmark = pytest.mark.e2e

VECTORS = np.eye(16, dtype=np.float32)
IDS = [f"id-{i}" for i in range(16)]
SLOW = {"failover": {"heartbeat": "1s", "timeout": "6s"}}
"""A spec whose nodes are taken for alive while they start again."""


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def nodes(etcd: EtcdCluster) -> Iterator[Nodes]:
    with Nodes(3, etcd=etcd, spec=FAST) as made:
        yield made


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with nodes.client(timeout=30.0) as made:
        yield made


@pytest.fixture
def words(nodes: Nodes, client: Client) -> Iterator[CollectionInfo]:
    """A collection whose vectors every replica has."""
    made = filled(nodes, client, VECTORS)
    yield made
    client.delete_collection(made.name)


def _primary(nodes: Nodes, words: CollectionInfo) -> int:
    return int(record_of(nodes, words).primary.node[1:])


def _is_whole(nodes: Nodes, words: CollectionInfo, *members: int) -> bool:
    return {m.node for m in record_of(nodes, words).in_sync} == {f"n{i}" for i in members}


def test_a_primary_that_is_killed_is_replaced_and_comes_back_as_a_copy(
    nodes: Nodes, client: Client, words: CollectionInfo
) -> None:
    lost, before = _primary(nodes, words), record_of(nodes, words)
    nodes.kill(lost)
    client.upsert(words.name, ["later"], VECTORS[:1])
    after = record_of(nodes, words)
    assert after.epoch > before.epoch and after.primary.node != f"n{lost}"
    assert client.count(words.name) == 17
    assert all(client.get(words.name, i, consistency="strong").id == i for i in IDS)
    nodes.start(lost)
    wait_until(lambda: _is_whole(nodes, words, 0, 1, 2), "all to be in sync")
    nodes.wait_healthy()


def test_a_node_that_is_stopped_hands_over_before_it_goes(nodes: Nodes, client: Client, words: CollectionInfo) -> None:
    going, before = _primary(nodes, words), record_of(nodes, words)
    assert nodes.stop(going) == 0
    after = record_of(nodes, words)
    assert after.epoch == before.epoch + 1 and after.primary.node != f"n{going}"
    assert "handover" in "".join(nodes.log_file(n).read_text() for n in range(3))
    client.upsert(words.name, ["later"], VECTORS[:1])
    nodes.start(going)
    wait_until(lambda: _is_whole(nodes, words, 0, 1, 2), "all to be in sync")


@pytest.mark.parametrize("is_primary", [True, False])
def test_a_replica_whose_directory_is_gone_is_fetched_again_as_another_member(
    nodes: Nodes, client: Client, words: CollectionInfo, is_primary: bool
) -> None:
    primary = _primary(nodes, words)
    loser = primary if is_primary else (primary + 1) % 3
    old = next(m for m in record_of(nodes, words).in_sync if m.node == f"n{loser}")
    nodes.kill(loser)
    client.upsert(words.name, ["later"], VECTORS[:1])
    shutil.rmtree(nodes.data(loser) / "shards" / f"{words.details['uuid']}.0")
    nodes.start(loser)
    wait_until(lambda: _is_whole(nodes, words, 0, 1, 2), "all to be in sync")
    new = next(m for m in record_of(nodes, words).in_sync if m.node == f"n{loser}")
    assert new != old
    stored = json.loads((nodes.data(loser) / "node.json").read_text())
    assert stored["replicas"][f"{words.details['uuid']}.0"] == {"incarnation": new.incarnation, "present": True}
    nodes.wait_healthy()


def test_a_node_with_a_new_disk_that_starts_at_once_waits_until_it_is_no_longer_taken_for_the_old_one(
    etcd: EtcdCluster,
) -> None:
    with Nodes(3, etcd=etcd, spec=SLOW) as nodes, nodes.client(timeout=30.0) as client:
        words = filled(nodes, client, VECTORS)
        old = record_of(nodes, words).in_sync
        nodes.kill(1)
        shutil.rmtree(nodes.data(1))
        nodes.start(1)
        wait_until(lambda: len({*old, *record_of(nodes, words).in_sync}) == 4, "another member to be in sync")
        wait_until(lambda: _is_whole(nodes, words, 0, 1, 2), "all to be in sync")


@pytest.mark.parametrize("down", ["alone", "all"])
@pytest.mark.parametrize("which", ["primary", "follower"])
def test_an_old_copy_of_a_disk_that_is_put_back_costs_nothing(etcd: EtcdCluster, which: str, down: str) -> None:
    """Where all were down it is in sync in the record and may lead; alone it may be a learner before it is back.

    Either its copy is given up for another, or it is taken out, and sent what it lacks: which one is first is a race.
    """
    with Nodes(3, etcd=etcd, spec=SLOW) as nodes, nodes.client(timeout=30.0) as client:
        words = filled(nodes, client, VECTORS)
        loser = _primary(nodes, words) if which == "primary" else (_primary(nodes, words) + 1) % 3
        aside = nodes.path / "aside"
        shutil.copytree(nodes.data(loser), aside)  # as a volume's snapshot has it; nobody writes
        for _ in range(2):  # the second tells the others that the first is committed
            client.upsert(words.name, [f"later-{i}" for i in range(16)], VECTORS)
        others = {0, 1, 2} - {loser} if down == "all" else set()
        for number in {loser, *others}:
            nodes.kill(number)
        shutil.rmtree(nodes.data(loser))
        aside.rename(nodes.data(loser))
        nodes.start(loser)
        wait_until(lambda: nodes.log_file(loser).read_text().count('"listening"') == 2, "the node to listen")
        for number in others:
            nodes.start(number)
        assert client.count(words.name, consistency="strong") == 32
        wait_until(lambda: _is_whole(nodes, words, 0, 1, 2), "all to be in sync")
        nodes.wait_healthy()
        for server in nodes.servers:
            with Client([server], timeout=30.0) as one:
                wait_until(lambda one=one: one.count(words.name) == 32, "each copy to have all")


def test_a_copy_on_a_node_that_stays_away_is_made_on_another(etcd: EtcdCluster) -> None:
    with Nodes(4, etcd=etcd, spec=FAST) as nodes, nodes.client(timeout=30.0) as client:
        for number in range(4):  # with a patience that a test has
            assert nodes.stop(number) == 0
            nodes.start(number, replace_after=2.0)
        nodes.wait_healthy()
        words = client.create_collection("words", dimension=16, metric="cosine", shards=1, replication_factor=3)
        client.upsert(words.name, IDS, VECTORS)
        there = {int(m.node[1:]) for m in record_of(nodes, words).in_sync}
        (spare,) = {0, 1, 2, 3} - there
        lost = next(iter(there - {_primary(nodes, words)}))
        nodes.kill(lost)
        wait_until(lambda: _is_whole(nodes, words, *(there - {lost} | {spare})), "the spare node to have a copy")
        nodes.start(lost, replace_after=2.0)
        gone = nodes.data(lost) / "shards" / f"{words.details['uuid']}.0"
        wait_until(lambda: not gone.exists(), "the copy that is not needed to be deleted")
        client.upsert(words.name, ["later"], VECTORS[:1])
        assert client.count(words.name) == 17
        nodes.wait_healthy()
