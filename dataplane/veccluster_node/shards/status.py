"""How the replicas of this node fare, for the others, for metrics and for people."""

import shutil

from veccluster.model.state import ReadOnly, ShardId
from veccluster_node.replica.ports import Standing
from veccluster_node.runtime.files import disk_usage
from veccluster_node.service.shard_service import ShardReport
from veccluster_node.shards.host import Hosted, ShardHost

ROOM_TO_OPEN = 16 << 20
"""Bytes that must be free on the disk before a replica that failed is opened again."""

WAY_ON = "Restore its directory from a backup, or export what it holds and load that into a new collection."
"""For a shard whose only copy is damaged."""


class Status:
    """Asks the open replicas, which know it without waiting."""

    def __init__(self, host: ShardHost, *, full_at: float) -> None:
        """From `full_at` on, as a part of it, the disk is full."""
        self._host = host
        self._full_at = full_at

    def mendable(self) -> list[ShardId]:
        """Replicas to be opened again: a snapshot lies ready, or something failed under them that opening may mend.

        None of the latter while the disk is full: they would not open, and as they are they answer reads.
        """
        replicas = [(i, h.replica) for i, h in self._host.hosted()]
        staged = [i for i, replica in replicas if replica.staged]
        if shutil.disk_usage(self._host.root).free < ROOM_TO_OPEN:
            return staged
        return staged + [i for i, replica in replicas if replica.failure is not None and i not in staged]

    def broken(self) -> list[ShardId]:
        """Replicas that cannot do their part now."""
        return [i for i, h in self._host.hosted() if h.replica.read_only or h.replica.damaged]

    def issues(self) -> list[str]:
        """What the replicas would have a person know, beside `read_only`."""
        full = []
        if disk_usage(self._host.root) >= self._full_at:
            full = [f"its disk is {self._full_at:.0%} full: upserts are refused until there is room again"]
        return full + [issue for _, h in self._host.hosted() for issue in h.replica.issues]

    def read_only(self) -> list[ReadOnly]:
        """The replicas that take no writes."""
        return [
            ReadOnly(shard=str(i), why=why, way_on="" if h.replica.failure else WAY_ON)
            for i, h in self._host.hosted()
            if (why := h.replica.read_only)
        ]

    def serving(self) -> list[ShardId]:
        """The shards that this node answers for as primary."""
        return [i for i, h in self._host.hosted() if h.is_primary]

    def cut_off(self) -> list[ShardId]:
        """The shards whose writes wait for copies that this node, their primary, does not hear."""
        return [i for i, standing in self.standings().items() if standing.cut_off]

    def standings(self) -> dict[ShardId, Standing]:
        """Where every open replica stands."""
        return {i: h.replica.standing for i, h in self._host.hosted()}

    def reports(self, collection: str | None = None) -> list[ShardReport]:
        """How each served shard fares; `collection` (uuid) narrows it."""
        served = ((i, h) for i, h in self._host.hosted() if h.is_primary)
        return [_report(i, h) for i, h in served if collection in (None, i.collection)]


def _report(shard: ShardId, hosted: Hosted) -> ShardReport:
    stats = hosted.replica.stats()
    return ShardReport(
        shard=shard,
        epoch=hosted.replica.standing.serving or 0,
        vectors=stats.live,
        tail=stats.tail,
        generations=stats.generations,
        indexed=max(0, stats.live - stats.tail),
        building=stats.building,
        disk_bytes=stats.disk_bytes,
        memory_bytes=stats.memory_bytes,
    )
