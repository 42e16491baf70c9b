"""What the operator does about a VecCluster: on plain values, round after round, as the API server would answer."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from veccluster_operator import build
from veccluster_operator.build.names import BOOTSTRAPPED_LABEL, COMPONENT_LABEL, ZONE_ANNOTATION
from veccluster_operator.decide import plan, status
from veccluster_operator.decide.observed import Member, Observed

SETTINGS = plan.Settings(node_image="node:1", etcd_image="etcd:1", namespace="veccluster-system")


def body(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": "VecCluster",
        "metadata": {"name": "demo", "namespace": "search", "uid": "uid-1", "generation": 1},
        "spec": {"nodes": 3, **spec},
    }


def healthy_report() -> dict[str, Any]:
    return {
        "health": "healthy",
        "issues": [],
        "leader": "demo-0",
        "nodes": [{"id": f"demo-{n}", "state": "active"} for n in range(3)],
        "shards": {"total": 3, "under_replicated": 0, "unavailable": 0, "moving": 0},
        "vectors": 0,
        "version": "0.1.0",
    }


def created(actions: tuple[plan.Action, ...], before: Observed) -> Observed:
    """The world after the operator's actions and those of the controllers of Kubernetes: all pods come up at once."""
    objects: dict[tuple[str, str], Any] = dict(before.objects)
    for action in actions:
        if isinstance(action, plan.Apply):
            made = copy.deepcopy(action.manifest)
            generation = (
                objects.get((made["kind"], made["metadata"]["name"]), {}).get("metadata", {}).get("generation", 0)
            )
            made["metadata"]["generation"] = generation + 1
            made["status"] = {"observedGeneration": generation + 1}
            objects[made["kind"], made["metadata"]["name"]] = made
    gone = {a.pod["metadata"]["name"] for a in actions if isinstance(a, plan.RestartPod)}
    zones = {a.pod["metadata"]["name"]: a.zone for a in actions if isinstance(a, plan.SetZone)}
    kept = {p["metadata"]["name"]: p for p in before.pods if p["metadata"]["name"] not in gone}
    pods = [_with_zone(p, zones) for o in objects.values() if o["kind"] == "StatefulSet" for p in _pods(o, kept)]
    marked = any(isinstance(a, plan.MarkBootstrapped) for a in actions)
    return replace(before, objects=objects, pods=pods, claims=_claims(marked or any(map(_is_marked, before.claims))))


