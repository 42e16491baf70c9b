"""What replicas send to those of other nodes: it arrives in order, or is lost, and a dead connection is soon known."""

import asyncio
import socket
import threading
import time

import msgspec
import pytest

from support.peers import SHARD, End, replicate, send_until, wire
from support.replication import member
from veccluster.decisions.replication.messages import Accepted, Contradicted, Rejected, Snapshot
from veccluster.decisions.replication.values import Lineage
from veccluster.model.state import Epoch, Seq, ShardId
from veccluster_node.engine.generations import FileInfo
from veccluster_node.peer import links
from veccluster_node.peer import wire as format_
from veccluster_node.replica.snapshots import Offered

ACCEPTED = Accepted(Epoch(3), member(1), Seq(9), 4)


async def send_while(a, b, holds, message=ACCEPTED):
    """Send again and again: a link tries to connect only for what is sent, and tells nobody what it found."""
    async with asyncio.timeout(20):
        while holds():
            a.send(b, message)
            await asyncio.sleep(0.02)


@pytest.fixture
async def ends(tmp_path):
    members = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b, End(2, members, tmp_path) as c:
        yield a, b, c


async def test_messages_of_many_shards_arrive_whole_and_in_order(ends):
    a, b, _ = ends
    shards = [ShardId("words", n) for n in range(20)]
    for number in range(50):
        for shard in shards:
            a.send(b, replicate(number, size=number * 10), shard)
    got = [await b.next() for _ in range(50 * len(shards))]
    for shard in shards:
        assert [m for s, m in got if s == shard] == [replicate(n, size=n * 10) for n in range(50)]


async def test_every_kind_of_message_arrives_as_it_was_sent(ends):
    a, b, c = ends
    for message in (ACCEPTED, Rejected(Epoch(4), member(2)), replicate(3, 100)):
        a.send(b, message)
        c.send(b, message)
    got = [await b.next() for _ in range(6)]
    for message in (ACCEPTED, Rejected(Epoch(4), member(2)), replicate(3, 100)):
        assert got.count((SHARD, message)) == 2


async def test_a_record_that_is_larger_than_a_frame_arrives(ends):
    a, b, _ = ends
    a.send(b, replicate(1, size=40 << 20))
    a.send(b, replicate(2))
    assert (await b.next())[1] == replicate(1, size=40 << 20)
    assert (await b.next())[1] == replicate(2)


async def test_messages_to_a_node_that_nobody_knows_are_lost_and_harm_nobody(ends):
    a, b, _ = ends
    a.thread.links.send("nobody", SHARD, ACCEPTED)
    a.thread.links.send(a.id, SHARD, ACCEPTED)
    a.send(b, ACCEPTED)
    assert await b.next() == (SHARD, ACCEPTED)
    assert a.received.empty()


async def test_a_connection_that_is_cut_in_the_middle_of_a_frame_is_made_again(ends):
    a, b, _ = ends
    async with wire(b) as cable:
        cable.cut_after = 5 << 20
        for number in range(30):
            a.send(b, replicate(number, size=1 << 20))
        numbers = await send_until(a, b, 100)
    assert cable.connections >= 2
    # What was under way is lost; what arrived is whole, and nothing overtook.
    assert numbers == sorted(numbers)


async def test_a_connection_that_breaks_in_the_moment_of_sending_is_made_again(ends, monkeypatch):
    a, b, _ = ends
    broken = []
    send = links._Connection.send

    async def break_at_first(connection, data):
        if len(broken) < 3:
            broken.append(data)
            raise ConnectionError("broken")
        await send(connection, data)

    await send_until(a, b, 1)
    link = a.thread.links._links[b.id]
    async with asyncio.timeout(10):
        while link.wanted.is_set() or link.outbox._asked:  # noqa: ASYNC110 - until it waits for the next message
            await asyncio.sleep(0.01)
    monkeypatch.setattr(links._Connection, "send", break_at_first)
    await send_until(a, b, 2)
    assert len(broken) == 3


async def test_a_connection_on_which_nothing_moves_is_given_up_within_seconds(ends):
    a, b, _ = ends
    async with wire(b) as cable:
        await send_until(a, b, 1)
        cable.flows.clear()
        began = time.monotonic()
        while cable.connections < 2:
            a.send(b, replicate(2))
            await asyncio.sleep(0.02)
        assert time.monotonic() - began < 4.0
        cable.flows.set()
        await send_until(a, b, 3)


