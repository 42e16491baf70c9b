"""What single replicas do, step by step; what several of them keep together is for the simulation."""

from dataclasses import replace

from hypothesis import given, settings

from support.replication import Log, configuration, lineage_of, logs, member
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication import reading
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.events import Outcome
from veccluster.decisions.replication.journal import Recovered
from veccluster.decisions.replication.messages import (
    Accepted,
    Contradicted,
    Header,
    Message,
    Rejected,
    Replicate,
    Snapshot,
    sender_of,
)
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import Lineage, Member, Position, Record, Run
from veccluster.model.state import Epoch, ReadConsistency, Revision, Seq, WriteConsistency

ME, OTHER, THIRD = member(0), member(1), member(2)


@settings(deadline=None)
@given(logs())
def test_lineages_agree_as_far_as_the_logs_do(both: tuple[Log, Log]) -> None:
    mine, theirs = both
    same = [a == b for a, b in zip(mine, theirs, strict=False)]
    agreed = same.index(False) if False in same else len(same)
    found = lineage_of(mine).agrees_with(lineage_of(theirs), Seq(min(len(mine), len(theirs))))
    assert found == agreed


@settings(deadline=None)
@given(logs())
def test_a_lineage_knows_the_epoch_of_every_seq_also_after_a_cut(both: tuple[Log, Log]) -> None:
    log = both[0]
    for after in range(len(log) + 1):
        cut = lineage_of(log).cut(Seq(after))
        assert [cut.epoch_at(Seq(seq + 1)) for seq in range(after)] == log[:after]


def primary_of(*in_sync: int, **changes: object) -> Replica:
    """A replica that serves the epoch on record."""
    replica = Replica(ME, Recovered())
    now = configuration(*in_sync, **changes)
    assert kinds(replica.handle(on.Seen(now))) == [do.StoreEpoch, do.Sync]
    assert do.BecomePrimary in kinds(replica.handle(on.Synced(1)))
    return replica


def kinds(effects: list[do.Effect]) -> list[type]:
    return [type(e) for e in effects]


def write(op_id: str = "a", level: WriteConsistency = WriteConsistency.one) -> on.Write:
    return on.Write(op_id, 1, b"", level)


def received(message: Message) -> on.Received:
    """A message that came from whom it names."""
    return on.Received(message, sender_of(message).node)


def accept(replica: Replica, who: Member, matched: int, confirm: int = 0) -> list[do.Effect]:
    epoch = replica.primary.epoch if replica.primary else Epoch(0)
    return replica.handle(received(Accepted(epoch, who, Seq(matched), confirm)))


def of(kind: type, effects: list[do.Effect]) -> list[do.Effect]:
    return [e for e in effects if isinstance(e, kind)]


def test_a_single_replica_acknowledges_when_its_own_disk_has_it() -> None:
    replica = primary_of(0)
    assert kinds(replica.handle(write())) == [do.Append, do.Sync]
    assert kinds(replica.handle(on.Synced(2))) == [do.Apply, do.Acknowledge]


def test_a_write_is_acknowledged_when_every_member_has_it_and_not_before() -> None:
    replica = primary_of(0, 1, 2)
    replica.handle(write())
    assert of(do.Acknowledge, replica.handle(on.Synced(2))) == []
    assert of(do.Acknowledge, accept(replica, OTHER, 1)) == []
    assert of(do.Acknowledge, accept(replica, THIRD, 1)) == [do.Acknowledge("a", Position(Epoch(2), Seq(1)))]


