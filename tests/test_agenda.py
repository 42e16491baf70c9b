"""A leader that looks at what has changed decides what one does that looks at everything."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import pytest

from support.replication import REPLACE_AFTER, Nodes, configuration, member, seen
from support.states import collection, load, node
from veccluster.decisions import assignment, lost_quorum
from veccluster.decisions.agenda import Agenda, stopping
from veccluster.decisions.agenda import configuration as configuration_of
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.failover import Seen
from veccluster.decisions.replication.values import Configuration, Incarnation
from veccluster.model.cluster import EVERYTHING, Changes, ClusterState
from veccluster.model.state import Epoch, NodeId, NodeState, Revision, Shard, ShardId
from veccluster.model.tables import CollectionTable, ShardTable

COLLECTIONS = [
    collection("words", 4, factor=3),
    collection("images", 3, factor=2),
    *(collection(f"small-{n}", 1, factor=2) for n in range(6)),
]
SHARDS = [ShardId(c.uuid, n) for c in COLLECTIONS for n in range(c.shards)]
MEMBERS = range(7)
T = TypeVar("T")


class World:
    """A cluster to which anything may happen, by a seed; to some, little happens."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.is_calm = seed % 2 == 1
        self.state = ClusterState()
        self.seen = {NodeId(f"n{n}"): seen(n, zone="") for n in MEMBERS}

    def some(self, of: Sequence[T], most: int) -> list[T]:
        return self.random.sample(of, self.random.randint(0, min(most, len(of))))

    def record(self, shard: ShardId) -> Shard | None:
        """What a shard's record may say next."""
        factor = next(c.replication_factor for c in COLLECTIONS if c.uuid == shard.collection)
        order = self.random.sample(MEMBERS, len(MEMBERS))
        size = factor if self.is_calm else self.random.randint(1, factor + 1)
        said = configuration(
            *order[:size],
            learners=frozenset(member(n) for n in order[size : size + self.random.randint(0, 2)]),
            replicas=factor,
            min_in_sync=self.random.randint(1, size),
            epoch=Epoch(self.random.randint(0, 3)),
            revision=Revision(self.random.randint(1, 1000)),
        )
        blank = Shard(id=shard, epoch=Epoch(0), primary=said.primary, in_sync=())
        return self.random.choice([None, said.put_into(blank), said.put_into(blank), said.put_into(blank)])

    def look(self, number: int) -> Seen:
        """What may be seen of a node next."""
        away = self.random.choice([0.0, 0.0, 0.0, 5.0, 2 * REPLACE_AFTER])
        if self.is_calm:
            return seen(number, serving=not away, away=away, zone="")
        return seen(
            number,
            serving=not away,
            away=away,
            incarnation=member(number, self.random.choice([1, 1, 1, 2])).incarnation,
            may_hold=self.random.random() < 0.8,
            broken={i: self.random.choice([1.0, 2 * REPLACE_AFTER]) for i in self.some(SHARDS, 1)},
            incarnations={i: Incarnation(self.random.choice("ab")) for i in self.some(SHARDS, 1)},
            cut_off=frozenset(self.some(SHARDS, 1)),
        )

    def go_on(self) -> Changes:
        """Let something happen, and say what."""
        for number in self.some(MEMBERS, 1 if self.is_calm else 2):
            self.seen = {i: s for i, s in self.seen.items() if i != NodeId(f"n{number}")}
            if self.random.random() < 0.8:
                self.seen[NodeId(f"n{number}")] = self.look(number)
        changed = self.some(COLLECTIONS, 2)
        shards = {shard: self.record(shard) for shard in self.some(SHARDS, 6)}
        unsettled = {shard: self.random.choice([None, self.record(shard)]) for shard in self.some(SHARDS, 1)}
        leaving = {NodeId(f"n{n}") for n in self.some(MEMBERS, 1)}
        states = {i: NodeState.draining if i in leaving else NodeState.active for i in self.seen}
        self.state = msgspec.structs.replace(
            self.state,
            collections=CollectionTable.of(self.state.collections).changed(
                {c.name: self.random.choice([c if self.is_calm else None, c, c, c]) for c in changed}
            ),
            shards=ShardTable.of(self.state.shards).changed(shards),
            unsettled=ShardTable.of(self.state.unsettled).changed(unsettled),
            nodes={i: msgspec.structs.replace(node(int(i[1:])), state=state) for i, state in states.items()},
            alive={i: load(i) for i in self.some(sorted(self.seen), len(self.seen))},
        )
        uuids = frozenset(c.uuid for c in changed)
        return Changes(shards=frozenset([*shards, *unsettled]), collections=uuids)

    def do(self, changes: Sequence[failover.Change]) -> Changes:
        """Carry decisions out."""
        table = ShardTable.of(self.state.shards)
        after = {c.shard: replace(c.target, revision=c.revision + 1).put_into(table[c.shard]) for c in changes}
        self.state = msgspec.structs.replace(self.state, shards=table.changed(after))
        return Changes(shards=frozenset(after))


