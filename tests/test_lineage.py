"""A lineage may begin at a floor: what is before it is committed, and nobody asks any more who wrote it (8)."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.replication import Log, configuration, lineage_of, logs, member
from veccluster.decisions.lost_quorum import Copy
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.journal import Journal, Recovered
from veccluster.decisions.replication.messages import Accepted, Header, Message, Replicate, Snapshot, sender_of
from veccluster.decisions.replication.primary import Primary
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import Configuration, Lineage, Member, Position, Record, Run
from veccluster.model.state import Epoch, Revision, Seq, WriteConsistency

ME, OTHER, THIRD = member(0), member(1), member(2)


def agreed(mine: Log, theirs: Log) -> int:
    same = [a == b for a, b in zip(mine, theirs, strict=False)]
    return same.index(False) if False in same else len(same)


@settings(deadline=None)
@given(logs(), st.data())
def test_lineages_that_begin_within_what_all_logs_have_agree_as_far_as_the_logs_do(
    both: tuple[Log, Log], data: st.DataObject
) -> None:
    mine, theirs = both
    same = agreed(mine, theirs)
    one, other = (lineage_of(log).since(Seq(data.draw(st.integers(0, same)))) for log in both)
    assert one.agrees_with(other, Seq(min(len(mine), len(theirs)))) == same


@settings(deadline=None)
@given(logs(), st.data())
def test_a_floor_hides_no_difference_at_or_behind_it(both: tuple[Log, Log], data: st.DataObject) -> None:
    mine, theirs = both
    same, through = agreed(mine, theirs), min(len(mine), len(theirs))
    # One that has an operation has all that its primary had before it.
    assume(not any(a == b for a, b in zip(mine[same:], theirs[same:], strict=False)))
    lineage = lineage_of(theirs).since(Seq(data.draw(st.integers(0, len(theirs)))))
    found = lineage_of(mine).agrees_with(lineage, Seq(through))
    assert found >= same
    if through >= lineage.floor and same < through:
        assert found == max(same, lineage.floor - 1)


@settings(deadline=None)
@given(logs())
def test_below_its_floor_a_lineage_says_of_no_seq_who_wrote_it(both: tuple[Log, Log]) -> None:
    log = both[0]
    for seq in range(len(log) + 1):
        lineage = lineage_of(log).since(Seq(seq))
        known = [lineage.epoch_at(Seq(s + 1)) for s in range(len(log))]
        below = max(lineage.floor - 1, 0)
        assert known == [0] * below + log[below:]
        assert below < max(seq, 1)


def test_a_copy_has_whatever_is_committed_before_its_lineage_begins() -> None:
    lineage = Lineage((Run(Epoch(3), Seq(5)), Run(Epoch(4), Seq(8))))
    copy = Copy(ME, Position(Epoch(4), Seq(9)), lineage=lineage)
    assert copy.has(Position(Epoch(1), Seq(2)))
    assert copy.has(Position(Epoch(3), Seq(7)))
    assert not copy.has(Position(Epoch(2), Seq(7)))
    assert not copy.has(Position(Epoch(4), Seq(10)))


# -- the rules


def received(message: Message) -> on.Received:
    return on.Received(message, sender_of(message).node)


def header(epoch: int, lineage: Lineage, commit: int = 0, *, floors: bool = False) -> Header:
    return Header(Epoch(epoch), OTHER, ME, lineage, Seq(commit), 0, floors=floors)


def records(epoch: int, first: int, last: int) -> tuple[Record, ...]:
    return tuple(Record(Epoch(epoch), Seq(s), 1, f"{epoch}.{s}", b"") for s in range(first, last + 1))


def follower(*runs: tuple[int, int], last: int, applied: int = 0, epoch: int = 9) -> Replica:
    lineage = Lineage(tuple(Run(Epoch(e), Seq(first)) for e, first in runs))
    replica = Replica(ME, Recovered(lineage.newest, lineage, last=Seq(last), applied=Seq(applied)))
    replica.handle(on.Seen(configuration(1, 0, epoch=epoch, revision=Revision(100))))
    return replica


def hear(replica: Replica, message: Replicate | Snapshot) -> list[do.Effect]:
    """What comes of a message, and of the sync that it asks for."""
    effects = replica.handle(received(message))
    for sync in [e for e in effects if isinstance(e, do.Sync)]:
        effects += replica.handle(on.Synced(sync.ticket))
    return effects


THEIRS = Lineage((Run(Epoch(5), Seq(20)), Run(Epoch(9), Seq(31))))


@pytest.mark.parametrize("runs", [((1, 1),), ((1, 1), (4, 7))])
def test_a_log_that_ends_before_the_primarys_lineage_begins_is_replaced_by_a_snapshot(
    runs: tuple[tuple[int, int], ...],
) -> None:
    replica = follower(*runs, last=9, applied=5)
    heard = hear(replica, Replicate(header(9, THEIRS, commit=30), records(9, 10, 12)))
    assert heard == [
        do.StoreEpoch(Epoch(9)),
        do.Sync(1),
        do.Send(OTHER, Accepted(Epoch(9), ME, Seq(0), 0, floors=True)),
    ]
    installed = hear(replica, Snapshot(header(9, THEIRS, commit=30), Seq(30), "content"))
    assert do.InstallSnapshot(Seq(30), THEIRS.cut(Seq(30)), "content") in installed
    assert do.Send(OTHER, Accepted(Epoch(9), ME, Seq(30), 0, floors=True)) in installed


def test_a_log_that_differs_where_the_primarys_lineage_begins_is_cut_there_and_then_replaced() -> None:
    replica = follower((1, 1), (4, 7), last=40, applied=5)
    heard = hear(replica, Replicate(header(9, THEIRS, commit=30)))
    assert do.Truncate(Seq(19)) in heard
    assert heard[-1] == do.Send(OTHER, Accepted(Epoch(9), ME, Seq(0), 0, floors=True))


def test_one_that_has_applied_what_is_not_so_there_does_not_follow() -> None:
    replica = follower((1, 1), (4, 7), last=40, applied=25)
    (only,) = hear(replica, Replicate(header(9, THEIRS, commit=30)))
    assert isinstance(only, do.Diverged)


def test_one_that_has_forgotten_more_than_its_primary_follows() -> None:
    replica = follower((5, 25), last=30, applied=30)
    assert hear(replica, Replicate(header(9, THEIRS, commit=30), records(9, 31, 31)))[-1] == do.Send(
        OTHER, Accepted(Epoch(9), ME, Seq(31), 0, floors=True)
    )


def lead(replica: Replica, now: Configuration) -> list[Header]:
    """It serves an epoch, writes, and commits; what it has sent."""
    effects = replica.handle(on.Seen(now))
    sent: list[Header] = []
    effects += replica.handle(on.Write(f"w{now.epoch}", 1, b"", WriteConsistency.one)) if replica.primary else []
    written = not effects or replica.primary is not None
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, do.Sync):
            effects += replica.handle(on.Synced(effect.ticket))
            if replica.primary and not written:
                written = True
                effects += replica.handle(on.Write(f"w{now.epoch}", 1, b"", WriteConsistency.one))
        elif isinstance(effect, do.Send) and isinstance(effect.message, Replicate):
            sent.append(effect.message.header)
    return sent


def at(epoch: int, *in_sync: int, learners: tuple[int, ...] = ()) -> Configuration:
    now = configuration(*in_sync, epoch=epoch, revision=Revision(epoch), min_in_sync=1)
    return replace(now, learners=frozenset(map(member, learners)))


def test_after_ten_thousand_epochs_a_header_is_smaller_than_a_kilobyte() -> None:
    replica = Replica(ME, Recovered())
    sizes = []
    for epoch in range(1, 10_001):
        sent = lead(replica, at(epoch, 0, learners=(1,)))
        for _ in range(Primary.away_after):
            replica.handle(on.Tick())
        sizes.append(len(msgspec.msgpack.encode(sent[-1])))
    assert replica.journal.applied == 10_000
    assert len(replica.journal.lineage.runs) <= Journal.runs + 1
    assert max(sizes) < 1_000


def headers_with(monkeypatch: pytest.MonkeyPatch, answers: dict[Member, bool], now: Configuration) -> Header:
    """The header of a later epoch of a primary whose members have answered, and whether they know of floors."""
    monkeypatch.setattr(Journal, "runs", 2)
    replica = Replica(ME, Recovered())
    for epoch in range(1, 9):
        sent = lead(replica, replace(now, epoch=Epoch(epoch), revision=Revision(epoch)))
        for who, floors in answers.items():
            last = replica.journal.last
            replica.handle(received(Accepted(Epoch(epoch), who, last, 0, floors=floors)))
        for _ in range(Primary.away_after):
            replica.handle(on.Tick())
    return sent[-1]


def test_nothing_is_forgotten_while_a_member_is_of_a_version_that_would_take_it_for_a_contradiction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, learning = at(1, 0, 1), at(1, 0, learners=(1,))
    assert headers_with(monkeypatch, {OTHER: True}, both).lineage.floor
    assert not headers_with(monkeypatch, {OTHER: False}, both).lineage.floor
    assert not headers_with(monkeypatch, {OTHER: False}, learning).lineage.floor
    assert headers_with(monkeypatch, {}, learning).lineage.floor, "one that is away may be away for ever"
    three = at(1, 0, 1, 2)
    assert not headers_with(monkeypatch, {OTHER: True, THIRD: False}, three).lineage.floor


def test_a_follower_forgets_when_its_primary_says_that_all_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "runs", 2)
    for floors in (False, True):
        replica = follower((1, 1), (2, 11), (3, 16), (4, 21), last=25, applied=25)
        theirs = replica.journal.lineage.followed_by(Epoch(9), Seq(26))
        hear(replica, Replicate(header(9, theirs, commit=25, floors=floors)))
        assert replica.journal.lineage.floor == (16 if floors else 0)


def test_who_wrote_what_is_not_applied_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "runs", 1)
    journal = Journal(Recovered(lineage=follower((1, 1), (2, 11), (3, 16), last=25).journal.lineage, applied=Seq(12)))
    journal.forget()
    assert journal.lineage.floor == 11
