"""Which replica is wrong when copies differ, and what a look at one replica's disk finds: pure, and on real files."""

import random
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from support.cluster import wait_until
from support.storage import GRAPHS, SMALL, check_holds, delete, opened, spec, upsert, write
from veccluster.decisions.integrity import RANGE, BeginAnew, Difference, Scrubbed, ScrubFirst, Wait, is_noted, judge
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import Unavailable
from veccluster.model.state import Epoch, Incarnation, Member, NodeId, Revision, Seq
from veccluster_node.engine import digests
from veccluster_node.engine.records import Records
from veccluster_node.replica import scrub
from veccluster_node.wal.operations import Record, Upsert, encode_batch

P, F, G = (Member(NodeId(n), Incarnation("disk")) for n in "pfg")
GOOD, BAD, WORSE = (3, 111), (3, 222), (3, 333)
SPEC = spec(8)
RATE = 1e9


def configuration(*in_sync: Member, least: int = 2, replicas: int = 3) -> Configuration:
    return Configuration(Epoch(2), P, frozenset(in_sync), min_in_sync=least, replicas=replicas, revision=Revision(1))


def notes(*told, **more):
    return {Seq(seq): digest for seq, digest in told}


# -- who is wrong


def test_copies_that_tell_the_same_of_the_newest_state_that_both_know_are_the_same():
    mine = notes((10, GOOD), (20, GOOD), (30, GOOD))
    judged = judge(configuration(P, F, G), mine, {F: notes((10, BAD), (20, GOOD), (40, BAD)), G: notes((50, BAD))})
    assert judged.differences == () and judged.step is None


def test_the_primary_looks_at_its_own_rows_before_it_accuses_anyone():
    judged = judge(configuration(P, F, G), notes((10, GOOD)), {F: notes((10, BAD)), G: notes((10, GOOD))})
    assert judged.differences == (Difference(F, Seq(10)),) and judged.step == ScrubFirst()


@pytest.mark.parametrize(
    ("others", "wrong"),
    [
        ({F: BAD, G: GOOD}, F),
        ({F: GOOD, G: BAD}, G),
        ({F: BAD, G: BAD}, P),  # two against one
        ({F: BAD, G: WORSE}, F),  # nobody agrees with anybody: the primary has looked at its rows
    ],
)
def test_the_odd_one_out_begins_anew(others, wrong):
    told = {member: notes((10, digest)) for member, digest in others.items()}
    judged = judge(configuration(P, F, G), notes((10, GOOD)), told, Scrubbed.clean)
    assert judged.step == BeginAnew(wrong, Seq(10))


def test_of_two_copies_the_follower_is_wrong_and_begins_anew_although_writes_stop_meanwhile():
    both = configuration(P, F, replicas=2)
    assert judge(both, notes((10, GOOD)), {F: notes((10, BAD))}, Scrubbed.clean).step == BeginAnew(F, Seq(10))


def test_no_copy_begins_anew_while_another_is_missing_without_which_there_are_too_few():
    judged = judge(configuration(P, F), notes((10, GOOD)), {F: notes((10, BAD))}, Scrubbed.clean)
    assert judged.step == Wait()


def test_what_a_replica_that_is_not_in_sync_holds_is_of_no_account():
    assert judge(configuration(P, F), notes((10, GOOD)), {G: notes((10, BAD))}, Scrubbed.clean).step is None


@pytest.mark.parametrize(
    "told",
    [
        {F: notes((10, BAD))},  # G has not answered: it may agree with F
        {F: notes((10, BAD)), G: notes((20, BAD))},  # nor is what it tells of the same state
        {F: notes((10, GOOD), (20, BAD)), G: notes((10, GOOD))},  # what differs is newer than what all know
    ],
)
def test_nobody_begins_anew_before_all_that_are_in_sync_have_told_of_one_state(told):
    mine = notes((10, GOOD), (20, GOOD))
    judged = judge(configuration(P, F, G), mine, told, Scrubbed.clean)
    assert judged.differences and judged.step == Wait()


def test_of_two_copies_none_begins_anew_where_a_third_is_to_come_that_can_tell_which_is_wrong():
    judged = judge(configuration(P, F, least=1), notes((10, GOOD)), {F: notes((10, BAD))}, Scrubbed.clean)
    assert judged.step == Wait()


def test_followers_outvote_a_primary_as_of_one_state():
    told = {F: notes((10, BAD), (20, WORSE)), G: notes((10, BAD), (30, WORSE))}
    mine = notes((10, GOOD), (20, GOOD), (30, GOOD))
    assert judge(configuration(P, F, G), mine, told, Scrubbed.clean).step == BeginAnew(P, Seq(10))


