"""Every key in etcd has an end: nodes that are gone for good, what waits for them, and decisions, however many."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import pytest

from support.etcd import EtcdCluster
from support.states import collection, load, node, shard
from veccluster.decisions import assignment
from veccluster.decisions.assignment import GONE_AFTER, FinishDrop, ForgetNode
from veccluster.decisions.replication.atomic import Batch, Decision, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import NO_REVISION
from veccluster.model.cluster import ClusterState, Drop, DroppedBy
from veccluster.model.state import Epoch, Seq
from veccluster_etcd import Election, EtcdClient, Term
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.store import Store

HERE, GONE = node(0), node(1)
AWAY = {GONE.id: GONE_AFTER}
STATE = ClusterState(
    nodes={HERE.id: HERE, GONE.id: GONE},
    alive={HERE.id: load(HERE.id)},
    collections={"words": collection("words", 1)},
    shards={shard(0, HERE).id: shard(0, HERE, epoch=Epoch(2))},
    drops={"u": Drop(uuid="u", name="dropped")},
    dropped_by=frozenset({DroppedBy("u", HERE.id)}),
)


def test_a_node_that_is_gone_for_good_is_struck_off_and_nothing_waits_for_it_any_more() -> None:
    assert list(assignment.decide(STATE, AWAY)) == [ForgetNode(GONE.id)]
    after = msgspec.structs.replace(STATE, nodes={HERE.id: HERE})
    assert list(assignment.decide(after, AWAY)) == [FinishDrop("u")]


@pytest.mark.parametrize(
    ("changes", "away"),
    [
        ({}, {GONE.id: GONE_AFTER - 1}),
        ({}, {}),
        ({"alive": {n.id: load(n.id) for n in (HERE, GONE)}}, AWAY),
        ({"shards": {shard(0, HERE).id: shard(0, GONE, epoch=Epoch(2))}}, AWAY),
        (
            {"shards": {shard(0, HERE).id: shard(0, HERE, epoch=Epoch(2), learners=(GONE.member(shard(0, HERE).id),))}},
            AWAY,
        ),
        ({"unsettled": {shard(0, HERE).id: shard(0, HERE)}}, AWAY),
    ],
    ids=["only down", "not known for how long", "has a lease", "has the only copy", "has a copy", "etcd went back"],
)
def test_a_node_that_may_be_needed_stays(changes: dict[str, object], away: dict[str, float]) -> None:
    state = msgspec.structs.replace(STATE, **changes)
    assert not [a for a in assignment.decide(state, away) if isinstance(a, ForgetNode | FinishDrop)]


@dataclass
class Led:
    store: Store
    client: EtcdClient
    term: Term


@pytest.fixture
async def led() -> AsyncIterator[Led]:
    with EtcdCluster(1) as etcd:
        async with EtcdClient(etcd.config()) as client:
            store = Store(client, Keys("default", "demo"))
            following = asyncio.create_task(store.follow())
            await store.known()
            term = await Election(client, store.keys.leader, await store.grant(60), b"n0").campaign()
            yield Led(store, client, term)
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


async def test_a_node_that_came_back_is_not_struck_off(led: Led) -> None:
    store = led.store
    await store.register(GONE)
    lease = await store.grant(5)
    await store.publish(load(GONE.id), lease)
    await store.apply(ForgetNode(GONE.id), fenced_by=led.term)
    assert (await store.read_node(GONE.id))[0] == GONE
    await lease.revoke()
    await store.apply(ForgetNode(GONE.id), fenced_by=led.term)
    assert await store.wait_until(lambda s: GONE.id not in s.nodes, timeout=5)
    assert store.lacks_node(GONE.id), "so it registers again if it is there after all"


async def test_more_decisions_than_one_transaction_takes_are_forgotten_at_once(led: Led) -> None:
    store = led.store
    made = [Decision(Batch(f"op-{i}", 1), Verdict.applied, {0: Seq(1)}) for i in range(250)]
    for some in range(0, len(made), 50):
        await asyncio.gather(*(store.decide("c", d, NO_REVISION) for d in made[some : some + 50]))
    await store.forget_batches("c", Known(), made, fenced_by=led.term)
    assert (await led.client.range(store.keys.batches_of("c") + "decisions/")).items == ()
    assert await store.decide("c", made[0], NO_REVISION) != made[0], "who did not know that asks the shards again"
