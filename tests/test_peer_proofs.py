"""Whoever cannot prove to be a node of the cluster is told nothing, and what it says counts for nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec
import pytest

from support.etcd import EtcdCluster
from support.peers import SECRET, SHARD, End, replicate
from support.replication import member
from veccluster.decisions.replication.events import Received
from veccluster.decisions.replication.messages import Accepted
from veccluster.errors import Unavailable
from veccluster.model.state import Epoch, Node, NodeId, Seq, ShardId
from veccluster_etcd import EtcdClient
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.store import Store
from veccluster_node.peer import links, snapshots, wire
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import MEDIA_TYPE, PATH, Peers
from veccluster_node.peer.proofs import HELLO, Introductions, Secret

CLIENT = NodeId("client")
CLEAR = m.DeleteWhere(shard=ShardId("words", 0), op_id="o", filter=b"{}")
OTHER_SECRET = b"what another cluster has, or what this one had before"


@pytest.fixture
def members() -> dict[NodeId, Node]:
    return {CLIENT: Node(id=CLIENT, address="", peer_address="", proves_itself=True)}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def call(
    members: dict[NodeId, Node], end: End, *secrets: bytes, me: NodeId = CLIENT, timeout: float = 0.5
) -> m.Reply:
    peers = Peers(me, None, lambda: members, Secret(*secrets))
    try:
        return await peers.call(end.id, m.Ping(), timeout=timeout)
    finally:
        await peers.close()


@pytest.mark.parametrize("shown", [{}, {"Authorization": "VecCluster n0 00"}, {"Authorization": "Basic \u00e4"}])
async def test_who_proves_nothing_is_refused_everywhere_and_nothing_of_it_is_done(members, session, tmp_path, shown):
    async with End(1, members, tmp_path) as end:
        end.answer = None  # to be asked is to fail
        at = f"http://127.0.0.1:{end.port}"
        body = msgspec.msgpack.encode(CLEAR)
        async with session.post(at + PATH, data=body, headers={"Content-Type": MEDIA_TYPE, **shown}) as asked:
            assert asked.status == 401
        async with session.get(f"{at}{snapshots.PATH}/x/CURRENT", headers=shown) as fetched:
            assert fetched.status == 401
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(at + links.PATH, params={"from": "n0", "to": end.id}, headers=shown)
        assert refused.value.status == 401


async def test_another_secret_proves_nothing_and_one_that_was_replaced_is_still_good(members, tmp_path):
    async with End(1, members, tmp_path) as end:
        assert await call(members, end, SECRET) == m.Pong(end.id)
        with pytest.raises(Unavailable, match="does not prove"):
            await call(members, end, OTHER_SECRET)
        with pytest.raises(Unavailable, match="does not prove"):
            await call(members, end)
        end.secret.learn(OTHER_SECRET)
        assert await call(members, end, OTHER_SECRET) == m.Pong(end.id)
        assert await call(members, end, SECRET) == m.Pong(end.id)
        end.secret.learn(b"a third one, so that the first is forgotten")
        with pytest.raises(Unavailable, match="does not prove"):
            await call(members, end, SECRET)


async def test_who_knows_the_secret_and_is_no_member_is_refused_until_it_is_one(members, tmp_path):
    async with End(1, members, tmp_path) as end:
        with pytest.raises(Unavailable, match="not a member"):
            await call(members, end, SECRET, me=NodeId("new"))
        members[NodeId("new")] = Node(id=NodeId("new"), address="", peer_address="", proves_itself=True)
        assert await call(members, end, SECRET, me=NodeId("new")) == m.Pong(end.id)


async def test_a_process_that_restarts_is_believed_again_without_a_pause(members, tmp_path):
    peers = Peers(CLIENT, None, lambda: members, Secret(SECRET))
    async with End(1, members, tmp_path) as end:
        await peers.call(end.id, m.Ping(), timeout=5)
    async with End(1, members, tmp_path) as end:  # at another port, and with another challenge
        members[end.id] = msgspec.structs.replace(members[end.id])
        assert await peers.call(end.id, m.Ping(), timeout=5) == m.Pong(end.id)
        proved = peers._introductions._proofs[end.id]
        peers._introductions._proofs[end.id] = (proved[0], "00" * 32)  # as if it were another process at the same port
        assert await peers.call(end.id, m.Ping(), timeout=5) == m.Pong(end.id)
    await peers.close()


async def test_nothing_is_sent_to_a_stranger_at_a_nodes_address(members):
    got: list[bytes] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n"))
        body = msgspec.msgpack.encode({"challenge": "00", "proofs": ["00"]})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(stranger, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    members[NodeId("n1")] = Node(id=NodeId("n1"), address="", peer_address=address, proves_itself=True)
    peers = Peers(CLIENT, None, lambda: members, Secret(SECRET))
    with pytest.raises(Unavailable, match="does not prove that it is node n1"):
        await peers.call(NodeId("n1"), CLEAR, timeout=5)
    await peers.close()
    server.close()
    assert [request.split()[1].startswith(HELLO.encode()) for request in got] == [True]


async def test_what_comes_over_a_link_comes_from_whoever_proved_to_be_there(members, session, tmp_path):
    async with End(1, members, tmp_path) as end:
        came: asyncio.Queue[Received] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        end.thread._deliver = lambda shard, received: loop.call_soon_threadsafe(came.put_nowait, received)
        proof = await Introductions(CLIENT, Secret(SECRET)).to(members[end.id], session)
        at = f"http://127.0.0.1:{end.port}{links.PATH}"
        async with session.ws_connect(at, params={"from": "n0", "to": end.id}, headers=proof) as link:
            forged = Accepted(Epoch(2), member(0), Seq(9), 0)
            await link.send_bytes(wire.frame([wire.encode(SHARD, forged)]))
            assert await asyncio.wait_for(came.get(), 5) == Received(forged, CLIENT)


async def test_while_a_node_of_an_older_version_is_there_who_shows_nothing_may_be_it(members, session, tmp_path):
    async with End(1, members, tmp_path) as end:
        at, body = f"http://127.0.0.1:{end.port}", msgspec.msgpack.encode(m.Ping())
        end.older.append(NodeId("n0"))
        async with session.post(at + PATH, data=body) as asked:
            assert asked.status == 200
        async with session.ws_connect(at + links.PATH, params={"from": "n0", "to": end.id}):
            pass
        with pytest.raises(aiohttp.WSServerHandshakeError):  # that one would have shown something
            await session.ws_connect(at + links.PATH, params={"from": "n2", "to": end.id})
        end.older.clear()
        async with session.post(at + PATH, data=body) as asked:
            assert asked.status == 401


async def test_messages_pass_when_two_nodes_have_known_different_secrets_for_a_while(members, tmp_path):
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
        a.secret.known = (OTHER_SECRET,)
        a.send(b, replicate(0))
        a.secret.learn(SECRET)  # etcd has told it
        while b.received.empty():
            a.send(b, replicate(1))
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


async def test_the_first_node_makes_the_secret_and_an_etcd_that_lost_it_is_given_it_again(etcd):
    async with EtcdClient(etcd.config()) as client:
        stores = [Store(client, Keys("default", "proofs")) for _ in range(3)]
        made = set(await asyncio.gather(*(store.secret(()) for store in stores)))
        assert len(made) == 1
        (secret,) = made
        assert len(secret) >= 32
        await client.delete(stores[0].keys.secret)
        assert await stores[1].secret((secret,)) == secret
        assert await stores[2].secret(()) == secret
        await client.put(stores[0].keys.secret, b"{}")
        assert await stores[2].secret((secret,)) == secret
        await client.put(stores[0].keys.secret, OTHER_SECRET)
        assert await stores[2].secret((secret,)) == OTHER_SECRET
