"""The `veccluster-node` process: start, serve until told to stop, say in one line why it cannot.

Exit codes: 0 stopped as asked; 1 failed while running; 2 bad configuration; 3 address in use; 4 data directory
not ours.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog

from veccluster.decisions import descriptors as shares
from veccluster.errors import InvalidSpec, VecClusterError
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import NodeId
from veccluster_node.engine.idle import IDLE
from veccluster_node.http import application
from veccluster_node.node.data_node import DataNode
from veccluster_node.node.replication import Replication
from veccluster_node.node.settings import node_settings, storage_settings
from veccluster_node.peer.server import HELD
from veccluster_node.peer.thread import PeerThread
from veccluster_node.runtime import budget, descriptors, logs
from veccluster_node.runtime import config as configuration
from veccluster_node.runtime.config import Address, NodeConfig, host_port
from veccluster_node.runtime.identity import Identity, WrongDirectory, claim
from veccluster_node.runtime.memory import MemoryGuard
from veccluster_node.shards.host import Files, ShardHost

EXIT_FAILED, EXIT_CONFIG, EXIT_ADDRESS, EXIT_DIRECTORY = 1, 2, 3, 4
PEER_HOST = "VECCLUSTER_PEER_HOST"
"""Variable: the host at which the other nodes reach this one, and where alone it listens for them."""
SHUTDOWN_TIMEOUT = 10.0
"""Seconds that requests under way are given when the node stops."""
STOP_TIMEOUT = 40.0
"""Seconds after which a node that was told to stop ends, whatever is still under way."""

log = structlog.get_logger(__name__)


def main() -> None:
    """Entry point of `veccluster-node`."""
    arguments = argparse.ArgumentParser(prog="veccluster-node", description="A data node of a VecCluster.")
    arguments.add_argument("--config", type=Path, required=True, help="JSON file, see docs/architecture.md")
    arguments.add_argument("--id", help="this node's id; goes before the file's")
    arguments.add_argument(
        "--advertise", metavar="HOST", help="host under which the others and clients reach this node"
    )
    arguments.add_argument("--zone-file", metavar="FILE", help="file that names this node's zone, now or later")
    arguments.add_argument(
        "--stop-timeout",
        type=float,
        default=STOP_TIMEOUT,
        metavar="SECONDS",
        help="end this long after being told to stop, whatever is still under way (default: %(default)g)",
    )
    arguments.add_argument("--log-level", default="info", choices=logs.LEVELS)
    options = arguments.parse_args()
    logs.to_stderr(options.log_level)
    try:
        given = {"id": options.id, "advertise": options.advertise, "zone_file": options.zone_file}
        config = configuration.load(options.config, peer_host=os.environ.get(PEER_HOST), **given)
        spec = config.cluster_spec()
        identity = claim(Path(config.data_dir), config.id)
        client_socket, peer_socket = (_listen(Address.parse(a)) for a in (config.listen, config.peer_listen))
    except InvalidSpec as error:
        _give_up(EXIT_CONFIG, error.detail)
    except WrongDirectory as error:
        _give_up(EXIT_DIRECTORY, error.detail)
    except OSError as error:
        _give_up(EXIT_ADDRESS if isinstance(error, AddressInUse) else EXIT_DIRECTORY, str(error))
    try:
        asyncio.run(_serve(config, spec, identity, client_socket, peer_socket, options.stop_timeout))
    except* VecClusterError as group:
        code = EXIT_DIRECTORY if group.subgroup(WrongDirectory) else EXIT_FAILED
        _give_up(code, "; ".join(str(e) for e in group.exceptions))


class AddressInUse(OSError):
    """Another process listens there, or the address is not this machine's."""


async def _serve(
    config: NodeConfig,
    spec: VecClusterSpec,
    identity: Identity,
    client_socket: socket.socket,
    peer_socket: socket.socket,
    stop_timeout: float,
) -> None:
    """Run the node and its two ports until SIGTERM or SIGINT."""
    settings, limits = node_settings(spec), spec.tuning.limits()
    files = descriptors.raise_limit()
    IDLE.most = shares.readers(files)
    memory = MemoryGuard(settings.max_memory)
    threads = os.cpu_count() or 1
    replication = Replication(NodeId(config.id), asyncio.get_running_loop(), storage_settings(spec).silence)
    host = ShardHost(
        Path(config.data_dir),
        storage_settings(spec),
        memory,
        replication,
        threads=threads,
        files=Files(files, settings.max_connections),
    )
    node = DataNode(config, settings, identity, host, replication)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    most = shares.connections(files, settings.max_connections)
    entrance = application.Entrance.of(spec, connections=most, memory=memory.limit, hosts=config.known_hosts())
    clients = await application.start(node, spec, limits, entrance, shutdown_timeout=SHUTDOWN_TIMEOUT)
    peers = _peers(peer_socket, node, replication, config, spec, memory)
    await peers.start()
    replication.links, replication.offers = peers.links, peers.transfers
    await clients.listen(client_socket)
    gc.freeze()  # what start-up made stays; collections need not walk it
    bound = [s.getsockname() for s in (client_socket, peer_socket)]
    addresses = [host_port(config.advertise or host, port) for host, port, *_ in bound]
    log.info("listening", node=node.id, address=addresses[0], peer_address=addresses[1])
    life = asyncio.create_task(node.run(*addresses))
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping", node=node.id)
    _end_within(stop_timeout)
    node.draining = True
    if stopped.is_set():
        await node.hand_over()
    await clients.close()
    # The others know that this node goes before it stops answering them.
    life.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(stop if stopped.is_set() else life)
    await asyncio.gather(life, return_exceptions=True)
    await peers.stop()
    await node.close()


def _peers(
    listener: socket.socket,
    node: DataNode,
    replication: Replication,
    config: NodeConfig,
    spec: VecClusterSpec,
    memory: MemoryGuard,
) -> PeerThread:
    return PeerThread(
        listener,
        node.id,
        members=lambda: node.state.nodes,
        secret=node.secret,
        older=node.without_proof,
        answer=node.answer,
        deliver=node.inbox.deliver,
        allows=node.inbox.allows,
        tick=replication.tick,
        hear=replication.beats.received,
        directory=node.host.directory_of,
        outgoing=Path(config.data_dir) / "outgoing",
        heartbeat=spec.failover.heartbeat,
        held=min(memory.limit // budget.SHARE, HELD),
    )


def _end_within(seconds: float) -> None:
    """End the process after so long even if a thread still opens a shard: what was acknowledged is on disk."""

    def end() -> None:
        log.warning("stopped_in_the_middle", seconds=seconds)
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address.host, address.port))
        sock.listen(1024)
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address.host}:{address.port}: {error.strerror or error}") from error
    return sock


def _give_up(code: int, why: str) -> NoReturn:
    print(f"veccluster-node: {why}", file=sys.stderr)  # noqa: T201 - the line for the person who started it
    sys.exit(code)
