"""Ports of the loopback interface: which are free, and who holds one that is not."""

import errno
import random
import socket
import time
from collections.abc import Collection, Iterable

import psutil

from veccluster_cli.local import LocalFailure

HOST = "127.0.0.1"
INTERNAL_PORTS = range(20_000, 30_000)
"""Where etcd's ports are taken from: below what systems use for outgoing connections, so that a port that was free once
is likely to be free at the next start."""


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
        return True


def holder(port: int) -> str:
    """Who listens on the port, in words; only as much as the system tells this user."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another program"


def require_free(ports: Iterable[int], patience: float = 0.0) -> None:
    """Raise LocalFailure naming the first port that is still taken after `patience` seconds, and its holder."""
    deadline = time.monotonic() + patience
    for port in ports:
        while not (free := is_free(port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not free:
            raise LocalFailure(
                f"Port {port} is in use by {holder(port)}. Stop that program, or choose other ports with --port "
                "(the nodes take as many in a row)."
            )


def free_internal_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Distinct free ports for etcd."""
    found = [p for p in random.sample(INTERNAL_PORTS, 50 + 10 * count) if p not in taken and is_free(p)]
    if len(found) < count:
        raise LocalFailure(f"No free ports for etcd between {INTERNAL_PORTS.start} and {INTERNAL_PORTS.stop}.")
    return found[:count]


def first_free_run(start: int, length: int) -> int:
    """The first port from `start` on that begins `length` free ones in a row."""
    for first in range(start, 65_536 - length):
        if all(is_free(port) for port in range(first, first + length)):
            return first
    raise LocalFailure(f"There are no {length} free ports in a row from {start} on.")
