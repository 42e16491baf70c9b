"""Three real nodes: what goes bad on the disk of one of them is found and made good again, and nobody has to help."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cluster import wait_until
from support.nodes import Nodes, filled, record_of
from veccluster import Client
from veccluster.client.results import CollectionInfo
from veccluster_node.engine.digests import row_hash

pytestmark = pytest.mark.e2e

SPEC = {"failover": {"heartbeat": "200ms", "timeout": "1s"}, "tuning": {"snapshotInterval": "2s"}}
OFTEN = {"integrity": {"scrub_every": 0.5, "scrub_rate": 1 << 30, "compare_every": 0.5}}
VECTORS = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)
IDS = [f"id-{i}" for i in range(200)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes(3, spec=SPEC, config=OFTEN) as made:
        yield made


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with nodes.client(timeout=30.0) as made:
        yield made


@pytest.fixture
def words(nodes: Nodes, client: Client) -> Iterator[CollectionInfo]:
    """A collection whose vectors every replica has."""
    made = filled(nodes, client, VECTORS, metric="l2")
    yield made
    client.delete_collection(made.name)


def directory(nodes: Nodes, words: CollectionInfo, number: int) -> Path:
    return nodes.data(number) / "shards" / f"{words.details['uuid']}.0"


def is_whole(nodes: Nodes, words: CollectionInfo) -> bool:
    return {m.node for m in record_of(nodes, words).in_sync} == {"n0", "n1", "n2"}


def noticed(nodes: Nodes, number: int) -> int:
    """How often a node has noticed damage, by a look at the disk or before that since somebody read it."""
    log = nodes.log_file(number).read_text()
    return sum(log.count(f'"event": "{event}"') for event in ("damage_found", "replica_failed"))


def rows(path: Path) -> dict[str, bytes]:
    with closing(sqlite3.connect(f"file:{path}/records.sqlite?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT id, vector FROM records JOIN vectors USING(seq)"))


def change(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None, timeout=30)) as db:
        assert db.execute(sql, values).rowcount


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as data:
        data.seek(at)
        (byte,) = data.read(1)
        data.seek(at)
        data.write(bytes([byte ^ 16]))


class Writer(threading.Thread):
    """Writes all the time; `acknowledged` is what it was promised."""

    def __init__(self, nodes: Nodes, words: CollectionInfo) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, np.ndarray[Any, Any]] = dict(zip(IDS, VECTORS, strict=True))
        self.wrong: list[object] = []
        self._nodes = nodes
        self._name = words.name
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - whoever ends it looks
            self.wrong.append(error)

    def _work(self) -> None:
        rng = np.random.default_rng(2)
        with self._nodes.client(timeout=30.0) as client:
            number = 0
            while not (number and self._ended.is_set()):
                vectors = rng.standard_normal((5, 16)).astype(np.float32)
                ids = [f"more-{number + i}" for i in range(5)]
                number += 5
                client.upsert(self._name, ids, vectors)
                self.acknowledged |= dict(zip(ids, vectors, strict=True))
                id_ = IDS[number % 190]  # not the one that gets lost: nobody can know that at once
                got = client.get(self._name, id_, consistency="eventual")
                if not np.array_equal(np.asarray(got.vector, np.float32), self.acknowledged[id_]):
                    self.wrong.append(got)

    def end(self) -> dict[str, bytes]:
        """Stop; what every copy must hold."""
        self._ended.set()
        self.join(60)
        assert not self.is_alive() and self.wrong == [], self.wrong
        return {i: v.astype("<f4").tobytes() for i, v in self.acknowledged.items()}


def check_good_again(nodes: Nodes, words: CollectionInfo, held: dict[str, bytes]) -> None:
    wait_until(lambda: is_whole(nodes, words), "all to be in sync")
    nodes.wait_healthy()
    for number in range(3):
        path = directory(nodes, words, number)
        wait_until(lambda p=path: rows(p) == held, f"node {number} to hold what was acknowledged")
    with nodes.client(timeout=30.0) as client:
        assert client.count(words.name) == len(held)


def damaged_rows(path: Path) -> None:
    """One bit in a vector, in the file itself."""
    file = path / "records.sqlite"

    def is_there() -> int:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return file.read_bytes().find(VECTORS[20].tobytes())

    wait_until(lambda: is_there() > 0, "a checkpoint")
    flip(file, is_there() + 3)


def lost_row(path: Path) -> None:
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None, timeout=30)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM vectors WHERE seq=(SELECT seq FROM records WHERE id='id-195')")
        db.execute("DELETE FROM records WHERE id='id-195'")
        db.execute("COMMIT")


def damaged_log(path: Path) -> None:
    segment = min((path / "log").glob("*.log"))
    flip(segment, segment.stat().st_size // 2)


def damaged_generation(path: Path) -> None:
    """Those that are in use now; builds may replace them before anybody looks."""
    if not (path / "CURRENT").exists():
        return
    for name in json.loads((path / "CURRENT").read_bytes())["generations"]:
        file = path / "generations" / name / "records.arrow"
        with suppress(FileNotFoundError), file.open("r+b") as data:
            data.seek(file.stat().st_size // 2)
            data.write(b"\xff" * 16)


@pytest.mark.parametrize("is_primary", [True, False], ids=["primary", "follower"])
@pytest.mark.parametrize(
    "damage",
    [damaged_rows, lost_row, damaged_log, damaged_generation],
)
def test_what_goes_bad_on_the_disk_of_a_running_node_is_made_good_again(
    nodes: Nodes, words: CollectionInfo, damage: Callable[[Path], None], is_primary: bool
) -> None:
    primary = int(record_of(nodes, words).primary.node[1:])
    number = primary if is_primary else (primary + 1) % 3
    before = noticed(nodes, number)
    writer = Writer(nodes, words)
    path = directory(nodes, words, number)
    writer.start()
    if damage is not damaged_generation:
        damage(path)

    def is_noticed() -> bool:
        if damage is damaged_generation:
            damage(path)
        return noticed(nodes, number) > before

    wait_until(is_noticed, "damage to be found")
    held = writer.end()
    check_good_again(nodes, words, held)


def lose_without_a_trace(path: Path, id_: str) -> None:
    """Delete a row, and everything by which one replica could know that it was ever there."""
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as db:
        query = "SELECT seq, r.crc, v.crc FROM records r JOIN vectors v USING(seq) WHERE id=?"
        seq, *crcs = db.execute(query, (id_,)).fetchone()
        value = db.execute("SELECT value FROM digests WHERE range=?", (seq // 4096,)).fetchone()[0]
        value = (value - row_hash(seq, *crcs)) & (1 << 64) - 1
        signed = value - (1 << 64) if value >> 63 else value
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE digests SET rows=rows-1, value=? WHERE range=?", (signed, seq // 4096))
        db.execute("DELETE FROM records WHERE seq=?", (seq,))
        db.execute("DELETE FROM vectors WHERE seq=?", (seq,))
        db.execute("UPDATE meta SET value=value-1 WHERE key='live'")
        db.execute("COMMIT")


@pytest.mark.parametrize("is_primary", [True, False], ids=["primary", "follower"])
def test_a_copy_that_only_the_others_can_know_to_be_wrong_is_fetched_again_and_reported(
    nodes: Nodes, client: Client, words: CollectionInfo, is_primary: bool
) -> None:
    primary = int(record_of(nodes, words).primary.node[1:])
    wrong = primary if is_primary else (primary + 1) % 3
    old = next(m for m in record_of(nodes, words).in_sync if m.node == f"n{wrong}")
    nodes.kill(0, 1, 2)
    lose_without_a_trace(directory(nodes, words, wrong), "id-195")
    others = [(wrong + 1) % 3, (wrong + 2) % 3]
    for number in (wrong, others[0]):
        nodes.start(number)

    def is_reported() -> bool:
        return any("differs from others" in issue for issue in nodes.cluster(wrong).get("issues", []))

    wait_until(is_reported, "somebody to say so")  # and nobody is fetched again before a third can tell who is wrong
    nodes.start(others[1])
    wait_until(lambda: is_whole(nodes, words) and old not in record_of(nodes, words).in_sync, "another copy")
    check_good_again(nodes, words, {i: v.tobytes() for i, v in zip(IDS, VECTORS, strict=True)})
    assert anew(nodes, words) == {f"n{wrong}"}
    assert client.get(words.name, "id-195", consistency="strong").id == "id-195"


def anew(nodes: Nodes, words: CollectionInfo) -> set[str]:
    """The nodes whose copies were found to be wrong, and began anew."""
    lines = [json.loads(line) for n in range(3) for line in nodes.log_file(n).read_text().splitlines()]
    uuid = words.details["uuid"]
    return {line["node"] for line in lines if line["event"] == "replica_begins_anew" and line["shard"].startswith(uuid)}
