"""A power cut while somebody reads: SQLite syncs nothing then, although the log is cut, since generations hold all.

The reader is this process: it holds a read transaction on the rows of every replica of a node, as a long query does,
while so much is written that generations are built and the log is cut. What was acknowledged is counted afterwards.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from chaos.machines import Node, until

if TYPE_CHECKING:
    from chaos.nemeses import Scene

SPEC = {"tuning": {"maxTail": 100, "maxWALSize": "16Mi", "queryTimeout": "5s"}}
"""Small generations, and segments of the log of 2 MiB, so that it is cut often."""
COLLECTION = "checkpoint"
DIMENSION = 8
BATCH = 200
TEXT = "x" * 4096
ATTEMPT = 15.0
PATIENCE = 90.0


class Rows:
    """Rows of one round, and how many of them were acknowledged."""

    def __init__(self, scene: "Scene") -> None:
        self._scene = scene
        self.round = scene.chance.getrandbits(48)
        self.asked = self.acknowledged = 0

    def write(self, batches: int) -> None:
        """Store some more, through nodes in turn; what gets no answer may show or not."""
        for _ in range(batches):
            rows = range(self.asked, self.asked + BATCH)
            body = {
                "vectors": [
                    {"id": f"{self.round}-{n}", "vector": [n + 1.0] * DIMENSION, "metadata": _said(self.round)}
                    for n in rows
                ]
            }
            self.asked += BATCH
            if self._ask("/vectors", body) is not None:
                self.acknowledged += BATCH

    def count(self) -> int | None:
        """How many there are; None when nobody can tell."""
        reply = self._ask("/count", {"filter": {"round": self.round}, "consistency": "strong"})
        return int(reply["count"]) if reply is not None else None

    def _ask(self, path: str, body: object) -> dict[str, Any] | None:
        node = self._scene.chance.choice(self._scene.cluster.nodes)
        try:
            reply = requests.post(f"{node.url}/v1/collections/{COLLECTION}{path}", json=body, timeout=ATTEMPT)
        except requests.RequestException:
            return None
        if 400 <= reply.status_code < 500:
            raise AssertionError(f"{path} was answered {reply.status_code}: {reply.text[:500]}")
        return reply.json() if reply.ok else None


def _said(number: int) -> dict[str, object]:
    return {"round": number, "text": TEXT}


def checkpoint(scene: "Scene") -> None:
    """Rows are read while they are written and the log is cut; then nodes lose their power."""
    _create(scene)
    rows = Rows(scene)
    rows.write(2)
    with scene.nodes(scene.chance.choice([1, scene.cluster.size, scene.cluster.size])) as nodes:
        with _read(nodes):
            before = _first_seqs(nodes)
            deadline = time.monotonic() + PATIENCE
            while not (cut := _cut(before, _first_seqs(nodes))) and time.monotonic() < deadline:
                rows.write(2)
            scene.did(
                f"power cut of {'+'.join(n.name for n in nodes)} under readers, {cut} of {len(before)} logs were cut"
            )
            for node in nodes:
                node.stop()
            for node in nodes:
                node.host.heal()
        for node in nodes:
            node.lose_power()
        scene.rest(0, 3)
        for node in nodes:
            node.start()
    _judge(scene, rows)


def _judge(scene: "Scene", rows: Rows) -> None:
    """Whether everything acknowledged is there, as soon as somebody can tell."""
    found: list[int] = []

    def known() -> bool:
        if (count := rows.count()) is not None:
            found.append(count)
        return bool(found)

    until(known, scene.cluster.complaints, PATIENCE)
    if not rows.acknowledged <= found[-1] <= rows.asked:
        scene.did(f"BROKEN checkpoint: {found[-1]} rows of {rows.acknowledged} acknowledged, {rows.asked} asked for")


def _create(scene: "Scene") -> None:
    body = {"dimension": DIMENSION, "metric": "l2", "filterable": ["round"], "shards": 1}

    def made() -> bool:
        url = scene.chance.choice(scene.cluster.urls) + f"/v1/collections/{COLLECTION}"
        try:
            return requests.put(url, json=body, timeout=ATTEMPT).status_code in (200, 201)
        except requests.RequestException:
            return False

    until(made, scene.cluster.complaints, PATIENCE)


@contextmanager
def _read(nodes: Sequence[Node]) -> Iterator[None]:
    """See the rows of these nodes' replicas as they are now, so that no checkpoint ends."""
    with ExitStack() as readers:
        for path in (p for node in nodes for p in _shards(node)):
            db = readers.enter_context(closing(sqlite3.connect(f"file:{path}/records.sqlite?mode=ro", uri=True)))
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM meta").fetchone()
        yield


def _shards(node: Node) -> list[Path]:
    return sorted(p.parent for p in (node.disk.path / "data" / "shards").glob("*/records.sqlite"))


def _first_seqs(nodes: Sequence[Node]) -> dict[Path, str]:
    """Where each log begins."""
    logs = {path: sorted(p.name for p in path.glob("log/*.log")) for node in nodes for path in _shards(node)}
    return {path: found[0] for path, found in logs.items() if found}


def _cut(before: dict[Path, str], after: dict[Path, str]) -> int:
    return sum(after.get(path, first) > first for path, first in before.items())
