"""A log gives back what was made durable, in order, or says that it cannot."""

import random
import shutil

import pytest

from veccluster.errors import InsufficientStorage, OutcomeUnknown, StorageCorrupt, Unavailable
from veccluster_node.storage import failpoints
from veccluster_node.storage.log import Log
from veccluster_node.storage.operations import Record


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