def test_a_primary_is_complete_when_everybody_has_everything_and_nothing_is_asked() -> None:
    replica = primary_of(0, 1, 2)
    primary = replica.primary
    assert primary is not None
    assert not primary.is_complete, "nobody has said anything yet"
    for who in (OTHER, THIRD):
        accept(replica, who, 0)
    assert primary.is_complete
    replica.handle(write())
    replica.handle(on.Synced(2))
    accept(replica, OTHER, 1)
    assert not primary.is_complete
    accept(replica, THIRD, 1)
    assert primary.is_complete
    replica.handle(on.Read("r", ReadConsistency.strong))
    assert not primary.is_complete, "somebody waits for a confirmation"
    for who in (OTHER, THIRD):
        accept(replica, who, 1, confirm=1)
    assert primary.is_complete
    replica.handle(on.Tick(frozenset({THIRD})))
    assert not primary.is_complete, "a change of the record is on its way"


def test_a_write_that_asks_for_more_copies_than_there_are_stores_nothing() -> None:
    replica = primary_of(0, 1, replicas=3)
    refused = replica.handle(write(level=WriteConsistency.all))
    assert refused == [do.Refuse("a", Why.too_few_copies)]
    assert of(do.Append, replica.handle(write("b", WriteConsistency.quorum)))


def test_a_silent_member_is_waited_for_until_etcd_has_let_it_go() -> None:
    replica = primary_of(0, 1, 2)
    for who in (OTHER, THIRD):
        accept(replica, who, 0)
    swaps = of(do.Swap, replica.handle(on.Tick(frozenset({THIRD}))))
    assert [s.target.in_sync for s in swaps] == [{ME, OTHER}]
    assert [s.target.learners for s in swaps] == [{THIRD}]
    replica.handle(write())
    replica.handle(on.Synced(2))
    assert of(do.Acknowledge, accept(replica, OTHER, 1)) == []
    gone = replace(swaps[0].target, revision=Revision(8))
    assert of(do.Acknowledge, replica.handle(on.Answered(swaps[0].target, Outcome.swapped, gone)))


def test_slowness_never_takes_the_in_sync_set_below_its_minimum() -> None:
    replica = primary_of(0, 1)
    assert of(do.Swap, replica.handle(on.Tick(frozenset({OTHER})))) == []
    assert of(do.Append, replica.handle(write()))
    assert of(do.Acknowledge, replica.handle(on.Synced(2))) == []


def test_while_a_change_may_have_been_made_it_waits_for_the_union_and_counts_the_intersection() -> None:
    replica = primary_of(0, 1, 2, min_in_sync=2)
    for who in (OTHER, THIRD):
        accept(replica, who, 0)
    (swap,) = of(do.Swap, replica.handle(on.Tick(frozenset({THIRD}))))
    assert of(do.ReadConfiguration, replica.handle(on.Answered(swap.target, Outcome.unknown)))
    assert replica.primary is not None
    assert replica.primary.waiting == {ME, OTHER, THIRD}
    assert replica.primary.counted == {ME, OTHER}
    replica.handle(on.Seen(configuration(0, 1, 2, min_in_sync=2)))  # the same revision proves nothing: it may come yet
    assert replica.primary.waiting == {ME, OTHER, THIRD}
    assert of(do.Swap, replica.handle(on.Tick())) == [swap]  # asked again, until one answer settles it
    replica.handle(on.Seen(configuration(0, 1, 2, min_in_sync=2, revision=Revision(9))))
    assert replica.primary.counted == {ME, OTHER, THIRD}


def test_a_learner_is_waited_for_from_the_moment_it_may_be_in_sync() -> None:
    replica = primary_of(0, 1, learners=frozenset({THIRD}), replicas=3)
    replica.handle(write())
    replica.handle(on.Synced(2))
    accept(replica, OTHER, 1)
    assert of(do.Swap, accept(replica, THIRD, 0)) == []
    (swap,) = of(do.Swap, accept(replica, THIRD, 1))
    assert swap.target.in_sync == {ME, OTHER, THIRD}
    assert swap.target.learners == frozenset()
    replica.handle(write("b"))
    replica.handle(on.Synced(3))
    assert of(do.Acknowledge, accept(replica, OTHER, 2)) == []
    assert of(do.Acknowledge, accept(replica, THIRD, 2))


