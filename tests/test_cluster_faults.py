"""What users see when parts of a cluster break: clear words, nothing lost, and the way on."""

import asyncio
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import aclosing

import numpy as np
import pytest

from support.cluster import unique_name, wait_until
from support.etcd import EtcdCluster
from support.nodes import Nodes
from veccluster import Client
from veccluster.errors import CollectionNotFound, MetadataUnavailable, ShardsUnavailable
from veccluster.model.state import Revision
from veccluster_etcd import EtcdClient, Event

pytestmark = pytest.mark.e2e

VECTORS = np.eye(8, dtype=np.float32)
IDS = [f"id-{i}" for i in range(8)]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes(3) as running:
        yield running


def _filled(client: Client) -> str:
    name = unique_name()
    client.create_collection(name, dimension=8, metric="l2")
    client.upsert(name, IDS, VECTORS)
    return name


def _primary_of(client: Client, name: str, number: int) -> int:
    return int((client.collection(name).shard_states[number].primary or "")[1:])


def test_a_node_that_is_down_makes_its_shards_unavailable_by_name_and_nothing_else(nodes: Nodes) -> None:
    with nodes.client(timeout=3) as client:
        name = _filled(client)
        lost = _primary_of(client, name, 1)
        nodes.kill(lost)
        with pytest.raises(ShardsUnavailable) as refused:
            client.search(name, VECTORS[0], k=8)
        assert refused.value.extra["missing_shards"] == [1]
        assert name in refused.value.detail

        partial = client.search(name, VECTORS[0], k=8, allow_partial=True)
        assert partial.partial
        assert list(partial.missing_shards) == [1]
        assert 0 < len(partial) < 8

        with pytest.raises(ShardsUnavailable) as not_written:
            client.upsert(name, IDS, VECTORS)
        stored = set(IDS) - set(not_written.value.extra["not_stored"]) - set(not_written.value.extra["maybe_stored"])
        assert stored == set(partial.ids)
        assert not_written.value.extra["upserted"] == len(stored)

        other = (lost + 1) % 3
        wait_until(lambda: nodes.cluster(other).get("health") == "critical", "the node to be missed")
        issues = nodes.cluster(other)["issues"]
        assert issues[0].startswith(f"Lost quorum: shard 1 of collection {name}: its only replica is on node n{lost}")

        nodes.start(lost)
        nodes.wait_ready(lost)
        nodes.wait_healthy()
        assert {h.id for h in client.search(name, VECTORS[0], k=8)} == set(IDS)


def test_a_node_that_stands_still_delays_nobody_for_longer_than_the_query_timeout(etcd: EtcdCluster) -> None:
    with Nodes(3, etcd=etcd, spec={"tuning": {"queryTimeout": "2s"}}) as nodes, nodes.client(timeout=25) as client:
        name = _filled(client)
        still = _primary_of(client, name, 0)
        nodes.signal(still, signal.SIGSTOP)
        try:
            servers = [nodes.url(n) for n in range(3) if n != still]
            with Client(servers, timeout=25) as patient:
                found = patient.search(name, VECTORS[0], k=8, allow_partial=True)
                assert list(found.missing_shards) == [0]
        finally:
            nodes.signal(still, signal.SIGCONT)
        assert {h.id for h in client.search(name, VECTORS[0], k=8)} == set(IDS)


def test_without_etcd_reads_and_writes_go_on_and_collections_wait_for_it(nodes: Nodes) -> None:
    assert nodes.etcd is not None
    with nodes.client(timeout=8) as client:
        name = _filled(client)
        nodes.etcd.kill(0)
        assert client.delete(name, IDS[:1]).deleted == 1
        client.upsert(name, ["late"], VECTORS[:1])
        assert client.search(name, VECTORS[0], k=1).ids == ["late"]
        with pytest.raises(MetadataUnavailable):
            client.create_collection("other", dimension=8, metric="l2", timeout=10)
        wait_until(lambda: any("etcd has been unreachable" in i for i in nodes.cluster(0)["issues"]), "the issue")
        assert nodes.cluster(0)["health"] == "degraded"

        nodes.etcd.start(0)
        nodes.wait_healthy()
        client.create_collection("other", dimension=8, metric="l2")
        assert client.count(name) == 8