def everything(state: ClusterState, seen: Nodes) -> Sequence[failover.Change]:
    """What a leader decides who looks at every shard."""
    shards: dict[ShardId, Configuration] = {i: c for i in state.shards if (c := configuration_of(i, state))}
    placed = failover.placed(shards, seen, stopping(state))
    actions = list(failover.decide(shards, seen, replace_after=REPLACE_AFTER, placed=placed))
    changes = [a for a in actions if isinstance(a, failover.Change)]
    wanted = {c.uuid: c.min_in_sync for c in state.collections.values()}
    restored = [r for r in lost_quorum.restore(shards, wanted) if r.shard not in {c.shard for c in changes}]
    return sorted([*changes, *restored], key=failover.urgency)


@pytest.mark.parametrize("seed", range(80))
def test_what_is_decided_by_changes_is_what_is_decided_by_everything(seed: int) -> None:
    world = World(seed)
    agenda, told = Agenda(REPLACE_AFTER), EVERYTHING
    for _ in range(12):
        told = told.then(world.go_on())
        agenda.note(world.state, told, world.seen)
        decided = agenda.decide(world.state)
        assert list(decided) == list(everything(world.state, world.seen))
        by_all = list(assignment.decide(world.state))
        known = {"incomplete": agenda.incomplete, "unopened": agenda.unopened}
        assert list(assignment.decide(world.state, **known)) == by_all
        told = world.do([c for c in decided if world.random.random() < 0.5])


@pytest.mark.parametrize("seed", range(40))
def test_what_is_looked_at_in_small_parts_comes_to_the_same_rest(seed: int) -> None:
    world = World(seed)
    agenda, told = Agenda(REPLACE_AFTER, at_once=2), EVERYTHING
    for _ in range(4):
        told = told.then(world.go_on())
        for _ in range(400):
            agenda.note(world.state, told, world.seen)
            decided = agenda.decide(world.state)
            told = world.do(decided)
            if not decided and not agenda.is_behind:
                break
        else:
            pytest.fail("it comes to no rest")
        assert not everything(world.state, world.seen)


def test_a_node_that_goes_is_a_matter_of_its_own_shards_alone() -> None:
    made = {}
    for n in range(60):
        of = ShardId(COLLECTIONS[0].uuid, n)
        said = configuration(*(range(3) if n < 20 else range(3, 6)))
        made[of] = said.put_into(Shard(id=of, epoch=Epoch(2), primary=said.primary, in_sync=()))
    state = ClusterState(
        collections={"words": msgspec.structs.replace(COLLECTIONS[0], shards=60, min_in_sync=2)},
        shards=ShardTable(made),
    )
    agenda, here = Agenda(REPLACE_AFTER), {NodeId(f"n{n}"): seen(n) for n in MEMBERS}
    agenda.note(state, EVERYTHING, here)
    assert not agenda.decide(state)
    agenda.note(state, Changes(), here | {NodeId("n0"): seen(0, serving=False, away=1.0)})
    assert {c.shard.number for c in agenda.decide(state)} == set(range(20))
