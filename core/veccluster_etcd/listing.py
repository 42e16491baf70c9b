"""Read ranges of any size: page after page, all of one revision."""

from typing import Any, Final

from veccluster.model.state import Revision
from veccluster_etcd import wire
from veccluster_etcd.connection import Connection
from veccluster_etcd.members import Member, Metadata
from veccluster_etcd.values import Compacted, KeyValue, Listing

_FIRST_PAGE: Final = 256
_LARGEST_PAGE: Final = 4096
_PAGE_BYTES: Final = 4 << 20
"""What a page should weigh: large messages hold up everything else on the connection."""
_RESTARTS: Final = 3


async def list_range(
    connection: Connection,
    keys: wire.KeyRange,
    *,
    limit: int | None = None,
    revision: Revision | None = None,
    timeout: float | None = None,
) -> Listing:
    """The keys of a range at `revision`, by default the newest. `timeout` (seconds) is for each page.

    Begins again when the revision it started at was compacted between two pages; raises `Compacted` for one that was
    asked for.
    """
    for _ in range(_RESTARTS):
        try:
            return await _pages(connection, keys, limit, revision, timeout)
        except Compacted:
            if revision is not None:
                raise
    return await _pages(connection, keys, limit, revision, timeout)


async def _pages(
    connection: Connection, keys: wire.KeyRange, limit: int | None, revision: Revision | None, timeout: float | None
) -> Listing:
    items: list[KeyValue] = []
    page, cluster = _FIRST_PAGE, 0
    while True:
        size = page if limit is None else min(page, limit - len(items))
        reply = await _range(connection, wire.range_request(keys, size, revision or 0), timeout)
        revision = revision or Revision(reply.header.revision)
        if cluster and reply.header.cluster_id != cluster:
            raise Compacted("another etcd cluster answers in the middle of a listing")  # it begins again
        cluster = reply.header.cluster_id
        items.extend(wire.key_values(reply.kvs))
        if not reply.more or len(items) == limit:
            return Listing(tuple(items), revision, cluster)
        keys = keys.after(items[-1].key)
        page = next_page(len(reply.kvs), reply.ByteSize())


async def newest(connection: Connection) -> tuple[int, Revision]:
    """The id of the etcd cluster and its revision, as a majority of its members has them now."""
    reply = await _range(connection, wire.range_request(wire.KeyRange.key("\x00"), 1), None)
    return reply.header.cluster_id, Revision(reply.header.revision)


async def _range(connection: Connection, request: Any, timeout: float | None) -> Any:
    async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
        return await member.kv.Range(request, metadata=metadata, timeout=left)

    return await connection.call(attempt, repeatable=True, timeout=timeout)


def next_page(keys: int, size: int) -> int:
    """How many keys to ask for after a page of `keys` keys weighed `size` bytes."""
    return max(1, min(_LARGEST_PAGE, keys * _PAGE_BYTES // max(1, size)))
