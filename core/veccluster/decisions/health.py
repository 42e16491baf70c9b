"""Judge a cluster: healthy, degraded or critical, with the issues in words that a person can act on.

`critical` means that some data cannot be read or written now; `degraded` that something is wrong which has not cost
availability yet.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from veccluster.decisions.shard_map import records_of
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, Member, NodeId, NodeState, ReadOnly, Shard
from veccluster.model.status import Health

_NOBODY_ASKED: Mapping[NodeId, bool] = {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict, its reasons (the gravest first), and the shards that are not as they should be."""

    health: Health
    issues: tuple[str, ...]
    unavailable: tuple[Shard, ...] = ()
    """Shards that cannot be read or cannot be written."""
    under_replicated: tuple[Shard, ...] = ()
    """Shards of which some copies are in sync and there, and fewer than they should have."""
    moving: tuple[Shard, ...] = ()
    """Shards with all their copies that are being brought to other nodes."""
    needed: frozenset[NodeId] = frozenset()
    """Nodes without which a shard that can usually do without one could not be written now."""

    def because(self, issue: str) -> "Verdict":
        """The verdict with one more reason to be degraded at least."""
        worse = Health.degraded if self.health is Health.healthy else self.health
        return replace(self, health=worse, issues=(*self.issues, issue))


def judge(
    state: ClusterState,
    *,
    answering: Mapping[NodeId, bool] = _NOBODY_ASKED,
    metadata_away: float = 0.0,
    not_admitted: str = "",
) -> Verdict:
    """The verdict on `state`, by a node that lost etcd `metadata_away` seconds ago.

    `answering` says of the nodes that were asked just now whether they gave an answer. Of the others their leases tell,
    unless etcd is away. `not_admitted` says in words why etcd does not let the node in, where that is why it is lost.
    """
    down = {n for n in state.nodes if not answering.get(n, n in state.alive or bool(metadata_away))}
    names = {c.uuid: c for c in state.collections.values()}
    look = [
        _Look(s, names[i.collection], state, down) for i, s in sorted(state.shards.items()) if i.collection in names
    ]
    unavailable = [one for one in look if one.trouble()]
    thin = [one for one in look if one.missing and one.good]
    critical = [
        *_grouped(unavailable, lambda one: one.trouble() or ""),
        *_read_only(state, unavailable),
        *_unplaced(state, down),
    ]
    degraded = [
        *_grouped((one for one in thin if one not in unavailable), lambda one: one.thinness()),
        *_nodes_down(state, down),
        *([] if metadata_away else _nodes_without_etcd(state, down)),
        *_metadata(state, metadata_away, not_admitted),
        *_went_back(state),
        *_unreadable(state),
        *_reported(state),
    ]
    return Verdict(
        Health.critical if critical else Health.degraded if degraded else Health.healthy,
        (*critical, *degraded),
        unavailable=tuple(one.shard for one in unavailable),
        under_replicated=tuple(one.shard for one in thin),
        moving=tuple(one.shard for one in look if not one.missing and (one.shard.learners or one.shard.successor)),
        needed=frozenset(m.node for one in look if not one.can_spare_one for m in one.good),
    )


