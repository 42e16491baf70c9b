"""A VecCluster from its first file to its end: bad files and good ones, more nodes, a pause, deletion, its return."""

import json

import pytest

from e2e.conftest import fresh_namespace
from e2e.support.database import Database, condition_of, uid, vec_collection
from e2e.waiting import wait_for

WORDS = 500


def load(kubectl, client, database):
    """Create a collection by its resource and put words into it."""
    collection = vec_collection("words", database.name, dimension=384)
    kubectl.apply(collection, namespace=database.namespace)
    kubectl("wait", "--for=condition=Ready", "vcol/words", "--timeout=60s", namespace=database.namespace)
    client.load(database, "words", WORDS)
    return client.recall(database, "words", WORDS)


# A cluster that is deleted


def test_a_deleted_veccluster_leaves_its_volumes_unless_told_otherwise(kubectl, client, database):
    database.apply()
    database.wait_until_ready()
    recall = load(kubectl, client, database)
    assert recall["count"] == WORDS
    claims = {uid(c) for c in database.claims()}
    assert len(claims) == 2  # one of the node, one of etcd

    database.delete()
    wait_for(lambda: not database.owned(), 30, "what the operator made to be gone")
    assert {uid(c) for c in database.claims()} == claims
    says = f"there is no VecCluster {database.name}"
    wait_for(lambda: says in why_not(kubectl, database, "words"), 30, "the VecCollection to say what it waits for")

    database.apply()
    database.wait_until_ready()
    assert client.recall(database, "words", WORDS) == recall
    assert {uid(c) for c in database.claims()} == claims

    # What cannot be done is told; the rest of the same change is done.
    database.patch(storage={"retain": False, "size": "2Gi"})
    database.wait_until_told("spec.storage.size cannot be changed for volumes that exist")
    database.delete()
    wait_for(lambda: not database.claims(), 60, "the volume claims of node and etcd to be gone")


def why_not(kubectl, database, collection):
    """What a VecCollection says that it waits for."""
    return condition_of(kubectl.json("get", "vcol", collection, namespace=database.namespace), "Ready")["message"]


# A cluster that is changed: one for all of these tests, which leave it as well as they found it


@pytest.fixture(scope="module")
def shared(cluster, operator):
    with fresh_namespace(cluster, "small") as namespace:
        yield Database(cluster.kubectl, namespace, "small")


@pytest.fixture
def small(shared):
    """The cluster that these tests share, healthy."""
    if not shared.exists():
        shared.apply()
    shared.wait_until_healthy()
    return shared


def test_a_file_whose_pods_fit_nowhere_is_told_in_words_and_corrected_by_a_good_one(shared):
    shared.apply(resources={"requests": {"cpu": "100"}})
    shared.wait_until_told("0 of 1 nodes are ready", "small-0 cannot be scheduled", "Insufficient cpu", kind="Ready")
    assert shared.condition("Ready")["status"] == "False"
    shared.apply()
    shared.wait_until_ready()
    shared.wait_until_healthy()


def test_while_it_is_paused_nothing_is_done_and_the_status_says_so(kubectl, small):
    service = ("service", "small")
    small.patch(paused=True)
    small.wait_until_told("paused: true", "leaves everything as it is")
    kubectl("delete", *service, namespace=small.namespace)
    small.patch(paused=True, nodes=2)
    small.wait_until_seen()
    assert small.condition("Ready")["status"] == "Unknown"
    assert not kubectl("get", *service, "--ignore-not-found", namespace=small.namespace)
    assert len(small.pods("node")) == 1
    small.patch(paused=False, nodes=1)
    wait_for(lambda: kubectl("get", *service, "--ignore-not-found", namespace=small.namespace), 30, "the Service again")
    small.wait_until_healthy()


def test_kubectl_scale_adds_nodes_and_is_told_in_words_that_none_can_be_taken_away_yet(kubectl, client, small):
    kubectl("scale", "vc", "small", "--replicas=2", namespace=small.namespace)
    wait_for(lambda: len(small.pods("node")) == 2, 30, "the second pod")
    small.wait_until_healthy()
    nodes = client.ask(small, "GET", "/v1/cluster")["body"]["nodes"]
    assert [(n["id"], n["state"]) for n in nodes] == [("small-0", "active"), ("small-1", "active")]
    path = f"/apis/veccluster.io/v1alpha1/namespaces/{small.namespace}/vecclusters/small/scale"
    scale = json.loads(kubectl("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)

    kubectl("scale", "vc", "small", "--replicas=1", namespace=small.namespace)
    small.wait_until_told("spec.nodes cannot go down from 2 to 1 yet")
    assert len(small.pods("node")) == 2
    assert small.condition("Ready")["status"] == "True"
    kubectl("scale", "vc", "small", "--replicas=2", namespace=small.namespace)
    small.wait_until_healthy()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"hibernate": True}, ("spec.hibernate", "is not there yet")),
        ({"podTemplate": {"spec": {"hostNetwork": True}}}, ("spec.podTemplate.spec.hostNetwork",)),
        ({"podTemplate": {"spec": {"priority": "high"}}}, ("the API server refuses", "StatefulSet", "priority")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_a_condition_and_an_event_and_no_pod_notices(small, asked, words):
    pods, before = {uid(p) for p in small.pods()}, small.get()["spec"]
    small.patch(**asked)
    small.wait_until_told(*words)
    assert small.condition("Progressing")["status"] == "False"
    assert small.condition("Ready")["status"] == "True"
    small.patch(**{name: before.get(name) for name in asked})
    small.wait_until_seen()
    small.wait_until_healthy()
    assert {uid(p) for p in small.pods()} == pods


def test_an_image_that_does_not_exist_is_told_in_words_and_a_file_without_it_mends_that(client, small):
    ids = {uid(p) for p in small.pods("node")}
    small.patch(image="localhost/veccluster-node:nowhere")
    small.wait_until_told("Image", "localhost/veccluster-node:nowhere", kind="Ready", within=90)
    assert len({uid(p) for p in small.pods("node")} - ids) == 1, "more than one pod was restarted for a wrong image"
    small.patch(image=None)
    small.wait_until_healthy()
    assert client.ask(small, "GET", "/readyz")["status"] == 200
