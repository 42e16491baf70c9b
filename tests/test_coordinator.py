"""What becomes of requests while replicas die, lag, stand still and change places; the replicas do so on demand."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from support.replicas import UUID, FakeCluster
from veccluster import errors
from veccluster.decisions.replication.atomic import Batch, Decision, Verdict
from veccluster.decisions.replication.atomic_deciding import GiveUp, Propose
from veccluster.model.state import ReadConsistency, Revision, Seq, ShardId, WriteConsistency
from veccluster_node.coordinator.asking import FIRST_WAIT, REMEMBERED, SHORTEST_WAIT, Patience
from veccluster_node.coordinator.atomic import AtomicWrite
from veccluster_node.coordinator.coordinator import Coordinator, Reading
from veccluster_node.engine.search import Query
from veccluster_node.peer import messages as m
from veccluster_node.service.shard_service import Prepare, UpsertBatch

EVENTUAL, SESSION = Reading(ReadConsistency.eventual, {}), Reading(ReadConsistency.session, {})
QUORUM, STRONG = Reading(ReadConsistency.quorum, {}), Reading(ReadConsistency.strong, {})
WEAK = pytest.mark.parametrize("reading", [EVENTUAL, SESSION], ids=lambda r: r.level)
EVERY = pytest.mark.parametrize("reading", [EVENTUAL, SESSION, QUORUM, STRONG], ids=lambda r: r.level)


@pytest.fixture
async def three() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as cluster:
        yield cluster


async def count(cluster: FakeCluster, reading: Reading, at: Coordinator | None = None) -> int:
    found, _ = await (at or cluster.coordinator(0)).count(cluster.collection, None, reading)
    return found


async def put(
    cluster: FakeCluster, ids: list[str], op_id: str = "op", level: WriteConsistency = WriteConsistency.quorum, **more
) -> int:
    at = cluster.coordinator(0, **more)
    batch = UpsertBatch(ids, np.zeros((len(ids), 1), np.float32), [b"{}"] * len(ids))
    return (await at.upsert(cluster.collection, batch, op_id, level)).count


# ---- reads


@WEAK
async def test_a_node_that_has_all_shards_answers_by_itself(three: FakeCluster, reading: Reading) -> None:
    three.fill(4)
    assert await count(three, reading) == 12
    assert [len(node.requests) for node in three.nodes] == [1, 0, 0]


async def test_a_node_without_the_shards_asks_others_for_all_of_them_at_once_and_not_the_primaries() -> None:
    async with FakeCluster(4, shards=2, factor=3) as cluster:
        cluster.record(0, [0, 1, 2])
        cluster.record(1, [0, 1, 2])
        at = cluster.coordinator(3)
        for _ in range(10):
            assert await count(cluster, SESSION, at) == 0
        assert not cluster.nodes[0].requests
        assert len(cluster.nodes[1].requests) + len(cluster.nodes[2].requests) == 10
        assert all(r.shards == [0, 1] for node in cluster.nodes for r in node.asked(m.Count))


@EVERY
async def test_every_read_says_at_which_level_it_is(three: FakeCluster, reading: Reading) -> None:
    ids = three.fill(1)
    at = three.coordinator(0)
    await count(three, reading, at)
    await at.get(three.collection, ids, reading)
    await at.list_ids(three.collection, None, 10, None, reading)
    await at.search(three.collection, Query(np.zeros((1, 1), np.float32), 3), reading)
    told = [r.level for node in three.nodes for r in node.requests if not isinstance(r, m.GetPositions)]
    assert set(told) == {ReadConsistency.session if reading is QUORUM else reading.level}
    assert {type(r) for node in three.nodes for r in node.requests} >= {m.Count, m.Get, m.ListIds, m.Search}


@EVERY
async def test_a_reply_names_up_to_where_every_shard_was_read(three: FakeCluster, reading: Reading) -> None:
    ids = three.fill(3)
    at = three.coordinator(0)
    everywhere = {ShardId(UUID, n): (1, 3) for n in range(3)}
    assert (await at.count(three.collection, None, reading))[1] == everywhere
    assert (await at.get(three.collection, ids, reading))[1] == everywhere
    assert (await at.list_ids(three.collection, None, 10, None, reading))[1] == everywhere
    query = Query(np.zeros((1, 1), np.float32), 3)
    assert (await at.search(three.collection, query, reading)).positions == everywhere


async def test_a_session_is_answered_by_whoever_has_come_so_far(three: FakeCluster) -> None:
    three.fill(5)
    three.nodes[0].applied[1] = 4  # n0 lags in shard 1
    seen = {ShardId(UUID, 1): (1, 5)}
    assert await count(three, Reading(ReadConsistency.session, seen)) == 15
    others = [r for node in three.nodes[1:] for r in node.asked(m.Count)]
    assert [r.shards for r in others] == [[1]] and others[0].at_least == {1: (1, 5)}


async def test_an_eventual_read_does_not_care_what_its_client_has_seen(three: FakeCluster) -> None:
    three.fill(5)
    three.nodes[0].applied = dict.fromkeys(range(3), 1)
    seen = {ShardId(UUID, n): (1, 5) for n in range(3)}
    assert await count(three, Reading(ReadConsistency.eventual, seen)) == 15
    assert not three.nodes[1].requests and not three.nodes[2].requests


async def test_a_session_waits_for_replicas_that_are_about_to_catch_up(three: FakeCluster) -> None:
    three.fill(5)
    for node in three.nodes:
        node.applied[0] = 4
    seen = Reading(ReadConsistency.session, {ShardId(UUID, 0): (1, 5)})
    asked = asyncio.create_task(count(three, seen))
    await three.until(lambda: len(three.nodes[2].requests) > 1)
    assert not asked.done()
    three.nodes[2].applied[0] = 5
    assert await asked == 15


@WEAK
async def test_a_dead_node_is_not_noticed_by_who_reads(three: FakeCluster, reading: Reading) -> None:
    async with FakeCluster(4, shards=3) as cluster:
        cluster.fill(4)
        for number in range(3):
            cluster.record(number, [1, 2, 3])
        await cluster.nodes[2].die()
        at = cluster.coordinator(0)
        for _ in range(10):
            assert await count(cluster, reading, at) == 12


@EVERY
async def test_a_node_that_stands_still_is_not_noticed_by_who_reads(three: FakeCluster, reading: Reading) -> None:
    """Its lease is there; strong reads go to the primary, which is well."""
    async with FakeCluster(4, shards=3) as cluster:
        cluster.fill(4)
        for number in range(3):
            cluster.record(number, [1, 2, 3])
        cluster.nodes[2].stand_still()
        at = cluster.coordinator(0, read_timeout=20)
        for _ in range(10):
            started = time.monotonic()
            assert await count(cluster, reading, at) == 12
            assert time.monotonic() - started < 2
        assert len(cluster.nodes[2].asked(m.Count)) <= 2, "who gave no answer is asked last for a while"


async def test_answers_of_several_nodes_in_place_of_one_count_every_shard_once() -> None:
    async with FakeCluster(5, shards=4, factor=2) as cluster:
        cluster.fill(10)
        for number, other in enumerate([1, 2, 3, 4]):
            cluster.record(number, [other, 0])
        at = cluster.coordinator(0)
        cluster.nodes[0].stand_still()
        cluster.nodes[3].refuses[2] = errors.ReplicaBehind("not yet")
        asked = asyncio.create_task(count(cluster, SESSION, at))
        await cluster.until(lambda: all(node.requests for node in cluster.nodes))
        done, _ = await asyncio.wait({asked}, timeout=0.1)
        assert not done, "nobody else has shard 2"
        cluster.nodes[0].go_on()
        assert await asked == 40


@WEAK
async def test_when_nobody_can_answer_the_shard_is_named(three: FakeCluster, reading: Reading) -> None:
    three.fill(1)
    for node in three.nodes:
        node.refuses[1] = errors.ReplicaBehind("has heard nothing for long")
    with pytest.raises(errors.ShardsUnavailable, match="has heard nothing for long") as refused:
        await count(three, reading, three.coordinator(0, read_timeout=1.0))
    assert refused.value.extra["missing_shards"] == [1]


async def test_a_search_that_may_be_partial_does_not_wait(three: FakeCluster) -> None:
    three.fill(1)
    for node in three.nodes:
        node.refuses[1] = errors.ReplicaBehind("not yet")
    query = Query(np.zeros((1, 1), np.float32), 9)
    async with asyncio.timeout(2):
        found = await three.coordinator(0, read_timeout=60).search(three.collection, query, SESSION, allow_partial=True)
    assert found.missing == [1] and len(found.hits[0]) == 2


async def test_a_search_that_may_be_partial_waits_for_an_answer_that_is_owed() -> None:
    async with FakeCluster(3, shards=2, factor=2) as cluster:
        cluster.fill(1)
        for number in (0, 1):
            cluster.record(number, [1, 0])
        cluster.nodes[0].stand_still()
        cluster.nodes[1].refuses[1] = errors.ReplicaBehind("not yet")
        query = Query(np.zeros((1, 1), np.float32), 9)
        at = cluster.coordinator(2)
        asked = asyncio.create_task(at.search(cluster.collection, query, SESSION, allow_partial=True))
        await cluster.until(lambda: bool(cluster.nodes[1].requests))
        done, _ = await asyncio.wait({asked}, timeout=0.1)
        assert not done
        cluster.nodes[0].go_on()
        assert not (await asked).missing


@EVERY
async def test_a_single_replica_that_is_away_is_told_at_once(reading: Reading) -> None:
    async with FakeCluster(2, shards=2, factor=1) as cluster:
        await cluster.nodes[1].die()
        async with asyncio.timeout(2):
            with pytest.raises(errors.ShardsUnavailable, match="cannot be reached") as refused:
                await count(cluster, reading, cluster.coordinator(0, read_timeout=60))
        assert refused.value.extra["missing_shards"] == [1]


async def test_nobody_waits_for_a_shard_of_which_no_node_is_left() -> None:
    async with FakeCluster(4, shards=1) as cluster:
        cluster.record(0, [1, 2, 3])
        for number in (1, 2, 3):
            await cluster.nodes[number].die()
            cluster.lease_ends(number)
        async with asyncio.timeout(5):
            with pytest.raises(errors.ShardsUnavailable):
                await count(cluster, SESSION, cluster.coordinator(0, read_timeout=60))
            with pytest.raises(errors.ShardsUnavailable):
                await put(cluster, ["a"], write_timeout=60)


async def test_a_strong_read_waits_for_the_next_primary(three: FakeCluster) -> None:
    three.fill(2)
    three.record(0, [1, 2, 0])
    await three.nodes[1].die()
    asked = asyncio.create_task(count(three, STRONG))
    await three.until(lambda: three.waits > 1)
    three.record(0, [2, 0, 1])
    waits = three.waits
    await three.until(lambda: three.waits > waits + 1)
    assert not asked.done(), "shard 1 is still on n1"
    three.record(1, [2, 0, 1])
    assert await asked == 6


async def test_a_strong_read_leaves_a_primary_that_stands_still_for_the_next_one(three: FakeCluster) -> None:
    three.fill(2)
    three.nodes[1].stand_still()
    asked = asyncio.create_task(count(three, STRONG, three.coordinator(0, read_timeout=30)))
    await three.until(lambda: three.waits > 0)
    three.record(1, [2, 0, 1])
    async with asyncio.timeout(5):
        assert await asked == 6


# ---- quorums


async def test_a_quorum_read_shows_the_furthest_that_a_quorum_has(three: FakeCluster) -> None:
    three.fill(5)
    three.nodes[0].applied = dict.fromkeys(range(3), 3)
    three.nodes[1].applied = dict.fromkeys(range(3), 5)
    three.nodes[2].stand_still()
    async with asyncio.timeout(5):
        found, positions = await three.coordinator(0, read_timeout=30).count(three.collection, None, QUORUM)
    assert found == 15 and positions == {ShardId(UUID, n): (1, 5) for n in range(3)}
    reads = [r for node in three.nodes for r in node.asked(m.Count)]
    assert reads and all({n: seq for n, (_, seq) in r.at_least.items()} == dict.fromkeys(r.shards, 5) for r in reads)


async def test_a_quorum_read_also_shows_what_its_client_has_seen(three: FakeCluster) -> None:
    three.fill(5)
    three.nodes[0].applied[0] = 3
    three.nodes[1].applied[0] = 3
    reading = Reading(ReadConsistency.quorum, {ShardId(UUID, 0): (1, 5)})
    _, positions = await three.coordinator(0).count(three.collection, None, reading)
    assert positions[ShardId(UUID, 0)] == (1, 5)


async def test_learners_are_not_asked_what_a_quorum_has() -> None:
    async with FakeCluster(4, shards=1) as cluster:
        cluster.record(0, [1, 2], learners=[3])
        await count(cluster, QUORUM)
        assert cluster.nodes[1].asked(m.GetPositions) and cluster.nodes[2].asked(m.GetPositions)
        assert not cluster.nodes[3].requests


async def test_without_a_quorum_there_is_no_quorum_read(three: FakeCluster) -> None:
    await three.nodes[1].die()
    three.nodes[2].stand_still()
    with pytest.raises(errors.ShardsUnavailable, match="1 of its replicas say how far they are, a quorum is 2"):
        await count(three, QUORUM, three.coordinator(0, read_timeout=0.5))
    assert not three.nodes[0].asked(m.Count)


async def test_a_quorum_of_one_needs_no_round_of_questions() -> None:
    async with FakeCluster(2, shards=2, factor=1) as cluster:
        assert await count(cluster, QUORUM) == 0
        assert all(r.level is ReadConsistency.strong for node in cluster.nodes for r in node.asked(m.Count))
        assert not any(node.asked(m.GetPositions) for node in cluster.nodes)


# ---- writes


@pytest.mark.parametrize("level", list(WriteConsistency))
async def test_every_write_says_how_many_replicas_must_have_it(three: FakeCluster, level: WriteConsistency) -> None:
    ids = three.ids(2)
    assert await put(three, ids, level=level) == 6
    at = three.coordinator(0)
    assert (await at.delete_ids(three.collection, ids, "other", level)).count == 6
    assert {r.level for node in three.nodes for r in node.requests} == {level}


async def test_a_write_sent_again_at_another_level_is_the_same_write(three: FakeCluster) -> None:
    ids = three.ids(1)
    await put(three, ids, level=WriteConsistency.all)
    await put(three, ids, level=WriteConsistency.one)
    assert list(three.seqs.values()) == [1, 1, 1]


async def test_a_write_goes_to_the_next_primary_when_the_first_is_dead(three: FakeCluster) -> None:
    ids = three.ids(2)
    await three.nodes[1].die()
    asked = asyncio.create_task(put(three, ids))
    await three.until(lambda: len(three.done) == 2 and three.waits > 1)
    assert not asked.done()
    three.record(1, [2, 0, 1])
    assert await asked == 6
    assert list(three.seqs.values()) == [2, 2, 2]


async def test_a_write_does_not_wait_for_a_primary_that_stands_still_once_there_is_another(three: FakeCluster) -> None:
    three.nodes[1].stand_still()
    asked = asyncio.create_task(put(three, three.ids(2), write_timeout=60))
    await three.until(lambda: bool(three.nodes[1].requests))
    three.record(1, [2, 0, 1])
    async with asyncio.timeout(5):
        assert await asked == 6
    (before,), after = three.nodes[1].asked(m.Upsert), three.nodes[2].asked(m.Upsert)
    assert before in after, "the same write under the same name"


async def test_a_slow_primary_is_asked_once(three: FakeCluster) -> None:
    three.nodes[1].stand_still()
    asked = asyncio.create_task(put(three, three.ids(2)))
    await three.until(lambda: three.waits > 0)
    three.nodes[1].go_on()
    assert await asked == 6
    assert len(three.nodes[1].requests) == 1


async def test_a_write_whose_answer_was_lost_is_carried_out_once(three: FakeCluster) -> None:
    three.nodes[1].answers_lost = 1
    assert await put(three, three.ids(3)) == 9
    assert list(three.seqs.values()) == [3, 3, 3]


async def test_a_write_waits_until_the_primary_on_record_serves(three: FakeCluster) -> None:
    three.nodes[1].serves.discard(1)
    asked = asyncio.create_task(put(three, three.ids(1)))
    await three.until(lambda: len(three.nodes[1].requests) > 1)
    assert not asked.done()
    three.nodes[1].serves.add(1)
    assert await asked == 3


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (errors.TooFewReplicas("1 is in sync, 2 are asked for"), errors.TooFewReplicas),
        (errors.InsufficientStorage("its disk is full"), errors.InsufficientStorage),
        (errors.StorageCorrupt("its log is damaged"), errors.ShardsUnavailable),
        (errors.InvalidRequest("no such field"), errors.InvalidRequest),
        (errors.VecClusterError("a mistake of ours"), errors.VecClusterError),
    ],
    ids=lambda e: getattr(e, "slug", ""),
)
async def test_an_answer_is_told_at_once(
    three: FakeCluster, answer: errors.VecClusterError, raised: type[errors.VecClusterError]
) -> None:
    three.nodes[1].refuses[1] = answer
    async with asyncio.timeout(2):
        with pytest.raises(raised, match=answer.detail) as told:
            await put(three, three.ids(1), write_timeout=60)
    assert type(told.value) is raised
    assert len(three.nodes[1].requests) == 1


@pytest.mark.parametrize(
    ("first", "second", "raised"),
    [
        (errors.TooFewReplicas("too few"), errors.InsufficientStorage("full"), errors.InsufficientStorage),
        (errors.TooFewReplicas("too few"), errors.StorageCorrupt("damaged"), errors.ShardsUnavailable),
        (errors.InsufficientStorage("full"), errors.VecClusterError("a mistake of ours"), errors.VecClusterError),
    ],
)
async def test_shards_that_refuse_for_different_reasons_are_one_answer(
    three: FakeCluster,
    first: errors.VecClusterError,
    second: errors.VecClusterError,
    raised: type[errors.VecClusterError],
) -> None:
    three.nodes[0].refuses[0], three.nodes[1].refuses[1] = first, second
    with pytest.raises(raised, match=f"{first.detail}.*{second.detail}") as told:
        await put(three, three.ids(1), write_timeout=60)
    assert type(told.value) is raised
    assert sorted(told.value.extra["missing_shards"]) == [0, 1]


async def test_a_refusal_after_a_lost_answer_leaves_the_outcome_unknown(three: FakeCluster) -> None:
    three.nodes[1].stand_still()
    ids = three.ids(1)
    three.nodes[2].refuses[1] = errors.TooFewReplicas("1 is in sync, 2 are asked for")
    asked = asyncio.create_task(put(three, ids))
    await three.until(lambda: bool(three.nodes[1].requests))
    three.record(1, [2, 0])
    with pytest.raises(errors.OutcomeUnknown, match="1 is in sync, 2 are asked for") as unknown:
        await asked
    assert unknown.value.extra["maybe_stored"] == [ids[i] for i in range(3) if ids[i] not in _known(three)]
    assert unknown.value.extra["upserted"] == 2


def _known(cluster: FakeCluster) -> set[str]:
    return set().union(*cluster.rows.values())


async def test_a_write_without_an_answer_in_time_has_an_unknown_outcome(three: FakeCluster) -> None:
    for node in three.nodes[:2]:
        node.stand_still()
    with pytest.raises(errors.OutcomeUnknown) as unknown:
        await put(three, three.ids(1), write_timeout=0.7)
    assert unknown.value.extra["missing_shards"] == [0, 1] and unknown.value.extra["upserted"] == 1


async def test_a_write_to_a_single_replica_that_is_away_is_told_at_once() -> None:
    async with FakeCluster(2, shards=2, factor=1) as cluster:
        ids = cluster.ids(1)
        await cluster.nodes[1].die()
        async with asyncio.timeout(2):
            with pytest.raises(errors.ShardsUnavailable, match="cannot be reached") as refused:
                await put(cluster, ids, write_timeout=60)
        assert len(refused.value.extra["not_stored"]) == 1 and refused.value.extra["upserted"] == 1


async def test_what_several_replicas_say_of_a_shard_counts_once(three: FakeCluster) -> None:
    def report(vectors: int) -> Callable[[m.AnyRequest], object]:
        async def handle(_: m.AnyRequest) -> m.Reply:
            shard = ShardId(UUID, 1)
            return m.Report([m.ShardReport(shard, 1, vectors, 0, 0, 0, False, 0, 0)])

        return handle

    for number, node in enumerate(three.nodes):
        node.handle = report(number)  # type: ignore[method-assign]
    reports, answers = await three.coordinator(0).reports(UUID)
    answering = {node: answer is not None for node, answer in answers.items()}
    assert [r.vectors for r in reports] == [1], "as its primary says"
    assert all(answering.values())


# ---- patience


def test_who_waits_for_an_answer_waits_about_as_long_as_answers_take() -> None:
    patience = Patience()
    assert patience.wait("Search", most=10) == FIRST_WAIT
    for _ in range(REMEMBERED):
        patience.learn("Search", 0.4)
    assert patience.wait("Search", most=10) == pytest.approx(0.8)
    assert patience.wait("Search", most=0.5) == 0.5
    assert patience.wait("Count", most=10) == FIRST_WAIT
    for _ in range(REMEMBERED):
        patience.learn("Search", 0.0001)
    assert patience.wait("Search", most=10) == SHORTEST_WAIT


# ---- batches over several shards


async def test_a_shard_that_lacks_a_batch_which_another_shows_is_read_again(three: FakeCluster) -> None:
    three.fill(5)
    first, second, third = three.nodes
    first.showing[0] = m.Showing([], {1: Seq(3)})
    second.showing[1] = m.Showing([Seq(2), Seq(3)], {})
    third.showing[2] = m.Showing([Seq(4)], {})
    assert await count(three, STRONG) == 15
    assert [len(node.asked(m.Count)) for node in three.nodes] == [1, 2, 1]
    assert [r.decided for r in second.asked(m.Count)] == [{}, {1: [3]}]


async def test_a_shard_that_is_before_a_batch_which_another_shows_is_read_again_with_all_of_its_node() -> None:
    async with FakeCluster(2, shards=3, factor=1) as cluster:
        cluster.fill(5)
        cluster.record(2, [1])
        first, second = cluster.nodes
        first.showing[0] = m.Showing([], {1: Seq(9)})
        second.applied[1] = 5
        reading = asyncio.create_task(count(cluster, STRONG))
        await cluster.until(lambda: len(second.asked(m.Count)) >= 2)
        second.applied[1] = 9
        assert await reading == 15
        assert all(r.shards == [1, 2] for r in second.asked(m.Count))
        assert len(first.asked(m.Count)) == 1


async def test_a_read_that_finds_no_parts_that_fit_is_refused_in_time(three: FakeCluster) -> None:
    three.fill(5)
    three.nodes[0].showing[0] = m.Showing([], {1: Seq(3)})
    three.nodes[1].showing[1] = m.Showing([Seq(3)], {})
    three.nodes[1].never_decides = True
    with pytest.raises(errors.ShardsUnavailable, match="did not show the same batches") as refused:
        await count(three, STRONG, three.coordinator(0, read_timeout=0.3))
    assert refused.value.extra["missing_shards"] == [1]


# ---- batches over several shards


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([errors.OutcomeUnknown("no answer"), Revision(7)], errors.OutcomeUnknown),
        ([errors.MetadataUnavailable("not sent"), Revision(7)], errors.Unavailable),
    ],
)
async def test_a_batch_that_etcd_may_have_applied_is_not_called_refused(three, answers, expected) -> None:
    """Its decision was made, carried out and forgotten, and then the shards could not be asked."""
    part = Prepare(
        shard=ShardId(UUID, 0),
        batch=Batch("op", 1),
        participants=[0],
        rows=UpsertBatch(["a"], np.zeros((1, 1), np.float32), [b"{}"]),
        level=WriteConsistency.quorum,
    )

    async def decide(decision: Decision, forgotten: Revision) -> Decision | Revision:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    heard = [Propose(Decision(Batch("op", 1), Verdict.applied, {0: Seq(3)})), GiveUp()]

    class Scripted(AtomicWrite):
        async def _prepare(self, batch: Batch) -> Propose | GiveUp:
            return heard.pop(0)

    write = Scripted(three.coordinator(0)._asking, {0: part}, forgotten=lambda: Revision(1), decide=decide, timeout=5)
    with pytest.raises(errors.VecClusterError) as failed:
        await write.run()
    assert type(failed.value) is expected
    assert not answers
