"""What somebody deletes or changes by hand among the objects of a VecCluster is made good; what is theirs stays."""

import json

import pytest

from e2e.support.client import WORDS
from e2e.support.database import called, uid
from e2e.waiting import wait_for

BY_HAND = {
    "StatefulSet/production": {
        "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "localhost/wrong:1"}]}}}
    },
    "StatefulSet/production-etcd": {"spec": {"replicas": 5}},
    "Service/production": {
        "spec": {"ports": [{"port": 8001, "targetPort": 1}], "selector": {"veccluster.io/cluster": "other"}}
    },
    "Service/production-nodes": {"spec": {"publishNotReadyAddresses": False}},
    "Service/production-etcd": {"spec": {"selector": {"app.kubernetes.io/component": "node"}}},
    "ConfigMap/production-config": {"data": {"node.json": "{}"}},
    "ConfigMap/production-etcd": {"data": {"bootstrap.json": "{}"}},
    "ConfigMap/production-collections": {"data": {"words": None}},
    "ServiceAccount/production": {"automountServiceAccountToken": True},
    "PodDisruptionBudget/production": {"spec": {"maxUnavailable": 3}},
    "PodDisruptionBudget/production-etcd": {"spec": {"maxUnavailable": 3}},
    "NetworkPolicy/production": {"spec": {"ingress": []}},
    "NetworkPolicy/production-etcd": {"spec": {"ingress": [{}]}},
}
"""A change to each object that must not last."""


SETS = ("production", "production-etcd")


@pytest.fixture
def recall(client, production):
    return client.recall(production, "words", WORDS)


def essence(manifest):
    """What an object says, without the bookkeeping of the API server and what is somebody else's."""
    said = {k: v for k, v in manifest.items() if k not in ("metadata", "status")}
    if manifest["kind"] == "Service":
        said["spec"] = {k: v for k, v in said["spec"].items() if k not in ("clusterIP", "clusterIPs")}
    labels = {k: v for k, v in manifest["metadata"]["labels"].items() if not k.startswith("example.com/")}
    owners = [{k: o[k] for k in ("kind", "uid", "controller")} for o in manifest["metadata"]["ownerReferences"]]
    return json.dumps([said, labels, owners], indent=1, sort_keys=True)


def essences(manifests):
    return {called(m): essence(m) for m in manifests}


def wait_until_as_before(production, before):
    """Until every object says again what it said."""

    def as_before():
        now = essences(production.owned())
        different = [name for name, said in essences(before).items() if now.get(name) != said]
        assert not different, f"missing or different: {different}"
        return True

    wait_for(as_before, 60, "every object to be as it was")


def test_a_change_by_hand_is_tried_on_every_object_below(production):
    assert {called(m) for m in production.owned()} == set(BY_HAND)


def test_what_is_deleted_by_hand_is_made_anew_and_no_pod_notices(kubectl, client, production, recall):
    before, pods = production.owned(), production.pods()
    victims = [called(m) for m in before if m["kind"] != "StatefulSet"]
    kubectl("delete", *victims, namespace=production.namespace)
    wait_until_as_before(production, before)
    anew = {uid(m) for m in production.owned() if m["kind"] != "StatefulSet"}
    assert not anew & {uid(m) for m in before}
    assert set(map(uid, production.pods())) == set(map(uid, pods))
    production.wait_until_healthy()
    assert client.recall(production, "words", WORDS) == recall


def test_statefulsets_deleted_without_their_pods_are_made_anew_and_take_the_pods_back(kubectl, production):
    before, pods = production.owned(), production.pods()
    kubectl("delete", "statefulset", *SETS, "--cascade=orphan", namespace=production.namespace)
    wait_until_as_before(production, before)
    sets = {uid(m) for m in production.owned() if m["kind"] == "StatefulSet"}
    assert not sets & {uid(m) for m in before}

    def adopted():
        owners = {o["uid"] for p in production.pods() for o in p["metadata"].get("ownerReferences", ({"uid": None},))}
        return owners == sets

    wait_for(adopted, 30, "the pods to belong to the new StatefulSets")
    production.wait_until_healthy()
    assert set(map(uid, production.pods())) == set(map(uid, pods))


def test_statefulsets_deleted_with_their_pods_come_back_with_the_data(kubectl, client, production, recall):
    before, pods = production.owned(), production.pods()
    kubectl("delete", "statefulset", *SETS, namespace=production.namespace)
    wait_until_as_before(production, before)
    wait_for(lambda: not set(map(uid, pods)) & set(map(uid, production.pods())), 90, "the old pods to be gone")
    production.wait_until_healthy(180)
    assert client.recall(production, "words", WORDS) == recall


@pytest.mark.parametrize("replicas", [1, 5])
def test_a_stateful_set_that_is_scaled_by_hand_is_scaled_back(kubectl, production, replicas):
    before = production.owned()
    kubectl("scale", "statefulset", "production", f"--replicas={replicas}", namespace=production.namespace)
    wait_until_as_before(production, before)
    production.wait_until_healthy(180)


def test_what_is_changed_by_hand_is_corrected_and_annotations_and_labels_of_others_stay(
    kubectl, client, production, recall
):
    before = production.owned()
    mark = {"metadata": {"annotations": {"example.com/owner": "me"}, "labels": {"example.com/team": "search"}}}
    for name, change in BY_HAND.items():
        kubectl("patch", name, "--type=merge", "-p", json.dumps({**mark, **change}), namespace=production.namespace)
    kubectl("patch", production.resource, "--type=merge", "-p", json.dumps(mark), namespace=production.namespace)
    wait_until_as_before(production, before)
    for manifest in [*production.owned(), production.get()]:
        assert manifest["metadata"]["annotations"]["example.com/owner"] == "me", called(manifest)
        assert manifest["metadata"]["labels"]["example.com/team"] == "search", called(manifest)
    production.wait_until_healthy()
    assert client.recall(production, "words", WORDS) == recall
