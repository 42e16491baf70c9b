"""Somebody who reaches every replica's port, knows all there is to know, and says what is not so (16).

A message says whom it is from, and the node that it comes from is proved (`source`). So a stranger says, as nobody or
as a node that is somebody else, whatever it likes; and a node says, as itself, what etcd does not allow it to say.
"""

from collections.abc import Iterator
from random import Random

from simulation.etcd import Etcd
from simulation.node import Node
from simulation.rows import ops_of
from simulation.world import World
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.messages import Accepted, Contradicted, Header, Message, Rejected, Replicate
from veccluster.decisions.replication.values import Incarnation, Member, Record
from veccluster.model.state import Epoch, NodeId, Seq
from veccluster_node.wal.operations import encode_batch

HUGE = Epoch(1 << 60)
NOBODY = NodeId("nobody")


class Stranger:
    """It has a randomness of its own, so that the rest of a run does not depend on what it draws."""

    def __init__(self, world: World, etcd: Etcd, nodes: list[Node]) -> None:
        self.world, self.etcd, self.nodes = world, etcd, nodes
        self._rng = Random(world.seed)
        self._said = 0

    def start(self) -> None:
        if rate := self.world.weather.forgeries:
            self.world.after(self._rng.expovariate(rate), self._speak)

    def _speak(self) -> None:
        target = self._rng.choice(self.nodes)
        message, source = self._rng.choice(list(self._lies(target)))
        self.world.tell("", f"{source} says to {target.id}: {message}")
        if target.up:
            target.feed(on.Received(message, source))
        self.start()

    def _lies(self, target: Node) -> Iterator[tuple[Message, NodeId]]:
        """All kinds of them, each with who it really comes from."""
        key, rng = self.etcd.key, self._rng
        member, huge = rng.choice(sorted(key.in_sync | key.learners)), Epoch(HUGE + rng.randrange(99))
        seq = self.nodes[0].disk.now.last if target.replica.primary is None else target.replica.journal.last
        other = rng.choice([NOBODY, *(n.id for n in self.nodes if n.id != member.node)])
        yield Accepted(key.epoch, member, seq, 1 << 30), other
        yield Rejected(huge, member), other
        yield Contradicted(key.epoch, member, "made up"), other
        yield self._orders(key.primary, key.epoch, target), NOBODY
        for unlike in self._unlike(member):
            yield Rejected(huge, unlike), unlike.node
            yield Contradicted(key.epoch, unlike, "made up"), unlike.node
            yield Accepted(key.epoch, unlike, seq, 1 << 30), unlike.node
            yield self._orders(unlike, key.epoch, target), unlike.node
        if member != key.primary:
            yield self._orders(member, key.epoch, target), member.node
        yield self._orders(member, huge, target), member.node
        if before := range(1, key.epoch):
            yield self._orders(self._unknown(member), Epoch(rng.choice(before)), target), member.node

    def _unlike(self, member: Member) -> tuple[Member, Member]:
        """Who is in no record: another disk of a member's node, and a node that is not there."""
        return self._unknown(member), Member(NOBODY, Incarnation("nobody/1"))

    def _unknown(self, member: Member) -> Member:
        return Member(member.node, Incarnation(f"{member.node}/99"))

    def _orders(self, sender: Member, epoch: Epoch, target: Node) -> Message:
        """Records that nobody has written, as from the primary of an epoch; or nothing but the epoch."""
        journal = target.replica.journal
        header = Header(
            epoch, sender, target.member, journal.lineage.followed_by(epoch, Seq(journal.last + 1)), Seq(0), 0
        )
        if self._rng.random() < 0.3:
            return Replicate(header)
        self._said += 1
        name = f"forged.{self._said}"
        record = Record(epoch, Seq(journal.last + 1), 1, name, encode_batch(0, name, ops_of({"k0": False})))
        return Replicate(header, (record,))
