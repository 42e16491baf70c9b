"""What is left of a shard is only gone on with when it can be served in no other way, and the loss is told in full."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.replication import SHARDS, configuration, member
from support.states import collection
from veccluster.decisions import lost_quorum
from veccluster.decisions.lost_quorum import Answer, Answers, Copy, Plan, Silence, decide
from veccluster.decisions.replication.values import Configuration, Position
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Epoch, NodeId, Seq, ShardId
from veccluster_node.cluster.lost_quorum import LostQuorum
from veccluster_node.peer import messages as m
from veccluster_node.replica.inspection import Inspection
from veccluster_node.runtime.identity import Identity, claim

SHARD = SHARDS[0]
RECORD = configuration(0, 1, 2, epoch=Epoch(5), min_in_sync=2, replicas=3)
NOON = 1_700_000_000.0

in_its_own_time = settings(deadline=None)


def copy(number: int, epoch: int = 5, seq: int = 100, **changes: object) -> Copy:
    made = Copy(member(number), Position(Epoch(epoch), Seq(seq)), Epoch(epoch), vectors=10, written=NOON)
    return replace(made, **changes)


def has(number: int, epoch: int = 5, seq: int = 100, **changes: object) -> Answer:
    held = copy(number, epoch, seq, **changes)
    return Answer(held.member, held)


def plan(now: Configuration = RECORD, wanted: int = 2, **answers: Answer | Silence) -> Plan:
    return decide(SHARD, now, wanted, {NodeId(n): a for n, a in answers.items()})


GONE = Silence()


def test_with_one_copy_in_sync_left_it_goes_on_with_that_and_nothing_is_lost() -> None:
    made = plan(n0=GONE, n1=Silence(since=NOON), n2=has(2))
    assert made.refusal is None and made.chosen and made.chosen.member == member(2)
    assert made.target == replace(
        RECORD, epoch=6, primary=member(2), in_sync=frozenset({member(2)}), min_in_sync=1, successor=None
    )
    assert made.words[0].startswith("Nothing that was acknowledged is lost: n2 has been in sync all the time.")
    assert "acknowledged with 1 copy instead of 2" in " ".join(made.words)
    assert "refused at `quorum` (2) and at `all` (3)" in made.words[-1]
    assert [(m.member, m.why, m.since) for m in made.missing] == [
        (member(0), "does not answer", None),
        (member(1), "does not answer", NOON),
    ]
    assert made.absent == ("n0", "n1")


def test_all_copies_in_sync_that_are_left_stay_in_sync() -> None:
    now = configuration(0, 1, 2, 3, 4, min_in_sync=3, replicas=5)
    made = plan(now, 3, n0=GONE, n1=GONE, n2=GONE, n3=has(3), n4=has(4, seq=101))
    assert made.target and made.target.in_sync == {member(3), member(4)} and made.target.min_in_sync == 2
    assert made.target.primary == member(4)
    assert plan(now, 3, n0=has(0), n1=GONE, n2=GONE, n3=GONE, n4=has(4, seq=101)).target.primary == member(0)


@pytest.mark.parametrize("better", [has(3, 4, 90), has(3, 5, 7)])
def test_without_one_it_goes_on_with_the_copy_that_has_most_of_the_last_epoch(better: Answer) -> None:
    now = replace(RECORD, learners=frozenset({member(3)}))
    made = plan(now, n0=GONE, n1=GONE, n2=GONE, n3=better, n4=has(4, 4, 80), n5=Answer(member(5)))
    assert made.target and made.target.in_sync == {member(3)} and made.target.learners == frozenset()
    assert made.target.primary == member(3) and made.target.min_in_sync == 1 and made.target.epoch == 6
    assert [c.member for c in made.copies] == [member(3), member(4)]
    at = better.copy.durable
    said = " ".join(made.words)
    assert f"Operations after epoch {at.epoch}, seq {at.seq} are lost, also those that n0, n1, n2 acknowledged" in said
    assert "written at 2023-11-14T22:13:20+00:00: at most what was written since" in said
    assert made.absent == ("n0", "n1", "n2")


def test_a_copy_that_the_record_names_no_more_is_better_than_a_learner_that_has_less() -> None:
    now = replace(RECORD, learners=frozenset({member(3)}))
    made = plan(now, n0=GONE, n1=GONE, n2=GONE, n3=has(3, 5, 7), n4=has(4, 5, 8))
    assert made.chosen and made.chosen.member == member(4)
    assert made.target and made.target.learners == {member(3)}, "the learner goes on learning"


def test_the_epoch_is_one_that_no_copy_has_heard_of() -> None:
    made = plan(n0=GONE, n1=GONE, n2=GONE, n3=has(3, 5, 7), n4=has(4, 5, 8))
    assert made.target and made.target.epoch == 6
    ahead = has(4, 5, 8)
    ahead = replace(ahead, copy=replace(ahead.copy, epoch=Epoch(9)))
    made = plan(n0=GONE, n1=GONE, n2=GONE, n3=has(3, 5, 7), n4=ahead)
    assert made.target and made.target.epoch == 10


def test_another_disk_of_a_member_is_no_copy_in_sync() -> None:
    other = Answer(member(0, disk=2))
    made = plan(n0=other, n1=GONE, n2=has(2))
    assert made.refusal is None and made.missing[0].why == "no longer has the disk that held it"
    filled = Answer(member(0, disk=2), copy(0, member=member(0, disk=2)))
    assert plan(n0=filled, n1=GONE, n2=has(2)).target.in_sync == {member(2)}


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"n0": has(0), "n1": has(1), "n2": GONE}, "n0, n1 can serve it: 2 copies in sync, and it needs 2"),
        ({"n0": Silence(has_lease=True), "n1": GONE, "n2": has(2)}, "node n0 has a lease and does not answer"),
        ({"n0": Answer(member(0), busy="is opening it"), "n1": GONE, "n2": has(2)}, "node n0 is opening it: wait"),
        ({"n0": GONE, "n1": GONE, "n2": has(2, trouble="full", is_mendable=True)}, "the copy on node n2 waits (full)"),
        ({"n0": GONE, "n1": GONE, "n2": GONE}, "no node that answers has a copy that could be used"),
        ({"n0": GONE, "n1": GONE, "n2": GONE, "n3": Answer(member(3))}, "no node that answers has a copy"),
        ({"n0": GONE, "n1": GONE, "n2": GONE, "n3": has(3, trouble="torn")}, "no node that answers has a copy"),
        # Something better than what is there may come of it:
        ({"n0": GONE, "n1": GONE, "n2": GONE, "n3": has(3), "n4": Silence(has_lease=True)}, "node n4 has a lease"),
        ({"n0": GONE, "n1": GONE, "n2": GONE, "n3": has(3), "n4": Answer(member(4), busy="looks")}, "node n4 looks"),
        (
            {"n0": GONE, "n1": GONE, "n2": GONE, "n3": has(3), "n4": has(4, trouble="full", is_mendable=True)},
            "the copy on node n4 waits (full)",
        ),
    ],
)
def test_it_is_refused_while_the_shard_can_be_served_or_a_node_may_yet_help(answers: Answers, why: str) -> None:
    made = plan(**answers)
    assert made.refusal and why in made.refusal and made.target is None and not made.words


def test_a_shard_that_was_never_opened_is_left_to_the_leader() -> None:
    assert "never opened" in str(plan(replace(RECORD, epoch=Epoch(0)), n0=GONE, n1=GONE, n2=has(2)).refusal)


def test_nodes_that_are_none_of_its_copies_hold_nothing_up_when_nothing_is_lost() -> None:
    made = plan(n0=GONE, n1=GONE, n2=has(2), n3=Silence(has_lease=True), n4=Answer(member(4), busy="looks"))
    assert made.refusal is None and made.absent == ("n0", "n1")


def test_a_single_copy_that_is_damaged_and_there_is_not_given_up_for_an_older_one() -> None:
    now = configuration(0, min_in_sync=1)
    made = plan(now, 1, n0=has(0, trouble="its log is damaged"), n1=has(1, 4, 50))
    assert "its only copy in sync is on node n0, which answers reads" in str(made.refusal)
    doubtful = plan(now, 1, n0=has(0, doubt="its end is torn"), n1=has(1, 4, 50))
    assert "n0 can serve it" in str(doubtful.refusal)


def test_of_doubtful_copies_the_best_is_taken_and_its_doubts_are_told() -> None:
    made = plan(n0=has(0, 5, 100, doubt="its end is torn"), n1=GONE, n2=GONE, n3=has(3, 5, 90))
    assert made.chosen and made.chosen.member == member(0)
    said = " ".join(made.words)
    assert "may lack something before that, too: its end is torn" in said and "Nothing that was" not in said
    same = plan(n0=has(0, 5, 100, doubt="its end is torn"), n1=GONE, n2=GONE, n3=has(3, 5, 100))
    assert same.chosen and same.chosen.member == member(3)


def test_a_better_copy_that_cannot_be_used_and_nodes_that_say_nothing_are_named() -> None:
    made = plan(n0=has(0, 5, 200, trouble="its log is damaged"), n1=GONE, n2=GONE, n3=has(3), n4=GONE)
    said = " ".join(made.words)
    assert "Node n0 has a copy up to epoch 5, seq 200 that cannot be used (its log is damaged). It is deleted" in said
    assert "No answer came from node n4" in said
    assert made.missing[0].why == "has a copy that cannot be relied on: its log is damaged"


def test_an_empty_copy_means_that_everything_is_lost() -> None:
    made = plan(n0=GONE, n1=GONE, n2=GONE, n3=has(3, 0, 0, written=None))
    assert "everything that the shard held is lost" in made.words[0] and "written at" not in " ".join(made.words)


def test_a_plan_is_named_after_its_record_and_the_copies_that_it_goes_on_with() -> None:
    made = plan(n0=GONE, n1=GONE, n2=has(2))
    assert made.expected == "7 n2/n2/1"
    assert made.expected == plan(n0=GONE, n1=GONE, n2=has(2, seq=101), n3=has(3)).expected
    assert made.expected != plan(replace(RECORD, revision=8), n0=GONE, n1=GONE, n2=has(2)).expected
    assert made.expected != plan(n0=GONE, n1=GONE, n2=GONE, n3=has(3)).expected
    assert plan(n0=GONE, n1=GONE, n2=GONE).expected == "7"


# ---- whatever is left ------------------------------------------------------------------------------------------------


@st.composite
def _answers(draw: st.DrawFn) -> Answers:
    found: dict[NodeId, Answer | Silence] = {}
    for number in draw(st.sets(st.integers(0, 6))):
        me = member(number, draw(st.sampled_from([1, 1, 2])))
        held = Copy(
            me,
            Position(Epoch(draw(st.integers(1, 5))), Seq(draw(st.integers(1, 9)))),
            Epoch(5),
            doubt=draw(st.sampled_from([None, None, "torn"])),
            trouble=draw(st.sampled_from([None, None, "broken"])),
            is_mendable=draw(st.booleans()),
        )
        said = st.sampled_from([Answer(me, held), Answer(me, held), Answer(me), Answer(me, busy="waits"), Silence()])
        found[NodeId(f"n{number}")] = draw(said | st.builds(Silence, st.booleans()))
    return found


@st.composite
def _records(draw: st.DrawFn) -> Configuration:
    order = draw(st.permutations(range(7)))
    size = draw(st.integers(1, 5))
    learners = frozenset(member(n) for n in order[size : size + draw(st.integers(0, 2))])
    low = draw(st.integers(1, size))
    return configuration(*order[:size], learners=learners, min_in_sync=low, replicas=max(size, 3), epoch=Epoch(5))


@in_its_own_time
@given(_records(), _answers())
def test_a_copy_that_is_in_sync_is_never_given_up_for_one_that_is_not(now: Configuration, answers: Answers) -> None:
    made = decide(SHARD, now, 3, answers)
    copies = [a.copy for a in answers.values() if isinstance(a, Answer) and a.copy]
    good = {c.member for c in copies if c.member in now.in_sync and not c.trouble and not c.doubt}
    if len(good) >= now.min_in_sync:
        assert made.refusal
    if made.target is None:
        return
    assert not made.refusal and made.target.in_sync == (good or {made.target.primary})
    assert made.target.primary in made.target.in_sync and made.target.epoch > now.epoch
    assert not made.target.in_sync & made.target.learners
    assert 1 <= made.target.min_in_sync <= min(now.min_in_sync, len(made.target.in_sync))
    assert made.target.learners <= now.learners and made.loses_nothing == bool(good)
    if not good:
        assert made.chosen and all(made.chosen.durable >= c.durable for c in copies if not c.trouble)


@in_its_own_time
@given(_records(), _answers())
def test_on_what_was_done_nothing_is_done_again(now: Configuration, answers: Answers) -> None:
    target = decide(SHARD, now, 3, answers).target
    if target and not answers[target.primary.node].copy.doubt:
        assert "can serve it" in str(decide(SHARD, target, 3, answers).refusal)


# ---- afterwards ------------------------------------------------------------------------------------------------------


@in_its_own_time
@given(_records(), st.integers(1, 5))
def test_the_leader_asks_for_more_copies_again_as_soon_as_they_are_in_sync(now: Configuration, wanted: int) -> None:
    shards: dict[ShardId, Configuration] = {SHARD: now}
    changes = list(lost_quorum.restore(shards, {SHARD.collection: wanted}))
    floor = max(now.min_in_sync, min(wanted, len(now.in_sync)))
    assert [c.target for c in changes] == ([replace(now, min_in_sync=floor)] if floor != now.min_in_sync else [])
    assert all(c.revision == now.revision for c in changes)
    assert not list(lost_quorum.restore({c.shard: c.target for c in changes}, {SHARD.collection: wanted}))


def test_what_the_collection_wants_is_never_lowered_by_it_and_what_was_never_opened_is_left_alone() -> None:
    assert not list(lost_quorum.restore({SHARD: RECORD}, {SHARD.collection: 1}))
    young = replace(RECORD, epoch=Epoch(0), min_in_sync=1)
    assert not list(lost_quorum.restore({SHARD: young}, {SHARD.collection: 2}))


# ---- what a node answers ---------------------------------------------------------------------------------------------


class Host:
    """What is on the disk: an inspection, or what goes wrong with it."""

    def __init__(self, found: Inspection | Exception | None) -> None:
        self.found = found

    async def inspect(self, *_: object) -> Inspection | None:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


INSPECTION = Inspection(
    Position(Epoch(5), Seq(9)), Epoch(6), vectors=3, written_ns=7, doubt=None, trouble=None, is_mendable=False
)


def asked(identity: Identity, found: Inspection | Exception | None) -> LostQuorum:
    state = ClusterState(collections={"words": collection("words", 1)})
    host: Any = Host(found)
    nobody: Any = None
    return LostQuorum(identity, host, nobody, state=lambda: state, store=nobody, watch=nobody)


@pytest.mark.parametrize(
    ("found", "copy", "busy"),
    [
        (INSPECTION, ((5, 9), 6, None), None),
        (None, None, None),
        (StorageCorrupt("format 9"), ((0, 0), 0, "format 9"), None),
        (Unavailable("it is open"), None, "cannot look at its copy now (it is open)"),
    ],
)
async def test_a_node_answers_with_what_it_holds_or_why_it_cannot_say(
    tmp_path: Path, found: Any, copy: Any, busy: str | None
) -> None:
    identity, shard = claim(tmp_path, "n0"), ShardId("uuid-words", 0)
    identity.begin(shard)
    said = await asked(identity, found).answer(m.GetCopy(shard=shard))
    assert (said.member, said.busy) == (identity.member(shard), busy)
    assert (said.copy and (said.copy.durable, said.copy.epoch, said.copy.trouble)) == copy


async def test_what_was_given_up_on_a_disk_and_what_was_dropped_is_no_copy(tmp_path: Path) -> None:
    identity, shard = claim(tmp_path, "n0"), ShardId("uuid-words", 0)
    identity.begin(shard)
    identity.renew(shard)
    assert (await asked(identity, INSPECTION).answer(m.GetCopy(shard=shard))).copy is None
    dropped = ShardId("uuid-other", 0)
    identity.begin(dropped)
    assert (await asked(identity, INSPECTION).answer(m.GetCopy(shard=dropped))).copy is None
