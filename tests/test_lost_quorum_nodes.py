"""Real nodes that lose most copies of a shard for good: a person is told what is lost, accepts it, and it goes on."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests

from support.cluster import wait_until
from support.etcd import EtcdCluster
from support.nodes import FAST, Nodes, filled, record_of
from veccluster import Client, errors
from veccluster.client import ShardRecovery
from veccluster.client.results import CollectionInfo
from veccluster_cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

VECTORS = np.eye(16, dtype=np.float32)
IDS = [f"id-{i}" for i in range(16)]
REPLACE_AFTER = 2.0


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
def nodes(etcd: EtcdCluster) -> Iterator[Nodes]:
    with Nodes(3, etcd=etcd, spec=FAST) as made:
        yield made


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with nodes.client(timeout=30.0) as made:
        yield made


@pytest.fixture
def words(nodes: Nodes, client: Client) -> CollectionInfo:
    return filled(nodes, client, VECTORS)


def primary_of(nodes: Nodes, words: CollectionInfo) -> int:
    return int(record_of(nodes, words).primary.node[1:])


def in_sync(nodes: Nodes, words: CollectionInfo) -> set[str]:
    return {m.node for m in record_of(nodes, words).in_sync}


def leases(nodes: Nodes) -> str:
    """The nodes that etcd takes for alive."""
    assert nodes.etcd
    return nodes.etcd.ctl("get", f"/veccluster/default/{nodes.name}/alive/", "--prefix", "--keys-only").strip()


def write(nodes: Nodes, number: int, words: CollectionInfo, name: str, level: str) -> requests.Response:
    """Ask one node to store one vector, once."""
    url = f"{nodes.url(number)}/v1/collections/{words.name}/vectors?consistency={level}"
    return requests.post(url, json={"vectors": [{"id": name, "vector": VECTORS[0].tolist()}]}, timeout=60)


def count(nodes: Nodes, number: int, words: CollectionInfo, level: str) -> requests.Response:
    url = f"{nodes.url(number)}/v1/collections/{words.name}/count"
    return requests.post(url, json={"consistency": level}, timeout=60)


def recover(nodes: Nodes, number: int, words: CollectionInfo, **body: Any) -> requests.Response:
    return requests.post(f"{nodes.url(number)}/v1/collections/{words.name}/shards/0/recover", json=body, timeout=60)


def report_of(client: Client, words: CollectionInfo) -> ShardRecovery:
    """The report, as soon as there is something to accept."""
    found: list[ShardRecovery] = []

    def is_there() -> bool:
        found.append(client.recover_shard(words.name, 0))
        return found[-1].refusal is None

    wait_until(is_there, "the leases of the dead to end")
    return found[-1]


@pytest.fixture
def cli(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str, code: int = 0, typed: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setenv("VECCLUSTER_SERVER", nodes.url(run.node))  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, "argv", ["veccluster", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        done = capfd.readouterr()
        assert left.value.code == code, done.err
        return done.out + done.err

    return run


def test_a_shard_with_one_copy_in_sync_left_takes_writes_again_and_is_whole_again_once_nodes_are_back(
    nodes: Nodes, client: Client, words: CollectionInfo, cli: Any
) -> None:
    left = (primary_of(nodes, words) + 1) % 3
    gone = [n for n in range(3) if n != left]
    cli.node = left
    assert "can serve it" in cli("shards", "recover", words.name, "0")
    nodes.kill(*gone)  # at once, before one of them can be let go
    for number in gone:
        shutil.rmtree(nodes.data(number))
    report_of(client, words)
    before = record_of(nodes, words)
    wait_until(lambda: nodes.cluster(left)["health"] == "critical", "it to be told")
    assert nodes.cluster(left)["issues"][0].startswith("Lost quorum: shard 0 of collection")
    assert count(nodes, left, words, "eventual").json() == {"count": 16}
    assert write(nodes, left, words, "later", "one").status_code in {503, 504}

    shown = cli("shards", "recover", words.name, "0")
    assert "Nothing that was acknowledged is lost" in shown and "Nothing is changed" in shown
    missing = {m.node for m in before.in_sync} - {f"n{left}"}  # one may have been made a learner before it was known
    assert missing and all(node in shown for node in missing) and "does not answer" in shown, shown
    assert json.loads(cli("shards", "recover", words.name, "0", "-o", "json").split("\n}\n")[0] + "}")["silent"]
    cli("shards", "recover", words.name, "0", "--accept-data-loss", "--confirm", "words/0", code=2)
    cli("shards", "recover", words.name, "0", "--accept-data-loss", typed="yes\n", code=2)
    assert record_of(nodes, words) == before, "nothing is done without the exact words"

    done = cli("shards", "recover", words.name, "0", "--accept-data-loss", typed=f"{words.name}/0\n")
    assert f"Type {words.name}/0 to accept this" in done and "Accepted: shard 0" in done
    after = record_of(nodes, words)
    assert after.epoch > before.epoch and after.min_in_sync == 1 and in_sync(nodes, words) == {f"n{left}"}
    assert "data_loss_accepted" in nodes.log_file(left).read_text()
    assert write(nodes, left, words, "later", "one").status_code == 200
    assert write(nodes, left, words, "more", "quorum").status_code == 503
    assert count(nodes, left, words, "strong").json() == {"count": 17}
    assert "writes are acknowledged with 1 instead of 2" in " ".join(nodes.cluster(left)["issues"])

    for number in gone:
        nodes.start(number)
    wait_until(lambda: in_sync(nodes, words) == {"n0", "n1", "n2"}, "all to be in sync")
    wait_until(lambda: record_of(nodes, words).min_in_sync == 2, "two copies to be asked for again")
    nodes.wait_healthy()
    client.upsert(words.name, ["more"], VECTORS[:1])
    assert client.count(words.name) == 18


def test_with_a_learner_left_what_is_lost_is_told_and_a_copy_that_comes_back_is_made_equal(
    nodes: Nodes, client: Client, words: CollectionInfo
) -> None:
    left = (primary_of(nodes, words) + 1) % 3
    wiped, kept = (n for n in range(3) if n != left)
    nodes.kill(left)
    client.upsert(words.name, ["lost-1", "lost-2"], VECTORS[:2])
    wait_until(lambda: in_sync(nodes, words) == {f"n{wiped}", f"n{kept}"}, "the copy that is away to be done without")
    nodes.kill(wiped, kept)
    shutil.rmtree(nodes.data(wiped))
    nodes.start(left)

    report = report_of(client, words)
    assert {m["node"] for m in report.missing} == {f"n{wiped}", f"n{kept}"}
    check_loss(report, left, "learner")
    assert count(nodes, left, words, "eventual").status_code == 503
    refused = recover(nodes, left, words, accept_data_loss=True, expected="1 n9/disk")
    assert refused.status_code == 409 and refused.json()["type"].endswith("/recovery-refused")
    assert recover(nodes, left, words, accept_data_loss=True).status_code == 400
    accept(nodes, client, words, report, left)

    nodes.start(wiped)
    nodes.start(kept)
    check_whole(nodes, client, words, {0, 1, 2})
    assert "replica_diverged" in nodes.log_file(kept).read_text()


def test_with_only_a_copy_left_that_the_record_names_no_more_that_is_found_and_kept(etcd: EtcdCluster) -> None:
    with Nodes(4, etcd=etcd, spec=FAST) as nodes, nodes.client(timeout=30.0) as client:
        for number in range(4):
            assert nodes.stop(number) == 0
            nodes.start(number, replace_after=REPLACE_AFTER)
        words = filled(nodes, client, VECTORS)
        left = next(int(m.node[1:]) for m in record_of(nodes, words).in_sync if m != record_of(nodes, words).primary)
        nodes.kill(left)
        client.upsert(words.name, ["lost-1", "lost-2"], VECTORS[:2])
        others = {n for n in range(4) if n != left}
        wait_until(lambda: in_sync(nodes, words) == {f"n{n}" for n in others}, "a copy to be made elsewhere")
        nodes.kill(*others)
        for number in others:
            shutil.rmtree(nodes.data(number))
        wait_until(lambda: not leases(nodes), "the others to be known as dead")
        nodes.start(left, replace_after=REPLACE_AFTER)

        report = report_of(client, words)
        assert {m["node"] for m in report.missing} == {f"n{n}" for n in others}
        check_loss(report, left, "not in the record")
        accept(nodes, client, words, report, left)

        *back, last = others
        for number in back:
            nodes.start(number, replace_after=REPLACE_AFTER)
        wait_until(lambda: in_sync(nodes, words) == {f"n{n}" for n in (left, *back)}, "all to be in sync")
        nodes.start(last, replace_after=REPLACE_AFTER)
        check_whole(nodes, client, words, {left, *back})


def check_loss(report: ShardRecovery, left: int, role: str) -> None:
    """The report says how far the copy that is left has come, and that the rest is lost."""
    (found,) = report.copies
    assert (found["node"], found["role"], found["seq"], found["vectors"]) == (f"n{left}", role, 16, 16)
    said = " ".join(report.losses)
    assert f"Operations after epoch {found['epoch']}, seq 16 are lost" in said
    assert f"written at {found['written']}: at most what was written since is lost" in said


def accept(nodes: Nodes, client: Client, words: CollectionInfo, report: ShardRecovery, left: int) -> None:
    """Accept it: the shard serves again what the copy has."""
    done = client.recover_shard(words.name, 0, accept=report.expected)
    epoch = record_of(nodes, words).epoch
    assert done.done and done.then == {
        "primary": f"n{left}",
        "epoch": epoch,
        "in_sync": [f"n{left}"],
        "min_in_sync": 1,
    }
    assert count(nodes, left, words, "strong").json() == {"count": 16}
    assert write(nodes, left, words, "new", "one").status_code == 200


def check_whole(nodes: Nodes, client: Client, words: CollectionInfo, members: set[int]) -> None:
    """All copies are in sync and the same, without anything of what was lost, and there is nothing more to accept."""
    wait_until(lambda: in_sync(nodes, words) == {f"n{n}" for n in members}, "all to be in sync")
    wait_until(lambda: record_of(nodes, words).min_in_sync == 2, "two copies to be asked for again")
    nodes.wait_healthy()
    for number in members:
        assert count(nodes, number, words, "eventual").json() == {"count": 17}
    with nodes.client(timeout=30.0) as anew, pytest.raises(errors.VectorNotFound):
        anew.get(words.name, "lost-1", consistency="strong")
    again = client.recover_shard(words.name, 0)
    assert again.refusal and "can serve it" in again.refusal
