"""What a copy says of itself before a person gives up others: how far it has come, since when, and what is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from support.storage import MAINTENANCE, ME, POOL, Alone, delete, opened, spec, upsert, write
from veccluster.errors import Unavailable
from veccluster_node.replica.inspection import Inspection
from veccluster_node.replica.replica import Replica

VECTORS = np.eye(8, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy with two vectors, after four operations."""
    with opened(tmp_path / "copy") as replica:
        write(replica, [upsert(f"id-{i}", VECTORS[i]) for i in range(3)])
        delete(replica, "id-0")
        replica.write([upsert("id-1", VECTORS[5])], op_id="last", time_ns=1_700_000_000_000_000_000).result(30)
    return tmp_path / "copy"


def look(path: Path) -> Inspection:
    """As a node looks at a copy that it does not use."""
    replica = closed(path)
    try:
        return replica.inspect().result(30)
    finally:
        replica.close()


def closed(path: Path) -> Replica:
    return Replica.open(path, spec(), maintenance=MAINTENANCE, me=ME, surroundings=Alone(), pool=POOL)


def test_a_whole_copy_says_how_far_it_has_come_whether_it_is_in_use_or_not(path: Path) -> None:
    with opened(path) as replica:
        used = replica.inspect().result(30)
    found = look(path)
    assert (found.durable, found.vectors, found.written_ns) == ((1, 5), 2, 1_700_000_000_000_000_000)
    assert (found.doubt, found.trouble) == (None, None)
    assert (used.durable, used.vectors) == (found.durable, found.vectors)
    assert found.epoch == used.epoch == 2, "it was opened to serve in the next one"
    assert look(path) == found, "to look changes nothing"


def test_the_time_of_what_is_no_longer_in_the_log_is_in_the_rows(path: Path) -> None:
    with opened(path) as replica:
        log = replica._recovered.log
        replica._loop.call(lambda: (log.roll(), log.trim(5))).result(30)
        assert list(log.read(0)) == []
        assert replica.inspect().result(30).written_ns == 1_700_000_000_000_000_000


def test_an_empty_copy_has_nothing(tmp_path: Path) -> None:
    found = look(tmp_path / "new")
    assert (found.durable, found.vectors, found.written_ns, found.trouble) == ((0, 0), 0, None, None)


def test_a_copy_without_its_log_cannot_be_used_and_opening_it_again_does_not_mend_that(path: Path) -> None:
    shutil.rmtree(path / "log")
    found = look(path)
    assert found.trouble == "the log is missing" and not found.is_mendable and found.doubt is None
    assert (found.durable.seq, found.vectors) == (5, 2)


def test_a_copy_whose_end_is_torn_can_be_used_with_doubts(path: Path) -> None:
    segment = max((path / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes()[:-7])
    found = look(path)
    assert found.trouble is None and "what else was durable" in str(found.doubt)


def test_a_copy_whose_disk_failed_waits_to_be_opened_again(path: Path) -> None:
    with opened(path) as replica:
        replica._fail(Unavailable("the disk failed"))
        found = replica.inspect().result(30)
        assert (found.trouble, found.is_mendable) == ("the disk failed", True)
