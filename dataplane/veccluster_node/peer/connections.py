"""The one door through which this node connects to others: their URLs, and the sessions in which they are asked.

Whatever is to hold for every connection between nodes is decided here: how soon one is given up, how long an address is
believed, and one day how it is encrypted.
"""

import errno
import socket
from collections.abc import Callable

import aiohttp
from aiohttp.connector import AddrInfoType

from veccluster.model.state import Node

CONNECT_TIMEOUT = 1.0
SILENCE = 3.0
"""Seconds after which a connection is given up whose other end does not even acknowledge what was sent to it."""
ADDRESS_TTL = 1
"""Seconds for which a peer's address is believed: in Kubernetes a pod that comes back has another one."""
KEPT = 60.0
"""Seconds for which a connection is kept on which nothing is asked."""

MakeSocket = Callable[[AddrInfoType], socket.socket]


def url(member: Node, path: str) -> str:
    """Where a node answers other nodes."""
    return f"http://{member.peer_address}{path}"


def impatient_socket(address: AddrInfoType, silence: float = SILENCE) -> socket.socket:
    """A socket that notices when the machine at the other end has gone without a word for so many seconds.

    Otherwise a request on a connection from before would wait for its answer until its own time is over, even when
    the peer has long been back elsewhere.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence * 1000))
    return made


def session(*, total: float | None = None, make: MakeSocket = impatient_socket) -> aiohttp.ClientSession:
    """Connections to other nodes, for one loop; a request on them gets `total` seconds, or as many as it takes.

    As many connections at once as there are questions: one that waits must not hold up another.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT, ttl_dns_cache=ADDRESS_TTL, socket_factory=make)
    limits = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_TIMEOUT)
    return aiohttp.ClientSession(connector=connector, timeout=limits, auto_decompress=False)


def is_refused(error: BaseException) -> bool:
    """Whether a machine answered that nothing listens at that port."""
    return isinstance(error, aiohttp.ClientConnectorError) and error.errno == errno.ECONNREFUSED
