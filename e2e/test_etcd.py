"""What etcd's members may lose: nobody who searches or stores vectors notices, and the status says what is wrong."""

import json

import pytest

from e2e.conftest import fresh_namespace
from e2e.support.database import Database, condition_of, vec_collection
from e2e.support.traffic import Traffic
from e2e.waiting import wait_for


@pytest.fixture(scope="module")
def namespace(cluster):
    """One for both tests."""
    with fresh_namespace(cluster, "etcd") as name:
        yield name


@pytest.fixture(scope="module")
def database(kubectl, operator, namespace):
    """Two nodes with a collection, and three members of etcd."""
    found = Database(kubectl, namespace, "words")
    found.apply(nodes=2, metadata={"managed": {"nodes": 3, "storage": {"size": "256Mi"}}})
    kubectl.apply(vec_collection("points", "words"), namespace=namespace)
    found.wait_until_healthy(180)
    kubectl("wait", "--for=condition=Ready", "veccollection/points", "--timeout=60s", namespace=namespace)
    return found


@pytest.fixture
def cordoned(kubectl, cluster):
    """Kubernetes nodes that take no new pods until the test ends."""
    for node in cluster.nodes:
        kubectl("cordon", node)
    yield
    for node in cluster.nodes:
        kubectl("uncordon", node)


def kill(database, *members):
    names = [f"{database.name}-etcd-{m}" for m in members]
    database.kubectl("delete", "pod", *names, "--force", "--grace-period=0", namespace=database.namespace)


def etcdctl(database, member, *arguments):
    pod = f"{database.name}-etcd-{member}"
    return json.loads(
        database.kubectl(
            "exec", pod, "-c", "etcd", "--", "etcdctl", *arguments, "-w", "json", namespace=database.namespace
        )
    )


def members(database):
    """The id of each member, which all three must have and be well."""
    health = etcdctl(database, 0, "endpoint", "health", "--cluster")
    assert [m["health"] for m in health] == [True] * 3, health
    return {m["name"]: m["ID"] for m in etcdctl(database, 0, "member", "list")["members"]}


def count(client, database):
    return client.ask(database, "GET", "/v1/collections/points")["body"]["count"]


def says(database, *words):
    """Wait until the status has a sentence with all these words."""

    def said():
        issues = database.status()["issues"]
        if any(all(w in issue for w in words) for issue in issues):
            return issues
        raise AssertionError(issues)

    return wait_for(said, 40, f"an issue about {words}")


def test_the_loss_of_a_member_with_its_volume_is_told_and_made_good_while_all_goes_on(database, client):
    before = members(database)
    claims = {c["metadata"]["name"]: c["metadata"]["uid"] for c in database.claims("etcd")}
    with Traffic(client, database, "points") as traffic:
        database.kubectl("delete", "pvc", "data-words-etcd-1", "--wait=false", namespace=database.namespace)
        kill(database, 1)
        says(database, "etcd", "words-etcd-1")
        traffic.goes_on()
        database.wait_until_healthy()
        traffic.goes_on()
    after = wait_for(lambda: members(database), 30, "three healthy members")
    assert {m for m, id_of in before.items() if after.get(m) != id_of} == {"words-etcd-1"}, (before, after)
    assert sorted(after) == sorted(before)
    now = {c["metadata"]["name"]: c["metadata"]["uid"] for c in database.claims("etcd")}
    assert {n for n, uid_of in now.items() if claims[n] != uid_of} == {"data-words-etcd-1"}


def test_without_etcd_reads_and_writes_go_on_the_status_tells_it_and_all_is_well_when_it_is_back(
    request, kubectl, database, client
):
    before, stored = members(database), count(client, database)
    with Traffic(client, database, "points") as traffic:
        traffic.goes_on()
        request.getfixturevalue("cordoned")
        kill(database, 0, 1, 2)
        issues = says(database, "etcd has no quorum (0 of 3", "reads and writes of healthy shards go on")
        assert any("cannot be scheduled" in i or "unschedulable" in i for i in issues), issues
        ready = condition_of(database.get(), "Ready")
        assert ready["status"] == "True", ready
        traffic.goes_on(times=6)
        refused = client.ask(database, "PUT", "/v1/collections/more", {"dimension": 3, "metric": "cosine"})
        assert refused["status"] == 503, refused
        for node in request.getfixturevalue("cluster").nodes:
            kubectl("uncordon", node)
        database.wait_until_healthy()
        traffic.goes_on()
    assert wait_for(lambda: members(database), 30, "three healthy members") == before
    made = client.ask(database, "PUT", "/v1/collections/more", {"dimension": 3, "metric": "cosine"})
    assert made["status"] == 201, made
    assert count(client, database) == stored + traffic.done
