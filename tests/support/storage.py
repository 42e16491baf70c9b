"""What tests of storage share: small replicas, vectors with structure, and truth by full scan in float64."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from veccluster.decisions.generations import GenerationLimits
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Decision
from veccluster.decisions.replication.messages import Header, Message
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import Epoch, Incarnation, IndexParameters, Member, Metric, NodeId, Revision, ShardId
from veccluster_node.replica.maintenance import Maintenance
from veccluster_node.replica.pool import LoopPool
from veccluster_node.replica.replica import Query, Replica, ReplicaSpec, StorageSettings
from veccluster_node.wal.operations import Delete, DeleteWhere, Op, Upsert, Written

SMALL = StorageSettings(
    segment_size=1 << 16,
    reserve=1 << 12,
    build_retry=0.05,
    limits=GenerationLimits(tail_rows=10**9, tail_seconds=1e9, graph_rows=10**9),
)
"""Nothing is built unless a test asks for it, and then without a graph."""
GRAPHS = replace(SMALL, limits=replace(SMALL.limits, graph_rows=1))
"""As SMALL, but whatever is built has a graph."""

POOL, MAINTENANCE = LoopPool(), Maintenance()

_op_ids = count()


def spec(dimension: int = 8, metric: Metric = Metric.l2, **more: object) -> ReplicaSpec:
    """A shard's description."""
    return ReplicaSpec(ShardId("c0ffee", 0), dimension, metric, **more)  # type: ignore[arg-type]


def exact_parameters(**more: object) -> IndexParameters:
    """Parameters with which a small graph finds everything."""
    return IndexParameters(m=32, ef_construction=200, ef_search=200, **more)  # type: ignore[arg-type]


@contextmanager
def opened(path: Path, of: ReplicaSpec | None = None, settings: StorageSettings = SMALL) -> Iterator[Replica]:
    """An open replica."""
    replica = open_alone(path, of or spec(), settings)
    try:
        yield replica
    finally:
        replica.close()


ME = Member(NodeId("n0"), Incarnation("disk"))


class Alone:
    """The surroundings of the only replica of a shard: etcd agrees at once, and nobody else is there."""

    beats = None

    def __init__(self) -> None:
        self.now = Configuration(Epoch(0), ME, frozenset({ME}), revision=Revision(1))
        self.replica: Replica | None = None
        self.changes = threading.Semaphore(0)

    def show(self, replica: Replica) -> None:
        """Show it its configuration, and wait until it serves."""
        self.replica = replica
        replica.feed(on.Seen(self.now))
        while replica.standing.serving is None:
            assert self.changes.acquire(timeout=30)

    def swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        assert self.replica
        self.now = replace(target, revision=Revision(expected + 1))
        self.replica.feed(on.Answered(target, on.Outcome.swapped, self.now))

    def changed(self, shard: ShardId) -> None:
        self.changes.release()

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        raise AssertionError("there is nobody else")

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        raise AssertionError("there is nobody else")

    def has_ended(self, to: Member) -> bool:
        raise AssertionError("there is nobody else")

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        raise AssertionError("there is nobody else")

    def reaches_etcd(self) -> bool:
        return True

    def read_configuration(self, shard: ShardId) -> None:
        pass

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        pass


def open_alone(path: Path, of: ReplicaSpec, settings: StorageSettings) -> Replica:
    """Open the only replica of a shard, and wait until it serves."""
    alone = Alone()
    replica = Replica.open(path, of, settings, maintenance=MAINTENANCE, me=ME, surroundings=alone, pool=POOL)
    alone.show(replica)
    return replica


def upsert(id_: str, vector: Sequence[float] | np.ndarray, **metadata: object) -> Upsert:
    """An upsert as the node makes it."""
    return Upsert(id_, np.asarray(vector, "<f4").tobytes(), json.dumps(metadata).encode())


def write(replica: Replica, ops: Sequence[Op] | DeleteWhere, op_id: str | None = None) -> Written:
    """Write and wait."""
    name = op_id or f"op-{next(_op_ids)}"
    return replica.write(ops, op_id=name, time_ns=1).result(30)


def delete(replica: Replica, *ids: str) -> Written:
    """Delete and wait."""
    return write(replica, [Delete(i) for i in ids])


def clustered(n: int, dimension: int, seed: int = 0, *, stretched: bool = False) -> np.ndarray:
    """Vectors (n, dimension) around a few dozen centres; `stretched` gives them lengths that vary tenfold."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dimension))
    vectors = centres[rng.integers(0, 40, n)] + 0.6 * rng.standard_normal((n, dimension))
    if stretched:
        vectors *= rng.lognormal(0, 0.8, (n, 1))
    return vectors.astype(np.float32)


def truth(metric: Metric, queries: np.ndarray, vectors: np.ndarray, k: int) -> list[list[int]]:
    """Rows of the k nearest of each query, by full scan in float64."""
    q, x = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.cosine:
        q, x = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (q, x))
    far = -(q @ x.T)
    if metric is Metric.l2:
        far = 2 * far + np.square(x).sum(axis=1)[None, :]
    return np.argsort(far, axis=1, kind="stable")[:, :k].tolist()


def recall(replica: Replica, queries: np.ndarray, expected: Sequence[Sequence[int]], **how: object) -> float:
    """The part of the expected rows (ids are str(row)) that a search finds."""
    k = len(expected[0])
    hits = replica.search(Query(queries, k, **how))  # type: ignore[arg-type]
    found = [{int(h.id) for h in some} & set(rows) for some, rows in zip(hits, expected, strict=True)]
    return sum(map(len, found)) / sum(map(len, expected))


def check_holds(replica: Replica, model: Mapping[str, tuple[np.ndarray, bytes]]) -> None:
    """The replica holds exactly what `model` (id to vector and metadata) says, whichever way one asks."""
    ids = sorted(model, key=str.encode)
    assert replica.count() == len(model)
    assert replica.list_ids(None, len(model) + 1) == ids
    for id_, stored in zip(ids, replica.get(ids), strict=True):
        assert stored is not None, id_
        assert (stored.id, stored.metadata) == (id_, model[id_][1])
        assert np.array_equal(np.frombuffer(stored.vector, "<f4"), model[id_][0]), id_
    probe = np.zeros((1, replica.spec.dimension), np.float32)
    hits = replica.search(Query(probe, len(model) + 1, exact=True, with_vector=True))[0]
    assert sorted((h.id for h in hits), key=str.encode) == ids
    for hit in hits:
        assert hit.vector is not None
        assert np.array_equal(np.frombuffer(hit.vector, "<f4"), model[hit.id][0])
        assert hit.metadata == model[hit.id][1]
