"""One replica of one shard: which role it has, and what it answers in it.

Invariant: it serves an epoch only if etcd gave it that epoch while it was in sync with the disk that it still has, the
epoch is durable here first, and it never served it before (5, 6, 7). An epoch that it served before a restart, or may
have served, it replaces by the next one.
"""

from collections.abc import Iterator
from dataclasses import replace

from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.follower import Follower
from veccluster.decisions.replication.journal import Journal, Recovered
from veccluster.decisions.replication.messages import Accepted, FromPrimary, Rejected, ToPrimary, sender_of
from veccluster.decisions.replication.primary import Primary
from veccluster.decisions.replication.values import NO_EPOCH, NO_REVISION, Configuration, Member
from veccluster.model.state import Epoch, NodeId, ReadConsistency, Revision, Seq


class Replica:
    """Give it every event in turn, and do what it returns in that order before the next."""

    primary_type = Primary
    follower_type = Follower
    journal_type = Journal

    def __init__(self, me: Member, found: Recovered) -> None:
        self.me = me
        self.journal = self.journal_type(found)
        self.configuration: Configuration | None = None
        self.broken = False
        """Its disk failed, or its log contradicts the primary's: it must be opened again."""
        self.primary: Primary | None = None
        self._follower = self.follower_type(me, self.journal, found.applied)
        self._claim: Epoch | None = None
        """The epoch that etcd gave to this replica and that is being stored, to be served then."""
        self._swapping = False
        self._has_asked = False
        self._outbid = NO_EPOCH
        """The highest epoch that a member has promised itself to. etcd has it, unless it was put back to what it held
        before; then the next epoch is one that is beyond it."""

    @property
    def commit(self) -> Seq:
        """The commit point as far as it is known here."""
        return self.primary.commit if self.primary else self._follower.commit

    def complete(self) -> Member | None:
        """The primary that this replica follows, if there is nothing to do but to wait for what it says next."""
        now = self.configuration
        if self.broken or self.primary or self._swapping or self._claim is not None or now is None:
            return None
        if self._has_asked:  # what etcd said may have been lost: the next tick lets it ask again
            return None
        return self._follower.complete(now) if self._is_member(self.me) else None

    def handle(self, event: on.Event) -> list[do.Effect]:
        """What the event asks for."""
        return list(self._handle(event))

    def _handle(self, event: on.Event) -> Iterator[do.Effect]:
        match event:
            case on.Write():
                yield from (
                    self.primary.write(event)
                    if self.primary
                    else [
                        do.Refuse(event.op_id, Why.not_primary),
                    ]
                )
            case on.Forget(request):
                if self.primary:
                    self.primary.forget(request)
            case on.Read():
                yield from self._read(event)
            case on.Received():
                yield from self._received(event)
            case on.Seen(configuration):
                yield from self._seen(configuration)
            case on.Trimmed(first):
                self.journal.trimmed(first)
            case on.DiskFailed():
                self.broken = True
                yield from self._step_down(Why.disk)
            case _ if not self.broken:
                yield from self._go_on(event)

    def _go_on(self, event: on.Event) -> Iterator[do.Effect]:
        match event:
            case on.Synced(ticket):
                yield from self._synced(ticket)
            case on.Tick():
                self._has_asked = False
                yield from self.primary.tick(event) if self.primary else self._take_up()
            case on.Answered():
                yield from self._answered(event)

    def _read(self, read: on.Read) -> Iterator[do.Effect]:
        """Strong reads are the primary's; others are for who is in sync and has applied what they must show (13)."""
        if read.level is ReadConsistency.strong:
            yield from self.primary.read(read) if self.primary else [do.RefuseRead(read.id, Why.not_primary)]
        elif not self._is_in_sync():
            yield do.RefuseRead(read.id, Why.not_in_sync)
        elif not self._shows(read.at_least):
            yield do.RefuseRead(read.id, Why.behind)
        else:
            yield do.Serve(read.id, self.journal.shown)

    def _is_in_sync(self) -> bool:
        """By the newest configuration that this replica knows; how old that may be is the adapter's to bound."""
        return self.configuration is not None and self.me in self.configuration.in_sync

    def _shows(self, at_least: Seq) -> bool:
        return self.journal.applied >= at_least

    # -- messages, of which only those count that the shard's record allows (16)

    def hears(self, event: on.Received) -> Member | None:
        """Of which member a message is a sign of life: who has sent it, if that is a member by the shard's record."""
        sender = sender_of(event.message)
        return sender if self._is_from(sender, event.source) and self._is_member(sender) else None

    def _is_from(self, member: Member, source: NodeId) -> bool:
        return member.node == source

    def _received(self, event: on.Received) -> Iterator[do.Effect]:
        message = event.message
        if self.broken or not self._is_from(sender_of(message), event.source):
            return
        if isinstance(message, ToPrimary):
            yield from self._heard(message)
        elif message.header.to == self.me:  # and not another disk of this node
            yield from self._told(message)

    def _told(self, message: FromPrimary) -> Iterator[do.Effect]:
        now, epoch = self.configuration, message.header.epoch
        if now is None or not self._has_begun(epoch, now):
            yield from self._ask()
            return
        if self._claim is not None and epoch > self._claim:
            self._claim = None
        if self.primary is None or epoch < self.primary.epoch:
            for effect in self._follower.received(message, now):
                self.broken |= isinstance(effect, do.Diverged)
                yield effect

    def _has_begun(self, epoch: Epoch, now: Configuration) -> bool:
        return epoch <= now.epoch

    def _ask(self) -> Iterator[do.Effect]:
        """Read what etcd says, at most once between two ticks, however much is heard that it may not know."""
        if not self._has_asked:
            self._has_asked = True
            yield do.ReadConfiguration()

    def _heard(self, message: ToPrimary) -> Iterator[do.Effect]:
        if self.primary is None:
            return
        if isinstance(message, Rejected):
            if self._may_reject(message.sender) and self._ends(self.primary, message.epoch):
                self._outbid = max(self._outbid, message.epoch)
                yield from self._step_down(Why.fenced)
                yield from self._ask()
        elif why := self.primary.disproof(message):
            self.broken = True
            yield from self._step_down(Why.disk)
            yield do.Diverged(why)
        elif isinstance(message, Accepted):
            yield from self.primary.accepted(message)

    def _may_reject(self, member: Member) -> bool:
        return self._is_member(member)

    def _is_member(self, member: Member) -> bool:
        return self.configuration is not None and member in self.configuration.in_sync | self.configuration.learners

    @staticmethod
    def _ends(primary: Primary, epoch: Epoch) -> bool:
        return epoch > primary.epoch

    def _synced(self, ticket: int) -> Iterator[do.Effect]:
        self.journal.synced(ticket)
        if self.primary:
            yield from self.primary.synced()
            return
        yield from self._follower.synced()
        yield from self._take_up()

    # -- becoming primary, and no longer being it

    def _seen(self, now: Configuration) -> Iterator[do.Effect]:
        if self.configuration and _age(now) < _age(self.configuration):
            return
        self.configuration = now
        if self.primary is None:
            yield from self._take_up()
        elif self._ends(self.primary, now.epoch):
            yield from self._step_down(Why.fenced)
            yield from self._take_up()
        else:
            yield from self.primary.seen(now)

    def _answered(self, answer: on.Answered) -> Iterator[do.Effect]:
        self._swapping = False
        if answer.now is not None:
            yield from self._seen(answer.now)
        if self.primary:
            yield from self.primary.answered(answer)
        elif answer.now is None:
            yield do.ReadConfiguration()

    def _take_up(self) -> Iterator[do.Effect]:
        """Come closer to serving, if etcd names this replica: store its epoch, or ask for the next one (6, 7)."""
        now = self.configuration
        if self.broken or self.primary or now is None or not self._is_mine(now):
            return
        if now.epoch > self.journal.epoch:
            self._claim = now.epoch
            yield from self.journal.store_epoch(now.epoch)
            yield from self.journal.sync()
        elif self._claim == now.epoch:
            if self._is_stored(now.epoch):
                yield from self._serve(now)
        elif not self._swapping and self._must_renew(now):
            self._swapping = True
            after = max(now.epoch, self.journal.epoch, self._outbid)
            yield do.Swap(replace(now, epoch=Epoch(after + 1), revision=NO_REVISION), now.revision)

    def _is_mine(self, now: Configuration) -> bool:
        """Whether it names this replica, on this disk, in sync (6)."""
        return now.primary == self.me and self.me in now.in_sync

    def _is_stored(self, epoch: Epoch) -> bool:
        return self.journal.durable_epoch == epoch

    def _must_renew(self, now: Configuration) -> bool:
        """An epoch that is stored but was not given to this run of the replica may have been served before (7)."""
        return now.epoch <= self.journal.epoch

    def _serve(self, now: Configuration) -> Iterator[do.Effect]:
        self._claim = None
        self.primary = self.primary_type(self.me, self.journal, self._follower.commit, now)
        yield do.BecomePrimary(now.epoch)
        yield from self.primary.start()

    def _step_down(self, why: Why) -> Iterator[do.Effect]:
        self._claim = None
        if self.primary:
            yield from self.primary.end(why)
            self._follower = self.follower_type(self.me, self.journal, self.primary.commit)
            self.primary = None


def _age(configuration: Configuration) -> tuple[Epoch, Revision]:
    """What tells the newer of two: revisions count anew when etcd was restored to an older state, epochs never do."""
    return configuration.epoch, configuration.revision
