"""A replica is a dictionary that survives, and every read of it is of one state."""

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.storage import GRAPHS, SMALL, check_holds, clustered, delete, open_alone, opened, spec, upsert, write
from veccluster.decisions.filters import Where, parse
from veccluster.errors import InvalidRequest, Unavailable
from veccluster.model.limits import Limits
from veccluster.model.state import Metric
from veccluster_node.replica.replica import Delete, DeleteWhere, Query, Upsert

IDS = st.sampled_from([f"id{i}" for i in range(12)] + ["ä", "日本", "a\x00b", "z" * 512])
VECTORS = st.lists(st.integers(-3, 3), min_size=4, max_size=4).map(lambda v: np.array(v, np.float32))


class ReplicaAgainstDictionary(RuleBasedStateMachine):
    """Whatever is done to it in whatever order, restarts and builds included, it holds what a dictionary would."""

    @initialize()
    def start(self):
        self.path = Path(tempfile.mkdtemp(dir=self.root))
        self.spec = spec(4, Metric.l2, filterable=("n",))
        self.model = {}
        self.open()

    def open(self):
        self.replica = open_alone(self.path, self.spec, GRAPHS)

    @rule(batch=st.lists(st.tuples(IDS, VECTORS, st.integers(0, 5)), min_size=1, max_size=6))
    def upsert(self, batch):
        ops = [upsert(id_, vector, n=n) for id_, vector, n in batch]
        written = write(self.replica, ops)
        assert written.upserted == len(ops)
        self.model.update({op.id: (np.frombuffer(op.vector, "<f4"), op.metadata) for op in ops})

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, ids):
        assert delete(self.replica, *ids).deleted == len(self.model.keys() & set(ids))
        for id_ in ids:
            self.model.pop(id_, None)

    @rule(n=st.integers(0, 5))
    def delete_where(self, n):
        gone = [i for i, (_, metadata) in self.model.items() if metadata == b'{"n": %d}' % n]
        assert write(self.replica, DeleteWhere(parse({"n": n}, Limits()))).deleted == len(gone)
        for id_ in gone:
            del self.model[id_]

    @rule()
    def restart(self):
        self.replica.close()
        self.open()
        assert self.replica.stats().issues == ()

    @precondition(lambda self: self.model)
    @rule()
    def build(self):
        assert self.replica.build(30)

    @rule(n=st.integers(0, 6), limit=st.integers(1, 5))
    def page(self, n, limit):
        matching = sorted((i for i, (_, m) in self.model.items() if m == b'{"n": %d}' % n), key=str.encode)
        chosen = parse({"n": n}, Limits())
        assert self.replica.count(chosen) == len(matching)
        pages, after = [], None
        while some := self.replica.list_ids(after, limit, chosen):
            pages += some
            after = some[-1]
        assert pages == matching

    @rule(query=VECTORS, k=st.integers(1, 20), exact=st.booleans())
    def search(self, query, k, exact):
        distances = sorted((float(np.square(v - query).sum()), i.encode()) for i, (v, _) in self.model.items())
        hits = self.replica.search(Query(query[None], k, exact=exact))[0]
        assert [(h.distance, h.id.encode()) for h in hits] == distances[:k]

    @invariant()
    def holds_what_the_dictionary_holds(self):
        check_holds(self.replica, self.model)

    def teardown(self):
        if hasattr(self, "replica"):
            self.replica.close()


