"""What the operator decides about pods, objects and words: on plain values, as the API server would give them."""

import json
from typing import Any

import pytest

from veccluster_operator.adapters.lease import DURATION, Sighting, may_take
from veccluster_operator.build.names import ASKED_ANNOTATION, COMPONENT_LABEL
from veccluster_operator.decide import collections, etcd_upkeep, rollout, status
from veccluster_operator.decide.drift import needs_apply, stamped
from veccluster_operator.decide.observed import Member, Observed, pod_problem

ASKED = {"image": "node:1", "tuning": {"maxK": 10}}
CHANGED = {"image": "node:2", "tuning": {"maxK": 10}}


def changed_fields(before: Any, now: Any) -> list[str]:
    return sorted(k for k in {*before, *now} if before.get(k) != now.get(k))


def pod(
    number: int, *, ready: bool = True, asked: Any = ASKED, component: str = "node", **parts: Any
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {
            "name": f"demo-{number}",
            "labels": {COMPONENT_LABEL: component},
            "annotations": {ASKED_ANNOTATION: json.dumps(asked)},
            **parts.pop("metadata", {}),
        },
        "spec": {"nodeName": f"host-{number}"},
        "status": {"conditions": conditions, **parts},
    }


def report(
    health: str = "healthy",
    *,
    leader: str = "demo-0",
    down: tuple[str, ...] = (),
    needed: tuple[str, ...] = (),
    opening: tuple[str, ...] = (),
    **shards: int,
) -> Any:
    nodes = [
        {
            "id": i,
            "state": "down" if i in down else "active",
            "needed": i in needed,
            "opening": ["words/0"] if i in opening else [],
        }
        for i in (f"demo-{n}" for n in range(3))
    ]
    counts = {"total": 3, "under_replicated": 0, "unavailable": 0, "moving": 0, **shards}
    issues = [] if health == "healthy" else ["Lost quorum: shard 1."]
    return {"health": health, "issues": issues, "leader": leader, "nodes": nodes, "shards": counts, "vectors": 7}


def stateful_set(replicas: int = 3, generation: int = 2, seen: int = 2) -> dict[str, Any]:
    return {
        "metadata": {"name": "demo", "generation": generation},
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": seen},
    }


def decide(pods: list[dict[str, Any]], said: Any = None, asked: Any = CHANGED, **of_set: int) -> Any:
    observed = Observed(pods=pods, report=said or report(), report_problem=None)
    return rollout.decide(observed, stateful_set(**of_set), asked, changed_fields)


def test_pods_that_run_as_asked_are_left_alone_whatever_their_template_says():
    assert decide([pod(n) for n in range(3)], asked=ASKED) is None


def test_one_pod_restarts_at_a_time_the_highest_first_and_the_leader_last():
    pods, order = [pod(n) for n in range(3)], []
    while isinstance(found := decide(pods, report(leader="demo-2")), rollout.Restart):
        order.append(found.pod["metadata"]["name"])
        number = int(order[-1][-1])
        pods[number] = pod(number, ready=False, asked=CHANGED)
        assert isinstance(decide(pods, report(leader="demo-2")), rollout.Held | None)
        pods[number] = pod(number, asked=CHANGED)
    assert order == ["demo-1", "demo-0", "demo-2"]
    assert found is None


def test_a_restart_says_which_fields_are_its_reason():
    assert decide([pod(n) for n in range(3)]).fields == ("image",)


@pytest.mark.parametrize(
    ("pods", "said", "words"),
    [
        ([pod(0), pod(1, ready=False, asked=CHANGED), pod(2)], report(), "demo-1 must be ready first"),
        ([pod(0), pod(1)], report(), "1 of 3 pods are not there yet"),
        ([pod(0), pod(1), pod(2)], report("critical", unavailable=1), "1 shards are unavailable"),
        ([pod(0), pod(1), pod(2)], report("degraded", under_replicated=2), "2 shards are under replicated"),
        ([pod(0), pod(1), pod(2)], report("degraded", down=("demo-1",)), "node demo-1 must be active first"),
        ([pod(0), pod(1), pod(2)], report(opening=("demo-1",)), "node demo-1 is still opening words/0"),
    ],
)
def test_no_healthy_pod_restarts_while_something_else_is_amiss(pods, said, words):
    held = decide(pods, said)
    assert isinstance(held, rollout.Held)
    assert words in held.because


