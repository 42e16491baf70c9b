"""Decide who becomes primary, and which nodes are to hold a copy.

Pure: the leader reads etcd, calls `decide`, and applies the actions as compare-and-swaps; on the result a second call
returns nothing but what it cannot mend. It never adds to an in-sync set: the primary does, since only it knows whom it
waits for (3). It takes from it what is in excess, and a primary that is replaced. Rules 4, 6, 9 and 11 of
docs/replication.md.

Invariant: who is promoted was in sync when the swap was made, on the disk that is on record.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from veccluster.decisions import placement
from veccluster.decisions.replication.values import NO_REVISION, Configuration, Incarnation, Member
from veccluster.model.state import Epoch, NodeId, Revision, ShardId

Shards = Mapping[ShardId, Configuration]


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as the leader sees it. It is `serving` when its lease is there or it answers a probe."""

    id: NodeId
    incarnation: Incarnation
    zone: str = ""
    serving: bool = True
    away: float = 0.0
    """Seconds since it was last serving."""
    may_hold: bool = True
    """Whether it may be given more copies: it is neither draining nor full."""
    incarnations: Mapping[ShardId, Incarnation] = field(default_factory=dict)
    """Of those of its replicas that were lost or damaged since the node got its own incarnation (9)."""
    broken: Mapping[ShardId, float] = field(default_factory=dict)
    """Shards that it cannot serve, although it is there, and for how many seconds already."""
    cut_off: frozenset[ShardId] = frozenset()
    """Shards of which it is primary and whose writes wait for members that it does not hear, for longer than leases of
    the dead last."""

    def member(self, shard: ShardId) -> Member:
        """The node with the contents of its disk, as far as the shard is concerned."""
        return Member(self.id, self.incarnations.get(shard, self.incarnation))


@dataclass(frozen=True, slots=True)
class Change:
    """Change the key of `shard` to `target` if its revision is still `revision`."""

    shard: ShardId
    target: Configuration
    revision: Revision


@dataclass(frozen=True, slots=True)
class Promote(Change):
    """Make another member primary, in the next epoch (6)."""


@dataclass(frozen=True, slots=True)
class Enlist(Change):
    """Have another replica learn the shard (11)."""


@dataclass(frozen=True, slots=True)
class Dismiss(Change):
    """Do without replicas that are away for too long, or more than are asked for."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No member that is in sync can serve: to promote any other copy may lose acknowledged writes, and is for a
    person to decide (6).
    """

    shard: ShardId
    missing: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class HandOver(Change):
    """Ask the primary, which serves, to make another member primary (12); or no longer to."""


Action = Promote | Enlist | Dismiss | HandOver | Unavailable


def urgency(change: Change) -> int:
    """The place of a change among others, the lowest first: who waits for a primary waits for an answer."""
    return next((place for place, kind in enumerate((Promote, HandOver)) if isinstance(change, kind)), 2)


def decide(
    shards: Shards,
    nodes: Mapping[NodeId, Seen],
    *,
    replace_after: float,
    placed: Mapping[ShardId, Collection[NodeId]] | None = None,
    others: placement.Others = placement.NO_OTHERS,
) -> Iterator[Action]:
    """Yield what the absence of nodes asks for, and what it takes to bring shards to where they are `placed`.

    A node that is away for `replace_after` seconds is not waited for. A shard that is not placed stays where it is, and
    is given what copies it lacks. `others` sums up shards that are not asked about (agenda.py).
    """
    led = Counter(others.led)
    led.update(s.primary.node for s in shards.values())
    wanted = _wanted(shards, nodes, replace_after, others) | {i: set(where) for i, where in (placed or {}).items()}
    for shard, now in sorted(shards.items()):
        if able := _able(shard, now, nodes):
            chosen = min(able, key=lambda m: (led[m.node], m))
            led[chosen.node] += 1
            target = replace(now, primary=chosen, epoch=Epoch(now.epoch + 1), successor=None, revision=NO_REVISION)
            if len(able) >= now.min_in_sync:
                target = _without(now.primary, shard, target, nodes)
            yield Promote(shard, target, now.revision)
        elif not _serves(now.primary, shard, nodes):
            yield Unavailable(shard, tuple(sorted(now.in_sync)))
        elif action := _mend(shard, now, nodes, wanted[shard], replace_after):
            yield action


def _able(shard: ShardId, now: Configuration, nodes: Mapping[NodeId, Seen]) -> list[Member]:
    """Who may take the place of the primary; nobody if that should stay.

    One that serves and hears too few others to acknowledge anything is replaced when enough of the others serve: the
    network between nodes is broken, and nobody's lease tells (6).
    """
    able = [m for m in sorted(now.in_sync - {now.primary}) if _serves(m, shard, nodes)]
    if not _serves(now.primary, shard, nodes):
        return able
    is_cut_off = shard in nodes[now.primary.node].cut_off
    return able if is_cut_off and len(able) >= now.min_in_sync else []


def _without(old: Member, shard: ShardId, target: Configuration, nodes: Mapping[NodeId, Seen]) -> Configuration:
    """`target` with the node of the primary before it as a learner, with the disk that it has now.

    All that it acknowledged the others have (2), and it acknowledges nothing more once one of them has heard of the new
    epoch (5). So nobody has to find out once more that it is silent before writes go on.
    """
    node = nodes.get(old.node)
    learner = node.member(shard) if node else old
    return replace(target, in_sync=target.in_sync - {old}, learners=target.learners | {learner})


