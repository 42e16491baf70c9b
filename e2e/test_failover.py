"""A cluster with three copies of each shard loses pods, machines and connections: who stores and searches goes on.

Every test has clients that store, read and search all the time through the Service. What they must never notice is in
`Steady.wrong`: a lost or an old value, an error, a write that takes longer than ten seconds.
"""

import pytest

from e2e.cluster.network import Direction
from e2e.conftest import fresh_namespace
from e2e.support import replicas
from e2e.support.database import Database, uid, vec_collection
from e2e.support.steady import Steady, is_whole
from e2e.waiting import wait_for

COLLECTION = "points"
WHOLE = {"total": 3, "underReplicated": 0, "unavailable": 0, "moving": 0}


@pytest.fixture(scope="module")
def namespace(cluster):
    """One for all tests of this module."""
    with fresh_namespace(cluster, "failover") as name:
        yield name


@pytest.fixture(scope="module")
def shared(kubectl, operator, namespace):
    """Three nodes and three members of etcd, with nothing said about copies, and a collection."""
    found = Database(kubectl, namespace, "words")
    found.apply(nodes=3, metadata={"managed": {"nodes": 3, "storage": {"size": "256Mi"}}})
    kubectl.apply(vec_collection(COLLECTION, found.name), namespace=namespace)
    found.wait_until_healthy(180)
    kubectl("wait", "--for=condition=Ready", f"vcol/{COLLECTION}", "--timeout=60s", namespace=namespace)
    return found


@pytest.fixture
def database(shared, client):
    """The cluster, with all copies in sync before the test and soon after it."""
    settle(shared)
    made = client.ask(shared, "GET", f"/v1/collections/{COLLECTION}")["body"]
    assert (made["replication_factor"], made["min_in_sync"]) == (3, 2)
    yield shared
    settle(shared)


@pytest.fixture
def steady(client, database):
    """Clients that go on while the test does its worst; what they noticed is judged when all is whole again."""
    with Steady(client, database, COLLECTION) as clients:
        yield clients
        clients.wait_until_in_sync()
        clients.goes_on()


def settle(database):
    database.wait_until_healthy(180)
    wait_for(lambda: database.status()["shards"] == WHOLE, 60, "the status to count every copy")


def primaries(client, database):
    """The node that takes the writes of each shard."""
    states = client.ask(database, "GET", f"/v1/collections/{COLLECTION}")["body"]["shard_states"]
    return [s["primary"] for s in states]


def machine_of(database, name):
    return next(p["spec"]["nodeName"] for p in database.pods("node") if p["metadata"]["name"] == name)


def kill_pod(database, name):
    """Have a pod end at once and see that another one has come in its place."""
    before = uid(next(p for p in database.pods("node") if p["metadata"]["name"] == name))
    database.kubectl("delete", "pod", name, "--force", "--grace-period=0", namespace=database.namespace)
    wait_for(lambda: before not in map(uid, database.pods()), 60, "another pod in its place")


def leaders(client, database):
    """The node that leads the cluster."""
    return [client.ask(database, "GET", "/v1/cluster")["body"]["leader"]]


def elsewhere(client, database, who):
    """One of these nodes that does not share the client's machine; others take their places until there is one.

    The client is no part of the cluster, so its machine is left alone.
    """
    for _ in range(4):
        found = who(client, database)
        if apart := [name for name in found if name and machine_of(database, name) != client.node]:
            return apart[0]
        kill_pod(database, found[0])
        settle(database)
    raise AssertionError("the same node takes over again and again")


def told(database, name):
    """Wait until the status has everything that a missing node means."""

    def said():
        status = database.status()
        assert any(name in issue and "is not reachable" in issue for issue in status["issues"]), status
        assert status["shards"] == {**WHOLE, "underReplicated": 3}, status
        assert (status["health"], status["nodes"]["ready"]) == ("degraded", 2), status
        return True

    wait_for(said, 60, f"the status to say that {name} is away and all shards lack a copy")


def test_the_pod_of_a_primary_is_killed(client, database, steady):
    kill_pod(database, primaries(client, database)[0])
    steady.goes_on()


def test_the_pod_of_a_primary_is_killed_while_there_is_no_operator(kubectl, operator, client, database, steady):
    replicas.scale(kubectl, 0)
    try:
        kill_pod(database, primaries(client, database)[-1])
        steady.goes_on()
        steady.wait_until_in_sync()
    finally:
        replicas.scale(kubectl, 2)
        operator.wait_until_one_acts()


@pytest.mark.parametrize("whose", [primaries, leaders], ids=lambda f: f.__name__)
def test_a_machine_loses_its_power_and_comes_back(client, database, faults, request, whose):
    name = elsewhere(client, database, whose)
    machine = machine_of(database, name)
    steady = request.getfixturevalue("steady")
    faults.kill_node(machine)
    steady.goes_on()
    told(database, name)
    assert steady.newest()["leader"] not in (None, name)
    faults.start_node(machine)


@pytest.mark.parametrize("direction", [Direction.BOTH, Direction.OUTGOING], ids=lambda d: d.value)
def test_a_machine_is_cut_off(client, database, faults, request, direction):
    name = elsewhere(client, database, primaries)
    machine = machine_of(database, name)
    steady = request.getfixturevalue("steady")
    faults.cut(machine, direction)
    steady.goes_on()
    told(database, name)
    faults.heal(machine)


def test_a_rolling_restart_takes_the_next_pod_when_every_copy_is_in_sync_again(client, database, steady):
    before = {p["metadata"]["name"]: uid(p) for p in database.pods("node")}
    database.patch(podTemplate={"metadata": {"annotations": {"example.com/why": "a test"}}})
    restarted: dict[str, bool] = {}

    def done():
        newest, now = steady.newest(), {p["metadata"]["name"]: p for p in database.pods("node")}
        leaving = {n for n in before if n not in now or uid(now[n]) != before[n] or is_leaving(now[n])}
        for name in leaving - restarted.keys():
            restarted[name] = is_whole(newest) or not restarted
        return restarted.keys() == before.keys()

    wait_for(done, 240, "all pods to be restarted", every=0.2)
    assert all(restarted.values()), f"whether all copies were in sync when a pod had to go: {restarted}"
    database.wait_until_healthy()


def is_leaving(pod):
    return "deletionTimestamp" in pod["metadata"]
