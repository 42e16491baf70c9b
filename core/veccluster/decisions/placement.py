"""Decide which nodes hold which shards, and which of them should be primary.

A consistent hash ring with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016), bounded twice: over the nodes for the
shards of one collection, since a search walks all of them, and over the nodes for everything. In order of importance:

    1. replicas of a shard are on distinct nodes, and in distinct zones where there are enough zones;
    2. a collection's replicas are spread: no node holds two more of them than another;
    3. all replicas are spread: no node holds more than another by a tenth of the mean (or one, if that is more);
    4. whatever holds these already stays where it is (`current`).

A ring alone would move shards when a bound shifts (every node's bound changes with the number of nodes), so the ring
decides only where a *new* replica goes, and `current` decides for the others: a node that joins is given its share and
the replicas of a node that leaves are spread, and nothing else moves, save for a replica or two where rules 2 and 3
pull in different directions. With zones rule 1 can make 2 and 3 unreachable (one zone has a single node); then loads
are as even as single moves can make them.

Pure and deterministic: the order of the arguments plays no part, and placing a placement again moves nothing.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from math import floor
from typing import NamedTuple, Protocol

from veccluster.decisions.hashing import point_of
from veccluster.model.state import NodeId, ShardId

Placement = dict[ShardId, tuple[NodeId, ...]]
"""For each shard the nodes that hold a replica, the preferred primary first."""

VIRTUAL_NODES = 64
"""Points of each node on the ring; more make the shares more even, but the bounds see to that anyway."""

SLACK = 0.1
"""By how much two nodes may differ, as a fraction of the mean, before replicas that are in place are moved."""


class Place(Protocol):
    """What placement needs to know of a node; `model.state.Node` is one."""

    @property
    def id(self) -> NodeId:
        """The node's id."""

    @property
    def zone(self) -> str:
        """What it fails together with; "" if that is unknown, which counts as one more zone."""


@dataclass(frozen=True, slots=True)
class Others:
    """What nodes hold and lead of shards that are not asked about: those stay as they are, and weigh."""

    held: Mapping[NodeId, int] = field(default_factory=dict)
    led: Mapping[NodeId, int] = field(default_factory=dict)


NO_OTHERS = Others()


def place(
    shards: Iterable[ShardId],
    nodes: Iterable[Place],
    replication_factor: int | Mapping[str, int],
    current: Mapping[ShardId, Sequence[NodeId]] | None = None,
) -> Placement:
    """The nodes that should hold each of `shards`, which are all the shards of a cluster.

    `nodes` are those that may hold data, so a node that leaves is left out. `replication_factor` is one number, or one
    for each collection's uuid; with fewer nodes than that, a shard gets as many replicas as there are nodes. `current`
    says where replicas are now.
    """
    board = _fill(shards, nodes, replication_factor, current or {})
    while _separate_zones(board) or _spread_collections(board) or _spread_all(board):
        pass  # each move lowers what its rule is about and raises nothing of a higher rule, so this ends
    primaries = _appoint(board, current or {})
    _spread_primaries(board, primaries)
    return _placement(board, primaries)


def extend(
    shards: Iterable[ShardId],
    nodes: Iterable[Place],
    replication_factor: int | Mapping[str, int],
    current: Mapping[ShardId, Sequence[NodeId]],
    others: Others = NO_OTHERS,
) -> Placement:
    """As `place`, but nothing in place moves and no primary changes: only what is missing is given to nodes.

    So shards of collections that lack nothing need not be among `shards`: it is enough to sum them up in `others`.
    """
    board = _fill(shards, nodes, replication_factor, current, others)
    board.pinned = True
    while _spread_collections(board) or _spread_all(board):
        pass
    return _placement(board, _appoint(board, current, others))


class _Ring:
    """Nodes at their virtual points; a shard prefers the nodes in the order in which it meets them."""

    def __init__(self, nodes: Iterable[NodeId]) -> None:
        spots = sorted((point_of(f"{node}#{i}"), node) for node in nodes for i in range(VIRTUAL_NODES))
        self._points = [p for p, _ in spots]
        self._nodes = [n for _, n in spots]
        self._count = len(spots) // VIRTUAL_NODES

    def walk(self, shard: ShardId) -> list[NodeId]:
        """Every node once, the most preferred first."""
        at = bisect_left(self._points, point_of(str(shard)))
        met: dict[NodeId, None] = {}
        for node in chain(islice(self._nodes, at, None), islice(self._nodes, at)):
            met[node] = None
            if len(met) == self._count:
                break
        return list(met)


class _Move(NamedTuple):
    shard: ShardId
    source: NodeId
    target: NodeId


