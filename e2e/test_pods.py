"""Pods come and go: killed, cut off with their machine, restarted for a new spec; the data and the answers stay."""

import pytest

from e2e.support.client import WORDS
from e2e.support.database import is_ready, uid
from e2e.waiting import wait_for

RECALL = 0.97


@pytest.fixture
def recall(client, production):
    """Recall of the words in the examples' collection, measured before the test did anything."""
    return measured(client, production)


def measured(client, production):
    found = client.recall(production, "words", WORDS)
    assert found["count"] == WORDS
    assert not found["changed"]
    assert min(found["json"], found["client"]) >= RECALL
    return found


@pytest.mark.parametrize("component", ["node", "etcd"])
def test_a_killed_pod_returns_with_its_data(kubectl, client, production, recall, component):
    victim = production.pods(component)[1]
    kill(kubectl, production, [victim])
    wait_for(lambda: uid(victim) not in map(uid, production.pods()), 60, "another pod in its place")
    production.wait_until_healthy()
    assert measured(client, production) == recall


def test_all_pods_killed_at_once_return_with_their_data(kubectl, client, production, recall):
    victims = production.pods()
    kill(kubectl, production, victims)
    wait_for(lambda: not set(map(uid, victims)) & set(map(uid, production.pods())), 60, "other pods in their place")
    production.wait_until_healthy(180)
    assert measured(client, production) == recall


def kill(kubectl, production, pods):
    names = [pod["metadata"]["name"] for pod in pods]
    kubectl("delete", "pod", *names, "--force", "--grace-period=0", "--wait=false", namespace=production.namespace)


def test_a_dead_machine_is_told_within_30_s_and_all_is_well_when_it_is_back(
    cluster, client, production, recall, faults
):
    pod = next(p for p in production.pods("node") if p["spec"]["nodeName"] != client.node)
    name, machine = pod["metadata"]["name"], pod["spec"]["nodeName"]
    faults.kill_node(machine)

    def told():
        status = production.status()
        said = any(name in issue for issue in status["issues"])
        return said and (status["health"], status["shards"]["underReplicated"]) == ("degraded", 3)

    wait_for(told, 30, f"the status to say that {name} does not answer and that each shard lacks a copy")
    assert production.condition("Degraded")["status"] == "True"

    def machine_named():
        return [issue for issue in production.status()["issues"] if name in issue and machine in issue]

    wait_for(machine_named, 30, f"the status to say that {machine} is not Ready")
    assert any(name in event or machine in event for event in production.events()), production.events()
    faults.start_node(machine)
    production.wait_until_healthy(180)
    assert measured(client, production) == recall


def test_a_changed_pod_template_restarts_one_pod_at_a_time_and_says_for_which_field(
    kubectl, client, production, recall
):
    before = production.pods("node")
    etcd = set(map(uid, production.pods("etcd")))
    production.patch(podTemplate={"metadata": {"annotations": {"example.com/why": "a test"}}})
    missing = []

    def done():
        now = production.pods("node")
        missing.append(len(before) - sum(map(is_ready, now)))
        return not {uid(p) for p in now} & {uid(p) for p in before} and missing[-1] == 0

    wait_for(done, 240, "all pods to be restarted", every=0.1)
    assert max(missing) == 1, f"so many pods were not ready, one moment after the other: {missing}"
    production.wait_until_healthy()
    assert all(p["metadata"]["annotations"]["example.com/why"] == "a test" for p in production.pods("node"))
    assert set(map(uid, production.pods("etcd"))) == etcd
    for pod in before:
        name = pod["metadata"]["name"]
        said = f"RestartingPod: restarting pod {name}: podTemplate.metadata.annotations.example.com/why changed"
        assert said in production.events()
    assert measured(client, production) == recall