def test_a_node_started_while_etcd_is_away_says_what_it_waits_for_and_joins_when_it_is_back(nodes: Nodes) -> None:
    assert nodes.etcd is not None
    with nodes.client(timeout=10) as client:
        name = _filled(client)
        nodes.etcd.kill(0)
        nodes.kill(2)
        nodes.start(2)
        wait_until(lambda: "health" in nodes.cluster(2), "an answer")
        assert any("waiting for etcd at 127.0.0.1:" in i for i in nodes.cluster(2)["issues"])
        nodes.etcd.start(0)
        nodes.wait_ready(2)
        nodes.wait_healthy()
        assert client.count(name) == 8


def test_another_node_leads_when_the_leader_dies(nodes: Nodes) -> None:
    leader = int(nodes.cluster(0)["leader"][1:])
    nodes.kill(leader)
    other = (leader + 1) % 3
    wait_until(lambda: nodes.cluster(other)["leader"] not in {None, f"n{leader}"}, "another leader")
    with nodes.client(timeout=20) as client:
        client.create_collection("made-by-the-next", dimension=8, metric="l2", shards=2)
        client.upsert("made-by-the-next", IDS, VECTORS)
        assert client.count("made-by-the-next") == 8


def test_a_lost_disk_is_named_and_never_replaced_by_an_empty_one(nodes: Nodes) -> None:
    with nodes.client(timeout=3) as client:
        name = _filled(client)
        lost = _primary_of(client, name, 0)
        nodes.stop(lost)
        nodes.data(lost).rename(nodes.path / "away")
        nodes.start(lost)
        nodes.wait_ready(lost)
        wait_until(lambda: any("no longer has" in i for i in nodes.cluster(lost)["issues"]), "the issue")
        with pytest.raises(ShardsUnavailable):
            client.count(name)

        nodes.stop(lost)
        shutil.rmtree(nodes.data(lost))
        (nodes.path / "away").rename(nodes.data(lost))
        nodes.start(lost)
        nodes.wait_ready(lost)
        nodes.wait_healthy()
        assert client.count(name) == 8


def test_a_shard_directory_that_is_gone_is_reported_and_never_made_anew(nodes: Nodes) -> None:
    with nodes.client(timeout=3) as client:
        name = _filled(client)
        lost = _primary_of(client, name, 0)
        nodes.kill(lost)
        uuid = client.collection(name).details["uuid"]
        shard = nodes.data(lost) / "shards" / f"{uuid}.0"
        shard.rename(nodes.path / "away")
        nodes.start(lost)
        nodes.wait_ready(lost)
        wait_until(lambda: any("its directory is gone" in i for i in nodes.cluster(lost)["issues"]), "the issue")
        assert not shard.exists()
        with pytest.raises(ShardsUnavailable):
            client.count(name)


def test_a_shard_whose_log_is_damaged_makes_the_cluster_critical_and_is_read(nodes: Nodes) -> None:
    with nodes.client(timeout=3) as client:
        name = _filled(client)
        client.upsert(name, IDS, VECTORS)
        hurt = _primary_of(client, name, 0)
        nodes.stop(hurt)
        uuid = client.collection(name).details["uuid"]
        (segment,) = (nodes.data(hurt) / "shards" / f"{uuid}.0" / "log").glob("*.log")
        whole = segment.read_bytes()
        segment.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        nodes.start(hurt)
        nodes.wait_ready(hurt)
        words = f"Shard 0 of collection {name} takes no writes: the log is damaged: {segment.name}: no good record at"
        wait_until(lambda: any(i.startswith(words) for i in nodes.cluster(hurt)["issues"]), "the issue")
        said = nodes.cluster(hurt)
        assert said["health"] == "critical" and said["shards"]["unavailable"] == 0
        (issue,) = said["issues"]
        assert issue.startswith(words) and "; reads go on. Restore its directory from a backup, or export" in issue
        assert client.count(name) == 8
        with pytest.raises(ShardsUnavailable, match="is read-only: the log is damaged"):
            client.upsert(name, IDS, VECTORS)

        nodes.stop(hurt)
        segment.write_bytes(whole)
        nodes.start(hurt)
        nodes.wait_healthy()
        client.upsert(name, IDS, VECTORS)