def _pods(stateful_set: Mapping[str, Any], kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    found, template = [], stateful_set["spec"]["template"]
    for number in range(stateful_set["spec"]["replicas"]):
        name = f"{stateful_set['metadata']['name']}-{number}"
        new = {
            "metadata": {"name": name, **copy.deepcopy(template["metadata"])},
            "spec": {**copy.deepcopy(template["spec"]), "nodeName": f"host-{number}"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "podIP": f"10.0.0.{number}"},
        }
        found.append(kept.get(name, new))
    return found


def _with_zone(pod: dict[str, Any], zones: Mapping[str, str]) -> dict[str, Any]:
    if zone := zones.get(pod["metadata"]["name"]):
        pod = copy.deepcopy(pod)
        pod["metadata"].setdefault("annotations", {})[ZONE_ANNOTATION] = zone
    return pod


def _claims(marked: bool) -> list[dict[str, Any]]:
    labels = {COMPONENT_LABEL: "etcd", **({BOOTSTRAPPED_LABEL: "true"} if marked else {})}
    return [{"metadata": {"name": f"data-demo-etcd-{n}", "labels": labels}} for n in range(3)]


def _is_marked(claim: Mapping[str, Any]) -> bool:
    return BOOTSTRAPPED_LABEL in claim["metadata"]["labels"]


def settled(asked: dict[str, Any], observed: Observed | None = None, rounds: int = 10) -> Observed:
    """The world after as many rounds as it takes until nothing is left to do."""
    observed = observed or Observed()
    for _ in range(rounds):
        decided = plan.decide(asked, observed, SETTINGS)
        if not decided.actions:
            return observed
        observed = created(decided.actions, observed)
        members = [Member(f"demo-etcd-{n}", version="3.5.16", has_leader=True) for n in range(3)]
        zones = {f"host-{n}": f"zone-{n}" for n in range(3)}
        observed = replace(observed, report=healthy_report(), etcd=members, zones=zones)
    raise AssertionError(f"after {rounds} rounds there is still something to do: {decided.actions}")


def what(actions: tuple[plan.Action, ...]) -> list[str]:
    return [type(a).__name__ for a in actions]


def test_a_new_cluster_is_created_once_and_then_left_alone():
    observed = settled(body())
    assert ("StatefulSet", "demo") in observed.objects
    assert ("StatefulSet", "demo-etcd") in observed.objects
    assert plan.decide(body(), observed, SETTINGS).actions == ()


@pytest.mark.parametrize("step", range(13))
def test_whatever_a_dying_operator_has_left_undone_the_next_one_does_and_nothing_twice(step):
    first = plan.decide(body(), Observed(), SETTINGS).actions
    observed = created(first[:step], Observed())
    second = plan.decide(body(), observed, SETTINGS).actions
    again = {
        (a.manifest["kind"], a.manifest["metadata"]["name"]) for a in second if isinstance(a, plan.Apply) and a.creates
    }
    done = {(a.manifest["kind"], a.manifest["metadata"]["name"]) for a in first[:step] if isinstance(a, plan.Apply)}
    assert not again & done
    assert set(settled(body(), observed).objects) == set(settled(body()).objects)


def test_what_is_deleted_or_changed_by_hand_comes_back():
    observed = settled(body())
    without = {k: v for k, v in observed.objects.items() if k != ("Service", "demo")}
    (restored,) = plan.decide(body(), replace(observed, objects=without), SETTINGS).actions
    assert isinstance(restored, plan.Apply)
    assert restored.creates
    changed: Any = copy.deepcopy(observed.objects)
    changed["StatefulSet", "demo"]["spec"]["replicas"] = 5
    (scaled_up,) = plan.decide(body(nodes=5), replace(observed, objects=changed), SETTINGS).actions[:1]
    assert isinstance(scaled_up, plan.Apply)
    changed["StatefulSet", "demo"]["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    assert plan.decide(body(image="node:1"), replace(observed, objects=changed), SETTINGS).actions


def test_a_new_operator_restarts_no_data_pod():
    observed = settled(body())
    newer = replace(SETTINGS, node_image="node:2", etcd_image="etcd:2")
    for _ in range(3):
        decided = plan.decide(body(), observed, newer)
        assert "RestartPod" not in what(decided.actions)
        assert decided.situation.rolling is None
        observed = created(decided.actions, observed)
    node = observed.objects["StatefulSet", "demo"]["spec"]["template"]["spec"]["containers"][0]
    assert node["image"] == "node:1"


def unready(observed: Observed, name: str) -> Observed:
    """The same world, in which a pod does not serve."""
    pods = copy.deepcopy(list(observed.pods))
    next(p for p in pods if p["metadata"]["name"] == name)["status"]["conditions"] = []
    return replace(observed, pods=pods)


def image_of(observed: Observed) -> str:
    template = observed.objects["StatefulSet", "demo"]["spec"]["template"]
    return str(template["spec"]["containers"][0]["image"])


@pytest.mark.parametrize("nodes", [1, 3])
def test_an_image_that_never_served_is_mended_by_a_file_without_one(nodes):
    observed = settled(body(nodes=nodes))
    wrong = body(nodes=nodes, image="node:wrong")
    last = f"demo-{nodes - 1}"
    for _ in range(3):
        observed = created(plan.decide(wrong, observed, SETTINGS).actions, observed)
        if image_of(observed) == "node:wrong":
            observed = unready(observed, last)
    newer = replace(SETTINGS, node_image="node:2")
    restarted = []
    for _ in range(4):
        actions = plan.decide(body(nodes=nodes), observed, newer).actions
        restarted += [a.pod["metadata"]["name"] for a in actions if isinstance(a, plan.RestartPod)]
        observed = created(actions, observed)
    assert image_of(observed) == "node:1"
    assert restarted == [last]


def test_an_image_that_served_is_kept_when_the_file_names_it_no_more():
    observed = settled(body(image="node:2"), settled(body()))
    assert image_of(settled(body(), unready(observed, "demo-0"))) == "node:2"


def test_an_image_set_by_hand_in_the_statefulset_does_not_last():
    observed = settled(body())
    changed: Any = copy.deepcopy(observed.objects)
    changed["StatefulSet", "demo"]["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    decided = plan.decide(body(), replace(observed, objects=changed), SETTINGS)
    assert what(decided.actions) == ["Apply"]
    assert image_of(created(decided.actions, observed)) == "node:1"


def test_a_change_that_needs_it_restarts_each_pod_once_one_after_the_other():
    observed, restarted = settled(body()), []
    changed = body(tuning={"maxK": 500})
    while actions := plan.decide(changed, observed, SETTINGS).actions:
        restarted += [a.pod["metadata"]["name"] for a in actions if isinstance(a, plan.RestartPod)]
        assert sum(isinstance(a, plan.RestartPod) for a in actions) <= 1
        observed = created(actions, observed)
    assert restarted == ["demo-2", "demo-1", "demo-0"]


def test_more_nodes_are_added_without_a_restart_and_fewer_are_refused_in_words():
    observed = settled(body())
    decided = plan.decide(body(nodes=4), observed, SETTINGS)
    assert set(what(decided.actions)) == {"Apply"}
    grown = created(decided.actions, observed)
    assert grown.objects["StatefulSet", "demo"]["spec"]["replicas"] == 4
    members = [*healthy_report()["nodes"], {"id": "demo-3", "state": "down"}]
    grown = replace(grown, report=healthy_report() | {"nodes": members})
    shrunk = plan.decide(body(nodes=3), grown, SETTINGS)
    assert "spec.nodes cannot go down from 4 to 3 yet" in shrunk.situation.obstacles[0]
    assert shrunk.situation.desired == 4
    assert "RestartPod" not in what(shrunk.actions)


def test_a_stateful_set_that_was_scaled_by_hand_is_corrected_before_its_pods_become_nodes():
    observed = settled(body())
    objects: Any = copy.deepcopy(observed.objects)
    objects["StatefulSet", "demo"]["spec"]["replicas"] = 5
    by_hand = replace(observed, objects=objects)
    decided = plan.decide(body(), by_hand, SETTINGS)
    assert decided.situation.obstacles == ()
    assert created(decided.actions, by_hand).objects["StatefulSet", "demo"]["spec"]["replicas"] == 3
    objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] = 5
    decided = plan.decide(body(), by_hand, SETTINGS)
    assert created(decided.actions, by_hand).objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] == 3
    unknown = plan.decide(body(), replace(by_hand, report=None), SETTINGS)
    assert created(unknown.actions, by_hand).objects["StatefulSet", "demo"]["spec"]["replicas"] == 5


def test_volumes_that_cannot_change_are_told_and_the_rest_is_applied():
    observed = settled(body())
    decided = plan.decide(body(storage={"size": "20Gi"}, resources={"limits": {"memory": "2Gi"}}), observed, SETTINGS)
    assert "spec.storage.size cannot be changed" in decided.situation.obstacles[0]
    (applied,) = (a for a in decided.actions if isinstance(a, plan.Apply) and a.manifest["kind"] == "StatefulSet")
    (claim,) = applied.manifest["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"hibernate": True}, "Unsupported", "spec.hibernate"),
        ({"security": {"tls": {"enabled": True}}}, "Unsupported", "spec.security"),
        ({"nodes": 0}, "InvalidSpec", "spec.nodes"),
        ({"podTemplate": {"spec": {"hostNetwork": True}}}, "InvalidSpec", "hostNetwork"),
    ],
)
def test_what_cannot_be_done_changes_nothing_and_is_said(spec, reason, words):
    observed = settled(body())
    decided = plan.decide(body(**spec), observed, SETTINGS)
    assert decided.actions == ()
    assert decided.situation.refusal is not None
    assert decided.situation.refusal[0] == reason
    assert words in decided.situation.refusal[1]
    assert decided.situation.desired == 3
    assert plan.decide(body(), observed, SETTINGS).actions == ()


