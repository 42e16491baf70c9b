"""Where pods may run: zones, taints, chosen machines; and a machine that is drained, which waits where it must."""

import subprocess
import threading
from collections import Counter

import pytest

from e2e.cluster.tools import clean_environment
from e2e.conftest import fresh_namespace
from e2e.support.client import WORDS
from e2e.support.database import Database, is_ready, uid, vec_collection
from e2e.waiting import wait_for

ZONE_LABEL, HOST_LABEL = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
TAINT = {"key": "example.com/dedicated", "value": "vectors", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def namespace(cluster):
    """One for all tests."""
    with fresh_namespace(cluster, "scheduling") as name:
        yield name


@pytest.fixture
def machines(cluster):
    """The machine of each zone; the tests want one in each of three."""
    found = {zone: name for name, zone in cluster.nodes.items()}
    assert len(found) == len(cluster.nodes) == 3
    return found


@pytest.fixture
def tainted(kubectl, machines):
    """A machine that takes only pods which put up with its taint, until the test ends."""
    machine = machines["zone-3"]
    kubectl("taint", "node", machine, f"{TAINT['key']}={TAINT['value']}:{TAINT['effect']}")
    yield machine
    kubectl("taint", "node", machine, f"{TAINT['key']}-")


def hosts(database, component=None):
    """The machine of each pod."""
    return {p["metadata"]["name"]: p["spec"].get("nodeName") for p in database.pods(component)}


def test_a_zone_that_does_not_exist_is_told_and_in_those_that_do_nodes_and_shards_are_spread(
    kubectl, client, operator, cluster, namespace
):
    database = Database(kubectl, namespace, "zoned")
    database.apply(nodes=4, zones=["zone-4"])
    says = "spec.zones: no Kubernetes node is in zone zone-4; there are zone-1, zone-2, zone-3"
    database.wait_until_told(says)
    assert database.condition("Progressing")["reason"] == "Blocked"
    assert says in database.condition("Ready")["message"]
    database.patch(zones=["zone-1", "zone-2"])
    database.wait_until_healthy()
    zones = {name: cluster.nodes[machine] for name, machine in hosts(database, "node").items()}
    assert Counter(zones.values()) == {"zone-1": 2, "zone-2": 2}
    assert {cluster.nodes[machine] for machine in hosts(database, "etcd").values()} <= {"zone-1", "zone-2"}

    def known():
        return {n["id"]: n["zone"] for n in client.ask(database, "GET", "/v1/cluster")["body"]["nodes"]}

    wait_for(lambda: known() == zones, 60, "the nodes to know their zones")
    kubectl.apply(vec_collection("points", "zoned", shards=8), namespace=namespace)
    kubectl("wait", "--for=condition=Ready", "vcol/points", "--timeout=60s", namespace=namespace)
    shards = client.ask(database, "GET", "/v1/collections/points")["body"]["shard_states"]
    assert Counter(zones[s["primary"]] for s in shards) == {"zone-1": 4, "zone-2": 4}


def test_a_machine_with_a_taint_is_for_those_who_tolerate_it(kubectl, operator, namespace, tainted):
    database = Database(kubectl, namespace, "dedicated")
    database.apply(zones=["zone-3"])
    for pod in ("dedicated-0", "dedicated-etcd-0"):

        def told(pod=pod):
            issues = database.status()["issues"]
            return [i for i in issues if f"od {pod} cannot be scheduled" in i and "untolerated taint" in i]

        wait_for(told, 60, f"the status to say that {pod} does not tolerate the taint")
    database.wait_until_told("cannot be scheduled", "untolerated taint", kind="Ready")
    database.patch(tolerations=[TAINT])
    database.wait_until_healthy()
    assert set(hosts(database).values()) == {tainted}


def test_affinity_and_a_node_selector_choose_the_machine(kubectl, operator, namespace, machines):
    machine = machines["zone-2"]
    here = {"key": HOST_LABEL, "operator": "In", "values": [machine]}
    affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}
    asked = {
        "by-affinity": {"affinity": {"nodeAffinity": affinity}, "zones": ["zone-1", "zone-2"]},
        "by-selector": {"podTemplate": {"spec": {"nodeSelector": {HOST_LABEL: machine}}}},
    }
    databases = [Database(kubectl, namespace, name) for name in asked]
    for database in databases:
        database.apply(nodes=2, **asked[database.name])
    for database in databases:
        database.wait_until_healthy()
        assert set(hosts(database, "node").values()) == {machine}


class Drain:
    """`kubectl drain` of one machine, of the pods of one cluster, in the background as in another terminal."""

    def __init__(self, kubectl, database, machine):
        selector = f"--pod-selector=veccluster.io/cluster={database.name}"
        command = ("drain", machine, selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=180s")
        environment = clean_environment(kubectl.kubeconfig.parent)
        self.process = subprocess.Popen(
            [kubectl.binary, "--kubeconfig", kubectl.kubeconfig, *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.said = []

    def wait_until_it_waits_for(self, pods):
        """Until it has said of each pod that its disruption budget forbids to evict it now."""
        waiting = set(pods)
        for line in self.process.stdout:
            self.said.append(line.strip())
            if "would violate the pod's disruption budget" in line:
                waiting = {pod for pod in waiting if f'"{pod}"' not in line}
            if not waiting:
                return
        raise AssertionError(f"the drain ended with {self.process.wait()}; it did not wait for {waiting}: {self.said}")

    def is_done(self):
        rest, _ = self.process.communicate(timeout=180)
        self.said += rest.splitlines()
        assert self.process.returncode == 0, self.said


class Watch(threading.Thread):
    """Counts all the time how many pods of a kind do not serve, and remembers the worst."""

    def __init__(self, database):
        super().__init__(daemon=True)
        self.database, self.most_missing = database, Counter()
        self._expected = Counter(map(component, database.pods()))
        self._ended = threading.Event()

    def run(self):
        while not self._ended.wait(0.2):
            serving = Counter(component(p) for p in self.database.pods() if is_ready(p))
            self.most_missing |= self._expected - serving

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()


def component(pod):
    return pod["metadata"]["labels"]["app.kubernetes.io/component"]


@pytest.fixture
def drain(kubectl, cluster, production):
    """Drain a machine; all take pods again when the test ends."""
    begun = []

    def begin(machine):
        begun.append(Drain(kubectl, production, machine))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.wait()
    for machine in cluster.nodes:
        kubectl("uncordon", machine)
    production.wait_until_healthy()


def test_draining_two_machines_takes_one_pod_of_a_kind_at_a_time_and_all_is_well_after(
    kubectl, client, production, drain
):
    before = {uid(p) for p in production.pods()}
    recall = client.recall(production, "words", WORDS)
    first, second = sorted(set(hosts(production, "node").values()))[:2]
    there = [pod for pod, machine in hosts(production).items() if machine == second]
    with Watch(production) as watch:
        drain(first).is_done()
        assert first not in hosts(production).values()
        later = drain(second)
        later.wait_until_it_waits_for(there)
        production.wait_until_told("cannot be scheduled", kind="Ready")
        assert [pod for pod, machine in hosts(production).items() if machine == second] == there
        kubectl("uncordon", first)
        later.is_done()
        assert second not in hosts(production).values()
        kubectl("uncordon", second)
        production.wait_until_healthy(180)
    assert watch.most_missing == {"node": 1, "etcd": 1}, "never two data pods, and etcd never without its quorum"
    assert client.recall(production, "words", WORDS) == recall
    assert len({uid(p) for p in production.pods()} - before) == 4, "two data pods and two members of etcd were moved"
