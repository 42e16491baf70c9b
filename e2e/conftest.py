"""Fixtures of the end-to-end tests: a cluster, a namespace in it, faults; and what the pods said when a test fails."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterator

import pytest

from e2e.cluster import handle
from e2e.cluster.faults import Faults
from e2e.cluster.handle import Cluster
from e2e.cluster.process import HarnessError
from e2e.cluster.settings import Settings
from e2e.cluster.tools import Helm, Kubectl
from e2e.waiting import wait_for


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster: a running one with images of the present code, or a new one that goes when the tests end."""
    settings = Settings.from_environment()
    was_down = handle.bring_up(settings)
    yield handle.connect(settings)
    if was_down:
        handle.take_down(settings)


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """kubectl on the cluster."""
    return cluster.kubectl


@pytest.fixture(scope="session")
def helm(cluster: Cluster) -> Helm:
    """helm on the cluster."""
    return cluster.helm


@pytest.fixture
def namespace(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """A fresh namespace which admits only pods of the restricted profile; gone when the test has ended."""
    cluster.make_sure_it_is_ours()
    words = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    name = f"{words[:40].strip('-')}-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    _delete(cluster.kubectl, name)


def _delete(kubectl: Kubectl, namespace: str) -> None:
    """Delete a namespace and wait for it.

    Pods and claims go first: a namespace looks only every 8 s whether those have gone.
    """
    slow = "statefulset,deployment,job,pod,pvc"
    kubectl("delete", slow, "--all", "--timeout=60s", namespace=namespace, check=False)
    kubectl("delete", "namespace", namespace, "--wait=false")

    def gone() -> bool:
        if kubectl("get", "namespace", namespace, "--ignore-not-found"):
            conditions = kubectl.json("get", "namespace", namespace)["status"].get("conditions", [])
            raise HarnessError("it is kept by: " + "; ".join(c["message"] for c in conditions if c["status"] == "True"))
        return True

    wait_for(gone, timeout=120, what=f"the namespace {namespace} to be gone")


@pytest.fixture
def faults(cluster: Cluster, namespace: str) -> Iterator[Faults]:
    """The fault tools; what a test leaves broken is repaired before its namespace is deleted."""
    yield cluster.faults
    cluster.faults.undo()
    wait_for(
        lambda: all(is_ready(cluster.kubectl, node) for node in cluster.nodes),
        timeout=90,
        what="all nodes to be ready again",
    )


def is_ready(kubectl: Kubectl, node: str) -> bool:
    """Whether Kubernetes calls a node Ready."""
    conditions = kubectl.json("get", "node", node)["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to a failure what Kubernetes and the pods of the test's namespace say, before the namespace goes."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and report.when == "call" and "namespace" in fixtures:
        report.sections += list(_what_the_pods_say(fixtures["cluster"].kubectl, fixtures["namespace"]))
    return report


def _what_the_pods_say(kubectl: Kubectl, namespace: str) -> Iterator[tuple[str, str]]:
    def ask(*words: str) -> str:
        try:
            return kubectl(*words, namespace=namespace, check=False, timeout=30)
        except (HarnessError, OSError, TimeoutError) as error:
            return str(error)

    yield "objects", ask("get", "statefulset,deployment,pod,pvc,service", "-o", "wide")
    yield "veccluster", ask("get", "veccluster", "-o", "yaml")  # nothing where its kind is not installed
    yield "events", ask("get", "events", "--sort-by=.lastTimestamp")
    yield "pods", ask("describe", "pods")
    for pod in ask("get", "pods", "-o", "name").split():
        flags = ("--all-containers", "--prefix", "--tail=100")
        yield f"log of {pod}", ask("logs", pod, *flags)
        if before := ask("logs", pod, *flags, "--previous"):
            yield f"log of {pod} before its restart", before
