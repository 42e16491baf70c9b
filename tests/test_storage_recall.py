"""Graphs find what a full scan finds, for every metric and precision, with and without filters."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.storage import GRAPHS, clustered, opened, recall, spec, truth, upsert, write
from veccluster.decisions.filters import Where
from veccluster.model.state import IndexParameters, Metric, Precision
from veccluster_node.engine import search
from veccluster_node.engine.calibration import TARGET, Calibration, attempts, denser, least, questions
from veccluster_node.engine.generations import read_manifest

N, DIMENSION, QUERIES = 3000, 32, 100


QUICK = [
    (Metric.cosine, Precision.i8),
    (Metric.l2, Precision.f16),
    (Metric.dot, Precision.bf16),
]
SLOW = [pair for pair in product(Metric, Precision) if pair not in QUICK]


@pytest.mark.parametrize(("metric", "precision"), [*QUICK, *(pytest.param(*p, marks=pytest.mark.slow) for p in SLOW)])
def test_recall_at_10_is_at_least_097_at_the_default_settings(tmp_path, metric, precision):
    vectors = clustered(N, DIMENSION, 1, stretched=metric is not Metric.cosine)
    queries = clustered(QUERIES, DIMENSION, 2)
    of = spec(DIMENSION, metric, index=IndexParameters(precision=precision))
    with opened(tmp_path / "s", of, GRAPHS) as replica:
        for start in (0, N // 2):
            rows = range(start, start + N // 2)
            write(replica, [upsert(str(i), vectors[i], n=i) for i in rows])
            assert replica.build(60)
        expected = truth(metric, queries, vectors, 10)
        assert replica.stats().tail == 0
        assert recall(replica, queries, expected) >= 0.97
        assert recall(replica, queries, expected, exact=True) == 1.0


def scattered(n: int, dimension: int, seed: int) -> np.ndarray:
    """Directions that are alone, with lengths that say nothing: under l2 short ones are near to everything."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dimension)) * rng.lognormal(0, 0.5, (n, 1))
    return vectors.astype(np.float32)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("by", "precision"),
    [
        ("graph", Precision.f32),
        ("scan", Precision.i8),
        pytest.param("graph", Precision.i8, marks=pytest.mark.slow),
        pytest.param("scan", Precision.f32, marks=pytest.mark.slow),
    ],
)
def test_recall_holds_on_data_for_which_the_usual_breadth_is_not_enough(tmp_path, monkeypatch, by, precision):
    if by == "graph":
        monkeypatch.setattr(search, "SCAN_FROM", 0)
    vectors, queries = scattered(4000, 48, 1), scattered(100, 48, 2)
    index = IndexParameters(precision=precision)
    with opened(tmp_path / "s", spec(48, Metric.l2, index=index), GRAPHS) as replica:
        for half in (range(2000), range(2000, 4000)):
            write(replica, [upsert(str(i), vectors[i], u=i % 10) for i in half])
            assert replica.build(60)
        expected = truth(Metric.l2, queries, vectors, 10)
        assert recall(replica, queries, expected) >= 0.97
        assert recall(replica, queries, expected, ef=index.ef_search // 2) < 0.95, "what was asked for is what is done"
        most = np.flatnonzero(np.arange(4000) % 10 < 8)
        expected = [[int(most[i]) for i in some] for some in truth(Metric.l2, queries, vectors[most], 10)]
        assert recall(replica, queries, expected, where=Where.of({"u": {"$lt": 8}})) >= 0.97


def test_a_graph_with_too_few_edges_for_the_data_gets_more_and_is_added_to_later(tmp_path):
    vectors, queries = scattered(3000, 48, 1), scattered(100, 48, 2)
    asked = IndexParameters(m=4, ef_construction=16, ef_search=16)
    with opened(tmp_path / "s", spec(48, Metric.l2, index=asked), GRAPHS) as replica:
        for rows in (range(2900), range(2900, 3000)):
            write(replica, [upsert(str(i), vectors[i]) for i in rows])
            assert replica.build(60)
            (directory,) = (p for p in (tmp_path / "s" / "generations").iterdir() if f"-{rows.stop:012d}." in p.name)
            made = read_manifest(directory).graph
            assert made
            assert (made.parameters, made.entries) == (denser(asked), rows.stop)
        assert recall(replica, queries, truth(Metric.l2, queries, vectors, 10)) >= 0.97


@given(st.floats(0.5, 1), st.floats(0, 0.1), st.sampled_from([4.0, 6.0, 16.0]))
def test_the_least_breadth_that_finds_enough_is_chosen_or_the_largest_there_is(at_once, more, most):
    def found(breadth: float) -> float:
        return min(1.0, at_once + more * (breadth - 1))

    chosen = least(found, most)
    assert chosen.recall == found(chosen.breadth)
    assert chosen.breadth <= most
    assert chosen.recall >= TARGET or chosen.breadth == most
    assert chosen.breadth == 1 or found(1.0) < TARGET


@given(
    st.sampled_from([None, IndexParameters(), denser(IndexParameters())]),
    st.builds(Calibration, st.floats(1, 16), st.none() | st.floats(0, 1)),
    st.floats(0, 1),
)
def test_a_graph_that_is_as_good_as_the_old_one_is_added_to_and_some_attempt_always_succeeds(old, before, recall):
    ways = list(attempts(IndexParameters(), old and (old, before)))
    assert ways[-1].succeeds(Calibration(16, recall))
    assert [way.extend for way in ways] == [i == 0 and old is not None for i in range(len(ways))]
    if old:
        assert ways[0].parameters == old
        assert ways[0].succeeds(before)


def test_vectors_are_told_apart_from_what_was_asked_about_them():
    """Questions are never their own answers, nor most of what a graph is made of."""
    for new, rows in ((10, 10), (100, 100), (5000, 5000), (300, 2_000_000)):
        held = questions(np.arange(rows - new, rows), rows)
        assert len(held) <= new // 4
        assert len(set(held.tolist())) == len(held)
        assert not len(held) or held.min() >= rows - new


@pytest.mark.e2e
@pytest.mark.parametrize("metric", [Metric.l2, *(pytest.param(m, marks=pytest.mark.slow) for m in ("cosine", "dot"))])
def test_a_filter_never_costs_recall_whatever_its_selectivity_and_correlation(tmp_path, metric):
    metric = Metric(metric)
    vectors = clustered(N, DIMENSION, 1)
    queries = clustered(40, DIMENSION, 2)
    near = np.argsort(np.linalg.norm(vectors - queries[0], axis=1)).argsort()
    with opened(tmp_path / "s", spec(DIMENSION, metric, filterable=("n",)), GRAPHS) as replica:
        write(replica, [upsert(str(i), vectors[i], n=int(near[i]), u=i % 1000) for i in range(N - 500)])
        assert replica.build(60)
        write(replica, [upsert(str(i), vectors[i], n=int(near[i]), u=i % 1000) for i in range(N - 500, N)])
        plain = recall(replica, queries, truth(metric, queries, vectors, 10))
        uncorrelated = [({"u": {"$lt": share}}, np.arange(N) % 1000 < share) for share in (500, 100, 10, 1)]
        correlated = [({"n": {"$lt": rows}}, near < rows) for rows in (30, 300, 1500)]
        against = [({"n": {"$gte": N - rows}}, near >= N - rows) for rows in (30, 300, 1500)]
        for text, matching in uncorrelated + correlated + against:
            rows = np.flatnonzero(matching)
            k = min(10, len(rows))
            expected = [[int(rows[i]) for i in some] for some in truth(metric, queries, vectors[rows], k)]
            found = recall(replica, queries, expected, where=Where.of(text))
            assert found >= min(plain, 0.99), (text, found, plain)
