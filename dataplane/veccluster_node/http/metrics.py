"""What a node measures about itself, in Prometheus' text format at /metrics."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from veccluster.model.state import ShardId
from veccluster_node.replica.ports import Standing
from veccluster_node.runtime.metrics import Measures
from veccluster_node.service.shard_service import ShardReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Observed(Protocol):
    """What the collector asks the node when it is scraped."""

    def shard_reports(self) -> Iterable[ShardReport]:
        """Every shard that the node serves."""

    def standings(self) -> Mapping[ShardId, Standing]:
        """Where every open replica stands."""

    def measures(self) -> Measures:
        """What is counted where it happens."""

    def is_ready(self) -> bool:
        """Whether /readyz would say 200."""


class _NodeCollector(Collector):
    """Gauges that are read when they are asked for, so that they are never stale."""

    def __init__(self, node: Observed) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("veccluster_node_ready", "1 when the node serves, 0 otherwise.")
        ready.add_metric([], float(self._node.is_ready()))
        yield ready
        labels = ["collection_uuid", "shard"]
        gauges = {
            name: GaugeMetricFamily(f"veccluster_shard_{name}", text, labels=labels)
            for name, text in {
                "vectors": "Vectors that the shard holds.",
                "tail": "Vectors that no generation holds yet; each search scans them.",
                "generations": "Index generations that each search walks.",
                "disk_bytes": "Bytes on disk.",
                "memory_bytes": "Bytes of memory held for the shard, mapped files not counted.",
                "epoch": "Epoch in which this node is primary.",
            }.items()
        }
        for report in self._node.shard_reports():
            for name, gauge in gauges.items():
                gauge.add_metric([report.shard.collection, str(report.shard.number)], getattr(report, name))
        yield from gauges.values()
        yield from self._copies()
        measures = self._node.measures()
        replication = measures.refused, measures.failovers, measures.refetches, measures.snapshots
        for counted in (*replication, measures.found, measures.scrubbed):
            yield from counted.collect()

    def _copies(self) -> Iterable[Metric]:
        """What a primary knows of the copies of its shard."""
        shard, member = ["collection_uuid", "shard"], ["collection_uuid", "shard", "node"]
        in_sync = GaugeMetricFamily("veccluster_shard_in_sync", "Replicas in sync, of those asked for.", labels=shard)
        wanted = GaugeMetricFamily("veccluster_shard_replicas", "Replicas that are asked for.", labels=shard)
        behind = GaugeMetricFamily(
            "veccluster_replica_behind_operations",
            "Operations of the primary's log that a replica lacks.",
            labels=member,
        )
        late = GaugeMetricFamily(
            "veccluster_replica_behind_seconds", "Time since a replica last lacked nothing.", labels=member
        )
        for i, standing in self._node.standings().items():
            if standing.serving is None or standing.configuration is None:
                continue
            name = [i.collection, str(i.number)]
            in_sync.add_metric(name, len(standing.configuration.in_sync))
            wanted.add_metric(name, standing.configuration.replicas)
            for other in standing.others:
                behind.add_metric([*name, other.member.node], other.behind)
                late.add_metric([*name, other.member.node], other.late)
        return in_sync, wanted, behind, late


class Metrics:
    """The registry of one node, and the middleware that counts requests."""

    def __init__(self, node: Observed) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_NodeCollector(node))
        self._requests = Counter(
            "veccluster_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "veccluster_http_request_seconds",
            "Time from the request's headers to the end of the answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self._registry,
        )

    async def answer(self, _: web.Request) -> web.StreamResponse:
        """GET /metrics."""
        page = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})

    def middleware(self) -> Middleware:
        """The aiohttp middleware; put it outside the one that turns errors into answers."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            route = resource.canonical if resource else "unknown"
            started = time.perf_counter()
            status = 499  # the client went away
            try:
                response = await handler(request)
                status = response.status
                return response
            finally:
                self._requests.labels(request.method, route, status).inc()
                self._seconds.labels(request.method, route).observe(time.perf_counter() - started)

        return count
