"""One shard's part in batches over several: prepared and unseen until decided, whatever becomes of the replica."""

from collections.abc import Iterator
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import replace
from pathlib import Path

import pytest

from support.cluster import wait_until
from support.one_shard import Shard, replicated
from support.storage import SMALL, opened, upsert, write
from veccluster.decisions.filters import parse
from veccluster.decisions.replication.atomic import Batch, Decision, Showing, Standing, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.errors import InvalidRequest, NotPrimary, StorageCorrupt
from veccluster.model.limits import Limits
from veccluster.model.state import IndexParameters, Metric, NodeId, Revision, Seq, WriteConsistency
from veccluster_node.engine import build
from veccluster_node.engine.records import ROWS, Records, Snapshots
from veccluster_node.replica import snapshots
from veccluster_node.replica.replica import Replica
from veccluster_node.wal.operations import Decide, DeleteWhere, Nothing, Prepare, Record, encode_batch, encode_content

N0, N1, N2 = (NodeId(f"n{i}") for i in range(3))
ONE = Batch("one", 1)
HERE, OTHER = 0, 7
"""The shard that is looked at, and another one that every batch is in, too."""


def rows(*ids: str) -> list:
    return [upsert(i, [1] * 8, n=1) for i in ids]


def prepared(replica: Replica, batch: Batch, *ids: str) -> Standing:
    return replica.prepare(batch, (HERE, OTHER), rows(*ids), time_ns=1).result(30)


def decision(batch: Batch, at: int, revision: int = 5, verdict: Verdict = Verdict.applied) -> Decision:
    return Decision(batch, verdict, {HERE: Seq(at), OTHER: Seq(40 + revision)}, Revision(revision))


def know(replica: Replica, *decisions: Decision) -> None:
    replica.know(Known(Revision(99), Revision(0), decisions))


def settled(replica: Replica, batch: Batch = ONE) -> int:
    return replica.settle(batch).result(30).last_seq


def ids(replica: Replica) -> list[str]:
    return list(replica.list_ids(None, 10_000))


# -- a replica


