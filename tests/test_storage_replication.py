"""Replicas with real disks keep what was acknowledged, whoever of them goes away."""

import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from concurrent.futures import wait as wait_for
from dataclasses import replace

import numpy as np
import pytest

from support.one_shard import Shard, member, replicated
from support.storage import SMALL, upsert
from veccluster import failpoints
from veccluster.decisions.filters import parse
from veccluster.errors import NotPrimary, OutcomeUnknown, ReplicaBehind, TooFewReplicas
from veccluster.model.limits import Limits
from veccluster.model.state import NodeId, ReadConsistency, Seq, WriteConsistency
from veccluster_node.replica.replica import Replica
from veccluster_node.wal.operations import DeleteWhere, Written

N0, N1, N2 = (NodeId(f"n{i}") for i in range(3))


def asked(replica: Replica, name: str, level: WriteConsistency = WriteConsistency.quorum) -> Future[Written]:
    """Ask for a vector under `name` to be stored, by an operation of that name."""
    return replica.write([upsert(name, [1] * 8, n=len(name))], op_id=name, time_ns=1, level=level)


def stored(replica: Replica, name: str, level: WriteConsistency = WriteConsistency.quorum) -> int:
    return asked(replica, name, level).result(30).last_seq


def ids(replica: Replica) -> list[str]:
    return replica.list_ids(None, 10_000)


def everyone_shows(shard: Shard, names: list[str]) -> None:
    shard.wait(lambda: all(ids(r) == names for r in list(shard.replicas.values())))


def strong(replica: Replica) -> None:
    replica.may_read(ReadConsistency.strong, Seq(0), 30).result(30)


def test_what_is_acknowledged_is_on_every_replica_and_soon_seen_on_each(tmp_path):
    with replicated(tmp_path) as shard:
        names = sorted(f"v{i}" for i in range(50))
        futures = [asked(shard.primary, name) for name in names]
        last = max(f.result(30).last_seq for f in futures)
        assert all(r.durable().result(5).seq >= last for r in shard.replicas.values())
        for replica in shard.replicas.values():
            replica.may_read(ReadConsistency.session, Seq(last), 30).result(30)
            assert ids(replica) == names


def all_rest(shard: Shard) -> bool:
    return all(replica.rests for replica in list(shard.replicas.values()))


