"""A log gives back what was made durable, in order, or says that it cannot."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from veccluster import failpoints
from veccluster.decisions.replication.values import Lineage, Run
from veccluster.errors import InsufficientStorage, OutcomeUnknown, StorageCorrupt, Unavailable
from veccluster_node.wal import epochs
from veccluster_node.wal import log as log_module
from veccluster_node.wal.log import Log
from veccluster_node.wal.operations import Record


def records(first, count, *, each=1, size=40, seed=3):
    rng = random.Random(seed)
    return [Record(1, first + i * each, each, rng.randbytes(size + i % 7)) for i in range(count)]


def filled(path, groups=8, per_group=3, segment_size=1 << 20):
    """A log of several fsynced groups; returns it closed, with what is in it."""
    log = Log.open(path, segment_size=segment_size)
    written = []
    for _ in range(groups):
        group = records(log.last_seq + 1, per_group)
        log.append(group)
        written += group
    log.close()
    return written


def read(path):
    log = Log.open(path)
    try:
        return list(log.read(0)), log
    finally:
        log.close()


def test_what_was_appended_is_read_back_across_segments_and_restarts(tmp_path):
    written = filled(tmp_path, groups=20, segment_size=300)
    assert len(list(tmp_path.glob("*.log"))) > 5
    found, log = read(tmp_path)
    assert found == written
    assert (log.torn, log.damage, log.last_seq, log.durable_seq) == (None, None, 60, 60)
    assert list(log.read(57)) == written[57:]


def test_every_truncation_of_the_last_segment_leaves_a_prefix_and_writes_go_on(tmp_path):
    written = filled(tmp_path / "log", groups=2)
    (segment,) = (tmp_path / "log").glob("*.log")
    whole = segment.read_bytes()
    for size in range(len(whole)):
        path = tmp_path / f"cut-{size}"
        path.mkdir()
        (path / segment.name).write_bytes(whole[:size])
        log = Log.open(path)
        found = list(log.read(0))
        assert found == written[: len(found)]
        if log.damage:
            assert size < 50, "only a segment without its whole header is damaged by a cut"
            with pytest.raises(StorageCorrupt):
                log.append(records(1, 1))
        else:
            more = records(log.last_seq + 1, 2)
            log.append(more)
            log.close()
            assert read(path)[0] == found + more
        log.close()
        shutil.rmtree(path)


@pytest.mark.parametrize("flips", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flipped_byte_is_damage_or_the_unproven_end_but_never_a_wrong_record_or_a_silent_hole(tmp_path, flips):
    written = filled(tmp_path / "log", groups=6, per_group=2)
    (segment,) = (tmp_path / "log").glob("*.log")
    whole = segment.read_bytes()
    rng = random.Random(5)
    path = tmp_path / "flipped"
    for _ in range(flips):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (path / segment.name).write_bytes(data)
        found, log = read(path)
        assert found == written[: len(found)]
        if log.damage is None:
            assert len(found) >= len(written) - 2, "only the last group may be taken for a torn tail"
        if len(found) < len(written):
            assert log.damage or log.torn
        if log.torn:
            assert list(path.glob("torn-*"))


def test_a_bad_record_in_an_older_segment_is_damage_even_at_its_end(tmp_path):
    written = filled(tmp_path, groups=6, segment_size=300)
    first = min(tmp_path.glob("*.log"))
    first.write_bytes(first.read_bytes()[:-1])
    found, log = read(tmp_path)
    assert found == written[: len(found)]
    assert log.damage


def test_a_missing_segment_is_damage(tmp_path):
    filled(tmp_path, groups=9, segment_size=300)
    sorted(tmp_path.glob("*.log"))[1].unlink()
    assert "missing" in (read(tmp_path)[1].damage or "")


def test_a_group_that_was_torn_in_its_middle_by_a_power_failure_is_no_damage(tmp_path):
    log = Log.open(tmp_path)
    log.append(records(1, 3))
    before = log.size
    log.append(records(4, 3, size=100))
    log.close()
    (segment,) = tmp_path.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[before : before + 60] = bytes(60)
    segment.write_bytes(data)
    found, log = read(tmp_path)
    assert len(found) == 3
    assert log.torn
    assert log.damage is None


def test_of_a_torn_end_only_what_is_known_is_said(tmp_path):
    """Its last record may have been acknowledged before something cut it: the log alone cannot know."""
    filled(tmp_path, groups=2)
    (segment,) = tmp_path.glob("*.log")
    segment.write_bytes(segment.read_bytes()[:-7])
    found, log = read(tmp_path)
    (aside,) = tmp_path.glob("torn-*")
    assert log.torn == (
        f"{segment.name}: no good record at byte {segment.stat().st_size}, where seq {found[-1].last_seq + 1} should "
        f"begin; the {aside.stat().st_size} bytes there were cut off, and are kept in {aside.name}"
    )


def test_a_newer_format_is_refused_by_name(tmp_path):
    filled(tmp_path, groups=1)
    (segment,) = tmp_path.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[8] = 9
    segment.write_bytes(data)
    assert "log format 9 is newer" in (read(tmp_path)[1].damage or "")


def test_a_full_disk_stores_nothing_and_the_log_goes_on(tmp_path):
    log = Log.open(tmp_path)
    log.append(records(1, 2))
    for place in ("log.write", "log.written"):
        with failpoints.armed(f"{place}=1*error:ENOSPC"), pytest.raises(InsufficientStorage):
            log.append(records(3, 2))
    log.append(records(3, 1))
    log.close()
    found, log = read(tmp_path)
    assert [r.first_seq for r in found] == [1, 2, 3]
    assert log.torn is None


def test_fsync_is_never_tried_again_after_an_error(tmp_path):
    log = Log.open(tmp_path)
    with failpoints.armed("log.sync=1*error:EIO"), pytest.raises(OutcomeUnknown):
        log.append(records(1, 1))
    with pytest.raises(Unavailable, match="sealed"):
        log.append(records(2, 1))
    log.close()
    assert read(tmp_path)[1].damage is None


def test_trimming_forgets_whole_segments_only_and_never_the_newest(tmp_path):
    written = filled(tmp_path, groups=10, segment_size=300)
    log = Log.open(tmp_path, segment_size=300)
    log.trim(10)
    assert log.first_seq <= 11
    assert list(log.read(10)) == written[10:]
    log.trim(10**6)
    assert len(list(tmp_path.glob("*.log"))) == 1
    log.append(records(log.last_seq + 1, 1))
    log.close()
    assert read(tmp_path)[1].damage is None


def test_a_gap_that_was_left_on_purpose_is_no_damage(tmp_path):
    log = Log.open(tmp_path)
    log.append(records(1, 2))
    log.roll(start=10)
    log.append(records(10, 2))
    log.close()
    found, log = read(tmp_path)
    assert [r.first_seq for r in found] == [1, 2, 10, 11]
    assert log.damage is None


# -- cutting what is not committed


def test_what_is_cut_is_gone_and_other_records_follow_what_is_left(tmp_path):
    rng = random.Random(4)
    log = Log.open(tmp_path, segment_size=400)
    model: list[Record] = []
    for epoch in range(1, 60):
        first = log.last_seq + 1
        for _ in range(rng.randint(0, 4)):
            size = rng.randint(1, 3)
            model.append(Record(epoch, first, size, rng.randbytes(rng.randint(1, 90))))
            first += size
            log.append([model[-1]], sync=rng.random() < 0.5)
        keep = rng.randint(max(0, len(model) - (9 if epoch % 5 == 0 else 2)), len(model))
        del model[keep:]
        log.truncate(model[-1].last_seq if model else 0)
        assert (log.last_seq, list(log.read(0))) == (model[-1].last_seq if model else 0, model)
        assert log.durable_seq <= log.last_seq
        if epoch % 7 == 0:
            log.close()
            log = Log.open(tmp_path, segment_size=400)
            assert (log.torn, log.damage, list(log.read(0))) == (None, None, model)
        assert log.lineage == lineage_of(model)
    assert len(list(tmp_path.glob("*.log"))) > 2
    log.close()


def lineage_of(records_):
    lineage = Lineage()
    for record in records_:
        lineage = lineage.followed_by(record.epoch, record.first_seq)
    return lineage


def test_what_was_written_and_not_synced_is_durable_once_what_is_behind_it_is_cut(tmp_path):
    log = Log.open(tmp_path)
    log.append(records(1, 5), sync=False)
    assert log.durable_seq == 0
    log.truncate(3)
    assert log.durable_seq == 3
    log.close()


@pytest.mark.parametrize("after", [2, 5, 99, 0])
def test_a_log_is_cut_between_records_that_it_has_and_nowhere_else(tmp_path, after):
    log = Log.open(tmp_path / "log", start=2)
    log.append([Record(1, 2, 2, b"a"), Record(1, 4, 3, b"b")])
    with pytest.raises(ValueError, match="cannot cut"):
        log.truncate(after)
    assert [r.payload for r in log.read(0)] == [b"a", b"b"]
    log.truncate(1)
    assert list(log.read(0)) == []
    log.append([Record(2, 2, 1, b"c")])
    log.close()
    assert [r.payload for r in read(tmp_path / "log")[0]] == [b"c"]


CUTTER = """
import sys
from pathlib import Path
from veccluster_node.wal.log import Log
log = Log.open(Path(sys.argv[1]), segment_size=300)
log.truncate(int(sys.argv[2]))
"""


@pytest.mark.parametrize("place", ["log.unlink", "log.unlink=1-", "log.unlink=2-", "log.cut", "log.cut_written"])
def test_a_crash_while_the_log_is_cut_leaves_a_longer_log_and_no_hole(tmp_path, place):
    written = filled(tmp_path, groups=9, segment_size=300)
    name, _, skip = place.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", CUTTER, str(tmp_path), "8"],
        env={**os.environ, "VECCLUSTER_FAILPOINTS": f"{name}={skip}kill"},
        check=False,
    )
    assert done.returncode == -9
    found, log = read(tmp_path)
    assert (log.torn, log.damage) == (None, None)
    assert len(found) >= 8
    assert found == written[: len(found)]
    log = Log.open(tmp_path, segment_size=300)
    log.truncate(8)
    log.append([Record(2, 9, 1, b"other")])
    log.close()
    assert read(tmp_path)[0] == [*written[:8], Record(2, 9, 1, b"other")]


@pytest.mark.parametrize("place", ["log.unlink", "log.cut", "log.cut_written"])
def test_a_log_whose_end_could_not_be_cut_is_sealed(tmp_path, place):
    filled(tmp_path, groups=9, segment_size=300)
    log = Log.open(tmp_path, segment_size=300)
    with failpoints.armed(f"{place}=error:EIO"), pytest.raises(OutcomeUnknown):
        log.truncate(8)
    with pytest.raises(Unavailable, match="sealed"):
        log.append(records(9, 1))
    log.close()
    assert read(tmp_path)[1].damage is None


def test_the_lineage_says_which_epoch_wrote_what_is_still_there(tmp_path):
    log = Log.open(tmp_path, segment_size=1)
    for seq, epoch in enumerate([1, 1, 2, 4, 4], 1):
        log.append([Record(epoch, seq, 1, b"x")])
    assert log.lineage == Lineage((Run(1, 1), Run(2, 3), Run(4, 4)))
    log.trim(2)
    assert log.lineage == Lineage((Run(2, 3), Run(4, 4)))
    log.truncate(3)
    log.append([Record(5, 4, 1, b"x")])
    assert log.lineage == Lineage((Run(2, 3), Run(5, 4)))
    log.roll(start=9)
    log.append([Record(5, 9, 1, b"x")])
    log.close()
    log = Log.open(tmp_path)
    assert (log.dense_from, log.lineage) == (9, Lineage((Run(5, 9),)))
    with pytest.raises(ValueError, match="cannot cut"):
        log.truncate(4)
    log.close()


def test_reading_begins_near_what_is_asked_for_and_ends_there(tmp_path, monkeypatch):
    log = Log.open(tmp_path, segment_size=1 << 20)
    written = records(1, 300, size=5000)
    for i in range(0, 300, 20):
        log.append(written[i : i + 20])
    looked = []
    original = log_module._read_between
    monkeypatch.setattr(log_module, "_read_between", lambda *a: looked.append(a[2].at - a[1].at) or original(*a))
    for _ in range(2):
        for after, through in [(0, None), (0, 1), (100, 103), (259, 262), (299, 300), (300, None), (7, 7)]:
            looked.clear()
            assert list(log.read(after, through)) == written[after:through]
            if through:
                assert sum(looked) < 4 * (256 << 10)
        log.close()
        log = Log.open(tmp_path)
    log.close()


def test_a_record_that_went_bad_since_the_log_was_opened_is_never_left_out_in_silence(tmp_path):
    written = filled(tmp_path, groups=9, segment_size=300)
    log = Log.open(tmp_path)
    path = sorted(tmp_path.glob("*.log"))[1]
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    found = []
    with pytest.raises(StorageCorrupt, match="can no longer be read"):
        found.extend(log.read(0))
    path.unlink()
    with pytest.raises(StorageCorrupt, match="cannot be read"):
        list(log.read(0))
    log.close()
    assert written


def test_a_reader_that_is_overtaken_by_a_cut_sees_less_and_no_damage(tmp_path):
    written = filled(tmp_path, groups=9, segment_size=300)
    log = Log.open(tmp_path)
    reading = log.read(0)
    found = [next(reading) for _ in range(4)]
    log.truncate(6)
    log.append([Record(2, 7, 1, b"other")])
    found += reading
    assert found[:6] == written[:6]
    assert found[6:] in ([], [Record(2, 7, 1, b"other")], [written[6]])
    log.close()


# -- the epoch beside it


def test_an_epoch_is_there_after_it_was_stored_and_never_read_wrongly(tmp_path):
    assert epochs.read(tmp_path) == 0
    for epoch in (1, 7, 1 << 40):
        epochs.write(tmp_path, epoch)
        assert epochs.read(tmp_path) == epoch
    data = (tmp_path / epochs.FILE).read_bytes()
    for i in range(len(data)):
        (tmp_path / epochs.FILE).write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
        with pytest.raises(StorageCorrupt):
            epochs.read(tmp_path)
        (tmp_path / epochs.FILE).write_bytes(data[:i])
        with pytest.raises(StorageCorrupt):
            epochs.read(tmp_path)


def test_an_epoch_that_could_not_be_stored_leaves_the_old_one(tmp_path):
    epochs.write(tmp_path, 3)
    with failpoints.armed("epoch.write=error:ENOSPC"), pytest.raises(OSError):
        epochs.write(tmp_path, 4)
    assert epochs.read(tmp_path) == 3
