"""Election of one leader: whoever creates the key holds the term, until the key is gone.

A term is known by the key's `create_revision`, which no other term ever has. Compared in every transaction of the
leader (`Term.fence`), it makes sure that a leader that has lost its term, and does not know it yet, changes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from veccluster.errors import MetadataUnavailable, OutcomeUnknown
from veccluster.model.state import Revision
from veccluster_etcd.connection import ClientClosed
from veccluster_etcd.lease import Lease
from veccluster_etcd.values import (
    Compacted,
    Compare,
    CreateRevision,
    Delete,
    Found,
    Get,
    KeyValue,
    Put,
    Snapshot,
    WentBack,
)

if TYPE_CHECKING:
    from veccluster_etcd.client import EtcdClient

log = structlog.get_logger(__name__)

_RESIGNATIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Term:
    """A time as leader: the election's key as it was created for us."""

    key: str
    create_revision: Revision
    within: Compare | None = None
    """What else must hold in every transaction of the leader, if it has said so."""

    def fence(self) -> CreateRevision:
        """Holds for as long as this term does: to be compared in every transaction of the leader."""
        return CreateRevision(self.key, "==", self.create_revision)


class Election:
    """A candidate for the leadership that `key` stands for; `value` tells the others who leads.

    `lease` decides how long a leader that has died is still the leader, and belongs to one candidate in one election.
    """

    def __init__(self, client: "EtcdClient", key: str, lease: Lease, value: bytes) -> None:
        self._client = client
        self._key = key
        self._lease = lease
        self._value = value

    async def campaign(self) -> Term:
        """Wait until we are elected, however long etcd is away; raises `LeaseLost` when the lease ends before that.

        If this is cancelled we may be elected all the same: revoke the lease.
        """
        campaigning = asyncio.ensure_future(self._campaign())
        losing = asyncio.ensure_future(self._lease.lost.wait())
        try:
            await asyncio.wait({campaigning, losing}, return_when=asyncio.FIRST_COMPLETED)
            self._lease.check()
            return campaigning.result()
        finally:
            for task in (campaigning, losing):
                task.cancel()
            await asyncio.gather(campaigning, losing, return_exceptions=True)

    async def _campaign(self) -> Term:
        while True:
            try:
                term, seen = await self._try_once()
            except ClientClosed:
                raise
            except (OutcomeUnknown, MetadataUnavailable) as e:
                # If the key was created after all, the next try finds it with our lease.
                log.info("etcd.campaign_interrupted", key=self._key, reason=e.detail)
                continue
            if term:
                log.info("etcd.elected", key=self._key, term=term.create_revision)
                return term
            await self._vacancy(seen)

    async def _try_once(self) -> tuple[Term | None, Revision]:
        """Create the key if there is none. Our term, if we have it by now, and the revision at which that was so."""
        result = await self._client.txn(
            [CreateRevision(self._key, "==", 0)], [Put(self._key, self._value, self._lease.id)], [Get(self._key)]
        )
        if result.succeeded:
            return Term(self._key, result.revision), result.revision
        (holder,) = result.responses
        kv = holder.one if isinstance(holder, Found) else None
        ours = kv is not None and kv.lease == self._lease.id
        return Term(self._key, kv.create_revision) if kv and ours else None, result.revision

    async def _vacancy(self, since: Revision) -> None:
        """Return once the key was deleted after revision `since`."""
        try:
            async with aclosing(self._client.watch(self._key, Revision(since + 1), exact=True)) as batches:
                async for batch in batches:
                    if any(e.now is None for e in batch.events):
                        return
        except (Compacted, WentBack):
            return

    async def resign(self, term: Term) -> None:
        """Give `term` up. When that raises `OutcomeUnknown` or `MetadataUnavailable`, the lease ends it in its time."""
        for _ in range(_RESIGNATIONS - 1):
            # Unlike other writes this one may be repeated: the same term cannot be deleted twice.
            with suppress(OutcomeUnknown):
                await self._client.txn([term.fence()], [Delete(term.key)])
                return
        await self._client.txn([term.fence()], [Delete(term.key)])

    async def leader(self) -> KeyValue | None:
        """Who leads now: the key with the leader's value, None between two terms."""
        return await self._client.get(self._key)

    async def observe(self) -> AsyncGenerator[KeyValue | None, None]:
        """Yield who leads, now and at every change; None between two terms."""
        async with aclosing(self._client.follow(self._key, exact=True)) as updates:
            async for update in updates:
                if isinstance(update, Snapshot):
                    yield update.items.get(self._key)
                else:
                    for event in update.events:
                        yield event.now
