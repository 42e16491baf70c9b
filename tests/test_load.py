"""Load: slow reads leave room for cheap ones and for other clients, and end when nobody waits for them any more."""

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.peers import SECRET, End
from support.replicas import UUID, FakeCluster
from support.storage import GRAPHS, exact_parameters, opened, spec, upsert, write
from veccluster.decisions import filters
from veccluster.decisions.filters import Where
from veccluster.decisions.shares import Turns
from veccluster.errors import ShardsUnavailable, Unavailable
from veccluster.model.state import Node, NodeId, ReadConsistency, ShardId
from veccluster_node.coordinator.coordinator import Reading
from veccluster_node.engine.stopping import Abandoned, Stop
from veccluster_node.http.abandoned import only_looks
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.peer.proofs import Secret
from veccluster_node.replica.replica import Delete, DeleteWhere, Query
from veccluster_node.service import shard_service as s
from veccluster_node.shards.lanes import Lane, Lanes

SOON = 5.0
"""Seconds that a test waits for what takes a tenth of one on a machine that does nothing else."""

# ---- whose turn it is


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, 9)), max_size=25),
)
def test_nobody_gets_more_than_a_share_and_nothing_waits_that_could_go(most: int, share: int, steps: list) -> None:
    share = min(most, share)
    turns: Turns[tuple[str, int]] = Turns(most, share)
    waiting: Counter[str] = Counter()
    under_way: list[str] = []
    for number, step in enumerate(steps):
        if isinstance(step, str):
            turns.ask(step, (step, number))
            waiting[step] += 1
        elif under_way:
            turns.end(under_way.pop(step % len(under_way)))
        for source, _ in turns.begin():
            waiting[source] -= 1
            under_way.append(source)
        counts = Counter(under_way)
        assert len(under_way) == turns.under_way <= most
        assert all(count <= share for count in counts.values())
        if len(under_way) < most:
            assert all(counts[source] == share for source, count in waiting.items() if count)


def test_sources_are_served_in_turn_however_much_one_of_them_asks_for() -> None:
    turns: Turns[str] = Turns(1, 1)
    for number in range(5):
        turns.ask("greedy", f"greedy {number}")
    assert list(turns.begin()) == ["greedy 0"]
    turns.ask("modest", "modest 0")
    order = []
    for _ in range(4):
        turns.end(order[-1].split()[0] if order else "greedy")
        order += turns.begin()
    assert order == ["greedy 1", "modest 0", "greedy 2", "greedy 3"]


def test_what_is_withdrawn_is_never_begun() -> None:
    turns: Turns[str] = Turns(1, 1)
    for work in ("first", "second", "third"):
        turns.ask("a", work)
    assert list(turns.begin()) == ["first"]
    assert turns.withdraw("a", "second")
    assert not turns.withdraw("a", "first")
    turns.end("a")
    assert (list(turns.begin()), turns.waiting) == (["third"], 0)


# ---- threads