def test_a_primary_hands_over_when_all_it_took_on_is_committed_and_takes_on_no_more() -> None:
    replica = primary_of(0, 1)
    accept(replica, OTHER, 0)
    replica.handle(write())
    asked = configuration(0, 1, successor=OTHER, revision=Revision(8))
    assert of(do.Swap, replica.handle(on.Seen(asked))) == []
    assert replica.handle(write("b")) == [do.Refuse("b", Why.moving)]
    replica.handle(on.Synced(2))
    done = accept(replica, OTHER, 1)
    assert of(do.Acknowledge, done)
    (swap,) = of(do.Swap, done)
    assert (swap.target.primary, swap.target.epoch, swap.target.successor) == (OTHER, 3, None)
    assert swap.target.in_sync == {ME, OTHER}
    moved = replace(swap.target, revision=Revision(9))
    assert do.BecomeFenced(Epoch(2)) in replica.handle(on.Answered(swap.target, Outcome.swapped, moved))


def test_a_write_that_nobody_waits_for_any_more_is_not_answered() -> None:
    replica = primary_of(0, 1)
    replica.handle(write())
    replica.handle(on.Synced(2))
    replica.handle(on.Forget("a"))
    assert of(do.Acknowledge, accept(replica, OTHER, 1)) == []


def test_another_disk_of_a_member_takes_its_place() -> None:
    new = member(1, disk=2)
    replica = primary_of(0, 1, learners=frozenset({new}))
    (swap,) = of(do.Swap, accept(replica, new, 0))
    assert swap.target.in_sync == {ME, new}


def test_a_strong_read_waits_for_confirmations_that_were_asked_for_after_it_came() -> None:
    replica = primary_of(0, 1)
    accept(replica, OTHER, 0)
    asked = replica.handle(on.Read("r", ReadConsistency.strong))
    assert [e.message.header.confirm for e in of(do.Send, asked)] == [1]
    assert of(do.Serve, accept(replica, OTHER, 0, confirm=0)) == []
    assert of(do.Serve, accept(replica, OTHER, 0, confirm=1)) == [do.Serve("r", Position(Epoch(0), Seq(0)))]


def test_a_primary_that_hears_of_a_later_epoch_answers_nothing_more() -> None:
    replica = primary_of(0, 1)
    replica.handle(write())
    replica.handle(on.Read("r", ReadConsistency.strong))
    ended = replica.handle(received(Rejected(Epoch(3), OTHER)))
    assert do.Uncertain("a", Why.fenced) in ended
    assert do.RefuseRead("r", Why.fenced) in ended
    assert do.BecomeFenced(Epoch(2)) in ended
    assert replica.handle(write("b")) == [do.Refuse("b", Why.not_primary)]


def test_a_primary_that_restarts_asks_for_the_next_epoch() -> None:
    found = Recovered(epoch=Epoch(2), lineage=Lineage((Run(Epoch(2), Seq(1)),)), last=Seq(1))
    replica = Replica(ME, found)
    (swap,) = replica.handle(on.Seen(configuration(0, 1)))
    assert (swap.target.epoch, swap.expected) == (3, 7)
    taken = replace(swap.target, revision=Revision(8))
    assert kinds(replica.handle(on.Answered(swap.target, Outcome.swapped, taken))) == [do.StoreEpoch, do.Sync]
    assert do.BecomePrimary(Epoch(3)) in replica.handle(on.Synced(1))


def test_a_disk_that_is_not_the_one_on_record_serves_nothing() -> None:
    replica = Replica(member(0, disk=2), Recovered())
    assert replica.handle(on.Seen(configuration(0, 1))) == []
    assert replica.handle(on.Tick()) == []


