"""The client: reads, writes, transactions, watches, leases and elections on etcd v3."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any, Final, Self

from grpc import aio

from veccluster.errors import MetadataRefused, MetadataUnavailable
from veccluster.model.state import Revision
from veccluster_etcd import wire
from veccluster_etcd.administration import Administration
from veccluster_etcd.config import EtcdConfig
from veccluster_etcd.connection import Connection, describe
from veccluster_etcd.lease import Lease, grant
from veccluster_etcd.listing import list_range
from veccluster_etcd.members import Member, Metadata, NotConnected
from veccluster_etcd.values import (
    NO_LEASE,
    Compare,
    EndpointStatus,
    Get,
    GetPrefix,
    KeyValue,
    LeaseId,
    Listing,
    Operation,
    Put,
    Snapshot,
    TxnResult,
    WatchEvents,
)
from veccluster_etcd.watch import follow, watch

_ANY_KEY: Final = "\x00"


class EtcdClient:
    """A client of one etcd cluster, for one event loop.

    Every operation takes a `timeout` in seconds for all its tries together (default: the configuration's) and raises:
    `MetadataUnavailable` when no member did it in time, and it is certain that nothing was changed;
    `OutcomeUnknown` (writes only) when it may have been done: read, then decide;
    `MetadataRefused` when etcd said no for good (password, permission, a limit).
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._connection = Connection(config)
        self.administration: Final = Administration(self._connection)

    def open(self) -> None:
        """Make the connections and ask nothing, for who wants to know how an etcd is that may not work."""
        self._connection.open()

    async def connect(self) -> None:
        """Open the connections and make sure that etcd answers us, so that a wrong configuration shows at once."""
        self.open()
        try:
            await self._connection.token()
            await self.get(_ANY_KEY)
        except MetadataRefused as e:
            if "permission denied" not in e.detail:
                await self.close()
                raise
            # We may not read just any key, but etcd knows who we are.
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End all requests, watches and renewals. Leases end when their time is over unless they were revoked."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """The member that is asked at present, as host:port."""
        return self._connection.current.address

    async def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        """The key as it is now (linearizable), None when it is not there."""
        listing = await list_range(self._connection, wire.KeyRange.key(key), timeout=timeout)
        return listing.items[0] if listing.items else None

    async def range(
        self,
        prefix: str,
        *,
        limit: int | None = None,
        revision: Revision | None = None,
        timeout: float | None = None,
    ) -> Listing:
        """All keys that start with `prefix`, or the first `limit`, as of one revision, however many there are.

        `timeout` is for each page of a few megabytes. Raises `Compacted` when `revision` is gone.
        """
        return await list_range(
            self._connection, wire.KeyRange.prefix(prefix), limit=limit, revision=revision, timeout=timeout
        )

    async def put(self, key: str, value: bytes, *, lease: LeaseId = NO_LEASE, timeout: float | None = None) -> Revision:
        """Write a key; the revision at which it was written."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            request = wire.put_request(Put(key, value, lease))
            return await member.kv.Put(request, metadata=metadata, timeout=left)

        reply = await self._connection.call(attempt, repeatable=False, timeout=timeout)
        return Revision(reply.header.revision)

    async def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Delete a key; whether it was there."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            request = wire.delete_request(wire.KeyRange.key(key))
            return await member.kv.DeleteRange(request, metadata=metadata, timeout=left)

        reply = await self._connection.call(attempt, repeatable=False, timeout=timeout)
        return bool(reply.deleted)

    async def txn(
        self,
        compares: Iterable[Compare],
        success: Iterable[Operation],
        failure: Iterable[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """Do `success` if all `compares` hold, else `failure`, in one step; etcd allows 128 operations in each.

        A transaction that only reads is asked of member after member like any read.
        """
        success, failure = tuple(success), tuple(failure)
        request = wire.txn_request(compares, success, failure)

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            return await member.kv.Txn(request, metadata=metadata, timeout=left)

        reads_only = all(isinstance(o, Get | GetPrefix) for o in (*success, *failure))
        return wire.txn_result(await self._connection.call(attempt, repeatable=reads_only, timeout=timeout))

    def watch(
        self, prefix: str, start_revision: Revision | None = None, *, exact: bool = False
    ) -> AsyncGenerator[WatchEvents, None]:
        """Every change of the keys under `prefix` (or of the key itself if `exact`), once and in order, for ever.

        From `start_revision` on, or from now. An empty batch says that the watch has been set up, at the start and
        after a failure. Raises `Compacted` when the history needed is gone, and `WentBack` when etcd has not come so
        far; `follow` deals with both.
        """
        return watch(self._connection, _range_of(prefix, exact=exact), start_revision)

    def follow(
        self, prefix: str, *, exact: bool = False, at_least_every: float | None = None
    ) -> AsyncGenerator[Snapshot | WatchEvents, None]:
        """First all keys under `prefix` (or the key itself if `exact`) as a `Snapshot`, then every change, for ever.

        No change is lost and none is seen twice; what happened during a time whose history was compacted shows as the
        difference. When etcd was restored to an older state, or is another one, a `Snapshot` comes again that says so:
        whatever was seen before, revisions above all, means nothing in it. A batch without events comes when
        `at_least_every` seconds brought no change.
        """
        return follow(self._connection, _range_of(prefix, exact=exact), at_least_every)

    async def grant(self, ttl: float, *, timeout: float | None = None) -> Lease:
        """A lease of `ttl` seconds (rounded up to whole ones, and to etcd's minimum) that renews itself."""
        return await grant(self._connection, ttl, timeout)

    async def status(self) -> tuple[EndpointStatus, ...]:
        """What each member says of itself, in the order of the endpoints; one that cannot be asked has an `error`.

        With authentication on, etcd 3.6 tells nobody but its administrators.
        """
        return tuple(await asyncio.gather(*(self._status_of(m) for m in self._connection.members)))

    async def _status_of(self, member: Member) -> EndpointStatus:
        timeout = self._connection.config.attempt_timeout
        try:
            await member.connected(self._connection.config.connect_timeout)
            metadata = self._connection.metadata(await self._connection.token(), require_leader=False)
            return await _ask_status(member, metadata, timeout)
        except aio.AioRpcError as e:
            return EndpointStatus(member.address, error=describe(e))
        except (NotConnected, MetadataUnavailable, MetadataRefused) as e:
            return EndpointStatus(member.address, error=str(e))


async def _ask_status(member: Member, metadata: Metadata, timeout: float) -> EndpointStatus:
    reply = await member.maintenance.Status(wire.status_request(), metadata=metadata, timeout=timeout)
    return wire.endpoint_status(member.address, reply)


def _range_of(prefix: str, *, exact: bool) -> wire.KeyRange:
    return wire.KeyRange.key(prefix) if exact else wire.KeyRange.prefix(prefix)
