"""Judge a cluster: healthy, degraded or critical, with the issues in words that a person can act on.

`critical` means that some data cannot be read or written now; `degraded` that something is wrong which has not cost
availability yet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veccluster.model.cluster import ClusterState
from veccluster.model.state import NodeId, ReadOnly, Shard
from veccluster.model.status import Health


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict, its reasons (the gravest first), and the shards that nobody serves."""

    health: Health
    issues: tuple[str, ...]
    unavailable: tuple[Shard, ...]

    def because(self, issue: str) -> "Verdict":
        """The verdict with one more reason to be degraded at least."""
        worse = Health.degraded if self.health is Health.healthy else self.health
        return Verdict(worse, (*self.issues, issue), self.unavailable)


def judge(
    state: ClusterState,
    *,
    unreachable: frozenset[NodeId] = frozenset(),
    metadata_away: float = 0.0,
    not_admitted: str = "",
) -> Verdict:
    """The verdict on `state`, by a node that could not reach `unreachable` and lost etcd `metadata_away` seconds ago.

    `not_admitted` says in words why etcd does not let the node in, where that is why it is lost.
    While etcd is away its leases say nothing: then only `unreachable` tells which nodes are down.
    """
    down = {n for n in state.nodes if n in unreachable or (n not in state.alive and not metadata_away)}
    unavailable = tuple(s for _, s in sorted(state.shards.items()) if _is_unavailable(s, state, down))
    critical = [*_lost_shards(state, unavailable, down), *_read_only(state, unavailable), *_unplaced(state)]
    degraded = [*_nodes_down(state, down), *_metadata(state, metadata_away, not_admitted), *_reported(state)]
    verdict = Health.critical if critical else Health.degraded if degraded else Health.healthy
    return Verdict(verdict, (*critical, *degraded), unavailable)


def _is_unavailable(shard: Shard, state: ClusterState, down: set[NodeId]) -> bool:
    node = state.nodes.get(shard.primary)
    load = state.alive.get(shard.primary)
    recovering = load is not None and str(shard.id) not in load.serving
    return node is None or node.id in down or node.incarnation != shard.primary_incarnation or recovering


def _lost_shards(state: ClusterState, unavailable: Sequence[Shard], down: set[NodeId]) -> Iterator[str]:
    names = {c.uuid: c.name for c in state.collections.values()}
    groups: dict[tuple[str, NodeId, str], list[int]] = {}
    for shard in unavailable:
        if name := names.get(shard.id.collection):
            groups.setdefault((name, shard.primary, _why(shard, state, down)), []).append(shard.id.number)
    for (name, _, why), numbers in sorted(groups.items()):
        listed = ", ".join(map(str, numbers))
        noun = "shard" if len(numbers) == 1 else "shards"
        yield f"Lost quorum: {noun} {listed} of collection {name}: {why}."


def _why(shard: Shard, state: ClusterState, down: set[NodeId]) -> str:
    node = state.nodes.get(shard.primary)
    if node is None:
        return f"its only replica was on node {shard.primary}, which is no longer a member"
    if shard.primary in down:
        return f"its only replica is on node {shard.primary}, which is not reachable; start that node"
    if node.incarnation != shard.primary_incarnation:
        return (
            f"its only replica was on a disk that node {shard.primary} no longer has; "
            "bring that data directory back, or delete the collection and load it again"
        )
    return f"node {shard.primary} is still opening it, or could not (see its issues)"


def _read_only(state: ClusterState, unavailable: Sequence[Shard]) -> Iterator[str]:
    """Shards that are served and whose primary can write no more."""
    stuck = {(node, said.shard): said for node, load in state.alive.items() for said in load.read_only}
    lost = {s.id for s in unavailable}
    for name, collection in sorted(state.collections.items()):
        for shard in state.shards_of(collection):
            said = stuck.get((shard.primary, str(shard.id)))
            if said and shard.id not in lost:
                yield f"Shard {shard.id.number} of collection {name} takes no writes: {_in_words(said)}"


def _in_words(said: ReadOnly) -> str:
    return f"{said.why}; reads go on.{' ' if said.way_on else ''}{said.way_on}"


def _unplaced(state: ClusterState) -> Iterator[str]:
    for name, collection in sorted(state.collections.items()):
        missing = collection.shards - len(state.shards_of(collection))
        if missing:
            yield f"Collection {name}: {missing} of {collection.shards} shards wait for the leader to place them."


def _nodes_down(state: ClusterState, down: set[NodeId]) -> Iterator[str]:
    for node in sorted(down):
        yield f"Node {node} ({state.nodes[node].address}) is not reachable."


def _metadata(state: ClusterState, away: float, not_admitted: str) -> Iterator[str]:
    if away:
        why = f" ({not_admitted})" if not_admitted else ""
        yield (
            f"etcd has been unreachable for {away:.0f} s{why}: reads and writes go on; "
            "collections cannot be created or deleted until it is back."
        )
    elif state.leader is None:
        yield "No leader is elected yet: new collections wait until one is."


def _reported(state: ClusterState) -> Iterator[str]:
    for node, load in sorted(state.alive.items()):
        yield from (f"Node {node}: {issue}" for issue in load.issues)