class _Board:
    """Who holds what while it is being decided, with the sums that the rules are about."""

    def __init__(self, zones: Mapping[NodeId, str], wanted: Mapping[ShardId, int], others: Others) -> None:
        self.zones = zones
        self.wanted = wanted
        """Replicas that each shard shall have."""
        self.holders: dict[ShardId, list[NodeId]] = {s: [] for s in wanted}
        self.held: dict[NodeId, set[ShardId]] = {n: set() for n in zones}
        self.total = Counter({n: others.held.get(n, 0) for n in zones})
        self.within: dict[str, Counter[NodeId]] = {s.collection: Counter() for s in wanted}
        """Replicas of one collection on each node."""
        self.pinned = False
        """Whether only new replicas may move."""
        self.fresh: dict[NodeId, set[ShardId]] = {n: set() for n in zones}
        """Replicas that are new to a node: they are copied in any case, so that moving them costs nothing."""
        self.mean = (sum(wanted.values()) + self.total.total()) / max(1, len(zones))
        sizes: Counter[str] = Counter()
        for shard, replicas in wanted.items():
            sizes[shard.collection] += replicas
        self.mean_within = {c: n / max(1, len(zones)) for c, n in sizes.items()}

    def add(self, shard: ShardId, node: NodeId, *, fresh: bool = True) -> None:
        self.holders[shard].append(node)
        self.held[node].add(shard)
        if fresh:
            self.fresh[node].add(shard)
        self.total[node] += 1
        self.within[shard.collection][node] += 1

    def follow(self, way: Iterable[_Move]) -> None:
        for shard, source, target in way:
            self.holders[shard].remove(source)
            self.held[source].remove(shard)
            self.fresh[source].discard(shard)
            self.total[source] -= 1
            self.within[shard.collection][source] -= 1
            self.add(shard, target)

    def zone_use(self, shard: ShardId) -> Counter[str]:
        """How many replicas of `shard` are in each zone."""
        return Counter(self.zones[n] for n in self.holders[shard])

    def may_move(self, shard: ShardId, source: NodeId, target: NodeId) -> bool:
        """Whether rule 1 is served as well after the move as before it."""
        if target in self.holders[shard]:
            return False
        use, left, entered = self.zone_use(shard), self.zones[source], self.zones[target]
        return left == entered or use[entered] < use[left]


def _fill(
    shards: Iterable[ShardId],
    nodes: Iterable[Place],
    factor: int | Mapping[str, int],
    current: Mapping[ShardId, Sequence[NodeId]],
    others: Others = NO_OTHERS,
) -> _Board:
    """Leave every replica where it is, and give those that are missing to nodes by the ring, within the bounds."""
    zones = {n.id: n.zone for n in sorted(nodes, key=lambda n: n.id)}
    wanted = {
        s: min(len(zones), factor if isinstance(factor, int) else factor[s.collection]) for s in sorted(set(shards))
    }
    board, ring = _Board(zones, wanted, others), _Ring(zones)
    for shard, replicas in wanted.items():
        for node in [n for n in dict.fromkeys(current.get(shard, ())) if n in zones][:replicas]:
            board.add(shard, node, fresh=False)
    for shard, replicas in wanted.items():
        preferred = ring.walk(shard) if len(board.holders[shard]) < replicas else []
        while len(board.holders[shard]) < replicas:
            board.add(shard, _next_holder(board, preferred, shard))
    return board


def _next_holder(board: _Board, preferred: Sequence[NodeId], shard: ShardId) -> NodeId:
    """The most preferred node among those that serve the rules best."""
    use, within = board.zone_use(shard), board.within[shard.collection]
    fair, fair_within = floor(board.mean), floor(board.mean_within[shard.collection])

    def burden(node: NodeId) -> tuple[int, int, int]:
        beyond_within, beyond = within[node] + 1 - fair_within, board.total[node] + 1 - fair
        return use[board.zones[node]], max(0, beyond_within), max(0, beyond)

    return min((n for n in preferred if n not in board.holders[shard]), key=burden)


def _separate_zones(board: _Board) -> bool:
    """Rule 1: move replicas out of a zone that holds two more of a shard than another; whether anything moved."""
    moved = False
    for shard, holders in board.holders.items():
        use = board.zone_use(shard)
        while choices := [
            (
                use[board.zones[target]] - use[board.zones[source]],
                board.total[target] - board.total[source],
                source,
                target,
            )
            for source in holders
            for target in board.zones
            if target not in holders and use[board.zones[source]] >= use[board.zones[target]] + 2
        ]:
            *_, source, target = min(choices)
            board.follow([_Move(shard, source, target)])
            use, moved = board.zone_use(shard), True
    return moved


def _spread_collections(board: _Board) -> bool:
    """Rule 2: move replicas between nodes of which one holds two more of the collection; whether anything moved."""
    moved = False
    for collection, loads in board.within.items():
        while way := _way(board, partial(_uneven, board, loads), collection):
            board.follow(way)
            moved = True
    return moved


def _spread_all(board: _Board) -> bool:
    """Rule 3: move replicas between nodes that are further apart than the slack; whether anything moved."""
    slack = max(1, floor(board.mean * SLACK))
    moved = False
    while way := _way(board, partial(_uneven, board, board.total, slack)):
        board.follow(way)
        moved = True
    return moved


