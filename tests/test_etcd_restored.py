"""An etcd that goes back to an older state: it is found out, written down, and nothing of before holds."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from support.etcd import EtcdCluster
from support.states import collection, node, shard
from veccluster.decisions import assignment
from veccluster.decisions.replication.atomic import Batch, Decision, Verdict
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.values import NO_REVISION, Configuration
from veccluster.errors import MetadataUnavailable
from veccluster.model.state import Epoch, Revision, Seq, ShardId
from veccluster_etcd import Election, EtcdClient, Snapshot, WentBack
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.last_seen import LastSeen
from veccluster_node.metadata.store import Store

SHARD = ShardId("uuid-words", 0)
WORDS = collection("words", 1, factor=2)
A, B = node(0).member(SHARD), node(1).member(SHARD)
HOWS = ["snapshot", "same-cluster", "copy"]


@pytest.fixture
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
async def client(etcd: EtcdCluster) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(etcd.config()) as made:
        yield made


def take(etcd: EtcdCluster, how: str) -> Path:
    return etcd.copy_data() if how == "copy" else etcd.snapshot()


async def go_back(etcd: EtcdCluster, taken: Path, how: str = "snapshot") -> None:
    token = "etcd-cluster" if how == "same-cluster" else "restored"
    await asyncio.to_thread(etcd.restore, taken, token=token)


class Following:
    """A store that follows."""

    def __init__(self, client: EtcdClient, last_seen: LastSeen | None = None) -> None:
        self.store = Store(client, Keys("default", "demo"), last_seen)

    async def __aenter__(self) -> Store:
        self._task = asyncio.create_task(self.store.follow())
        await self.store.known()
        return self.store

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def a_shard(store: Store, client: EtcdClient) -> Configuration:
    """Write one down as a leader does."""
    term = await Election(client, store.keys.leader, await store.grant(60), b"n0").campaign()
    await store.create_collection(WORDS)
    await store.apply(
        assignment.CreateShards(WORDS, (shard(0, node(0), in_sync=(A, B), min_in_sync=2),)), fenced_by=term
    )
    assert await store.wait_until(lambda s: SHARD in s.shards, timeout=5)
    now = await store.read_shard(SHARD)
    assert now
    return now


@pytest.mark.parametrize("how", HOWS)
async def test_who_follows_etcd_is_told_that_it_went_back(etcd: EtcdCluster, client: EtcdClient, how: str) -> None:
    await client.put("/k/kept", b"1")
    taken = take(etcd, how)
    async with aclosing(client.follow("/k/")) as updates:
        first = await anext(updates)
        assert isinstance(first, Snapshot)
        assert first.went_back == ""
        for number in range(5):
            await client.put(f"/k/{number}", b"1")
        seen = 0
        while seen < 5:
            seen += len((await anext(updates)).events)
        going = asyncio.create_task(anext(updates))
        await go_back(etcd, taken, how)
        again = await asyncio.wait_for(going, 20)
    assert isinstance(again, Snapshot)
    assert "older state" in again.went_back or "another etcd cluster" in again.went_back
    assert set(again.items) == {"/k/kept"}


async def test_one_that_has_come_further_again_is_found_out_by_its_keys(etcd: EtcdCluster, client: EtcdClient) -> None:
    taken = take(etcd, "copy")
    async with aclosing(client.follow("/k/")) as updates:
        await anext(updates)
        await client.put("/k/a", b"of before")
        await anext(updates)
        going = asyncio.create_task(anext(updates))
        etcd.kill(0)
        await asyncio.to_thread(etcd.restore, taken)
        async with EtcdClient(etcd.config()) as other:
            for number in range(20):
                await other.put(f"/k/{number}", b"since")
            again = await asyncio.wait_for(going, 20)
            if not isinstance(again, Snapshot) or len(again.items) < 20:  # it looked while they were written
                return
    assert "/k/a" not in again.items
    assert again.went_back


async def test_a_watch_does_not_wait_for_a_revision_that_etcd_has_not_reached(client: EtcdClient) -> None:
    revision = await client.put("/k", b"")
    async with aclosing(client.watch("/k", Revision(revision + 100))) as batches:
        with pytest.raises(WentBack, match="had been at"):
            await asyncio.wait_for(anext(batches), 10)


@pytest.mark.parametrize("how", HOWS)
async def test_nothing_of_before_holds_when_etcd_went_back(etcd: EtcdCluster, client: EtcdClient, how: str) -> None:
    async with Following(client) as store:
        before = await a_shard(store, client)
        taken = take(etcd, how)
        term = store.begin(await Election(client, store.keys.leader + "x", await store.grant(60), b"n0").campaign())
        later = replace(before, epoch=Epoch(before.epoch + 1), primary=B)
        outcome, now = await store.swap_shard(SHARD, later, before.revision)
        assert outcome is Outcome.swapped
        assert now
        assert await store.wait_until(lambda s: s.shards[SHARD].epoch == later.epoch, timeout=5)
        await go_back(etcd, taken, how)
        assert await store.wait_until(lambda s: s.history.id not in ("", "?"), timeout=20)

        state = store.state
        assert state.unsettled[SHARD].epoch == before.epoch, "what etcd says is known, and nobody acts by it"
        assert state.shards[SHARD].epoch == later.epoch, "so that those who serve it are found"
        assert store.times_back == 1
        assert await store.swap_shard(SHARD, later, now.revision) == (Outcome.unknown, None)
        with pytest.raises(MetadataUnavailable, match="was not looked at yet"):
            await store.read_shard(SHARD)
        assert not await store.settle(SHARD, later, before.revision, fenced_by=term), "that term is over"

        term = store.begin(await Election(client, store.keys.leader + "y", await store.grant(60), b"n0").campaign())
        target = replace(later, epoch=Epoch(later.epoch + 2))
        assert await store.settle(SHARD, target, state.unsettled[SHARD].revision, fenced_by=term)
        assert await store.wait_until(lambda s: not s.unsettled, timeout=5)
        assert await store.read_shard(SHARD) == target
        assert await store.swap_shard(SHARD, later, store.state.shards[SHARD].revision) == (Outcome.refused, target)


async def test_decisions_are_recalled_before_others_are_made(etcd: EtcdCluster, client: EtcdClient) -> None:
    one, two = (Decision(Batch(name, 1), Verdict.applied, {0: Seq(1)}) for name in ("one", "two"))
    async with Following(client) as store:
        await a_shard(store, client)
        await store.decide("c", one, NO_REVISION)
        taken = take(etcd, "snapshot")
        await store.decide("c", two, NO_REVISION)
        async with asyncio.timeout(5):
            changed = asyncio.Event()
            store.batches_changed.append(changed.set)
            while len(store.batches("c").decisions) < 2:
                await changed.wait()
                changed.clear()
        await go_back(etcd, taken)
        assert await store.wait_until(lambda s: s.history.id not in ("", "?"), timeout=20)
        dropped = replace(two, verdict=Verdict.dropped)
        with pytest.raises(MetadataUnavailable, match="which batches were decided"):
            await store.decide("c", dropped, NO_REVISION)
        assert {d.batch for d in store.forgotten["c"].decisions} == {one.batch, two.batch}

        term = store.begin(await Election(client, store.keys.leader + "y", await store.grant(60), b"n0").campaign())
        await store.recall_decision("c", two, fenced_by=term)
        await store.allow_decisions(["c"], fenced_by=term)
        assert await store.wait_until(lambda _: store.may_decide, timeout=5)
        assert await store.decide("c", dropped, store.batches("c").forgotten) == two
        late = Decision(Batch("late", 1), Verdict.applied, {0: Seq(1)})
        assert not isinstance(await store.decide("c", late, NO_REVISION), Decision), "proposed by what was known before"


async def test_a_node_that_starts_again_remembers_how_far_etcd_was(etcd: EtcdCluster, tmp_path: Path) -> None:
    file = tmp_path / "etcd.json"
    async with EtcdClient(etcd.config()) as client, Following(client, LastSeen(file)) as store:
        taken = take(etcd, "snapshot")
        await a_shard(store, client)
        assert store.state.history.id == ""
    await go_back(etcd, taken, "same-cluster")
    async with EtcdClient(etcd.config()) as client, Following(client, LastSeen(file)) as store:
        assert await store.wait_until(lambda s: s.history.id not in ("", "?"), timeout=20)
        history = store.state.history.id
    async with EtcdClient(etcd.config()) as client, Following(client, LastSeen(file)) as store:
        assert store.state.history.id == history, "it is written down once"


async def test_a_history_that_cannot_be_read_is_written_anew_and_what_began_before_begins_again(
    client: EtcdClient,
) -> None:
    async with Following(client) as store:
        await a_shard(store, client)
        lease = await store.grant(60)
        before = store.begin(await Election(client, store.keys.leader + "y", lease, b"n0").campaign())
        times, record = store.times_back, store.state.shards[SHARD]
        await client.put(store.keys.history, b"what")
        assert await store.wait_until(lambda s: s.history.id not in ("", "?"), timeout=20)
        assert store.times_back > times, "a term of before can change nothing: who holds one has to campaign again"
        target, collection = Configuration.of(record, 2), store.state.collections[WORDS.name]
        assert collection.uuid == SHARD.collection and SHARD in store.state.unsettled
        assert not await store.settle(SHARD, target, record.revision, fenced_by=before)
        now = store.begin(await Election(client, store.keys.leader + "z", lease, b"n0").campaign())
        assert await store.settle(SHARD, target, record.revision, fenced_by=now)


@pytest.mark.parametrize("how", ["snapshot", "copy"])
async def test_a_lease_of_before_is_lost_although_etcd_knows_it(
    etcd: EtcdCluster, client: EtcdClient, how: str
) -> None:
    lease = await client.grant(1)
    await client.put("/life", b"", lease=lease.id)
    taken = take(etcd, how)
    for number in range(5):
        await client.put(f"/elsewhere/{number}", b"")
    later = await client.grant(6)
    await client.put("/life", b"", lease=later.id)
    await go_back(etcd, taken, how)
    await asyncio.wait_for(later.lost.wait(), 10)