def test_a_retry_is_answered_with_where_the_write_is() -> None:
    replica = primary_of(0, 1)
    accept(replica, OTHER, 0)
    replica.handle(write())
    assert of(do.Append, replica.handle(write())) == []
    replica.handle(on.Synced(2))
    assert of(do.Acknowledge, accept(replica, OTHER, 1)) == [do.Acknowledge("a", Position(Epoch(2), Seq(1)))]
    again = replica.handle(replace(write(), applied=Seq(1)))
    assert of(do.Acknowledge, again) == [do.Acknowledge("a", Position(Epoch(2), Seq(1)))]


def header(epoch: int, lineage: Lineage, commit: int = 0) -> Header:
    return Header(Epoch(epoch), OTHER, ME, lineage, Seq(commit), 0)


def records(epoch: int, first: int, last: int) -> tuple[Record, ...]:
    return tuple(Record(Epoch(epoch), Seq(s), 1, f"{epoch}.{s}", b"") for s in range(first, last + 1))


def follower(*runs: Run, last: int, applied: int = 0) -> Replica:
    epoch = runs[-1].epoch if runs else Epoch(0)
    return Replica(ME, Recovered(epoch, Lineage(runs), last=Seq(last), applied=Seq(applied)))


def hear(replica: Replica, message: Replicate | Snapshot) -> list[do.Effect]:
    """What it does about a message of the primary that etcd has named, in the epoch that etcd has."""
    epoch = message.header.epoch
    replica.handle(on.Seen(configuration(1, 0, epoch=epoch, revision=Revision(100 + epoch))))
    return replica.handle(received(message))


ONE = Run(Epoch(1), Seq(1))


def test_a_follower_cuts_its_log_at_the_first_difference_and_answers_when_its_disk_has_done_it() -> None:
    replica = follower(ONE, last=5)
    theirs = Lineage((ONE, Run(Epoch(2), Seq(4))))
    first = hear(replica, Replicate(header(2, theirs), records(2, 4, 4)))
    assert first == [do.StoreEpoch(Epoch(2)), do.Truncate(Seq(3)), do.Append(records(2, 4, 4)), do.Sync(1)]
    answered = replica.handle(on.Synced(1))
    assert answered == [do.Send(OTHER, Accepted(Epoch(2), ME, Seq(4), 0, floors=True))]


def test_a_late_message_of_an_epoch_cuts_nothing_that_the_epoch_wrote() -> None:
    replica = follower(ONE, last=3)
    theirs = Lineage((ONE, Run(Epoch(2), Seq(4))))
    hear(replica, Replicate(header(2, theirs), records(2, 4, 6)))
    assert of(do.Truncate, hear(replica, Replicate(header(2, theirs)))) == []


def test_a_follower_is_complete_when_it_has_applied_all_that_its_primary_by_etcd_has() -> None:
    replica = follower(last=0)
    assert replica.complete() is None
    lineage = Lineage((Run(Epoch(2), Seq(1)),))
    hear(replica, Replicate(header(2, lineage), records(2, 1, 3)))
    replica.handle(on.Synced(1))
    assert replica.complete() is None, "it has not heard that it is committed"
    hear(replica, Replicate(header(2, lineage, commit=3)))
    assert replica.complete() == OTHER
    now = replica.configuration
    assert now is not None
    replica.handle(on.Seen(replace(now, epoch=Epoch(3), primary=THIRD, revision=Revision(9))))
    assert replica.complete() is None, "another one is primary"


def test_a_follower_takes_nothing_of_an_epoch_that_is_over() -> None:
    replica = follower(ONE, Run(Epoch(4), Seq(3)), last=3)
    old = hear(replica, Replicate(header(3, Lineage((ONE,))), records(3, 4, 4)))
    assert old == [do.Send(OTHER, Rejected(Epoch(4), ME))]