def test_a_cluster_that_is_degraded_for_another_reason_may_be_mended_by_a_restart():
    assert isinstance(decide([pod(n) for n in range(3)], report("degraded")), rollout.Restart)


def test_a_pod_that_a_bad_file_broke_is_replaced_at_once_by_a_good_one():
    pods = [pod(0), pod(1), pod(2, ready=False, asked={"image": "no-such-image"})]
    found = decide(pods, report("critical", unavailable=1), asked=ASKED)
    assert found.pod["metadata"]["name"] == "demo-2"


RUNNING = [{"name": "node", "state": {"running": {}}}]


def test_a_pod_that_is_not_ready_stays_while_its_node_holds_one_of_the_last_copies_that_writes_need():
    pods = [pod(0), pod(1, ready=False, containerStatuses=RUNNING), pod(2, ready=False, asked=CHANGED)]
    two_left = report("degraded", down=("demo-2",), needed=("demo-0", "demo-1"), under_replicated=3)
    assert "demo-2 must be ready first" in decide(pods, two_left).because
    learning = report("degraded", needed=("demo-0", "demo-1"), under_replicated=3)
    pods[2] = pod(2, asked=CHANGED)
    assert "3 shards are under replicated" in decide(pods, learning).because
    assert decide(pods).pod["metadata"]["name"] == "demo-1"


def test_a_pod_that_cannot_open_what_it_holds_is_replaced_although_shards_lack_its_copies():
    pods = [pod(0), pod(1, ready=False, containerStatuses=RUNNING), pod(2)]
    cannot = report("degraded", needed=("demo-0", "demo-2"), under_replicated=3)
    assert decide(pods, cannot).pod["metadata"]["name"] == "demo-1"


def test_pods_none_of_which_is_ready_or_answers_are_replaced():
    pods = [pod(n, ready=False, containerStatuses=RUNNING) for n in range(3)]
    observed = Observed(pods=pods, report_problem="no node answers")
    assert isinstance(rollout.decide(observed, stateful_set(), CHANGED, changed_fields), rollout.Restart)
    observed = Observed(pods=[*pods[:2], pod(2)], report_problem="no node answers")
    assert isinstance(rollout.decide(observed, stateful_set(), CHANGED, changed_fields), rollout.Held)


def test_no_pod_restarts_while_etcd_has_no_quorum_since_nobody_could_take_over():
    members = [Member(f"demo-etcd-{n}", has_leader=n == 0) for n in range(3)]
    observed = Observed(pods=[pod(n) for n in range(3)], report=report(), etcd=members)
    assert "etcd has no quorum" in rollout.decide(observed, stateful_set(), CHANGED, changed_fields).because


def test_no_pod_restarts_before_the_stateful_set_knows_the_new_template():
    assert "has not seen" in decide([pod(n) for n in range(3)], generation=3, seen=2).because


def test_nothing_restarts_while_nobody_knows_how_the_cluster_is():
    observed = Observed(pods=[pod(n) for n in range(3)], report_problem="no node answers")
    held = rollout.decide(observed, stateful_set(), CHANGED, changed_fields)
    assert isinstance(held, rollout.Held)
    assert "no node answers" in held.because


# Drift

SERVICE = {
    "kind": "Service",
    "metadata": {"name": "demo", "labels": {"a": "b"}},
    "spec": {"ports": [{"name": "http", "port": 8001}], "selector": {"a": "b"}},
}


def test_an_object_that_is_as_it_was_applied_is_left_alone():
    wanted = stamped(SERVICE)
    there = {**wanted, "spec": {**wanted["spec"], "clusterIP": "10.0.0.1"}, "status": {}}
    there["metadata"] = {**wanted["metadata"], "resourceVersion": "7"}
    assert not needs_apply(wanted, there)


