"""The operator's own metrics, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

PREFIX = "veccluster_operator"


class Metrics:
    """What is counted; `success_age` is what liveness looks at."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.reconciles = Counter(f"{PREFIX}_reconciles", "Rounds for a VecCluster", ["result"], registry=self.registry)
        self.duration = Histogram(
            f"{PREFIX}_reconcile_duration_seconds", "Time that a round took", registry=self.registry
        )
        self.clusters = Gauge(f"{PREFIX}_clusters", "VecClusters that are looked after", registry=self.registry)
        self.failing = Gauge(f"{PREFIX}_failing_clusters", "Those whose last round failed", registry=self.registry)
        self.requests = Counter(
            f"{PREFIX}_api_requests",
            "Requests to the API server, kopf's two watches aside",
            ["method"],
            registry=self.registry,
        )
        self.active = Gauge(f"{PREFIX}_active", "1 while this replica is the one that acts", registry=self.registry)
        self._last_success = time.monotonic()
        Gauge(
            f"{PREFIX}_last_success_age_seconds", "Since the last good round or beat", registry=self.registry
        ).set_function(self.success_age)

    def succeeded(self) -> None:
        """A round has ended well, or an idle operator has reached the API server."""
        self._last_success = time.monotonic()

    def success_age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._last_success

    def request(self, method: str) -> None:
        """A request is sent to the API server."""
        self.requests.labels(method).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)