@pytest.mark.parametrize("examples", [5, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_replica_is_a_dictionary_that_survives(tmp_path, examples):
    machine = type("Machine", (ReplicaAgainstDictionary,), {"root": tmp_path})
    how = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=how)


@pytest.mark.parametrize("rounds", [16, pytest.param(250, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("settings", [SMALL, GRAPHS], ids=["scan", "graph"])
def test_an_id_that_is_replaced_all_the_time_is_in_every_exact_search_once_with_its_own_metadata(
    tmp_path, settings, rounds
):
    """Vector, metadata and version must always be of one write; builds go on meanwhile."""
    ids = [f"id{i}" for i in range(50)]
    stop = threading.Event()

    def version(i, v):
        return upsert(ids[i], [v, i, 0, 0], v=v, i=i)

    def search(replica):
        rounds = 0
        while not stop.is_set():
            query = Query(np.zeros((2, 4), np.float32), 70, exact=rounds % 2 == 0, with_vector=True)
            for hits in replica.search(query):
                assert sorted(h.id for h in hits) == sorted(ids)
                for h in hits:
                    v, i = np.frombuffer(h.vector, "<f4")[:2].astype(int).tolist()
                    assert h.metadata == b'{"v": %d, "i": %d}' % (v, i)
                    assert h.distance == float(v) ** 2 + i**2
                versions = {int(np.frombuffer(h.vector, "<f4")[0]) for h in hits}
                assert max(versions) - min(versions) <= 1, "a batch is seen whole or not at all"
            rounds += 1
        return rounds

    with opened(tmp_path / "s", spec(4), settings) as replica, ThreadPoolExecutor(3) as pool:
        write(replica, [version(i, 0) for i in range(50)])
        readers = [pool.submit(search, replica) for _ in range(2)]
        try:
            for v in range(1, rounds):
                half = range(0, 50, 2) if v % 2 else range(50)
                write(
                    replica,
                    [version(i, v) for i in range(50)] if v % 3 else [version(i, v) for i in (*half, *range(50))],
                )
                if v % 7 == 0:
                    assert replica.build(30)
        finally:
            stop.set()
        assert sum(r.result(30) for r in readers) > 10
        assert replica.stats().live == 50


def test_a_retry_with_the_same_operation_id_is_applied_once_and_answered_alike(tmp_path):
    with opened(tmp_path / "s") as replica:
        first = write(replica, [upsert("a", [1] * 8), Delete("nobody")], "op")
        both = [replica.write([upsert("b", [2] * 8)], op_id="twin", time_ns=1) for _ in range(2)]
        assert [f.result(10).replayed for f in both] == [False, True]
        delete(replica, "a")
        again = write(replica, [upsert("a", [1] * 8)], "op")
        assert (again.first_seq, again.last_seq, again.upserted, again.deleted) == (1, 2, 1, 0)
        assert (first.replayed, again.replayed) == (False, True)
        assert replica.get(["a"]) == [None]
    with opened(tmp_path / "s") as replica:
        assert write(replica, [upsert("a", [1] * 8)], "op").replayed
        nothing = write(replica, DeleteWhere(parse({"n": 1}, Limits())), "where")
        assert nothing.deleted == 0
        write(replica, [upsert("c", [1] * 8, n=1)])
        assert write(replica, DeleteWhere(parse({"n": 1}, Limits())), "where").replayed
        assert replica.count() == 2


def test_a_delete_by_filter_sees_all_that_was_written_before_it_and_nothing_after(tmp_path):
    with opened(tmp_path / "s") as replica:
        one = parse({"n": 1}, Limits())
        futures = [
            replica.write([upsert("before", [1] * 8, n=1)], op_id="1", time_ns=1),
            replica.write(DeleteWhere(one), op_id="2", time_ns=1),
            replica.write([upsert("after", [1] * 8, n=1)], op_id="3", time_ns=1),
        ]
        assert [f.result(10).deleted for f in futures] == [0, 1, 0]
        assert replica.list_ids(None, 9) == ["after"]


@pytest.mark.parametrize(
    ("metric", "vector"),
    [
        (Metric.l2, [np.nan] + [0] * 7),
        (Metric.l2, [np.inf] + [0] * 7),
        (Metric.l2, [3e38] * 8),
        (Metric.cosine, [0] * 8),
        (Metric.dot, [1] * 7),
    ],
)
def test_a_vector_that_no_graph_could_hold_fails_its_batch_and_nothing_else(tmp_path, metric, vector):
    with opened(tmp_path / "s", spec(8, metric), GRAPHS) as replica:
        with pytest.raises(InvalidRequest):
            write(replica, [upsert("good", [1] * 8), upsert("bad", vector)])
        assert replica.count() == 0
        write(replica, [upsert("good", [1] * 8)])
        assert replica.build(30)
        assert replica.count() == 1


def test_a_shard_is_opened_by_one_process_at_a_time(tmp_path):
    at_once = replace(SMALL, lock_timeout=0.0)
    with (
        opened(tmp_path / "s"),
        pytest.raises(Unavailable, match="open in another"),
        opened(tmp_path / "s", None, at_once),
    ):
        pass


def test_equal_distances_are_ordered_by_id_on_every_path(tmp_path):
    with opened(tmp_path / "s", spec(8, Metric.cosine), GRAPHS) as replica:
        names = [f"n{i:03d}" for i in np.random.default_rng(4).permutation(200)]
        write(replica, [upsert(n, [1, 2, 3, 0, 0, 0, 0, 7]) for n in names[:100]])
        assert replica.build(30)
        write(replica, [upsert(n, np.array([1, 2, 3, 0, 0, 0, 0, 7]) * 1.0) for n in names[100:]])
        for exact in (True, False):
            hits = replica.search(Query(np.ones((1, 8), np.float32), 200, exact=exact))[0]
            assert [h.id for h in hits] == sorted(names)
            assert len({h.distance for h in hits}) == 1
        hits = replica.search(Query(np.ones((1, 8), np.float32), 5, exact=True))[0]
        assert [h.id for h in hits] == sorted(names)[:5]


def test_the_log_is_bounded_and_what_was_trimmed_is_still_there(tmp_path):
    bounded = replace(SMALL, max_wal_size=1 << 16, segment_size=1 << 12, limits=SMALL.limits)
    vectors = clustered(3000, 8)
    with opened(tmp_path / "s", spec(8), bounded) as replica:
        for i in range(0, 3000, 50):
            write(replica, [upsert(str(j), vectors[j]) for j in range(i, i + 50)])
        assert replica.build(60)
        write(replica, [upsert("last", vectors[0])])
        assert replica.build(60)
        assert replica.stats().log_bytes < 1 << 17
    with opened(tmp_path / "s", spec(8), bounded) as replica:
        model = {str(j): (vectors[j], b"{}") for j in range(3000)} | {"last": (vectors[0], b"{}")}
        check_holds(replica, model)
        assert replica.stats().issues == ()


def test_upserts_and_their_bytes_come_back_as_they_were_given(tmp_path):
    metadata = '{"a": "\\u0000 é 日本", "n": 12345678901234567890, "x": 1e400}'.encode()
    vector = np.array([1e-3, 3.3333333, -0.0, 7, 8, 9, 1e10, 2], "<f4")
    with opened(tmp_path / "s", spec(8, Metric.cosine), GRAPHS) as replica:
        write(replica, [Upsert("x", vector.tobytes(), metadata)])
        assert replica.build(30)
        (stored,) = replica.get(["x"])
        assert stored.vector == vector.tobytes()
        assert stored.metadata == metadata


def test_filters_that_python_holds_equal_are_not_taken_for_each_other(tmp_path):
    with opened(tmp_path / "s") as replica:
        write(replica, [upsert("one", [1] * 8, n=1), upsert("true", [1] * 8, n=True)])
        query = np.ones((1, 8), np.float32)
        for value, expected in ((1, "one"), (True, "true"), (1, "one")):
            hits = replica.search(Query(query, 5, where=Where.of({"n": value})))[0]
            assert [h.id for h in hits] == [expected]


def test_interval_mode_makes_writes_durable_soon_whether_or_not_more_follow(tmp_path):
    with opened(tmp_path / "s", settings=replace(SMALL, wal_sync="interval", wal_sync_interval=0.02)) as replica:
        write(replica, [upsert("a", [1] * 8)])
        busy = time.monotonic() + 10
        while replica.stats().durable_seq == 0:
            assert time.monotonic() < busy, "it must not wait for a pause"
            write(replica, [upsert("a", [1] * 8)])
        last = write(replica, [upsert("b", [1] * 8)]).last_seq
        while replica.stats().durable_seq < last:
            assert time.monotonic() < busy
            time.sleep(0.005)


def test_every_read_names_the_state_that_it_is_of_also_while_others_write(tmp_path):
    """Each write is the next seq and sets a number to it, so that the number says which state a read is of."""
    with opened(tmp_path, spec(4, Metric.l2, filterable=("n",))) as replica, ThreadPoolExecutor(1) as other:
        vector = np.ones(4, np.float32)
        write(replica, [upsert("a", vector, n=1)])

        def write_on() -> None:
            for n in range(2, 300):
                write(replica, [upsert("a", vector, n=n)])

        writing = other.submit(write_on)
        while not writing.done():
            got = replica.get(["a"])
            assert got[0].metadata == b'{"n": %d}' % got.applied_seq
            seen = replica.applied_seq
            for read in (replica.list_ids(None, 9), replica.count(), replica.search(Query(vector[None], k=1))):
                assert seen <= read.applied_seq and read.epoch == got.epoch
        writing.result()
        assert replica.get(["a"]).applied_seq == replica.count().applied_seq == 299