async def test_work_of_one_source_leaves_threads_to_others() -> None:
    lane, go = Lane("test", 2, share=1), threading.Event()
    try:
        greedy = [asyncio.create_task(lane.run(lambda _: go.wait(30), "greedy")) for _ in range(5)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(lane.run(lambda _: "served", "modest"), 30) == "served"
        assert not any(task.done() for task in greedy)
    finally:
        go.set()
    assert await asyncio.gather(*greedy) == [True] * 5
    lane.shut_down()


async def test_work_that_nobody_waits_for_is_told_to_stop_or_not_even_begun() -> None:
    lane, begun, told, later = Lane("test", 1), threading.Event(), threading.Event(), []

    def endless(stop: Stop) -> None:
        begun.set()
        try:
            while True:
                stop.check()
                time.sleep(0.001)
        finally:
            told.set()

    first = asyncio.create_task(lane.run(endless))
    second = asyncio.create_task(lane.run(lambda _: later.append("begun")))
    await asyncio.to_thread(begun.wait, 30)
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert second.cancelled()
    assert await asyncio.wait_for(lane.run(lambda _: "free again"), 30) == "free again"
    assert told.is_set()
    assert later == []
    lane.shut_down()
    with pytest.raises(Unavailable, match="stopping"):
        await lane.run(lambda _: None)


async def test_reads_that_are_slow_leave_threads_to_cheap_ones_and_to_opening_closing_and_deleting() -> None:
    lanes, go = Lanes(1), threading.Event()
    try:
        slow = [asyncio.create_task(lanes.slow.run(lambda _: go.wait(30), f"client {n}")) for n in range(20)]
        for lane in (lanes.quick, lanes.opening, lanes.closing, lanes.deleting):
            assert await asyncio.wait_for(lane.run(lambda _: "done"), 30) == "done"
    finally:
        go.set()
    await asyncio.gather(*slow)
    lanes.shut_down()


# ---- what is stopped


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A replica whose slowest reads take many seconds."""
    with opened(tmp_path_factory.mktemp("large") / "s", spec(64, index=exact_parameters()), GRAPHS) as replica:
        vectors = np.random.default_rng(0).standard_normal((4000, 64)).astype("f4")
        rows = [upsert(f"id-{n}", v, text="x" * 1000, **{'a"b': n}) for n, v in enumerate(vectors)]
        write(replica, rows)
        replica.vectors = vectors
        yield replica


SLOW = Where.of({"$or": [{'a"b': -1 - n} for n in range(200)]})
"""Only a function of ours can look at a key with a quotation mark in it: some 10 s for 4,000 rows."""


def slow_reads(large, stop: Stop) -> dict[str, Callable[[], object]]:
    many = large.vectors[:1000]
    return {
        "count": lambda: large.count(SLOW.filter, stop),
        "list": lambda: large.list_ids(None, 10, SLOW.filter, stop),
        "filtered search": lambda: large.search(Query(large.vectors[:10], 10, where=SLOW), stop),
        "exact search": lambda: large.search(Query(many, 1000, exact=True), stop),
    }


def work_after_the_stop(large, what: str) -> float:
    """Seconds of a processor that a reading thread uses from when it is told to stop until it has."""
    stop, clock = Stop(), Future[int]()

    def read() -> float:
        clock.set_result(time.pthread_getcpuclockid(threading.get_ident()))
        with pytest.raises(Abandoned):
            slow_reads(large, stop)[what]()
        return time.thread_time()

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read)
        used = clock.result(30)
        with pytest.raises(TimeoutError):
            reading.result(0.2)
        told = time.clock_gettime(used)
        stop.tell()
        return reading.result(60) - told


@pytest.mark.parametrize("what", ["count", "list", "filtered search", "exact search"])
def test_a_read_that_nobody_waits_for_any_more_stops_within_100_ms(large, what) -> None:
    """Of its own time: how long others have the processor meanwhile is not the product's affair."""
    assert statistics.median(work_after_the_stop(large, what) for _ in range(5)) <= 0.1
    assert large.count() == 4000, "its connection is good for the next"
    assert len(large.search(Query(large.vectors[:1], 3, where=Where.of({"$id": "id-0"})))[0]) == 1


def test_a_read_that_was_given_up_before_it_began_does_nothing(large) -> None:
    stop = Stop()
    stop.tell()
    with pytest.raises(Abandoned):
        large.get(["id-0"], stop)


def test_a_delete_by_filter_deletes_what_matches_by_its_turn_whatever_was_found_before(tmp_path) -> None:
    pear, plum = filters.parse({"kind": "pear"}), {"kind": "plum"}
    with opened(tmp_path / "s") as replica:
        write(
            replica, [upsert(i, [1] * 8, kind="pear") for i in ("stays a pear", "becomes a plum", "goes", "comes back")]
        )
        write(replica, [upsert("becomes a pear", [1] * 8, **plum), upsert("stays a plum", [1] * 8, **plum)])
        looked = replica.look(pear)
        write(replica, [Delete("goes"), Delete("comes back"), upsert("becomes a plum", [2] * 8, **plum)])
        write(replica, [upsert(i, [2] * 8, kind="pear") for i in ("becomes a pear", "new", "comes back")])
        assert write(replica, DeleteWhere(pear, looked)).deleted == 4
        assert list(replica.list_ids(None, 10)) == ["becomes a plum", "stays a plum"]


# ---- a replica that was closed


@pytest.mark.parametrize("used_before", [False, True])
def test_a_replica_that_was_closed_answers_no_more_whatever_is_at_its_path_by_then(tmp_path, used_before) -> None:
    path = tmp_path / "s"
    with opened(path) as closed:
        write(closed, [upsert("a", [1] * 8)])
        if used_before:
            assert closed.get(["a"])[0] is not None
    path.rename(tmp_path / "elsewhere")
    with opened(path) as other:
        write(other, [upsert("b", [1] * 8)])
        query = Query(np.ones((1, 8), "f4"), 1)
        reads = [
            lambda: closed.get(["a"]),
            lambda: closed.count(),
            lambda: closed.list_ids(None, 10),
            lambda: closed.search(query),
            lambda: closed.showing(),
        ]
        for read in reads:
            with pytest.raises(ShardsUnavailable, match="closed"):
                read()
        assert other.count() == 1


# ---- from node to node

CLIENT = NodeId("client")


@pytest.fixture
def members():
    return {CLIENT: Node(id=CLIENT, address="", peer_address="", proves_itself=True)}


@pytest.fixture
async def peers(members):
    made = Peers(CLIENT, None, lambda: members, Secret(SECRET))
    yield made
    await made.close()


COUNT = m.Count(collection=UUID, shards=[0], filter=b"{}", at_least={})


@pytest.mark.parametrize(
    ("request_", "is_stopped"),
    [(COUNT, True), (m.DeleteIds(shard=ShardId(UUID, 0), op_id="o", ids=["a"]), False)],
    ids=["a read", "a write"],
)
async def test_who_gives_up_has_the_other_node_stop_what_only_looks(
    members, peers, tmp_path, request_, is_stopped
) -> None:
    async with End(1, members, tmp_path) as end:
        begun, ended, go_on = asyncio.Event(), asyncio.get_running_loop().create_future(), asyncio.Event()

        async def answer(_):
            begun.set()
            try:
                await go_on.wait()
                ended.set_result("done")
            except asyncio.CancelledError:
                ended.set_result("stopped")
                raise
            return m.Written((1, 1), 1)

        end.answer = answer
        call = asyncio.create_task(peers.call(end.id, request_, timeout=60))
        await asyncio.wait_for(begun.wait(), 30)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        if is_stopped:
            assert await asyncio.wait_for(ended, SOON) == "stopped"
        else:
            end.answer = end._pong  # its connection is gone by the time that another question is answered
            await peers.call(end.id, m.Ping(), timeout=30)
            assert not ended.done()
            go_on.set()
            assert await asyncio.wait_for(ended, 30) == "done"


def test_only_what_changes_nothing_is_stopped() -> None:
    looks = [
        ("GET", "/v1/collections/c/vectors"),
        ("POST", "/v1/collections/c/search"),
        ("POST", "/v1/collections/c/count"),
    ]
    changes = [
        ("PUT", "/v1/collections/count"),
        ("POST", "/v1/collections/c/vectors/delete"),
        ("DELETE", "/v1/collections/c"),
    ]
    assert [only_looks(*one) for one in looks + changes] == [True] * 3 + [False] * 3


# ---- whom a coordinator asks


@pytest.fixture
async def three():
    async with FakeCluster(3, shards=1) as cluster:
        cluster.fill(2)
        yield cluster


EVENTUAL = Reading(ReadConsistency.eventual, {}, "10.0.0.1")


def counts(cluster: FakeCluster) -> list[m.Count]:
    return [r for node in cluster.nodes for r in node.requests if isinstance(r, m.Count)]


async def test_what_is_slow_by_nature_is_asked_of_one_replica_however_long_it_takes(three: FakeCluster) -> None:
    for node in three.nodes:
        node.stand_still_in(m.Count)
    three.record(0, [1, 2])  # n0, which asks, has no copy
    reading = asyncio.create_task(three.coordinator(0).count(three.collection, Where.of({"a": 1}), EVENTUAL))
    await three.until(lambda: sum(len(node.asked(m.Ping)) for node in three.nodes) >= 2)
    assert not reading.done()
    for node in three.nodes:
        node.go_on()
    assert (await reading)[0] == 2
    assert len(counts(three)) == 1
    assert counts(three)[0].source == "10.0.0.1"


async def test_what_is_slow_by_nature_is_asked_elsewhere_when_its_node_stands_still(three: FakeCluster) -> None:
    for node in three.nodes[1:]:
        node.stand_still()
    coordinator = three.coordinator(0)
    three.record(0, [1, 2])  # n0 has no copy
    reading = asyncio.create_task(coordinator.count(three.collection, Where.of({"a": 1}), EVENTUAL))
    await three.until(lambda: bool(counts(three)))
    other = next(node for node in three.nodes if not node.asked(m.Count) and node.id != "n0")
    other.go_on()
    assert (await asyncio.wait_for(reading, 30))[0] == 2
    assert len(counts(three)) == 2


async def test_a_read_that_its_client_gives_up_is_taken_back_from_whoever_was_asked(three: FakeCluster) -> None:
    for node in three.nodes:
        node.stand_still_in(m.Count)
    reading = asyncio.create_task(three.coordinator(0).count(three.collection, Where.of({"a": 1}), EVENTUAL))
    await three.until(lambda: bool(counts(three)))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await three.until(lambda: sum(node.stopped for node in three.nodes) == 1)


@pytest.mark.parametrize(
    ("request_", "slow"),
    [
        (s.Count(collection=UUID, where=Where.of({})), True),
        (s.Count(collection=UUID), False),
        (s.ListIds(collection=UUID, after=None, limit=9), False),
        (s.ListIds(collection=UUID, after=None, limit=9, where=Where.of({})), True),
        (s.Get(collection=UUID, ids={0: ["a"]}), False),
        (s.Search(collection=UUID, query=Query(np.ones((1, 8), "f4"), 1)), False),
        (s.Search(collection=UUID, query=Query(np.ones((1, 8), "f4"), 1, exact=True)), True),
        (s.Search(collection=UUID, query=Query(np.ones((33, 8), "f4"), 1)), True),
    ],
)
def test_which_requests_are_slow_by_nature(request_, slow) -> None:
    assert request_.is_slow == slow
