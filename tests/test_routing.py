"""Which member of a shard is asked next, and when a request is worth asking again."""

from collections.abc import Iterable

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from veccluster import errors
from veccluster.decisions import routing
from veccluster.decisions.routing import Again, Vantage
from veccluster.model.cluster import ClusterState
from veccluster.model.state import (
    Collection,
    Epoch,
    Incarnation,
    Load,
    Member,
    Metric,
    NodeId,
    ReadConsistency,
    Revision,
    Shard,
    ShardId,
)

NODES = [NodeId(f"n{i}") for i in range(7)]
WEAK = [ReadConsistency.eventual, ReadConsistency.session, ReadConsistency.quorum]


def members(numbers: Iterable[int]) -> tuple[Member, ...]:
    return tuple(Member(NODES[n], Incarnation(f"disk-{n}")) for n in numbers)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    """In sync on some nodes, of which the first is primary; others learn."""
    nodes = draw(st.permutations(range(len(NODES))))
    size = draw(st.integers(1, len(NODES)))
    in_sync, others = members(nodes[:size]), members(nodes[size:])
    learners = others[: draw(st.integers(0, len(others)))]
    number = draw(st.integers(0, 127))
    epoch, revision = Epoch(draw(st.integers(1, 3))), Revision(draw(st.integers(1, 3)))
    return Shard(
        id=ShardId("u", number), epoch=epoch, primary=in_sync[0], in_sync=in_sync, learners=learners, revision=revision
    )


def several() -> st.SearchStrategy[list[Shard]]:
    return st.lists(shards(), max_size=8, unique_by=lambda s: s.id)


some = st.frozensets(st.sampled_from(NODES))
vantages = st.builds(Vantage, me=st.sampled_from(NODES), alive=some, slow=some, salt=st.integers(0, 2**32 - 1))
levels = st.sampled_from(WEAK)


@given(shards(), levels, vantages)
def test_everybody_in_sync_is_asked_once_and_nobody_else(shard: Shard, level: ReadConsistency, at: Vantage) -> None:
    assert sorted(routing.readers(shard, level, at)) == sorted(m.node for m in shard.in_sync)


@given(shards(), vantages)
def test_a_strong_read_is_the_primarys_alone(shard: Shard, at: Vantage) -> None:
    assert routing.readers(shard, ReadConsistency.strong, at) == [shard.primary.node]


@given(shards(), levels, vantages)
def test_whoever_is_there_is_asked_before_who_is_not_and_the_primary_after_the_others(
    shard: Shard, level: ReadConsistency, at: Vantage
) -> None:
    order = routing.readers(shard, level, at)
    there = [node in at.alive for node in order]
    assert there == sorted(there, reverse=True)
    well = [node for node in order if node in at.alive and node not in at.slow]
    assert order[: len(well)] == well
    if at.me in well:
        assert order[0] == at.me
    if (primary := shard.primary.node) in well and primary != at.me:
        assert well[-1] == primary


@given(several(), levels, vantages, some)
def test_a_read_asks_for_every_shard_once_unless_all_its_members_were_tried(
    asked: list[Shard], level: ReadConsistency, at: Vantage, tried: frozenset[NodeId]
) -> None:
    groups = routing.by_reader(asked, level, at, tried)
    assert tried.isdisjoint(groups)
    numbers = [n for group in groups.values() for n in group]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {s.id.number for s in asked if not {m.node for m in s.in_sync} <= tried}


@given(several(), levels, vantages, some)
def test_trying_one_node_after_the_other_ends_when_nobody_is_left(
    asked: list[Shard], level: ReadConsistency, at: Vantage, tried: frozenset[NodeId]
) -> None:
    for _ in NODES:
        tried |= routing.by_reader(asked, level, at, tried).keys()
    assert not routing.by_reader(asked, level, at, tried)


@given(several(), levels, vantages)
def test_shards_with_the_same_members_and_primary_go_to_one_node(
    asked: list[Shard], level: ReadConsistency, at: Vantage
) -> None:
    assume(asked)
    like_first = [msgspec.structs.replace(asked[0], id=s.id) for s in asked]
    assert len(routing.by_reader(like_first, level, at)) == 1


@given(shards(), levels)
def test_requests_are_spread_over_the_followers(shard: Shard, level: ReadConsistency) -> None:
    alive = frozenset(NODES)
    away = NodeId("elsewhere")
    asked = {routing.readers(shard, level, Vantage(away, alive, salt=salt))[0] for salt in range(200)}
    followers = {m.node for m in shard.in_sync} - {shard.primary.node}
    assert asked == (followers or {shard.primary.node})


def test_a_quorum_of_one_replica_is_its_primary() -> None:
    single = Collection(name="c", uuid="u", dimension=1, metric=Metric.l2, shards=1)
    three = msgspec.structs.replace(single, replication_factor=3)
    for level in ReadConsistency:
        expected = ReadConsistency.strong if level is ReadConsistency.quorum else level
        assert routing.effective(level, single) is expected
        assert routing.effective(level, three) is level


ANSWERS = [
    errors.TooFewReplicas("two are asked for"),
    errors.StorageCorrupt("damaged"),
    errors.InsufficientStorage("full"),
    errors.InvalidRequest("wrong"),
    errors.VecClusterError("a mistake of ours"),
]
PASSING = [
    errors.NotPrimary("not me"),
    errors.ReplicaBehind("not yet"),
    errors.ShardsUnavailable("not here"),
    errors.Unavailable("cannot be reached"),
    errors.OutcomeUnknown("no answer"),
]


@given(shards(), shards(), st.sampled_from(ANSWERS), some)
def test_an_answer_is_never_asked_for_again(asked: Shard, known: Shard, error: errors.VecClusterError, alive) -> None:
    assert routing.again(asked, known, error, alive) is Again.no


@given(shards(), shards(), st.sampled_from(PASSING), some)
def test_what_failed_is_asked_again_at_once_when_the_record_has_changed(asked, known, error, alive) -> None:
    assume(asked != known)
    assert routing.again(asked, known, error, alive) is Again.at_once
    assert routing.again(asked, None, error, alive) is Again.no


@given(shards(), st.sampled_from(PASSING), some)
def test_it_is_worth_waiting_only_while_another_replica_may_take_over(shard, error, alive) -> None:
    nodes = {m.node for m in shard.in_sync}
    worth = len(nodes) > 1 and bool(nodes & alive)
    assert routing.again(shard, shard, error, alive) is (Again.later if worth else Again.no)


@given(shards(), shards())
def test_a_shard_has_moved_when_its_primary_is_on_another_node(before: Shard, after: Shard) -> None:
    state = ClusterState(shards={before.id: msgspec.structs.replace(after, id=before.id)})
    assert routing.has_moved(state, {before.id: before}) is (before.primary.node != after.primary.node)
    assert not routing.has_moved(ClusterState(), {before.id: before})


@given(shards())
def test_a_shard_stands_differently_when_its_primary_says_that_it_serves(shard: Shard) -> None:
    def told(*serving: str) -> ClusterState:
        load = Load(id=shard.primary.node, boot="b", serving=serving)
        return ClusterState(shards={shard.id: shard}, alive={load.id: load})

    assert routing.standing(told("u.999"), shard.id) != routing.standing(told(str(shard.id)), shard.id)
    assert routing.standing(told("u.999"), shard.id) == routing.standing(told(), shard.id)
