"""The members of etcd: a gRPC channel to each, and which of them to ask next.

A channel a member rather than one for all: gRPC's own balancing would keep asking a member that answers but has no
leader, and would hide from us which member a request went to.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from aetcd.rpc import rpc_pb2_grpc
from grpc import aio

from veccluster import backoff
from veccluster_etcd.config import EtcdConfig

_COOLDOWN_FIRST: Final = 0.25
_COOLDOWN_LONGEST: Final = 4.0
"""Seconds for which a failed member is left alone while another can be asked; doubled at each failure in a row."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # gRPC waits up to two minutes before it tries a lost server again, and twenty seconds for one to accept.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),
    # A pod that comes back has another address: look it up again at once, not every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.service_config_disable_resolution", 1),
    # etcd ends connections that ping more often than every 5 s (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Channels to one address share a connection, and its backoff, unless told not to.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd is never behind the proxy that http_proxy names.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
)

_UNSETTLED: Final = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class NotConnected(Exception):
    """There is no connection to the member, so that nothing was sent."""


class StreamEnded(Exception):
    """The member ended a stream, or said nothing for too long."""


class Member:
    """One etcd member: its channel, opened at first use, and the stubs of etcd's services on it."""

    def __init__(self, address: str, credentials: Any | None) -> None:
        self.address = address
        self._open(credentials)

    def _open(self, credentials: Any | None) -> None:
        address = self.address
        target = f"dns:///{address}"
        self._channel: Any = (
            aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
            if credentials
            else aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        )
        self.kv: Any = rpc_pb2_grpc.KVStub(self._channel)
        self.watch: Any = rpc_pb2_grpc.WatchStub(self._channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(self._channel)
        self.auth: Any = rpc_pb2_grpc.AuthStub(self._channel)
        self.cluster: Any = rpc_pb2_grpc.ClusterStub(self._channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(self._channel)

    async def connected(self, timeout: float) -> None:
        """Return when it is settled whether there is a connection; `NotConnected` if not within `timeout` seconds.

        Asked before every request, so that one that never left this process is told from one whose answer was lost.
        Where the connection has failed we return, too: gRPC then refuses the request at once and says why.
        """
        try:
            async with asyncio.timeout(timeout):
                while (state := self._channel.get_state(try_to_connect=True)) in _UNSETTLED:
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise NotConnected(f"{self.address} did not accept a connection within {timeout:g} s") from None

    @asynccontextmanager
    async def stream(self, method: Any, metadata: "Metadata", patience: float) -> AsyncIterator["Stream"]:
        """A stream of `method`, ended on the way out; a message that cannot be sent in `patience` seconds ends it."""
        stream = Stream(self.address, method(metadata=metadata), patience)
        try:
            yield stream
        finally:
            await stream.close()

    async def reopen(self, credentials: Any | None) -> None:
        """Connect anew with other credentials; what is under way ends as when the connection is lost."""
        before = self._channel
        self._open(credentials)
        await before.close()

    async def close(self) -> None:
        """End the connection and every request on it."""
        await self._channel.close()


Metadata = tuple[tuple[str, str], ...]


class Stream:
    """A gRPC stream in both directions with reads that can be given up and taken up again.

    Cancelling `read()` of grpc.aio cancels the whole stream, so that `wait_for` cannot be used on it: the one read
    that is under way is kept as a task across calls of `receive`.
    """

    def __init__(self, address: str, call: Any, patience: float) -> None:
        self._address = address
        self._call = call
        self._patience = patience
        self._reading: asyncio.Task[Any] | None = None

    async def send(self, message: Any) -> None:
        """Send `message`; raises `grpc.aio.AioRpcError` or `StreamEnded`."""
        try:
            async with asyncio.timeout(self._patience):
                await self._call.write(message)
        except TimeoutError:
            raise StreamEnded(f"{self._address} took no message within {self._patience:g} s") from None
        except asyncio.InvalidStateError:
            # grpc.aio says this of a stream that ended in the meantime; the read knows why.
            await self.receive(self._patience)
            raise StreamEnded(f"{self._address} ended the stream") from None
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            raise StreamEnded(f"the connection to {self._address} was closed") from None

    async def receive(self, timeout: float) -> Any | None:
        """The next message, None when there is none within `timeout` seconds.

        Raises `grpc.aio.AioRpcError` when the stream failed and `StreamEnded` when the member closed it.
        """
        reading = self._reading or asyncio.ensure_future(self._call.read())
        self._reading = reading
        done, _ = await asyncio.wait({reading}, timeout=timeout)
        if not done:
            return None
        self._reading = None
        if reading.cancelled():
            raise StreamEnded(f"the connection to {self._address} was closed")
        message = reading.result()
        if message is aio.EOF:
            raise StreamEnded(f"{self._address} ended the stream")
        return message

    async def close(self) -> None:
        """End the stream; what the read under way had to say is of no interest any more."""
        self._call.cancel()
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


class Rotation:
    """Which of `count` members to ask: the same as long as it answers, then the next that has not just failed.

    `clock` gives seconds and only ever goes forward.
    """

    def __init__(self, count: int, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._current = start % count
        self._clock = clock
        self._failures = [0] * count
        self._rests_until = [0.0] * count

    @property
    def current(self) -> int:
        """The member to ask now."""
        return self._current

    def failed(self, index: int) -> bool:
        """Leave member `index` alone for a while; True when this is news: it had not failed just before."""
        self._failures[index] += 1
        rest = backoff.pause(_COOLDOWN_FIRST, self._failures[index], _COOLDOWN_LONGEST)
        self._rests_until[index] = self._clock() + rest
        if index == self._current:
            self._current = self._next()
        return self._failures[index] == 1

    def answered(self, index: int) -> None:
        """Member `index` is well."""
        self._failures[index] = 0
        self._rests_until[index] = 0.0

    def _next(self) -> int:
        """The first after the current one that is not resting; when all are, the one that has rested longest."""
        count = len(self._failures)
        order = [(self._current + step) % count for step in range(1, count + 1)]
        now = self._clock()
        rested = [i for i in order if self._rests_until[i] <= now]
        return rested[0] if rested else min(order, key=lambda i: self._rests_until[i])


def cancelled_from_outside() -> bool:
    """Whether the running task was asked to cancel; if not, it is grpc.aio that says so of a closed channel."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


Pem = tuple[bytes | None, bytes | None, bytes | None]
"""What the TLS files hold: authority, certificate, key."""


def pem_of(config: EtcdConfig) -> Pem:
    """The TLS files as they are now."""
    ca, cert, key = (f.read_bytes() if f else None for f in (config.ca_file, config.cert_file, config.key_file))
    return ca, cert, key


def credentials_of(config: EtcdConfig, pem: Pem) -> Any | None:
    """gRPC's form of them; None without TLS."""
    if not config.uses_tls:
        return None
    ca, cert, key = pem
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
