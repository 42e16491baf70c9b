"""Watches: every change of a range once and in order, whatever happens to the members.

`watch` goes on from the revision after the last one delivered; `follow` starts from a listing and lists again when the
history was compacted meanwhile, or when etcd is not what it was: it was restored to an older state, and its revisions
count anew. Both go on for ever; they end when the consumer stops, or by `MetadataRefused`.

What is trusted to mean "nothing happened up to here": only the progress notices that a member sends on its own. The
answer to a progress *request* is a sign of life and nothing else: before 3.5.8 etcd sends it past events that are
still on their way (etcd issue 15220).
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any

import structlog
from grpc import aio

from veccluster.decisions import etcd_history
from veccluster.errors import MetadataRefused, MetadataUnavailable
from veccluster.model.state import Revision
from veccluster_etcd import wire
from veccluster_etcd.connection import ClientClosed, Connection, describe, pause
from veccluster_etcd.listing import list_range, newest
from veccluster_etcd.members import Member, NotConnected, Stream, StreamEnded
from veccluster_etcd.values import Compacted, Event, Listing, Snapshot, WatchEvents, WentBack
from veccluster_etcd.verdicts import Verdict, judge

_REJECTIONS = 2
"""How often a denied watch is tried again with a new token: older etcd says "permission denied" of a stale one."""

log = structlog.get_logger(__name__)


class _Rejected(Exception):
    """The member did not let us watch: the token is stale or the user may not; `token` is the one that we gave."""

    def __init__(self, reason: str, token: str | None) -> None:
        super().__init__(reason)
        self.token = token


async def watch(
    connection: Connection, keys: wire.KeyRange, start_revision: Revision | None = None
) -> AsyncGenerator[WatchEvents, None]:
    """Yield what happens in `keys` from `start_revision` on, or from now; raises `Compacted` if that is gone, and
    `WentBack` if etcd has not come so far or is another one.

    An empty batch says that the watch has been set up, at the start and after a failure, or that a member reported
    progress: nothing else happened up to its revision.
    """
    following = start_revision or Revision(0)
    seen = etcd_history.Seen()
    failures = rejections = 0
    while True:
        member = connection.current
        try:
            async with aclosing(_one_stream(connection, member, keys, following, seen)) as stream:
                async for batch in stream:
                    failures = rejections = 0
                    fresh = tuple(e for e in batch.events if e.revision >= following)
                    following = max(Revision(batch.revision + 1), following)
                    if fresh or not batch.events:
                        yield WatchEvents(batch.revision, fresh, batch.is_new)
        except _Rejected as e:
            rejections += 1
            if not connection.config.logs_in or rejections > _REJECTIONS:
                raise MetadataRefused(f"etcd does not let this user watch {keys.start!r}: {e}") from None
            connection.forget_token(e.token)
        except ClientClosed:
            raise
        except (NotConnected, StreamEnded, MetadataUnavailable, aio.AioRpcError) as e:
            connection.failed(member, describe(e) if isinstance(e, aio.AioRpcError) else str(e))
            failures += 1
            await asyncio.sleep(pause(failures))


async def _check_history(connection: Connection, created: Any, start: Revision, seen: etcd_history.Seen) -> None:
    """Raise `WentBack` unless the etcd of a watch that was set up is the one of before, and has come as far.

    A member that is behind the others says a smaller revision, too: all of them together know.
    """
    cluster = created.header.cluster_id
    if (seen.cluster or cluster) == cluster and created.header.revision >= start - 1:
        seen.cluster = cluster
        return
    seen.revision = max(seen.revision, Revision(start - 1))
    now, revision = await newest(connection)
    if why := etcd_history.went_back(seen, now, revision):
        raise WentBack(why)
    seen.cluster = now


async def _one_stream(
    connection: Connection, member: Member, keys: wire.KeyRange, start: Revision, seen: etcd_history.Seen
) -> AsyncGenerator[WatchEvents, None]:
    """The batches of one watch at one member until it fails, which shows as one of the exceptions that `watch` handles.

    Changes of one revision come together: what etcd cuts into fragments is put together again.
    """
    await member.connected(connection.config.connect_timeout)
    token = await connection.token()
    async with member.stream(
        member.watch.Watch, connection.metadata(token), connection.config.attempt_timeout
    ) as stream:
        await stream.send(wire.watch_request(keys, start))
        created = await stream.receive(connection.config.attempt_timeout)
        if created is None:
            raise StreamEnded(f"{member.address} did not set up a watch in time")
        _check_cancelled(created, token)
        await _check_history(connection, created, start, seen)
        connection.answered(member)
        yield WatchEvents(Revision(start - 1) if start else Revision(created.header.revision), (), is_new=True)
        parts: list[Event] = []
        while True:
            reply = await _next_reply(connection, member, stream)
            _check_cancelled(reply, token)
            parts.extend(wire.watch_events(reply.events))
            if reply.fragment:
                continue
            if parts:
                yield WatchEvents(parts[-1].revision, tuple(parts))
                parts = []
            elif reply.watch_id == created.watch_id:
                yield WatchEvents(Revision(reply.header.revision), ())


async def _next_reply(connection: Connection, member: Member, stream: Stream) -> Any:
    """The next message; a member that is silent is asked for a sign of life and left when it gives none."""
    reply = await stream.receive(connection.config.watch_silence)
    if reply is None:
        await stream.send(wire.progress_request())
        reply = await stream.receive(connection.config.watch_patience)
    if reply is None:
        raise StreamEnded(f"{member.address} is silent")
    return reply


def _check_cancelled(reply: Any, token: str | None) -> None:
    """Raise what a cancellation by the server means."""
    if not reply.canceled:
        return
    if reply.compact_revision:
        raise Compacted(f"etcd has compacted the revisions before {reply.compact_revision}")
    if "permission denied" in reply.cancel_reason or judge("", reply.cancel_reason) is Verdict.unauthenticated:
        raise _Rejected(reply.cancel_reason, token)
    raise StreamEnded(f"etcd cancelled the watch: {reply.cancel_reason or 'no reason given'}")


async def follow(
    connection: Connection, keys: wire.KeyRange, at_least_every: float | None = None
) -> AsyncGenerator[Snapshot | WatchEvents, None]:
    """Yield what `keys` holds, then every change; see `EtcdClient.follow`."""
    updates = _snapshot_and_changes(connection, keys)
    upcoming: asyncio.Task[Snapshot | WatchEvents] | None = None
    revision: Revision | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(updates))
            # Before the first listing there is nothing to repeat, so that the wait for it has no end.
            await asyncio.wait({upcoming}, timeout=at_least_every if revision is not None else None)
            if upcoming.done():
                update, upcoming = upcoming.result(), None
                revision = update.revision
                yield update
            elif revision is not None:
                yield WatchEvents(revision, ())
    finally:
        if upcoming:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        await updates.aclose()


async def _snapshot_and_changes(
    connection: Connection, keys: wire.KeyRange
) -> AsyncGenerator[Snapshot | WatchEvents, None]:
    """A listing, then changes; after a compaction the differences to a new listing, and where etcd went back, that."""
    listing = await _list_patiently(connection, keys)
    seen = etcd_history.Seen()
    while True:
        why = _go_on_from(listing, seen)
        yield Snapshot(listing.revision, {kv.key: kv for kv in listing.items}, listing.cluster, why)
        async with aclosing(_changes(connection, keys, seen)) as batches:
            async for batch in batches:
                if isinstance(batch, Listing):
                    listing = batch
                    break
                yield batch


def _go_on_from(listing: Listing, seen: etcd_history.Seen) -> str:
    """Begin anew with this listing; why it does not continue what was seen before, if anything was."""
    keys = {kv.key: kv.mod_revision for kv in listing.items}
    why = etcd_history.went_back(seen, listing.cluster, listing.revision, keys) if seen.cluster else ""
    seen.cluster, seen.revision, seen.keys = listing.cluster, listing.revision, keys
    return why


async def _changes(
    connection: Connection, keys: wire.KeyRange, seen: etcd_history.Seen
) -> AsyncGenerator[WatchEvents | Listing, None]:
    """Changes of what was `seen`, which is kept up to date; a listing as the last one, if etcd went back."""
    while True:
        try:
            async with aclosing(watch(connection, keys, Revision(seen.revision + 1))) as batches:
                async for batch in batches:
                    if batch.is_new:
                        # It may have gone back and have come further again since: only its keys tell.
                        listing = await _list_patiently(connection, keys)
                        if _is_another(listing, seen):
                            yield listing
                            return
                        continue
                    _note(seen.keys, batch.events)
                    seen.revision = max(seen.revision, batch.revision)
                    if batch.events:
                        yield batch
        except (Compacted, WentBack) as e:
            log.info("etcd.watch_ended", range=wire.to_key(keys.start), reason=e.detail)
            listing = await _list_patiently(connection, keys)
            if _is_another(listing, seen):
                yield listing
                return
            events = differences(seen.keys, listing)
            _note(seen.keys, events)
            seen.revision = listing.revision
            if events:
                yield WatchEvents(listing.revision, events)


def _is_another(listing: Listing, seen: etcd_history.Seen) -> bool:
    keys = {kv.key: kv.mod_revision for kv in listing.items}
    return bool(etcd_history.went_back(seen, listing.cluster, listing.revision, keys))


async def _list_patiently(connection: Connection, keys: wire.KeyRange) -> Listing:
    """List, however long etcd is away."""
    failures = 0
    while True:
        try:
            return await list_range(connection, keys)
        except ClientClosed:
            raise
        except (MetadataUnavailable, Compacted) as e:
            failures += 1
            log.warning("etcd.listing_failed", range=wire.to_key(keys.start), reason=e.detail)
            await asyncio.sleep(pause(failures))


def _note(delivered: MutableMapping[str, Revision], events: tuple[Event, ...]) -> None:
    for event in events:
        if event.now is None:
            delivered.pop(event.key, None)
        else:
            delivered[event.key] = event.revision


def differences(delivered: Mapping[str, Revision], listing: Listing) -> tuple[Event, ...]:
    """The events that lead from what a follower has seen (key to `mod_revision`) to `listing`.

    Puts in the order of their revisions, then deletions, of which only the revision by which they happened is known.
    """
    puts = [Event(kv.key, kv.mod_revision, kv) for kv in listing.items if delivered.get(kv.key) != kv.mod_revision]
    present = {kv.key for kv in listing.items}
    deletions = [Event(key, listing.revision, None) for key in delivered if key not in present]
    return (*sorted(puts, key=lambda e: e.revision), *deletions)
