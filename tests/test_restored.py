"""What a shard's record is to say after etcd went back: nothing that was acknowledged is lost, whoever answers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veccluster.decisions.etcd_history import Seen, went_back
from veccluster.decisions.lost_quorum import Copy
from veccluster.decisions.replication.values import Configuration, Lineage, Member, Position, Run
from veccluster.decisions.restored import Heard, Settle, Wait, decide
from veccluster.model.cluster import History
from veccluster.model.state import Epoch, Incarnation, NodeId, Revision, Seq

A, B, C, D = (Member(NodeId(n), Incarnation(f"disk-{n}")) for n in "abcd")


def config(epoch: int, *members: Member, revision: int = 1, minimum: int = 2, **changes: object) -> Configuration:
    made = Configuration(Epoch(epoch), members[0], frozenset(members), min_in_sync=minimum, replicas=3)
    return replace(made, revision=Revision(revision), **changes)


def copy(member: Member, *runs: tuple[int, int], end: int, committed: int | None = None, **changes: object) -> Copy:
    lineage = Lineage(tuple(Run(Epoch(e), Seq(f)) for e, f in runs))
    at = Seq(end if committed is None else committed)
    made = Copy(
        member,
        Position(lineage.epoch_at(Seq(end)), Seq(end)),
        epoch=lineage.newest,
        committed=Position(lineage.epoch_at(at), at),
        lineage=lineage,
    )
    return replace(made, **changes)


def heard(found: Copy, known: Configuration | None = None, *, serves: bool = False) -> Heard:
    return Heard(found.member, found, known, serves)


def settled(outcome: Settle | Wait) -> Configuration:
    assert isinstance(outcome, Settle), outcome
    return outcome.target


OLD = config(3, A, B, C)


def test_who_serves_goes_on_with_the_copies_that_it_waits_for() -> None:
    now = config(5, B, C, revision=90)
    said = {
        A.node: heard(copy(A, (3, 1), end=10)),
        B.node: heard(copy(B, (3, 1), (5, 11), end=14), now, serves=True),
        C.node: heard(copy(C, (3, 1), (5, 11), end=13, committed=12), now),
    }
    target = settled(decide(OLD, said))
    assert (target.primary, target.in_sync) == (B, {B, C})
    assert target.epoch == 7, "a late request of the epoch before must not fit"
    assert decide(OLD, {**said, C.node: None, A.node: None}) == Wait("node c may have taken it over from node b")
    assert settled(decide(OLD, {**said, A.node: None})) == target


def test_who_was_replaced_since_does_not_go_on() -> None:
    later = config(6, C, A, revision=95)
    said = {
        B.node: heard(copy(B, (3, 1), (5, 11), end=14, committed=12), config(5, B, C, A, revision=90), serves=True),
        C.node: heard(copy(C, (3, 1), (5, 11), (6, 13), end=20), later, serves=True),
        A.node: heard(copy(A, (3, 1), (5, 11), (6, 13), end=20), later),
    }
    target = settled(decide(OLD, said))
    assert (target.primary, target.in_sync, target.epoch) == (C, {A, C}, 8)


def test_after_everyone_has_started_again_the_copies_that_have_come_furthest_are_in_sync() -> None:
    said = {
        A.node: heard(copy(A, (3, 1), end=10)),
        B.node: heard(copy(B, (3, 1), end=12)),
        C.node: heard(copy(C, (3, 1), end=12)),
    }
    target = settled(decide(OLD, said))
    assert (target.in_sync, target.learners) == ({B, C}, {A})
    assert settled(decide(OLD, {**said, A.node: None})).in_sync == {B, C}
    assert isinstance(decide(OLD, {**said, A.node: None, B.node: None}), Wait), "two could have acknowledged more"


def test_a_copy_that_lacks_what_another_knows_to_be_committed_does_not_count_whatever_its_epoch() -> None:
    """It was made primary by an etcd that had forgotten that it was not in sync any more."""
    wrong = config(4, A, B, C, revision=50)
    said = {
        A.node: heard(copy(A, (3, 1), (4, 11), end=13, committed=10), wrong, serves=True),
        B.node: heard(copy(B, (3, 1), end=12)),
        C.node: heard(copy(C, (3, 1), end=12, committed=11)),
    }
    target = settled(decide(wrong, said))
    assert A not in target.in_sync
    assert target.primary in {B, C}
    assert target.epoch == 6
    both = {**said, A.node: heard(copy(A, (3, 1), (4, 11), end=13), wrong, serves=True)}
    assert isinstance(decide(wrong, both), Wait), "both acknowledged something: only a person can choose"


def test_a_copy_that_is_not_known_to_be_whole_is_not_used() -> None:
    said = {
        A.node: heard(copy(A, (3, 1), end=12, doubt="its log was torn")),
        B.node: heard(copy(B, (3, 1), end=10)),
        C.node: heard(copy(C, (3, 1), end=10)),
    }
    assert isinstance(decide(OLD, said), Wait)


def test_a_shard_that_etcd_takes_for_new_keeps_what_it_has() -> None:
    new = config(0, C, D, A)
    said = {
        A.node: heard(copy(A, (1, 1), end=9)),
        B.node: heard(copy(B, (1, 1), end=9)),
        C.node: Heard(C),
        D.node: Heard(D),
    }
    target = settled(decide(new, said))
    assert (target.in_sync, target.epoch) == ({A, B}, 3)
    nothing = {m.node: Heard(m) for m in (A, C, D)}
    assert settled(decide(new, nothing)) == new


@given(
    ends=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    in_sync=st.sets(st.sampled_from([0, 1, 2]), min_size=2),
    silent=st.sets(st.sampled_from([0, 1, 2]), max_size=2),
    restarted=st.booleans(),
)
def test_no_answer_that_is_missing_makes_it_forget_what_was_acknowledged(
    ends: list[int], in_sync: set[int], silent: set[int], restarted: bool
) -> None:
    """Whatever is on all in-sync copies may have been acknowledged, and is on every copy that is called in sync."""
    members, acknowledged = (A, B, C), min(ends[i] for i in in_sync)
    last = config(4, *(members[i] for i in sorted(in_sync)), revision=90)
    said = {
        m.node: None if i in silent else heard(copy(m, (3, 1), end=ends[i], committed=0), None if restarted else last)
        for i, m in enumerate(members)
    }
    outcome = decide(OLD, said)
    if isinstance(outcome, Settle):
        assert all(ends[members.index(m)] >= acknowledged for m in outcome.target.in_sync)


@pytest.mark.parametrize(
    ("cluster", "revision", "keys", "is_another"),
    [
        (1, 9, {}, False),
        (1, 10, {"/a": 3}, False),
        (2, 20, {}, True),
        (1, 8, {}, True),
        (1, 20, {"/a": 3, "/b": 15}, False),
        (1, 20, {"/a": 4}, True),
        (1, 20, {"/a": 3, "/b": 8}, True),
        (1, 20, {}, False),
    ],
)
def test_an_etcd_that_went_back_is_found_out(
    cluster: int, revision: int, keys: dict[str, int], is_another: bool
) -> None:
    before = Seen(1, Revision(9), {"/a": Revision(3)})
    assert bool(went_back(before, cluster, Revision(revision), {k: Revision(r) for k, r in keys.items()})) is is_another


def test_a_history_that_knows_the_one_of_before_follows_it() -> None:
    first, none = History(id="1", before=("",)), History()
    second = History(id="2", before=("", "1"))
    assert first.follows(none)
    assert second.follows(first)
    assert not none.follows(first)
    assert not first.follows(second)
    assert not first.follows(first)
