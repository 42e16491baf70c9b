"""Go on with what is left of a shard when a person accepts what is lost: ask all nodes, report, and change the record.

Everything here happens because somebody asked for it by name. What is to be done is decided in
`veccluster.decisions.lost_quorum`; this asks the nodes, and carries out the plan that was confirmed.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from veccluster.decisions import lost_quorum
from veccluster.decisions.lost_quorum import Answer, Copy, Plan, Silence
from veccluster.decisions.replication.values import Configuration, Lineage, Position, Run
from veccluster.decisions.shard_map import ShardMap
from veccluster.errors import NotFound, RecoveryRefused, StorageCorrupt, Unavailable, VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, Epoch, NodeId, Seq, Shard, ShardId
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.metadata.store import Store
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.replica.inspection import Inspection
from veccluster_node.replica.ports import Standing
from veccluster_node.runtime.identity import Identity
from veccluster_node.shards.host import ShardHost

PATIENCE = 20.0
"""Seconds for a node's answer: a copy that is not in use has to be opened for it."""
TAKEOVER = 10.0
"""Seconds that the answer waits for the new primary to serve."""

log = structlog.get_logger(__name__)


class LostQuorum:
    """One node's part in it: it asks the others for somebody, and answers when it is asked."""

    def __init__(
        self,
        identity: Identity,
        host: ShardHost,
        peers: Peers,
        state: Callable[[], ClusterState],
        store: Callable[[], Store],
        watch: Callable[[], Watch | None],
    ) -> None:
        """`store` raises `MetadataUnavailable` while etcd is away; a node that etcd misses answers all the same."""
        self._identity = identity
        self._host = host
        self._peers = peers
        self._state = state
        self._store = store
        self._watch = watch

    async def look(self, collection: Collection, number: int) -> Plan:
        """What there is of a shard, what would be done, and what that loses."""
        store, shard = self._store(), ShardId(collection.uuid, number)
        if number not in ShardMap.of(collection, store.state.shards).numbers:
            raise NotFound(f"collection {collection.name} has no shard {number}: it has {collection.shards}, from 0 on")
        outdated = await store.read_unsettled(shard)
        now = outdated or await store.read_shard(shard)
        if now is None:
            raise Unavailable(f"shard {number} of collection {collection.name} waits for the leader to place it")
        nodes = sorted(store.state.nodes)
        answers = await asyncio.gather(*(self._ask(node, shard, store) for node in nodes))
        said = dict(zip(nodes, answers, strict=True))
        return lost_quorum.decide(shard, now, collection.min_in_sync, said, outdated=outdated is not None)

    async def accept(self, collection: Collection, number: int, expected: str) -> Plan:
        """Carry out the plan that was called `expected`, if it is still the one."""
        plan, store = await self.look(collection, number), self._store()
        if plan.refusal or plan.target is None or plan.chosen is None:
            raise RecoveryRefused(f"shard {number} of collection {collection.name}: {plan.refusal}")
        if plan.expected != expected or not await store.accept_loss(
            plan.shard, plan.target, plan.now.revision, plan.absent
        ):
            raise RecoveryRefused(
                f"shard {number} of collection {collection.name} is not as it was when this was confirmed: "
                "look at the report again"
            )
        _note(collection, plan)
        primary, epoch = plan.target.primary, plan.target.epoch

        def is_served(state: ClusterState) -> bool:
            load, record = state.alive.get(primary.node), state.shards.get(plan.shard)
            is_there = load is not None and str(plan.shard) in load.serving
            return is_there and record is not None and record.epoch >= epoch

        await store.wait_until(is_served, timeout=TAKEOVER)
        return plan

    async def answer(self, request: m.GetCopy) -> m.CopyReport:
        """What this node holds of a shard, whatever its record says of it, and by what it goes if not by that."""
        shard, history = request.shard, self._state().history.id
        is_unsettled = shard in self._state().unsettled
        standing = self._host.standing(shard) if is_unsettled else None
        report = await self._holding(shard)
        known = _newest(self._state().shards.get(shard), standing, self._state()) if is_unsettled else None
        serves = known is not None and standing is not None and standing.serving == known.epoch
        return msgspec.structs.replace(report, history=history, known=known and _told_of(known), serves=serves)

    async def _holding(self, shard: ShardId) -> m.CopyReport:
        disk = self._identity.disk
        member, collection = disk.member(shard), self._state().collection_of(shard)
        if collection is None:
            return m.CopyReport(member)
        if not disk.has_begun(shard):
            return m.CopyReport(member)  # what may be here was given up: it was damaged, or contradicted a primary
        try:
            found = await self._host.inspect(shard, collection, member)
        except StorageCorrupt as error:
            return m.CopyReport(member, _unreadable(error.detail))
        except VecClusterError as error:
            return m.CopyReport(member, busy=f"cannot look at its copy now ({error.detail})")
        return m.CopyReport(member, _told(found) if found else None)

    async def report(self, node: NodeId, shard: ShardId, *, timeout: float = PATIENCE) -> m.CopyReport | None:
        """What a node says of a shard; None if it gives no answer."""
        try:
            return await self._peers.call(node, m.GetCopy(shard=shard), timeout=timeout)
        except VecClusterError as error:
            log.info("copy_not_reported", node=node, shard=str(shard), reason=error.detail)
            return None

    async def decisions(self, node: NodeId, *, timeout: float) -> m.Decisions | None:
        """What a node knows to be decided of batches over several shards; None if it gives no answer."""
        try:
            return await self._peers.call(node, m.GetDecisions(), timeout=timeout)
        except VecClusterError as error:
            log.info("decisions_not_reported", node=node, reason=error.detail)
            return None

    async def _ask(self, node: NodeId, shard: ShardId, store: Store) -> Answer | Silence:
        said = await self.report(node, shard)
        if said is None:
            watch = self._watch()
            away = watch.away(node) if watch else 0.0
            return Silence(has_lease=node in store.state.alive, since=time.time() - away if away else None)
        return self.answer_of(said)

    @staticmethod
    def answer_of(said: m.CopyReport) -> Answer:
        """What a node says of its copy."""
        copy = said.copy
        if copy is None:
            return Answer(said.member, busy=said.busy)
        epoch, seq = copy.durable
        return Answer(
            said.member,
            Copy(
                member=said.member,
                durable=Position(Epoch(epoch), Seq(seq)),
                epoch=Epoch(copy.epoch),
                vectors=copy.vectors,
                written=None if copy.written_ns is None else copy.written_ns / 1e9,
                doubt=copy.doubt,
                trouble=copy.trouble,
                is_mendable=copy.is_mendable,
                committed=Position(Epoch(copy.committed[0]), Seq(copy.committed[1])),
                lineage=Lineage(tuple(Run(Epoch(epoch), Seq(first)) for epoch, first in copy.lineage)),
            ),
        )


