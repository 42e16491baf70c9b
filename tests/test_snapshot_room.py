"""A snapshot for another replica takes next to nothing of its sender's disk, and what fails is tried less and less."""

import asyncio
import os
import shutil

import msgspec
import pytest
import structlog

from support.peers import SHARD, End, header
from support.storage import SMALL, opened, upsert, write
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster_node.engine import partial
from veccluster_node.engine.generations import FileInfo
from veccluster_node.engine.partial import PART
from veccluster_node.engine.records import ROWS
from veccluster_node.peer import snapshots as transfers
from veccluster_node.replica import snapshots
from veccluster_node.runtime.files import sha256, tree_size

NOISE = 50_000


def row(n: int):
    return upsert(f"id{n}", [n + 1.0] * 8, noise=os.urandom(NOISE // 2).hex())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A replica whose rows are in a generation but for a few, some of which have died since."""
    root = tmp_path_factory.mktemp("source") / "s"
    with opened(root, settings=SMALL) as replica:
        write(replica, [row(n) for n in range(60)], op_id="first")
        assert replica.build(30)
        write(replica, [row(n) for n in (5, 60)], op_id="second")
    return root


@pytest.fixture
def exported(source, tmp_path):
    return tmp_path / "out", snapshots.export(source, tmp_path / "out")


def written(path):
    """Bytes of files that are nobody else's, too."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.stat().st_nlink == 1)


def install(files, offered, root):
    root.mkdir()
    shutil.copytree(files, root / snapshots.INCOMING)
    snapshots.verify(root / snapshots.INCOMING, offered)
    snapshots.stage(root, offered)


def check(root):
    with opened(root, settings=SMALL) as replica:
        assert (replica.count(), replica.issues, replica.damaged) == (61, (), None)
        assert [len(r.metadata) > NOISE for r in replica.get(["id5", "id59", "id60"])] == [True] * 3
        assert write(replica, [row(0)], op_id="first").replayed, "what was applied once is known there, too"
        assert replica.scrub(1e9) == {}


def test_what_generations_hold_is_sent_from_them_and_not_written_again(source, exported, tmp_path):
    files, offered = exported
    assert offered.size > 60 * NOISE
    assert written(files) < 6 * NOISE
    assert offered.size < 1.2 * tree_size(source / "generations"), "it is not sent twice either"
    install(files, offered, tmp_path / "new")
    check(tmp_path / "new")


def test_the_rows_are_the_senders_or_the_snapshot_is_refused(exported, tmp_path):
    files, offered = exported
    incoming = tmp_path / "incoming"
    shutil.copytree(files, incoming)
    with partial.closing(partial.connect(incoming / PART, read_only=False)) as db:
        db.execute("DELETE FROM gone")
        db.execute("INSERT INTO gone VALUES (9)")
        db.execute("DELETE FROM records WHERE id='id5'")
    info = FileInfo((incoming / PART).stat().st_size, sha256(incoming / PART))
    wrong = msgspec.structs.replace(offered, files={**offered.files, PART: info})
    with pytest.raises(StorageCorrupt, match="not the rows that were written"):
        snapshots.verify(incoming, wrong)


def test_what_a_version_offers_that_sends_all_rows_is_still_taken(exported, tmp_path):
    files, offered = exported
    snapshots.verify(files, offered)
    (files / PART).unlink()
    info = FileInfo((files / ROWS).stat().st_size, sha256(files / ROWS))
    theirs = {name: of for name, of in offered.files.items() if name != PART} | {ROWS: info}
    install(files, msgspec.structs.replace(offered, files=theirs), tmp_path / "new")
    check(tmp_path / "new")


def test_a_sender_without_room_makes_none(source, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "_SMALL", 1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda _: usage._replace(free=usage.total // 20 + NOISE))
    with pytest.raises(Unavailable, match="the disk has no room for it"):
        snapshots.export(source, tmp_path / "out")
    assert written(tmp_path / "out") < 2 * NOISE
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda _: usage._replace(free=usage.total // 20 + 10 * NOISE))
    snapshots.export(source, tmp_path / "out")


def test_a_receiver_counts_the_rows_that_it_makes_of_what_comes(exported, tmp_path, monkeypatch):
    files, offered = exported
    snapshots.verify(files, offered)
    assert (files / ROWS).stat().st_size <= offered.rows_size <= 2 * (files / ROWS).stat().st_size
    usage = shutil.disk_usage(tmp_path)
    kept = transfers.ROOM * usage.total
    free = [int(kept + offered.size + offered.rows_size - 1)]
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with pytest.raises(transfers._Unusable, match="no room"):
        transfers._prepare(tmp_path / "incoming", offered)
    free[0] += 2
    assert set(transfers._prepare(tmp_path / "incoming", offered)) == offered.files.keys()


async def test_what_comes_to_nothing_is_tried_less_and_less(source, tmp_path, monkeypatch):
    monkeypatch.setattr(transfers, "AGAIN", 0.05)
    monkeypatch.setattr(transfers, "LONGEST_PAUSE", 0.2)
    tries = []

    def fail(root, into):
        tries.append(into)
        raise Unavailable("the disk has no room for it")

    members = {}
    with structlog.testing.capture_logs() as logged:
        async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
            b.replicas[SHARD] = b.path / "r"
            b.replicas[SHARD].mkdir()
            export = snapshots.export
            monkeypatch.setattr(snapshots, "export", fail)
            async with asyncio.timeout(30):
                while len(tries) < 4:
                    a.thread.transfers.offer(SHARD, header(), source)
                    await asyncio.sleep(0.01)
                monkeypatch.setattr(snapshots, "export", export)
                while b.received.empty():
                    a.thread.transfers.offer(SHARD, header(), source)
                    await asyncio.sleep(0.01)
    assert [e["again_in"] for e in logged if e["event"] == "snapshot_not_taken"][:4] == [0.05, 0.1, 0.2, 0.2]
    assert not list((a.path / "outgoing").glob("*"))
