"""What is in etcd and makes no sense ends nobody: it is left out and told, and what the key said before counts on."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cluster import wait_until
from support.nodes import FAST, Nodes
from support.states import collection, load, node, shard
from veccluster.decisions import assignment, hosting
from veccluster.decisions.health import judge
from veccluster.model.cluster import Drop, History
from veccluster.model.state import Incarnation, NodeState, Revision
from veccluster.model.status import Health
from veccluster_etcd import NO_LEASE, KeyValue
from veccluster_node.metadata.batches import Batches
from veccluster_node.metadata.book import Book
from veccluster_node.metadata.keys import Keys, encode, encode_shard

KEYS = Keys("default", "demo")
WORDS, ME, RECORD = collection("words", 1), node(0), shard(0, node(0))
DROP = Drop(uuid="u", name="gone")
GOOD = {
    KEYS.leader: b"n0",
    KEYS.history: encode(History()),
    KEYS.node(ME.id): encode(ME),
    KEYS.alive(ME.id): encode(load(ME.id)),
    KEYS.collection("words"): encode(WORDS),
    KEYS.shard(RECORD.id): encode_shard(RECORD),
    KEYS.drop("u"): encode(DROP),
    KEYS.dropped_by("u", ME.id): b"{}",
}


def kv(key: str, value: bytes, revision: int = 1) -> KeyValue:
    return KeyValue(key, value, Revision(revision), Revision(revision), 1, NO_LEASE)


def book() -> Book:
    made = Book(KEYS.prefix)
    made.note([(k, kv(k, v)) for k, v in GOOD.items()], Revision(1), anew=True)
    assert not made.state.unreadable
    return made


def judged(of: Book) -> str:
    """Everything that is decided by the state, once."""
    list(assignment.decide(of.state))
    list(hosting.decide(hosting.Disk(ME.id, Incarnation(ME.incarnation)), of.state, {}))
    return " ".join(judge(of.state).issues)


VALUES = [
    *(b"{}", b"", b"null", b"[]", b"7", b"\xff\xfe", b'{"id":"else"}', b'{"id":"n0","address":"","peer_address":"x"}'),
    encode_shard(msgspec.structs.replace(RECORD, in_sync=())),
    encode_shard(RECORD).replace(b'"epoch":1', b'"epoch":-1'),
    encode(WORDS).replace(b'"cosine"', b'"hamming"'),
    encode(msgspec.structs.replace(WORDS, shards=1_000_000)),
    encode(msgspec.structs.replace(WORDS, uuid="../..")),
]


@given(key=st.sampled_from(sorted(GOOD)), value=st.sampled_from(VALUES) | st.binary(max_size=40))
def test_a_key_that_makes_no_sense_changes_nothing_but_what_is_told(key: str, value: bytes) -> None:
    of, before = book(), book().state
    of.note([(key, kv(key, value, 2))], Revision(2))
    if key in of.state.unreadable:
        same = msgspec.structs.replace(of.state, unreadable={}, revision=before.revision)
        assert same == before
        assert f"The key {key} in etcd cannot be read" in judged(of)
        assert judge(of.state).health is not Health.healthy
    else:
        judged(of)
    of.note([(key, kv(key, GOOD[key], 1))], Revision(3))
    assert msgspec.structs.replace(of.state, revision=before.revision) == before


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_a_key_said_before_is_kept_when_all_is_read_again(key: str) -> None:
    of, before = book(), book().state
    changed = {**GOOD, key: b"\xff"}
    of.note([(k, kv(k, v)) for k, v in changed.items()], Revision(1), anew=True)
    if of.state.unreadable:
        assert msgspec.structs.replace(of.state, unreadable={}) == before
    of.note([(k, kv(k, v)) for k, v in GOOD.items() if k != key], Revision(2), anew=True)
    assert not of.state.unreadable
    assert of.state != before, "it is gone, and so is what it said"


@pytest.mark.parametrize(
    "path",
    ["nodes/evil", "shards/x", "shards/x/y", "shards/x/-1", "shards/x/007", "nodes/\udcff", "alive/", "leader/x"],
)
def test_a_key_with_an_odd_name_ends_nobody(path: str) -> None:
    of, before = book(), book().state
    of.note([(KEYS.prefix + path, kv(KEYS.prefix + path, b"{}", 2))], Revision(1))
    assert msgspec.structs.replace(of.state, unreadable={}) == before
    judged(of).encode()
    of.note([(KEYS.prefix + path, None)], Revision(2))
    assert not of.state.unreadable


def test_a_state_of_a_node_that_a_newer_version_knows_keeps_it_a_member() -> None:
    of = book()
    value = encode(ME).replace(b'"active"', b'"hibernating"')
    of.note([(KEYS.node(ME.id), kv(KEYS.node(ME.id), value, 2))], Revision(2))
    assert of.state.nodes[ME.id].state is NodeState.unknown
    assert not of.state.unreadable
    judged(of)


def test_a_decision_that_cannot_be_read_is_told() -> None:
    batches = Batches(KEYS.batches)
    key = KEYS.batches + "uuid/decisions/hash/1"
    for value in (b"{}", b'{"operation":"a","attempt":1,"verdict":"postponed","prepared":{}}'):
        batches.note(key, kv(key, value))
        assert key in batches.unreadable
        batches.reach(Revision(1))
    batches.note(key, None)
    assert not batches.unreadable


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_nodes_go_on_and_start_with_keys_that_make_no_sense() -> None:
    with Nodes(3, spec=FAST) as nodes, nodes.client(timeout=30.0) as client:
        made = client.create_collection("words", dimension=4, metric="l2", shards=2, replication_factor=3)
        client.upsert("words", ["a"], [[1.0, 2.0, 3.0, 4.0]])
        nodes.wait_healthy()
        prefix = f"/veccluster/default/{nodes.name}/"
        record = prefix + f"shards/{made.details['uuid']}/0"
        before = nodes.etcd.ctl("get", record, "--print-value-only").strip()
        evil = {"nodes/evil": "{}", record.removeprefix(prefix): "[]", "atomic/x/decisions/y/1": "{}"}
        evil |= {"nodes/n1": '{"id": 7}', "collections/odd": "null", "shards/x/y": "{}", "history": "what"}
        for path, value in evil.items():
            nodes.etcd.ctl("put", prefix + path, value)
        told = {prefix + path for path in evil if path not in {"nodes/n1", "history"}}  # those are put right
        wait_until(lambda: all(k in str(nodes.cluster(0).get("issues")) for k in told), "the issues to be told")
        client.upsert("words", ["b"], [[1.0, 2.0, 3.0, 4.0]])
        nodes.kill(2)
        nodes.start(2)
        nodes.wait_ready(2)
        client.create_collection("more", dimension=4, metric="l2", shards=2, replication_factor=3)
        client.upsert("more", ["a"], [[1.0, 2.0, 3.0, 4.0]])
        for path in evil:
            if path.startswith(("nodes/evil", "atomic", "collections", "shards/x/")):
                nodes.etcd.ctl("del", prefix + path)
        nodes.etcd.ctl("put", record, before)  # nobody could change it meanwhile; who has started since waits for it
        nodes.wait_healthy()
        assert client.get("words", "b", consistency="strong").id == "b"
