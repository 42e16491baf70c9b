"""What docs/kubernetes.md promises first: install with Helm, apply the examples, and search."""

from e2e.support.client import WORDS
from e2e.support.database import condition_of, is_ready
from e2e.waiting import wait_for


def test_after_helm_install_the_examples_hold_ten_thousand_words_and_find_them(kubectl, operator, client, production):
    assert len(operator.pods()) == 2
    assert all(map(is_ready, operator.pods()))
    assert operator.active()
    found = client.recall(production, "words", WORDS)
    assert found["count"] == WORDS
    assert found["json"] >= 0.97
    assert found["client"] >= 0.97


def test_the_pods_run_under_the_restricted_profile_hold_no_token_and_are_spread_over_the_zones(cluster, production):
    # The namespace admits nothing that is not restricted, so that they run says it.
    pods = production.pods()
    assert not any(pod["spec"].get("automountServiceAccountToken", True) for pod in pods)
    assert not any("projected" in volume for pod in pods for volume in pod["spec"]["volumes"])
    for component in ("node", "etcd"):
        zones = [cluster.nodes[p["spec"]["nodeName"]] for p in production.pods(component)]
        assert sorted(zones) == ["zone-1", "zone-2", "zone-3"]


def test_the_nodes_know_their_zones(client, cluster, production):
    zones = {p["metadata"]["name"]: cluster.nodes[p["spec"]["nodeName"]] for p in production.pods("node")}
    report = client.ask(production, "GET", "/v1/cluster")["body"]
    assert {node["id"]: node["zone"] for node in report["nodes"]} == zones


def test_kubectl_get_shows_at_a_glance_how_clusters_and_collections_are(kubectl, production):
    rows = {
        "veccluster/production": {"NODES": "3", "READY": "3", "HEALTH": "healthy", "VECTORS": str(WORDS)},
        "veccollection/words": {"CLUSTER": "production", "DIMENSION": "384", "METRIC": "cosine", "VECTORS": str(WORDS)},
    }
    for resource, expected in rows.items():

        def shown(resource=resource, expected=expected):
            header, row = kubectl("get", resource, namespace=production.namespace).splitlines()
            columns = dict(zip(header.split(), row.split(), strict=True))
            assert list(columns) == ["NAME", *expected, "AGE"]
            assert {name: columns[name] for name in expected} == expected
            return True

        wait_for(shown, 30, f"the columns of {resource}")  # vectors are counted now and then


def test_the_status_is_about_the_present_spec_and_says_that_all_is_well(kubectl, production):
    body = production.get()
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
    assert {c["type"]: c["status"] for c in body["status"]["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "Degraded": "False",
        "Scaling": "False",
    }
    assert all(c["lastTransitionTime"] and c["message"] for c in body["status"]["conditions"])
    assert body["status"]["endpoints"] == [f"http://production.{production.namespace}.svc:8001"]
    assert "finalizers" not in body["metadata"]
    collection = kubectl.json("get", "vcol", "words", namespace=production.namespace)
    assert condition_of(collection, "Ready")["reason"] == "Created"
    assert collection["status"]["shards"] == 3  # one a node, although it was asked for when there was none yet
    assert "finalizers" not in collection["metadata"]
