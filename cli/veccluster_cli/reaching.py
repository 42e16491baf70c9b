"""A client for a person who waits: an address where nobody is is said at once, and waiting is said to be waiting."""

import http.client
import socket
import ssl
import threading
from collections.abc import Coroutine, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from yarl import URL

from veccluster.client import Client
from veccluster.client.addresses import Addresses
from veccluster.errors import Unreachable
from veccluster_cli.output import remark

T = TypeVar("T")

CONNECT_SECONDS = 3.0
SILENT_SECONDS = 2.0
"""After so long without an answer it is said that one is waited for."""


class TellingClient(Client):
    """A `Client` that tells on stderr what it waits for; Unreachable if none of the addresses is a server's."""

    def __init__(self, servers: Sequence[str], *, timeout: float) -> None:
        """As `Client`."""
        addresses = Addresses.parse(servers)
        require_somebody([address.url for address in addresses.known], min(timeout, CONNECT_SECONDS))
        super().__init__(servers, timeout=timeout)
        self._waits_for = f"{addresses}; each request is repeated for up to {timeout:g} s"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        timer = threading.Timer(SILENT_SECONDS, remark, [f"Waiting for an answer from {self._waits_for}."])
        timer.daemon = True
        timer.start()
        try:
            return super()._run(work)
        finally:
            timer.cancel()


def require_somebody(urls: Sequence[URL], timeout: float) -> None:
    """Raise Unreachable, saying why of each, unless one of the addresses may be a server's."""
    found: SimpleQueue[tuple[URL, str | None]] = SimpleQueue()

    def ask(url: URL) -> None:
        found.put((url, trouble_with(url, timeout)))

    for url in urls:  # none is waited for longer than needed, so these are no pool's
        threading.Thread(target=ask, args=[url], daemon=True).start()
    troubles: dict[URL, str] = {}
    while len(troubles) < len(set(urls)):
        url, trouble = found.get()
        if trouble is None:
            return
        troubles[url] = trouble
    raise Unreachable("No server answers: " + ", ".join(f"{url.host}:{url.port} {troubles[url]}" for url in urls))


def trouble_with(url: URL, timeout: float) -> str | None:
    """Why there is certainly no server at an address, in words; None if there may be one, be it busy."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.host or "", url.port, timeout=timeout)
    try:
        connection.connect()
    except (OSError, UnicodeError) as error:
        return _words(error)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse()
    except (OSError, http.client.RemoteDisconnected):
        return None
    except http.client.HTTPException:
        return "does not speak HTTP"
    finally:
        connection.close()
    return None


def _words(error: Exception) -> str:
    match error:
        case socket.gaierror() | UnicodeError():
            return "cannot be reached: no host of this name is known"
        case TimeoutError():
            return "cannot be reached: it does not answer"
        case ConnectionRefusedError():
            return "refuses connections"
        case ssl.SSLError():
            return "cannot be trusted, or does not speak TLS"
        case _:
            return f"cannot be reached: {getattr(error, 'strerror', None) or error}"
