"""What must never happen to batches, besides what must never happen to the shards that they are applied to.

half        a batch is applied by all its shards or by none, once however often it was tried; acknowledged ones are,
            and those of which the client was told that nothing was stored are not
both        no batch is ever decided both ways, in etcd or in a shard
order       all shards apply batches in the order in which etcd decided them
torn        no read shows a batch in one shard and not in another
unread      a read shows what its shards' logs say at the positions that it names; so nothing that is only prepared
clear       what deletes whatever matches deletes all that the log has before it
left        when all faults are over, no batch is prepared without a decision, and no decision is kept
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulation.checks import Checks, Written
from veccluster.decisions.replication.atomic import Batch, Decision, Ledger, Prepare, Verdict
from veccluster.model.state import Revision, Seq, WriteConsistency
from veccluster_node.wal.operations import decode_content

if TYPE_CHECKING:
    from simulation.atomic.book import Book
    from simulation.atomic.coordinator import Operation, Question
    from simulation.atomic.node import ShardNode
    from simulation.node import Node
    from veccluster.decisions.replication.values import Record


class ShardChecks(Checks):
    """A shard's own promises, and where it applied what."""

    number: int = 0
    judge: BatchChecks

    def begin(self, number: int, judge: BatchChecks) -> None:
        self.number, self.judge = number, judge
        self.places: dict[Batch, tuple[Verdict, Seq]] = {}
        self.versions: dict[str, list[tuple[Seq, str, bool]]] = defaultdict(list)
        self._ledger = Ledger(number)
        self._newest = Revision(0)

    def decides(self, batch: Batch, keys: dict[str, bool]) -> None:
        """A primary puts a decision in its log."""
        operation = self.judge.operations[batch.operation]
        written = Written(-1, batch.decide_id, keys, WriteConsistency.one, operation.asked)
        self.writes.setdefault(batch.decide_id, written)

    def applied(self, node: Node, record: Record) -> None:
        is_new = record.first not in self.order
        super().applied(node, record)
        if is_new:
            self._note(record)

    def _note(self, record: Record) -> None:
        from simulation.rows import meant

        match meant(record):
            case Prepare() as prepare:
                self._ledger.prepare(prepare, record.last)
            case Decision() as decision:
                self._decided(record, decision)
            case changes:
                self._cleared(record, changes)
                self._changed(record, changes)

    def _decided(self, record: Record, decision: Decision) -> None:
        from simulation.rows import changes_of

        if self.judge.book.made.get(decision.batch) is not decision.verdict:
            self.fail(f"shard {self.number} applies {decision}, which etcd does not say")
        self.places[decision.batch] = (decision.verdict, record.last)
        prepare = self._ledger.decide(decision, record.last)
        if prepare:
            if decision.revision < self._newest:
                self.fail(f"shard {self.number} applies {decision} after one of revision {self._newest}")
            self._newest = decision.revision
            self._changed(record, changes_of(decode_content(prepare.content)))

    def _cleared(self, record: Record, changes: dict[str, bool]) -> None:
        """What deletes all that is there deletes what all earlier operations left behind, and nothing else."""
        if record.op_id.startswith("clear"):
            self.writes[record.op_id].keys.update(changes)
            newest = {key: versions[-1] for key, versions in self.versions.items()}
            if (there := {key for key, (_, _, deleted) in newest.items() if not deleted}) != changes.keys():
                self.fail(f"{record} deletes {sorted(changes)}, where {sorted(there)} are there")

    def _changed(self, record: Record, changes: dict[str, bool]) -> None:
        for key, deleted in changes.items():
            self.versions[key].append((record.last, record.op_id, deleted))

    def version(self, key: str, at: Seq) -> tuple[str, bool] | None:
        """What the log says of a key at a position."""
        found = [(op_id, deleted) for last, op_id, deleted in self.versions.get(key, ()) if last <= at]
        return found[-1] if found else None

    def settled(self) -> None:
        now = self.etcd.key
        if self.doomed:
            return
        if len(now.in_sync) != min(now.replicas, len(self.nodes)):
            self.fail(f"stuck: {len(now.in_sync)} replicas are in sync at the end: {now}")
        at = max(self.order, default=Seq(0)) + 1_000_000
        table = {key: self.version(key, Seq(at)) for key in self.versions}
        for member in sorted(now.in_sync):
            node: ShardNode = self.nodes[member.node]  # type: ignore[assignment]
            if node.table != table:
                self.fail(f"{node.id} holds {node.table} at the end, the log says {table}")
            if node.ledger.pending:
                self.fail(f"left: {node.id} has {node.ledger.pending} at the end")


@dataclass
class BatchChecks:
    shards: list[ShardChecks]
    book: Book = field(init=False)
    operations: dict[str, Operation] = field(default_factory=dict)
    reads: int = 0
    rounds: int = 0
    """Of reads; more than one each, when something was lacking."""

    def fail(self, what: str) -> None:
        self.shards[0].fail(what)

    def acknowledged(self, operation: Operation, batch: Batch) -> None:
        """Its client knows that it is applied."""
        operation.acknowledged, operation.applied = self.shards[0].world.now, batch
        for shard, changes in operation.changes.items():
            self.shards[shard].decides(batch, changes)
            self.shards[shard].writes[batch.decide_id].acknowledged = operation.acknowledged

    def read(self, question: Question) -> None:
        """A reader got an answer."""
        self.reads += 1
        self.rounds += question.rounds
        for shard, shown in question.found.items():
            for key, version in shown.versions.items():
                said = self.shards[shard].version(key, shown.position.seq)
                if version != said:
                    self.fail(f"unread: {key} of shard {shard} is {version} at {shown.position}, the log says {said}")
        for operation in self.operations.values():
            self._not_torn(operation, question)

    def _not_torn(self, operation: Operation, question: Question) -> None:
        seen: dict[int, bool] = {}
        for shard in operation.changes.keys() & question.found.keys():
            applied = self._applied(shard, operation)
            seen[shard] = any(last <= question.found[shard].position.seq for last in applied.values())
        if len(set(seen.values())) > 1:
            self.fail(f"torn: {question} shows {operation} by shard: {seen}")

    def _applied(self, shard: int, operation: Operation) -> dict[Batch, Seq]:
        places = self.shards[shard].places.items()
        return {b: at for b, (v, at) in places if v is Verdict.applied and b.operation == operation.name}

    def finish(self) -> None:
        """Judge a run that is over."""
        for operation in self.operations.values():
            applied = {shard: set(self._applied(shard, operation)) for shard in operation.changes}
            first, *others = applied.values()
            if any(other != first for other in others) or len(first) > 1:
                self.fail(f"half: {operation} is applied as {applied}")
            if operation.applied and first != {operation.applied}:
                self.fail(f"half: {operation} is acknowledged, and {applied} applied")
            if operation.refused and first:
                self.fail(f"half: {operation} was refused, and {applied} is applied")
        if self.book.known.decisions:
            self.fail(f"left: {self.book.known} at the end")
