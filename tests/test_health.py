"""The verdict on a cluster says what a person would want to know, the gravest first."""

import msgspec

from support.states import collection, load, node, shard
from veccluster.decisions.health import judge
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Incarnation, Load, Member, NodeId, ReadOnly, Shard, ShardId
from veccluster.model.status import Health

NODES = {node(i).id: node(i) for i in range(3)}
SHARDS = {s.id: s for s in (shard(i, node(i), epoch=2) for i in range(3))}


def _state(**changes: object) -> ClusterState:
    alive = {n: load(n, [s.id for s in SHARDS.values() if s.primary.node == n]) for n in NODES}
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
    assert judge(_state(), answering={NodeId("n2"): False}).health is Health.critical


def test_a_node_that_answers_is_there_whatever_its_lease_says() -> None:
    alive = {n: a for n, a in _state().alive.items() if n != "n1"}
    verdict = judge(_state(alive=alive), answering={NodeId("n1"): True})
    assert verdict.health is Health.degraded
    assert verdict.issues[0].startswith("Node n1 serves, but has lost its lease in etcd")
    assert judge(_state(alive={}), answering=dict.fromkeys(NODES, True), metadata_away=1.0).issues[:-1] == ()


def test_without_etcd_an_expired_lease_says_nothing() -> None:
    verdict = judge(_state(alive={}), metadata_away=12.0)
    assert "etcd has been unreachable for 12 s: reads" in verdict.issues[-1]
    verdict = judge(_state(alive={}), metadata_away=12.0, not_admitted="the password is wrong")
    assert "etcd has been unreachable for 12 s (the password is wrong): reads" in verdict.issues[-1]


def test_a_lost_disk_is_named_as_such() -> None:
    older = Member(NodeId("n0"), Incarnation("older-disk"))
    lost = {**SHARDS, ShardId("uuid-words", 0): shard(0, node(0), epoch=2, primary=older, in_sync=(older,))}
    issue = judge(_state(shards=lost)).issues[0]
    assert "a disk that node n0 no longer has" in issue


def test_a_shard_that_takes_no_writes_makes_it_critical_in_words_with_the_way_on() -> None:
    stuck = ReadOnly(shard=str(shard(1, node(1)).id), why="its log is missing", way_on="Restore it.")
    alive = {**_state().alive, NodeId("n1"): msgspec.structs.replace(_state().alive[NodeId("n1")], read_only=(stuck,))}
    verdict = judge(_state(alive=alive))
    words = "Shard 1 of collection words takes no writes: its log is missing; reads go on. Restore it."
    assert (verdict.health, verdict.issues, verdict.unavailable) == (Health.critical, (words,), ())
    assert "takes no writes" not in " ".join(judge(_state(alive=alive), answering={NodeId("n1"): False}).issues)


def test_what_a_node_that_is_not_the_primary_can_no_longer_write_costs_nothing() -> None:
    stuck = ReadOnly(shard=str(shard(1, node(1)).id), why="its log is missing")
    alive = {**_state().alive, NodeId("n0"): msgspec.structs.replace(_state().alive[NodeId("n0")], read_only=(stuck,))}
    assert judge(_state(alive=alive)).health is Health.healthy


def test_what_a_node_reports_makes_it_degraded() -> None:
    alive = {**_state().alive, NodeId("n0"): msgspec.structs.replace(_state().alive[NodeId("n0")], issues=("full",))}
    verdict = judge(_state(alive=alive))
    assert (verdict.health, verdict.issues) == (Health.degraded, ("Node n0: full",))


# Several copies

WORDS = collection("words", 1, factor=3)
SHARD = ShardId(WORDS.uuid, 0)
N0, N1, N2 = (NodeId(f"n{i}") for i in range(3))


def _replicated(*in_sync: int, **changes: object) -> Shard:
    members = tuple(node(i).member(SHARD) for i in in_sync)
    return shard(0, node(0), **{"epoch": 4, "in_sync": members, "min_in_sync": 2, **changes})


def _three(record: Shard, *up: int, **loads: Load) -> ClusterState:
    serving = {record.primary.node: load(record.primary.node, [SHARD])}
    alive = {n: loads.get(n, serving.get(n, load(n))) for n in (NodeId(f"n{i}") for i in up)}
    return _state(collections={"words": WORDS}, shards={SHARD: record}, alive=alive)


def test_a_shard_with_all_its_copies_is_healthy() -> None:
    verdict = judge(_three(_replicated(0, 1, 2), 0, 1, 2))
    assert (verdict.health, verdict.issues) == (Health.healthy, ())


def test_a_shard_that_lacks_a_copy_is_degraded_and_says_what_is_being_done() -> None:
    verdict = judge(_three(_replicated(0, 1, 2), 0, 1))
    words = (
        "Under-replicated: shard 0 of collection words: 2 of 3 copies in sync; node n2 is not reachable; "
        "only 2 nodes can hold one: start those that are down, or add some."
    )
    assert (verdict.health, verdict.issues[0]) == (Health.degraded, words)
    assert (len(verdict.under_replicated), verdict.unavailable) == (1, ())
    learning = _replicated(0, 1, learners=(node(2).member(SHARD),))
    assert judge(_three(learning, 0, 1, 2)).issues == (
        "Under-replicated: shard 0 of collection words: 2 of 3 copies in sync; node n2 is being brought up to date.",
    )


