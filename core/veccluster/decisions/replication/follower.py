"""A replica that is not primary: it makes its log what the primary's is, and says how far it is.

Invariant: what is acknowledged in an epoch is durable here, says what that epoch's primary's log says, and the epoch
itself is durable first, so that no primary of an older epoch can count on this replica any more (2, 5, 8).
"""

from collections.abc import Iterator

from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication.journal import Journal
from veccluster.decisions.replication.messages import (
    Accepted,
    Contradicted,
    FromPrimary,
    Header,
    Rejected,
    Replicate,
    Snapshot,
)
from veccluster.decisions.replication.values import EMPTY, NOTHING, Configuration, Member, Record
from veccluster.model.state import Epoch, Seq


class Follower:
    """One replica while it follows; a new one whenever it begins to, since nothing of an epoch outlives a role."""

    def __init__(self, me: Member, journal: Journal, commit: Seq) -> None:
        self.me = me
        self.journal = journal
        self.commit = commit
        """The commit point as far as this replica has heard of it and has the operations."""
        self._compared = Epoch(0)
        """The epoch with whose primary the log has been compared."""
        self._lineage = EMPTY
        """That primary's lineage; it has one for an epoch."""
        self._primary: Member | None = None
        self._confirm = 0

    def complete(self, known: Configuration) -> Member | None:
        """The primary that is followed, by `known`, if all that it has said is durable and applied here."""
        journal = self.journal
        is_followed = self._compared == known.epoch == journal.epoch == journal.durable_epoch
        has_all = self.commit == journal.applied == journal.durable == journal.last
        return self._primary if is_followed and has_all and self._primary == known.primary else None

    def received(self, message: FromPrimary, known: Configuration) -> Iterator[do.Effect]:
        """Take what the primary sent, if it is that: by `known`, whose epoch is no lower than the message's (16)."""
        header = message.header
        if self._is_over(header.epoch, known):
            yield do.Send(header.sender, Rejected(max(self.journal.epoch, known.epoch), self.me))
            return
        if not self._is_primary(header, known):
            return
        if header.holds > self.journal.last:
            yield do.Diverged(f"its log ends at seq {self.journal.last}, and it had {header.holds} durably")
            return
        if header.epoch == self._compared and header.lineage != self._lineage:
            yield self._contradict(header, f"it began epoch {header.epoch} twice")
            return
        agreed = self.journal.last if self._compared == header.epoch else self._agreed(header)
        if agreed < self.commit:
            why = f"the primary's log differs behind seq {agreed}, and {self.commit} was applied here"
            yield self._contradict(header, why) if header.waits else do.Diverged(why)
            return
        changes = [*self._enter(header, agreed), *self._take(message)]
        if self._reaches_floor(self.journal.last):
            self.commit = max(self.commit, min(header.commit, self.journal.last))
        self._confirm = max(self._confirm, header.confirm)
        yield from changes
        yield from self.journal.sync() if changes else self._accept()
        yield from self.journal.apply(self.commit)

    def _contradict(self, header: Header, why: str) -> do.Send:
        """A primary that waits for this replica has everything that was applied here, or not the disk that it had."""
        return do.Send(header.sender, Contradicted(header.epoch, self.me, why))

    def synced(self) -> Iterator[do.Effect]:
        """More of the log is durable."""
        yield from self._accept()
        yield from self.journal.apply(self.commit)

    def _is_over(self, epoch: Epoch, known: Configuration) -> bool:
        return epoch < max(self.journal.epoch, known.epoch)

    def _is_primary(self, header: Header, known: Configuration) -> bool:
        return header.sender == known.primary

    def _agreed(self, header: Header) -> Seq:
        return self.journal.lineage.agrees_with(header.lineage, self.journal.last)

    def _enter(self, header: Header, agreed: Seq) -> Iterator[do.DiskEffect]:
        """Follow this epoch's primary: promise the epoch (5) and cut the log where it differs (8)."""
        if header.epoch > self.journal.epoch:
            yield from self.journal.store_epoch(header.epoch)
        if header.epoch != self._compared:
            self._compared, self._primary, self._confirm = header.epoch, header.sender, 0
            self._lineage = header.lineage
        if agreed < self.journal.last:
            yield from self.journal.cut(agreed)
        if header.floors:
            self.journal.forget()

    def _take(self, message: FromPrimary) -> Iterator[do.DiskEffect]:
        match message:
            case Replicate(_, records) if self._reaches_floor(self.journal.last):
                if fresh := tuple(self._that_follow(records)):
                    yield from self.journal.append(fresh)
            case Snapshot(header, through, content):
                if through > self.journal.last:
                    yield from self.journal.install(through, header.lineage, content)
                    self.commit = through

    def _that_follow(self, records: tuple[Record, ...]) -> Iterator[Record]:
        """What is new and leaves no gap; what is here already says the same, since the logs were compared."""
        last = self.journal.last
        for record in records:
            if record.first == last + 1:
                last = record.last
                yield record

    def _accept(self) -> Iterator[do.Effect]:
        """Say how far the log is durable, once the epoch is."""
        if self._primary and self._compared == self.journal.epoch == self.journal.durable_epoch:
            accepted = Accepted(self._compared, self.me, self._matched(), self._confirm, floors=True)
            yield do.Send(self._primary, accepted)

    def _matched(self) -> Seq:
        return self.journal.durable if self._reaches_floor(self.journal.durable) else NOTHING

    def _reaches_floor(self, seq: Seq) -> bool:
        """Whether a log that ends at `seq` could be compared with the primary's. One that ends before the primary's
        lineage begins may say anything: of it nothing is claimed, and nothing is put behind it. The primary's commit
        point is beyond that, so nobody waits for this replica; a snapshot takes the place of all that it has (8, 11).
        """
        return seq >= self._lineage.floor
