"""What VecClusters cost the operator that are only there: `pytest e2e/test_scale.py -s` prints the figures."""

import re
import time

from e2e.support import replicas
from e2e.support.database import condition_of, vec_cluster
from e2e.waiting import wait_for

MANY = 100
RESYNC = 60
"""Seconds after which the operator looks at everything again, as the chart has it."""
CLUSTERS = "veccluster_operator_clusters"
MEMORY = "process_resident_memory_bytes"


def requests_sent(metrics):
    """Requests of one replica since it was started."""
    return sum(v for name, v in metrics.items() if name.startswith("veccluster_operator_api_requests_total"))


def requests_heard(kubectl):
    """Requests about VecClusters that the API server has answered, watches aside."""
    text = kubectl("get", "--raw", "/metrics")
    counted = re.findall(r'^apiserver_request_total{(.*group="veccluster.io".*)} (\S+)$', text, re.MULTILINE)
    return sum(float(n) for labels, n in counted if 'resource="vecclusters"' in labels and 'verb="WATCH"' not in labels)


def measure(kubectl, pod):
    """Memory in MiB, requests of the operator and requests heard by the API server, during one resync."""
    sent, heard = requests_sent(replicas.scrape(kubectl, pod)), requests_heard(kubectl)
    time.sleep(RESYNC * 1.1)  # what is measured is what happens in this time, not that something happens
    metrics = replicas.scrape(kubectl, pod)
    return metrics[MEMORY] / 2**20, requests_sent(metrics) - sent, requests_heard(kubectl) - heard


def test_a_hundred_paused_clusters_cost_next_to_nothing(kubectl, operator, namespace):
    pod = operator.wait_until_one_acts()
    before = replicas.scrape(kubectl, pod)
    first = time.monotonic()
    kubectl.apply([vec_cluster(f"paused-{i}", paused=True) for i in range(MANY)], namespace=namespace)
    wait_for(lambda: len(seen(kubectl, namespace)) == MANY, 60, "the operator to say that all are paused")
    took, created = time.monotonic() - first, requests_sent(replicas.scrape(kubectl, pod)) - requests_sent(before)
    memory, sent, heard = measure(kubectl, pod)
    there = before[CLUSTERS]
    print(
        f"\n{MANY} paused VecClusters beside {there:.0f} others: all seen in {took:.0f} s with {created:.0f} requests; "
        f"memory {before[MEMORY] / 2**20:.0f} MiB before, {memory:.0f} MiB after; "
        f"{sent:.0f} requests in {RESYNC * 1.1:.0f} s, of which {heard:.0f} about VecClusters"
    )
    # Clusters of namespaces that other tests have deleted may have left meanwhile.
    assert MANY <= replicas.scrape(kubectl, pod)[CLUSTERS] <= there + MANY
    assert memory - before[MEMORY] / 2**20 < 16
    assert created < 8 * MANY, "seeing one and saying so"
    lease_and_beat = 2 * RESYNC
    others = 40 * there
    assert sent < 1.3 * MANY + lease_and_beat + others
    assert heard < 1.3 * MANY + others + 20
    owned = kubectl("get", "statefulset,service,configmap,pod", "-o", "name", namespace=namespace).split()
    assert owned == ["configmap/kube-root-ca.crt"]


def seen(kubectl, namespace):
    """The VecClusters whose status says that they are paused."""
    found = kubectl.items("vecclusters", namespace=namespace)
    return [c for c in found if condition_of(c, "Progressing").get("reason") == "Paused"]
