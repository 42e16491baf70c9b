"""The `veccluster-operator` process: wait to be the active replica, then look after every VecCluster.

Exit codes: 0 stopped as asked; 1 no longer the active replica (start again and wait); 2 bad configuration or no way
to the API server.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import kopf
import structlog
from kopf._core.engines.peering import Identity as kopf_identity  # noqa: N813 - a NewType that kopf does not export
from kubernetes_asyncio.config import ConfigException

from veccluster_operator import handlers
from veccluster_operator.adapters import kube, web
from veccluster_operator.adapters.dataplane import DataPlane
from veccluster_operator.adapters.etcd import Etcd
from veccluster_operator.adapters.events import Recorder
from veccluster_operator.adapters.kube import ApiError, KubeApi
from veccluster_operator.adapters.lease import Leadership
from veccluster_operator.adapters.metrics import Metrics
from veccluster_operator.adapters.nodes import KubernetesNodes
from veccluster_operator.decide.plan import Settings
from veccluster_operator.reconcile import Reconciler
from veccluster_operator.work import Workers

EXIT_NOT_ACTIVE, EXIT_CONFIG = 1, 2
DEFINITIONS_EVERY = 2.0
BEAT = 60.0
"""Seconds between looks at the API server by an operator that has nothing to do."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What the process was told."""

    namespaces: tuple[str, ...]
    node_image: str
    etcd_image: str
    port: int
    resync: float
    lease: str
    replica: str
    own_namespace: str
    read_nodes: bool
    log_level: str