class _Look:
    """One shard and how its copies are."""

    def __init__(self, shard: Shard, collection: Collection, state: ClusterState, down: set[NodeId]) -> None:
        self.shard = shard
        self.collection = collection
        self._state = state
        self._down = down
        self.good = [m for m in shard.in_sync if self._is_good(m)]
        """Copies that are in sync and there."""

    @property
    def missing(self) -> int:
        """How many copies it lacks."""
        return max(0, self.collection.replication_factor - len(self.good))

    @property
    def can_spare_one(self) -> bool:
        """Whether it has more copies than its writes need; true of one that never has."""
        wanted = self.shard.min_in_sync
        return len(self.good) > wanted or self.collection.replication_factor <= wanted

    def trouble(self) -> str | None:
        """Why it cannot be read or written, if it cannot."""
        shard, wanted = self.shard, self.shard.min_in_sync
        if self._is_taking_over() and len(self.good) + 1 >= wanted:
            return f"Failing over: {{shards}}: node {shard.primary.node} is taking over."
        if not self.good:
            return f"Lost quorum: {{shards}}: {self._why_none()}."
        if len(self.good) < wanted:
            return (
                f"Lost quorum: {{shards}}: writes are refused, {len(self.good)} of the {wanted} copies in sync that "
                f"they need can be used (node {_listed(m.node for m in self.good)}); {self._why_missing()}."
            )
        if shard.primary not in self.good:
            return (
                f"Failing over: {{shards}}: node {shard.primary.node} {self._why(shard.primary)}; "
                "another copy takes its place."
            )
        if not self._serves(shard.primary):
            return f"Failing over: {{shards}}: node {shard.primary.node} is taking over."
        if self._is_cut_off():
            others = _listed(m.node for m in self.good if m != shard.primary)
            return (
                f"Cut off: {{shards}}: writes wait, since node {shard.primary.node} does not hear enough of the copies "
                f"on node {others}, which are there: look at the network between them. "
                "Another copy takes over if it can."
            )
        return None

    def thinness(self) -> str:
        """What it lacks, and what is being done about it."""
        there = f"{len(self.good)} of {self.collection.replication_factor} copies in sync"
        return f"Under-replicated: {{shards}}: {there}; {self._why_missing()}{self._concession()}."

    def _concession(self) -> str:
        """What was accepted with a loss and holds until enough copies are in sync again (lost_quorum.py)."""
        now, wanted = self.shard.min_in_sync, self.collection.min_in_sync
        return f"; until then writes are acknowledged with {now} instead of {wanted}" if now < wanted else ""

    def _is_good(self, member: Member) -> bool:
        return self._why(member) is None

    def _serves(self, member: Member) -> bool:
        load = self._state.alive.get(member.node)
        return load is None or str(self.shard.id) in load.serving

    def _is_taking_over(self) -> bool:
        """Whether one of several copies is opened as primary, or has everything ready but the last step."""
        primary, name = self.shard.primary, str(self.shard.id)
        load = self._state.alive.get(primary.node)
        if load is None or self.shard.in_sync == (primary,) or self._why_gone(primary):
            return False
        return name in load.recovering and name not in load.broken

    def _is_cut_off(self) -> bool:
        load = self._state.alive.get(self.shard.primary.node)
        return load is not None and str(self.shard.id) in load.cut_off

    def _why(self, member: Member) -> str | None:
        """Why that copy is none, if it is not."""
        if why := self._why_gone(member):
            return why
        load, shard = self._state.alive.get(member.node), str(self.shard.id)
        is_alone = self.shard.in_sync == (member,)
        if load and shard not in load.serving and (is_alone or shard in load.recovering or shard in load.broken):
            return "is still opening it, or could not (see its issues)"
        return None

    def _why_gone(self, member: Member) -> str | None:
        """Why its node is not there with the disk that holds it, if it is not."""
        node = self._state.nodes.get(member.node)
        if node is None:
            return "is no longer a member"
        if node.id in self._down:
            return "is not reachable"
        return None if node.member(self.shard.id) == member else "no longer has the disk that held it"

    def _why_none(self) -> str:
        if len(self.shard.in_sync) > 1:
            each = (f"node {m.node} {self._why(m)}" for m in self.shard.in_sync)
            return f"none of its copies that are in sync can be used ({'; '.join(each)}); start those nodes"
        (only,) = self.shard.in_sync
        if only.node not in self._state.nodes:
            return f"its only replica was on node {only.node}, which is no longer a member"
        if only.node in self._down:
            return f"its only replica is on node {only.node}, which is not reachable; start that node"
        if self._state.nodes[only.node].member(self.shard.id) != only:
            return (
                f"its only replica was on a disk that node {only.node} no longer has; "
                "bring that data directory back, or delete the collection and load it again"
            )
        return f"node {only.node} {self._why(only)}"

    def _why_missing(self) -> str:
        each = [f"node {m.node} {why}" for m in self.shard.in_sync if (why := self._why(m))]
        return "; ".join([*each, self._help()])

    def _help(self) -> str:
        """What is being done so that there are enough copies."""
        coming = [m.node for m in self.shard.learners if self._why(m) is None]
        if coming:
            return f"node {_listed(coming)} is being brought up to date"
        able = [n for n in self._state.nodes.values() if n.id not in self._down and n.state is NodeState.active]
        if len(able) < self.collection.replication_factor:
            return f"only {len(able)} nodes can hold one: start those that are down, or add some"
        return "if they do not come back soon, other nodes get copies"