def test_what_is_prepared_is_durable_and_unseen_and_takes_its_place_where_it_is_decided(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        at = prepared(replica, ONE, "a", "b").at
        write(replica, rows("before"))
        assert ids(replica) == ["before"]
        assert replica.showing() == Showing(Seq(at + 1), frozenset({at}), {})
    with opened(tmp_path / "s") as replica:
        assert replica.showing().pending == {at}
        know(replica, decision(ONE, at))
        assert settled(replica) == at + 3, "one seq for each operation, behind what was written meanwhile"
        assert ids(replica) == ["a", "b", "before"]
        assert replica.showing() == Showing(Seq(at + 3), frozenset(), {OTHER: Seq(45)})
        assert replica.get(["a"]).showing == replica.list_ids(None, 1).showing == replica.count().showing
    with opened(tmp_path / "s") as replica:
        assert settled(replica) == at + 3
        assert prepared(replica, ONE, "a", "b") == Standing(1, Seq(at + 3), Verdict.applied)


def test_a_later_attempt_succeeds_where_an_earlier_one_was_dropped(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        first, again = prepared(replica, ONE, "a"), prepared(replica, ONE, "a")
        assert first == again == Standing(1, first.at)
        dropped = decision(ONE, first.at, verdict=Verdict.dropped)
        know(replica, dropped)
        settled(replica)
        assert prepared(replica, ONE, "a").verdict is Verdict.dropped
        second = prepared(replica, Batch("one", 2), "a")
        assert second.verdict is None
        assert ids(replica) == []
        assert prepared(replica, ONE, "a").verdict is Verdict.dropped, "a verdict is for good"
        know(replica, dropped, decision(Batch("one", 2), second.at, 6))
        settled(replica, Batch("one", 2))
        assert ids(replica) == ["a"]


def test_an_earlier_attempt_that_is_dropped_later_hides_no_later_one(tmp_path: Path) -> None:
    again = Batch("one", 2)
    with opened(tmp_path / "s") as replica:
        first, second = prepared(replica, ONE, "a").at, prepared(replica, again, "a").at
        know(replica, decision(again, second, 6))
        settled(replica, again)
        know(replica, decision(again, second, 6), decision(ONE, first, 7, Verdict.dropped))
        wait_until(lambda: not replica.showing().pending, "the drop of the first attempt")
        assert prepared(replica, ONE, "a") == prepared(replica, again, "a")
        assert prepared(replica, again, "a").verdict is Verdict.applied
        snapshots_ = Snapshots(tmp_path / "s" / ROWS)
        with snapshots_.take() as snapshot:
            assert snapshot.undecided(second) == {first, second}, "what rows that are made anew need of the log"
        snapshots_.close()


def test_decisions_come_into_the_log_as_etcd_made_them(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        first, second = prepared(replica, ONE, "a").at, prepared(replica, Batch("two", 1), "a").at
        know(replica, decision(ONE, first, revision=9), decision(Batch("two", 1), second, revision=8))
        assert settled(replica, Batch("two", 1)) < settled(replica, ONE)
        assert replica.showing().latest == {OTHER: 49}


def test_a_batch_that_cannot_be_stored_is_refused_and_not_prepared(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        with pytest.raises(InvalidRequest):
            replica.prepare(ONE, (HERE, OTHER), [upsert("a", [1] * 3)], time_ns=1).result(30)
        assert replica.showing() == Showing()


def test_nothing_is_settled_as_long_as_nothing_is_decided(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        prepared(replica, ONE, "a")
        with pytest.raises(NotInTime):
            replica.settle(ONE).result(0.3)


# -- rows that are made anew, and snapshots


def noise(replica: Replica, name: str) -> None:
    """Segments of the log."""
    write(replica, [upsert(f"{name}-{i}", [2] * 8, text="x" * 1000) for i in range(150)])


@pytest.mark.parametrize("decided", ["before", "between", "after"])
def test_rows_that_are_made_anew_know_what_was_prepared_before_the_newest_generation(
    tmp_path: Path, decided: str
) -> None:
    with opened(tmp_path / "s") as replica:
        noise(replica, "first")
        at = prepared(replica, ONE, "a", "b").at
        for name in "uvw":
            noise(replica, name)
            assert replica.build(60)
        if decided == "before":  # the rows are damaged
            know(replica, decision(ONE, at))
            settled(replica)
        noise(replica, "last")
        if decided == "between":
            noise(replica, "gap")
            assert replica.build(60)
    (tmp_path / "s" / ROWS).unlink()
    with opened(tmp_path / "s") as replica:
        assert replica.read_only is None
        know(replica, decision(ONE, at))
        settled(replica)
        assert replica.get(["a", "b"])[1] is not None
        assert replica.showing().pending == frozenset()
        assert replica.showing().latest == {OTHER: 45}


def test_a_generation_that_ends_where_its_predecessor_did_needs_the_same_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with opened(path) as replica:
        at = prepared(replica, ONE, "a").at
        assert replica.build(60)
        know(replica, decision(ONE, at))
        settled(replica)
    (before,) = (path / "generations").iterdir()
    snapshots_of = Snapshots(path / ROWS)
    with snapshots_of.take() as taken:
        assert taken.undecided(at) == {at}
        assert taken.undecided(taken.applied_seq) == frozenset()
    snapshots_of.close()
    records = Records(path / ROWS)
    records._db.execute("DELETE FROM decided")  # as when it is long ago
    records.close()
    job = build.Job(
        records=str(path / ROWS),
        out=str(tmp_path / "out"),
        after=0,
        through=at,
        dimension=8,
        metric=Metric.l2,
        parameters=IndexParameters(),
        graph=False,
        base=None,
        older=(),
        ends_as=str(before),
    )
    assert build.run(job).undecided == (at,)


def test_a_snapshot_has_what_is_prepared_and_what_was_decided(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as replica:
        done = prepared(replica, Batch("done", 1), "x").at
        know(replica, decision(Batch("done", 1), done, 3))
        settled(replica, Batch("done", 1))
        at = prepared(replica, ONE, "a", "b").at
        noise(replica, "u")
        assert replica.build(60)
        other = tmp_path / "other"
        with opened(other):
            pass
        offered = snapshots.export(tmp_path / "s", other / "incoming")
        snapshots.verify(other / "incoming", offered)
        snapshots.stage(other, offered)
    with opened(other) as replica:
        assert replica.showing() == Showing(replica.applied_seq, frozenset({at}), {OTHER: Seq(43)})
        assert prepared(replica, Batch("done", 1), "x").verdict is Verdict.applied
        know(replica, decision(ONE, at))
        settled(replica)
        assert replica.get(["a"])[0] is not None


def test_a_decision_to_apply_what_is_not_there_is_damage(tmp_path: Path) -> None:
    records = Records(tmp_path / ROWS)
    decide = Decide.of(decision(ONE, 1))
    with pytest.raises(StorageCorrupt, match="missing"):
        records.apply([Record(1, 1, 1, encode_batch(1, "x", (decide,)))])
    assert records.applied_seq == 0
    prepare = Prepare(*ONE, (HERE, OTHER), 1, encode_content(rows("a")))
    records.apply([Record(1, 1, 1, encode_batch(1, "p", (prepare,))), Record(1, 2, 1, encode_batch(1, "x", (decide,)))])
    assert records.live == 1
    records.apply([Record(1, 3, 1, encode_batch(1, "n", (Nothing(),)))])
    records.close()


def test_a_prepared_batch_whose_bytes_changed_is_damage(tmp_path: Path) -> None:
    records = Records(tmp_path / ROWS)
    prepare = Prepare(*ONE, (HERE, OTHER), 1, encode_content(rows("a")))
    records.apply([Record(1, 1, 1, encode_batch(1, "p", (prepare,)))])
    records._db.execute("UPDATE pending SET content = ?", (encode_content(rows("b")),))
    with pytest.raises(StorageCorrupt, match="checksum"):
        records.apply([Record(1, 2, 1, encode_batch(1, "x", (Decide.of(decision(ONE, 1)),)))])
    records.close()


# -- several replicas


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    with replicated(tmp_path, settings=replace(SMALL, decision_patience=0.3)) as made:
        yield made


def test_a_new_primary_goes_on_from_what_was_prepared(shard: Shard) -> None:
    at = (
        shard.primary.prepare(ONE, (HERE, OTHER), rows("a", "b"), time_ns=1, level=WriteConsistency.quorum)
        .result(30)
        .at
    )
    shard.etcd_away = set(shard.members)  # nobody hears of the decision, nor drops it
    made = shard.decide(decision(ONE, at))
    shard.etcd_away = set()
    shard.stop(N0)
    shard.promote(N1)
    for replica in shard.replicas.values():
        replica.know(shard.known)
    assert shard.primary.settle(ONE, WriteConsistency.quorum).result(30).upserted == 2
    shard.wait(lambda: all(ids(r) == ["a", "b"] for r in shard.replicas.values()))
    assert made.verdict is Verdict.applied


def test_what_deletes_by_a_filter_waits_for_a_decision_that_is_in_the_log(shard: Shard) -> None:
    primary = shard.primary
    at = prepared(primary, ONE, "a").at
    shard.cuts = {(N0, N1), (N1, N0)}
    shard.decide(decision(ONE, at))
    shard.wait(lambda: primary.standing.durable.seq > at)
    deleting = primary.write(DeleteWhere(parse({"n": 1}, Limits())), op_id="clear", time_ns=1)
    assert deleting.result(30).deleted == 1
    assert ids(primary) == []


def test_a_primary_drops_what_nobody_decides(shard: Shard) -> None:
    at = prepared(shard.primary, ONE, "a").at
    shard.wait(lambda: bool(shard.known.decisions))
    (made,) = shard.known.decisions
    assert (made.verdict, made.prepared) == (Verdict.dropped, {HERE: at, OTHER: 0})
    shard.wait(lambda: all(not r.showing().pending for r in shard.replicas.values()))
    assert all(ids(r) == [] for r in shard.replicas.values())


def test_a_primary_drops_nothing_on_what_it_knew_before_decisions_were_forgotten(shard: Shard) -> None:
    primary = shard.primary
    shard.etcd_away = set(shard.members)
    shard.decide(decision(ONE, 1))
    shard.forget(ONE)  # nobody has heard of either
    prepared(primary, ONE, "a")
    shard.etcd_away = set()
    for replica in shard.replicas.values():
        replica.know(Known())
    with pytest.raises(NotInTime):
        primary.settle(ONE).result(1)
    assert not shard.known.decisions


def test_a_follower_settles_nothing(shard: Shard) -> None:
    shard.primary  # noqa: B018 - wait for it
    with pytest.raises(NotPrimary):
        shard.replicas[N1].settle(ONE).result(30)
    with pytest.raises(NotPrimary):
        prepared(shard.replicas[N1], ONE, "a")
