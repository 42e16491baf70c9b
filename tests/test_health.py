"""The verdict on a cluster says what a person would want to know, the gravest first."""

import msgspec

from support.states import collection, load, node, shard
from veccluster.decisions.health import judge
from veccluster.model.cluster import ClusterState
from veccluster.model.state import NodeId, ReadOnly, Shard
from veccluster.model.status import Health

NODES = {node(i).id: node(i) for i in range(3)}
SHARDS = {s.id: s for s in (shard(i, node(i), epoch=2) for i in range(3))}


def _state(**changes: object) -> ClusterState:
    alive = {n: load(n, [s.id for s in SHARDS.values() if s.primary == n]) for n in NODES}
    whole = ClusterState(
        nodes=NODES, alive=alive, shards=SHARDS, collections={"words": collection("words", 3)}, leader=NodeId("n0")
    )
    return msgspec.structs.replace(whole, **changes)


def test_a_whole_cluster_is_healthy_and_has_no_issues() -> None:
    assert judge(_state()) == judge(_state())
    assert (judge(_state()).health, judge(_state()).issues) == (Health.healthy, ())


def test_a_dead_node_makes_it_critical_and_names_collection_shard_and_node() -> None:
    alive = {n: a for n, a in _state().alive.items() if n != "n1"}
    verdict = judge(_state(alive=alive))
    assert verdict.health is Health.critical
    assert verdict.issues[0].startswith("Lost quorum: shard 1 of collection words: its only replica is on node n1")
    assert [s.id.number for s in verdict.unavailable] == [1]


def test_a_node_that_this_one_cannot_reach_counts_as_down_whatever_its_lease_says() -> None:
    assert judge(_state(), unreachable=frozenset({NodeId("n2")})).health is Health.critical


def test_without_etcd_an_expired_lease_says_nothing() -> None:
    verdict = judge(_state(alive={}), metadata_away=12.0)
    assert "etcd has been unreachable for 12 s: reads" in verdict.issues[-1]
    verdict = judge(_state(alive={}), metadata_away=12.0, not_admitted="the password is wrong")
    assert "etcd has been unreachable for 12 s (the password is wrong): reads" in verdict.issues[-1]


def test_a_lost_disk_is_named_as_such() -> None:
    lost: dict[object, Shard] = {**SHARDS}
    first = next(iter(SHARDS))
    lost[first] = shard(0, node(0), epoch=2, primary_incarnation="older-disk")
    issue = judge(_state(shards=lost)).issues[0]
    assert "a disk that node n0 no longer has" in issue


def test_a_shard_that_takes_no_writes_makes_it_critical_in_words_with_the_way_on() -> None:
    stuck = ReadOnly(shard=str(shard(1, node(1)).id), why="its log is missing", way_on="Restore it.")
    alive = {**_state().alive, NodeId("n1"): msgspec.structs.replace(_state().alive[NodeId("n1")], read_only=(stuck,))}
    verdict = judge(_state(alive=alive))
    words = "Shard 1 of collection words takes no writes: its log is missing; reads go on. Restore it."
    assert (verdict.health, verdict.issues, verdict.unavailable) == (Health.critical, (words,), ())
    assert "takes no writes" not in " ".join(judge(_state(alive=alive), unreachable=frozenset({NodeId("n1")})).issues)


def test_what_a_node_that_is_not_the_primary_can_no_longer_write_costs_nothing() -> None:
    stuck = ReadOnly(shard=str(shard(1, node(1)).id), why="its log is missing")
    alive = {**_state().alive, NodeId("n0"): msgspec.structs.replace(_state().alive[NodeId("n0")], read_only=(stuck,))}
    assert judge(_state(alive=alive)).health is Health.healthy


def test_what_a_node_reports_makes_it_degraded() -> None:
    alive = {**_state().alive, NodeId("n0"): msgspec.structs.replace(_state().alive[NodeId("n0")], issues=("full",))}
    verdict = judge(_state(alive=alive))
    assert (verdict.health, verdict.issues) == (Health.degraded, ("Node n0: full",))