def test_volumes_of_an_etcd_that_existed_never_begin_another_one():
    claims = _claims(marked=True)
    decided = plan.decide(body(), Observed(claims=claims), SETTINGS)
    (config,) = (
        a.manifest
        for a in decided.actions
        if isinstance(a, plan.Apply)
        and (a.manifest["kind"], a.manifest["metadata"]["name"]) == ("ConfigMap", "demo-etcd")
    )
    assert '"bootstrapped": true' in config["data"]["bootstrap.json"]


def test_the_disruption_budget_allows_a_drain_only_while_all_is_well():
    observed = settled(body())

    def allowed(seen: Observed) -> Any:
        applied = [a for a in plan.decide(body(), seen, SETTINGS).actions if isinstance(a, plan.Apply)]
        for action in applied:
            if (action.manifest["kind"], action.manifest["metadata"]["name"]) == ("PodDisruptionBudget", "demo"):
                return action.manifest["spec"]["maxUnavailable"]
        return seen.objects["PodDisruptionBudget", "demo"]["spec"]["maxUnavailable"]

    assert allowed(observed) == 1
    ill = healthy_report() | {"health": "critical", "shards": {**healthy_report()["shards"], "unavailable": 1}}
    assert allowed(replace(observed, report=ill)) == 0
    assert allowed(replace(observed, report=None)) == 0
    catching_up = {**healthy_report()["shards"], "under_replicated": 1}
    assert allowed(replace(observed, report=healthy_report() | {"health": "degraded", "shards": catching_up})) == 0
    silent = [Member(f"demo-etcd-{n}", error="no answer") for n in range(3)]
    assert allowed(replace(observed, etcd=silent)) == 0, "no other node could take over"