# -- digests


def put(seq: int, count: int, *, ids: int, rng: random.Random) -> Record:
    ops = [Upsert(f"id{rng.randrange(ids)}", rng.randbytes(32), b"{}") for _ in range(count)]
    return Record(1, seq, count, encode_batch(1, f"op{seq}", ops))


def history(ids: int) -> list[Record]:
    rng, seq, records = random.Random(5), 1, []
    while seq < 5 * RANGE:
        records.append(put(seq, rng.choice([1, 7, 900]), ids=ids, rng=rng))
        seq = records[-1].last_seq + 1
    return records


def held(records: Records) -> dict[int, tuple[int, int]]:
    return records.digests.notes(records.applied_seq)


def applied(path, of, size) -> dict[int, tuple[int, int]]:
    """Apply records in groups of `size`, no group over a place that is noted; what the digests are then."""
    records, group = Records(path), []
    for record in of:
        group.append(record)
        if len(group) == size or is_noted(record.first_seq - 1, record.last_seq):
            records.apply(group)
            group = []
    if group:
        records.apply(group)
    with closing(records):
        return held(records)


def test_replicas_that_apply_the_same_in_other_groups_note_the_same(tmp_path):
    of = history(ids=700)
    one, other = (applied(tmp_path / f"{size}.sqlite", of, size) for size in (1, 5))
    assert one == other and len(one) == 5
    assert all(rows == 700 for rows, _ in list(one.values())[2:])
    scrub.rows(tmp_path / "1.sqlite", scrub.Pace(RATE, threading.Event()))
    with closing(Records(tmp_path / "5.sqlite")) as again:
        assert held(again) == one


def test_digests_are_worked_out_from_the_rows_where_a_version_went_on_that_does_not_keep_them(tmp_path):
    path = tmp_path / "rows.sqlite"
    before = applied(path, history(ids=700), 3)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE meta SET value=17 WHERE key=?", (digests.AS_OF,))
        db.execute("UPDATE digests SET value=value+1")
    with closing(Records(path)) as records:
        assert held(records) == {records.applied_seq: list(before.values())[-1]}
        scrub.rows(path, scrub.Pace(RATE, threading.Event()))


def test_only_so_many_notes_are_kept(tmp_path):
    rng = random.Random(3)
    with closing(Records(tmp_path / "rows.sqlite")) as records:
        for i in range(70):
            records.apply([put(i * RANGE + 1, RANGE, ids=3, rng=rng)])
        assert len(held(records)) == 64
        newest = held(records)
    with closing(Records(tmp_path / "rows.sqlite")) as records:
        assert held(records) == newest


# -- a look at the disk of one replica


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A closed replica with a generation, deaths in it and a tail."""
    path, model = tmp_path_factory.mktemp("whole") / "s", {}
    several = replace(GRAPHS, limits=replace(GRAPHS.limits, copies_per_row=0, max_wasted=1.0))
    rng = random.Random(7)
    with opened(path, SPEC, several) as replica:
        for first, build in ((0, True), (50, False)):
            ops = [upsert(f"id{i}", [rng.random() for _ in range(8)], i=i) for i in range(first, first + 60)]
            write(replica, ops)
            assert not build or replica.build(60)
        delete(replica, "id3", "id109")
        ids = replica.list_ids(None, 1000)
        model = {s.id: (np.frombuffer(s.vector, "<f4"), s.metadata) for s in replica.get(ids)}
    return path, model


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "s")
    return tmp_path / "s", whole[1]


def change(path, sql: str) -> None:
    """Change the rows behind the replica's back."""
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as db:
        assert db.execute(sql).rowcount


def flip(file) -> None:
    """Change a bit in the middle of a file, in its place."""
    with file.open("r+b") as data:
        data.seek(file.stat().st_size // 2)
        (byte,) = data.read(1)
        data.seek(-1, 1)
        data.write(bytes([byte ^ 4]))


def test_nothing_is_found_where_nothing_is_damaged(copy):
    path, model = copy
    seen = []
    with opened(path, SPEC, SMALL) as replica:
        assert replica.scrub(RATE, read=seen.append) == {}
        check_holds(replica, model)
    assert sum(seen) > (path / "records.sqlite").stat().st_size


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE vectors SET vector=zeroblob(32) WHERE seq=20",
        "UPDATE records SET metadata='{}' WHERE seq=20",
        "UPDATE records SET crc='one' WHERE seq=20",
        "UPDATE records SET id='other' WHERE seq=20",
        "DELETE FROM vectors WHERE seq=20",
        "DELETE FROM records WHERE seq=20",
        "UPDATE digests SET value=value+1",
        "UPDATE digests SET range=range+1",
    ],
)
def test_changed_rows_are_found_and_made_anew(copy, sql):
    path, model = copy
    with opened(path, SPEC, SMALL) as replica:
        change(path, sql)
        assert list(replica.scrub(RATE)) == ["rows"]
        wait_until(lambda: replica.failure, "it to stop writing")
        assert replica.scrub(RATE) == {}
    with opened(path, SPEC, SMALL) as replica:
        check_holds(replica, model)
        assert replica.scrub(RATE) == {}


