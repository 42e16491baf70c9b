"""The chart and the manifest on a real Kubernetes, and the narrow rights they give."""

import json
import shutil
import sys

import pytest
import yaml

from e2e.cluster import images
from e2e.cluster.process import run
from e2e.cluster.settings import CHECKOUT
from e2e.conftest import fresh_namespace
from e2e.support import replicas
from e2e.support.database import Database, vec_cluster
from e2e.support.operator import CHART, LEASE, NAMESPACE, RELEASE
from e2e.waiting import wait_for

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{LEASE}"
NODE, OPERATOR = images.PROJECT["Dockerfile.node"], images.PROJECT["Dockerfile.operator"]
CRD = "crd/vecclusters.veccluster.io"


@pytest.fixture(scope="module")
def database(cluster, operator):
    """A small cluster that nothing in this module may disturb."""
    with fresh_namespace(cluster, "packaging") as namespace:
        found = Database(cluster.kubectl, namespace, "words")
        found.apply()
        found.wait_until_healthy()
        yield found


@pytest.fixture
def as_it_was(operator):
    """The release is again what it was when the test ends."""
    revision = operator.revision
    yield
    operator.rollback(revision)


def pods_of(database):
    return {p["metadata"]["name"]: (p["metadata"]["uid"], restarts(p)) for p in database.pods()}


def restarts(pod):
    statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
    return sum(s["restartCount"] for s in statuses)


def wait_for_a_round(operator, kubectl, database):
    """Until the active replica has looked at the cluster again."""
    pod = operator.wait_until_one_acts()
    rounds = 'veccluster_operator_reconciles_total{result="ok"}'
    wait_for(lambda: replicas.scrape(kubectl, pod).get(rounds, 0) > 0, 60, "a round of the new operator")
    database.wait_until_healthy()


# --- Helm ---


def test_helm_finds_nothing_wrong_with_the_chart(helm):
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_an_upgrade_changes_operator_and_crds_and_restarts_no_pod_and_a_rollback_takes_it_back(
    cluster, kubectl, operator, database, as_it_was, tmp_path
):
    before, running, revision = pods_of(database), image_of(kubectl), operator.revision
    for tag in (NODE, OPERATOR):
        cluster.tag_image(tag, tag.replace(":dev", ":next"))
    operator.upgrade("image.tag=next", "node.image.tag=next", chart=chart_of_the_future(tmp_path))
    assert image_of(kubectl) == running.replace(":dev", ":next")
    assert "Future" in columns(kubectl)
    wait_for_a_round(operator, kubectl, database)
    assert pods_of(database) == before
    (node,) = database.pods("node")
    assert node["spec"]["containers"][0]["image"] == NODE
    assert image_of_new_clusters(kubectl, database.namespace) == NODE.replace(":dev", ":next")

    operator.rollback(revision)
    assert image_of(kubectl) == running
    assert "Future" not in columns(kubectl)
    wait_for_a_round(operator, kubectl, database)
    assert pods_of(database) == before


def chart_of_the_future(folder):
    """The chart with another column in a CRD."""
    chart = shutil.copytree(CHART, folder / "veccluster")
    file = chart / "files" / "crds" / "vecclusters.yaml"
    crd = yaml.safe_load(file.read_text())
    (version,) = crd["spec"]["versions"]
    version["additionalPrinterColumns"].append({"name": "Future", "type": "string", "jsonPath": ".metadata.uid"})
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return chart


def columns(kubectl):
    (version,) = kubectl.json("get", CRD)["spec"]["versions"]
    return [c["name"] for c in version["additionalPrinterColumns"]]


def image_of(kubectl):
    deployment = kubectl.json("get", "deployment", LEASE, namespace=NAMESPACE)
    return deployment["spec"]["template"]["spec"]["containers"][0]["image"]


def image_of_new_clusters(kubectl, namespace):
    """What a cluster gets that is made now."""
    new = Database(kubectl, namespace, "new")
    new.apply()
    made = wait_for(lambda: statefulset(new), 30, "the StatefulSet of a new cluster")
    new.delete()
    return made["spec"]["template"]["spec"]["containers"][0]["image"]


def statefulset(database):
    found = [o for o in database.owned() if o["kind"] == "StatefulSet" and o["metadata"]["name"] == database.name]
    return found[0] if found else None


