"""The primary of one epoch: it orders operations, and acknowledges what can no longer be lost.

Invariant: `waiting` holds every in-sync set that etcd may have now or may yet come to have by a change of ours, and
`counted` only members of all of them. An operation is committed when all of `waiting` have it durably, and is
acknowledged when, besides, `counted` is as large as it asks for (2, 3). So whoever etcd says may be promoted has
everything that was acknowledged, and no acknowledgement rests on a copy that might not be electable.

A primary's change of the in-sync set is on its way from the `Swap` until a newer revision is seen; until then both
outcomes are possible, whatever an answer that was lost would have said. One change is on its way at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.events import Answered, Read, Tick, Write
from veccluster.decisions.replication.journal import Journal
from veccluster.decisions.replication.messages import Accepted, Contradicted, Header, Replicate
from veccluster.decisions.replication.values import NO_REVISION, NOTHING, Configuration, Member, Position, Record
from veccluster.model.state import Epoch, Seq


@dataclass(slots=True)
class _Progress:
    """What a member has said in this epoch."""

    heard: bool = False
    matched: Seq = NOTHING
    sent: Seq = NOTHING
    confirm: int = 0
    floors: bool = False
    """Whether it knows lineages that begin at a floor."""
    stuck_at: Seq | None = None
    """`matched` at the last tick."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A write without an answer yet: where it ends, and how many copies it asks for."""

    last: Seq
    copies: int


@dataclass(frozen=True, slots=True)
class _AskedRead:
    """A strong read, and the round of confirmations that it waits for."""

    read: Read
    round: int