def test_a_row_that_is_gone_without_a_trace_is_missed(copy):
    path, model = copy
    with opened(path, SPEC, SMALL) as replica:
        change(path, "DELETE FROM records WHERE seq=20")
        change(path, "DELETE FROM vectors WHERE seq=20")
        found = replica.scrub(RATE)
        assert "rows of seqs 0 to 4095 are not the" in found["rows"]
        wait_until(lambda: replica.failure, "it to stop writing")
    with opened(path, SPEC, SMALL) as replica:
        check_holds(replica, model)


@pytest.mark.parametrize("file", ["vectors.f32", "records.arrow", "manifest.json"])
def test_a_damaged_generation_is_searched_from_memory_and_built_anew_without_a_pause(copy, file):
    path, model = copy
    with opened(path, SPEC, GRAPHS) as replica:
        (old,) = (path / "generations").iterdir()
        flip(old / file)
        assert list(replica.scrub(RATE)) == ["generation"]
        check_holds(replica, model)
        write(replica, [upsert("later", [1] * 8)])
        wait_until(lambda: not old.exists() and not replica.issues, "a build")
        assert replica.scrub(RATE) == {} and replica.failure is None
    with opened(path, SPEC, SMALL) as replica:
        assert replica.count() == len(model) + 1


@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_damaged_log_ends_writing_for_good_and_leaves_the_rows_alone(copy, where):
    path, model = copy
    with opened(path, SPEC, SMALL) as replica:
        (segment,) = (path / "log").glob("*.log")
        if where == "end":
            write(replica, [upsert("last", [1] * 8)])
            model = None
            data = bytearray(segment.read_bytes())
            data[-1] ^= 1
            with segment.open("r+b") as file:
                file.write(data)
        else:
            flip(segment)
        assert list(replica.scrub(RATE)) == ["log"]
        wait_until(lambda: replica.failure, "it to stop writing")
        with pytest.raises(Exception, match="log is damaged"):
            write(replica, [upsert("more", [1] * 8)])
        assert not (path / "records.suspect").exists()
    with opened(path, SPEC, SMALL) as replica:
        assert "the log is damaged" in replica.damaged
        assert bool(replica.read_only) == (where == "middle")  # as damage that is found when it is opened
        assert model is None or replica.count() == len(model)


def test_a_look_at_the_disk_keeps_its_pace_and_ends_when_the_replica_is_closed(copy):
    path, _ = copy
    with opened(path, SPEC, SMALL) as replica:
        ended = []

        def look():
            try:
                replica.scrub(100)
            except scrub.Stopped as error:
                ended.append(error)

        begun = threading.Event()
        thread = threading.Thread(target=lambda: (begun.set(), look()))
        thread.start()
        begun.wait()
        wait_until(lambda: replica._scrub_turn.locked(), "it to look")
    thread.join(10)
    assert len(ended) == 1


def test_a_look_that_somebody_waits_for_ends_a_slow_one(copy):
    path, _ = copy
    with opened(path, SPEC, SMALL) as replica:
        ended = []

        def look():
            with pytest.raises(Unavailable):
                replica.scrub(100)
            ended.append(True)

        slow = threading.Thread(target=look)
        slow.start()
        wait_until(lambda: replica._scrub_turn.locked(), "it to look")
        assert replica.scrub(RATE, rows_only=True) == {}
        slow.join(10)
        assert ended == [True]


def test_rows_that_are_written_meanwhile_are_never_taken_for_damage(copy):
    path, _ = copy
    with opened(path, SPEC, SMALL) as replica:
        ended = threading.Event()

        def keep_writing():
            rng = random.Random(1)
            while not ended.is_set():
                write(replica, [upsert(f"id{rng.randrange(90)}", [rng.random() for _ in range(8)]) for _ in range(40)])

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            wait_until(lambda: replica.scrub(RATE) == {} and replica.applied_seq > 2 * RANGE, "many writes")
        finally:
            ended.set()
            writer.join()
        assert replica.scrub(RATE) == {} and replica.failure is None
