"""The leader, on a real etcd and with nodes that answer or do not, keeps every shard with a primary that serves."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import msgspec
import pytest
from aiohttp import web

from support.etcd import EtcdCluster
from support.states import collection, node, shard
from veccluster.decisions import assignment
from veccluster.decisions.replication.atomic import Batch, Decision, Showing, Verdict
from veccluster.model.cluster import ClusterState
from veccluster.model.spec import Failover
from veccluster.model.state import Collection, Epoch, Load, Node, NodeId, NodeState, Revision, Seq, Shard, ShardId
from veccluster_etcd import Election, EtcdClient, Lease, Term
from veccluster_node.cluster import leader as leading
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.cluster.leader import campaign_and_lead
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.store import Store
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.peer.proofs import Doorkeeper, Secret
from veccluster_node.peer.server import PeerPort
from veccluster_node.runtime.metrics import Measures

TIMES = Failover.parse({"heartbeat": "100ms", "timeout": "600ms"})
WORDS = collection("words", 1, factor=3)
SHARD = ShardId(WORDS.uuid, 0)
LEADER, FIRST, SECOND, THIRD = (NodeId(f"n{i}") for i in range(4))
"""The leader holds nothing; the others hold the shard, and the first is its primary."""


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@dataclass
class Cluster:
    """Nodes as etcd knows them; each has a lease and a port where it answers, until it has not."""

    store: Store
    client: EtcdClient
    stack: AsyncExitStack
    leases: dict[NodeId, Lease] = field(default_factory=dict)
    ports: dict[NodeId, web.AppRunner] = field(default_factory=dict)
    answered: dict[NodeId, asyncio.Event] = field(default_factory=dict)
    showing: dict[int, Showing] = field(default_factory=dict)
    """What the primaries say of batches over several shards."""
    stuck: set[NodeId] = field(default_factory=set)
    """Nodes whose process takes connections and answers nothing."""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def add(self, who: NodeId, **changes: object) -> Node:
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        await self._listen(who, listener)
        made = msgspec.structs.replace(node(int(who[1:])), peer_address=address, **changes)
        await self.store.register(made)
        self.leases[who] = await self.store.grant(10)
        await self.say(who)
        return made

    async def _listen(self, who: NodeId, listener: socket.socket) -> None:
        self.answered[who] = asyncio.Event()

        async def answer(request: m.AnyRequest) -> m.Reply:
            if who in self.stuck:
                await self.over.wait()
            assert isinstance(request, m.Ping)
            self.answered[who].set()
            return m.Pong(f"boot-{who}")

        anybody = Doorkeeper(who, Secret(), dict, lambda: [who])
        port = PeerPort(who, doorkeeper=anybody, answer=answer, receive=lambda *_: None, file=lambda *_: None)
        runner = self.ports[who] = web.AppRunner(port.application, shutdown_timeout=0)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        self.stack.push_async_callback(runner.cleanup)

    async def say(self, who: NodeId, **load: object) -> None:
        """Publish the node's load."""
        said = msgspec.structs.replace(Load(id=who, boot=f"boot-{who}"), **load)
        await self.store.publish(said, self.leases[who])

    async def answers(self, who: NodeId, times: int = 1) -> None:
        """Wait until the node has been asked and has answered."""
        for _ in range(times):
            self.answered[who].clear()
            await asyncio.wait_for(self.answered[who].wait(), 5)

    async def write(self, *shards: Shard, words: Collection = WORDS) -> None:
        """Write shards down as a leader of a term before."""
        lease = await self.store.grant(10)
        term: Term = await Election(self.client, self.store.keys.leader, lease, b"before").campaign()
        await self.store.create_collection(words)
        await self.store.apply(assignment.CreateShards(words, shards), fenced_by=term)
        await lease.revoke()

    async def shown(self, uuid: str, numbers: Iterable[int]) -> Mapping[int, Showing]:
        """What the primaries say of batches over several shards."""
        return {n: self.showing[n] for n in numbers if n in self.showing}

    async def lead(self, replace_after: float = 300.0) -> None:
        """Have a leader from now on; the state is known to it."""
        assert await self.store.wait_until(lambda s: bool(s.shards) and s.leader is None, timeout=5)
        peers = Peers(LEADER, _nobody_asks, lambda: self.store.state.nodes, Secret())
        watch = Watch(LEADER, self.store, peers, TIMES)
        lease = await self.store.grant(10)
        election = Election(self.client, self.store.keys.leader, lease, LEADER.encode())
        following = asyncio.create_task(watch.follow())
        leading = asyncio.create_task(
            campaign_and_lead(self.store, election, lease, watch, self.shown, replace_after, Measures())
        )

        async def stop() -> None:
            for task in (leading, following):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await peers.close()

        self.stack.push_async_callback(stop)

    async def becomes(self, holds: Callable[[Shard], bool]) -> Shard:
        """The shard once it fulfils `holds`."""

        def is_there(state: ClusterState) -> bool:
            return SHARD in state.shards and holds(state.shards[SHARD])

        assert await self.store.wait_until(is_there, timeout=5), self.store.state.shards
        return self.store.state.shards[SHARD]