def main() -> None:
    """Entry point of `veccluster-operator`."""
    options = _options(sys.argv[1:])
    _log_to_stderr(options.log_level)
    try:
        sys.exit(asyncio.run(_run(options)))
    except ConfigException as error:
        print(f"veccluster-operator: no way to the API server: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG)


def _options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="veccluster-operator", description="Looks after VecClusters in Kubernetes.")
    env = os.environ.get
    parser.add_argument(
        "--namespaces", default=env("VECCLUSTER_NAMESPACES", ""), help="watch only these, separated by commas"
    )
    parser.add_argument("--node-image", default=env("VECCLUSTER_NODE_IMAGE"), help="image of data nodes")
    parser.add_argument("--etcd-image", default=env("VECCLUSTER_ETCD_IMAGE"), help="image of managed etcd")
    parser.add_argument("--http-port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
    parser.add_argument("--resync", type=float, default=60.0, help="seconds after which all is looked at again")
    parser.add_argument("--lease-name", default="veccluster-operator", help="the Lease that the active replica holds")
    parser.add_argument(
        "--read-nodes",
        action=argparse.BooleanOptionalAction,
        default=env("VECCLUSTER_READ_NODES", "true").lower() == "true",
        help="read Kubernetes nodes, to know zones",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    given = parser.parse_args(arguments)
    for needed in ("node_image", "etcd_image"):
        if not getattr(given, needed):
            option = needed.replace("_", "-")
            parser.error(f"--{option} (or VECCLUSTER_{needed.upper()}) must name an image")
    return Options(
        namespaces=tuple(n for n in (part.strip() for part in given.namespaces.split(",")) if n),
        node_image=given.node_image,
        etcd_image=given.etcd_image,
        port=given.http_port,
        resync=given.resync,
        lease=given.lease_name,
        replica=env("POD_NAME") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
        own_namespace=env("POD_NAMESPACE") or "default",
        read_nodes=given.read_nodes,
        log_level=given.log_level,
    )


async def _run(options: Options) -> int:
    """Wait for the Lease, then work until told to stop or until another replica has it."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    metrics = Metrics()
    api = await KubeApi.connect(metrics.request)
    runner = await web.serve(options.port, metrics, ready=lambda: True)
    leadership = Leadership(api, options.own_namespace, options.lease, options.replica)
    try:
        if not await _before(stopped, _acquire(leadership, metrics)):
            return 0
        metrics.active.set(1)
        lost = asyncio.create_task(leadership.hold())
        work = asyncio.create_task(_work(options, api.fenced(leadership), metrics, stopped))
        await asyncio.wait({lost, work}, return_when=asyncio.FIRST_COMPLETED)
        metrics.active.set(0)
        work.cancel()
        ended = await asyncio.gather(work, return_exceptions=True)
        if lost.done():
            return EXIT_NOT_ACTIVE
        lost.cancel()
        await leadership.release()
        _log_defects(ended)
        return 0 if stopped.is_set() else EXIT_NOT_ACTIVE
    finally:
        await runner.cleanup()
        await api.close()


def _log_defects(ended: Iterable[object]) -> None:
    for result in ended:
        if isinstance(result, Exception):
            log.error("work_ended", reason=repr(result))


async def _acquire(leadership: Leadership, metrics: Metrics) -> None:
    beat = asyncio.create_task(_beat_while_waiting(metrics, leadership))
    try:
        await leadership.acquire()
    finally:
        beat.cancel()


async def _beat_while_waiting(metrics: Metrics, leadership: Leadership) -> None:
    """A replica that waits is well as long as it can read the Lease."""
    while True:
        if await leadership.reachable():
            metrics.succeeded()
        await asyncio.sleep(BEAT)


async def _before(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before we were told to stop."""
    doing = asyncio.create_task(work)
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
    done = doing.done()
    for task in (doing, stop):
        task.cancel()
    await asyncio.gather(doing, stop, return_exceptions=True)
    return done


async def _work(options: Options, api: KubeApi, metrics: Metrics, stopped: asyncio.Event) -> None:
    """What the active replica does, until told to stop."""
    data, etcd = DataPlane(), Etcd()
    settings = Settings(options.node_image, options.etcd_image, options.own_namespace)
    nodes = KubernetesNodes(api, allowed=options.read_nodes)
    reconciler = Reconciler(api, data, etcd, nodes, Recorder(api, options.replica), settings)
    workers = Workers(reconciler, metrics, options.resync)
    operator = kopf.operator(
        registry=handlers.registry(workers),
        settings=handlers.settings(),
        standalone=True,
        identity=kopf_identity(options.replica),  # or kopf asks for the user's name, which a number has not
        namespaces=list(options.namespaces),
        clusterwide=not options.namespaces,
        stop_flag=stopped,
    )
    others = [
        asyncio.create_task(handlers.watch_parts(api, workers, options.namespaces)),
        asyncio.create_task(_beat(api, metrics, options)),
    ]
    try:
        if await _are_defined(api, metrics, stopped):
            await operator
        stopped.set()  # kopf hears the signals itself while it runs
    finally:
        operator.close()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await workers.close()
        await data.close()
        await etcd.close()


async def _are_defined(api: KubeApi, metrics: Metrics, stopped: asyncio.Event) -> bool:
    """Wait until our kinds are defined, since kopf looks for them once; False when told to stop before that."""
    while not stopped.is_set():
        try:
            if await api.serves((kube.VEC_CLUSTER, kube.VEC_COLLECTION)):
                return True
            metrics.succeeded()
            log.warning("not_defined", reason="the CRDs of VecCluster and VecCollection are not installed")
        except ApiError as error:
            log.warning("api_server_not_reached", reason=error.message)
        try:
            async with asyncio.timeout(DEFINITIONS_EVERY):
                await stopped.wait()
        except TimeoutError:
            pass
    return False


async def _beat(api: KubeApi, metrics: Metrics, options: Options) -> None:
    """An operator without clusters is well as long as it can ask for them."""
    scope = options.namespaces[0] if options.namespaces else options.own_namespace
    while True:
        try:
            await api.list(kube.VEC_CLUSTER, scope)
            metrics.succeeded()
        except ApiError as error:
            log.warning("api_server_not_reached", reason=error.message)
        await asyncio.sleep(BEAT)


def _log_to_stderr(level: str) -> None:
    """One JSON object a line; kopf's own messages from warnings on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
