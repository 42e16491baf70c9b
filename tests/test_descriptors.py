"""Few open files: what does not fit is refused in words, and what finds no file to open is not damaged."""

import asyncio
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.states import collection
from support.storage import GRAPHS, ME, SMALL, Alone, exact_parameters, opened, spec, upsert, write
from veccluster.decisions import descriptors
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster.model.state import NodeId, ShardId
from veccluster_node.engine.idle import Idle
from veccluster_node.replica.replica import Query
from veccluster_node.runtime import files
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.shards.host import Files, ShardHost

LIMITS = st.integers(64, descriptors.ENOUGH)


@given(LIMITS, st.integers(1, 100_000))
def test_connections_readers_and_shards_fit_into_the_limit_together(limit: int, asked: int) -> None:
    connections, shards = descriptors.connections(limit, asked), descriptors.shards(limit, asked)
    used = connections + descriptors.A_READER * descriptors.readers(limit) + descriptors.A_SHARD * shards
    assert used + descriptors.OTHERS <= limit or shards == 1
    assert connections <= max(8, asked)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_limit_that_is_named_is_enough(count: int, asked: int) -> None:
    limit = descriptors.enough_for(count, asked)
    assert descriptors.shards(limit, asked) >= count
    assert descriptors.too_many_here(count - 1, limit, asked) is None


def test_a_small_cluster_runs_with_256_files() -> None:
    assert descriptors.shards(256, 1024) >= 9
    assert descriptors.too_many_here(8, 256, 1024) is None
    assert "256 files, which is enough for 9 shards, and 9 are open: let it open 512" in (
        descriptors.too_many_here(9, 256, 1024) or ""
    )


A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


@pytest.mark.parametrize(
    ("shards", "copies", "room", "fits"),
    [
        (3, 3, {A: 3, B: 3, C: 3}, True),
        (3, 3, {A: 3, B: 2, C: 3}, False),
        (3, 1, {A: 1, B: 1, C: 1}, True),
        (4, 1, {A: 1, B: 1, C: 1}, False),
        (2, 2, {A: 9, B: 1, C: 0}, False),  # two copies of a shard are on two nodes
        (2, 3, {A: 2, B: 2}, True),  # the third copy waits for a third node
        (99, 3, {A: None, B: None, C: None}, True),  # of an older version
    ],
)
def test_a_collection_that_does_not_fit_is_refused(shards: int, copies: int, room: dict, fits: bool) -> None:
    assert (descriptors.cannot_fit(shards, copies, room) is None) == fits


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """This process may open only so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = [int(fd.name) for fd in Path("/dev/fd").iterdir()]
    taken = {fd for fd in listed if Path(f"/dev/fd/{fd}").exists()}  # not the one with which they were listed
    free = (fd for fd in range(soft) if fd not in taken)
    limit = next(fd for n, fd in enumerate(free) if n == number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_that_finds_too_few_files_to_open_is_not_taken_for_damaged(tmp_path, capsys) -> None:
    of, rows = spec(8, index=exact_parameters()), np.random.default_rng(0).standard_normal((200, 8))
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        write(replica, [upsert(f"id-{n}", v) for n, v in enumerate(rows)])
        assert replica.build(120)
        write(replica, [upsert("last", rows[0])])
    refused = 0
    for number in range(12):
        try:
            with files_left(number), opened(tmp_path / "s", of, GRAPHS) as replica:
                assert replica.read_only is None
        except Unavailable as error:
            assert not isinstance(error, StorageCorrupt)
            refused += 1
    assert refused >= 5
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        assert (replica.count(), replica.stats().generations, replica.issues, replica.damaged) == (201, 1, (), None)
        assert len(replica.search(Query(rows[:1], 5))[0]) == 5
        with files_left(0), pytest.raises(Unavailable, match=r"too many open files|cannot be opened now") as refusal:
            replica.scrub(1e9)
        assert not isinstance(refusal.value, StorageCorrupt)
        assert (replica.issues, replica.damaged, replica.read_only) == ((), None, None)
    assert "damaged" not in capsys.readouterr().out, "nor is it said to be"
    assert not [p for p in (tmp_path / "s").rglob("*") if "damaged" in p.name or "suspect" in p.name]


async def test_a_node_opens_no_more_shards_than_fit_however_many_are_to_be_opened_at_once(tmp_path) -> None:
    memory, around = MemoryGuard(0.8), Alone()
    host = ShardHost(tmp_path, SMALL, memory, around, threads=2, files=Files(256, 1024))
    words, shards = collection("words", 12), [ShardId("uuid-words", n) for n in range(12)]
    opened = await asyncio.gather(*(host.open(i, words, ME) for i in shards), return_exceptions=True)
    refused = [i for i, error in zip(shards, opened, strict=True) if error]
    assert (len(refused), host.room()) == (3, 0)
    assert all("let it open 512 (ulimit -n)" in str(error) for error in opened if error)
    await host.delete(next(i for i in shards if i not in refused))
    assert host.room() == 1
    await host.open(refused[0], words, ME)
    assert sorted(i for i, local in host.local().items() if local.is_open) == sorted(dict(host.hosted()))
    assert len(dict(host.hosted())) == 9
    await host.close()


def test_connections_that_are_kept_are_bounded_over_all_shards() -> None:
    kept, often, seldom = Idle(2), object(), object()
    connections = [sqlite3.connect(":memory:", check_same_thread=False) for _ in range(3)]
    for owner, connection in zip((seldom, often, often), connections, strict=True):
        kept.keep(owner, connection)
    assert kept.take(seldom) is None
    with pytest.raises(sqlite3.ProgrammingError):
        connections[0].execute("SELECT 1")
    assert kept.take(often) is connections[2]
    kept.drop(often)
    assert kept.take(often) is None
    connections[2].close()


def test_sizes_are_measured_now_and_then_and_not_by_who_asks(tmp_path, monkeypatch) -> None:
    size = files.TreeSize(tmp_path, every=3600)
    (tmp_path / "a").write_bytes(b"12345")
    assert size.bytes == 0
    size.look()
    assert size.bytes == 5
    (tmp_path / "a").write_bytes(b"1234567")
    size.look()
    assert size.bytes == 5
    with opened(tmp_path / "s") as replica:
        monkeypatch.setattr(os, "walk", lambda *_: pytest.fail("who asks must not walk a directory"))
        replica.stats()