async def _nobody_asks(request: m.AnyRequest) -> m.Reply:
    raise AssertionError(request)


@pytest.fixture
async def cluster(etcd: EtcdCluster) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EtcdClient(etcd.config()))
        store = Store(client, Keys("default", f"c-{uuid.uuid4().hex}"))
        following = asyncio.create_task(store.follow())
        stack.callback(following.cancel)
        await store.known()
        made = Cluster(store, client, stack)
        for who in (LEADER, FIRST, SECOND, THIRD):
            await made.add(who)
        yield made
        made.over.set()


def _shard(*nodes: int, **changes: object) -> Shard:
    members = tuple(node(i).member(SHARD) for i in nodes)
    return shard(0, node(nodes[0]), **{"epoch": Epoch(4), "in_sync": members, "min_in_sync": 2, **changes})


async def test_a_primary_whose_process_is_gone_is_replaced_as_soon_as_its_lease_ends(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead()
    await cluster.answers(FIRST)
    await cluster.ports[FIRST].cleanup()
    await cluster.leases[FIRST].revoke()
    after = await cluster.becomes(lambda s: s.epoch == 5)
    assert after.primary.node in {SECOND, THIRD}
    assert {m.node for m in after.in_sync} == {SECOND, THIRD}, "nobody waits for it once more"
    assert [m.node for m in after.learners] == [FIRST]


async def test_a_primary_without_a_lease_stays_for_as_long_as_it_answers(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead()
    await cluster.leases[FIRST].revoke()
    assert await cluster.store.wait_until(lambda s: FIRST not in s.alive, timeout=5)
    await cluster.answers(FIRST, times=10)
    assert cluster.store.state.shards[SHARD].epoch == 4
    cluster.stuck.add(FIRST)
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node != FIRST


async def test_a_process_that_stands_still_keeps_its_shards_until_its_lease_ends(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    cluster.stuck.add(FIRST)
    await cluster.lead()
    await cluster.answers(SECOND, times=10)
    assert cluster.store.state.shards[SHARD].epoch == 4
    await cluster.leases[FIRST].revoke()
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node != FIRST


async def test_another_process_at_the_address_of_a_dead_node_does_not_speak_for_it(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.say(FIRST, boot="another")
    await cluster.lead()
    assert await cluster.store.wait_until(lambda s: s.alive[FIRST].boot == "another", timeout=5)
    await cluster.answers(FIRST)
    await cluster.leases[FIRST].revoke()
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node != FIRST


async def test_a_shard_that_its_node_cannot_serve_gets_another_primary(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.say(FIRST, broken=(str(SHARD),))
    await cluster.lead()
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node != FIRST


async def test_a_shard_that_is_opened_for_too_long_gets_another_primary(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.say(FIRST, recovering=(str(SHARD),))
    await cluster.lead()
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node != FIRST


async def test_a_primary_that_says_for_a_while_that_it_hears_too_few_others_gives_way(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead()
    await cluster.say(FIRST, cut_off=(str(SHARD),))
    began = asyncio.get_running_loop().time()
    assert (await cluster.becomes(lambda s: s.epoch == 5)).primary.node in {SECOND, THIRD}
    assert asyncio.get_running_loop().time() - began >= TIMES.timeout / 2, "if they were dead, their leases would end"


async def test_a_node_that_is_about_to_stop_is_asked_to_hand_over_and_stays_in_sync(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead()
    stopping = msgspec.structs.replace(cluster.store.state.nodes[FIRST], state=NodeState.draining)
    await cluster.store.register(stopping)
    after = await cluster.becomes(lambda s: s.successor is not None)
    assert after.successor in after.in_sync and after.successor.node != FIRST
    assert (after.epoch, after.primary.node, len(after.in_sync)) == (4, FIRST, 3)
    await cluster.store.register(msgspec.structs.replace(stopping, state=NodeState.active))
    await cluster.becomes(lambda s: s.successor is None)


async def test_a_shard_with_too_few_copies_is_given_to_a_node_that_has_none(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2))
    await cluster.lead()
    after = await cluster.becomes(lambda s: bool(s.learners))
    assert {m.node for m in after.learners} <= {LEADER, THIRD}


async def test_a_copy_on_a_node_that_stays_away_is_made_elsewhere_after_a_while_and_not_before(
    cluster: Cluster,
) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead(replace_after=1.0)
    await cluster.ports[THIRD].cleanup()
    await cluster.leases[THIRD].revoke()
    assert await cluster.store.wait_until(lambda s: THIRD not in s.alive, timeout=5)
    await cluster.answers(FIRST, times=5)
    assert cluster.store.state.shards[SHARD].learners == ()
    assert {m.node for m in (await cluster.becomes(lambda s: bool(s.learners))).learners} == {LEADER}


async def test_a_disk_that_was_replaced_is_given_the_shard_as_another_member(cluster: Cluster) -> None:
    await cluster.write(_shard(1, 2, 3))
    await cluster.lead()
    incarnations = {str(SHARD): "disk-1+"}
    await cluster.store.register(msgspec.structs.replace(cluster.store.state.nodes[FIRST], incarnations=incarnations))
    after = await cluster.becomes(lambda s: bool(s.learners))
    assert after.epoch == 5 and after.primary.node != FIRST
    assert [(m.node, m.incarnation) for m in after.learners] == [(FIRST, "disk-1+")]


async def test_decisions_are_forgotten_once_all_shards_show_them_and_with_their_collection(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "FORGET_EVERY", 0.05)
    await cluster.write(shard(0, node(1)))
    store = cluster.store
    gone, kept = Batch("gone", 1), Batch("kept", 1)
    await store.decide(WORDS.uuid, Decision(gone, Verdict.applied, {0: Seq(4), 1: Seq(7)}), Revision(0))
    await store.decide(WORDS.uuid, Decision(kept, Verdict.applied, {0: Seq(5), 1: Seq(9)}), Revision(0))
    await store.decide("dropped", Decision(kept, Verdict.applied, {0: Seq(5)}), Revision(0))
    cluster.showing |= {0: Showing(Seq(9), frozenset()), 1: Showing(Seq(9), frozenset({Seq(9)}))}
    await cluster.lead()

    changed = asyncio.Event()
    store.batches_changed.append(changed.set)

    async def left(*batches: Batch) -> None:
        async with asyncio.timeout(5):
            while [d.batch for known in store.all_batches.values() for d in known.decisions] != list(batches):
                await changed.wait()
                changed.clear()

    await left(kept)
    assert "dropped" not in store.all_batches
    cluster.showing[1] = Showing(Seq(9), frozenset())
    await left()
    assert store.batches(WORDS.uuid).forgotten
