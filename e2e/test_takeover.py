"""Two replicas of the operator: however the active one ends, the other acts soon, and never both at once."""

import pytest

from e2e.cluster.faults import CONTROL_PLANE
from e2e.cluster.network import Direction
from e2e.conftest import fresh_namespace, is_ready
from e2e.support import replicas
from e2e.support.database import Database
from e2e.support.operator import LEASE, NAMESPACE
from e2e.waiting import wait_for

SOON = 20
"""Seconds until somebody acts."""


@pytest.fixture(scope="module")
def namespace(cluster):
    """One for all tests of this module."""
    with fresh_namespace(cluster, "takeover") as name:
        yield name


@pytest.fixture(scope="module")
def database(kubectl, namespace, operator):
    """A VecCluster whose objects are there; nobody asks it anything, so its pods may start as slowly as they like."""
    found = Database(kubectl, namespace, "words")
    found.apply()
    wait_for(lambda: len(found.owned()) == OBJECTS, 30, "the objects of a VecCluster")
    return found


@pytest.fixture
def record(kubectl, operator):
    """What all replicas do from now on."""
    kubectl("wait", "--for=condition=Available", f"deployment/{LEASE}", "--timeout=60s", namespace=NAMESPACE)
    wait_for(lambda: len(operator.pods()) == 2, 60, "no more than two replicas")
    with replicas.recorded(kubectl) as recorder:
        follow(recorder, operator)
        yield recorder


def follow(record, operator):
    """All that run now; a pod that replaces one may be the first to take the Lease."""
    for pod in operator.pods():
        if pod["status"]["phase"] == "Running":
            record.follow(pod["metadata"]["name"])


OBJECTS = 12


def active_pod(operator):
    name = operator.wait_until_one_acts()
    return next(p for p in operator.pods() if p["metadata"]["name"] == name)


def delete_service(database):
    database.kubectl("delete", "service", database.name, namespace=database.namespace)


def wait_for_service(database, timeout=SOON):
    def there():
        return database.kubectl("get", "service", database.name, "--ignore-not-found", namespace=database.namespace)

    wait_for(there, timeout, "somebody to restore the Service")


def restored_by(record, operator, database, times=1):
    """Who was the last of `times` that have restored the Service."""
    wanted = f"{database.namespace}/{database.name}: create Service {database.name}"

    def told():
        follow(record, operator)
        found = [line for line in record.log() if line.event == "acting" and line.about == wanted]
        return len(found) >= times and found

    found = wait_for(told, 10, "the log of who has made the Service")
    assert len(found) == times, found
    return found[-1].replica


def never_two_act(record):
    """Whoever acts holds the Lease, and has held it since before; who got it before never acts again."""
    holders = record.holders()
    for line in record.log():
        if line.event != "acting":
            continue
        holder = [name for since, name in holders if since <= line.at]
        if holder:
            assert holder[-1] == line.replica, f"{line} while {holder[-1]} holds the Lease; its history: {holders}"
    became = [line for line in record.log() if line.event == "became_active"]
    assert len(holders) >= 2, holders
    assert {line.replica for line in became} >= {name for _, name in holders[1:]}, (became, holders)


def test_when_the_active_one_ends_without_a_word_the_other_acts_within_20_seconds(kubectl, operator, database, record):
    pod = active_pod(operator)
    replicas.freeze(pod)  # so that it cannot give the Lease back when it is told to stop
    kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0", namespace=NAMESPACE)
    delete_service(database)
    wait_for_service(database)
    assert restored_by(record, operator, database) != pod["metadata"]["name"]
    never_two_act(record)


def test_when_the_active_one_is_told_to_end_the_other_acts_at_once(kubectl, operator, database, record):
    pod = active_pod(operator)
    kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", namespace=NAMESPACE)
    wait_for(lambda: operator.active() not in (None, pod["metadata"]["name"]), 10, "another one to hold the Lease")
    delete_service(database)
    wait_for_service(database, timeout=5)
    assert restored_by(record, operator, database) != pod["metadata"]["name"]
    never_two_act(record)


def test_when_the_active_one_loses_its_network_it_stops_before_the_other_acts(
    cluster, kubectl, operator, database, record, faults
):
    pod = active_pod(operator)
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    others = [p["spec"]["nodeName"] for p in operator.pods() if p["metadata"]["name"] != name]
    assert node not in others, "two replicas on one node would be cut off together"
    faults.cut(node, Direction.BOTH, peers=[CONTROL_PLANE])
    delete_service(database)
    wait_for_service(database)
    faults.heal(node)
    wait_for(lambda: is_ready(kubectl, node), 60, f"{node} to be Ready again")
    wait_for(lambda: restarts(kubectl, name) > restarts_of(pod), 60, f"{name} to have been started again")
    ended = replicas.read_log(name, kubectl("logs", "--previous", name, namespace=NAMESPACE))
    stopped = next(line for line in ended if line.event == "no_longer_active")
    began = next(line for line in record.log() if line.event == "became_active" and line.at > stopped.at)
    assert began.replica != name
    assert [line for line in ended if line.event == "acting" and line.at > stopped.at] == []
    assert restored_by(record, operator, database) == began.replica
    never_two_act(record)


def test_a_frozen_one_that_wakes_up_after_another_took_over_writes_nothing(kubectl, operator, database, record):
    pod = active_pod(operator)
    name = pod["metadata"]["name"]
    frozen = replicas.freeze(pod)
    try:
        delete_service(database)
        wait_for_service(database)
        assert restored_by(record, operator, database) != name
        delete_service(database)  # the one that wakes up hears of both
    finally:
        replicas.thaw(frozen)
    wait_for_service(database, timeout=5)
    assert restored_by(record, operator, database, times=2) != name
    wait_for(lambda: restarts(kubectl, name) > restarts_of(pod), 30, f"{name} to end because it is not active any more")
    ended = replicas.read_log(name, kubectl("logs", "--previous", name, namespace=NAMESPACE))
    taken_over = record.holders()[-1][0]
    assert "no_longer_active" in [line.event for line in ended if line.at > taken_over]
    assert [line for line in ended if line.event == "acting" and line.at > taken_over] == []
    never_two_act(record)


def restarts(kubectl, name):
    return restarts_of(kubectl.json("get", "pod", name, namespace=NAMESPACE))


def restarts_of(pod):
    return sum(c["restartCount"] for c in pod["status"].get("containerStatuses", ()))
