"""Nothing that a client asks for makes a record that a follower cannot take."""

from dataclasses import replace

import numpy as np
import pytest

from support.one_shard import Shard, replicated
from support.peers import End, replicate, send_until
from support.storage import SMALL, opened, upsert
from veccluster import failpoints
from veccluster.decisions.filters import parse
from veccluster.decisions.replication.atomic import Batch
from veccluster.errors import OutcomeUnknown, PayloadTooLarge
from veccluster.model.cluster import ClusterState
from veccluster.model.limits import Limits
from veccluster.model.state import Collection, Metric, Node, NodeId, WriteConsistency
from veccluster_node.coordinator.coordinator import Coordinator
from veccluster_node.peer import links
from veccluster_node.replica.replica import Replica
from veccluster_node.service.shard_service import UpsertBatch
from veccluster_node.wal.operations import DeleteWhere, Written, in_parts, size_of

N1 = NodeId("n1")
TIGHT = replace(SMALL, record_bytes=4000, delete_bytes=1000, queue_bytes=4500)
"""As large as it may be in earnest, in small: what a record may be fits into what a follower lets wait."""
ALL = DeleteWhere(parse({}, Limits()))
NAMES = [f"{n:03}-{'x' * 90}" for n in range(40)]
"""Ids of which a record of a delete holds seven."""


def fill(replica: Replica, names: list[str] = NAMES) -> None:
    for name in names:
        replica.write([upsert(name, [1] * 8)], op_id=f"put {name}", time_ns=1).result(30)


def delete_all(replica: Replica, op_id: str = "clear") -> Written:
    return replica.write(ALL, op_id=op_id, time_ns=1).result(30)


def ids(replica: Replica) -> list[str]:
    return replica.list_ids(None, 10_000)


def all_show(shard: Shard, names: list[str]) -> None:
    shard.wait(lambda: all(ids(r) == names for r in list(shard.replicas.values())))


def test_ids_are_cut_into_parts_that_hold_all_of_them_in_order_and_are_no_larger_than_asked():
    parts = list(in_parts(NAMES, 1000))
    assert [name for part in parts for name in part] == NAMES
    assert len(parts) == 6
    assert all(size_of(part) <= 1000 for part in parts)
    assert list(in_parts(["x" * 2000, "b"], 1000)) == [["x" * 2000], ["b"]]
    assert list(in_parts([], 1000)) == []


def test_a_delete_by_filter_that_no_record_could_hold_is_several_and_every_copy_takes_them(tmp_path):
    with replicated(tmp_path, settings=TIGHT) as shard:
        fill(shard.primary)
        all_show(shard, NAMES)
        gone = delete_all(shard.primary)
        assert (gone.deleted, gone.replayed) == (40, False)
        assert gone.last_seq - gone.first_seq < 7, "the last record has a part of it"
        all_show(shard, [])
        fill(shard.primary, ["after"])
        again = delete_all(shard.primary)
        assert (again.deleted, again.replayed) == (40, True), (
            "a repetition says what the first one did, and does nothing"
        )
        assert again.last_seq == gone.last_seq
        all_show(shard, ["after"])
        shard.promote(N1)
        shard.wait(lambda: shard.replicas[N1].standing.serving is not None)
        assert delete_all(shard.replicas[N1]).deleted == 40, "another primary knows it as well"
        all_show(shard, ["after"])


def test_a_batch_that_no_record_could_hold_is_refused_with_the_limit_and_the_shard_goes_on(tmp_path):
    large = [upsert(f"v{n}", [1] * 8, text="y" * 900) for n in range(5)]
    with replicated(tmp_path, settings=TIGHT) as shard:
        with pytest.raises(PayloadTooLarge, match="at most 4000 at once; nothing was stored"):
            shard.primary.write(large, op_id="a", time_ns=1).result(30)
        with pytest.raises(PayloadTooLarge, match="at most 4000"):
            shard.primary.prepare(Batch("b", 1), [0, 1], large, time_ns=1).result(30)
        shard.primary.write(large[:4], op_id="c", time_ns=1).result(30)
        all_show(shard, ["v0", "v1", "v2", "v3"])


def test_a_delete_by_filter_that_ended_in_the_middle_goes_on_when_it_is_repeated(tmp_path):
    with opened(tmp_path / "s", settings=TIGHT) as replica:
        fill(replica)
        with failpoints.armed("log.write=2-error:EIO"), pytest.raises(OutcomeUnknown):
            delete_all(replica)
    with opened(tmp_path / "s", settings=TIGHT) as replica:
        left = ids(replica)
        assert 0 < len(left) < len(NAMES)
        fill(replica, ["between"])
        assert delete_all(replica).deleted == 41, "what both have deleted"
        assert ids(replica) == []
        fill(replica, ["after"])
        assert delete_all(replica).replayed
        assert ids(replica) == ["after"]


async def test_a_batch_with_a_part_that_is_too_large_for_its_shard_is_stored_in_none():
    words = Collection(name="words", uuid="words", dimension=8192, metric=Metric.l2, shards=1)
    vectors = np.broadcast_to(np.zeros(8192, np.float32), (4096, 8192))
    batch = UpsertBatch([str(n) for n in range(4096)], vectors, [b"{}"] * 4096)
    coordinator = Coordinator(NodeId("n0"), ClusterState, None, None, None, read_timeout=1, write_timeout=1)
    with pytest.raises(PayloadTooLarge, match="at most 134217728 at once"):
        await coordinator.upsert(words, batch, "op", WriteConsistency.quorum)


def test_small_messages_do_not_drive_out_a_record_that_is_larger_than_all_that_may_wait():
    box = links._Outbox(100)
    box.put(b"r" * 500)
    for _ in range(20):
        box.put(b"beat" * 10)
    assert box.take(10) == [b"r" * 500]
    assert len(box.take(1000)) == 2


async def test_a_frame_that_is_too_large_is_said_loudly_and_the_link_is_made_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("veccluster_node.peer.server.MAX_BODY", 1 << 20)
    members: dict[NodeId, Node] = {}
    async with End(0, members, tmp_path) as a, End(1, members, tmp_path) as b:
        a.send(b, replicate(1, size=2 << 20))
        assert await send_until(a, b, 2) == [2]
    assert "frame_not_taken" in capfd.readouterr().out
