"""A replica's state goes to another one whole, or not at all, whatever happens on the way."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from support.storage import GRAPHS, check_holds, delete, opened, upsert, write
from support.storage_writer import SETTINGS, SPEC, batch, batches_in, model_after
from veccluster.decisions.replication.values import Lineage, Run
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster_node.engine.generations import Shelf
from veccluster_node.replica import snapshots
from veccluster_node.replica.recovery import recover
from veccluster_node.replica.snapshots import Offered
from veccluster_node.wal import epochs

BATCHES = 90


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A closed replica with generations, and operations that are in none; another one in its directory's `outgoing`."""
    path = tmp_path_factory.mktemp("source") / "s"
    with opened(path, SPEC, SETTINGS) as replica:
        for n in range(BATCHES):
            write(replica, batch(n))
            if n in {40, 70}:
                assert replica.build(30)
        assert replica.stats().generations
        assert replica.stats().tail
    return path


@pytest.fixture
def exported(source, tmp_path):
    offered = snapshots.export(source, tmp_path / "exported")
    return tmp_path / "exported", offered


@pytest.fixture
def other(tmp_path):
    """What a crash left of a replica that holds something else, and has promised an epoch."""
    path = tmp_path / "other"
    with opened(tmp_path / "running", SPEC, SETTINGS) as replica:
        for i in range(9):
            write(replica, [upsert(f"old{i}", [i] * 8)])
        assert replica.build(30)
        write(replica, [upsert("oldest", [1] * 8)])
        delete(replica, "old1")
        shutil.copytree(tmp_path / "running", path)
    assert (path / "records.sqlite-wal").stat().st_size
    epochs.write(path, 7)
    return path


def receive(exported: Path, root: Path) -> Path:
    root.mkdir(exist_ok=True)
    return Path(shutil.copytree(exported, root / snapshots.INCOMING))


def check_installed(root, offered):
    """It holds exactly what was offered, and goes on behind it."""
    recovered = recover(root, SPEC, SETTINGS)
    recovered.records.close()
    recovered.log.close()
    found = recovered.found
    assert (found.first, found.last, found.applied) == (offered.through + 1, offered.through, offered.through)
    assert (found.lineage, recovered.damaged, recovered.issues) == (offered.lineage, None, [])
    assert not (root / snapshots.INSTALLING).exists()
    with opened(root, SPEC, SETTINGS) as replica:
        check_holds(replica, model_after(batches_in(offered.through))[0])
        write(replica, [upsert("new", [1] * 8)])
        assert replica.issues == ()
        assert "new" in replica.list_ids(None, 1000)


def test_an_empty_replica_becomes_what_the_other_one_is(source, exported, tmp_path):
    path, offered = exported
    assert {name.split("/")[0] for name in offered.files} == {"records.part", "CURRENT", "generations"}
    incoming = receive(path, tmp_path / "empty")
    snapshots.verify(incoming, offered)
    snapshots.stage(tmp_path / "empty", offered)
    snapshots.discard(path)
    assert not path.exists()
    check_installed(tmp_path / "empty", offered)
    with opened(tmp_path / "empty", SPEC, SETTINGS) as replica:
        assert replica.build(30)
    with opened(tmp_path / "empty", SPEC, SETTINGS) as replica:
        assert (replica.issues, replica.stats().tail) == ((), 0)
        assert "new" in replica.list_ids(None, 1000)
    with opened(source, SPEC, SETTINGS) as replica:
        check_holds(replica, model_after(BATCHES)[0])
        assert replica.issues == ()


def test_nothing_of_what_was_there_is_left_but_the_promised_epoch(exported, other):
    path, offered = exported
    (other / "records.suspect").touch()
    (other / snapshots.DOUBT).write_text("something may be missing")
    snapshots.verify(receive(path, other), offered)
    snapshots.stage(other, offered)
    assert recover_epoch(other) == 7
    check_installed(other, offered)


def recover_epoch(root):
    recovered = recover(root, SPEC, SETTINGS)
    recovered.records.close()
    recovered.log.close()
    return recovered.found.epoch


def test_a_snapshot_survives_encoding(exported):
    _, offered = exported
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(offered), type=Offered) == offered


@pytest.mark.e2e
def test_a_replica_gives_snapshots_while_it_is_written_to_and_built(tmp_path):
    root = tmp_path / "s"
    taken = []
    stop = threading.Event()
    with opened(root, SPEC, SETTINGS) as replica:

        def keep_writing():
            for n in range(100_000):
                write(replica, batch(n))
                if n % 25 == 24:
                    replica.build(30)
                if stop.is_set():
                    return

        thread = threading.Thread(target=keep_writing)
        thread.start()
        try:
            while len(taken) < 4 or taken[-1].through < 250:
                try:
                    into = root / snapshots.OUTGOING / str(len(taken))
                    taken.append(snapshots.export(root, into))
                    snapshots.verify(into, taken[-1])
                except Unavailable:
                    continue
        finally:
            stop.set()
            thread.join()
        for i in range(len(taken)):
            receive(root / snapshots.OUTGOING / str(i), tmp_path / str(i))
    for i, offered in enumerate(taken):
        snapshots.stage(tmp_path / str(i), offered)
        with opened(tmp_path / str(i), SPEC, SETTINGS) as copy:
            check_holds(copy, model_after(batches_in(offered.through))[0])
            assert copy.issues == ()
    assert any(len(o.files) > 2 for o in taken), "generations were among them"


