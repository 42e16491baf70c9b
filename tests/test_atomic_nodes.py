"""Real nodes, and batches over several shards: all or nothing, and no reader sees half, whoever is killed meanwhile."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
import requests

from support.cluster import unique_name, wait_until
from support.etcd import EtcdCluster
from support.nodes import FAST, Nodes
from veccluster import Client
from veccluster.decisions import hashing

pytestmark = pytest.mark.e2e

DIMENSION = 4
SHARDS = 4
GROUPS = 3
SIZE = 6
"""Vectors in a group, in several shards."""
TOGETHER = 3
"""Vectors that are new in each batch."""
SECONDS = 20.0
"""For which nodes are killed."""


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


def made(client: Client, nodes: Nodes, **options: int) -> str:
    nodes.wait_healthy()
    name = unique_name("batches")
    client.create_collection(name, dimension=DIMENSION, metric="l2", **options)
    return name


def group(number: int) -> list[str]:
    return [f"group-{number}-{i}" for i in range(SIZE)]


def over_several_shards(ids: list[str], shards: int = SHARDS) -> bool:
    return len({int(n) for n in hashing.shards_of(ids, hashing.starts(shards))}) > 1


@dataclass
class Batch:
    """What one request asked, and how it ended: `stored`, `refused` or `unknown`."""

    group: int
    value: int
    outcome: str = "unknown"

    @property
    def fresh(self) -> list[str]:
        return [f"fresh-{self.value}-{i}" for i in range(TOGETHER)]

    def body(self) -> dict[str, object]:
        row = {"vector": [float(self.value)] * DIMENSION, "metadata": {"group": self.group, "value": self.value}}
        single = {"vector": [0.0] * DIMENSION, "metadata": {"fresh": self.value}}
        vectors = [{"id": i, **row} for i in group(self.group)] + [{"id": i, **single} for i in self.fresh]
        return {"vectors": vectors, "atomic": True}


@dataclass
class Load:
    """Writers and readers of one collection at nodes that come and go, until `stop`."""

    nodes: Nodes
    collection: str
    batches: list[Batch] = field(default_factory=list)
    reads: int = 0
    torn: list[object] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, rest: str) -> str:
        return f"{random.choice(self.nodes.servers)}/v1/collections/{self.collection}{rest}"

    def write(self, number: int, values: Iterator[int]) -> None:
        while not self.stop.is_set():
            batch = Batch(number, next(values))
            self.batches.append(batch)
            batch.outcome = self.send(batch)

    def send(self, batch: Batch) -> str:
        """Ask some node, and another while nobody says what became of it."""
        body, operation = batch.body(), {"Operation-Id": f"batch-{batch.value}"}
        lost = False
        for _ in range(random.choice([1, 1, 5])):
            try:
                reply = requests.post(self.url("/vectors"), json=body, headers=operation, timeout=20)
            except requests.ConnectionError as error:
                lost = lost or "refused" not in str(error)
                time.sleep(0.1)
                continue
            except requests.RequestException:
                lost = True
                continue
            if reply.ok:
                return "stored"
            assert reply.status_code in (503, 504), reply.text
            lost = lost or "outcome-unknown" in reply.json()["type"]
        return "unknown" if lost else "refused"

    def read(self) -> None:
        while not self.stop.is_set():
            number = random.randrange(GROUPS)
            level = random.choice(["eventual", "session", "quorum", "strong"])
            how = random.choice([self.listed, self.searched, self.fresh_ones])
            try:
                values = how(number, level)
            except requests.RequestException:
                time.sleep(0.05)
                continue
            self.reads += 1
            if len(set(values)) > 1:
                self.torn.append((how.__name__, level, number, values))

    def listed(self, number: int, level: str) -> list[int]:
        where = json.dumps({"$id": {"$in": group(number)}})
        reply = requests.get(self.url("/vectors"), params={"filter": where, "consistency": level}, timeout=20)
        reply.raise_for_status()
        found = reply.json()["vectors"]
        values = [v["metadata"]["value"] for v in found] + [int(v["vector"][0]) for v in found]
        return values if len(found) in (0, SIZE) else [-1, *values]

    def searched(self, number: int, level: str) -> list[int]:
        asked = {"vector": [1e6] * DIMENSION, "k": 2 * SIZE, "filter": {"group": number}, "include": ["metadata"]}
        reply = requests.post(self.url("/search"), json={**asked, "consistency": level}, timeout=20)
        reply.raise_for_status()
        found = reply.json()["results"]
        values = [hit["metadata"]["value"] for hit in found]
        return values if len(found) in (0, SIZE) else [-1, *values]

    def fresh_ones(self, number: int, level: str) -> list[int]:
        """How many there are of those that came together."""
        batch = random.choice([b for b in self.batches[-5:] if b.group == number] or [Batch(number, -1)])
        asked = {"filter": {"fresh": batch.value}, "consistency": level}
        reply = requests.post(self.url("/count"), json=asked, timeout=20)
        reply.raise_for_status()
        return [0, reply.json()["count"]] if reply.json()["count"] not in (0, TOGETHER) else [0]


def running(load: Load, writers: int = GROUPS, readers: int = 3) -> list[threading.Thread]:
    values = count(1)
    work: list[Callable[[], None]] = [lambda n=n: load.write(n % GROUPS, values) for n in range(writers)]
    threads = [threading.Thread(target=one, daemon=True) for one in [*work, *[load.read] * readers]]
    for thread in threads:
        thread.start()
    return threads


def judge(load: Load, client: Client) -> None:
    """Every batch is whole or not there, and those that were acknowledged are there."""
    assert not load.torn, load.torn[:3]
    for number in range(GROUPS):
        mine = [b for b in load.batches if b.group == number]
        found = {client.get(load.collection, i, consistency="strong").metadata["value"] for i in group(number)}
        assert len(found) == 1, f"group {number} shows {found}"
        last = max(b.value for b in mine if b.outcome == "stored")
        later = {b.value for b in mine if b.value == last or b.outcome == "unknown"}
        assert found <= later, f"group {number} shows {found}, not one of {later}"
    there: dict[int, int] = {}
    for vector in client.iterate(load.collection, filter={"fresh": {"$exists": True}}):
        there[vector.metadata["fresh"]] = there.get(vector.metadata["fresh"], 0) + 1
    for batch in load.batches:
        expected = {"stored": {TOGETHER}, "refused": {0}, "unknown": {0, TOGETHER}}[batch.outcome]
        assert there.get(batch.value, 0) in expected, (batch, there.get(batch.value, 0))


def test_nobody_sees_half_of_a_batch_while_nodes_are_killed_and_none_is_half_there_afterwards(
    nodes: Nodes, client: Client
) -> None:
    name = made(client, nodes, shards=SHARDS, replication_factor=3, min_in_sync=2)
    assert all(over_several_shards(group(n)) for n in range(GROUPS))
    load = Load(nodes, name)
    threads = running(load)
    try:
        until, victim = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            time.sleep(random.uniform(0.5, 2.0))
            nodes.kill(victim)
            time.sleep(random.uniform(0.0, 3.0))
            nodes.start(victim)
            nodes.wait_ready(victim)
            victim = (victim + random.choice([1, 2])) % 3
        nodes.wait_healthy()
        before = sum(b.outcome == "stored" for b in load.batches)
        wait_until(lambda: sum(b.outcome == "stored" for b in load.batches) > before + GROUPS, "batches to be stored")
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(60)
    judge(load, client)
    assert load.reads > 50


def test_the_same_holds_with_one_copy_of_each_shard(nodes: Nodes, client: Client) -> None:
    load = Load(nodes, made(client, nodes, shards=SHARDS, replication_factor=1))
    threads = running(load)
    try:
        for victim in range(3):
            time.sleep(1.0)
            nodes.kill(victim)
            time.sleep(0.5)
            nodes.start(victim)
            nodes.wait_ready(victim)
        nodes.wait_healthy()
        before = sum(b.outcome == "stored" for b in load.batches)
        wait_until(lambda: sum(b.outcome == "stored" for b in load.batches) > before + GROUPS, "batches to be stored")
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(60)
    judge(load, client)


def test_decisions_are_forgotten_and_a_batch_in_one_shard_needs_none(nodes: Nodes, client: Client) -> None:
    name = made(client, nodes, shards=SHARDS, replication_factor=3)
    client.upsert(name, group(0), [[1.0] * DIMENSION] * SIZE, atomic=True)
    uuid = client.collection(name).details["uuid"]
    keys = f"/veccluster/default/{nodes.name}/atomic/{uuid}/decisions/"
    assert nodes.etcd.ctl("get", "--prefix", keys, "--keys-only").strip()
    wait_until(lambda: not nodes.etcd.ctl("get", "--prefix", keys, "--keys-only").strip(), "it to be forgotten")
    client.upsert(name, ["alone"], [[1.0] * DIMENSION], atomic=True)
    assert not nodes.etcd.ctl("get", "--prefix", keys, "--keys-only").strip()
    client.delete_collection(name)
    everything = f"/veccluster/default/{nodes.name}/atomic/{uuid}/"
    wait_until(lambda: not nodes.etcd.ctl("get", "--prefix", everything, "--keys-only").strip(), "all to be gone")