def _serves(member: Member, shard: ShardId, nodes: Mapping[NodeId, Seen]) -> bool:
    """Whether the node is there, with the disk that makes it this member (9)."""
    node = nodes.get(member.node)
    return node is not None and node.serving and node.member(shard) == member and shard not in node.broken


def _holds(member: Member, shard: ShardId, nodes: Mapping[NodeId, Seen], replace_after: float) -> bool:
    """Whether the copy is there, or is likely to come back."""
    node = nodes.get(member.node)
    if node is None or node.member(shard) != member:
        return False
    return (node.serving or node.away < replace_after) and node.broken.get(shard, 0.0) < replace_after


def holders(shard: ShardId, now: Configuration, nodes: Mapping[NodeId, Seen], replace_after: float) -> list[NodeId]:
    """The nodes whose copies count: as many as the shard should have, or fewer."""
    return [m.node for m in _by_worth(now) if _holds(m, shard, nodes, replace_after)][: now.replicas]


def placed(
    shards: Shards, nodes: Mapping[NodeId, Seen], stopping: Collection[NodeId]
) -> dict[ShardId, Collection[NodeId]]:
    """Where shards are to be whose primary's node is about to stop: on the others that hold them, while it is away."""
    return {
        shard: others
        for shard, now in shards.items()
        if now.primary.node in stopping
        and (
            others := {
                m.node for m in now.in_sync if m.node not in stopping and m.node in nodes and nodes[m.node].serving
            }
        )
    }


def _wanted(
    shards: Shards, nodes: Mapping[NodeId, Seen], replace_after: float, others: placement.Others
) -> dict[ShardId, set[NodeId]]:
    """The nodes that should hold each shard: those that do, and as many more as are missing."""
    held = {shard: holders(shard, now, nodes, replace_after) for shard, now in shards.items()}
    if all(len(held[shard]) == now.replicas for shard, now in shards.items()):
        return {shard: set(by) for shard, by in held.items()}
    kept = {node for by in held.values() for node in by} | {node for node, count in others.held.items() if count}
    able = [n for i, n in sorted(nodes.items()) if i in kept or (n.serving and n.may_hold)]
    factors = {shard.collection: now.replicas for shard, now in shards.items()}
    extended = placement.extend(shards, able, factors, held, others)
    return {shard: _fit(shard, set(found), held[shard], able) for shard, found in extended.items()}


def _fit(shard: ShardId, found: set[NodeId], held: Collection[NodeId], able: Iterable[Seen]) -> set[NodeId]:
    """`found`, but for nodes that are to be given the shard and could not take it now: others in their places."""
    fit = [n.id for n in able if n.serving and n.may_hold and shard not in n.broken]
    unfit = found - set(held) - set(fit)
    spare = [node for node in fit if node not in found]
    return found - unfit | set(spare[: len(unfit)])


def _by_worth(now: Configuration) -> list[Member]:
    """All replicas, those first that are hardest to replace."""
    return sorted(now.in_sync | now.learners, key=lambda m: (m != now.primary, m not in now.in_sync, m))


def _mend(
    shard: ShardId, now: Configuration, nodes: Mapping[NodeId, Seen], wanted: set[NodeId], replace_after: float
) -> Enlist | Dismiss | HandOver | None:
    """The next step to the copies that are wanted; one a round, since each is a swap of the same key.

    Copies are added before others are taken away, and the primary hands over before it is taken away (12).
    """
    here = {n for n in wanted if (seen := nodes.get(n)) and seen.serving and shard not in seen.broken}
    lacking = {nodes[n].member(shard) for n in here} - now.in_sync - now.learners
    useless = {m for m in now.learners if m.node not in wanted or not _holds(m, shard, nodes, replace_after)}
    heirs = sorted(m for m in now.in_sync if m.node in wanted and _serves(m, shard, nodes))
    if lacking or useless:
        kind = Enlist if lacking else Dismiss
        learners = (now.learners | lacking) - useless
        return kind(shard, replace(now, learners=frozenset(learners), revision=NO_REVISION), now.revision)
    if now.successor != (successor := _successor(now, wanted, heirs)):
        return HandOver(shard, replace(now, successor=successor, revision=NO_REVISION), now.revision)
    if excess := _excess(now, heirs):
        return Dismiss(shard, replace(now, in_sync=now.in_sync - excess, revision=NO_REVISION), now.revision)
    return None


def _successor(now: Configuration, wanted: set[NodeId], heirs: list[Member]) -> Member | None:
    """To whom the primary should hand over: nobody if it is where it should be."""
    if now.primary.node in wanted or not heirs:
        return None
    return now.successor if now.successor in heirs else heirs[0]


def _excess(now: Configuration, heirs: list[Member]) -> frozenset[Member]:
    """In-sync members beyond the replication factor, as long as that many others serve: no write asks for more."""
    if len(heirs) < now.replicas:
        return frozenset()
    return now.in_sync - frozenset(heirs) - {now.primary} - {now.successor}
