"""Removing things in any order: nothing hangs, since nothing waits for an operator to let go of it."""

import time

import pytest

from e2e.conftest import fresh_namespace
from e2e.support import replicas
from e2e.support.database import Database, vec_collection
from e2e.waiting import wait_for

CRDS = ("crd/vecclusters.veccluster.io", "crd/veccollections.veccluster.io")
OF_KUBERNETES = {"kubernetes.io/pvc-protection"}
KINDS = (
    "vecclusters,veccollections,statefulsets,controllerrevisions,services,endpointslices,configmaps,serviceaccounts,"
    "pods,persistentvolumeclaims,poddisruptionbudgets,networkpolicies,events"
)
SOON = 45
NAMESPACE_SOON = 90
"""Seconds: Kubernetes looks again at a namespace only after half of the longest grace of its pods (30 s), then twice
after 8 s for the claims."""

pytestmark = pytest.mark.last  # what other tests share is gone afterwards


@pytest.fixture
def namespaces(cluster):
    """Two fresh namespaces."""
    with fresh_namespace(cluster, "removed-1") as first, fresh_namespace(cluster, "removed-2") as second:
        yield first, second


@pytest.fixture
def databases(kubectl, operator, namespaces):
    """Two small clusters with a collection each, in a namespace each, both healthy."""
    found = [Database(kubectl, namespace, "words") for namespace in namespaces]
    for database in found:
        database.apply()
        kubectl.apply(vec_collection("points", "words"), namespace=database.namespace)
    for database in found:
        database.wait_until_healthy()
        ready = ("wait", "--for=condition=Ready", "veccollection/points", "--timeout=60s")
        kubectl(*ready, namespace=database.namespace)
    return found


@pytest.fixture
def installed_again(operator):
    """The operator is there again when the test ends."""
    yield
    operator.install()


def delete_resources(database):
    """As a person does it: the command waits until they are gone."""
    for what in ("veccollection/points", "veccluster/words"):
        database.kubectl("delete", what, f"--timeout={SOON}s", namespace=database.namespace)


def delete_namespace(kubectl, namespace):
    started = time.monotonic()
    kubectl("delete", "namespace", namespace, f"--timeout={NAMESPACE_SOON}s")
    print(f"the namespace was gone after {time.monotonic() - started:.0f} s")


def only_claims_are_left(database):
    def left():
        return database.owned() + database.pods()

    wait_for(lambda: not left(), SOON, "everything of the cluster to be gone")
    kept = {c["metadata"]["name"] for c in database.claims()}
    assert kept == {"data-words-0", "data-words-etcd-0"}


def no_finalizers(database):
    found = database.kubectl.items(KINDS, namespace=database.namespace)
    assert {"VecCluster", "VecCollection", "StatefulSet", "Pod"} <= {o["kind"] for o in found}
    for manifest in found:
        assert set(manifest["metadata"].get("finalizers", ())) <= OF_KUBERNETES, manifest["metadata"]
        owners = manifest["metadata"].get("ownerReferences", ())
        blocking = [o for o in owners if o.get("blockOwnerDeletion") and o["kind"].startswith("Vec")]
        assert not blocking, manifest["metadata"]


def test_resources_or_the_whole_namespace_go_at_once_while_the_operator_runs(kubectl, operator, databases):
    for database in databases:
        no_finalizers(database)
    first, second = databases
    delete_resources(first)
    only_claims_are_left(first)
    delete_namespace(kubectl, second.namespace)
    metrics = replicas.scrape(kubectl, operator.wait_until_one_acts())
    assert metrics["veccluster_operator_failing_clusters"] == 0


def test_without_the_operator_clusters_go_on_and_their_resources_or_namespaces_go_at_once(
    kubectl, operator, databases, installed_again, client
):
    first, second = databases
    pods = {p["metadata"]["uid"] for p in first.pods()}
    operator.uninstall()
    wait_for(lambda: not operator.pods(), SOON, "the operator's pods to be gone")
    answer = client.ask(first, "GET", "/v1/collections/points")
    assert answer["status"] == 200, answer
    assert {p["metadata"]["uid"] for p in first.pods()} == pods
    assert kubectl("get", *CRDS, "-o", "name").split()
    delete_resources(first)
    only_claims_are_left(first)
    delete_namespace(kubectl, second.namespace)


def test_without_their_definitions_all_clusters_go_and_the_operator_works_again_when_they_are_back(
    kubectl, operator, databases, installed_again
):
    kubectl("delete", *CRDS, f"--timeout={SOON}s")
    for database in databases:
        only_claims_are_left(database)
    operator.upgrade()
    first, second = databases
    first.apply()
    first.wait_until_healthy()
    delete_namespace(kubectl, second.namespace)