async def test_attempts_that_run_out_of_time_after_a_connection_has_died_do_not_end_the_link(ends, monkeypatch):
    a, b, _ = ends
    monkeypatch.setattr(links, "CONNECT_TIMEOUT", 0.3)
    async with wire(b) as cable:
        await send_until(a, b, 1)
        cable.flows.clear()
        while cable.connections < 4:
            a.send(b, replicate(2))
            await asyncio.sleep(0.02)
        cable.flows.set()
        await send_until(a, b, 3)
    task = a.thread.links._links[b.id].task
    assert task is not None
    assert task.cancelling() == 0, "some versions of Python would end it at the next timeout"


async def test_an_idle_connection_stays_for_as_long_as_its_peer_gives_signs_of_life(ends):
    a, b, _ = ends
    async with wire(b) as cable:
        await send_until(a, b, 1)
        await asyncio.sleep(links.SILENCE + 2.0)
        await send_until(a, b, 2)
        assert cable.connections == 1


async def test_a_slow_connection_is_not_taken_for_a_dead_one(ends):
    """Signs of life wait behind a record that takes longer than they may."""
    a, b, _ = ends
    async with wire(b) as cable:
        await send_until(a, b, 1)
        cable.delay = 0.01
        began = time.monotonic()
        a.send(b, replicate(2, size=32 << 20))
        await b.until(2)
        assert time.monotonic() - began > links.SILENCE + 1.0
        assert cable.connections == 1


async def test_a_peer_that_comes_back_at_another_port_is_found(tmp_path):
    members = {}
    async with End(0, members, tmp_path) as a:
        async with End(1, members, tmp_path) as b:
            await send_until(a, b, 1)
        async with End(1, members, tmp_path) as b:
            began = time.monotonic()
            await send_until(a, b, 2)
            assert time.monotonic() - began < 1.0


async def test_a_link_leaves_an_address_that_its_node_has_left_although_somebody_is_there(ends, monkeypatch):
    a, b, c = ends
    monkeypatch.setattr(links, "GRACE", 0.3)
    await send_until(a, b, 1)
    b.announce(c.port)  # as when a pod gets the address that another one had
    await send_while(a, b, lambda: a.thread.links.reaches(b.id))
    assert c.received.empty()
    b.announce(b.port)
    await send_until(a, b, 2)


async def test_what_is_sent_to_a_peer_that_is_away_is_not_kept_for_long(ends, monkeypatch):
    a, b, _ = ends
    monkeypatch.setattr(links, "GRACE", 0.3)
    async with wire(b) as cable:
        await send_until(a, b, 1)
        assert a.thread.links.reaches(b.id)
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            b.announce(taken.getsockname()[1])
            cable.cut()
            await send_while(a, b, lambda: a.thread.links.reaches(b.id), replicate(2))
            for number in range(3, 50):
                a.send(b, replicate(number))
            b.announce(b.port)
            assert min(await send_until(a, b, 100)) == 100
    assert a.thread.links.reaches(b.id)


async def test_a_peer_has_ended_when_its_machine_refuses_for_a_while_and_not_when_it_is_only_silent(ends, monkeypatch):
    a, b, _ = ends
    monkeypatch.setattr(links, "REFUSING", 0.3)
    async with wire(b) as cable:
        await send_until(a, b, 1)
        assert a.thread.links.is_connected(b.id) and not a.thread.links.has_ended(b.id)
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            b.announce(taken.getsockname()[1])
            cable.cut()
            began = time.monotonic()
            await send_while(a, b, lambda: not a.thread.links.has_ended(b.id))
            assert time.monotonic() - began >= 0.3
            assert not a.thread.links.is_connected(b.id)
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
            b.announce(silent.getsockname()[1])
            await send_while(a, b, lambda: a.thread.links.has_ended(b.id))
        b.announce(b.port)
        await send_until(a, b, 2)
        assert a.thread.links.is_connected(b.id) and not a.thread.links.has_ended(b.id)


def test_of_too_much_for_a_slow_peer_the_oldest_is_dropped():
    box = links._Outbox(100)
    assert box.put(b"a" * 60) and not box.put(b"b" * 60)
    assert box.take(1000) == [b"b" * 60]
    assert box.take(1000) == []
    assert box.put(b"c" * 500), "who takes is told again"
    assert box.take(10) == [b"c" * 500], "one that is too large for everything goes alone"


async def test_a_peer_that_does_not_read_costs_no_more_than_its_outbox(tmp_path):
    """And once it reads again it gets the newest."""
    members = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b, wire(b) as cable:
        a.thread.links._limit = 8 << 20
        await send_until(a, b, 1)
        cable.flows.clear()
        for number in range(2, 102):
            a.send(b, replicate(number, size=1 << 20))
        assert a.thread.links._links[b.id].outbox._size <= 8 << 20
        cable.flows.set()
        numbers = await send_until(a, b, 200)
        assert 101 in numbers and numbers == sorted(numbers)


