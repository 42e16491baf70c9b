"""The report on a shard that has lost too many copies, as clients are told it."""

from typing import Literal, cast

from veccluster.decisions.lost_quorum import Copy, Plan, role, time_of
from veccluster.model import api
from veccluster.model.state import Collection


def reply(collection: Collection, plan: Plan, *, done: bool) -> api.Recovery:
    """The plan in the words of the interface."""
    now, target = plan.now, plan.target
    return api.Recovery(
        collection=collection.name,
        shard=plan.shard.number,
        epoch=now.epoch,
        primary=now.primary.node,
        in_sync=sorted(m.node for m in now.in_sync),
        min_in_sync=now.min_in_sync,
        copies=[_copy(plan, c) for c in plan.copies],
        missing=[
            api.MissingCopy(node=m.member.node, incarnation=m.member.incarnation, why=m.why, since=time_of(m.since))
            for m in plan.missing
        ],
        silent=list(plan.silent),
        refusal=plan.refusal,
        then=None
        if target is None
        else api.Continuation(
            primary=target.primary.node,
            epoch=target.epoch,
            in_sync=sorted(m.node for m in target.in_sync),
            min_in_sync=target.min_in_sync,
        ),
        losses=list(plan.words),
        expected=plan.expected,
        done=done,
    )


def _copy(plan: Plan, copy: Copy) -> api.FoundCopy:
    return api.FoundCopy(
        node=copy.member.node,
        incarnation=copy.member.incarnation,
        role=cast("Literal['in sync', 'learner', 'not in the record']", role(plan.now, copy.member)),
        epoch=copy.durable.epoch,
        seq=copy.durable.seq,
        vectors=copy.vectors,
        written=time_of(copy.written),
        problem=copy.trouble or copy.doubt,
    )