def test_what_arrives_otherwise_than_it_was_offered_is_refused(exported, tmp_path):
    path, offered = exported
    incoming = receive(path, tmp_path / "r")
    for name in offered.files:
        file = incoming / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if whole else b"x")
        with pytest.raises(StorageCorrupt, match=r"does not match|cannot"):
            snapshots.verify(incoming, offered)
        file.unlink()
        with pytest.raises(StorageCorrupt, match="missing"):
            snapshots.verify(incoming, offered)
        file.write_bytes(whole)
    (incoming / "more").touch()
    with pytest.raises(StorageCorrupt, match="more is unknown"):
        snapshots.verify(incoming, offered)
    (incoming / "more").unlink()
    other = msgspec.structs.replace(offered, lineage=Lineage((Run(9, 1),)))
    with pytest.raises(StorageCorrupt, match="another state"):
        snapshots.verify(incoming, other)
    snapshots.verify(incoming, offered)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "log/1", "generations/../x", "generations/a/b/c", "generations//a/b", "generations/./a"]
)
def test_no_offer_names_a_file_outside_of_a_snapshot(exported, name):
    _, offered = exported
    said = msgspec.to_builtins(offered)
    said["files"][name] = {"size": 1, "sha256": "0"}
    with pytest.raises(msgspec.ValidationError, match="no file of the name"):
        msgspec.convert(said, Offered)


def test_damage_is_not_passed_on(source, tmp_path):
    root = tmp_path / "s"
    shutil.copytree(source, root)
    generation = root / "generations" / Shelf(root).current.generations[0]
    data = (generation / "vectors.f32").read_bytes()
    (generation / "vectors.f32").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(StorageCorrupt, match=r"vectors.f32 does not match"):
        snapshots.export(root, tmp_path / "out")
    generation.rename(generation.with_name("damaged-it"))
    with pytest.raises(Unavailable):
        snapshots.export(root, tmp_path / "out")
    (root / "records.suspect").touch()
    with pytest.raises(Unavailable):
        snapshots.export(root, tmp_path / "out")


def test_a_snapshot_that_waits_to_be_installed_is_not_replaced_by_another(exported, tmp_path):
    path, offered = exported
    root = tmp_path / "r"
    for _ in range(2):
        snapshots.verify(receive(path, root), offered)
        if (root / snapshots.INSTALLING).exists():
            with pytest.raises(Unavailable):
                snapshots.stage(root, offered)
        else:
            snapshots.stage(root, offered)
    check_installed(root, offered)
    assert not (root / snapshots.INCOMING).exists()


def test_what_came_only_in_part_is_thrown_away(exported, other):
    path, _ = exported
    receive(path, other)
    (other / snapshots.OUTGOING / "1").mkdir(parents=True)
    with opened(other, SPEC, SETTINGS) as replica:
        assert replica.count() == 9
    assert not (other / snapshots.INCOMING).exists()
    assert not (other / snapshots.OUTGOING).exists()


INSTALLER = """
import sys
from pathlib import Path
import msgspec
from veccluster_node.replica import snapshots
root = Path(sys.argv[1])
snapshots.stage(root, msgspec.json.decode(sys.argv[2], type=snapshots.Offered))
snapshots.finish(root)
"""
QUICK = ["snapshot.stage", "snapshot.staged", "snapshot.replace=1-", "snapshot.removed=2-", "snapshot.finish"]
SLOW = [f"{place}={skip}-" for place in ("snapshot.replace", "snapshot.removed") for skip in range(4)]


@pytest.mark.parametrize("place", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW if p not in QUICK)])
def test_a_crash_leaves_the_old_replica_whole_or_the_snapshot_whole(exported, other, place):
    path, offered = exported
    incoming = receive(path, other)
    snapshots.verify(incoming, offered)
    name, _, skip = place.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", INSTALLER, str(other), msgspec.json.encode(offered).decode()],
        env={**os.environ, "VECCLUSTER_FAILPOINTS": f"{name}={skip}kill"},
        check=False,
    )
    assert done.returncode == -9
    if place != "snapshot.stage":
        check_installed(other, offered)
        return
    with opened(other, SPEC, GRAPHS) as replica:
        assert replica.issues == ()
        assert replica.list_ids(None, 99) == sorted([*(f"old{i}" for i in range(9) if i != 1), "oldest"])


def test_a_crash_after_each_crash_only_means_going_on(exported, other):
    """The same install dies again and again, each time one step further."""
    path, offered = exported
    snapshots.verify(receive(path, other), offered)
    snapshots.stage(other, offered)
    script = "import sys; from pathlib import Path; from veccluster_node.replica import snapshots; " + (
        "snapshots.finish(Path(sys.argv[1]))"
    )
    for place in ("snapshot.removed", "snapshot.replace=1-", "snapshot.removed", "snapshot.finish"):
        name, _, more = place.partition("=")
        subprocess.run(
            [sys.executable, "-c", script, str(other)],
            env={**os.environ, "VECCLUSTER_FAILPOINTS": f"{name}={more}kill"},
            check=False,
        )
    check_installed(other, offered)
