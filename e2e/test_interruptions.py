"""The operator is killed after each thing it does: the end is the same, and nothing is done twice."""

import json
import re
from collections import Counter
from contextlib import contextmanager

from e2e.support import replicas
from e2e.support.database import Database, called, uid
from e2e.support.operator import LEASE, NAMESPACE
from e2e.waiting import wait_for

KILLED = "operator-that-is-killed"
KILLS = "operator.acted=kill;operator.said=kill"
SUPERVISOR = """
import json, signal, subprocess, sys
child = None
def end(*_):
    child and child.terminate()
    sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    child = subprocess.Popen(sys.argv[1:])
    print(json.dumps({"ended_with": child.wait()}), flush=True)
"""


class KilledOperator:
    """Instead of the Deployment's replicas: one that is killed after each of its actions and reports."""

    def __init__(self, kubectl):
        self.kubectl = kubectl

    def log(self):
        return self.kubectl("logs", KILLED, namespace=NAMESPACE)

    def actions(self, database):
        return actions_for(database, KILLED, self.log())

    def kills(self):
        return self.log().count('{"ended_with": -9}')


def actions_for(database, replica, log):
    """What was done for a cluster; its name and the zones of its pods are left out."""
    done = replicas.actions(replicas.read_log(replica, log), database.namespace)
    about = f"{database.namespace}/{database.name}: "
    plain = (a.removeprefix(about).replace(database.name, "NAME") for a in done if a.startswith(about))
    return [re.sub(r"zone-\d", "ZONE", a) for a in plain]


@contextmanager
def killed_again_and_again(kubectl, operator):
    deployment = kubectl.json("get", "deployment", LEASE, namespace=NAMESPACE)
    replicas.scale(kubectl, 0)
    try:
        kubectl.apply(pod_that_restarts_it(deployment["spec"]["template"]["spec"]), namespace=NAMESPACE)
        kubectl("wait", "--for=condition=Ready", f"pod/{KILLED}", "--timeout=60s", namespace=NAMESPACE)
        yield KilledOperator(kubectl)
    finally:
        kubectl("delete", "pod", KILLED, "--ignore-not-found", "--timeout=60s", namespace=NAMESPACE)
        replicas.scale(kubectl, deployment["spec"]["replicas"])
        operator.wait_until_one_acts()


def pod_that_restarts_it(spec):
    """The Deployment's pod as one of its own, that starts the operator again and again under the same name.

    So it is back at once: a container that ends often is started ever more slowly, and a replica of another name would
    have to wait until the Lease is over.
    """
    (container,) = spec["containers"]
    container = {k: v for k, v in container.items() if not k.endswith("Probe")} | {
        "command": ["python", "-c", SUPERVISOR, *container["command"]],
        "env": [*container["env"], {"name": "VECCLUSTER_FAILPOINTS", "value": KILLS}],
    }
    labels = {"app.kubernetes.io/name": "veccluster-operator"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": KILLED, "labels": labels},
        "spec": {**spec, "containers": [container]},
    }


def anatomy(database):
    """The objects of a cluster, without what differs from one cluster to the next: names, times, addresses."""
    names = {uid(database.get()): "UID", database.name: "NAME"}
    pattern = re.compile("|".join(map(re.escape, names)))
    text = json.dumps({called(o): of_person(o) for o in [*database.owned(), *database.pods(), *database.claims()]})
    return json.loads(pattern.sub(lambda found: names[found[0]], text))


def of_person(manifest):
    """What was asked for: nothing that Kubernetes filled in or the scheduler chose."""
    metadata = manifest["metadata"]
    made_by_kubernetes = manifest["kind"] in ("Pod", "PersistentVolumeClaim")
    address = ("clusterIP", "clusterIPs")
    return {
        "labels": {k: v for k, v in metadata.get("labels", {}).items() if k != "controller-revision-hash"},
        "asked": metadata.get("annotations", {}).get("veccluster.io/asked"),
        "owner": [(o["kind"], o["name"]) for o in metadata.get("ownerReferences", ())],
        "data": manifest.get("data"),
        "spec": None if made_by_kubernetes else {k: v for k, v in manifest.get("spec", {}).items() if k not in address},
    }


class Seen:
    """The incarnations of each object that there have been."""

    def __init__(self, database):
        self.database = database
        self.found: dict[str, set[str]] = {}

    def is_healthy(self):
        for o in [*self.database.owned(), *self.database.pods(), *self.database.claims()]:
            self.found.setdefault(called(o), set()).add(uid(o))
        self.database.wait_until_healthy(timeout=0)
        return True

    def more_than_once(self):
        return {name: len(uids) for name, uids in self.found.items() if len(uids) > 1}


def test_an_operator_killed_after_each_step_ends_with_the_same_cluster_and_does_nothing_twice(
    kubectl, operator, namespace
):
    calm, torn = Database(kubectl, namespace, "calm"), Database(kubectl, namespace, "torn")
    active = operator.wait_until_one_acts()
    calm.apply(nodes=3)
    calm.wait_until_healthy()
    once = actions_for(calm, active, kubectl("logs", active, namespace=NAMESPACE))

    with killed_again_and_again(kubectl, operator) as killed:
        seen = Seen(torn)
        torn.apply(nodes=3)
        wait_for(seen.is_healthy, 180, "an operator that is killed after each step to get a cluster healthy")
        assert anatomy(torn) == anatomy(calm)
        assert seen.more_than_once() == {}
        created = Counter(killed.actions(torn))
        assert set(created) == set(once)
        assert twice(created) == {}, "only what becomes something else meanwhile is corrected again"
        assert killed.kills() >= created.total() >= len(set(once))

        torn.patch(resources={"requests": {"cpu": "11m", "memory": "64Mi"}})
        wait_for(
            lambda: seen.is_healthy() and all("11m" in json.dumps(p["spec"]) for p in torn.pods("node")),
            180,
            "an operator that is killed after each step to roll a change out",
        )
        assert seen.more_than_once() == {f"Pod/torn-{i}": 2 for i in range(3)}
        rollout = Counter(killed.actions(torn)) - created
        restarts = {a: times for a, times in rollout.items() if a.startswith("restart")}
        assert restarts == {f"restart pod NAME-{i} (resources.requests.cpu changed)": 1 for i in range(3)}, rollout
        told = [e for e in torn.events() if e.startswith("RestartingPod")]
        assert len(told) == 3, told
        print(f"killed {killed.kills()} times; created by {dict(created)}, changed by {dict(rollout)}")


def twice(done):
    return {a: times for a, times in done.items() if times > 1 and not a.startswith("correct")}