def _listed(nodes: Iterable[NodeId]) -> str:
    return ", ".join(sorted(nodes))


def _grouped(looks: Iterable[_Look], say: Callable[[_Look], str]) -> Iterator[str]:
    """One sentence for all shards of a collection about which there is the same to say."""
    groups: dict[tuple[str, str], list[int]] = {}
    for one in looks:
        groups.setdefault((one.collection.name, say(one)), []).append(one.shard.id.number)
    for (name, sentence), numbers in sorted(groups.items()):
        noun = "shard" if len(numbers) == 1 else "shards"
        yield sentence.format(shards=f"{noun} {', '.join(map(str, numbers))} of collection {name}")


def _read_only(state: ClusterState, unavailable: Iterable[_Look]) -> Iterator[str]:
    """Shards that are served and whose primary can write no more."""
    stuck = {(node, said.shard): said for node, load in state.alive.items() for said in load.read_only}
    lost = {one.shard.id for one in unavailable}
    for name, collection in sorted(state.collections.items()):
        for shard in records_of(state, collection):
            said = stuck.get((shard.primary.node, str(shard.id)))
            if said and shard.id not in lost:
                yield f"Shard {shard.id.number} of collection {name} takes no writes: {_in_words(said)}"


def _in_words(said: ReadOnly) -> str:
    return f"{said.why}; reads go on.{' ' if said.way_on else ''}{said.way_on}"


def _unplaced(state: ClusterState, down: set[NodeId]) -> Iterator[str]:
    able = sum(n.state is NodeState.active and n.id not in down for n in state.nodes.values())
    for name, collection in sorted(state.collections.items()):
        there = sum(i.collection == collection.uuid for i in state.shards.keys() | state.unsettled.keys())
        missing = collection.shards - there
        if missing and able < collection.min_in_sync:
            yield (
                f"Collection {name}: {missing} of {collection.shards} shards wait for {collection.min_in_sync} nodes "
                f"to hold a copy each; there are {able}."
            )
        elif missing:
            yield f"Collection {name}: {missing} of {collection.shards} shards wait for the leader to place them."


def _nodes_down(state: ClusterState, down: set[NodeId]) -> Iterator[str]:
    for node in sorted(down):
        yield f"Node {node} ({state.nodes[node].address}) is not reachable."


def _nodes_without_etcd(state: ClusterState, down: set[NodeId]) -> Iterator[str]:
    for node in sorted(state.nodes.keys() - state.alive.keys() - down):
        yield f"Node {node} serves, but has lost its lease in etcd: it hears of no change until it has another."


def _metadata(state: ClusterState, away: float, not_admitted: str) -> Iterator[str]:
    if away:
        why = f" ({not_admitted})" if not_admitted else ""
        yield (
            f"etcd has been unreachable for {away:.0f} s{why}: reads and writes go on; "
            "collections cannot be created or deleted until it is back."
        )
    elif state.leader is None:
        yield "No leader is elected yet: new collections wait until one is."


def _went_back(state: ClusterState) -> Iterator[str]:
    names = {c.uuid: name for name, c in state.collections.items()}
    why = f" ({state.history.why})" if state.history.why else ""
    for name in sorted({names[i.collection] for i in state.unsettled if i.collection in names}):
        numbers = [str(i.number) for i in sorted(state.unsettled) if names.get(i.collection) == name]
        yield (
            f"etcd went back to an older state{why}: shard {', '.join(numbers)} of collection {name} changes nothing "
            "until the leader has asked the nodes what they know of it; where a primary serves, reads and writes go on."
        )


def _unreadable(state: ClusterState) -> Iterator[str]:
    for key, why in sorted(state.unreadable.items()):
        yield (
            f"The key {key} in etcd cannot be read ({why}): what it said before, if anything, still counts. It is "
            "damaged, or from a newer version: correct it, delete it if it is not the cluster's, or upgrade every node."
        )


def _reported(state: ClusterState) -> Iterator[str]:
    for node, load in sorted(state.alive.items()):
        yield from (f"Node {node}: {issue}" for issue in load.issues)
