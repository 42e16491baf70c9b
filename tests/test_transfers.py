"""A snapshot on its way from a primary to a replica that needs everything, whatever happens to either meanwhile."""

import asyncio
import json
import os
import shutil
import sqlite3
import time

import aiohttp
import pytest

from support.peers import SECRET, SHARD, End, header, wire
from support.storage import GRAPHS, opened, upsert, write
from veccluster.decisions.replication.messages import Snapshot
from veccluster.model.state import ShardId
from veccluster_node.peer import snapshots as transfers
from veccluster_node.peer.proofs import Introductions, Secret
from veccluster_node.replica import snapshots
from veccluster_node.replica.snapshots import INCOMING

NOISE = 100_000
"""Bytes of metadata of each row, so that a small replica has files of megabytes."""


@pytest.fixture(scope="module")
def primary(tmp_path_factory):
    """The directory of a replica with generations, and rows that are in none."""
    root = tmp_path_factory.mktemp("primary") / "shard"
    with opened(root, settings=GRAPHS) as replica:
        write(replica, [upsert(f"a{n}", [n + 1.0] * 8, noise=os.urandom(NOISE // 2).hex()) for n in range(40)])
        replica.build(30)
        write(replica, [upsert(f"b{n}", [n + 1.0] * 8, noise=os.urandom(NOISE // 2).hex()) for n in range(40)])
    return root


@pytest.fixture
async def ends(tmp_path):
    members = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
        yield a, b


def needs(end: End, shard: ShardId = SHARD):
    """The directory of a new replica of this node."""
    root = end.path / f"replica-{shard.number}"
    root.mkdir()
    end.replicas[shard] = root
    return root


async def offer(from_: End, to: End, root, *, shard=SHARD, **changes) -> Snapshot:
    """Offer as the machine does, again and again, until the receiver's replica is told."""
    told = asyncio.create_task(to.next(timeout=60))
    try:
        while not told.done():
            from_.thread.transfers.offer(shard, header(**changes), root)
            await asyncio.wait([told], timeout=0.05)
    finally:
        told.cancel()
    got_shard, message = told.result()
    assert got_shard == shard
    return message


def check(root, message) -> None:
    """It is whole, and a replica that installs it has all rows."""
    snapshots.verify(root / INCOMING, message.content)
    snapshots.stage(root, message.content)
    with opened(root, settings=GRAPHS) as replica:
        assert replica.applied_seq == message.through == 80
        found = replica.get(["a0", "a39", "b39"])
        assert [len(json.loads(f.metadata)["noise"]) for f in found] == [NOISE // 2 * 2] * 3


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - files tell nobody
            await asyncio.sleep(0.02)


async def test_a_snapshot_arrives_whole_and_its_copy_is_removed_where_it_came_from(ends, primary):
    a, b = ends
    root = needs(b)
    message = await offer(a, b, primary)
    assert message.header == header()
    check(root, message)
    await until(lambda: not list((a.path / "outgoing").iterdir()))


async def test_a_replica_that_was_given_everything_is_not_given_it_again_while_it_installs(ends, primary, monkeypatch):
    a, b = ends
    needs(b)
    await offer(a, b, primary)
    for _ in range(20):
        a.thread.transfers.offer(SHARD, header(), primary)
        await asyncio.sleep(0.02)
    assert b.received.empty()
    assert not list((a.path / "outgoing").iterdir())
    # It would not take it, since it knew a later epoch: now it is told in that one.
    monkeypatch.setattr(transfers, "DELIVER_EVERY", 0.1)
    assert (await offer(a, b, primary, epoch=3)).header == header(epoch=3)


async def test_an_interrupted_transfer_goes_on_where_it_was(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "CHUNK", 1 << 18)
    root = needs(b)
    size = snapshots.export(primary, b.path / "size").size
    async with wire(a) as cable:
        cable.cut_after = size // 2
        message = await offer(a, b, primary)
        assert cable.cut_after is None, "it was cut"
        assert cable.carried < size + (1 << 20)
    check(root, message)


async def test_a_transfer_survives_that_nothing_moves_for_a_while(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "CHUNK", 1 << 18)
    monkeypatch.setattr(transfers, "CHUNK_TIMEOUT", 0.5)
    root = needs(b)
    async with wire(a) as cable:
        fetching = asyncio.create_task(offer(a, b, primary))
        await until(lambda: cable.carried > 1 << 20)
        cable.flows.clear()
        await asyncio.sleep(1.0)
        cable.flows.set()
        check(root, await fetching)


async def test_a_file_that_is_damaged_on_its_way_or_by_the_disk_is_fetched_again(ends, primary, monkeypatch):
    a, b = ends
    root = needs(b)
    damaged = []
    whole = transfers._append

    def damage(path, data):
        if len(data) > 1000 and not damaged:
            damaged.append(path.name)
            data = bytes([data[0] ^ 1]) + data[1:]
        whole(path, data)

    monkeypatch.setattr(transfers, "_append", damage)
    check(root, await offer(a, b, primary))
    assert damaged


async def test_a_file_that_stays_damaged_is_given_up_told_to_the_sender_and_offered_anew(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "AGAIN", 0.2)
    root = needs(b)
    exported = []
    export = snapshots.export

    def damaged_at_first(root, into):
        offered = export(root, into)
        exported.append(into.name)
        if len(exported) == 1:
            with (into / "records.part").open("r+b") as file:
                file.write(b"X")
        return offered

    monkeypatch.setattr(snapshots, "export", damaged_at_first)
    check(root, await offer(a, b, primary))
    assert len(exported) == 2
    await until(lambda: not list((a.path / "outgoing").iterdir()))


async def test_a_snapshot_that_cannot_be_made_is_tried_again_and_keeps_no_other_from_being_made(
    ends, primary, monkeypatch
):
    a, b = ends
    monkeypatch.setattr(transfers, "AGAIN", 0.2)
    root = needs(b)
    failed = []
    export = snapshots.export

    def fail_at_first(root, into):
        if not failed:
            failed.append(into)
            raise sqlite3.OperationalError("database is locked")
        return export(root, into)

    monkeypatch.setattr(snapshots, "export", fail_at_first)
    check(root, await offer(a, b, primary))
    assert failed


async def test_a_primary_that_begins_anew_need_not_send_again_what_is_there(tmp_path, primary, monkeypatch):
    """It is another process, so that it knows nothing of the offer; the generations are the same."""
    members = {}
    monkeypatch.setattr(transfers, "CHUNK", 1 << 18)
    monkeypatch.setattr(transfers, "AGAIN", 0.2)
    async with End(1, members, tmp_path) as b:
        root = needs(b)
        async with End(0, members, tmp_path) as a:
            message = await offer(a, b, primary)
            size = message.content.size
        generation = next(p for p in message.content.files if p.endswith("records.arrow"))
        b.thread.transfers._receiver._delivered.clear()
        (root / INCOMING / "records.part").write_bytes(b"half of it")
        async with End(0, members, tmp_path) as a, wire(a) as cable:
            message = await offer(a, b, primary)
            assert cable.carried < size - 0.9 * message.content.files[generation].size
    check(root, message)


async def test_a_new_primary_replaces_one_that_died_in_the_middle(tmp_path, primary, monkeypatch):
    members = {}
    monkeypatch.setattr(transfers, "GIVE_UP", 1000.0)
    monkeypatch.setattr(transfers, "CHUNK", 1 << 16)
    async with End(1, members, tmp_path, snapshot_rate=1 << 20) as b, End(2, members, tmp_path) as c:
        root = needs(b)
        async with End(0, members, tmp_path) as a, wire(a) as cable:
            dying = asyncio.create_task(offer(a, b, primary))
            await until(lambda: any(p.is_file() for p in (root / INCOMING).rglob("*")))
            cable.flows.clear()
            dying.cancel()
            b.thread.transfers._receiver._pace._rate = 1 << 30
            message = await offer(c, b, primary, epoch=3, sender=2)
            assert message.header.epoch == 3
    check(root, message)


async def test_a_node_fetches_one_at_a_time_and_all_in_the_end(ends, primary):
    a, b = ends
    shards = [ShardId("words", n) for n in range(4)]
    roots = {shard: needs(b, shard) for shard in shards}
    while roots:
        waiting = asyncio.create_task(b.next(timeout=60))
        while not waiting.done():
            for other in roots:
                a.thread.transfers.offer(other, header(), primary)
            assert len([p for p in roots.values() if (p / INCOMING).exists()]) <= 1
            assert len(list((a.path / "outgoing").iterdir())) <= 2, "one that is removed, one that is made"
            await asyncio.wait([waiting], timeout=0.02)
        done, message = waiting.result()
        check(roots.pop(done), message)


async def test_what_nobody_fetches_is_forgotten(ends, primary, monkeypatch):
    a, _ = ends
    monkeypatch.setattr(transfers, "KEPT", 0.5)
    offered = asyncio.Event()
    monkeypatch.setattr(a.thread.links, "send", lambda *_: offered.set())
    async with asyncio.timeout(30):
        while not offered.is_set():
            a.thread.transfers.offer(SHARD, header(), primary)
            await asyncio.sleep(0.02)
    assert a.thread.transfers.is_under_way(SHARD, header().to)
    (made,) = (a.path / "outgoing").iterdir()
    assert a.thread.transfers.file(made.name, "CURRENT") == made / "CURRENT"
    assert a.thread.transfers.file(made.name, "../x") is None
    # What looks after it sleeps for as long as was set when it began.
    sender = a.thread.transfers._sender
    a.thread._loop.call_soon_threadsafe(lambda: sender._tasks.start(sender._forget_old()))
    await until(lambda: not made.exists())
    assert not a.thread.transfers.is_under_way(SHARD, header().to)


async def test_a_replica_that_is_not_open_here_is_offered_it_later(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "AGAIN", 0.2)
    trying = asyncio.create_task(offer(a, b, primary))
    await asyncio.sleep(0.5)
    assert not trying.done()
    root = needs(b)
    check(root, await trying)


async def test_a_replica_that_is_closed_meanwhile_is_left_alone(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "AGAIN", 60.0)
    monkeypatch.setattr(transfers, "CHUNK", 1 << 16)
    b.thread.transfers._receiver._pace._rate = 1 << 20
    root = needs(b)
    trying = asyncio.create_task(offer(a, b, primary))
    await until(lambda: (root / INCOMING).exists() and any((root / INCOMING).iterdir()))
    trying.cancel()
    b.replicas.clear()
    await until(lambda: b.thread.transfers._receiver._current is None)
    shutil.rmtree(root)
    assert b.received.empty()


async def test_a_disk_that_has_no_room_for_it_is_not_filled(ends, primary, monkeypatch):
    a, b = ends
    monkeypatch.setattr(transfers, "AGAIN", 0.2)
    monkeypatch.setattr(transfers, "ROOM", 1.0)
    root = needs(b)
    trying = asyncio.create_task(offer(a, b, primary))
    await asyncio.sleep(0.5)
    assert not list((root / INCOMING).iterdir())
    monkeypatch.setattr(transfers, "ROOM", 0.0)
    check(root, await trying)


async def test_a_download_keeps_to_its_rate(tmp_path, primary, monkeypatch):
    members = {}
    monkeypatch.setattr(transfers, "CHUNK", 1 << 18)
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path, snapshot_rate=8 << 20) as b:
        root = needs(b)
        began = time.monotonic()
        message = await offer(a, b, primary)
        assert time.monotonic() - began > 0.8 * message.content.size / (8 << 20)
    check(root, message)


async def test_what_is_left_of_an_earlier_process_is_removed(tmp_path):
    members = {}
    end = End(0, members, tmp_path)
    (end.path / "outgoing" / "old").mkdir(parents=True)
    async with end:
        assert not list((end.path / "outgoing").iterdir())


async def test_a_file_is_given_only_by_its_offer(ends, primary):
    a, b = ends
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    async with aiohttp.ClientSession() as session:
        proof = await Introductions(b.id, Secret(SECRET)).to(a.members[a.id], session)
    for path in ("x/CURRENT", "..%2f..%2fetc/passwd", "x/..%2f..%2f..%2fetc%2fpasswd"):
        headers = f"Host: a\r\nAuthorization: {proof['Authorization']}"
        writer.write(f"GET {transfers.PATH}/{path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        length = 0
        while (line := await reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        await reader.readexactly(length)
    writer.close()
