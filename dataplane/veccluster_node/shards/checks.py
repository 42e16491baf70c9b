"""Whether the replicas of this node hold what they should: their digests, and looks at what is on the disk."""

import asyncio

import structlog

from veccluster.decisions.integrity import Digest
from veccluster.decisions.replication.values import Configuration, Member
from veccluster.model.state import Seq, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.shards.host import ShardHost
from veccluster_node.shards.local import result_of

log = structlog.get_logger(__name__)


class Checks:
    """Asks the replicas, and tells them what others have found."""

    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def served(self) -> dict[ShardId, tuple[Configuration, Member]]:
        """The shards that this node serves, by the configurations in which it does."""
        standings = ((i, h.replica.standing) for i, h in self._host.hosted())
        return {i: (s.configuration, s.me) for i, s in standings if s.serving is not None and s.configuration}

    async def digests(self, shard: ShardId) -> dict[Seq, Digest]:
        """What a replica's rows are by their digests."""
        return await result_of(self._host.here(shard).digests())

    async def digests_of(self, request: m.GetDigests) -> m.Digests:
        """Those of the replicas that are in sync here."""
        here = [(i, h.replica) for i in request.shards if (h := self._host.get(i)) and h.replica.standing.in_sync]
        waiting = [result_of(replica.digests()) for _, replica in here]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        found = [
            m.ShardDigests(i, replica.standing.me.incarnation, {int(s): d for s, d in notes.items()})
            for (i, replica), notes in zip(here, told, strict=True)
            if not isinstance(notes, BaseException)
        ]
        return m.Digests(found)

    async def begin_anew(self, request: m.BeginAnew) -> m.Known:
        """Another node has found that the rows of a replica here are wrong."""
        hosted = self._host.get(request.shard)
        if hosted is None or hosted.replica.standing.me.incarnation != request.incarnation:
            return m.Known(known=False)
        hosted.replica.condemn(request.why)
        return m.Known(known=True)

    def scrub(self, shard: ShardId, rate: float, *, rows_only: bool) -> dict[str, str]:
        """Read what a replica has on the disk (`Replica.scrub`), and count and report what is found; blocks."""
        hosted, measures = self._host.get(shard), self._host.measures
        if hosted is None:
            return {}
        found = hosted.replica.scrub(rate, rows_only=rows_only, read=measures.scrubbed.inc)
        for what, why in found.items():
            log.error("damage_found", shard=str(shard), what=what, detail=why)
            measures.found.labels(what).inc()
        return found
