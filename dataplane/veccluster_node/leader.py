"""Lead the cluster while this node holds the election: read, decide, apply, and nothing else.

Everything the leader does is fenced by its term; a leader that has lost it without knowing changes nothing.
"""

import structlog

from veccluster.decisions import assignment
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster_node.metadata.etcd import Election, Lease, Term
from veccluster_node.metadata.store import Store

ROUND = 1.0
"""Seconds after which the leader looks even if nothing seems to have changed."""

log = structlog.get_logger(__name__)


async def campaign_and_lead(store: Store, election: Election, lease: Lease) -> None:
    """Wait to be elected and lead until the lease ends."""
    try:
        term = await election.campaign()
        await _lead(store, term, lease)
    except LeaseLost:
        log.info("leadership_ended")


async def _lead(store: Store, term: Term, lease: Lease) -> None:
    async for _ in store.changes(at_least_every=ROUND):
        lease.check()
        if store.state.revision < term.create_revision:
            continue  # decisions need to see at least what the leader before us did
        for action in assignment.decide(store.state):
            try:
                await store.apply(action, fenced_by=term)
            except (OutcomeUnknown, MetadataUnavailable, MetadataRefused) as error:
                log.warning("leader_action_failed", action=type(action).__name__, reason=error.detail)
                break  # the next round sees what there is