def test_data_of_a_collection_deleted_while_a_node_was_down_is_deleted_when_it_is_back(nodes: Nodes) -> None:
    with nodes.client(timeout=5) as client:
        name = _filled(client)
        nodes.kill(2)
        client.delete_collection(name)
        with pytest.raises(CollectionNotFound):
            client.collection(name)
        assert list((nodes.data(2) / "shards").iterdir())
        client.create_collection(name, dimension=4, metric="dot", shards=1)
        nodes.start(2)
        nodes.wait_ready(2)
        nodes.wait_healthy()
        kept = client.collection(name).details["uuid"]
        wait_until(
            lambda: all(d.name.startswith(kept) for n in range(3) for d in (nodes.data(n) / "shards").iterdir()),
            "the old data to go",
        )
        assert client.count(name) == 0


def test_a_stopped_node_ends_with_0_and_its_data_is_there_again(nodes: Nodes) -> None:
    with nodes.client(timeout=20) as client:
        name = _filled(client)
        for number in range(3):
            assert nodes.stop(number) == 0
            nodes.start(number)
        for number in range(3):
            nodes.wait_ready(number)
        assert client.count(name) == 8


def test_a_node_that_cannot_start_says_why_in_one_line_and_by_its_exit_code(etcd: EtcdCluster) -> None:
    with Nodes(1, etcd=etcd) as nodes:

        def fails(code: int, says: str, **changes: object) -> None:
            running = nodes._processes.pop(0)
            nodes.start(0, **changes)
            assert nodes.wait_exit(0) == code
            last = nodes.log(0).strip().splitlines()[-1]
            assert last.startswith("veccluster-node: ")
            assert says in last
            nodes._processes[0] = running

        other = str(nodes.path / "other")
        taken = nodes.url(0).removeprefix("http://")
        fails(4, "another process uses")
        fails(3, f"cannot listen on {taken}", data_dir=other)
        fails(2, "must be host:port", listen="nowhere")
        fails(2, "did you mean", spec={"node": 3})
        fails(4, "alive at", data_dir=str(nodes.path / "third"), listen="127.0.0.1:0")
        assert nodes.cluster(0)["health"] == "healthy"


def test_a_creation_is_answered_when_a_node_that_stood_still_has_heard_of_it_too(nodes: Nodes) -> None:
    for still in range(3):  # whichever of them has the shard, the other two need not know of it by themselves
        nodes.signal(still, signal.SIGSTOP)
        goes_on = threading.Timer(1.0, nodes.signal, (still, signal.SIGCONT))
        goes_on.start()
        with Client(nodes.url((still + 1) % 3), timeout=20) as client:
            client.create_collection(f"news-{still}", dimension=8, metric="l2", shards=1)
        assert goes_on.finished.is_set()
        goes_on.join()


def test_while_etcd_finds_a_new_leader_nobody_is_taken_for_gone() -> None:
    """The nodes give up their leases before etcd does: what it has of them is to stay until they have others."""
    with EtcdCluster(3) as etcd, Nodes(2, etcd=etcd) as nodes:
        alive = f"/veccluster/default/{nodes.name}/alive/"
        began, leading = asyncio.run(_revision_and_leader(etcd))
        follower = (leading + 1) % 3
        with etcd.hanging(leading):
            with etcd.hanging(follower):
                for number in range(2):
                    wait_until(lambda n=number: _without_etcd(nodes, n), f"node {number} to lose its lease")
            events = asyncio.run(_until_all_are_back(etcd, alive, began, nodes.size))
    assert all(e.now for e in events), events


async def _revision_and_leader(etcd: EtcdCluster) -> tuple[Revision, int]:
    async with EtcdClient(etcd.config()) as client:
        said = await client.status()
        return (await client.range("/")).revision, next(i for i, s in enumerate(said) if s.member_id == s.leader_id)


def _without_etcd(nodes: Nodes, number: int) -> bool:
    return any("etcd has been unreachable" in issue for issue in nodes.cluster(number)["issues"])


async def _until_all_are_back(etcd: EtcdCluster, prefix: str, since: Revision, nodes: int) -> list[Event]:
    """What became of the nodes' signs of life until all had given one again."""
    events: list[Event] = []
    async with EtcdClient(etcd.config()) as client, aclosing(client.watch(prefix, Revision(since + 1))) as changes:
        async for change in changes:
            events += change.events
            if len({e.key for e in events if e.now}) == nodes:
                return events
    raise AssertionError("the watch ended")