def test_what_others_add_is_theirs():
    wanted = stamped(SERVICE)
    ports = [{"name": "mine", "port": 1}, {"name": "http", "port": 8001, "protocol": "TCP"}]
    annotations = {**wanted["metadata"]["annotations"], "theirs": "yes"}
    there = {
        "kind": "Service",
        "metadata": {**wanted["metadata"], "annotations": annotations},
        "spec": {"ports": ports, "selector": {"a": "b"}},
    }
    assert not needs_apply(wanted, there)


@pytest.mark.parametrize(
    "spec",
    [
        {"ports": [{"name": "http", "port": 9}], "selector": {"a": "b"}},
        {"ports": [], "selector": {"a": "b"}},
        {"ports": [{"name": "http", "port": 8001}], "selector": {}},
        {"ports": [{"name": "http", "port": 8001}]},
    ],
)
def test_what_somebody_changed_of_ours_is_applied_again(spec):
    wanted = stamped(SERVICE)
    assert needs_apply(wanted, {**wanted, "spec": spec})


def test_something_else_that_is_wanted_is_applied_even_where_it_only_leaves_something_out():
    before = stamped({**SERVICE, "spec": {**SERVICE["spec"], "publishNotReadyAddresses": True}})
    assert needs_apply(stamped(SERVICE), before)
    assert needs_apply(stamped(SERVICE), None)


# Words

SITUATION = status.Situation(desired=3, endpoints=("http://demo.default.svc:8001",))


def conditions(found: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in found["conditions"]}


def test_a_cluster_whose_nodes_all_serve_is_ready():
    found = status.of(Observed(pods=[pod(n) for n in range(3)], report=report()), SITUATION, 4)
    said = conditions(found)
    assert said["Ready"] == ("True", "NodesReady", "all 3 nodes serve")
    assert said["Progressing"][:2] == ("False", "Complete")
    assert said["Degraded"][0] == "False"
    assert found["health"] == "healthy"
    assert found["issues"] == []
    assert found["nodes"] == {"desired": 3, "ready": 3, "draining": 0}
    assert found["observedGeneration"] == 4
    assert all(c["observedGeneration"] == 4 for c in found["conditions"])
    assert found["vectors"] == 7


def test_a_cluster_on_its_way_says_what_it_waits_for_next():
    unschedulable = {
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient memory."}]
    }
    pods = [pod(0), {**pod(1, ready=False), "status": unschedulable}]
    said = conditions(status.of(Observed(pods=pods, report=report("critical")), SITUATION, 1))
    assert said["Ready"][:2] == ("False", "WaitingForNodes")
    assert "1 of 3 nodes are ready; pod demo-1 cannot be scheduled: 0/3 nodes: insufficient memory." in said["Ready"][2]
    assert said["Scaling"][:2] == ("True", "AddingNodes")


def test_a_file_that_cannot_be_done_is_a_condition_and_what_runs_stays_ready():
    situation = status.Situation(desired=3, refusal=("Unsupported", "spec.hibernate is not there yet"))
    found = status.of(Observed(pods=[pod(n) for n in range(3)], report=report()), situation, 2)
    assert conditions(found)["Ready"][0] == "True"
    assert conditions(found)["Progressing"] == ("False", "Unsupported", "spec.hibernate is not there yet")
    assert found["issues"][0] == "spec.hibernate is not there yet"
    assert found["health"] == "degraded"


def test_a_node_that_is_lost_is_told_in_words():
    pods = [pod(0), pod(1, ready=False), pod(2)]
    observed = Observed(pods=pods, report=report("critical", unavailable=1), nodes_down=frozenset({"host-1"}))
    found = status.of(observed, SITUATION, 1)
    assert found["health"] == "critical"
    assert "Lost quorum: shard 1." in found["issues"]
    assert "Pod demo-1 is on Kubernetes node host-1, which is not Ready." in found["issues"]


def test_warnings_do_not_make_a_cluster_degraded():
    situation = status.Situation(desired=3, warnings=("etcd 3.5.1 is old.",))
    found = status.of(Observed(pods=[pod(n) for n in range(3)], report=report()), situation, 1)
    assert found["health"] == "healthy"
    assert found["issues"] == ["etcd 3.5.1 is old."]
    assert conditions(found)["Degraded"] == ("False", "Healthy", "etcd 3.5.1 is old.")


