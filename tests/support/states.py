"""Hypothesis strategies for whole cluster states, and the effect that decisions have on them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

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


def collection(name: str, shards: int, factor: int = 1) -> Collection:
    return Collection(
        name=name,
        uuid=f"uuid-{name}",
        dimension=4,
        metric=Metric.cosine,
        shards=shards,
        replication_factor=factor,
        min_in_sync=factor // 2 + 1,
    )


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    """Nodes of which some are down, collections of which some have shards already, dropped collections."""
    nodes = [node(i) for i in range(draw(st.integers(1, 5)))]
    up = draw(st.sets(st.sampled_from(nodes).map(lambda n: n.id)))
    collections = {
        n: collection(n, draw(st.integers(1, 8)), draw(st.integers(1, 3)))
        for n in draw(st.sets(st.sampled_from(NAMES)))
    }
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
            case assignment.ForgetNode():
                raise AssertionError("nobody was said to be away")
            case assignment.Reassign(before, after):
                assert shards[before.id] == before
                shards[after.id] = after
    return msgspec.structs.replace(state, shards=shards, drops=drops)


@dataclass
class Host:
    """A node's disk and what is open on it; `data` says which incarnation each directory is of."""

    disk: hosting.Disk
    data: dict[ShardId, Member] = field(default_factory=dict)
    opened: set[ShardId] = field(default_factory=set)
    damaged: dict[ShardId, str] = field(default_factory=dict)

    @classmethod
    def of(cls, me: Node) -> "Host":
        return cls(hosting.Disk(me.id, Incarnation(me.incarnation)))

    def local(self) -> dict[ShardId, hosting.Local]:
        return {i: hosting.Local(i in self.opened, self.damaged.get(i)) for i in self.data}

    def registered(self, state: ClusterState) -> ClusterState:
        """The state after the node has registered with the incarnations that it has."""
        kept = {str(i): k.incarnation for i, k in self.disk.replicas.items() if k.incarnation != self.disk.incarnation}
        me = msgspec.structs.replace(state.nodes[self.disk.node], incarnations=kept)
        return msgspec.structs.replace(state, nodes={**state.nodes, me.id: me})

    def round(self, state: ClusterState) -> ClusterState:
        """Do what the node decides, and register; the state after that."""
        reports = set(state.dropped_by)
        for action in hosting.decide(self.disk, state, self.local()):
            match action:
                case hosting.Open(record, _, member):
                    self._keep(record.id, member.incarnation, present=True)
                    assert self.data.setdefault(record.id, member) == member, "opened as somebody else"
                    self.opened.add(record.id)
                case hosting.Renew(shard_id):
                    self._renew(shard_id)
                case hosting.GiveUp(shard_id):
                    self._renew(shard_id)
                    self._delete(shard_id)
                case hosting.Delete(shard_id) | hosting.Clear(shard_id):
                    self._delete(shard_id)
                case hosting.ReportDropped(uuid):
                    reports.add(DroppedBy(uuid, self.disk.node))
        return self.registered(msgspec.structs.replace(state, dropped_by=frozenset(reports)))

    def _renew(self, shard_id: ShardId) -> None:
        self.opened.discard(shard_id)
        self.damaged.pop(shard_id, None)
        self._keep(shard_id, f"{self.disk.member(shard_id).incarnation}+", present=False)

    def _delete(self, shard_id: ShardId) -> None:
        self.opened.discard(shard_id)
        del self.data[shard_id]

    def _keep(self, shard_id: ShardId, incarnation: str, *, present: bool) -> None:
        kept = {**self.disk.replicas, shard_id: hosting.Kept(Incarnation(incarnation), present)}
        self.disk = replace(self.disk, replicas=kept)


def shard(number: int, home: Node, **changes: object) -> Shard:
    at = Member(home.id, Incarnation(home.incarnation))
    made = Shard(
        id=ShardId("uuid-words", number),
        epoch=Epoch(1),
        primary=at,
        in_sync=(at,),
    )
    return msgspec.structs.replace(made, **changes)
