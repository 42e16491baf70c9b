"""What is deleted leaves the disk by itself, and nothing that is built fills it."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from support.builds import build_here
from support.storage import SMALL, opened, spec, upsert, write
from veccluster.decisions.filters import parse
from veccluster.decisions.generations import (
    Build,
    GenerationLimits,
    GenerationState,
    ShardState,
    decide,
    drops_the_list_before,
    room_for,
    that_fits,
)
from veccluster_node.engine.records import ROWS
from veccluster_node.replica import builder
from veccluster_node.replica.replica import StorageSettings
from veccluster_node.runtime.files import tree_size
from veccluster_node.wal.operations import DeleteWhere

DIMENSION = 384
SPEC = spec(DIMENSION)
KEPT = 100
MIB = 1 << 20
LIMITS = GenerationLimits()


@pytest.fixture(autouse=True)
def builds(monkeypatch):
    build_here(monkeypatch, look=0.05)


def quick():
    """As it is by default, but for how long it waits, and without graphs."""
    settings = StorageSettings()
    return replace(settings, limits=replace(settings.limits, tail_seconds=0.2, graph_rows=10**9))


def put(replica, first, last):
    rng = np.random.default_rng(first)
    for start in range(first, last, 1000):
        rows = range(start, min(start + 1000, last))
        vectors = rng.standard_normal((len(rows), DIMENSION)).astype(np.float32)
        write(replica, [upsert(f"id{i}", v, n=i) for i, v in zip(rows, vectors, strict=True)])


def until(condition, seconds=60):
    """Wait for what happens by itself: files tell nobody."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("stored", [3000, pytest.param(12_000, marks=pytest.mark.slow)])
def test_what_is_deleted_leaves_the_disk_by_itself_and_rows_that_are_kept_stay(tmp_path, stored):
    with opened(tmp_path / "fresh", SPEC, quick()) as replica:
        put(replica, 0, KEPT)
    fresh = tree_size(tmp_path / "fresh")
    with opened(tmp_path / "s", SPEC, quick()) as replica:
        put(replica, 0, stored)
        replica.build(60)
        full = tree_size(tmp_path / "s")
        write(replica, DeleteWhere(parse({"n": {"$gte": KEPT}})))
        until(lambda: tree_size(tmp_path / "s") <= 2 * fresh)
        assert full > 5 * fresh
        assert replica.count() == KEPT
        assert replica.issues == ()
    with opened(tmp_path / "s", SPEC, quick()) as replica:
        assert sorted(replica.list_ids(None, 1000)) == sorted(f"id{i}" for i in range(KEPT))
        assert (replica.issues, replica.damaged) == ((), None)


def test_a_file_of_rows_that_could_give_nothing_back_is_made_anew_when_it_is_opened(tmp_path):
    with opened(tmp_path / "s", SPEC, SMALL) as replica:
        put(replica, 0, 2000)
    rows = tmp_path / "s" / ROWS
    with closing(sqlite3.connect(rows, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA auto_vacuum=NONE")
        db.execute("VACUUM")
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    with opened(tmp_path / "s", SPEC, SMALL) as replica:
        write(replica, DeleteWhere(parse({"n": {"$gte": KEPT}})))
        until(lambda: rows.stat().st_size < 2 * MIB)
        assert replica.count() == KEPT
        assert replica.issues == ()
    assert not list((tmp_path / "s").glob("*.new"))


def test_the_list_before_goes_when_it_holds_mostly_what_is_deleted_and_stays_otherwise():
    state = ShardState((GenerationState(5000, 0),), 0, 0, 0.0, 0, 0, row_bytes=9 * MIB, list_bytes=15 * MIB)
    assert not drops_the_list_before(replace(state, spare_bytes=15 * MIB))
    assert drops_the_list_before(replace(state, spare_bytes=30 * MIB))
    assert not drops_the_list_before(replace(state, all_log_bytes=15 * MIB, spare_log_bytes=15 * MIB))
    assert drops_the_list_before(replace(state, all_log_bytes=25 * MIB, spare_log_bytes=20 * MIB))
    assert not drops_the_list_before(replace(state, all_log_bytes=25 * MIB)), "that would not shorten the log"
    damaged = replace(state, generations=(GenerationState(5000, 0, damaged=True),), spare_bytes=30 * MIB)
    assert not drops_the_list_before(damaged), "its rows may be needed yet"


def test_a_log_of_deletions_is_folded_in_after_a_while_and_only_where_it_outweighs_the_rows():
    state = ShardState((GenerationState(100, 0, graph=False),), 0, 0, 31.0, 11_900, MIB, row_bytes=200_000)
    assert decide(replace(state, all_log_bytes=2 * MIB)).tail
    assert decide(replace(state, all_log_bytes=2 * MIB, tail_seconds=1.0)) is None
    assert decide(replace(state, all_log_bytes=2 * MIB, row_bytes=MIB)) is None


def test_a_build_that_would_fill_the_disk_is_not_begun_and_the_tail_alone_is_where_that_fits():
    state = ShardState(
        (GenerationState(50_000, 0),),
        3000,
        3000,
        0.0,
        3000,
        0,
        row_bytes=53_000 * 2000,
        graph_bytes=1700,
        disk=10 << 30,
    )
    build = decide(state)
    assert (build.first, build.tail) == (0, True)
    needed = room_for(state, build)
    assert needed == 53_000 * 3700
    assert that_fits(state, build) == build, "nothing is known of the disk"
    assert that_fits(replace(state, room=needed + (205 << 20)), build) == build
    alone = that_fits(replace(state, room=needed + (204 << 20)), build)
    assert (alone.first, alone.last, alone.tail) == (1, 1, True)
    assert that_fits(replace(state, room=205 << 20), build) is None


def test_what_frees_more_than_it_takes_is_the_way_out_of_a_full_disk():
    state = ShardState((GenerationState(100, 11_900),), 0, 0, 0.0, 0, 0, row_bytes=200_000, disk=10 << 30, room=MIB)
    build = decide(state)
    assert that_fits(state, build) == build == Build(0, 1, False, None, False, "99% of it is dead")
    assert that_fits(replace(state, room=100_000), build) is None


def test_a_build_that_waits_for_room_says_so_and_goes_on_when_there_is_some(tmp_path, monkeypatch):
    usage = builder.shutil.disk_usage
    full = []
    monkeypatch.setattr(
        builder.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000) if full else usage(path)
    )
    with opened(tmp_path / "s", SPEC, SMALL) as replica:
        put(replica, 0, 2000)
        full.append(True)
        assert not replica.build(30)
        (said,) = replica.issues
        assert "a build waits for room on the disk: it takes about 3 MiB, and 0 MiB are free" in said
        assert not list((tmp_path / "s" / "generations").iterdir())
        full.clear()
        assert replica.build(30)
        assert replica.issues == ()
