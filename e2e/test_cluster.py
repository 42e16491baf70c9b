"""The harness keeps its promises, so that a failing test of VecCluster is VecCluster's failure."""

import json
from contextlib import suppress

import pytest

from e2e.cluster import images
from e2e.cluster.faults import CONTROL_PLANE
from e2e.cluster.network import Direction
from e2e.cluster.process import HarnessError
from e2e.conftest import is_ready
from e2e.waiting import wait_for

SERVER = ["python3", "-m", "http.server", "8000", "--directory", "/data"]


def web(replicas=3, storage="400Mi", command=SERVER):
    """A StatefulSet of web servers on volumes, under the restricted profile, and two Services: headless and not."""
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": images.BASE,
        "command": command,
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    pod = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [spread],
        "containers": [container],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}
    stateful_set = {
        "serviceName": "web",
        "replicas": replicas,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
    }
    headless = {"clusterIP": "None", "selector": labels, "ports": [{"port": 8000}]}
    address = {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": headless},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web-vip"}, "spec": address},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": stateful_set},
    ]


@pytest.fixture
def servers(kubectl, namespace):
    """Three web servers, one in each zone: the node of each."""
    kubectl.apply(web(), namespace=namespace)
    kubectl("rollout", "status", "statefulset/web", "--timeout=90s", namespace=namespace)
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in kubectl.items("pods", namespace=namespace)}


@pytest.fixture
def python(kubectl, namespace):
    """Run Python in a pod and return what it printed, read as JSON."""

    def call(pod, code):
        return json.loads(kubectl("exec", pod, "--", "python3", "-c", code, namespace=namespace, timeout=30))

    return call


FETCH = "import urllib.request as u, json; print(json.dumps(u.urlopen({url!r}, timeout=3).status))"
WRITE = """
import json, os
try:
    with open("/data/written", "wb") as file:
        file.write(b"x" * (8 << 20)); os.fsync(file.fileno())
    print(json.dumps("written"))
except OSError as error:
    print(json.dumps(error.strerror))
"""


def reaches(python, pod, url):
    with suppress(HarnessError):
        return python(pod, FETCH.format(url=url)) == 200
    return False


def test_pods_with_volumes_run_in_three_zones_and_find_each_other(cluster, servers, python):
    assert {cluster.nodes[node] for node in servers.values()} == {"zone-1", "zone-2", "zone-3"}
    wait_for(lambda: reaches(python, "web-0", "http://web-1.web:8000/"), 15, "a pod to be found by its name")
    for pod in servers:  # a Service leads to a pod of the same node or of another, so each is asked several times
        wait_for(lambda pod=pod: reaches(python, pod, "http://web-vip/"), 15, f"{pod} to know the Service")
        assert all(reaches(python, pod, "http://web-vip/") for _ in range(4))


def test_a_volume_can_be_full_and_can_grow(kubectl, namespace, servers, faults, python):
    assert python("web-0", WRITE) == "written"
    faults.fill_volume(namespace, "data-web-0")
    assert python("web-0", WRITE.replace("written", "more", 1)) == "No space left on device"
    assert python("web-1", WRITE) == "written"  # nobody else's disk is full
    request = {"spec": {"resources": {"requests": {"storage": "500Mi"}}}}
    kubectl("patch", "pvc", "data-web-0", "-p", json.dumps(request), namespace=namespace)
    claim = ("get", "pvc", "data-web-0")
    wait_for(
        lambda: kubectl.json(*claim, namespace=namespace)["status"]["capacity"]["storage"] == "500Mi", 20, "the growth"
    )
    assert python("web-0", WRITE.replace("written", "more", 1)) == "written"
    faults.free_volume(namespace, "data-web-0")
    free = python("web-0", "import os; s = os.statvfs('/data'); print(s.f_bavail * s.f_frsize)")
    assert 380 << 20 < free < 500 << 20


def test_a_cut_is_as_wide_as_it_says_and_heals(servers, faults, python):
    def connected(pod, other):
        return reaches(python, pod, f"http://{other}.web:8000/")

    faults.cut(servers["web-0"], peers=[servers["web-1"]])
    assert not connected("web-0", "web-1")
    assert not connected("web-1", "web-0")
    assert connected("web-0", "web-2")
    faults.heal(servers["web-0"])
    assert connected("web-0", "web-1")
    faults.cut(servers["web-0"], Direction.INCOMING, peers=[servers["web-1"], servers["web-2"]])
    assert not connected("web-0", "web-1")  # no answer comes
    faults.heal(servers["web-0"])
    assert connected("web-1", "web-0")


def test_a_node_that_loses_its_power_or_the_control_plane_is_noticed_and_comes_back(
    kubectl, namespace, servers, faults, python
):
    dead, deaf = servers["web-1"], servers["web-2"]
    faults.kill_node(dead)
    faults.cut(deaf, Direction.OUTGOING, peers=[CONTROL_PLANE])
    for node in (dead, deaf):
        wait_for(lambda node=node: not is_ready(kubectl, node), 60, f"{node} to be called NotReady")
    faults.heal(deaf)
    faults.start_node(dead)
    for node in (dead, deaf):
        wait_for(lambda node=node: is_ready(kubectl, node), 60, f"{node} to be Ready again")
    kubectl("rollout", "status", "statefulset/web", "--timeout=60s", namespace=namespace)
    for pod in ("web-1", "web-2"):
        wait_for(lambda pod=pod: reaches(python, "web-0", f"http://{pod}.web:8000/"), 30, f"{pod} to serve again")


def test_a_namespace_admits_only_restricted_pods(kubectl, namespace):
    privileged = {"containers": [{"name": "root", "image": images.BASE, "securityContext": {"privileged": True}}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": privileged}
    with pytest.raises(HarnessError, match="violates PodSecurity"):
        kubectl.apply(pod, namespace=namespace)


def test_the_tools_are_bound_to_this_cluster_whatever_the_environment_says(cluster, kubectl, helm, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    assert cluster.settings.api in kubectl("cluster-info")
    assert helm("list", "--all-namespaces").startswith("NAME")
