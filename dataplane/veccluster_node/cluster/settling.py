"""After etcd went back to an older state: the leader finds out what the nodes know, and writes that down in it.

What a record is to say is decided in `veccluster.decisions.restored`. This asks the nodes, each of which changes
nothing by what it knew before once it has seen that another history has begun, and carries the decision out.
"""

import asyncio
import time
from collections.abc import Mapping

import structlog

from veccluster.decisions import restored
from veccluster.decisions.lost_quorum import Answer, Copy
from veccluster.decisions.replication.atomic import Batch, Decision
from veccluster.decisions.replication.atomic_deciding import in_order
from veccluster.decisions.replication.values import Configuration
from veccluster.decisions.restored import Heard, Settle, Wait
from veccluster.errors import VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import NodeId, Shard, ShardId
from veccluster_etcd import Term
from veccluster_node.cluster.lost_quorum import LostQuorum
from veccluster_node.metadata.store import Store
from veccluster_node.peer import messages as m

LOOK_EVERY = 0.5
"""Seconds between two looks at what is to be settled."""
GRACE = 5.0
"""Seconds that nodes are given to register again before a shard is settled that nobody serves."""
PATIENCE = 5.0
"""Seconds for a node to say what it knows; one that takes longer is asked again."""
AT_ONCE = 16
"""Shards about which all nodes are asked at a time."""

log = structlog.get_logger(__name__)


class Settling:
    """One term's part in it."""

    def __init__(self, store: Store, term: Term, asking: LostQuorum, waits: dict[ShardId, str]) -> None:
        """`waits` is kept up to date with the shards that cannot be settled yet, and why."""
        self._store = store
        self._term = term
        self._asking = asking
        self._waits = waits
        self._began = time.monotonic()

    async def run(self) -> None:
        """Look for as long as the term lasts."""
        try:
            while True:
                try:
                    await self._look()
                except VecClusterError as error:
                    log.warning("settling_interrupted", reason=error.detail)
                await asyncio.sleep(LOOK_EVERY)
        finally:
            self._waits.clear()

    async def _look(self) -> None:
        state = self._store.state
        if state.revision < self._term.create_revision or self._store.went_back:
            return
        if not self._store.may_decide:
            await self._recall_batches(state)
        uuids = {c.uuid for c in state.collections.values()}
        waiting = [record for i, record in sorted(state.unsettled.items()) if i.collection in uuids]
        for shard in self._waits.keys() - {record.id for record in waiting}:
            del self._waits[shard]
        for start in range(0, len(waiting), AT_ONCE):
            await asyncio.gather(*(self._settle(record, state) for record in waiting[start : start + AT_ONCE]))

    def _nodes(self, state: ClusterState) -> list[NodeId]:
        """All that are known, also those of before etcd went back that have not registered again yet."""
        return sorted(state.nodes.keys() | self._store.nodes_before)

    # Shards

    async def _settle(self, record: Shard, state: ClusterState) -> None:
        collection = state.collection_of(record.id)
        if collection is None:
            return
        now = Configuration.of(record, collection.replication_factor)
        answers = await self._ask(record.id, state)
        if not any(h and h.serves for h in answers.values()) and time.monotonic() < self._began + GRACE:
            self._waits[record.id] = "nodes that serve it may yet register again"
            return
        match restored.decide(now, answers):
            case Wait(why):
                if self._waits.get(record.id) != why:
                    log.warning("shard_not_settled", shard=str(record.id), reason=why)
                self._waits[record.id] = why
            case Settle(target):
                if await self._store.settle(record.id, target, now.revision, fenced_by=self._term):
                    self._waits.pop(record.id, None)
                    _note(record, target)

    async def _ask(self, shard: ShardId, state: ClusterState) -> Mapping[NodeId, Heard | None]:
        nodes = self._nodes(state)
        reports = await asyncio.gather(*(self._asking.report(node, shard, timeout=PATIENCE) for node in nodes))
        return {n: self._heard(r, state) for n, r in zip(nodes, reports, strict=True)}

    def _heard(self, report: m.CopyReport | None, state: ClusterState) -> Heard | None:
        """None also from a node that is busy, or does not know yet that another history has begun."""
        if report is None or report.busy or report.history != state.history.id:
            return None
        known = _configuration(report.known) if report.known else None
        return Heard(report.member, copy_of(report), known, report.serves)

    # Batches over several shards (15)

    async def _recall_batches(self, state: ClusterState) -> None:
        """Write down what any node knows to be decided, in the order in which it was, and allow decisions again."""
        alive = sorted(state.alive.keys() & state.nodes.keys())
        answers = await asyncio.gather(*(self._asking.decisions(node, timeout=PATIENCE) for node in alive))
        if any(a is None or a.history != state.history.id for a in answers):
            log.info("batches_not_recalled", reason="a node that is there has not said what it knows")
            return
        uuids = sorted(c.uuid for c in state.collections.values())
        for uuid in uuids:
            there = {d.batch for d in self._store.batches(uuid).decisions}
            known = {d.batch: d for a in answers if a for d in map(_decision, a.made.get(uuid, ()))}
            for decision in in_order(d for d in known.values() if d.batch not in there):
                await self._store.recall_decision(uuid, decision, fenced_by=self._term)
                log.warning("batch_recalled", collection=uuid, operation=decision.batch.operation)
        await self._store.allow_decisions(uuids, fenced_by=self._term)


def copy_of(report: m.CopyReport) -> Copy | None:
    """The copy that a node reports."""
    answer = LostQuorum.answer_of(report)
    return answer.copy if isinstance(answer, Answer) else None


def _configuration(said: m.Configuration) -> Configuration:
    return Configuration(
        epoch=said.epoch,
        primary=said.primary,
        in_sync=frozenset(said.in_sync),
        learners=frozenset(said.learners),
        min_in_sync=said.min_in_sync,
        replicas=said.replicas,
        successor=said.successor,
        revision=said.revision,
    )


def _decision(said: m.Decision) -> Decision:
    return Decision(Batch(said.operation, said.attempt), said.verdict, said.prepared, said.revision)


def _note(before: Shard, target: Configuration) -> None:
    log.warning(
        "shard_settled",
        shard=str(before.id),
        epoch=target.epoch,
        primary=target.primary.node,
        in_sync=sorted(member.node for member in target.in_sync),
        was_epoch=before.epoch,
        was_primary=before.primary.node,
        was_in_sync=sorted(member.node for member in before.in_sync),
    )
