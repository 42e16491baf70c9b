"""Hypothesis strategies for replicated shards and what the leader sees of their nodes; logs and their lineages."""

from dataclasses import replace

from hypothesis import strategies as st

from veccluster.decisions.replication import failover
from veccluster.decisions.replication.failover import Seen
from veccluster.decisions.replication.values import Configuration, Incarnation, Lineage, Member
from veccluster.model.state import Epoch, NodeId, Revision, Seq, ShardId

REPLACE_AFTER = 600.0
Nodes = dict[NodeId, Seen]
Shards = dict[ShardId, Configuration]


def member(number: int, disk: int = 1) -> Member:
    return Member(NodeId(f"n{number}"), Incarnation(f"n{number}/{disk}"))


def seen(number: int, **changes: object) -> Seen:
    found = Seen(id=NodeId(f"n{number}"), incarnation=Incarnation(f"n{number}/1"), zone=f"z{number % 3}")
    return replace(found, **changes)


def configuration(*in_sync: int, **changes: object) -> Configuration:
    """A shard of which the first of `in_sync` is primary."""
    members = [member(n) for n in in_sync]
    made = Configuration(
        epoch=Epoch(2),
        primary=members[0],
        in_sync=frozenset(members),
        min_in_sync=min(2, len(members)),
        replicas=max(1, len(members)),
        revision=Revision(7),
    )
    return replace(made, **changes)


@st.composite
def nodes(draw: st.DrawFn) -> Nodes:
    """Nodes that are there, away for a while or for long, with another disk, or that cannot serve a shard."""
    found = {}
    for number in range(draw(st.integers(1, 7))):
        away = draw(st.sampled_from([0.0, 0.0, 0.0, 5.0, 2 * REPLACE_AFTER]))
        disk = draw(st.sampled_from([1, 1, 1, 2]))
        broken = draw(st.dictionaries(st.sampled_from(SHARDS), st.sampled_from([1.0, 2 * REPLACE_AFTER]), max_size=1))
        node = seen(number, serving=not away, away=away, incarnation=member(number, disk).incarnation)
        found[node.id] = replace(node, broken=broken, may_hold=draw(st.sampled_from([True, True, False])))
    return found


SHARDS = [ShardId("words", n) for n in range(3)] + [ShardId("images", 0)]


@st.composite
def shards(draw: st.DrawFn) -> Shards:
    """Shards on some of seven nodes, of which any number may be in sync, learners or neither."""
    factors = {name: draw(st.integers(1, 5)) for name in ("words", "images")}
    return {shard: draw(_shard(factors[shard.collection])) for shard in draw(st.sets(st.sampled_from(SHARDS)))}


@st.composite
def _shard(draw: st.DrawFn, replicas: int) -> Configuration:
    order = draw(st.permutations(range(7)))
    size = draw(st.integers(1, replicas + 1))
    learners = order[size : size + draw(st.integers(0, 2))]
    return configuration(
        *order[:size],
        learners=frozenset(member(n) for n in learners),
        replicas=replicas,
        min_in_sync=draw(st.integers(1, max(1, min(size, replicas - 1)))),
        epoch=Epoch(draw(st.integers(1, 9))),
    )


Placed = dict[ShardId, list[NodeId]]


@st.composite
def placements(draw: st.DrawFn, of: Shards, on: Nodes) -> Placed:
    """Where some of the shards should be: on as many different nodes as they ask for."""
    able = [sorted(on)] if on else []
    chosen = {i: draw(st.permutations(able[0])) for i in sorted(of) if able and len(on) >= of[i].replicas}
    return {i: order[: of[i].replicas] for i, order in chosen.items() if draw(st.booleans())}


def lead(shards: Shards, nodes: Nodes, placed: Placed | None = None) -> tuple[Shards, list[failover.Action]]:
    """The shards after one round of the leader, and what it decided."""
    actions = list(failover.decide(shards, nodes, replace_after=REPLACE_AFTER, placed=placed))
    after = dict(shards)
    for action in actions:
        if isinstance(action, failover.Change):
            assert after[action.shard].revision == action.revision, "two changes of one key in one round"
            after[action.shard] = replace(action.target, revision=Revision(action.revision + 1))
    return after, actions


Log = list[Epoch]
"""The epoch of each seq, from 1 on."""


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, Log]:
    """Two logs that may have a beginning in common and then differ."""
    epochs = st.lists(st.integers(1, 6).map(Epoch), max_size=8)
    common = draw(epochs)
    return sorted(common + draw(epochs)), sorted(common) + sorted(draw(epochs))


def lineage_of(log: Log) -> Lineage:
    made = Lineage()
    for index, epoch in enumerate(log):
        made = made.followed_by(epoch, Seq(index + 1))
    return made


def follow(shards: Shards, nodes: Nodes) -> Shards:
    """The shards after their primaries did their part: learners that are there are let in, and successors take over."""
    after = {}
    for shard, now in shards.items():
        able = {m for m in now.learners if (n := nodes.get(m.node)) and n.serving and n.member(shard) == m}
        nodes_of = {m.node for m in able}
        changed = replace(now, learners=now.learners - able)
        changed = replace(changed, in_sync=frozenset(m for m in now.in_sync if m.node not in nodes_of) | able)
        if now.successor in now.in_sync:
            changed = replace(changed, primary=now.successor, successor=None, epoch=Epoch(now.epoch + 1))
        after[shard] = now if changed == now else replace(changed, revision=Revision(now.revision + 1))
    return after