def test_a_follower_applies_what_is_committed_and_durable() -> None:
    replica = follower(ONE, last=2)
    theirs = Lineage((ONE,))
    assert of(do.Apply, hear(replica, Replicate(header(1, theirs, commit=3), records(1, 3, 4)))) == [do.Apply(Seq(2))]
    assert of(do.Apply, replica.handle(on.Synced(1))) == [do.Apply(Seq(3))]


def test_a_gap_is_not_filled_with_what_comes_behind_it() -> None:
    replica = follower(ONE, last=2)
    assert of(do.Append, hear(replica, Replicate(header(1, Lineage((ONE,))), records(1, 4, 5)))) == []


def test_a_follower_that_is_told_to_cut_what_it_has_applied_stops() -> None:
    replica = follower(ONE, last=5, applied=5)
    theirs = Lineage((ONE, Run(Epoch(2), Seq(4))))
    assert kinds(hear(replica, Replicate(header(2, theirs)))) == [do.Diverged]
    assert replica.broken
    assert hear(replica, Replicate(header(2, theirs))) == []


def test_a_primary_that_begins_its_epoch_twice_is_contradicted_and_not_followed() -> None:
    replica = follower(ONE, last=5)
    hear(replica, Replicate(header(2, Lineage((ONE, Run(Epoch(2), Seq(6))))), records(2, 6, 7)))
    replica.handle(on.Synced(1))
    again = Lineage((ONE, Run(Epoch(2), Seq(4))))
    (sent,) = hear(replica, Replicate(header(2, again), records(2, 8, 8)))
    assert sent == do.Send(OTHER, Contradicted(Epoch(2), ME, "it began epoch 2 twice"))
    assert not replica.broken


def test_a_sync_that_was_asked_for_before_a_cut_does_not_claim_what_was_cut() -> None:
    replica = follower(last=0)
    hear(replica, Replicate(header(1, Lineage((ONE,))), records(1, 1, 5)))
    second = Lineage((ONE, Run(Epoch(2), Seq(3))))
    hear(replica, Replicate(header(2, second), records(2, 3, 3)))
    assert replica.handle(on.Synced(1)) == []  # the new epoch is not durable yet
    assert replica.journal.durable == 2
    (sent,) = of(do.Send, replica.handle(on.Synced(2)))
    assert sent.message == Accepted(Epoch(2), ME, Seq(3), 0, floors=True)


def test_nothing_is_applied_between_the_installation_of_a_snapshot_and_its_sync() -> None:
    replica = follower(ONE, last=5, applied=3)
    theirs = Lineage((ONE,))
    installed = hear(replica, Snapshot(header(1, theirs, commit=50), Seq(50), "content"))
    assert kinds(installed) == [do.InstallSnapshot, do.Sync]
    assert replica.journal.applied == 3
    (sent,) = replica.handle(on.Synced(1))
    assert sent.message == Accepted(Epoch(1), ME, Seq(50), 0, floors=True)
    assert replica.journal.applied == 50


def test_reads_at_session_and_eventual_are_for_who_is_in_sync_and_has_come_so_far() -> None:
    replica = follower(ONE, last=5, applied=5)
    session = on.Read("r", ReadConsistency.session, Seq(5))
    assert replica.handle(session) == [do.RefuseRead("r", Why.not_in_sync)]
    replica.handle(on.Seen(configuration(1, 0)))
    assert replica.handle(session) == [do.Serve("r", Position(Epoch(1), Seq(5)))]
    assert replica.handle(replace(session, at_least=Seq(6))) == [do.RefuseRead("r", Why.behind)]
    assert replica.handle(on.Read("e", ReadConsistency.eventual)) == [do.Serve("e", Position(Epoch(1), Seq(5)))]


def test_a_quorum_read_reaches_as_far_as_the_newest_epoch_among_those_asked() -> None:
    stale = Position(Epoch(2), Seq(9))
    assert reading.reach([stale, Position(Epoch(3), Seq(7))]) == 7
    assert reading.enough(configuration(0, 1, 2)) == 2
    assert reading.enough(configuration(0, replicas=3)) == 1  # the only one that has everything


