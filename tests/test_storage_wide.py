"""Searches for many neighbours find as much of them as searches for ten; equal vectors hide nothing and cost little."""

import msgspec
import numpy as np
import pytest

from support.storage import GRAPHS, SMALL, delete, opened, recall, spec, truth, upsert, write
from veccluster.decisions.filters import Where
from veccluster.model.state import IndexParameters, Metric, Precision
from veccluster_node.engine import search
from veccluster_node.engine.calibration import Calibration, Wider, attempts
from veccluster_node.engine.distance import exact
from veccluster_node.engine.generations import MANIFEST, Manifest, read_manifest
from veccluster_node.engine.graph import Draft
from veccluster_node.engine.twins import first_equals, twins_of
from veccluster_node.replica.replica import Query


def uneven(n: int, dimension: int, seed: int, *, by: float = 1.5) -> np.ndarray:
    """Directions that are alone, with lengths over several powers of ten, or less."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dimension)) * rng.lognormal(0, by, (n, 1))).astype(np.float32)


def load(replica, vectors, first=0):
    for start in range(0, len(vectors), 1000):
        some = vectors[start : start + 1000]
        write(replica, [upsert(str(first + start + i), v, u=(first + start + i) % 10) for i, v in enumerate(some)])


@pytest.mark.parametrize(
    ("metric", "precision"),
    [
        pytest.param(Metric.dot, Precision.f32, marks=pytest.mark.slow),
        pytest.param(Metric.dot, Precision.i8, marks=pytest.mark.slow),
        pytest.param(Metric.dot, Precision.bf16, marks=pytest.mark.slow),
        pytest.param(Metric.cosine, Precision.f32, marks=pytest.mark.slow),
        pytest.param(Metric.l2, Precision.f32, marks=pytest.mark.slow),
        pytest.param(Metric.l2, Precision.i8, marks=pytest.mark.slow),
    ],
)
def test_recall_does_not_fall_with_k(tmp_path, metric, precision):
    """Through additions, with a tail behind them, under a filter, and whatever `ef` says."""
    by = 1.5 if metric is Metric.dot else 0.5
    vectors, queries = uneven(2000, 24, 1, by=by), uneven(20, 24, 2, by=by)
    of = spec(24, metric, index=IndexParameters(m=8, ef_construction=64, precision=precision))
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        for part in (slice(0, 1200), slice(1200, 1800)):
            load(replica, vectors[part], part.start)
            assert replica.build(60)
        load(replica, vectors[1800:], 1800)
        most = np.flatnonzero(np.arange(2000) % 10 < 8)
        for k in (10, 100, 400, 1500):
            assert recall(replica, queries, truth(metric, queries, vectors, k)) >= 0.97, k
            expected = [[int(most[i]) for i in some] for some in truth(metric, queries, vectors[most], k)]
            assert recall(replica, queries, expected, where=Where.of({"u": {"$lt": 8}})) >= 0.97, k


def test_a_graph_alone_finds_what_is_far_under_dot_when_the_shortest_went_in_first(tmp_path, monkeypatch):
    vectors, queries = uneven(3000, 24, 1), uneven(20, 24, 2)
    with opened(tmp_path / "s", spec(24, Metric.dot), GRAPHS) as replica:
        load(replica, vectors)
        assert replica.build(60)
        monkeypatch.setattr(search._Search, "_scan", None)
        for k in (10, 100, 600):
            assert recall(replica, queries, truth(Metric.dot, queries, vectors, k)) >= 0.97, k


def test_where_a_graph_cannot_reach_everything_is_looked_at(tmp_path, monkeypatch):
    """Graphs that were made in any order, as they used to be."""
    vectors, queries = uneven(3000, 24, 1), uneven(20, 24, 2)
    monkeypatch.setattr(Draft, "add", _in_any_order)
    of = spec(24, Metric.dot)
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        load(replica, vectors)
        _build_here(replica, tmp_path / "s", monkeypatch)
        assert recall(replica, queries, truth(Metric.dot, queries, vectors, 10)) >= 0.97
        assert recall(replica, queries, truth(Metric.dot, queries, vectors, 600), ef=1000) >= 0.97
        assert recall(replica, queries, truth(Metric.dot, queries, vectors, 600)) >= 0.97
    (manifest,) = (tmp_path / "s" / "generations").glob("*/" + MANIFEST)
    made = read_manifest(manifest.parent)
    assert made.graph
    assert made.graph.calibration.wider[-1].recall < 0.97
    # a generation from before more than ten was measured is still read, and not believed beyond
    older = msgspec.structs.replace(made.graph.calibration, wider=(), made_of=0)
    manifest.write_bytes(msgspec.json.encode(_with(made, older)))
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        assert recall(replica, queries, truth(Metric.dot, queries, vectors, 600)) >= 0.97


def _with(made: Manifest, calibration: Calibration) -> Manifest:
    assert made.graph
    return msgspec.structs.replace(made, graph=msgspec.structs.replace(made.graph, calibration=calibration))


def _in_any_order(self, rows, which):
    for i in range(0, len(which), 1000):
        block = which[i : i + 1000]
        self._index.add(rows.seqs[block], self.encoding.stored(rows.vectors[block], rows.lengths[block]))


def _build_here(replica, path, monkeypatch):
    """Build in this process, where what was replaced is."""
    from veccluster_node.engine import build
    from veccluster_node.replica import builder

    class Here(build.Child):
        def run(self) -> None:
            build.run(self._job)

    monkeypatch.setattr(builder, "Child", Here)
    assert replica.build(60)


def test_an_addition_that_loses_what_is_far_is_kept_until_the_graph_has_grown_by_a_quarter():
    lost = Calibration(1.0, 0.99, (Wider(100, 1.0, 0.99), Wider(1000, 1.0, 0.9)), made_of=1000)
    for entries, keeps in ((1250, True), (1251, False)):
        first, *others = attempts(IndexParameters(), (IndexParameters(), lost), entries)
        assert (first.extend, first.succeeds(lost)) == (True, keeps)
        assert others[0].succeeds(lost)
    assert lost.reaches(Metric.l2) == ((10, 1.0), (100, 1.0), (1000, None))
    assert Calibration(2.0, 0.99).reaches(Metric.cosine)[-1] == (1 << 62, 2.0)
    assert Calibration(2.0, 0.99).reaches(Metric.dot) == ((10, 2.0),)


# -- equal vectors


@pytest.mark.parametrize("metric", [Metric.l2, *(pytest.param(m, marks=pytest.mark.slow) for m in ("cosine", "dot"))])
def test_many_equal_vectors_hide_nothing_in_a_graph(tmp_path, monkeypatch, metric):
    metric = Metric(metric)
    rng = np.random.default_rng(1)
    others, queries = (rng.standard_normal((n, 24)).astype(np.float32) for n in (1000, 20))
    equal = np.repeat(rng.standard_normal((1, 24)).astype(np.float32), 1500, axis=0)
    vectors = np.concatenate([others, equal])[order := rng.permutation(2500)]
    (twins,) = np.nonzero(order >= 1000)
    with opened(tmp_path / "s", spec(24, metric), GRAPHS) as replica:
        for part in (slice(0, 1600), slice(1600, 2500)):
            load(replica, vectors[part], part.start)
            assert replica.build(60)
        (newest,) = (tmp_path / "s" / "generations").glob("*-000000002500.*")
        made = read_manifest(newest)
        assert made.graph
        assert (made.format, made.rows, made.graph.entries) == (2, 2500, 1001)
        delete(replica, str(twins[0]))  # whom the graph holds
        monkeypatch.setattr(search._Search, "_scan", None)
        alive = np.setdiff1d(np.arange(2500), twins[:1])
        far = [np.sort(exact(metric, query, vectors[alive]))[9] for query in queries]
        near = [
            sum(h.distance <= f for h in hits) for hits, f in zip(replica.search(Query(queries, 10)), far, strict=True)
        ]
        assert sum(near) >= 0.97 * 10 * len(queries)
        hits = replica.search(Query(equal[:1], 50))[0]
        assert len({h.id for h in hits} & {str(i) for i in twins[1:]}) == 50 or metric is Metric.dot
        assert len({h.distance for h in hits}) == 1 or metric is Metric.dot


def test_of_equal_vectors_the_first_by_id_are_answered_by_scans(tmp_path, monkeypatch):
    """In a generation and in the tail, however the queries and what waits are cut."""
    rng = np.random.default_rng(1)
    few = rng.integers(-1, 2, (6, 8)).astype(np.float32)
    few[5] = 0
    which = rng.integers(0, 6, 900)
    ids = [f"{i:x}é" for i in rng.permutation(900)]
    with opened(tmp_path / "s", spec(8, Metric.l2), SMALL) as replica:
        for part in (range(600), range(600, 900)):
            write(replica, [upsert(ids[i], few[which[i]], n=i % 2) for i in part])
            if part.start == 0:
                assert replica.build(60)
        delete(replica, *(gone := sorted(ids)[:100]))
        alive = [i for i in range(900) if ids[i] not in set(gone)]
        for kept, queries in ((1 << 21, 64), (200, 3)):
            monkeypatch.setattr(search, "_KEPT", kept)
            monkeypatch.setattr(search, "_QUERIES", queries)
            for text, rows in ((None, alive), ({"n": 1}, [i for i in alive if i % 2])):
                where = Where.of(text) if text else None
                for k in (1, 7, 250):
                    for query, hits in zip(few, replica.search(Query(few, k, where, exact=True)), strict=True):
                        far = [(float(np.square(few[which[i]] - query).sum()), ids[i].encode()) for i in rows]
                        assert [(h.distance, h.id.encode()) for h in hits] == sorted(far)[:k]


def test_equal_vectors_cost_no_more_rows_and_little_more_memory_than_others(tmp_path, monkeypatch):
    read, kept = [], []
    vectors = np.zeros((6000, 8), np.float32)
    with opened(tmp_path / "s", spec(8, Metric.dot), SMALL) as replica:
        load(replica, vectors)
        rows = search.Snapshot.rows
        monkeypatch.setattr(search.Snapshot, "rows", lambda self, seqs: read.append(len(seqs)) or rows(self, seqs))
        monkeypatch.setattr(search._Search, "_settle", _noting(kept, search._Search._settle))
        monkeypatch.setattr(search, "_KEPT", 50_000)
        hits = replica.search(Query(np.ones((200, 8), np.float32), 10, exact=True))
    assert [h.id for h in hits[0]] == sorted(map(str, range(6000)))[:10]
    assert all([h.id for h in some] == [h.id for h in hits[0]] for some in hits)
    assert read == [10]
    assert max(kept) <= 50_000 + 4096


def _noting(kept, settle):
    def noted(self, queries):
        kept.append(sum(len(s) for c in self.found for s in c.seqs))
        settle(self, queries)

    return noted


def test_rows_that_a_graph_does_not_hold_have_an_equal_one_that_it_holds():
    rng = np.random.default_rng(3)
    for most in (1, 3):
        stored = rng.integers(-most, most + 1, (500, 4)).astype(np.float32)
        stored[stored == 0] *= rng.choice([-1, 1], np.count_nonzero(stored == 0))
        firsts = first_equals(lambda rows, stored=stored: stored[rows], len(stored))
        assert [int(i) for i in firsts] == [int(np.flatnonzero((stored == row).all(axis=1))[0]) for row in stored]
        held = rng.random(500) < 0.3
        twins = twins_of(firsts, held)
        assert not held[twins.rows].any()
        assert (stored[twins.of] == stored[twins.rows]).all()
        inside = np.setdiff1d(np.arange(500), twins.rows)
        assert len(np.unique(stored[inside], axis=0)) == len(np.unique(stored, axis=0))
        assert sorted(twins.among(inside, 500).tolist()) == list(range(500))
        assert twins.among(inside, 1).tolist() == [
            row for of in inside for row in (of, *twins.rows[twins.of == of][:1])
        ]
