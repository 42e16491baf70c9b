"""Whatever is damaged on the disk: right answers or a plain word, never a wrong answer and never a dead process."""

import json
import random
import shutil
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import structlog

from support.storage import GRAPHS, SMALL, check_holds, delete, opened, spec, upsert, write
from veccluster import failpoints
from veccluster.decisions.replication.values import Lineage, Run
from veccluster.errors import InsufficientStorage, OutcomeUnknown, StorageCorrupt, Unavailable
from veccluster_node.engine.records import ROWS
from veccluster_node.replica import builder, snapshots
from veccluster_node.replica.recovery import recover
from veccluster_node.replica.replica import Query
from veccluster_node.wal import epochs
from veccluster_node.wal.log import Log
from veccluster_node.wal.operations import Record, encode_batch

SPEC = spec(8)
FILES = ["vectors.f32", "records.arrow", "index.usearch", "manifest.json"]
SMALL_FILES = [pytest.param(name, 1, marks=pytest.mark.slow) for name in ("dead.u64", "seqs.u64", "lengths.f32")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A closed replica with two generations, deaths in the older one and a tail; and what it holds."""
    path = tmp_path_factory.mktemp("whole") / "s"
    several = replace(GRAPHS, limits=replace(GRAPHS.limits, copies_per_row=0, max_wasted=1.0))
    rng = np.random.default_rng(7)
    model = {}

    def put(replica, first, last):
        ops = [upsert(f"id{i}", rng.integers(-9, 9, 8), i=i) for i in range(first, last)]
        write(replica, ops)
        model.update({op.id: (np.frombuffer(op.vector, "<f4"), op.metadata) for op in ops})

    def drop(replica, *ids):
        delete(replica, *ids)
        for id_ in ids:
            del model[id_]

    with opened(path, SPEC, several) as replica:
        put(replica, 0, 60)
        assert replica.build(30)
        put(replica, 50, 90)
        drop(replica, "id3", "id70")
        assert replica.build(30)
        put(replica, 85, 99)
        drop(replica, "id4")
        assert replica.stats().generations == 2
    return path, model


@pytest.fixture
def copy(whole, tmp_path):
    path = tmp_path / "s"
    shutil.copytree(whole[0], path)
    return path, dict(whole[1])


def flip(path, rng, times=3):
    data = bytearray(path.read_bytes() or b"?")
    for _ in range(times):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def warnings(logged):
    """The events of one shard that a person may want to read, in their order."""
    assert all(entry["shard"] == "c0ffee.0" for entry in logged)
    assert not any("\n" in entry.get("detail", "") for entry in logged)
    return [entry["event"] for entry in logged if entry["log_level"] == "warning"]


def check_graph_too(replica, model):
    check_holds(replica, model)
    query = np.ones((1, 8), np.float32)
    exact, graph = (replica.search(Query(query, 10, exact=e, ef=200))[0] for e in (True, False))
    assert [(h.id, h.distance) for h in exact] == [(h.id, h.distance) for h in graph]


@pytest.mark.parametrize(("name", "which"), [*((name, i % 2) for i, name in enumerate(FILES)), *SMALL_FILES])
def test_a_damaged_generation_is_searched_exactly_from_the_rows_and_built_anew(copy, name, which):
    path, model = copy
    flip(sorted((path / "generations").iterdir())[which] / name, random.Random(name))
    with opened(path, SPEC, replace(GRAPHS, build_retry=0.01)) as replica:
        check_graph_too(replica, model)
        assert replica.build(30)
        assert replica.stats().issues == ()
        check_graph_too(replica, model)
    with opened(path, SPEC, GRAPHS) as replica:
        assert replica.stats().issues == ()
        check_graph_too(replica, model)


def test_a_damaged_generation_is_named_until_it_is_built_anew(copy):
    path, model = copy
    name = min((path / "generations").iterdir()).name
    (path / "generations" / name / "index.usearch").unlink()
    with failpoints.armed("current.write=error:EIO"), opened(path, SPEC, GRAPHS) as replica:
        said = replica.stats().issues
        assert any(name in issue and "being rebuilt from the rows" in issue for issue in said), said
        check_graph_too(replica, model)


def test_missing_generations_are_built_anew(copy):
    path, model = copy
    shutil.rmtree(path / "generations")
    with opened(path, SPEC, GRAPHS) as replica:
        check_graph_too(replica, model)
        assert replica.build(30)
        check_graph_too(replica, model)


def test_a_damaged_current_is_made_anew(copy):
    path, model = copy
    (path / "CURRENT").write_bytes(b'{"format": 1, "gener')
    with structlog.testing.capture_logs() as said, opened(path, SPEC, GRAPHS) as replica:
        assert warnings(said) == ["current_rebuilt"]
        assert replica.issues == ()
        check_graph_too(replica, model)
        assert replica.stats().generations == 2


@pytest.mark.parametrize("damage", ["header", "zeros", "missing", "truncated"])
def test_damaged_rows_are_made_anew_from_generations_and_log(copy, damage):
    path, model = copy
    rows = path / "records.sqlite"
    data = bytearray(rows.read_bytes())
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "zeros":
        data[8192:] = bytes(len(data) - 8192)
    elif damage == "truncated":
        del data[len(data) // 2 :]
    rows.write_bytes(data)
    if damage == "missing":
        rows.unlink()
    with structlog.testing.capture_logs() as said, opened(path, SPEC, GRAPHS) as replica:
        check_graph_too(replica, model)
        assert warnings(said) == ["records_rebuilt"]
        assert replica.issues == (), "it is mended"
        write(replica, [upsert("new", [1] * 8)])
    with opened(path, SPEC, GRAPHS) as replica:
        assert replica.stats().issues == ()
        assert replica.count() == len(model) + 1


def test_rows_made_anew_after_the_log_was_trimmed_do_not_revive_the_dead(copy):
    """Deaths that only generations remember: nothing of them is left in the log."""
    path, model = copy
    with opened(
        path, SPEC, replace(GRAPHS, limits=replace(GRAPHS.limits, copies_per_row=0, max_wasted=1.0))
    ) as replica:
        assert replica.build(30)
        replica._recovered.log.roll()
        write(replica, [upsert("last", [1] * 8)])
        assert replica.build(30)
        write(replica, [upsert("tail", [1] * 8)])
        assert replica._recovered.log.first_seq > 1
        assert replica.stats().generations > 2
        model = {
            i: (np.frombuffer(s.vector, "<f4"), s.metadata) for i in [*model, "last", "tail"] for s in replica.get([i])
        }
    (path / "records.sqlite").unlink()
    with opened(path, SPEC, GRAPHS) as replica:
        check_holds(replica, model)
        assert replica.issues == ()


@pytest.mark.parametrize("rounds", [4, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_random_damage_of_the_rows_never_gives_a_wrong_answer(copy, tmp_path, rounds):
    path, model = copy
    rng = random.Random(11)
    original = (path / "records.sqlite").read_bytes()
    for round_ in range(rounds):
        work = tmp_path / f"w{round_}"
        shutil.copytree(path, work)
        rows = work / "records.sqlite"
        rows.write_bytes(original)
        flip(rows, rng, times=2)
        for _ in range(2):
            try:
                with opened(work, SPEC, SMALL) as replica:
                    check_holds(replica, model)
                    replica.build(10)
                break
            except (StorageCorrupt, Unavailable):
                continue
        shutil.rmtree(work)


def test_a_checksum_that_does_not_hold_is_an_error_at_once_and_healed_when_opened_again(copy):
    path, model = copy
    db = sqlite3.connect(path / "records.sqlite")
    db.execute("UPDATE records SET metadata='{\"i\": 666}' WHERE id='id60'")
    db.execute("UPDATE vectors SET vector=zeroblob(32) WHERE seq=(SELECT seq FROM records WHERE id='id61')")
    db.commit()
    db.close()
    with opened(path, SPEC, SMALL) as replica:
        for id_ in ("id60", "id61"):
            with pytest.raises(StorageCorrupt, match="does not match its checksum"):
                replica.get([id_])
        replica._loop.call(lambda: None).result(30)
        assert "checksum" in replica.read_only
    with opened(path, SPEC, SMALL) as replica:
        check_holds(replica, model)


def test_a_log_that_is_damaged_in_its_middle_makes_the_shard_read_only_with_an_alarm(copy):
    path, model = copy
    segment = min((path / "log").glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    with opened(path, SPEC, SMALL) as replica:
        assert replica.read_only.startswith("the log is damaged: 00000000000000000001.log: no good record at byte")
        assert replica.issues == (), "it is said once"
        check_holds(replica, model)
        with pytest.raises(StorageCorrupt, match="the log is damaged"):
            write(replica, [upsert("x", [1] * 8)])


def test_a_log_that_lost_an_end_which_the_rows_have_goes_on_behind_it(copy):
    path, model = copy
    segment = max((path / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes()[:-7])
    with structlog.testing.capture_logs() as said, opened(path, SPEC, SMALL) as replica:
        assert warnings(said) == ["log_torn", "log_behind"]
        assert "bytes there were cut off, and are kept in torn-" in said[0]["detail"]
        assert "nobody had been told" not in said[0]["detail"], "the rows hold it: it was acknowledged"
        assert "the rows hold everything" in said[1]["detail"]
        assert replica.issues == (), "it is mended"
        check_holds(replica, model)
        write(replica, [upsert("x", [1] * 8)])
        assert replica.build(30)
    (path / "records.sqlite").unlink()
    with opened(path, SPEC, SMALL) as replica:
        assert replica.count() == len(model) + 1


def test_a_torn_end_that_was_never_acknowledged_is_a_warning_and_no_issue(copy):
    path, model = copy
    with max((path / "log").glob("*.log")).open("ab") as segment:
        segment.write(b"half a record")
    with structlog.testing.capture_logs() as said, opened(path, SPEC, SMALL) as replica:
        assert warnings(said) == ["log_torn"]
        assert replica.issues == ()
        check_holds(replica, model)


def test_where_rows_and_the_end_of_the_log_are_lost_together_a_person_is_told_what_is_not_known(copy):
    path, _ = copy
    segment = max((path / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes()[:-7])
    (path / "records.sqlite").unlink()
    with opened(path, SPEC, SMALL) as replica:
        assert any("whether anything acknowledged was there is not known" in issue for issue in replica.issues)


@pytest.mark.parametrize("what", ["CURRENT", "manifest"])
def test_a_newer_format_is_refused_and_left_alone(copy, what):
    path, _ = copy
    file = path / "CURRENT" if what == "CURRENT" else min((path / "generations").iterdir()) / "manifest.json"
    newer = file.read_bytes().replace(b'"format":1', b'"format":9').replace(b'"format": 1', b'"format": 9')
    file.write_bytes(newer)
    with pytest.raises(StorageCorrupt, match="format 9 is newer"), opened(path, SPEC, SMALL):
        pass
    assert file.read_bytes() == newer


# -- full and failing disks


def test_a_nearly_full_disk_refuses_upserts_and_allows_deletes_and_reads(copy):
    path, model = copy
    with opened(path, SPEC, replace(SMALL, full_at=0.0)) as replica:
        with pytest.raises(InsufficientStorage, match="disk"):
            write(replica, [upsert("x", [1] * 8)])
        assert delete(replica, "id10").deleted == 1
        del model["id10"]
        check_holds(replica, model)


def test_a_full_disk_stores_nothing_of_an_upsert_and_gives_up_its_reserve_for_a_delete(tmp_path):
    reserve = tmp_path / "s" / "reserve"
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("a", [1] * 8), upsert("b", [1] * 8)])
        assert reserve.exists()
    with opened(tmp_path / "s", SPEC, replace(SMALL, full_at=0.0)) as replica:
        with pytest.raises(InsufficientStorage):
            write(replica, [upsert("x", [1] * 8)])
        assert delete(replica, "a").deleted == 1
        assert not reserve.exists()
        assert replica.list_ids(None, 9) == ["b"]
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("c", [1] * 8)])
        assert replica.list_ids(None, 9) == ["b", "c"]
        assert reserve.exists(), "made again when there is room"


def test_a_write_that_finds_the_disk_full_is_not_stored_and_the_shard_goes_on_when_it_is_opened_again(tmp_path):
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("a", [1] * 8)])
        with failpoints.armed("log.write=1*error:ENOSPC"), pytest.raises(InsufficientStorage):
            write(replica, [upsert("x", [1] * 8)])
        assert isinstance(replica.failure, InsufficientStorage)
        assert replica.list_ids(None, 9) == ["a"]
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("b", [1] * 8)])
        assert replica.list_ids(None, 9) == ["a", "b"]


def test_a_failed_fsync_ends_writing_but_not_reading_until_it_is_opened_again(tmp_path):
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("a", [1] * 8)])
        with failpoints.armed("log.sync=1*error:EIO"), pytest.raises(OutcomeUnknown):
            write(replica, [upsert("b", [1] * 8)])
        with pytest.raises(Unavailable):
            write(replica, [upsert("c", [1] * 8)])
        assert replica.list_ids(None, 9) == ["a"]
        assert "the disk could not confirm a write" in replica.read_only
    with opened(tmp_path / "s", SPEC) as replica:
        assert (replica.read_only, replica.issues) == (None, ())
        write(replica, [upsert("c", [1] * 8)])
        assert set(replica.list_ids(None, 9)) in ({"a", "c"}, {"a", "b", "c"})


@pytest.mark.parametrize("place", ["apply", "records.commit"])
def test_what_is_durable_but_could_not_be_applied_shows_when_it_is_opened_again(tmp_path, place):
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("a", [1] * 8)])
        with failpoints.armed(f"{place}=1*error:ENOSPC"), pytest.raises(OutcomeUnknown):
            write(replica, [upsert("a", [2] * 8), upsert("b", [1] * 8)], "unknown")
        with pytest.raises(InsufficientStorage, match=r"^the disk is full; make room"):
            write(replica, [upsert("c", [1] * 8)])
        hits = replica.search(Query(np.zeros((1, 8), np.float32), 9, exact=True))[0]
        assert [(h.id, h.distance) for h in hits] == [("a", 8.0)]
    with opened(tmp_path / "s", SPEC) as replica:
        assert replica.list_ids(None, 9) == ["a", "b"]
        assert write(replica, [upsert("a", [2] * 8)], "unknown").replayed


def test_what_sqlite_finds_no_room_for_shows_when_there_is_room_again(tmp_path):
    with opened(tmp_path / "s", SPEC) as replica:
        write(replica, [upsert("a", [1] * 8)])
        replica._recovered.records._db.execute("PRAGMA max_page_count=1")
        with pytest.raises(OutcomeUnknown):
            write(replica, [upsert(f"b{i}", [2] * 8, text="x" * 1000) for i in range(99)])
        with pytest.raises(InsufficientStorage, match=r"^the disk is full; make room"):
            write(replica, [upsert("c", [1] * 8)])
        assert replica.list_ids(None, 9) == ["a"]
    with opened(tmp_path / "s", SPEC) as replica:
        assert replica.count() == 100
        assert write(replica, [upsert("c", [1] * 8)]).upserted == 1


def test_a_build_without_room_says_so_in_one_line_and_the_tail_is_searched_meanwhile(copy, monkeypatch):
    path, model = copy
    monkeypatch.setenv("VECCLUSTER_FAILPOINTS", "build.rows=error:ENOSPC")
    with opened(path, SPEC, replace(GRAPHS, build_retry=30)) as replica:
        write(replica, [upsert("id60", [1] * 8)])
        model["id60"] = (np.ones(8, np.float32), b"{}")
        while not (said := replica.stats().issues):
            replica.build(0.05)
        assert said == (
            "Shard c0ffee.0: a build failed (no space left on the disk); searches stay right, and it is tried again.",
        )
        check_graph_too(replica, model)


def test_a_crash_while_rows_are_made_anew_only_means_beginning_again(copy):
    path, model = copy
    with opened(path, SPEC, SMALL) as replica:
        assert replica.build(30)
        replica._recovered.log.roll()
        write(replica, [upsert("last", [1] * 8)])
        assert replica.build(30)
        model = {i: (np.frombuffer(s.vector, "<f4"), s.metadata) for i in [*model, "last"] for s in replica.get([i])}
    (path / "records.sqlite").unlink()
    with (
        pytest.raises(Unavailable, match="cannot be opened now"),
        failpoints.armed("records.restore=1*error:EIO"),
        opened(path, SPEC, SMALL),
    ):
        pass
    with opened(path, SPEC, SMALL) as replica:
        check_holds(replica, model)


# -- what a replica says of itself when it is opened


@contextmanager
def recovered(path, settings=SMALL):
    made = recover(path, SPEC, settings)
    try:
        yield made
    finally:
        made.records.close()
        made.log.close()


def append(path, epoch, *op_ids):
    """Write to the log what may never be committed."""
    with closing(Log.open(path / "log")) as log:
        for op_id in op_ids:
            ops = [upsert(op_id, [1] * 8), upsert(op_id, [2] * 8)]
            log.append([Record(epoch, log.last_seq + 1, 2, encode_batch(1, op_id, ops))])
        return log.last_seq


def test_what_is_in_the_log_behind_the_rows_is_told_and_not_applied(copy):
    path, model = copy
    with recovered(path) as made:
        found = made.found
        assert (found.epoch, found.lineage, found.first) == (1, Lineage((Run(1, 1),)), 1)
        assert (found.applied, found.last, found.operations) == (made.records.applied_seq, found.applied, {})
    last = append(path, 4, "x", "y")
    epochs.write(path, 6)
    with recovered(path) as made:
        again = made.found
        assert (again.epoch, again.applied, again.last) == (6, found.applied, last)
        assert again.lineage == Lineage((Run(1, 1), Run(4, found.last + 1)))
        assert again.operations == {"x": last - 2, "y": last}
        assert made.records.live == len(model)
        assert made.damaged is None
        made.log.truncate(found.last)
    with recovered(path) as made:
        assert made.found == replace(found, epoch=6)


def test_rows_made_anew_know_which_epochs_wrote_them(copy):
    path, _ = copy
    append(path, 1, "x")
    append(path, 2, "y")
    with opened(path, SPEC, GRAPHS) as replica:
        write(replica, [upsert("z", [1] * 8)])
        assert replica.build(30)
    with recovered(path) as made:
        known = made.found.lineage
        assert [run.epoch for run in known.runs][:2] == [1, 2]
    (path / "records.sqlite").unlink()
    with recovered(path) as made:
        assert made.found.lineage == known
        assert made.records.lineage == known.cut(made.found.applied)
    with closing(sqlite3.connect(path / "records.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM lineage").fetchone() == (len(made.records.lineage.runs),)


def test_files_from_before_lineages_were_kept_are_given_what_the_log_knows(copy):
    path, _ = copy
    with recovered(path) as made:
        applied = made.found.applied
    append(path, 2, "x", "y")
    append(path, 3, "z")
    with opened(path, SPEC, GRAPHS):
        pass
    with closing(sqlite3.connect(path / "records.sqlite")) as db:
        db.execute("DROP TABLE lineage")
        db.commit()
    with recovered(path) as made:
        known = made.records.lineage
        assert known.runs[:3] == (Run(1, 1), Run(2, applied + 1), Run(3, applied + 5))
        assert known == made.found.lineage
    with recovered(path) as made:
        assert made.found.lineage == known


def test_generations_from_before_lineages_were_kept_are_still_read(copy):
    path, model = copy
    for manifest in (path / "generations").glob("*/manifest.json"):
        said = json.loads(manifest.read_bytes())
        assert said.pop("lineage") == {"runs": [[1, 1]]}
        manifest.write_text(json.dumps(said))
    (path / "records.sqlite").unlink()
    with recovered(path) as made:
        assert made.found.lineage == Lineage((Run(1, 1),))
    with opened(path, SPEC, GRAPHS) as replica:
        check_graph_too(replica, model)


def cut_end(path):
    segment = max((path / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes()[:-7])


@pytest.mark.parametrize("rows_too", [False, True])
def test_a_copy_that_may_lack_something_says_so_each_time_it_is_opened(copy, rows_too):
    path, _ = copy
    cut_end(path)
    if rows_too:
        (path / "records.sqlite").unlink()
    for _ in range(2):
        with recovered(path) as made:
            assert made.broken is None
            assert "not known" in made.damaged if rows_too else "what else was durable" in made.damaged
            assert made.found.last >= made.found.applied
            assert made.found.first == (1 if rows_too else made.found.applied + 1)


def test_rows_that_got_further_than_an_unsynced_log_say_nothing_of_it(copy):
    path, _ = copy
    cut_end(path)
    with recovered(path, replace(SMALL, wal_sync="interval")) as made:
        assert made.damaged is None


def test_a_replica_that_cannot_know_what_it_promised_is_read_only(copy):
    path, _ = copy
    epochs.write(path, 9)
    (path / epochs.FILE).write_bytes(b"?")
    with recovered(path) as made:
        assert made.broken == made.damaged == "the stored epoch is damaged"


def test_a_log_that_is_gone_is_missed_even_when_it_was_all_there_was(tmp_path):
    epochs.write(tmp_path, 9)
    with recovered(tmp_path) as made:
        assert made.broken == made.damaged == "the log is missing"


def test_a_log_that_does_not_go_on_where_the_rows_end_is_of_no_use(copy):
    path, _ = copy
    with recovered(path) as made:
        found = made.found
        made.log.roll(start=found.last + 5)
    append(path, 2, "x")
    with recovered(path) as made:
        assert f"operations {found.last + 1} to {found.last + 4} are missing" in made.damaged
        assert made.broken == made.damaged
        assert made.found == replace(found, first=found.last + 1)


def test_a_disk_that_cannot_be_read_makes_reads_unavailable_until_it_can(tmp_path):
    with opened(tmp_path / "s", SPEC, SMALL) as replica:
        write(replica, [upsert("a", np.ones(8), i=1)])
        rows = tmp_path / "s" / ROWS
        rows.rename(away := tmp_path / "away")
        reads = (
            lambda: replica.search(Query(np.ones((1, 8), "<f4"), 1)),
            lambda: replica.get(["a"]),
            lambda: replica.list_ids(None, 1, None),
            lambda: snapshots.export(tmp_path / "s", tmp_path / "out"),
        )
        for read in reads:
            with pytest.raises(Unavailable, match=r"^its rows cannot be opened now: unable to open database file$"):
                read()
        away.rename(rows)
        assert replica.get(["a"])[0].id == "a"


def test_builds_go_on_after_something_unforeseen(tmp_path, monkeypatch):
    decide, unforeseen = builder.decide, [RuntimeError("nobody thought of this")]

    def once(*args, **options):
        if unforeseen:
            raise unforeseen.pop()
        return decide(*args, **options)

    monkeypatch.setattr(builder, "decide", once)
    with structlog.testing.capture_logs() as logged, opened(tmp_path / "s", SPEC, GRAPHS) as replica:
        write(replica, [upsert(f"id{i}", np.ones(8), i=i) for i in range(9)])
        assert replica.build(30)
        assert replica.stats().generations == 1
    assert [entry["detail"] for entry in logged if entry["event"] == "build_failed"] == ["nobody thought of this"]