def _uneven(board: _Board, loads: Counter[NodeId], slack: int = 1) -> Iterator[tuple[NodeId, NodeId]]:
    """Pairs of nodes whose loads differ by more than `slack`, those that are furthest apart first."""
    falling = sorted(board.zones, key=lambda n: (-loads[n], -board.total[n], n))
    for source in falling:
        for target in reversed(falling):
            if loads[source] <= loads[target] + slack:
                break
            yield source, target


def _way(
    board: _Board, pairs: Callable[[], Iterable[tuple[NodeId, NodeId]]], collection: str | None = None
) -> Sequence[_Move]:
    """How to make one of `pairs` more even, by moves of `collection` if it is given: the way that copies least.

    A replica that is new anyway goes elsewhere; or two of them, by way of a third node; or else one in place moves.
    """
    for source, target in pairs():
        if able := _able(board, board.fresh[source], source, target, collection):
            return [_favourite(able, source, target)]
    for source, target in () if board.pinned else pairs():
        if able := _able(board, board.held[source], source, target, collection):
            return next(_relays(board, source, target, collection), [_favourite(able, source, target)])
    return []


def _able(
    board: _Board, shards: Iterable[ShardId], source: NodeId, target: NodeId, collection: str | None
) -> list[ShardId]:
    """Those of `shards` that may move, leaving their zones and their collection at least as even as they are."""
    return [
        shard
        for shard in shards
        if collection in (None, shard.collection)
        and board.within[shard.collection][source] > board.within[shard.collection][target]
        and board.may_move(shard, source, target)
    ]


def _favourite(shards: Iterable[ShardId], source: NodeId, target: NodeId) -> _Move:
    """What the hash of shard and target says, so that nobody's order plays a part."""
    return _Move(min(shards, key=lambda s: (point_of(f"{s}@{target}"), s)), source, target)


def _relays(board: _Board, source: NodeId, target: NodeId, collection: str | None) -> Iterator[list[_Move]]:
    """Pairs of new replicas, of one collection, that go from `source` to a third node and from there to `target`."""
    for via in board.zones:
        for first in sorted(board.fresh[source]):
            for second in sorted(board.fresh[via]):
                if (
                    first != second
                    and first.collection == second.collection
                    and collection in (None, first.collection)
                    and board.within[first.collection][source] > board.within[first.collection][target]
                    and board.may_move(first, source, via)
                    and board.may_move(second, via, target)
                ):
                    yield [_Move(first, source, via), _Move(second, via, target)]


class _Primaries:
    """Who leads which shard while it is being decided."""

    def __init__(self, others: Others) -> None:
        self.of: dict[ShardId, NodeId] = {}
        self._total: Counter[NodeId] = Counter(others.led)
        self._within: defaultdict[str, Counter[NodeId]] = defaultdict(Counter)

    def appoint(self, shard: ShardId, node: NodeId) -> None:
        if old := self.of.get(shard):
            self._count(shard, old, -1)
        self.of[shard] = node
        self._count(shard, node, 1)

    def led(self, shard: ShardId, node: NodeId) -> tuple[int, int]:
        """How many shards `node` leads: of the shard's collection, and of all."""
        return self._within[shard.collection][node], self._total[node]

    def better(self, shard: ShardId, node: NodeId) -> bool:
        """Whether its collection's primaries, or else all primaries, would be more even if `node` led the shard."""
        mine, all_mine = self.led(shard, self.of[shard])
        its, all_its = self.led(shard, node)
        return mine - its >= 2 or (mine - its == 1 and all_mine - all_its >= 2)

    def _count(self, shard: ShardId, node: NodeId, by: int) -> None:
        self._within[shard.collection][node] += by
        self._total[node] += by


def _appoint(board: _Board, current: Mapping[ShardId, Sequence[NodeId]], others: Others = NO_OTHERS) -> _Primaries:
    """Each shard's primary stays if it still holds the shard; else the holder that leads the fewest shards does."""
    primaries = _Primaries(others)
    for shard, holders in board.holders.items():
        if current.get(shard) and current[shard][0] in holders:
            primaries.appoint(shard, current[shard][0])
    for shard, holders in board.holders.items():
        if holders and shard not in primaries.of:
            primaries.appoint(shard, min(holders, key=partial(primaries.led, shard)))
    return primaries


def _spread_primaries(board: _Board, primaries: _Primaries) -> None:
    """Let other holders lead until no single change makes it more even."""
    changed = True
    while changed:
        changed = False
        for shard, holders in board.holders.items():
            for node in holders:
                if primaries.better(shard, node):
                    primaries.appoint(shard, node)
                    changed = True


def _placement(board: _Board, primaries: _Primaries) -> Placement:
    return {
        shard: tuple(sorted(holders, key=lambda n: n != primaries.of[shard]))
        for shard, holders in board.holders.items()
    }
