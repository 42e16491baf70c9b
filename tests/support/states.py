"""Hypothesis strategies for whole cluster states, and the effect that decisions have on them."""

from collections.abc import Iterable

import msgspec
from hypothesis import strategies as st

from veccluster.decisions import assignment, hosting
from veccluster.model.cluster import ClusterState, Drop, DroppedBy
from veccluster.model.state import Collection, Epoch, Incarnation, Load, Member, Metric, Node, NodeId, Shard, ShardId

NAMES = ("words", "images", "users")


def node(number: int) -> Node:
    return Node(
        id=NodeId(f"n{number}"),
        address=f"127.0.0.1:{8001 + number}",
        peer_address=f"127.0.0.1:{9001 + number}",
        incarnation=f"disk-{number}",
    )


def load(node_id: NodeId, serving: Iterable[ShardId] = ()) -> Load:
    return Load(id=node_id, boot="boot", serving=tuple(map(str, serving)))


def collection(name: str, shards: int) -> Collection:
    return Collection(name=name, uuid=f"uuid-{name}", dimension=4, metric=Metric.cosine, shards=shards)


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    """Nodes of which some are down, collections of which some have shards already, dropped collections."""
    nodes = [node(i) for i in range(draw(st.integers(1, 5)))]
    up = draw(st.sets(st.sampled_from(nodes).map(lambda n: n.id)))
    collections = {n: collection(n, draw(st.integers(1, 8))) for n in draw(st.sets(st.sampled_from(NAMES)))}
    state = ClusterState(
        collections=collections,
        nodes={n.id: n for n in nodes},
        alive={i: load(i) for i in up},
        leader=next(iter(sorted(up)), None),
    )
    state = lead(state)
    gone = draw(st.sets(st.sampled_from(sorted(collections)))) if collections else set()
    late = {n: collection(n, draw(st.integers(1, 4))) for n in draw(st.sets(st.just("late")))}
    return msgspec.structs.replace(
        state,
        collections={n: c for n, c in collections.items() if n not in gone} | late,
        drops={collections[n].uuid: Drop(uuid=collections[n].uuid, name=n) for n in gone},
    )


def lead(state: ClusterState) -> ClusterState:
    """The state after everything that the leader decides has been done."""
    shards, drops = dict(state.shards), dict(state.drops)
    for action in assignment.decide(state):
        match action:
            case assignment.CreateShards(_, created):
                shards |= {s.id: s for s in created}
            case assignment.ForgetShards(_, forgotten):
                shards = {i: s for i, s in shards.items() if i not in forgotten}
            case assignment.FinishDrop(uuid):
                drops.pop(uuid)
            case assignment.Reassign(before, after):
                assert shards[before.id] == before
                shards[after.id] = after
    return msgspec.structs.replace(state, shards=shards, drops=drops)


def host(
    state: ClusterState, me: Node, local: dict[ShardId, hosting.Local]
) -> tuple[ClusterState, dict[ShardId, hosting.Local]]:
    """The state and the node's own shards after one round of what the node decides has been done."""
    shards, reports, local = dict(state.shards), set(state.dropped_by), dict(local)
    for action in hosting.decide(me.id, me.incarnation, state, local):
        match action:
            case hosting.Open(shard):
                local[shard.id] = hosting.Local(is_open=True)
            case hosting.TakeEpoch(shard):
                taken = msgspec.structs.replace(shard, epoch=Epoch(shard.epoch + 1))
                shards[shard.id] = taken
                local[shard.id] = hosting.Local(is_open=True, serving=taken.epoch)
            case hosting.StopServing(shard_id):
                local[shard_id] = hosting.Local(is_open=True)
            case hosting.Delete(shard_id):
                del local[shard_id]
            case hosting.ReportDropped(uuid):
                reports.add(DroppedBy(uuid, me.id))
    return msgspec.structs.replace(state, shards=shards, dropped_by=frozenset(reports)), local


def shard(number: int, home: Node, **changes: object) -> Shard:
    at = Member(home.id, Incarnation(home.incarnation))
    made = Shard(
        id=ShardId("uuid-words", number),
        epoch=Epoch(1),
        primary=at,
        in_sync=(at,),
    )
    return msgspec.structs.replace(made, **changes)
