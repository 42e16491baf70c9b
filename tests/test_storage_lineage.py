"""What a disk says of who wrote what stays small however many epochs there were, and what said more is read."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from support.storage import SMALL, check_holds, opened, spec, upsert, write
from veccluster.decisions.replication.journal import Journal, Recovered
from veccluster.decisions.replication.values import Lineage
from veccluster.model.state import Seq
from veccluster_node.engine.records import ROWS, Records
from veccluster_node.replica import snapshots
from veccluster_node.replica.recovery import recover
from veccluster_node.wal.operations import Record, encode_batch

SPEC = spec()
KEPT = 4
EPOCHS = 12


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "runs", KEPT)


def serve_epochs(path: Path, model: dict, epochs: int = EPOCHS, *, build: bool = False) -> None:
    """A write in each; opening a replica begins one."""
    for _ in range(epochs):
        with opened(path, SPEC, SMALL) as replica:
            op = upsert(f"v{len(model)}", [float(len(model))] * SPEC.dimension)
            write(replica, [op])
            model[op.id] = (np.frombuffer(op.vector, "<f4"), op.metadata)
            if build and len(model) == epochs // 2:
                assert replica.build(120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    path, model = tmp_path_factory.mktemp("served"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "runs", KEPT)
        serve_epochs(path, model, build=True)
    return path, model


@pytest.fixture
def copy(served: tuple[Path, dict], tmp_path: Path) -> tuple[Path, dict]:
    return Path(shutil.copytree(served[0], tmp_path / "copy")), dict(served[1])


def runs_in(path: Path) -> int:
    with closing(sqlite3.connect(path / ROWS)) as db:
        return int(db.execute("SELECT count(*) FROM lineage").fetchone()[0])


def found_in(path: Path) -> Recovered:
    made = recover(path, SPEC, SMALL)
    made.records.close()
    made.log.close()
    assert (made.damaged, made.issues) == (None, [])
    return made.found


def held(path: Path, model: dict) -> None:
    with opened(path, SPEC, SMALL) as replica:
        check_holds(replica, model)
        assert replica.issues == ()


def test_rows_keep_the_newest_epochs_only_and_go_on_from_them(copy):
    path, model = copy
    found = found_in(path)
    assert found.lineage.floor
    assert runs_in(path) <= KEPT + 1
    assert len(found.lineage.runs) <= KEPT + 1
    assert found.lineage.epoch_at(found.last) == found.lineage.newest == found.epoch
    held(path, model)


def test_a_directory_from_before_lineages_had_floors_is_read_and_forgets_from_then_on(tmp_path, monkeypatch):
    model = {}
    monkeypatch.setattr(Journal, "runs", 10**9)
    serve_epochs(tmp_path, model)
    whole = found_in(tmp_path).lineage
    assert (whole.floor, len(whole.runs)) == (0, EPOCHS)
    assert runs_in(tmp_path) == EPOCHS
    monkeypatch.setattr(Journal, "runs", KEPT)
    assert found_in(tmp_path).lineage == whole
    serve_epochs(tmp_path, model, 3)
    assert runs_in(tmp_path) <= KEPT + 1
    assert found_in(tmp_path).lineage.floor
    held(tmp_path, model)


def test_rows_that_are_made_anew_know_no_less_than_the_generations(copy):
    path, model = copy
    before = found_in(path)
    (path / ROWS).unlink()
    made = recover(path, SPEC, SMALL)
    made.records.close()
    made.log.close()
    lineage = made.found.lineage
    assert lineage.floor <= made.found.applied < before.applied, "what is applied can be compared"
    assert lineage.agrees_with(before.lineage, before.last) == before.last
    held(path, model)


def test_a_snapshot_carries_the_floor(copy, tmp_path):
    path, model = copy
    offered = snapshots.export(path, path / snapshots.OUTGOING / "x")
    assert offered.lineage.floor
    assert len(offered.lineage.runs) <= KEPT + 1
    root = tmp_path / "b"
    root.mkdir()
    shutil.copytree(path / snapshots.OUTGOING / "x", root / snapshots.INCOMING)
    snapshots.verify(root / snapshots.INCOMING, offered)
    snapshots.stage(root, offered)
    assert found_in(root).lineage == offered.lineage
    held(root, model)


def test_ten_thousand_epochs_leave_a_small_table(tmp_path):
    kept, each = 64, 500
    with_all = Lineage()
    records = Records(tmp_path / ROWS)
    for first in range(1, 10_001, each):
        group = []
        for seq in range(first, first + each):
            group.append(Record(seq, seq, 1, encode_batch(1, f"w{seq}", [upsert("v", [1.0] * SPEC.dimension)])))
            with_all = with_all.followed_by(seq, Seq(seq)).since(Seq(seq - kept))
        records.apply(group, floor=with_all.floor)
    records.close()
    assert runs_in(tmp_path) <= kept + 1
    assert (tmp_path / ROWS).exists()
