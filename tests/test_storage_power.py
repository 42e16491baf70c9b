"""A power cut of an only copy: what was acknowledged is shown afterwards, whoever was reading when the log was cut."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.builds import build_here
from support.storage import SMALL, check_holds, opened, spec, upsert, write
from veccluster import failpoints
from veccluster.errors import Unavailable, VecClusterError
from veccluster_node.engine.records import ROWS, Records, Snapshots
from veccluster_node.wal.log import Log

SPEC = spec(8)
SETTINGS = replace(SMALL, segment_size=1 << 11)
BEFORE, ALL = 40, 160


@pytest.fixture(autouse=True)
def builds(monkeypatch):
    build_here(monkeypatch)


class Medium:
    """What of a shard's directory is on the disk: of the rows nothing but what somebody has synced.

    While a reader keeps what it was opened on, no checkpoint can end, so that SQLite's file stays as it was then, and
    all that is new is in SQLite's log.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.wal = root / f"{ROWS}-wal"
        self._file = (root / ROWS).read_bytes()
        self._synced = self.wal.read_bytes()
        self._is_over = False
        fsync, inode = os.fsync, self.wal.stat().st_ino

        def noted(fd: int) -> None:
            fsync(fd)
            if os.fstat(fd).st_ino == inode and not self._is_over:
                self._synced = self.wal.read_bytes()

        monkeypatch.setattr(os, "fsync", noted)

    def after_a_power_cut(self, into: Path) -> Path:
        self._is_over = True
        shutil.copytree(self.root, into, ignore=shutil.ignore_patterns("*-shm"))
        (into / ROWS).write_bytes(self._file)
        (into / f"{ROWS}-wal").write_bytes(self._synced)
        return into


def put(replica, first, last):
    for i in range(first, last):
        write(replica, [upsert(f"id{i}", [i] * 8, i=i)], op_id=f"put-{i}")


def model(count):
    return {f"id{i}": (np.full(8, i, np.float32), b'{"i": %d}' % i) for i in range(count)}


@contextmanager
def read_meanwhile(root):
    """A reader that sees what is there now for as long as this lasts."""
    snapshots = Snapshots(root / ROWS)
    with snapshots.take():
        yield
    snapshots.close()


def test_what_a_reader_keeps_from_being_checkpointed_is_durable_before_the_log_is_cut(tmp_path, monkeypatch):
    root = tmp_path / "s"
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, 0, BEFORE)
        with read_meanwhile(root):
            medium = Medium(root, monkeypatch)
            put(replica, BEFORE, ALL - 20)
            assert replica.build(30)
            put(replica, ALL - 20, ALL)
            assert replica.build(30)
            assert Log.open(root / "log").first_seq > BEFORE + 1, "the log was cut"
            left = medium.after_a_power_cut(tmp_path / "left")
    with opened(left, SPEC, SETTINGS) as replica:
        assert (replica.read_only, replica.damaged, replica.issues) == (None, None, ())
        check_holds(replica, model(ALL))
        assert write(replica, [upsert("id60", [0] * 8)], op_id="put-60").replayed, "rows that are made anew know less"
        assert not list(left.glob("damaged-*"))


def test_rows_that_end_before_the_log_begins_are_made_from_the_generations(tmp_path):
    """What an earlier version left: the log was cut, and nothing of the rows behind had reached the disk."""
    root, old = tmp_path / "s", tmp_path / "old"
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, 0, BEFORE)
    shutil.copy(root / ROWS, old)
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, BEFORE, ALL - 20)
        assert replica.build(30)
        put(replica, ALL - 20, ALL)
        assert replica.build(30)
        put(replica, ALL, ALL + 7)
    shutil.copy(old, root / ROWS)
    for _ in range(2):
        with opened(root, SPEC, SETTINGS) as replica:
            assert (replica.read_only, replica.damaged, replica.issues) == (None, None, ())
            check_holds(replica, model(ALL + 7))


def test_rows_that_nothing_can_continue_stay_as_they_are_and_the_gap_is_told(tmp_path):
    root, old = tmp_path / "s", tmp_path / "old"
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, 0, BEFORE)
    shutil.copy(root / ROWS, old)
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, BEFORE, ALL)
        assert replica.build(30)
        put(replica, ALL, ALL + 7)
        assert replica.build(30)
    shutil.copy(old, root / ROWS)
    shutil.rmtree(root / "generations")
    (root / "CURRENT").unlink()
    with opened(root, SPEC, SETTINGS) as replica:
        assert replica.read_only.startswith(f"operations {BEFORE + 1} to ")
        assert replica.count() == BEFORE


def test_a_disk_that_cannot_confirm_the_rows_keeps_the_log_and_ends_the_replicas_part_until_it_is_opened(tmp_path):
    root = tmp_path / "s"
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, 0, ALL - 20)
        assert replica.build(30)
        put(replica, ALL - 20, ALL)
        begins = Log.open(root / "log").first_seq
        with failpoints.armed("records.sync=error:EIO"):
            assert not replica.build(30)
        assert Log.open(root / "log").first_seq == begins
        with pytest.raises(VecClusterError, match="could not confirm the rows"):
            put(replica, ALL, ALL + 1)
        assert isinstance(replica.failure, Unavailable)
    with opened(root, SPEC, SETTINGS) as replica:
        check_holds(replica, model(ALL))
        put(replica, ALL, ALL + 1)


def test_what_is_opened_is_in_the_file_itself_so_that_an_earlier_failure_to_sync_is_over(tmp_path):
    root = tmp_path / "s"
    with opened(root, SPEC, SETTINGS) as replica:
        put(replica, 0, BEFORE)
        shutil.copytree(root, tmp_path / "crashed")
    assert (tmp_path / "crashed" / f"{ROWS}-wal").stat().st_size
    records = Records(tmp_path / "crashed" / ROWS)
    with (tmp_path / "crashed" / ROWS).open("rb") as file:
        assert b"id39" in file.read()
    assert records.sync() == BEFORE
    records.close()
