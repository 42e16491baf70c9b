"""What a shard knows of batches over several shards, and what coordinators, primaries, readers and leader decide."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veccluster.decisions.replication.atomic import (
    Batch,
    Decision,
    Ledger,
    Prepare,
    Showing,
    Standing,
    Verdict,
    lacking,
)
from veccluster.decisions.replication.atomic_deciding import (
    Begin,
    Finish,
    GiveUp,
    Known,
    Propose,
    after,
    due,
    forgettable,
    next_step,
    overdue,
)
from veccluster.decisions.replication.values import NOTHING
from veccluster.model.state import Revision, Seq

FIRST, SECOND = Batch("load", 1), Batch("load", 2)
OTHER = Batch("other", 1)


def prepared(batch: Batch, count: int = 2) -> Prepare:
    return Prepare(batch, (0, 1), count, b"operations")


def decision(batch: Batch, verdict: Verdict = Verdict.applied, at: int = 4, revision: int = 10) -> Decision:
    return Decision(batch, verdict, {0: Seq(at), 1: Seq(7)}, Revision(revision))


def ledger(*batches: Batch, first: int = 4) -> Ledger:
    """Of shard 0, with these prepared from `first` on."""
    made = Ledger(0)
    for at, batch in enumerate(batches, first):
        made.prepare(prepared(batch), Seq(at))
    return made


# -- the applied state


def test_a_batch_gets_its_place_with_its_decision() -> None:
    known = ledger(FIRST)
    assert known.showing(Seq(4)) == Showing(Seq(4), frozenset({Seq(4)}))
    assert known.decide(decision(FIRST), Seq(9)) == prepared(FIRST)
    assert known.standing(FIRST) == Standing(1, Seq(9), Verdict.applied)
    assert known.showing(Seq(9)) == Showing(Seq(9), latest={1: Seq(7)})


def test_a_batch_that_is_dropped_leaves_its_verdict_and_names_nobody() -> None:
    known = ledger(FIRST)
    assert known.decide(decision(FIRST, Verdict.dropped), Seq(5)) is None
    assert known.standing(FIRST) == Standing(1, Seq(5), Verdict.dropped)
    assert known.standing(SECOND) is None, "another attempt may be prepared"
    assert known.showing(Seq(5)) == Showing(Seq(5))


def test_a_shard_answers_an_old_attempt_with_what_it_knows_of_a_later_one() -> None:
    known = ledger(FIRST)
    known.decide(decision(FIRST, Verdict.dropped), Seq(5))
    known.prepare(prepared(SECOND), Seq(6))
    assert known.standing(SECOND) == Standing(2, Seq(6))
    known.decide(decision(SECOND, at=6), Seq(8))
    assert known.standing(FIRST) == known.standing(SECOND) == Standing(2, Seq(8), Verdict.applied)


def test_an_earlier_attempt_that_is_dropped_later_hides_no_later_one() -> None:
    known = ledger(FIRST, SECOND)
    known.decide(decision(SECOND, at=5), Seq(8))
    known.decide(decision(FIRST, Verdict.dropped), Seq(9))
    assert known.standing(FIRST) == known.standing(SECOND) == Standing(2, Seq(8), Verdict.applied)


def test_a_copy_of_a_ledger_lives_on_its_own() -> None:
    known = ledger(FIRST)
    copy = known.copy()
    known.decide(decision(FIRST), Seq(9))
    assert copy.standing(FIRST) == Standing(1, Seq(4))
    assert copy.showing(Seq(4)).pending == {4}


def test_what_a_log_and_etcd_keep_survives_encoding() -> None:
    for said in (prepared(FIRST), decision(FIRST)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=type(said)) == said
        assert msgspec.json.decode(msgspec.json.encode(said), type=type(said)) == said


# -- the coordinator


def test_a_batch_is_applied_only_when_every_participant_has_it() -> None:
    said = {0: Standing(1, Seq(4))}
    assert next_step(FIRST, {0, 1}, said, over=False) is None
    said[1] = Standing(1, Seq(7))
    assert next_step(FIRST, {0, 1}, said, over=False) == Propose(decision(FIRST))


def test_a_batch_whose_time_is_over_is_proposed_to_be_dropped_if_anybody_has_it() -> None:
    assert next_step(FIRST, {0, 1}, {}, over=True) == GiveUp()
    step = next_step(FIRST, {0, 1}, {0: Standing(1, Seq(4))}, over=True)
    assert step == Propose(Decision(FIRST, Verdict.dropped, {0: Seq(4), 1: NOTHING}))


def test_an_attempt_is_followed_by_another_only_when_it_is_dropped() -> None:
    dropped = {0: Standing(1, Seq(5), Verdict.dropped)}
    assert next_step(FIRST, {0, 1}, dropped, over=False) == Begin(SECOND)
    assert next_step(FIRST, {0, 1}, dropped, over=True) == Finish(FIRST, Verdict.dropped)
    assert next_step(FIRST, {0, 1}, {0: Standing(2, Seq(6))}, over=False) == Begin(SECOND)
    assert after(decision(FIRST, Verdict.dropped), over=False) == Begin(SECOND)


def test_a_retry_of_what_was_applied_is_answered_as_the_first_time() -> None:
    said = {0: Standing(2, Seq(8), Verdict.applied), 1: Standing(1, Seq(7))}
    assert next_step(FIRST, {0, 1}, said, over=False) == Finish(SECOND, Verdict.applied)
    assert after(decision(FIRST), over=True) == Finish(FIRST, Verdict.applied)


STANDINGS = st.builds(
    Standing, st.integers(1, 3), st.just(Seq(4)), st.sampled_from([None, Verdict.applied, Verdict.dropped])
)


@given(st.dictionaries(st.integers(0, 2), STANDINGS), st.integers(1, 3), st.booleans())
def test_a_coordinator_proposes_to_apply_only_what_all_say_is_prepared_in_this_attempt(
    said: dict[int, Standing], attempt: int, over: bool
) -> None:
    said = {shard: s for shard, s in said.items() if s.attempt >= attempt}
    step = next_step(Batch("load", attempt), {0, 1, 2}, said, over=over)
    if isinstance(step, Propose) and step.decision.verdict is Verdict.applied:
        assert said.keys() == {0, 1, 2}
        assert all(s.attempt == attempt and s.verdict is None for s in said.values())
    if isinstance(step, Begin) and step.batch.attempt > attempt:
        assert any(
            s.attempt == step.batch.attempt or (s.attempt == step.batch.attempt - 1 and s.verdict is Verdict.dropped)
            for s in said.values()
        )


# -- a primary


def test_decisions_take_their_places_in_the_order_in_which_etcd_made_them() -> None:
    later, earlier = decision(FIRST, at=4, revision=11), decision(OTHER, at=5, revision=10)
    for order in itertools.permutations([later, earlier]):
        assert list(due(ledger(FIRST, OTHER), Seq(5), Known(decisions=order))) == [earlier, later]


def test_no_decision_overtakes_one_whose_prepare_is_not_applied_yet() -> None:
    later, earlier = decision(FIRST, at=4, revision=11), decision(OTHER, at=5, revision=10)
    assert list(due(ledger(FIRST), Seq(4), Known(decisions=(later, earlier)))) == []


def test_what_is_decided_here_already_or_was_never_prepared_here_holds_nothing_up() -> None:
    known = ledger(OTHER, FIRST)
    known.decide(decision(OTHER), Seq(6))
    elsewhere = Decision(Batch("elsewhere", 1), Verdict.dropped, {0: NOTHING, 1: Seq(3)}, Revision(9))
    decisions = (elsewhere, decision(OTHER, revision=10), decision(FIRST, at=5, revision=11))
    assert list(due(known, Seq(6), Known(decisions=decisions))) == [decision(FIRST, at=5)]


def test_a_primary_proposes_to_drop_what_has_waited_too_long_and_has_no_decision() -> None:
    known = Known(decisions=(decision(FIRST),))
    (proposed,) = overdue(ledger(FIRST, OTHER), known, [OTHER, FIRST, Batch("gone", 1)])
    assert proposed == Decision(OTHER, Verdict.dropped, {0: Seq(5), 1: NOTHING})


# -- forgetting


@pytest.mark.parametrize(
    ("shown", "forgets"),
    [
        ({0: Showing(Seq(9)), 1: Showing(Seq(9))}, True),
        ({0: Showing(Seq(9))}, False),
        ({0: Showing(Seq(9)), 1: Showing(Seq(6))}, False),
        ({0: Showing(Seq(9)), 1: Showing(Seq(9), frozenset({Seq(7)}))}, False),
    ],
)
def test_a_decision_is_forgotten_when_every_participant_has_applied_it(
    shown: dict[int, Showing], forgets: bool
) -> None:
    assert list(forgettable(Known(decisions=(decision(FIRST),)), shown)) == [decision(FIRST)] * forgets


def test_a_dropped_batch_is_not_waited_for_where_it_was_not_prepared() -> None:
    dropped = Decision(FIRST, Verdict.dropped, {0: Seq(4), 1: NOTHING})
    assert list(forgettable(Known(decisions=(dropped,)), {0: Showing(Seq(5))})) == [dropped]


# -- reading


def test_a_reply_older_than_a_batch_that_another_shows_is_read_again() -> None:
    newer = Showing(Seq(9), latest={1: Seq(7)})
    assert lacking({0: newer, 1: Showing(Seq(6))}) == {1: {7}}
    assert lacking({0: newer, 1: Showing(Seq(8), frozenset({Seq(7)}))}) == {1: {7}}
    assert lacking({0: newer, 1: Showing(Seq(8))}) == {}


def test_shards_that_were_not_asked_lack_nothing() -> None:
    assert lacking({0: Showing(Seq(9), latest={1: Seq(7), 2: Seq(3)}), 2: Showing(Seq(3))}) == {}


@given(st.data())
def test_replies_that_fit_together_show_every_batch_whole(data: st.DataObject) -> None:
    """Three shards prepare batches in any order and apply them in one; replies come from any of their states."""
    several = st.lists(st.sets(st.integers(0, 2), min_size=2), max_size=6)
    batches = {Batch(f"b{n}", 1): sorted(shards) for n, shards in enumerate(data.draw(several))}
    states: dict[int, list[tuple[Showing, set[Batch]]]] = {}
    places: dict[Batch, dict[int, Seq]] = {batch: {} for batch in batches}
    for shard in range(3):
        mine = data.draw(st.permutations([b for b, shards in batches.items() if shard in shards]))
        for at, batch in enumerate(mine, 1):
            places[batch][shard] = Seq(at)
    for shard in range(3):
        known, seq, applied = Ledger(shard), 0, set[Batch]()
        states[shard] = [(known.showing(Seq(0)), set())]
        for batch in sorted((b for b in batches if shard in places[b]), key=lambda b: places[b][shard]):
            seq += 1
            known.prepare(Prepare(batch, tuple(batches[batch]), 1, b""), Seq(seq))
            states[shard].append((known.showing(Seq(seq)), set(applied)))
        for revision, batch in enumerate(b for b in batches if shard in places[b]):
            seq += 1
            known.decide(Decision(batch, Verdict.applied, places[batch], Revision(revision)), Seq(seq))
            applied.add(batch)
            states[shard].append((known.showing(Seq(seq)), set(applied)))
    read = {shard: data.draw(st.sampled_from(states[shard])) for shard in range(3)}
    torn = {b for b, shards in batches.items() if len({b in read[s][1] for s in shards}) > 1}
    assert bool(lacking({shard: showing for shard, (showing, _) in read.items()})) == bool(torn)
