"""The peer thread: questions go to the loop that serves clients, the rest goes on without it; starting and stopping."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from support.peers import SECRET, End, replicate, send_until
from veccluster.errors import NotPrimary, OutcomeUnknown, Unavailable
from veccluster.model.state import Node, NodeId, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import NothingListens, Peers
from veccluster_node.peer.proofs import Secret

CLIENT = NodeId("client")
DELETE = m.DeleteIds(shard=ShardId("words", 0), op_id="o", ids=["a"])


@pytest.fixture
def members():
    return {CLIENT: Node(id=CLIENT, address="", peer_address="", proves_itself=True)}


@pytest.fixture
async def peers(members):
    made = Peers(CLIENT, None, lambda: members, Secret(SECRET))
    yield made
    await made.close()


async def test_questions_are_answered_by_the_loop_that_started_the_thread(members, peers, tmp_path):
    async with End(1, members, tmp_path) as end:

        async def answer(_):
            return m.Pong(boot=threading.current_thread().name)

        end.answer = answer
        pong = await peers.call(end.id, m.Ping(), timeout=10)
    assert pong.boot == threading.current_thread().name


async def test_what_the_other_node_answers_with_is_what_the_caller_gets(members, peers, tmp_path):
    async with End(1, members, tmp_path) as end:

        async def refuse(_):
            raise NotPrimary("not me")

        end.answer = refuse
        with pytest.raises(NotPrimary, match="not me"):
            await peers.call(end.id, DELETE, timeout=10)


def test_links_and_beats_go_on_while_the_loop_that_serves_clients_stalls_and_questions_wait(tmp_path):
    members = {CLIENT: Node(id=CLIENT, address="", peer_address="", proves_itself=True)}

    async def stalled():
        async with End(0, members, tmp_path, heartbeat=0.05) as a, End(1, members, tmp_path) as b:
            peers = Peers(CLIENT, None, lambda: members, Secret(SECRET))
            a.send(b, replicate(0))
            await b.next()
            # From here on nothing runs on this loop until the question is awaited.
            question = threads.submit(asyncio.run, ask(peers, a.id))
            beats = 0
            while beats < 10:
                beats += a.ticks.acquire(timeout=10)
            a.send(b, replicate(1))
            assert b.received.get(timeout=10)[1] == replicate(1)
            assert not question.done()
            assert (await asyncio.wrap_future(question)).boot == a.id

    async def ask(peers, node):
        try:
            return await peers.call(node, m.Ping(), timeout=10)
        finally:
            await peers.close()

    with ThreadPoolExecutor() as threads:
        asyncio.run(stalled())


async def test_a_beat_that_fails_is_followed_by_the_next(members, tmp_path):
    async with End(0, members, tmp_path, heartbeat=0.02) as end:

        def fail():
            end.ticks.release()
            raise RuntimeError("once")

        end.thread._tick = fail
        for _ in range(5):
            assert await asyncio.to_thread(end.ticks.acquire, timeout=10)


async def test_who_stops_answers_what_is_under_way_and_refuses_what_comes(members, peers, tmp_path):
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def answer(_):
        asked.set()
        await go_on.wait()
        # A write waits for other nodes: the links must still be there.
        await send_until(a, b, 1)
        return m.Pong(boot="late")

    async with End(1, members, tmp_path) as b:
        async with End(0, members, tmp_path) as a:
            a.answer = answer
            first = asyncio.create_task(peers.call(a.id, m.Ping(), timeout=10))
            await asked.wait()
            stop = asyncio.create_task(a.thread.stop())
            with pytest.raises(Unavailable, match="stopping"):
                while True:
                    late = asyncio.create_task(peers.call(a.id, m.Ping(), timeout=10))
                    await asyncio.wait([late], timeout=0.1)
                    if not late.done():
                        late.cancel()
                    else:
                        await late
            assert not stop.done()
            go_on.set()
            assert (await first).boot == "late"
            await stop
        with pytest.raises(NothingListens):
            await peers.call(a.id, m.Ping(), timeout=10)


async def test_a_port_that_cannot_be_served_is_told_to_who_starts_it(members, tmp_path):
    end = End(0, members, tmp_path)
    end.listener.close()
    with pytest.raises((OSError, ValueError)):
        await end.thread.start()


def at(port: int) -> Node:
    return Node(id=NodeId("n1"), address="", peer_address=f"127.0.0.1:{port}")


async def test_a_node_whose_process_is_gone_is_told_apart_from_one_that_does_not_answer(members, peers):
    """Of neither can a write have been carried out."""
    with ExitStack() as stack:
        gone = stack.enter_context(socket.socket())
        gone.bind(("127.0.0.1", 0))
        members["n1"] = at(gone.getsockname()[1])
        with pytest.raises(NothingListens):
            await peers.call(NodeId("n1"), DELETE, timeout=10)
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # nobody accepts, and there is no room to wait
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        members["n1"] = at(deaf.getsockname()[1])
        with pytest.raises(Unavailable) as caught:
            await peers.call(NodeId("n1"), DELETE, timeout=10)
        assert not isinstance(caught.value, NothingListens)


async def test_a_write_that_was_sent_and_not_answered_has_no_known_outcome(members, peers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        members["n1"] = at(silent.getsockname()[1])
        with pytest.raises(OutcomeUnknown):
            await peers.call(NodeId("n1"), DELETE, timeout=0.5)
        with pytest.raises(Unavailable, match="no answer"):
            await peers.call(NodeId("n1"), m.Ping(), timeout=0.5)