def test_that_a_shard_writes_with_fewer_copies_since_a_loss_was_accepted_is_told_until_it_does_not() -> None:
    alone = _replicated(0, min_in_sync=1, learners=(node(2).member(SHARD),))
    verdict = judge(_three(alone, 0, 2))
    assert verdict.health is Health.degraded
    assert verdict.issues[0].endswith("; until then writes are acknowledged with 1 instead of 2.")


def test_nodes_are_needed_that_hold_the_last_copies_without_which_writes_are_refused() -> None:
    assert judge(_three(_replicated(0, 1, 2), 0, 1, 2)).needed == frozenset()
    assert judge(_three(_replicated(0, 1, 2), 0, 1)).needed == {NodeId("n0"), N1}
    learning = _replicated(0, 1, learners=(node(2).member(SHARD),))
    assert judge(_three(learning, 0, 1, 2)).needed == {NodeId("n0"), N1}


def test_a_node_whose_shards_never_have_a_copy_to_spare_is_not_needed_more_than_at_another_time() -> None:
    assert judge(_state()).needed == frozenset()


def test_a_primary_that_is_about_to_serve_is_no_lost_copy() -> None:
    coming = msgspec.structs.replace(load(NodeId("n0")), recovering=(str(SHARD),))
    words = "Failing over: shard 0 of collection words: node n0 is taking over."
    for up in ((0, 1), (0, 1, 2)):
        assert judge(_three(_replicated(0, 1, 2), *up, n0=coming)).issues[0] == words
    broken = msgspec.structs.replace(coming, broken=(str(SHARD),))
    assert judge(_three(_replicated(0, 1, 2), 0, 1, n0=broken)).issues[0].startswith("Lost quorum")
    assert judge(_three(_replicated(0, 1, 2), 0, n0=coming)).issues[0].startswith("Lost quorum")


def test_a_primary_that_hears_too_few_copies_is_told_with_those_that_are_there() -> None:
    lonely = msgspec.structs.replace(load(NodeId("n0"), [SHARD]), cut_off=(str(SHARD),))
    verdict = judge(_three(_replicated(0, 1, 2), 0, 1, 2, n0=lonely))
    words = (
        "Cut off: shard 0 of collection words: writes wait, since node n0 does not hear enough of the copies on node n1"
    )
    assert (verdict.health, len(verdict.unavailable)) == (Health.critical, 1)
    assert verdict.issues[0].startswith(words)


def test_a_shard_whose_primary_is_gone_is_critical_until_another_copy_serves_it() -> None:
    failing = judge(_three(_replicated(0, 1, 2), 1, 2))
    words = (
        "Failing over: shard 0 of collection words: node n0 is not reachable; another copy takes its place.",
        "Failing over: shard 0 of collection words: node n1 is taking over.",
    )
    assert (failing.health, failing.issues[0], len(failing.unavailable)) == (Health.critical, words[0], 1)
    promoted = _replicated(0, 1, 2, primary=node(1).member(SHARD))
    assert judge(_three(promoted, 1, 2, n1=load(N1))).issues[0] == words[1]
    assert judge(_three(promoted, 1, 2)).health is Health.degraded


def test_fewer_copies_than_writes_need_are_lost_quorum() -> None:
    verdict = judge(_three(_replicated(0, 1), 0, 2))
    assert (verdict.health, len(verdict.unavailable)) == (Health.critical, 1)
    assert verdict.issues[0] == (
        "Lost quorum: shard 0 of collection words: writes are refused, 1 of the 2 copies in sync that they need can be "
        "used (node n0); node n1 is not reachable; "
        "only 2 nodes can hold one: start those that are down, or add some."
    )
    assert not any("Under-replicated" in issue for issue in verdict.issues), "that was said with more weight"


def test_no_copy_that_is_in_sync_is_lost_quorum_whatever_learners_there_are() -> None:
    record = _replicated(0, 1, learners=(node(2).member(SHARD),))
    issue = judge(_three(record, 2)).issues[0]
    assert issue == (
        "Lost quorum: shard 0 of collection words: none of its copies that are in sync can be used "
        "(node n0 is not reachable; node n1 is not reachable); start those nodes."
    )


def test_a_copy_that_is_still_being_opened_counts_as_none() -> None:
    opening = msgspec.structs.replace(load(N1), recovering=(str(SHARD),))
    verdict = judge(_three(_replicated(0, 1, 2), 0, 1, 2, n1=opening))
    assert verdict.health is Health.degraded
    assert "node n1 is still opening it" in verdict.issues[0]


def test_a_disk_that_was_replaced_is_no_copy() -> None:
    older = Member(N1, Incarnation("older-disk"))
    verdict = judge(_three(_replicated(0, 2, in_sync=(*_replicated(0, 2).in_sync, older)), 0, 1, 2))
    assert "node n1 no longer has the disk that held it" in verdict.issues[0]


def test_a_shard_with_all_copies_that_gets_another_one_is_moving() -> None:
    nodes = {**NODES, NodeId("n3"): node(3)}
    moving = _three(_replicated(0, 1, 2, learners=(node(3).member(SHARD),)), 0, 1, 2, 3)
    verdict = judge(msgspec.structs.replace(moving, nodes=nodes))
    assert (verdict.health, len(verdict.moving), verdict.under_replicated) == (Health.healthy, 1, ())


def test_a_collection_that_has_too_few_nodes_says_how_many_it_waits_for() -> None:
    verdict = judge(msgspec.structs.replace(_three(_replicated(0), 0), shards={}))
    assert verdict.issues[0] == ("Collection words: 1 of 1 shards wait for 2 nodes to hold a copy each; there are 1.")
