"""Carry out what the node decides about its own shards, round after round.

Each shard is worked on by one task at a time, so that one that takes long to open holds up no other; what fails is
tried again after a pause that grows, and is an issue that a person can read until it succeeds.
"""

import asyncio
import time
from collections.abc import Awaitable

import structlog

from veccluster.decisions import hosting
from veccluster.errors import VecClusterError
from veccluster.model.state import NodeId, Shard, ShardId
from veccluster_node.host import ShardHost
from veccluster_node.metadata.store import Store

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

log = structlog.get_logger(__name__)


class Reconciler:
    """The shards of one node, kept as the cluster's state asks."""

    def __init__(self, me: NodeId, incarnation: str, store: Store, host: ShardHost) -> None:
        self._me = me
        self._incarnation = incarnation
        self._store = store
        self._host = host
        self._busy: dict[ShardId, asyncio.Task[None]] = {}
        self._failures: dict[ShardId, tuple[int, float, str]] = {}
        """Tries, when to try again, and what went wrong."""

    async def run(self) -> None:
        """Reconcile for ever."""
        async for _ in self._store.changes(at_least_every=FIRST_PAUSE):
            self.round()

    def round(self) -> None:
        """Look once and start what is to be done."""
        for broken in self._host.mendable():
            self._start(broken, self._host.shut(broken))
        for action in hosting.decide(self._me, self._incarnation, self._store.state, self._host.local()):
            match action:
                case hosting.StopServing(lost):
                    self._host.stop_serving(lost)
                case hosting.Open(record, collection):
                    self._start(record.id, self._host.open(record.id, collection))
                case hosting.TakeEpoch(record):
                    self._start(record.id, self._take_epoch(record))
                case hosting.Delete(dropped):
                    self._start(dropped, self._host.delete(dropped))
                case hosting.ReportDropped(uuid) if not self._works_on(uuid):
                    self._start(ShardId(uuid, REPORT), self._store.report_dropped(uuid, self._me))

    @property
    def settled(self) -> bool:
        """Whether every shard of this node is served, or known to be beyond its power."""
        if self._busy:
            return False
        left = hosting.decide(self._me, self._incarnation, self._store.state, self._host.local())
        return all(isinstance(a, hosting.Open) and a.shard.id in self._failures for a in left)

    def issues(self) -> list[str]:
        """What a person should know about the shards of this node."""
        state, local = self._store.state, self._host.local()
        lost = hosting.lost(self._me, self._incarnation, state, local)
        return [
            *(f"shard {shard}: {why}" for shard, (_, _, why) in sorted(self._failures.items())),
            *(f"shard {s}: its directory is gone from the disk; bring it back, or delete the collection" for s in lost),
            *(
                f"data of shard {s} is here, but no record names this node for it: it is kept and not read. If it is "
                f"needed, bring back the etcd that knew it; once it is known not to be, stop the node and remove "
                f"{self._host.directory(s)}"
                for s in self._orphans()
            ),
            *self._host.issues(),
        ]

    def recovering(self) -> list[ShardId]:
        """Shards that are being opened."""
        return sorted(s for s in self._busy if s.number != REPORT)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._busy.values():
            task.cancel()
        await asyncio.gather(*self._busy.values(), return_exceptions=True)

    def _orphans(self) -> list[ShardId]:
        orphans = hosting.orphans(self._me, self._store.state, self._host.local())
        return [s for s in orphans if s not in self._busy] if self._store.state.revision else []

    def _works_on(self, uuid: str) -> bool:
        """Whether a task is about this collection: one that opens a shard may be about to make its directory."""
        return any(s.collection == uuid for s in self._busy)

    async def _take_epoch(self, shard: Shard) -> None:
        epoch = await self._store.take_epoch(shard)
        if epoch is not None:
            self._host.serve(shard.id, epoch)

    def _start(self, shard: ShardId, work: Awaitable[None]) -> None:
        _, again, _ = self._failures.get(shard, (0, 0.0, ""))
        if shard in self._busy or time.monotonic() < again:
            if asyncio.iscoroutine(work):
                work.close()
            return
        self._busy[shard] = asyncio.create_task(self._work(shard, work), name=f"shard {shard}")

    async def _work(self, shard: ShardId, work: Awaitable[None]) -> None:
        try:
            await work
            self._failures.pop(shard, None)
        except VecClusterError as error:
            self._note_failure(shard, error.detail)
            log.warning("shard_work_failed", shard=str(shard), reason=error.detail)
        except Exception as error:  # a defect in one shard must not end the care for the others
            self._note_failure(shard, f"{type(error).__name__}: {error}")
            log.exception("shard_work_failed", shard=str(shard))
        finally:
            del self._busy[shard]
            self._store.wake()

    def _note_failure(self, shard: ShardId, why: str) -> None:
        tries = self._failures.get(shard, (0, 0.0, ""))[0] + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        self._failures[shard] = (tries, time.monotonic() + pause, why)


REPORT = -1
"""Stands for the whole collection where a task is about no single shard."""