def test_with_watch_namespaces_the_operator_has_rights_there_only_and_touches_nothing_else(
    cluster, kubectl, operator, as_it_was, namespace
):
    with fresh_namespace(cluster, "elsewhere") as elsewhere:
        operator.upgrade("watchNamespaces={" + namespace + "}", "rbac.readNodes=false")
        for where in (namespace, elsewhere):
            kubectl.apply(vec_cluster("words"), namespace=where)
        watched, other = (Database(kubectl, where, "words") for where in (namespace, elsewhere))
        watched.wait_until_ready()
        assert other.status() == {}
        assert other.owned() == []
        assert may(kubectl, "create", "statefulsets", namespace)
        assert not may(kubectl, "get", "vecclusters.veccluster.io", elsewhere)
        assert not may(kubectl, "list", "vecclusters.veccluster.io", None)
        assert not may(kubectl, "list", "nodes", None)
        labels = ("-l", f"app.kubernetes.io/instance={RELEASE}")
        assert kubectl("get", "clusterrole,clusterrolebinding", *labels, "-o", "name") == ""
        log = "".join(kubectl("logs", p["metadata"]["name"], namespace=NAMESPACE) for p in operator.pods())
        assert "forbidden" not in log, log
        watched.delete()


# --- rights ---


def may(kubectl, verb, what, namespace):
    where = ("--namespace", namespace) if namespace else ("--all-namespaces",)
    resource, _, part = what.partition("/")
    answer = kubectl("auth", "can-i", verb, resource, f"--subresource={part}", f"--as={ACCOUNT}", *where, check=False)
    return answer.strip() == "yes"


def test_the_operator_may_do_what_it_needs_and_nothing_beyond(kubectl, operator, database):
    rules = rules_of(kubectl, database.namespace) + rules_of(kubectl, NAMESPACE)
    for rule in rules:
        assert "*" not in [*rule["verbs"], *rule.get("apiGroups", ()), *rule.get("resources", ())], rule
        assert "secrets" not in rule.get("resources", ()), rule
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
        assert not may(kubectl, verb, "secrets", database.namespace)
        assert not may(kubectl, verb, "secrets", NAMESPACE)
    for verb, what in (
        ("create", "pods"),
        ("create", "pods/exec"),
        ("create", "roles.rbac.authorization.k8s.io"),
        ("delete", "vecclusters.veccluster.io"),
        ("update", "vecclusters.veccluster.io"),
        ("delete", "persistentvolumeclaims"),
        ("delete", "namespaces"),
        ("patch", "nodes"),
        ("get", "leases.coordination.k8s.io"),
        ("create", "serviceaccounts/token"),
        ("impersonate", "users"),
    ):
        assert not may(kubectl, verb, what, database.namespace), (verb, what)
    assert may(kubectl, "create", "statefulsets.apps", database.namespace)


def rules_of(kubectl, namespace):
    """What the operator may do in a namespace beyond what every authenticated user may."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = kubectl("create", "-f", "-", "-o", "json", "--validate=false", f"--as={ACCOUNT}", stdin=json.dumps(review))
    return json.loads(answer)["status"]["resourceRules"]


def test_data_pods_hold_no_token(kubectl, database):
    look = "import os, json; print(json.dumps(os.path.exists('/var/run/secrets/kubernetes.io/serviceaccount')))"
    for pod in database.pods():
        sources = [s for v in pod["spec"]["volumes"] for s in v.get("projected", {}).get("sources", ())]
        assert not any("serviceAccountToken" in s for s in sources), pod["spec"]["volumes"]
    command = ("exec", f"{database.name}-0", "-c", "node", "--", "python", "-c", look)
    assert kubectl(*command, namespace=database.namespace).strip() == "false"


# --- the operator's own port ---


def test_the_operator_tells_how_it_is(kubectl, operator, database):
    active = operator.wait_until_one_acts()
    for pod in (p["metadata"]["name"] for p in operator.pods()):
        at = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy"
        assert json.loads(kubectl("get", "--raw", f"{at}/healthz"))["status"] == "ok"
        assert json.loads(kubectl("get", "--raw", f"{at}/readyz"))["status"] == "ready"
        metrics = replicas.scrape(kubectl, pod)
        assert metrics["veccluster_operator_active"] == (pod == active)
        assert metrics["veccluster_operator_last_success_age_seconds"] < 120
    metrics = replicas.scrape(kubectl, active)
    assert metrics['veccluster_operator_reconciles_total{result="ok"}'] > 0
    assert metrics["veccluster_operator_reconcile_duration_seconds_count"] > 0
    assert metrics["veccluster_operator_clusters"] >= 1
    assert metrics["veccluster_operator_failing_clusters"] == 0


# --- without Helm ---


def test_the_manifest_is_what_the_chart_says_and_the_api_server_takes_it(kubectl, operator):
    run(sys.executable, CHECKOUT / "deploy" / "render.py", "--check")
    said = kubectl("apply", "-k", CHECKOUT / "deploy", "--dry-run=server")
    kinds = {line.partition("/")[0] for line in said.splitlines()}
    assert {"deployment.apps", "customresourcedefinition.apiextensions.k8s.io", "serviceaccount"} <= kinds, said