class Primary:
    """One replica while it is primary of one epoch. It is made once for an epoch and never again (7)."""

    window = 1024
    """Operations that may be on their way to a member without an answer."""
    away_after = 5
    """Ticks of an epoch after which a learner that was not heard in it counts as away."""

    def __init__(self, me: Member, journal: Journal, commit: Seq, configuration: Configuration) -> None:
        self.me = me
        self.journal = journal
        self.epoch: Epoch = configuration.epoch
        self.commit = commit
        self.configuration = configuration
        self._start = journal.last
        self._lineage = journal.lineage.followed_by(self.epoch, Seq(journal.last + 1))
        self._target: Configuration | None = None
        """A change that may have been made or may yet be, since the revision that it compares is the newest known."""
        self._asking = False
        self._progress: dict[Member, _Progress] = {}
        self._asked: dict[str, _Asked] = {}
        self._reads: list[_AskedRead] = []
        self._round = 0
        self._ticks = 0

    # -- who counts

    @property
    def waiting(self) -> frozenset[Member]:
        """The wait set: nobody who may be in sync by etcd is missing (3)."""
        in_sync = self.configuration.in_sync
        return in_sync | self._target.in_sync if self._target else in_sync

    @property
    def counted(self) -> frozenset[Member]:
        """Those who are in sync whichever way a change under way ends."""
        in_sync = self.configuration.in_sync
        return in_sync & self._target.in_sync if self._target else in_sync

    def _others(self) -> list[Member]:
        return sorted((self.waiting | self.configuration.learners) - {self.me})

    def _of(self, member: Member) -> _Progress:
        return self._progress.setdefault(member, _Progress())

    def matched(self, member: Member) -> Seq:
        """Up to where a member has the log durably, as far as it said so."""
        return self.journal.durable if member == self.me else self._of(member).matched

    @property
    def is_complete(self) -> bool:
        """Whether every member has everything, and nothing is asked or on its way: there is nothing to tell anyone."""
        now, last = self.configuration, self.journal.last
        is_quiet = not (self._target or self._asked or self._reads or now.learners or now.successor)
        return is_quiet and self.commit == self.journal.applied == last and self._have(last)

    def _have(self, last: Seq) -> bool:
        return all(self._of(m).heard and self.matched(m) == last for m in self._others())

    @property
    def others(self) -> tuple[Member, ...]:
        """Who is told what is written."""
        return tuple(self._others())

    # -- events

    def start(self) -> Iterator[do.Effect]:
        """Make oneself known."""
        yield from self._beat(self._others())
        yield from self._advance()

    def write(self, write: Write) -> Iterator[do.Effect]:
        """Order a write, or find that it was ordered before (14)."""
        copies = self.configuration.copies_for(write.level)
        before = self._find(write)
        if before is None and (why := self._why_not(copies)):
            yield do.Refuse(write.op_id, why)
            return
        if before is None:
            record = Record(self.epoch, Seq(self.journal.last + 1), write.count, write.op_id, write.payload)
            yield from self.journal.append((record,))
            yield from self._stream_to_all()
            yield from self.journal.sync()
        self._asked[write.op_id] = _Asked(before or self.journal.last, copies)
        if before is not None:
            yield from self._acknowledge()

    def _why_not(self, copies: int) -> Why | None:
        if self.configuration.successor:
            return Why.moving
        return Why.too_few_copies if len(self.counted) < copies else None

    def forget(self, request: str) -> None:
        """Nobody waits for this answer any more."""
        self._asked.pop(request, None)
        self._reads = [r for r in self._reads if r.read.id != request]

    def _find(self, write: Write) -> Seq | None:
        return write.applied or self.journal.operations.get(write.op_id)

    def read(self, read: Read) -> Iterator[do.Effect]:
        """A strong read waits until everyone has confirmed this epoch after it came (13)."""
        idle = self._is_confirmed(self._round)
        self._reads.append(_AskedRead(read, self._round + 1))
        if idle:
            yield from self._next_round()
        yield from self._serve_reads()

    def disproof(self, message: Accepted | Contradicted) -> str | None:
        """Why this disk cannot be the one that it was when others followed it, if the message shows that (9)."""
        if message.epoch != self.epoch or message.sender not in self._others():
            return None
        if isinstance(message, Contradicted):
            return message.why if message.sender in self.waiting else None
        if message.matched > self.journal.last:
            return f"{message.sender.node} followed it to seq {message.matched}, and it ends at {self.journal.last}"
        return None

    def accepted(self, message: Accepted) -> Iterator[do.Effect]:
        """A member has come further."""
        if message.epoch != self.epoch or message.sender not in self._others():
            return
        progress = self._of(message.sender)
        progress.matched = max(progress.matched, message.matched)
        progress.confirm = max(progress.confirm, message.confirm)
        progress.floors = message.floors
        if not progress.heard:
            progress.heard, progress.sent = True, progress.matched
        progress.sent = max(progress.sent, progress.matched)
        yield from self._stream(message.sender)
        yield from self._advance()
        yield from self._let_in(message.sender)

    def synced(self) -> Iterator[do.Effect]:
        """More of the own log is durable."""
        yield from self._advance()

    def tick(self, tick: Tick) -> Iterator[do.Effect]:
        """Send again what was not answered, settle what is not known, and stop waiting for those who are silent."""
        for member in self._others():
            progress = self._of(member)
            if progress.matched == progress.stuck_at:
                progress.sent = progress.matched
            progress.stuck_at = progress.matched
        self._ticks += 1
        yield from self._beat(self._others())
        if self._target and not self._asking:
            yield from self._propose(self._target)
        self._forget()
        yield from self._hand_over()
        yield from self._let_go(tick.silent)

    def seen(self, now: Configuration) -> Iterator[do.Effect]:
        """The key at a revision; a newer one ends every doubt about changes that compared an older one."""
        if now.revision > self.configuration.revision:
            self.configuration, self._target, self._asking = now, None, False
            kept = {self.me, *self._others()}
            self._progress = {m: p for m, p in self._progress.items() if m in kept}
            yield from self._advance()

    def answered(self, answer: Answered) -> Iterator[do.Effect]:
        """A change came back, and `seen` was told what is there now. Until that is newer than what the change was
        based on, both outcomes stay possible, and the next tick asks for it again.
        """
        self._asking = False
        if answer.now is None:
            yield do.ReadConfiguration()

    def end(self, why: Why) -> Iterator[do.Effect]:
        """The epoch is over: nothing that was asked has an answer."""
        for op_id in self._asked:
            yield do.Uncertain(op_id, why)
        for asked in self._reads:
            yield do.RefuseRead(asked.read.id, why)
        yield do.BecomeFenced(self.epoch)

    # -- committing and answering

    def _advance(self) -> Iterator[do.Effect]:
        if (committed := self._durable_everywhere()) > self.commit:
            self.commit = committed
            if committed == self.journal.last:  # else the records on their way tell it
                yield from self._beat(self._others())
        yield from self.journal.apply(self.commit)
        self._forget()
        yield from self._acknowledge()
        yield from self._serve_reads()
        yield from self._hand_over()

    def _durable_everywhere(self) -> Seq:
        """Up to where every member of the wait set has the log durably: all of them, never "any W" (2)."""
        return min(map(self.matched, self.waiting))

    def _acknowledge(self) -> Iterator[do.Effect]:
        done = [op for op, asked in self._asked.items() if asked.last <= self.commit and self._is_enough(asked)]
        for op_id in done:
            last = self._asked.pop(op_id).last
            yield do.Acknowledge(op_id, Position(self.journal.lineage.epoch_at(last), last))

    def _is_confirmed(self, number: int) -> bool:
        return all(self._of(m).confirm >= number for m in self.waiting - {self.me})

    def _next_round(self) -> Iterator[do.Effect]:
        self._round += 1
        yield from self._beat(sorted(self.waiting - {self.me}))

    def _serve_reads(self) -> Iterator[do.Effect]:
        """Not before everything that earlier epochs may have acknowledged is committed in this one."""
        ready = [r for r in self._reads if self._is_ready(r)]
        for asked in ready:
            self._reads.remove(asked)
            yield do.Serve(asked.read.id, self.journal.shown)
        if any(r.round > self._round for r in self._reads) and self._is_confirmed(self._round):
            yield from self._next_round()

    def _is_ready(self, asked: _AskedRead) -> bool:
        return (
            self._is_caught_up()
            and asked.round <= self._round
            and self._is_confirmed(asked.round)
            and self.journal.applied >= asked.read.at_least
        )

    def _is_caught_up(self) -> bool:
        return self.commit >= self._start

    def _is_enough(self, asked: _Asked) -> bool:
        return len(self.counted) >= asked.copies

    # -- streaming

    def _header(self, to: Member) -> Header:
        waits = to in self.waiting
        holds = max(self._of(to).matched, self.commit if waits else NOTHING)
        floors = self._may_forget()
        return Header(self.epoch, self.me, to, self._lineage, self.commit, self._round, waits, holds, floors)

    def _beat(self, members: list[Member]) -> Iterator[do.Effect]:
        for member in members:
            sending = list(self._stream(member))
            yield from sending or [do.Send(member, Replicate(self._header(member)))]

    def _stream_to_all(self) -> Iterator[do.Effect]:
        for member in self._others():
            yield from self._stream(member)

    def _stream(self, member: Member) -> Iterator[do.Effect]:
        """Send what the member lacks and is not on its way, once it has said where its log ends (11)."""
        progress = self._of(member)
        if not progress.heard:
            return
        if progress.sent < (least := self._least()):
            progress.sent = least
            yield do.SendSnapshot(self._header(member))
        through = Seq(min(self.journal.last, progress.matched + self.window))
        if progress.sent < through:
            yield do.SendRecords(self._header(member), progress.sent, through)
            progress.sent = through

    def _least(self) -> Seq:
        """How far a log must reach for records to be put behind it: to where ours begins, and where its end can be
        compared (8).
        """
        return max(Seq(self.journal.first - 1), self._lineage.floor)

    # -- the lineage

    def _forget(self) -> None:
        """Let the headers of later epochs begin at a floor, if nobody would take that for a contradiction."""
        if self._may_forget():
            self.journal.forget()

    def _may_forget(self) -> bool:
        """A learner that has been away for some time has no say: if it is of an older version, it begins anew (8)."""
        return all(map(self._knows_floors, self._others()))

    def _knows_floors(self, member: Member) -> bool:
        progress = self._of(member)
        is_away = not progress.heard and member not in self.waiting and self._ticks >= self.away_after
        return progress.floors or is_away

    # -- members

    def _let_in(self, member: Member) -> Iterator[do.Effect]:
        """A learner that has all that may be acknowledged: wait for it, then ask etcd to call it in sync (3, 11).

        It takes the place of other disks of its node.
        """
        now = self.configuration
        if self._target or member not in now.learners or not self._has_everything(member):
            return
        in_sync = frozenset({m for m in now.in_sync if m.node != member.node} | {member})
        yield from self._propose(replace(now, in_sync=in_sync, learners=now.learners - {member}))

    def _has_everything(self, member: Member) -> bool:
        return self._of(member).heard and self.matched(member) >= max(self.commit, self._start)

    def _let_go(self, silent: frozenset[Member]) -> Iterator[do.Effect]:
        """Ask etcd to call silent members learners, if enough are left, and wait for them until it has (3, 4)."""
        now = self.configuration
        gone = (now.in_sync & silent) - {self.me}
        if self._target or not gone or not self._may_shrink_to(len(now.in_sync - gone)):
            return
        yield from self._propose(replace(now, in_sync=now.in_sync - gone, learners=now.learners | gone))

    def is_cut_off(self, silent: frozenset[Member]) -> bool:
        """Whether so many members are silent that no write can be acknowledged, and that they cannot be let go."""
        gone = self.configuration.in_sync & silent
        return bool(gone) and not self._may_shrink_to(len(self.configuration.in_sync - gone))

    def _may_shrink_to(self, size: int) -> bool:
        return size >= self.configuration.min_in_sync

    def _hand_over(self) -> Iterator[do.Effect]:
        """Give the next epoch to the successor when all that was taken on is committed; no more is taken on (12)."""
        now = self.configuration
        if self._target or now.successor not in now.in_sync or self.commit < self.journal.last:
            return
        yield from self._propose(replace(now, epoch=Epoch(now.epoch + 1), primary=now.successor, successor=None))

    def _propose(self, target: Configuration) -> Iterator[do.Effect]:
        self._target, self._asking = target, True
        yield do.Swap(replace(target, revision=NO_REVISION), self.configuration.revision)
