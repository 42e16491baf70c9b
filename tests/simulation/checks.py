"""What must never happen, looked for while it runs and, over the whole history, at its end.

All acknowledged operations are known here, and the order in which operations were applied; the promises are:

    lost        whoever is in sync by etcd, or becomes primary, has every acknowledged write durably
    few         the in-sync set on record is never smaller than min_in_sync, and an acknowledged write is on as many of
                its members as the write asked for; and nobody in sync is sent away before there are copies enough
    twice       no two operations at one (epoch, seq), none applied at two places, none applied unless all who are in
                sync have it, and the same order everywhere
    untrue      what a replica says is durable, its epoch too, is there after a crash
    split       no two replicas acknowledge in one epoch
    strong      strong reads and writes of a key are linearizable
    quorum      a quorum read by a configuration that was current shows what was acknowledged before it
    session     a session sees its own writes and never goes back
    unwritten   no read shows what was not committed
    believed    nobody promises itself to an epoch that etcd never had, and none is left out there
    returned    nothing deleted or replaced is there at the end
    restless    when there is nothing to do, nobody does anything
    left        when all faults are over, everybody has an answer
    stuck       when all faults are over, writes succeed, as many replicas as asked for are in sync, and they are equal
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulation.world import World
from veccluster.decisions.replication.messages import Accepted
from veccluster.decisions.replication.values import Configuration, Member, Position, Record
from veccluster.model.state import Epoch, NodeId, ReadConsistency, Seq, WriteConsistency

if TYPE_CHECKING:
    from simulation.disk import Base
    from simulation.etcd import Etcd
    from simulation.node import Node


class Violation(BaseException):
    """A promise was broken. Not an `Exception`: the loop survives those, whatever they are."""


@dataclass
class Written:
    """A write as its client saw it; the answer counts from when it came to the client."""

    client: int
    op_id: str
    keys: dict[str, bool]
    level: WriteConsistency
    asked: float
    acknowledged: float | None = None
    position: Position | None = None


@dataclass
class Shown:
    """A read that was answered."""

    client: int
    level: ReadConsistency
    key: str
    version: tuple[str, bool] | None
    asked: float
    answered: float
    position: Position
    at_least: Seq
    current: bool = True
    """By a configuration that etcd had when it was asked and when it was answered."""


@dataclass
class Checks:
    world: World
    etcd: Etcd
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    acked: dict[str, Position] = field(default_factory=dict)
    order: dict[Seq, Record] = field(default_factory=dict)
    """What was applied, by first seq."""
    writes: dict[str, Written] = field(default_factory=dict)
    reads: list[Shown] = field(default_factory=list)
    promotions: int = 0
    _places: dict[str, Seq] = field(default_factory=dict)
    _written: dict[tuple[Epoch, Seq], str] = field(default_factory=dict)
    _acknowledging: dict[Epoch, tuple[NodeId, int]] = field(default_factory=dict)
    _before: Configuration | None = None
    doomed: bool = False
    """Every copy that was in sync is gone: nothing can be promised but that nobody pretends."""
    put_back: bool = False
    """Etcd has forgotten what it knew."""
    loss_accepted: bool = False
    """Copies that have what was lost with this may be left, and have to go."""

    def fail(self, what: str) -> None:
        raise Violation(f"at {self.world.now:.3f} s: {what}")

    def watch(self, now: Configuration) -> None:
        """Another configuration is on record."""
        if not any(self._intact(m) for m in now.in_sync):
            self.doomed = True
        if len(now.in_sync) < now.min_in_sync:
            self.fail(f"only {len(now.in_sync)} replicas are in sync by {now}")
        before, self._before = self._before, now
        kept = {m.node for m in now.in_sync | now.learners}
        if before and len(now.in_sync) < now.replicas and any(m.node not in kept for m in before.in_sync):
            self.fail(f"a member in sync by {before} was sent away although too few are left in {now}")
        if before and now.epoch > before.epoch + 1 and not self.put_back:
            self.fail(f"epoch {now.epoch} follows {before.epoch}")
        for member in sorted(now.in_sync):
            if self._intact(member):
                self._has_all(member.node, f"{member.node} is in sync by {now}")

    def promised(self, node: Node, epoch: Epoch) -> None:
        """A replica is about to take nothing of an older epoch any more."""
        if epoch > self.etcd.key.epoch and not self.put_back:
            self.fail(f"{node.id} promises itself to epoch {epoch}, and etcd has never had more than {self.etcd.key}")

    def _intact(self, member: Member) -> bool:
        return self.nodes[member.node].member == member and not self.nodes[member.node].is_old

    def _has_all(self, node: NodeId, why: str) -> None:
        if missing := self.acked.keys() - self.nodes[node].disk.durable.operations():
            self.fail(f"acknowledged writes {sorted(missing)} are missing: {why}")

    def accept_loss(self, chosen: Member) -> None:
        """A person goes on with this copy and those that have as much: what it lacks is promised no more."""
        self._before = None
        if chosen in self.etcd.key.in_sync:
            return
        self.loss_accepted = True
        disk = self.nodes[chosen.node].disk.durable
        for op_id in self.acked.keys() - disk.operations():
            del self.acked[op_id]
            self.writes[op_id].acknowledged = None
        # An operation may be there at another place, or in another epoch, from before a retry.
        logged = {record.op_id: record for record in disk.log}
        kept = {
            i: seq for i, seq in self._places.items() if disk.has(i) and (i not in logged or logged[i].first == seq)
        }
        self._places = kept
        self.order = {
            seq: record
            for seq, record in self.order.items()
            if kept.get(record.op_id) == seq and logged.get(record.op_id, record) == record
        }
        self.reads.clear()

    # -- what nodes do

    def appended(self, node: Node, records: tuple[Record, ...]) -> None:
        for record in () if node.is_old else records:
            for seq in range(record.first, record.last + 1):
                there = self._written.setdefault((record.epoch, Seq(seq)), record.op_id)
                if there != record.op_id:
                    self.fail(f"{node.id} writes {record.op_id} at {record.epoch}, {seq}, where {there} is elsewhere")

    def acknowledged(self, node: Node, op_id: str, position: Position) -> None:
        mine = (node.id, node.boot)
        if self._acknowledging.setdefault(node.serving, mine) != mine:
            self.fail(f"{mine} and {self._acknowledging[node.serving]} acknowledge in epoch {node.serving}")
        self.acked[op_id] = position
        self._everywhere(op_id, f"{node.id} acknowledged {op_id} in epoch {node.serving}")
        now, write = self.etcd.key, self.writes[op_id]
        if now.epoch == node.serving and len(now.in_sync) < now.copies_for(write.level):
            self.fail(f"{node.id} acknowledged {write} while {len(now.in_sync)} replicas are in sync by {now}")

    def _everywhere(self, op_id: str, why: str) -> None:
        for member in sorted(self.etcd.key.in_sync):
            if self._intact(member) and not self.nodes[member.node].disk.durable.has(op_id):
                self.fail(f"{why}, but {member.node} is in sync and has it not durably")

    def said(self, node: Node, message: Accepted) -> None:
        found = node.disk.durable.found(node.disk.durable.base.through)
        if max(found.epoch, found.lineage.newest) < message.epoch or found.last < message.matched:
            self.fail(f"{node.id} says {message}, and its disk has seq {found.last} and epoch {found.epoch}")

    def became_primary(self, node: Node, epoch: Epoch) -> None:
        """One that only wakes up in an epoch that is over needs nothing: someone it waits for will refuse it."""
        self.promotions += 1
        if epoch == self.etcd.key.epoch and not node.is_old:
            self._has_all(node.id, f"{node.id} becomes primary of epoch {epoch}")

    def applied(self, node: Node, record: Record) -> None:
        self._is_in_order(node, record)
        if not self.doomed:
            self._everywhere(record.op_id, f"{node.id} applied {record.op_id}")

    def _is_in_order(self, node: Node, record: Record) -> None:
        if self.order.setdefault(record.first, record) != record:
            self.fail(f"{node.id} applied {record} where {self.order[record.first]} was applied elsewhere")
        if self._places.setdefault(record.op_id, record.first) != record.first:
            self.fail(f"{record.op_id} was applied at {self._places[record.op_id]} and {record.first}")

    def installed(self, node: Node, base: Base) -> None:
        for op_id in base.results:
            if op_id not in self._places:
                self.fail(f"{node.id} installed {op_id}, which nobody had applied")

    # -- the whole history

    def finish(self) -> None:
        """Judge a run that is over."""
        versions = dict(self._places)
        if lost := self.acked.keys() - versions.keys():
            self.fail(f"acknowledged but never applied: {sorted(lost)}")
        for read in self.reads:
            if read.version and read.version[0] not in versions:
                self.fail(f"{read} shows what was never committed")
        by_key: dict[str, list[Written]] = defaultdict(list)
        for write in self.writes.values():
            for key in write.keys:
                by_key[key].append(write)
        for key, writes in by_key.items():
            self._linearizable(key, writes, versions)
        self._sessions(versions)

    def _version(self, read: Shown, versions: dict[str, Seq]) -> Seq:
        return versions[read.version[0]] if read.version else Seq(0)

    def _linearizable(self, key: str, writes: list[Written], versions: dict[str, Seq]) -> None:
        """The versions are in the order of the log; what ended before another began must be before it there."""
        reads = [r for r in self.reads if r.key == key]
        strong = [r for r in reads if r.level is ReadConsistency.strong]
        written = [(w.acknowledged, versions[w.op_id], w) for w in writes if w.acknowledged is not None]
        ended = [*written, *((r.answered, self._version(r, versions), r) for r in strong)]
        for write in (w for w in writes if w.op_id in versions):
            self._not_before(
                write, versions[write.op_id], [(at, v + 1, what) for at, v, what in ended if what is not write]
            )
        for read in strong:
            self._not_before(read, self._version(read, versions), ended)
        for read in (r for r in reads if r.level is ReadConsistency.quorum and r.current):
            self._not_before(read, self._version(read, versions), written)
        for read in (r for r in reads if r.version):
            shown = self.writes[read.version[0]]
            if shown.asked > read.answered or (key, read.version[1]) not in shown.keys.items():
                self.fail(f"{read} shows {shown}")

    def _not_before(self, what: Written | Shown, version: int, ended: Iterable[tuple[float, int, object]]) -> None:
        """`what` is no older than anything that was over before it began."""
        for at, least, other in ended:
            if at < what.asked and version < least:
                self.fail(f"{what}, at {version}, is older than {other}, which was over before it began")

    def _sessions(self, versions: dict[str, Seq]) -> None:
        for read in self.reads:
            if read.level is not ReadConsistency.session:
                continue
            if read.position.seq < read.at_least:
                self.fail(f"{read} is behind its session")
            mine = [w for w in self.writes.values() if w.client == read.client and read.key in w.keys]
            seen = [versions[w.op_id] for w in mine if w.acknowledged is not None and w.acknowledged < read.asked]
            seen += [
                self._version(r, versions)
                for r in self.reads
                if r.client == read.client
                and r.key == read.key
                and r.answered < read.asked
                and r.position.seq <= read.at_least
            ]
            if self._version(read, versions) < max(seen, default=0):
                self.fail(f"{read} shows less than its session has seen")

    def restless(self) -> list[NodeId]:
        """Who holds a copy and does something, unless somebody has yet to learn."""
        now = self.etcd.key
        return [m.node for m in sorted(now.in_sync) if not now.learners and not self.nodes[m.node].loop.rests]

    def settled(self) -> None:
        """The shard is as it was asked for, and every copy in sync is what the log says."""
        now = self.etcd.key
        if self.doomed:
            return
        if len(now.in_sync) != min(now.replicas, sum(n.up for n in self.nodes.values())):
            self.fail(f"stuck: {len(now.in_sync)} replicas are in sync at the end: {now}")
        if self.etcd.placed and {m.node for m in now.in_sync} != set(self.etcd.placed):
            self.fail(f"stuck: the shard is not on {self.etcd.placed} at the end: {now}")
        for node in self.nodes.values():
            if node.up and (node.loop.writes.is_waiting or node.loop.reads.is_waiting):
                self.fail(f"left: somebody still waits for an answer of {node.id}")
        table: dict[str, tuple[str, bool]] = {}
        from simulation.rows import meant

        for first in sorted(self.order):
            record = self.order[first]
            table |= {key: (record.op_id, deleted) for key, deleted in meant(record).items()}
        for member in sorted(now.in_sync):
            node = self.nodes[member.node]
            if node.table != table:
                self.fail(f"{node.id} holds {node.table} at the end, the log says {table}")
            if node.disk.durable.last != self.nodes[now.primary.node].disk.durable.last:
                self.fail(f"the logs of {node.id} and {now.primary.node} end at different places")