def test_a_replica_whose_disk_failed_serves_no_epoch_and_answers_no_primary() -> None:
    replica = primary_of(0, 1)
    assert do.BecomeFenced(Epoch(2)) in replica.handle(on.DiskFailed())
    assert replica.handle(on.Tick()) == []
    assert replica.handle(on.Seen(configuration(0, 1, epoch=Epoch(5), revision=Revision(9)))) == []


HUGE = Epoch(1 << 60)


def test_an_epoch_that_etcd_does_not_have_is_not_followed_and_etcd_is_asked_once_until_the_next_tick() -> None:
    replica = follower(ONE, last=5)
    replica.handle(on.Seen(configuration(1, 0, epoch=Epoch(1))))
    forged = received(Replicate(header(HUGE, Lineage((ONE, Run(HUGE, Seq(6))))), records(HUGE, 6, 6)))
    assert replica.handle(forged) == [do.ReadConfiguration()]
    assert [replica.handle(forged) for _ in range(100)] == [[]] * 100
    assert replica.journal.epoch == 1
    replica.handle(on.Tick())
    assert replica.handle(forged) == [do.ReadConfiguration()]
    assert of(do.Append, hear(replica, Replicate(header(1, Lineage((ONE,))), records(1, 6, 6))))


def test_only_the_member_that_etcd_names_is_followed_in_an_epoch_and_in_none_that_is_over() -> None:
    replica = follower(ONE, last=5)
    replica.handle(on.Seen(configuration(2, 0, 1, epoch=Epoch(3))))
    theirs = Lineage((ONE, Run(Epoch(3), Seq(6))))
    assert replica.handle(received(Replicate(header(3, theirs), records(3, 6, 6)))) == []
    over = replica.handle(received(Replicate(header(2, theirs), records(2, 6, 6))))
    assert over == [do.Send(OTHER, Rejected(Epoch(3), ME))], "whoever was it hears that it is not any more"
    assert replica.journal.last == 5


def test_what_says_that_it_is_from_another_node_than_it_came_from_counts_for_nothing() -> None:
    replica = primary_of(0, 1)
    accept(replica, OTHER, 0)
    replica.handle(write())
    replica.handle(on.Synced(2))
    source = THIRD.node
    for lie in (
        Accepted(Epoch(2), OTHER, Seq(1), 0),
        Accepted(Epoch(2), OTHER, Seq(99), 0),
        Rejected(HUGE, OTHER),
        Contradicted(Epoch(2), OTHER, "made up"),
        Replicate(Header(HUGE, OTHER, ME, Lineage((ONE,)), Seq(0), 0)),
    ):
        assert replica.handle(on.Received(lie, source)) == []
        assert replica.hears(on.Received(lie, source)) is None
    assert replica.primary is not None
    assert of(do.Acknowledge, accept(replica, OTHER, 1))


def test_who_is_no_member_does_not_end_an_epoch() -> None:
    replica = primary_of(0, 1)
    for stranger in (THIRD, member(1, disk=2)):
        assert replica.handle(received(Rejected(HUGE, stranger))) == []
        assert replica.handle(received(Contradicted(Epoch(2), stranger, "made up"))) == []
    assert replica.primary is not None


def test_a_primary_whose_members_know_later_epochs_than_etcd_begins_one_that_is_beyond_them() -> None:
    replica = primary_of(0, 1)
    replica.handle(received(Rejected(Epoch(9), OTHER)))  # etcd was put back to what it held before
    (swap,) = of(do.Swap, replica.handle(on.Seen(configuration(0, 1))))
    assert (swap.target.epoch, swap.expected) == (10, 7)
    restarted = Replica(ME, Recovered(epoch=Epoch(9)))
    (swap,) = restarted.handle(on.Seen(configuration(0, 1)))
    assert swap.target.epoch == 10