def test_the_same_status_is_not_written_twice_and_keeps_its_times():
    observed = Observed(pods=[pod(n) for n in range(3)], report=report())
    first = status.with_times(status.of(observed, SITUATION, 1), {}, "2030-01-01T00:00:00Z")
    again = status.of(observed, SITUATION, 1)
    assert not status.differs(again, first)
    later = status.of(Observed(pods=[pod(0), pod(1)], report=report()), SITUATION, 1)
    assert status.differs(later, first)
    timed = status.with_times(later, first, "2030-01-02T00:00:00Z")
    assert {c["type"]: c["lastTransitionTime"][:10] for c in timed["conditions"]} == {
        "Ready": "2030-01-02",
        "Progressing": "2030-01-02",
        "Degraded": "2030-01-02",
        "Scaling": "2030-01-02",
    }


def test_paused_says_so_and_keeps_what_was_known():
    before = status.of(Observed(pods=[pod(n) for n in range(3)], report=report()), SITUATION, 1)
    found = status.paused(before, 2)
    assert conditions(found)["Progressing"][:2] == ("False", "Paused")
    assert found["vectors"] == 7
    assert found["observedGeneration"] == 2
    assert not status.differs(status.paused(found, 2), found)


def test_a_crash_loop_shows_what_the_container_said_last():
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    last = {"terminated": {"exitCode": 2, "message": "veccluster-node: listen must be host:port"}}
    states = [{"name": "node", "state": waiting, "lastState": last}]
    assert pod_problem(pod(0, ready=False, containerStatuses=states)) == (
        "pod demo-0: CrashLoopBackOff: veccluster-node: listen must be host:port"
    )


# etcd

MIB = 1 << 20


def member(name: str, **parts: Any) -> Member:
    return Member(name, **{"version": "3.5.16", "has_leader": True, **parts})


def test_one_member_is_defragmented_at_a_time_the_leader_last_and_only_while_all_are_well():
    wasteful = {"db_size": 300 * MIB, "db_size_in_use": 100 * MIB}
    members = [member("a", is_leader=True, **wasteful), member("b", **wasteful), member("c")]
    assert etcd_upkeep.decide(members, 2 << 30).defragment == "b"
    assert etcd_upkeep.decide([members[0], member("b"), member("c")], 2 << 30).defragment == "a"
    assert etcd_upkeep.decide([*members[:2], Member("c", error="no answer")], 2 << 30).defragment is None
    assert etcd_upkeep.decide([member("a", db_size=50 * MIB, db_size_in_use=MIB)], 2 << 30).defragment is None


def test_the_alarm_is_lifted_only_after_there_is_space_again():
    full = {"db_size": 2000 * MIB, "db_size_in_use": 100 * MIB, "alarms": ("NOSPACE",)}
    assert not etcd_upkeep.decide([member("a", **full)], 2 << 30).disarm
    mended = {"db_size": 100 * MIB, "db_size_in_use": 100 * MIB, "alarms": ("NOSPACE",)}
    found = etcd_upkeep.decide([member("a", **mended)], 2 << 30)
    assert found.disarm
    assert "has used up its quota" in found.issues[0]


def test_an_etcd_that_is_too_old_is_a_warning_and_one_without_quorum_is_said_first():
    members = [member("a", version="3.5.12"), Member("b", error="refused"), Member("c", error="refused")]
    found = etcd_upkeep.decide([*members], 2 << 30)
    assert found.issues[0].startswith("etcd has no quorum (1 of 3 members work)")
    assert found.warnings == ("etcd 3.5.12 has known faults that cost data; use 3.5.13 or newer.",)


# Collections


def resource(name: str, /, *, created: str = "2030", policy: str = "Retain", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": "VecCollection",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"cluster": "demo", "dimension": 4, "deletionPolicy": policy, **spec},
    }


