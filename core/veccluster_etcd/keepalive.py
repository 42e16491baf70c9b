"""Keep-alives on connections of their own, asked for by a thread that waits for nobody else.

An event loop that has much to do answers late, and a lease that is renewed late is lost: the busiest node of all would
be taken for dead, and what it did given to others, who have more to do then. So leases are renewed beside the loop, by
gRPC's blocking calls. What takes more than asking member after member (a token that is over, certificates that were
renewed) is left to the loop (`lease.py`).
"""

import random
from typing import Any, Final, NamedTuple

import grpc
from aetcd.rpc import rpc_pb2_grpc

from veccluster.model.state import Revision
from veccluster_etcd import wire
from veccluster_etcd.connection import Connection
from veccluster_etcd.members import CHANNEL_OPTIONS, Pem, Rotation, credentials_of
from veccluster_etcd.values import LeaseId


class Renewed(NamedTuple):
    """What a member said to a keep-alive."""

    granted: float
    """Seconds from when it was asked; 0 when there is no such lease."""
    cluster: int
    revision: Revision


class NotRenewed(Exception):
    """No member renewed the lease."""


class KeepAlive:
    """The connections, for one thread: a channel to the member that answers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._addresses: Final = connection.config.addresses
        self._rotation = Rotation(len(self._addresses), start=random.randrange(len(self._addresses)))
        self._channel: Any = None
        self._opened: tuple[int, Pem] | None = None
        """The member that it goes to, and the TLS files that it was opened with."""

    def ask(self, lease: LeaseId, timeout: float) -> Renewed:
        """Renew the lease once, `timeout` seconds a member."""
        failure = ""
        for _ in self._addresses:
            index = self._rotation.current
            try:
                renewed = self._ask(index, lease, timeout)
            except grpc.RpcError as error:
                failure = f"{self._addresses[index]}: {error.code().name}"
                self._rotation.failed(index)
                continue
            self._rotation.answered(index)
            return renewed
        raise NotRenewed(failure)

    def _ask(self, index: int, lease: LeaseId, timeout: float) -> Renewed:
        metadata = self._connection.metadata(self._connection.known_token)
        stub = rpc_pb2_grpc.LeaseStub(self._open(index))
        call = stub.LeaseKeepAlive(iter([wire.keep_alive_request(lease)]), metadata=metadata, timeout=timeout)
        try:
            reply = next(call)
        finally:
            call.cancel()
        return Renewed(float(reply.TTL), reply.header.cluster_id, Revision(reply.header.revision))

    def _open(self, index: int) -> Any:
        """The channel to that member, with the certificates that the other connections use."""
        wanted = (index, self._connection.pem)
        if self._opened != wanted:
            self.close()
            target = f"dns:///{self._addresses[index]}"
            credentials = credentials_of(self._connection.config, self._connection.pem)
            self._channel = (
                grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
                if credentials
                else grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
            )
            self._opened = wanted
        return self._channel

    def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._opened = None
