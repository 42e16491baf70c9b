"""Lead the cluster while this node holds the election: read, decide, apply, and nothing else.

Everything the leader does is fenced by its term; a leader that has lost it without knowing changes nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

import structlog

from veccluster.decisions import assignment
from veccluster.decisions.agenda import Agenda
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.atomic import Showing
from veccluster.decisions.replication.atomic_deciding import Known, forgettable
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable, OutcomeUnknown, VecClusterError
from veccluster.model.cluster import EVERYTHING
from veccluster_etcd import Election, Lease, Term
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.metadata.store import CHANGES_IN_ONE_TRANSACTION, FORGOTTEN_AT_ONCE, Store
from veccluster_node.runtime.metrics import Measures

ROUND = 0.5
"""Seconds after which the leader looks even if nothing seems to have changed."""
LOOK_AT_ALL_EVERY = 600.0
"""Seconds after which the leader looks at everything, as when its term begins, and not only at what has changed."""
A_ROUND = 4 * CHANGES_IN_ONE_TRANSACTION
"""Changes of shards that are asked for before the leader looks again: when many nodes go at once, what is most urgent
by then comes first, and the nodes that take over are not given everything in one moment."""

FORGET_EVERY = 5.0
"""Seconds between two looks at which decisions about batches over several shards nobody needs any more."""

FORGET_MORE = 0.5
"""The same, while there are many: whoever proposes a decision meanwhile has to ask the shards once more."""

Shown = Callable[[str, Iterable[int]], Awaitable[Mapping[int, Showing]]]
"""What the primaries of a collection's shards have applied of batches."""

log = structlog.get_logger(__name__)


async def campaign_and_lead(
    store: Store,
    election: Election,
    lease: Lease,
    watch: Watch,
    shown: Shown,
    replace_after: float,
    measures: Measures,
    settling: Callable[[Term], Coroutine[None, None, None]] | None = None,
) -> None:
    """Wait to be elected and lead until the lease ends; copies that are away for `replace_after` are made elsewhere.

    `settling` is done meanwhile: what a leader has to do when etcd went back to an older state.
    """
    try:
        async for _ in store.changes(at_least_every=ROUND):
            if not store.went_back:
                break  # a leader of before would be none in the history that is about to begin
        term = store.begin(await election.campaign())
        beside = [
            asyncio.create_task(watch.probe(), name="probing"),
            asyncio.create_task(Forgetting(store, term, shown).run(), name="forgetting"),
        ]
        if settling:
            beside.append(asyncio.create_task(settling(term), name="settling"))
        try:
            await Leader(store, term, watch, replace_after, measures).run(lease)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
    except LeaseLost:
        log.info("leadership_ended")


class Leader:
    """One term of this node."""

    def __init__(self, store: Store, term: Term, watch: Watch, replace_after: float, measures: Measures) -> None:
        self._store = store
        self._term = term
        self._watch = watch
        self._measures = measures
        self._reader = store.reader()
        self._agenda = Agenda(replace_after)
        self._look_at_all = 0.0

    async def run(self, lease: Lease) -> None:
        """Lead for as long as the lease lasts."""
        async for _ in self._store.changes(at_least_every=ROUND):
            lease.check()
            if self._store.state.revision < self._term.create_revision:
                continue  # decisions need to see at least what the leader before us did
            try:
                await self.round()
            except (OutcomeUnknown, MetadataUnavailable, MetadataRefused) as error:
                log.warning("leader_round_interrupted", reason=error.detail)  # the next round sees what there is

    async def round(self) -> None:
        """Look once, and do what is decided by the state as it is now; etcd compares what comes to pass meanwhile."""
        state, changes = self._reader.take()
        if time.monotonic() >= self._look_at_all:
            changes, self._look_at_all = EVERYTHING, time.monotonic() + LOOK_AT_ALL_EVERY
        self._agenda.note(state, changes, self._watch.seen())
        away = {node: self._watch.away(node) for node in state.nodes.keys() - state.alive.keys()}
        incomplete, unopened = self._agenda.incomplete, self._agenda.unopened
        for action in assignment.decide(state, away, incomplete=incomplete, unopened=unopened):
            await self._store.apply(action, fenced_by=self._term)
        wanted = self._agenda.decide(state)
        for start in range(0, min(len(wanted), A_ROUND), CHANGES_IN_ONE_TRANSACTION):
            await self._change(wanted[start : start + CHANGES_IN_ONE_TRANSACTION])
        if len(wanted) > A_ROUND or self._agenda.is_behind:
            self._store.wake()
            await asyncio.sleep(0)  # others may have something to do meanwhile

    async def _change(self, changes: Sequence[failover.Change]) -> None:
        before = self._store.state.shards
        for change in await self._store.apply_failover(changes, fenced_by=self._term):
            target = change.target
            if isinstance(change, failover.Promote):
                self._measures.failovers.observe(self._watch.away(before[change.shard].primary.node))
            log.info(
                type(change).__name__.lower(),
                shard=str(change.shard),
                epoch=target.epoch,
                primary=target.primary.node,
                in_sync=sorted(m.node for m in target.in_sync),
                learners=sorted(m.node for m in target.learners),
                successor=target.successor and target.successor.node,
                min_in_sync=target.min_in_sync,
            )


class Forgetting:
    """Deletes decisions about batches over several shards once all of them have applied them (15)."""

    def __init__(self, store: Store, term: Term, shown: Shown) -> None:
        self._store = store
        self._term = term
        self._shown = shown

    async def run(self) -> None:
        """Look now and then, for ever."""
        pause = FORGET_EVERY
        while True:
            await asyncio.sleep(pause)
            pause = FORGET_EVERY
            try:
                if await self._look():
                    pause = FORGET_MORE
            except VecClusterError as error:
                log.warning("batches_not_forgotten", reason=error.detail)

    async def _look(self) -> bool:
        """Forget what can be; whether there is more of it."""
        more = False
        state = self._store.state
        there = {c.uuid for c in state.collections.values()} | state.drops.keys()
        there |= {shard.collection for shard in (*state.shards, *state.unsettled)}
        for uuid, known in list(self._store.all_batches.items()):
            if uuid not in there and state.revision >= self._term.create_revision:
                await self._store.drop_batches(uuid, fenced_by=self._term)
            elif known.decisions:
                more |= await self._forget(uuid, known)
        return more

    async def _forget(self, uuid: str, known: Known) -> bool:
        shards = {n for decision in known.decisions for n in decision.prepared}
        if gone := list(forgettable(known, await self._shown(uuid, sorted(shards)))):
            await self._store.forget_batches(uuid, known, gone, fenced_by=self._term)
        return len(gone) > FORGOTTEN_AT_ONCE
