"""VecCollections: created, described twice, asked for in vain, and deleted with their vectors or without."""

import pytest

from e2e.support.database import condition_of, vec_collection
from e2e.waiting import wait_for


@pytest.fixture
def collections(kubectl, client, production):
    """VecCollections of the examples' cluster; what a test leaves of them is deleted with its vectors."""
    tried = Collections(kubectl, client, production)
    yield tried
    tried.tidy()


class Collections:
    def __init__(self, kubectl, client, database):
        self.kubectl, self.client, self.database = kubectl, client, database

    def apply(self, resource, /, cluster="production", **spec):
        self.kubectl.apply(vec_collection(resource, cluster, **spec), namespace=self.database.namespace)

    def delete(self, name):
        self.kubectl("delete", "vcol", name, "--timeout=20s", namespace=self.database.namespace)

    def wait_for(self, name, reason, *words, status="False"):
        """Wait until a VecCollection's condition Ready gives this reason in these words."""

        def said():
            resource = self.kubectl.json("get", "vcol", name, namespace=self.database.namespace)
            ready = condition_of(resource, "Ready")
            assert (ready["status"], ready["reason"]) == (status, reason), ready
            assert all(word in ready["message"] for word in words), ready
            assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
            return resource

        return wait_for(said, 30, f"VecCollection {name} to be {reason}")

    def tidy(self):
        """Delete all but the collection of the examples."""
        for resource in self.kubectl.items("vcol", namespace=self.database.namespace):
            if resource["metadata"]["name"] != "words":
                self.delete(resource["metadata"]["name"])
        for held in self.client.ask(self.database, "GET", "/v1/collections")["body"]["collections"]:
            if held["name"] != "words":
                self.client.ask(self.database, "DELETE", f"/v1/collections/{held['name']}")

    def held(self, name):
        """The collection as the cluster has it; None when there is none."""
        reply = self.client.ask(self.database, "GET", f"/v1/collections/{name}")
        return reply["body"] if reply["status"] == 200 else None


def lasting(held):
    """What a collection is, without how its copies fare at the moment."""
    return {key: value for key, value in held.items() if key != "shard_states"}


def test_a_collection_is_what_its_resource_asks_and_its_status_says_what_it_became(collections):
    collections.apply("asked", name="asked-for", metric="l2", shards=2, index={"m": 8}, filterable=["pos"])
    resource = collections.wait_for("asked", "Created", "in 2 shards", status="True")
    held = collections.held("asked-for")
    assert (held["dimension"], held["metric"], held["shards"]) == (3, "l2", 2)
    assert (held["index"]["m"], held["filterable"]) == (8, ["pos"])
    assert resource["status"]["uuid"] == held["uuid"]
    collections.apply("asked", name="asked-for", metric="l2", shards=2, index={"m": 8}, deletionPolicy="Delete")
    different = collections.wait_for("asked", "Different", "filterable")
    assert different["status"]["uuid"] == held["uuid"]
    assert lasting(collections.held("asked-for")) == lasting(held)


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_what_becomes_of_the_vectors_when_the_resource_is_deleted_is_as_its_policy_says(collections, policy):
    name = f"to-{policy.lower()}"
    collections.apply(name, deletionPolicy=policy)
    resource = collections.wait_for(name, "Created", status="True")
    assert "finalizers" not in resource["metadata"]
    vector = {"vectors": [{"id": "a", "vector": [1, 2, 3]}]}
    stored = collections.client.ask(collections.database, "POST", f"/v1/collections/{name}/vectors", vector)
    assert stored["status"] == 200
    collections.delete(name)
    if policy == "Delete":
        wait_for(lambda: collections.held(name) is None, 30, "the collection to be deleted")
        says = f"CollectionDeleted: collection {name} was deleted with its VecCollection (deletionPolicy: Delete)"
        wait_for(lambda: says in collections.database.events(), 10, "an event that says so")
        return
    collections.apply(name)
    again = collections.wait_for(name, "Created", status="True")
    assert again["status"]["uuid"] == resource["status"]["uuid"]
    assert collections.held(name)["count"] == 1


def test_a_policy_that_changes_counts_from_then_on(collections):
    collections.apply("changing", deletionPolicy="Retain")
    before = collections.wait_for("changing", "Created", status="True")
    collections.apply("changing", deletionPolicy="Delete")
    collections.wait_for("changing", "Created", status="True")
    assert before
    collections.delete("changing")
    wait_for(lambda: collections.held("changing") is None, 30, "the collection to be deleted")


def test_a_collection_of_a_cluster_that_is_not_there_says_so(collections):
    collections.apply("lost", cluster="nowhere")
    namespace = collections.database.namespace
    collections.wait_for("lost", "ClusterNotFound", f"there is no VecCluster nowhere in namespace {namespace}")
    collections.delete("lost")


def test_two_resources_for_one_collection_are_told_apart_and_the_first_counts(collections):
    collections.apply("first", name="both", deletionPolicy="Delete")
    collections.wait_for("first", "Created", status="True")
    collections.apply("second", name="both", dimension=4)
    collections.wait_for("second", "Duplicate", "VecCollection first describes collection both already")
    collections.wait_for("first", "Created", status="True")
    collections.delete("second")
    assert collections.held("both")["dimension"] == 3
    collections.delete("first")
    wait_for(lambda: collections.held("both") is None, 30, "the collection to be deleted")
