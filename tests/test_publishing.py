"""A node tells the others how it fares when somebody decides by it, and seldom otherwise."""

import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cluster import wait_until
from support.nodes import FAST, Nodes
from support.states import collection, load, node, shard
from veccluster.decisions.publishing import EVERY, STEP, URGENT_EVERY, pause
from veccluster.model.state import Load, NodeId, ReadOnly, Revision
from veccluster_etcd import NO_LEASE, KeyValue
from veccluster_node.metadata import book as books
from veccluster_node.metadata.book import Book
from veccluster_node.metadata.keys import Keys, encode, encode_shard

TOLD = load(NodeId("n0"))


def told_with(**changes: object) -> Load:
    return msgspec.structs.replace(TOLD, **changes)


URGENT = [
    told_with(serving=("a.0",)),
    told_with(cut_off=("a.0",)),
    told_with(broken=("a.0",)),
    told_with(read_only=(ReadOnly(shard="a.0", why="full"),)),
]
NEWS = [
    told_with(issues=("disk",)),
    told_with(recovering=("a.0",)),
    told_with(disk_used=STEP),
    told_with(memory_used=STEP),
]
NO_NEWS = [TOLD, told_with(disk_used=STEP - 1), told_with(memory_used=STEP - 1)]


@pytest.mark.parametrize("now", URGENT)
def test_what_others_wait_for_is_told_at_once(now: Load) -> None:
    assert pause(now, TOLD, EVERY) == 0
    assert pause(now, TOLD, URGENT_EVERY) == 0
    assert pause(now, TOLD, 0.0) == URGENT_EVERY, "together with what follows in the same moment"


@pytest.mark.parametrize("now", NEWS)
def test_other_news_are_told_once_a_second(now: Load) -> None:
    assert pause(now, TOLD, EVERY) == 0
    assert pause(now, TOLD, EVERY / 2) is None


@given(now=st.sampled_from(NO_NEWS), since=st.floats(0, 1e6))
def test_what_nobody_decides_by_is_not_told(now: Load, since: float) -> None:
    assert pause(now, TOLD, since) is None
    assert pause(now, None, since) == 0, "but something is said once"


def test_a_change_of_one_key_decodes_that_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, decoded = Keys("default", "demo"), []
    real = books.value_of
    monkeypatch.setattr(books, "value_of", lambda slot, found: decoded.append(slot) or real(slot, found))
    made = Book(keys.prefix)
    values = {keys.shard(s.id): encode_shard(s) for s in (shard(i, node(0)) for i in range(200))}
    values[keys.collection("words")] = encode(collection("words", 100))
    kv = {k: KeyValue(k, v, Revision(1), Revision(1), 1, NO_LEASE) for k, v in values.items()}
    made.note(kv.items(), Revision(1), anew=True)
    assert len(decoded) == len(kv)
    before = made.state
    alive = keys.alive(node(0).id)
    made.note([(alive, KeyValue(alive, encode(load(node(0).id)), Revision(2), Revision(2), 1, NO_LEASE))], Revision(2))
    assert len(decoded) == len(kv) + 1
    assert made.state.shards is before.shards, "what has not changed is not even copied"
    assert made.state.alive != before.alive


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_inserts_write_nothing_to_etcd() -> None:
    with Nodes(3, spec=FAST) as nodes, nodes.client(timeout=30.0) as client:
        client.create_collection("words", dimension=4, metric="l2", shards=3, replication_factor=3)
        nodes.wait_healthy()

        def revision() -> int:
            return int(nodes.etcd.ctl("get", "/none", "-w", "json").split('"revision":')[1].split(",")[0])

        wait_until(lambda: client.upsert("words", ["first"], np.ones((1, 4), np.float32)), "a first write")
        began, before = time.monotonic(), revision()
        for number in range(300):
            client.upsert("words", [f"id-{number}"], np.ones((1, 4), np.float32))
        seconds = time.monotonic() - began
        assert revision() - before <= 3 * (1 + seconds / EVERY), "one write a node and second at most"
        assert revision() - before < 30
        assert client.collection("words").count == 301, "the nodes say how many there are"
