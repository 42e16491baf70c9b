"""Fixtures of the end-to-end tests: a cluster, a namespace in it, faults; and what the pods said when a test fails."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from e2e.cluster import handle
from e2e.cluster.faults import Faults
from e2e.cluster.handle import Cluster
from e2e.cluster.process import HarnessError
from e2e.cluster.settings import CHECKOUT, Settings
from e2e.cluster.tools import Helm, Kubectl
from e2e.support.client import WORDS, Client
from e2e.support.database import Database
from e2e.support.operator import NAMESPACE as OPERATOR_NAMESPACE
from e2e.support.operator import Operator
from e2e.waiting import wait_for


def pytest_configure(config: pytest.Config) -> None:
    """Register our mark."""
    config.addinivalue_line("markers", "last: takes away what other tests share, so it runs after them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests with the mark `last` after all others."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster: a running one with images of the present code, or a new one that goes when the tests end."""
    settings = Settings.from_environment()
    was_down = handle.bring_up(settings)
    connected = handle.connect(settings)
    yield connected
    hanging = _namespaces_that_hang(connected.kubectl)
    if was_down:
        handle.take_down(settings)
    assert hanging == {}, "namespaces of tests that ended did not go"


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
    """A fresh namespace which admits only pods of the restricted profile; on its way out when the test has ended."""
    with fresh_namespace(cluster, request.node.name.removeprefix("test_")) as name:
        yield name


@contextmanager
def fresh_namespace(cluster: Cluster, called: str) -> Iterator[str]:
    """A namespace like that of a test, for fixtures that several tests share."""
    cluster.make_sure_it_is_ours()
    words = re.sub("[^a-z0-9]+", "-", called.lower())
    name = f"{words[:40].strip('-')}-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        _delete(cluster.kubectl, name)


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Operator]:
    """The operator, installed with Helm as its documentation says; uninstalled when the tests end."""
    installed = Operator(cluster)
    installed.install()
    yield installed
    installed.uninstall()


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[Client]:
    """A client inside the cluster that has the words of WordNet."""
    with fresh_namespace(cluster, "client") as namespace:
        started = Client(cluster.kubectl, namespace)
        started.start()
        yield started


@pytest.fixture(scope="session")
def example(cluster: Cluster, operator: Operator, client: Client) -> Iterator[Database]:
    """The cluster of examples/cluster.yaml, with the collection of examples/collection.yaml and 10,000 words in it."""
    with fresh_namespace(cluster, "search") as namespace:
        database = Database(cluster.kubectl, namespace, "production")
        for file in ("cluster.yaml", "collection.yaml"):
            text = (CHECKOUT / "examples" / file).read_text()
            cluster.kubectl.apply(text.replace("namespace: search", f"namespace: {namespace}"))
        database.wait_until_ready()
        wait = ("wait", "--for=condition=Ready", "--timeout=60s", "veccollection/words")
        cluster.kubectl(*wait, namespace=namespace)
        client.load(database, "words", WORDS)
        yield database


@pytest.fixture
def production(example: Database) -> Database:
    """The cluster of the examples, healthy; what a test does to it, it must be able to recover from."""
    example.wait_until_healthy()
    return example


@pytest.fixture
def database(cluster: Cluster, operator: Operator, namespace: str) -> Database:
    """A VecCluster of the test's own, still to be applied."""
    return Database(cluster.kubectl, namespace, "demo")


def _delete(kubectl: Kubectl, namespace: str) -> None:
    """Delete a namespace and do not wait for it: that it goes soon is what test_uninstall is about.

    VecClusters go first, since an operator would try to make anew what is deleted of them.
    """
    kubectl("delete", "veccluster,veccollection", "--all", namespace=namespace, check=False)
    kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


SOON = timedelta(minutes=3)


def _namespaces_that_hang(kubectl: Kubectl) -> dict[str, list[str]]:
    """Namespaces that were deleted so long ago that they should be gone, and what keeps each."""
    before = (datetime.now(UTC) - SOON).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        n["metadata"]["name"]: [c["message"] for c in n["status"].get("conditions", []) if c["status"] == "True"]
        for n in kubectl.items("namespaces")
        if n["metadata"].get("deletionTimestamp", before) < before
    }


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
    """Attach to a failure what Kubernetes and the pods say that the test was about, before their namespaces go."""
    report = yield
    fixtures: Mapping[str, object] = getattr(item, "funcargs", {})
    if report.failed and report.when != "teardown" and isinstance(cluster := fixtures.get("cluster"), Cluster):
        for namespace in sorted(_namespaces_of(fixtures)):
            report.sections += list(_what_the_pods_say(cluster.kubectl, namespace))
    return report


def _namespaces_of(fixtures: Mapping[str, object]) -> set[str]:
    """The namespaces that a test uses, the operator's included when it has one."""
    found = {f.namespace for f in fixtures.values() if isinstance(f, Database)}
    if isinstance(own := fixtures.get("namespace"), str):
        found.add(own)
    return found | ({OPERATOR_NAMESPACE} if "operator" in fixtures else set())


def _what_the_pods_say(kubectl: Kubectl, namespace: str) -> Iterator[tuple[str, str]]:
    def ask(*words: str) -> str:
        try:
            return kubectl(*words, namespace=namespace, check=False, timeout=30)
        except (HarnessError, OSError, subprocess.TimeoutExpired) as error:  # a dead machine gives no log
            return str(error)

    def section(title: str) -> str:
        return f"{namespace}: {title}"

    yield section("objects"), ask("get", "statefulset,deployment,pod,pvc,service", "-o", "wide")
    for kind in ("veccluster", "veccollection"):  # nothing where its kind is not installed
        yield section(kind), ask("get", kind, "-o", "yaml")
    yield section("events"), ask("get", "events", "--sort-by=.lastTimestamp")
    yield section("pods"), ask("describe", "pods")
    for pod in ask("get", "pods", "-o", "name").split():
        flags = ("--all-containers", "--prefix", "--tail=100")
        yield section(f"log of {pod}"), ask("logs", pod, *flags)
        if before := ask("logs", pod, *flags, "--previous"):
            yield section(f"log of {pod} before its restart"), before
