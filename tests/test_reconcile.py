"""A node tells of its shards only what stays true when the work under way ends."""

import asyncio
from typing import cast

import msgspec

from support.states import collection, load, node, shard
from veccluster.decisions.hosting import Local
from veccluster.model.cluster import ClusterState, Drop
from veccluster.model.state import Collection, NodeId, ShardId
from veccluster_node.host import ShardHost
from veccluster_node.metadata.store import Store
from veccluster_node.reconcile import Reconciler

ME = node(0)
WORDS = collection("words", 1)
SHARD = shard(0, ME)


class _Host:
    """Opens a shard when it is let: until then nothing of it is on the disk."""

    def __init__(self) -> None:
        self.let_open = asyncio.Event()
        self.shards: dict[ShardId, Local] = {}

    def mendable(self) -> list[ShardId]:
        return []

    def local(self) -> dict[ShardId, Local]:
        return dict(self.shards)

    async def open(self, shard: ShardId, collection: Collection) -> None:
        await self.let_open.wait()
        self.shards[shard] = Local(is_open=True)

    async def delete(self, shard: ShardId) -> None:
        del self.shards[shard]


class _Store:
    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.reported: list[str] = []

    def wake(self) -> None:
        pass

    async def report_dropped(self, uuid: str, node: NodeId) -> None:
        self.reported.append(uuid)


async def test_a_shard_that_is_being_opened_while_its_collection_is_dropped_is_deleted_before_that_is_reported() -> (
    None
):
    there = ClusterState(
        nodes={ME.id: ME}, alive={ME.id: load(ME.id)}, collections={"words": WORDS}, shards={SHARD.id: SHARD}
    )
    host, store = _Host(), _Store(there)
    reconciler = Reconciler(ME.id, ME.incarnation, cast("Store", store), cast("ShardHost", host))

    async def rounds() -> None:
        for _ in range(5):
            reconciler.round()
            await asyncio.sleep(0)

    await rounds()
    store.state = msgspec.structs.replace(
        there, collections={}, shards={}, drops={WORDS.uuid: Drop(uuid=WORDS.uuid, name="words")}
    )
    await rounds()
    assert store.reported == []  # its directory may be made at any moment

    host.let_open.set()
    await rounds()
    assert host.shards == {}
    assert WORDS.uuid in store.reported
