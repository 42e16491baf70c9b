"""A cluster's metadata on a real etcd: what is written is seen, lost races and lost terms change nothing."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace

import msgspec
import pytest

from support.etcd import EtcdCluster
from support.states import collection, load, node, shard
from veccluster.decisions import assignment
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.atomic import Batch, Decision, Showing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.values import NO_REVISION, Configuration
from veccluster.decisions.shard_map import records_of
from veccluster.errors import LeaseLost, MetadataUnavailable, OutcomeUnknown
from veccluster.model.cluster import ClusterState
from veccluster.model.spec import Failover
from veccluster.model.state import Epoch, Load, NodeId, Revision, Seq, Shard, ShardId
from veccluster_etcd import Election, EtcdClient, Lease, Term
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.cluster.leader import campaign_and_lead
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.store import CHANGES_IN_ONE_TRANSACTION, Store
from veccluster_node.peer.client import Peers
from veccluster_node.peer.messages import AnyRequest, Reply
from veccluster_node.peer.proofs import Secret
from veccluster_node.runtime.metrics import Measures

SHARD = ShardId("uuid-words", 0)


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


@dataclass
class Led:
    """A store whose node leads, and a shard that was written down."""

    store: Store
    lease: Lease
    term: Term
    record: Shard
    now: Configuration

    @classmethod
    async def of(cls, stores: Stores, factor: int = 2, shards: int = 1) -> "Led":
        store, client = await stores.open()
        lease = await store.grant(5)
        term = await Election(client, stores.keys.leader, lease, b"n0").campaign()
        words = msgspec.structs.replace(collection("words", shards), replication_factor=factor)
        await store.create_collection(words)
        both = (node(0).member(SHARD), node(1).member(SHARD))
        made = tuple(shard(n, node(0), in_sync=both, start=5, end=7) for n in range(shards))
        await store.apply(assignment.CreateShards(words, made), fenced_by=term)
        assert await store.wait_until(lambda s: len(s.shards) == shards, timeout=5)
        record = store.state.shards[SHARD]
        return cls(store, lease, term, record, Configuration.of(record, factor))

    def promoted(self) -> Configuration:
        return _promoted(self.record)


def _promoted(record: Shard, factor: int = 2) -> Configuration:
    now = Configuration.of(record, factor)
    return replace(now, epoch=Epoch(now.epoch + 1), primary=node(1).member(record.id))


async def test_of_two_swaps_of_a_shard_one_wins_and_the_other_learns_what_is_there(stores: Stores) -> None:
    led = await Led.of(stores)
    mine = replace(led.now, epoch=Epoch(led.now.epoch + 1))
    revision = led.record.revision
    answers = await asyncio.gather(
        *(led.store.swap_shard(SHARD, target, revision) for target in (mine, led.promoted()))
    )
    assert sorted(outcome for outcome, _ in answers) == [Outcome.refused, Outcome.swapped]
    (won,) = (now for outcome, now in answers if outcome is Outcome.swapped)
    (lost,) = (now for outcome, now in answers if outcome is Outcome.refused)
    read = await led.store.read_shard(SHARD)
    assert won == lost == read
    assert won and lost and read and won.revision == lost.revision == read.revision > revision


async def test_a_swap_changes_the_configuration_and_nothing_else_of_the_record(stores: Stores) -> None:
    led = await Led.of(stores)
    await led.store.swap_shard(SHARD, led.promoted(), led.record.revision)
    assert await led.store.wait_until(lambda s: s.shards[SHARD].epoch == led.now.epoch + 1, timeout=5)
    after = led.store.state.shards[SHARD]
    assert (after.start, after.end, after.primary) == (5, 7, node(1).member(SHARD))
    assert Configuration.of(after, 2) == led.promoted()


async def test_a_shard_that_is_gone_is_not_swapped(stores: Stores) -> None:
    led = await Led.of(stores)
    await led.store.apply(assignment.ForgetShards(SHARD.collection, (SHARD,)), fenced_by=led.term)
    assert await led.store.swap_shard(SHARD, led.promoted(), led.record.revision) == (Outcome.refused, None)
    assert await led.store.read_shard(SHARD) is None


async def test_a_swap_that_etcd_does_not_answer_has_no_known_outcome(stores: Stores) -> None:
    led = await Led.of(stores)
    with stores.etcd.hanging(0):
        answer = await led.store.swap_shard(SHARD, led.promoted(), led.record.revision)
    assert answer == (Outcome.unknown, None)


async def test_a_loss_is_accepted_only_for_the_record_that_was_seen_and_while_nobody_missing_is_back(
    stores: Stores,
) -> None:
    led = await Led.of(stores)
    left = replace(led.promoted(), in_sync=frozenset({node(1).member(SHARD)}), min_in_sync=1)
    revision, gone = led.record.revision, node(0).id
    await led.store.publish(load(gone), led.lease)
    assert not await led.store.accept_loss(SHARD, left, revision, [gone]), "it is back"
    assert not await led.store.accept_loss(SHARD, left, Revision(revision - 1), []), "it is another record"
    assert (await led.store.read_shard(SHARD)) == led.now
    assert await led.store.accept_loss(SHARD, left, revision, [node(2).id])
    assert (await led.store.read_shard(SHARD)) == left
    assert await led.store.wait_until(lambda s: s.shards[SHARD].epoch == left.epoch, timeout=5)
    assert led.store.state.shards[SHARD].end == 7
    assert not await led.store.accept_loss(SHARD, left, revision, [node(2).id]), "it is done already"


async def test_a_loss_whose_acceptance_etcd_does_not_answer_has_no_known_outcome(stores: Stores) -> None:
    led = await Led.of(stores)
    with stores.etcd.hanging(0), pytest.raises((OutcomeUnknown, MetadataUnavailable)):
        await led.store.accept_loss(SHARD, led.promoted(), led.record.revision, [])


async def test_a_change_of_the_leader_compares_the_shard_and_the_term(stores: Stores) -> None:
    led = await Led.of(stores)
    change = failover.Promote(SHARD, led.promoted(), led.record.revision)
    assert not await led.store.apply_failover([replace(change, revision=Revision(1))], fenced_by=led.term)
    assert await led.store.apply_failover([change], fenced_by=led.term) == (change,)
    assert not await led.store.apply_failover([change], fenced_by=led.term)
    now = await led.store.read_shard(SHARD)
    assert now == led.promoted()
    await led.lease.revoke()
    late = failover.Promote(SHARD, led.now, now.revision)
    assert not await led.store.apply_failover([late], fenced_by=led.term)


async def test_changes_of_many_shards_are_one_transaction_in_which_each_wins_or_loses_alone(stores: Stores) -> None:
    led = await Led.of(stores, shards=CHANGES_IN_ONE_TRANSACTION)
    records = [led.store.state.shards[ShardId(SHARD.collection, n)] for n in range(CHANGES_IN_ONE_TRANSACTION)]
    changes = [failover.Promote(r.id, _promoted(r), r.revision) for r in records]
    changes[7] = replace(changes[7], revision=Revision(1))
    done = await led.store.apply_failover(changes, fenced_by=led.term)
    assert done == (*changes[:7], *changes[8:])
    assert await led.store.wait_until(lambda s: sum(r.epoch == 2 for r in s.shards.values()) == len(done), timeout=5)
    revisions = {r.revision for r in led.store.state.shards.values() if r.epoch == 2}
    assert len(revisions) == 1, "they were not one transaction"
    assert led.store.state.shards[records[7].id] == records[7]


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


async def _nobody_shows(uuid: str, numbers: Iterable[int]) -> Mapping[int, Showing]:
    return {}


async def test_the_leader_places_a_large_collection_and_clears_it_away(stores: Stores) -> None:
    store, client = await stores.open()
    lease = await store.grant(5)
    await store.register(node(0))
    await store.publish(Load(id=node(0).id, boot="b"), lease)
    peers = Peers(node(0).id, _nobody_asks, lambda: store.state.nodes, Secret())
    watch = Watch(node(0).id, store, peers, Failover())
    election = Election(client, stores.keys.leader, lease, b"n0")
    leading = asyncio.create_task(
        campaign_and_lead(store, election, lease, watch, _nobody_shows, replace_after=300.0, measures=Measures())
    )
    words = collection("words", 128)
    await store.create_collection(words)
    assert await store.wait_until(lambda s: len(records_of(s, words)) == 128, timeout=10)
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


async def _nobody_asks(request: AnyRequest) -> Reply:
    raise AssertionError(request)


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


# ---- batches over several shards

ONE, TWO = Batch("one", 1), Batch("one", 2)


def _decision(batch: Batch, verdict: Verdict = Verdict.applied) -> Decision:
    return Decision(batch, verdict, {0: Seq(4), 1: Seq(7)})


async def _knows(store: Store, *batches: Batch) -> Known:
    """What the store knows once it knows these decisions and no others."""

    changed = asyncio.Event()
    store.batches_changed.append(changed.set)
    async with asyncio.timeout(5):
        while {d.batch for d in store.batches("c").decisions} != set(batches):
            await changed.wait()
            changed.clear()
    return store.batches("c")


async def test_a_batch_is_decided_once_and_everybody_hears_of_it(stores: Stores) -> None:
    store, _ = await stores.open()
    other, _ = await stores.open()
    made = await store.decide("c", _decision(ONE), NO_REVISION)
    again = await other.decide("c", _decision(ONE, Verdict.dropped), NO_REVISION)
    assert isinstance(made, Decision)
    assert again == made
    assert again.revision == made.revision > 0
    later = await other.decide("c", _decision(TWO), NO_REVISION)
    for one in (store, other):
        known = await _knows(one, ONE, TWO)
        assert list(known.decisions) == [made, later]
        assert known.revision == one.state.revision
    assert store.batches("other") == Known()


async def test_nothing_is_decided_by_who_does_not_know_what_was_forgotten(stores: Stores) -> None:
    store, client = await stores.open()
    lease = await store.grant(5)
    term = await Election(client, stores.keys.leader, lease, b"n0").campaign()
    await store.decide("c", _decision(ONE), NO_REVISION)
    known = await _knows(store, ONE)
    await store.forget_batches("c", known, known.decisions, fenced_by=term)
    forgotten = (await _knows(store)).forgotten
    assert forgotten > known.revision
    assert await store.decide("c", _decision(ONE, Verdict.dropped), NO_REVISION) == forgotten
    await store.forget_batches("c", known, [_decision(TWO)], fenced_by=term)
    assert isinstance(await store.decide("c", _decision(TWO), forgotten), Decision)
    await _knows(store, TWO)
    await store.drop_batches("c", fenced_by=term)
    await _knows(store)
    assert store.batches("c").forgotten == 0
