"""What is made or deleted is so after a crash, too, and what was set aside for a person is not kept for ever."""

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from support.builds import build_here
from support.storage import SMALL, Alone, opened, upsert, write
from veccluster.model.state import ShardId
from veccluster_node.engine.records import ROWS
from veccluster_node.replica import builder, evidence
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.shards.host import DOOMED, ShardHost

SHARD = ShardId("c0ffee", 0)


@pytest.fixture(autouse=True)
def builds(monkeypatch):
    build_here(monkeypatch, look=0.02)


@pytest.fixture
def durable(monkeypatch):
    """For each directory the names in it that a power cut would leave: those at its last fsync."""
    names = defaultdict(set)
    fsync = os.fsync

    def noted(fd):
        fsync(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            names[path] = {entry.name for entry in path.iterdir()}

    monkeypatch.setattr(os, "fsync", noted)
    return names


def test_a_new_replicas_directory_is_there_after_a_power_cut_before_anything_in_it_is_acknowledged(tmp_path, durable):
    root = tmp_path / "shards" / str(SHARD)
    with opened(root) as replica:
        write(replica, [upsert("a", [1] * 8)])
        assert durable[tmp_path] >= {"shards"}
        assert durable[root.parent] == {root.name}
        assert durable[root] >= {"log", "epoch"}
        replica.build(30)
        assert durable[root] >= {"log", "epoch", ROWS, "generations", "CURRENT"}


async def test_a_replica_that_was_deleted_does_not_come_back_after_a_power_cut(tmp_path, durable):
    host = ShardHost(tmp_path, SMALL, MemoryGuard(1.0), Alone(), threads=1)
    with opened(tmp_path / "shards" / str(SHARD)) as replica:
        write(replica, [upsert("a", [1] * 8)])
    assert str(SHARD) in durable[tmp_path / "shards"]
    await host.delete(SHARD)
    assert durable[tmp_path / "shards"] == {f"{SHARD}{DOOMED}"}, "which is deleted at the next start"
    assert not any((tmp_path / "shards").iterdir())
    await host.close()


def set_aside(root):
    made = ["damaged-CURRENT", f"damaged-{ROWS}", f"damaged-{ROWS}-wal", "generations/damaged-0-1.x/seqs.u64"]
    made += ["log/torn-1-100-998", "log/torn-1-100-1001", "log/torn-9-100-1000"]
    for name in made:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text("x")


def left(root):
    return sorted(path.name for place in (".", "generations", "log") for path in (root / place).glob("*-*"))


def test_what_was_set_aside_is_kept_for_a_week_and_of_torn_ends_only_the_newest(tmp_path):
    set_aside(tmp_path)
    assert sorted(evidence.forget(tmp_path)) == ["torn-1-100-998", "torn-9-100-1000"]
    kept = ["damaged-0-1.x", "damaged-CURRENT", f"damaged-{ROWS}", f"damaged-{ROWS}-wal", "torn-1-100-1001"]
    assert left(tmp_path) == kept
    assert sorted(evidence.forget(tmp_path, older_than=0)) == kept
    assert left(tmp_path) == []


def test_a_replica_that_is_in_order_gives_up_what_was_set_aside_when_the_disk_is_nearly_full(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_FORGET_EVERY", 0.0)
    root = tmp_path / "s"
    set_aside(root)
    with opened(root, settings=replace(SMALL, full_at=2.0)) as replica:
        write(replica, [upsert("a", [1] * 8)])
        replica.build(30)
        replica.build(30)
        assert f"damaged-{ROWS}" in left(root)
        monkeypatch.setattr(builder, "disk_usage", lambda _: 3.0)
        replica.build(30)
        while any("damaged" in name or "torn" in name for name in left(root)):
            replica.build(30)
        assert replica.count() == 1