async def test_links_from_many_threads_lose_nothing(ends):
    a, b, _ = ends

    def send(thread: int) -> None:
        for number in range(200):
            a.send(b, replicate(number), ShardId("words", thread))

    await asyncio.gather(*(asyncio.to_thread(send, t) for t in range(8)))
    got = [await b.next() for _ in range(8 * 200)]
    for thread in range(8):
        assert [m.header.commit for s, m in got if s.number == thread] == list(range(200))


async def test_sending_after_the_end_is_harmless(tmp_path):
    members = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
        await send_until(a, b, 1)
    a.send(b, ACCEPTED)
    b.send(a, ACCEPTED)


# The format


OFFERED = Offered(Seq(7), Epoch(2), Lineage(()), {n: FileInfo(3, "ab") for n in ("records.sqlite", "CURRENT")})
SENT = {
    "accepted": ACCEPTED,
    "rejected": Rejected(Epoch(4), member(2)),
    "contradicted": Contradicted(Epoch(4), member(2), "why"),
    "replicate": replicate(3, 10),
    "snapshot": format_.SnapshotOffer(header=replicate(0).header, id="x", offered=OFFERED),
    "snapshot-taken": format_.SnapshotTaken(id="x", done=True, why="full"),
}


def test_what_a_frame_holds_is_what_was_put_in():
    for count in (0, 1, 15, 16, 70_000):
        messages = [(SHARD, list(SENT.values())[n % len(SENT)]) for n in range(count)]
        assert list(format_.decode(format_.frame([format_.encode(*m) for m in messages]))) == messages


def test_fields_and_kinds_of_a_newer_version_are_ignored_and_what_cannot_be_read_costs_nothing_else():
    newer = msgspec.msgpack.decode(format_.encode(SHARD, ACCEPTED))
    newer[3]["invented"] = 1
    strange = ["words", 0, "invented", {"what": 1}]
    broken = ["words", 0, "accepted", {"epoch": "two"}]
    frame = msgspec.msgpack.encode([strange, broken, newer, strange])
    assert list(format_.decode(frame)) == [(SHARD, ACCEPTED)]
    with pytest.raises(msgspec.DecodeError):
        list(format_.decode(b"\xc1"))


def test_the_format_is_what_earlier_versions_wrote():
    """Nodes of two versions talk to each other: a field that gets another name here has it on the wire too, and one
    that is new is at its default where it is missing.
    """
    written = {
        "accepted": {"epoch": 3, "sender": ["n1", "n1/1"], "matched": 9, "confirm": 4},
        "rejected": {"epoch": 4, "sender": ["n2", "n2/1"]},
        "contradicted": {"epoch": 4, "sender": ["n2", "n2/1"], "why": "why"},
        "replicate": {
            "header": {
                "epoch": 2, "sender": ["n0", "n0/1"], "to": ["n1", "n1/1"],
                "lineage": {"runs": [[1, 1], [2, 5]]}, "commit": 3, "confirm": 0,
                "waits": False, "holds": 0,
            },
            "records": [{"epoch": 2, "first": 4, "count": 1, "op_id": "op-3", "payload": bytes(10)}],
        },
        "snapshot-taken": {"id": "x", "done": True, "why": "full"},
    }  # fmt: skip
    for kind, body in written.items():
        frame = msgspec.msgpack.encode([["words", 0, kind, body]])
        assert list(format_.decode(frame)) == [(SHARD, SENT[kind])]
        if kind == "accepted":
            body["floors"] = False
        elif kind == "replicate":
            body["header"]["floors"] = False
        assert msgspec.msgpack.decode(format_.encode(SHARD, SENT[kind])) == ["words", 0, kind, body]


def test_a_snapshot_is_no_message():
    with pytest.raises(KeyError):
        format_.encode(SHARD, Snapshot(replicate(0).header, Seq(1), None))


async def test_a_connection_that_breaks_as_its_node_stops_does_not_keep_it_from_ending(tmp_path, monkeypatch):
    connecting = threading.Event()

    async def breaks(*_):
        connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # a group that has failed already says so, and nothing of having been cancelled
            raise ExceptionGroup("broken", [ConnectionResetError()]) from None

    monkeypatch.setattr(links.Links, "_connect", breaks)
    members = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
        a.send(b, ACCEPTED)
        assert await asyncio.to_thread(connecting.wait, 20)
        async with asyncio.timeout(20):
            await a.thread.stop()