def test_every_object_that_is_applied_can_be_found_again_by_its_owner():
    for action in plan.decide(body(), Observed(), SETTINGS).actions:
        assert isinstance(action, plan.Apply)
        assert action.manifest["metadata"]["ownerReferences"][0]["uid"] == "uid-1"


def test_etcd_never_loses_members_by_a_smaller_number_in_the_file():
    observed = settled(body())
    decided = plan.decide(body(metadata={"managed": {"nodes": 1}}), observed, SETTINGS)
    assert "spec.metadata.managed.nodes stays 3 and does not become 1" in decided.situation.obstacles[0]
    assert "RestartPod" not in what(decided.actions)
    after = created(decided.actions, observed)
    assert after.objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] == 3


def test_etcd_grows_only_after_its_first_members_have_found_each_other():
    small, large = body(metadata={"managed": {"nodes": 1}}), body(metadata={"managed": {"nodes": 3}})
    young = created(plan.decide(small, Observed(), SETTINGS).actions, Observed())
    waiting = plan.decide(large, young, SETTINGS)
    assert "find each other first" in waiting.situation.obstacles[0]
    assert created(waiting.actions, young).objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] == 1
    grown = settled(large, settled(small))
    assert grown.objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] == 3


def test_an_etcd_that_crashes_again_and_again_gets_a_new_pod():
    observed = settled(body())
    pods = copy.deepcopy(list(observed.pods))
    looping = next(p for p in pods if p["metadata"]["name"] == "demo-etcd-1")
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    looping["status"]["containerStatuses"] = [{"name": "etcd", "state": waiting, "restartCount": 3}]
    (restart,) = plan.decide(body(), replace(observed, pods=pods), SETTINGS).actions
    assert isinstance(restart, plan.RestartPod)
    assert restart.pod["metadata"]["name"] == "demo-etcd-1"


