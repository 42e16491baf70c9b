"""What the leader decides about shards and their copies, looking only at what may have changed.

`failover.decide` is asked about few shards: those that it had something to say about last time, those whose records,
collections or nodes are different since, and those that lack a copy, with all others of their collections, since it
spreads those. It is told of all the rest how many copies each node holds and leads. The answer is that of asking
about all (tests/test_agenda.py); where something was missed all the same, a look at everything finds it.

However much changes at once, a look is at so many shards only that it takes no more than a moment; those without a
primary come first, and what is left comes next time.

Pure, but that it remembers: the state, how it has changed, and what is seen of the nodes come in; changes come out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, islice
from typing import NamedTuple

from veccluster.decisions import lost_quorum
from veccluster.decisions.placement import Others
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.failover import Seen
from veccluster.decisions.replication.values import Configuration
from veccluster.model.cluster import FIRST_EPOCH, Changes, ClusterState
from veccluster.model.state import NodeId, NodeState, ShardId
from veccluster.model.tables import CollectionTable

SeenNodes = Mapping[NodeId, Seen]


class _Sight(NamedTuple):
    """What is decided by of a node, as far as it is the same for all of its shards."""

    incarnation: str
    serving: bool
    is_gone: bool
    is_stopping: bool


AT_ONCE = 500
"""Shards that are looked at in a row."""


class Agenda:
    """What the leader has to look at."""

    def __init__(self, replace_after: float, at_once: int = AT_ONCE) -> None:
        """Copies that are away for `replace_after` seconds are made elsewhere."""
        self._replace_after = replace_after
        self._at_once = at_once
        self._clear()

    def _clear(self) -> None:
        self._shards: dict[ShardId, Configuration] = {}
        self._holders: dict[ShardId, tuple[NodeId, ...]] = {}
        """The nodes whose copies count, of each shard."""
        self._held: Counter[NodeId] = Counter()
        self._led: Counter[NodeId] = Counter()
        self._short: set[ShardId] = set()
        """Shards that have fewer copies than they should."""
        self._open: set[ShardId] = set()
        """Shards about which something may be to be done."""
        self._undone: dict[ShardId, None] = {}
        """Shards about which something was to be done when they were looked at last, the longest ago first."""
        self._turn = 0
        """How many looks there were."""
        self._unread: set[ShardId] = set()
        """Shards that have to be looked at before anything is decided about them."""
        self._sights: dict[NodeId, _Sight] = {}
        self._seen: SeenNodes = {}
        self.incomplete: set[str] = set()
        """The uuids of collections that lack records of shards."""
        self.unopened: set[ShardId] = set()
        """Shards that nobody has served yet."""

    def note(self, state: ClusterState, changes: Changes, seen: SeenNodes) -> None:
        """The state and the nodes are as said; `changes` are those since the last time."""
        touched: AbstractSet[ShardId]
        if changes.everything:
            self._clear()
            touched, collections = state.shards.keys(), frozenset(CollectionTable.of(state.collections).by_uuid)
            self._sights = _sights(state, seen, self._replace_after)
        else:
            collections = changes.collections | {i.collection for i in changes.shards}
            touched = {*changes.shards, *(i for uuid in changes.collections for i in state.shards_within(uuid))}
            touched |= self._look_at_nodes(state, seen)
        self._seen = seen
        for uuid in collections:
            self._look_at_collection(uuid, state)
        self._unread |= touched
        for shard in list(islice(self._unread, self._at_once)):
            self._look_at(shard, state)
            self._unread.remove(shard)
            self._open.add(shard)

    @property
    def is_behind(self) -> bool:
        """Whether there is more to look at than was looked at."""
        return bool(self._unread or self._open)

    def _look_at_nodes(self, state: ClusterState, seen: SeenNodes) -> set[ShardId]:
        """The shards for which something has changed about a node."""
        sights, touched = _sights(state, seen, self._replace_after), set[ShardId]()
        for node in sights.keys() | self._sights.keys():
            if sights.get(node) != self._sights.get(node):
                touched |= state.shards_on(node).keys()
            elif node in seen:
                touched |= self._differences(self._seen[node], seen[node])
        self._sights = sights
        return touched

    def _differences(self, before: Seen, now: Seen) -> set[ShardId]:
        """The shards that fare differently on one node, which is as it was."""
        long, was_long = (_for_long(s.broken, self._replace_after) for s in (now, before))
        touched = (now.broken.keys() ^ before.broken.keys()) | (long ^ was_long) | (now.cut_off ^ before.cut_off)
        if now.incarnations is not before.incarnations:
            touched |= {i for i, _ in now.incarnations.items() ^ before.incarnations.items()}
        return touched

    def _look_at(self, shard: ShardId, state: ClusterState) -> None:
        """Keep count of what one shard has."""
        if before := self._shards.pop(shard, None):
            self._led[before.primary.node] -= 1
            self._held.subtract(self._holders.pop(shard))
        self._short.discard(shard)
        self.unopened.discard(shard)
        if (now := configuration(shard, state)) is None:
            return
        holders = failover.holders(shard, now, self._seen, self._replace_after)
        self._shards[shard], self._holders[shard] = now, tuple(holders)
        self._led[now.primary.node] += 1
        self._held.update(holders)
        if len(holders) < now.replicas:
            self._short.add(shard)
        if now.epoch == FIRST_EPOCH:
            self.unopened.add(shard)

    def _look_at_collection(self, uuid: str, state: ClusterState) -> None:
        collection = CollectionTable.of(state.collections).by_uuid.get(uuid)
        if collection and len(state.shards_within(uuid)) < collection.shards:
            self.incomplete.add(uuid)
        else:
            self.incomplete.discard(uuid)

    def decide(self, state: ClusterState) -> Sequence[failover.Change]:
        """What is to be done about shards as they were noted last, the most urgent first."""
        look = self._to_look_at(state)
        led, held = Counter(c.primary.node for c in look.values()), Counter[NodeId]()
        for shard in look:
            held.update(self._holders[shard])
        others = Others(held=self._held - held, led=self._led - led)
        placed = failover.placed(look, self._seen, stopping(state))
        actions = list(
            failover.decide(look, self._seen, replace_after=self._replace_after, placed=placed, others=others)
        )
        changes: list[failover.Change] = [a for a in actions if isinstance(a, failover.Change)]
        changing = {c.shard for c in changes}
        changes += [r for r in lost_quorum.restore(look, _wanted(look, state)) if r.shard not in changing]
        for shard in look:
            self._open.discard(shard)
            self._undone.pop(shard, None)
        self._undone |= dict.fromkeys(sorted({a.shard for a in actions} | {c.shard for c in changes}))
        return sorted(changes, key=failover.urgency)

    def _to_look_at(self, state: ClusterState) -> Mapping[ShardId, Configuration]:
        self._turn += 1
        self._open = {i for i in self._open if i in self._shards}
        self._undone = {i: None for i in self._undone if i in self._shards}
        again = islice(self._undone, self._at_once)
        lacking = self._lacking()
        start = self._turn * self._at_once % len(lacking) if len(lacking) > self._at_once else 0
        uuids = {i.collection for i in islice(chain(lacking[start:], lacking[:start]), self._at_once)}
        beside = {i for uuid in uuids for i in state.shards_within(uuid)}
        chosen = {*self._most_urgent(), *again, *beside}
        return {i: self._shards[i] for i in chosen if i in self._shards and i not in self._unread}

    def _most_urgent(self) -> Iterable[ShardId]:
        """As many as are looked at in a row of those about which something may be to be done."""
        if len(self._open) <= self._at_once:
            return self._open
        down = {node for node, sight in self._sights.items() if not sight.serving}
        urgent = (i for i in self._open if self._shards[i].primary.node in down)
        return islice(chain(urgent, self._open), self._at_once)

    def _lacking(self) -> list[ShardId]:
        """Shards that lack a copy for which there is a node, once it is known what the nodes have."""
        if self._unread:
            return []
        able = {n.id for n in self._seen.values() if n.serving and n.may_hold}
        places = len(able | {node for node, count in self._held.items() if count})
        return sorted(i for i in self._short if len(self._holders[i]) < places)


def configuration(shard: ShardId, state: ClusterState) -> Configuration | None:
    """The shard's, if its collection is there, and etcd says what is."""
    record, collection = state.shards.get(shard), state.collection_of(shard)
    if record is None or collection is None or shard in state.unsettled:
        return None
    return Configuration.of(record, collection.replication_factor)


def stopping(state: ClusterState) -> frozenset[NodeId]:
    """The nodes that are about to stop."""
    return frozenset(n for n, node in state.nodes.items() if node.state is NodeState.draining)


def _sights(state: ClusterState, seen: SeenNodes, replace_after: float) -> dict[NodeId, _Sight]:
    leaving = stopping(state)
    return {
        node: _Sight(s.incarnation, s.serving, not s.serving and s.away >= replace_after, node in leaving)
        for node, s in seen.items()
    }


def _for_long(broken: Mapping[ShardId, float], replace_after: float) -> set[ShardId]:
    return {shard for shard, age in broken.items() if age >= replace_after}


def _wanted(shards: Iterable[ShardId], state: ClusterState) -> dict[str, int]:
    """How many copies in sync the collections of these shards want."""
    found = (state.collection_of(shard) for shard in shards)
    return {c.uuid: c.min_in_sync for c in found if c}