def test_a_shard_comes_to_rest_and_a_write_or_a_strong_read_wakes_it(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.wait(lambda: all_rest(shard))
        stored(shard.primary, "b")
        everyone_shows(shard, ["a", "b"])
        shard.wait(lambda: all_rest(shard))
        strong(shard.primary)
        shard.wait(lambda: all_rest(shard))


def test_who_falls_silent_while_the_shard_rests_is_let_go_and_who_comes_back_is_told_what_it_lacks(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.wait(lambda: all_rest(shard))
        shard.stop(N2)
        shard.wait(lambda: shard.members[N2] not in shard.key.in_sync)
        stored(shard.primary, "b")
        shard.open(N2)
        shard.wait(lambda: shard.members[N2] in shard.key.in_sync)
        everyone_shows(shard, ["a", "b"])
        shard.wait(lambda: all_rest(shard))


def test_nobody_is_let_go_for_having_rested(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.wait(lambda: all_rest(shard))
        since, before = time.monotonic(), shard.key
        shard.wait(lambda: time.monotonic() > since + 2 * shard.settings.silence)
        stored(shard.primary, "b", WriteConsistency.all)
        shard.wait(lambda: all_rest(shard))
        assert shard.key.revision == before.revision


def test_a_follower_takes_no_writes_and_no_strong_reads(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        with pytest.raises(NotPrimary):
            stored(shard.replicas[N1], "b")
        with pytest.raises(NotPrimary):
            strong(shard.replicas[N1])
        with pytest.raises(ReplicaBehind):
            shard.replicas[N1].may_read(ReadConsistency.session, Seq(99), 0.1).result(30)


def test_a_follower_whose_process_has_ended_is_not_waited_for(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.settings = replace(shard.settings, silence=3600.0)
        shard.reopen(N0)
        stored(shard.primary, "b")
        shard.stop(N2)
        waits = asked(shard.primary, "c")
        with pytest.raises(NotInTime):
            waits.result(0.5)
        shard.ended.add(N2)
        assert waits.result(30).last_seq
        assert shard.key.in_sync == {member(0), member(1)}


def test_while_etcd_is_away_who_was_silent_for_a_while_counts_again_when_it_is_heard(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.etcd_away.add(N0)
        shard.cuts |= {(N0, N2), (N2, N0)}
        silence = shard.settings.silence
        shard.wait(lambda: any(p.silent > 2 * silence for p in shard.primary.standing.others))
        shard.cuts.clear()
        assert stored(shard.primary, "b", WriteConsistency.all)
        assert len(shard.key.in_sync) == 3


def test_another_replica_goes_on_when_the_primary_is_gone_and_the_old_one_follows_when_it_is_back(tmp_path):
    with replicated(tmp_path) as shard:
        for name in "abc":
            stored(shard.primary, name)
        shard.stop(N0)
        shard.promote(N1)
        assert ids_after_strong_read(shard) == ["a", "b", "c"]
        stored(shard.primary, "d")  # n0 does not answer and is let go
        assert shard.key.in_sync == {member(1), member(2)}
        shard.open(N0)
        shard.enlist(N0) if member(0) not in shard.key.learners else None
        shard.wait(lambda: member(0) in shard.key.in_sync)
        everyone_shows(shard, ["a", "b", "c", "d"])


def ids_after_strong_read(shard: Shard) -> list[str]:
    primary = shard.primary
    strong(primary)
    return ids(primary)


def test_a_primary_that_is_cut_off_acknowledges_nothing_and_gives_up_its_own_tail(tmp_path):
    with replicated(tmp_path) as shard:
        old = shard.primary
        stored(old, "a")
        shard.cuts |= {(N0, N1), (N1, N0), (N0, N2), (N2, N0)}
        shard.etcd_away.add(N0)
        lost = asked(old, "lost")
        read = old.may_read(ReadConsistency.strong, Seq(0), 30)
        shard.promote(N1)
        stored(shard.primary, "b")
        assert not wait_for([lost, read], timeout=0.5).done
        shard.cuts.clear()
        shard.etcd_away.clear()
        with pytest.raises(OutcomeUnknown):
            lost.result(30)
        with pytest.raises(NotPrimary):
            read.result(30)
        shard.wait(lambda: member(0) in shard.key.in_sync | shard.key.learners)
        shard.wait(lambda: ids(old) == ["a", "b"])


def test_a_write_that_nobody_confirmed_in_time_is_applied_once_when_it_is_asked_again(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        shard.cuts |= {(N1, N0), (N2, N0)}  # it arrives, and no answer comes back
        first = asked(shard.primary, "b")
        with pytest.raises(NotInTime):
            first.result(0.2)
        shard.promote(N1)
        with pytest.raises(OutcomeUnknown):
            first.result(30)
        again = asked(shard.primary, "b").result(30)
        assert again.last_seq == 2
        assert stored(shard.primary, "c") == 3
        shard.cuts.clear()
        everyone_shows(shard, ["a", "b", "c"])


def test_a_write_is_refused_when_fewer_are_in_sync_than_it_asks_for(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a", WriteConsistency.all)
        shard.stop(N2)
        shard.wait(lambda: len(shard.key.in_sync) == 2)
        stored(shard.primary, "b")
        with pytest.raises(TooFewReplicas, match="2 in sync"):
            stored(shard.primary, "c", WriteConsistency.all)
        shard.stop(N1)  # two must stay: it is waited for
        with pytest.raises(NotInTime):
            asked(shard.primary, "d").result(1)
        shard.open(N1)
        shard.wait(lambda: ids(shard.primary) == ["a", "b", "d"])


def test_an_empty_disk_gets_everything_from_the_primary_though_its_log_is_long_trimmed(tmp_path):
    with replicated(tmp_path, settings=replace(SMALL, segment_size=1 << 11)) as shard:
        names = sorted(f"v{i:03}" for i in range(300))
        for some in np.array_split(np.array(names), 6):
            batch = [upsert(str(name), [i] * 8) for i, name in enumerate(some)]
            shard.primary.write(batch, op_id=str(some[0]), time_ns=1).result(30)
            assert shard.primary.build(30)
        shard.stop(N2)
        shard.members[N2] = member(2, "new-disk")
        shard.open(N2)
        shard.enlist(N2)
        shard.wait(lambda: member(2, "new-disk") in shard.key.in_sync)
        assert member(2) not in shard.key.in_sync
        stored(shard.primary, "x", WriteConsistency.all)
        everyone_shows(shard, [*names, "x"])
        assert shard.replicas[N2].stats().generations > 0, "graphs came with the snapshot"


def test_a_deletion_by_filter_sees_every_write_before_it(tmp_path):
    with replicated(tmp_path) as shard:
        primary = shard.primary
        writes = [asked(primary, f"v{i}") for i in range(20)]
        gone = primary.write(DeleteWhere(parse({"n": 2}, Limits())), op_id="gone", time_ns=1)
        late = asked(primary, "w0")
        assert gone.result(30).deleted == 10
        assert all(w.result(30) for w in [*writes, late])
        everyone_shows(shard, sorted([f"v{i}" for i in range(10, 20)] + ["w0"]))


def test_a_replica_whose_disk_fails_is_let_go_and_writes_go_on(tmp_path):
    with replicated(tmp_path) as shard:
        stored(shard.primary, "a")
        with failpoints.armed("log.sync=1*error:EIO"):
            outcome = asked(shard.primary, "b").exception(30)
        broken = [n for n, r in shard.replicas.items() if r.failure]
        assert len(broken) == 1
        if broken == [N0]:
            assert isinstance(outcome, OutcomeUnknown)
            shard.promote(N1)
        shard.wait(lambda: member(int(broken[0][1])) not in shard.key.in_sync or broken == [N0])
        shard.reopen(broken[0])
        stored(shard.primary, "c")
        shard.wait(lambda: len({tuple(ids(r)) for r in shard.replicas.values()}) == 1)