def test_each_veccollection_asks_for_its_collection():
    (found,) = collections.decide([resource("words", filterable=["pos"], shards=2)], {})
    assert isinstance(found, collections.Ensure)
    assert found.name == "words"
    assert found.options["dimension"] == 4
    assert found.options["shards"] == 2
    assert found.options["filterable"] == ["pos"]
    assert "replication_factor" not in found.options


def test_a_collection_goes_with_its_resource_only_if_that_was_asked():
    record = {
        "kept": collections.Entry("uid-1", "uuid-1", "Retain"),
        "gone": collections.Entry("uid-2", "uuid-2", "Delete"),
        "there": collections.Entry("uid-there", "uuid-3", "Delete"),
    }
    found = list(collections.decide([resource("there", policy="Delete")], record))
    assert found[1:] == [collections.Drop("gone", "uuid-2"), collections.Forget("kept")]


def test_the_first_of_two_resources_describes_a_collection_and_the_other_is_told():
    first, second = resource("b", created="2029", name="words"), resource("a", created="2030", name="words")
    ensure, refuse = collections.decide([second, first], {})
    assert isinstance(ensure, collections.Ensure)
    assert ensure.resource["metadata"]["name"] == "b"
    assert isinstance(refuse, collections.Refuse)
    assert "VecCollection b describes collection words already" in refuse.message


def test_a_resource_that_cannot_be_read_deletes_nothing():
    record = {"words": collections.Entry("uid-words", "uuid", "Delete")}
    (refuse,) = collections.decide([resource("words", dimension="many")], record)
    assert isinstance(refuse, collections.Refuse)
    assert refuse.reason == "InvalidSpec"


def test_the_record_survives_writing_and_reading_and_a_broken_line_deletes_nothing():
    record = {"words": collections.Entry("uid", "uuid", "Delete")}
    data = collections.write_record(record)
    assert collections.read_record({"data": data}) == record
    assert collections.read_record({"data": {**data, "other": "{broken", "third": '{"x": 1}'}}) == record
    assert collections.read_record(None) == {}


# Who is active


@pytest.mark.parametrize(
    ("sighting", "now", "free"),
    [
        (None, 0.0, True),
        (Sighting("me", "1", 0.0), 1.0, True),
        (Sighting("", "1", 0.0), 1.0, True),
        (Sighting("other", "1", 0.0), DURATION - 0.1, False),
        (Sighting("other", "1", 0.0), DURATION, True),
    ],
)
def test_the_lease_is_taken_only_when_nobody_renewed_it_for_its_whole_duration(sighting, now, free):
    assert may_take(sighting, "me", now) is free


def test_a_collection_is_made_once_for_each_generation_of_its_resource_and_otherwise_only_looked_at():
    entry = collections.Entry("uid-words", "uuid", "Retain", generation=2)
    asked = resource("words")
    assert entry.is_about({"metadata": {**asked["metadata"], "uid": "uid-words", "generation": 2}})
    assert not entry.is_about({"metadata": {**asked["metadata"], "uid": "uid-words", "generation": 3}})
    assert not entry.is_about({"metadata": {**asked["metadata"], "uid": "uid-of-another", "generation": 2}})


def test_shards_that_are_not_served_are_named():
    states = [{"number": n, "available": n != 1} for n in range(3)]
    held = {"name": "words", "shards": 3, "shard_states": states}
    assert collections.shards_amiss(held) == "1 of 3 shards of collection words are not served: 1"
    assert collections.shards_amiss({**held, "shard_states": [{**s, "available": True} for s in states]}) is None


def test_a_collection_waits_until_every_node_has_joined_so_that_each_gets_a_shard():
    assert collections.too_early(None, "demo", 3) == "VecCluster demo does not answer yet"
    two: dict[str, Any] = {"nodes": [{"id": "demo-0", "state": "active"}, {"id": "demo-1", "state": "active"}]}
    assert "2 of 3 nodes have joined VecCluster demo" in str(collections.too_early(two, "demo", 3))
    with_one_down = {"nodes": [*two["nodes"], {"id": "demo-2", "state": "unreachable"}]}
    assert collections.too_early(with_one_down, "demo", 3) is None
