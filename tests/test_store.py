"""A cluster's metadata on a real etcd: what is written is seen, lost races and lost terms change nothing."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import msgspec
import pytest

from support.etcd import EtcdCluster
from support.states import collection, node, shard
from veccluster.decisions import assignment
from veccluster.errors import LeaseLost
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Load, NodeId, ShardId
from veccluster_node.leader import campaign_and_lead
from veccluster_node.metadata.etcd import Election, EtcdClient
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.store import Store


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@dataclass
class Stores:
    """Stores of one cluster, each with a connection of its own and following."""

    etcd: EtcdCluster
    keys: Keys
    stack: AsyncExitStack

    async def open(self) -> tuple[Store, EtcdClient]:
        client = await self.stack.enter_async_context(EtcdClient(self.etcd.config()))
        store = Store(client, self.keys)
        following = asyncio.create_task(store.follow())

        async def stop() -> None:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

        self.stack.push_async_callback(stop)
        await store.known()
        return store, client


@pytest.fixture
async def stores(etcd: EtcdCluster) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        yield Stores(etcd, Keys("default", f"c-{uuid.uuid4().hex}"), stack)


async def test_what_one_node_writes_every_node_sees(stores: Stores) -> None:
    (one, _), (other, _) = await stores.open(), await stores.open()
    words = collection("words", 3)
    assert await one.create_collection(words)
    await one.register(node(0))
    assert await other.wait_until(lambda s: s.collections == {"words": words} and node(0).id in s.nodes, timeout=5)


async def test_only_one_of_two_creations_of_a_name_wins(stores: Stores) -> None:
    (one, _), (other, _) = await stores.open(), await stores.open()
    rivals = [msgspec.structs.replace(collection("words", n), uuid=uuid.uuid4().hex) for n in (1, 2)]
    won = await asyncio.gather(one.create_collection(rivals[0]), other.create_collection(rivals[1]))
    assert sorted(won) == [False, True]
    assert await one.read_collection("words") == rivals[won.index(True)]


async def test_a_dropped_collection_leaves_an_intent_and_its_name_free(stores: Stores) -> None:
    store, _ = await stores.open()
    words = collection("words", 1)
    await store.create_collection(words)
    assert await store.drop_collection("words")
    assert not await store.drop_collection("words")
    assert await store.wait_until(lambda s: not s.collections and set(s.drops) == {words.uuid}, timeout=5)
    assert await store.create_collection(msgspec.structs.replace(words, uuid="new"))


async def test_an_epoch_is_taken_once(stores: Stores) -> None:
    store, client = await stores.open()
    lease = await store.grant(5)
    term = await Election(client, stores.keys.leader, lease, b"n0").campaign()
    words = collection("words", 1)
    await store.create_collection(words)
    await store.apply(assignment.CreateShards(words, (shard(0, node(0)),)), fenced_by=term)
    assert await store.wait_until(lambda s: bool(s.shards), timeout=5)
    record = store.state.shards[ShardId(words.uuid, 0)]
    taken = await asyncio.gather(store.take_epoch(record), store.take_epoch(record))
    assert sorted(taken, key=str) == [2, None]


async def test_shards_are_not_created_for_a_collection_that_is_gone_or_another(stores: Stores) -> None:
    store, client = await stores.open()
    term = await Election(client, stores.keys.leader, await store.grant(5), b"n0").campaign()
    words = collection("words", 1)
    await store.create_collection(msgspec.structs.replace(words, uuid="another"))
    await store.apply(assignment.CreateShards(words, (shard(0, node(0)),)), fenced_by=term)
    assert (await client.range(stores.keys.prefix + "shards/")).items == ()


async def test_a_leader_that_lost_its_term_changes_nothing(stores: Stores) -> None:
    store, client = await stores.open()
    lease = await store.grant(5)
    term = await Election(client, stores.keys.leader, lease, b"n0").campaign()
    words = collection("words", 200)
    await store.create_collection(words)
    await lease.revoke()
    await store.apply(assignment.CreateShards(words, tuple(shard(n, node(0)) for n in range(128))), fenced_by=term)
    assert (await client.range(stores.keys.prefix + "shards/")).items == ()


async def test_a_lease_that_etcd_has_ended_is_lost_and_nothing_worse(stores: Stores) -> None:
    store, _ = await stores.open()
    lease = await store.grant(5)
    await lease.revoke()  # as if its time had come while this process stood still
    with pytest.raises(LeaseLost, match="ended the lease"):
        await store.publish(Load(id=NodeId("a"), boot="b"), lease)


async def test_the_leader_places_a_large_collection_and_clears_it_away(stores: Stores) -> None:
    store, client = await stores.open()
    lease = await store.grant(5)
    await store.register(node(0))
    await store.publish(Load(id=node(0).id, boot="b"), lease)
    leading = asyncio.create_task(campaign_and_lead(store, Election(client, stores.keys.leader, lease, b"n0"), lease))
    words = collection("words", 128)
    await store.create_collection(words)
    assert await store.wait_until(lambda s: len(s.shards_of(words)) == 128, timeout=10)
    assert store.state.leader == NodeId("n0")
    await store.drop_collection("words")
    assert await store.wait_until(lambda s: not s.shards, timeout=10)
    assert words.uuid in store.state.drops, "kept until the node has reported"
    await store.report_dropped(words.uuid, node(0).id)
    assert await store.wait_until(_nothing_left, timeout=10)
    await store.report_dropped(words.uuid, node(0).id)
    assert (await client.range(stores.keys.prefix + "intents/")).items == (), "a late report leaves nothing"
    leading.cancel()
    with suppress(asyncio.CancelledError):
        await leading


def _nothing_left(state: ClusterState) -> bool:
    return not state.drops and not state.dropped_by


async def test_a_state_that_etcd_does_not_let_us_read_is_read_once_it_does():
    with EtcdCluster(1) as guarded:
        guarded.enable_auth("horse")
        async with EtcdClient(guarded.config(username="reader", password="horse")) as client:
            store = Store(client, Keys("default", "demo"))
            following = asyncio.create_task(store.follow())
            assert await store.wait_until(lambda _: bool(store.refused), timeout=10)
            assert "permission denied" in store.refused
            assert "/veccluster/default/demo/" in store.refused
            guarded.ctl("role", "grant-permission", "reader", "readwrite", store.keys.prefix, "--prefix")
            await asyncio.wait_for(store.known(), 10)
            assert store.refused == ""
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