def test_an_external_etcd_that_is_too_old_is_a_warning_and_nothing_worse():
    asked = body(metadata={"endpoints": ["http://etcd.example:2379"]})
    observed = replace(settled(asked), etcd=None, report=healthy_report() | {"etcd_version": "3.5.9"})
    decided = plan.decide(asked, observed, SETTINGS)
    assert decided.situation.warnings == ("etcd 3.5.9 has known faults that cost data; use 3.5.13 or newer.",)
    assert decided.situation.issues == ()


def test_building_twice_gives_the_same():
    cluster = plan.parse(body())
    context = build.Context(
        node_image="a",
        tools_image="b",
        etcd_image="c",
        replicas=3,
        bootstrapped=False,
        disruptions_allowed=0,
        operator_namespace="x",
    )
    assert build.manifests(cluster, context) == build.manifests(plan.parse(body()), context)


# What a person wrote that does not fit


def test_a_secret_that_a_node_misses_is_why_the_cluster_is_not_ready():
    asked = body(metadata={"endpoints": ["http://e:2379"], "credentialsSecret": "login"})
    observed = Observed()
    for _ in range(3):
        observed = created(plan.decide(asked, observed, SETTINGS).actions, observed)
    for number in range(3):
        observed = unready(observed, f"demo-{number}")
    says = "Node demo-0 is not ready: waiting for etcd at http://e:2379: /etc/veccluster-etcd/credentials/password is"
    observed = replace(observed, report={**healthy_report(), "health": "degraded", "issues": [f"{says} empty."]})
    observed = plan.in_words_of_the_spec(observed, plan.parse(asked))
    situation = plan.decide(asked, observed, SETTINGS).situation
    told = status.of(observed, situation, 1)
    ready = next(c for c in told["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "NoAccessToEtcd"
    assert ready["message"] == (
        "0 of 3 nodes are ready; Node demo-0 is not ready: waiting for etcd at http://e:2379: "
        "key password of Secret login is empty (spec.metadata.credentialsSecret)"
    )
    (news,) = [n for n in status.news(told, {}) if n.message == ready["message"] and n.reason == ready["reason"]]
    assert news.warning


def test_a_zone_in_which_there_is_no_machine_is_named():
    observed = replace(settled(body()), all_zones=frozenset({"b", "a"}))
    situation = plan.decide(body(zones=["a", "c"]), observed, SETTINGS).situation
    assert situation.obstacles == ("spec.zones: no Kubernetes node is in zone c; there are a, b",)
    assert plan.decide(body(zones=["a", "b"]), observed, SETTINGS).situation.obstacles == ()
    unknown = replace(observed, all_zones=None)
    assert plan.decide(body(zones=["c"]), unknown, SETTINGS).situation.obstacles == ()


def test_an_etcd_member_without_a_machine_is_made_anew_once_the_file_says_where_else_it_may_be():
    observed = settled(body())
    objects: Any = copy.deepcopy(observed.objects)
    objects["StatefulSet", "demo-etcd"]["status"]["updateRevision"] = "new"
    pods = copy.deepcopy(list(observed.pods))
    members = [p for p in pods if p["metadata"]["labels"][COMPONENT_LABEL] == "etcd"]
    for number, member in enumerate(members):
        member["metadata"]["labels"]["controller-revision-hash"] = "old" if number else "new"
    del members[0]["spec"]["nodeName"], members[1]["spec"]["nodeName"]
    observed = replace(observed, objects=objects, pods=pods)
    restarts = [a for a in plan.decide(body(), observed, SETTINGS).actions if isinstance(a, plan.RestartPod)]
    assert [a.pod["metadata"]["name"] for a in restarts] == ["demo-etcd-1"]
    objects["StatefulSet", "demo-etcd"]["metadata"]["generation"] += 1
    assert plan.decide(body(), observed, SETTINGS).actions == (), "it would come back as it was"