def _newest(record: Shard | None, standing: Standing | None, state: ClusterState) -> Configuration | None:
    """What is known of a shard from before etcd went back, by the node's state and by its replica."""
    collection = state.collection_of(record.id) if record else None
    known = [Configuration.of(record, collection.replication_factor)] if record and collection else []
    if standing and standing.configuration:
        known.append(standing.configuration)
    return max(known, key=lambda c: (c.epoch, c.revision), default=None)


def _told_of(known: Configuration) -> m.Configuration:
    return m.Configuration(
        epoch=known.epoch,
        primary=known.primary,
        in_sync=sorted(known.in_sync),
        learners=sorted(known.learners),
        min_in_sync=known.min_in_sync,
        replicas=known.replicas,
        successor=known.successor,
        revision=known.revision,
    )


def _told(found: Inspection) -> m.Copy:
    return m.Copy(
        durable=(found.durable.epoch, found.durable.seq),
        epoch=found.epoch,
        vectors=found.vectors,
        written_ns=found.written_ns,
        doubt=found.doubt,
        trouble=found.trouble,
        is_mendable=found.is_mendable,
        committed=(found.committed.epoch, found.committed.seq),
        lineage=tuple((run.epoch, run.first) for run in found.lineage.runs),
    )


def _unreadable(why: str) -> m.Copy:
    return m.Copy(durable=(0, 0), epoch=0, vectors=0, written_ns=None, doubt=None, trouble=why, is_mendable=False)


def _note(collection: Collection, plan: Plan) -> None:
    """The line that remains of it, in the log of the node that was asked."""
    assert plan.target is not None and plan.chosen is not None
    log.warning(
        "data_loss_accepted",
        collection=collection.name,
        shard=str(plan.shard),
        epoch=plan.target.epoch,
        primary=plan.target.primary.node,
        seq=plan.chosen.durable.seq,
        in_sync=sorted(member.node for member in plan.target.in_sync),
        min_in_sync=plan.target.min_in_sync,
        missing=sorted(missing.member.node for missing in plan.missing),
        lost=list(plan.words),
    )
