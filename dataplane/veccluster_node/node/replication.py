"""What the replicas of this node ask of etcd and of the other nodes, carried out.

Replicas live in threads of their own; etcd is spoken to on the main loop. What comes back is fed to the replica that
asked, if it is still open.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Protocol

import structlog

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Decision
from veccluster.decisions.replication.messages import Header, Message
from veccluster.decisions.replication.values import Configuration, Member
from veccluster.errors import VecClusterError
from veccluster.model.state import NodeId, Revision, ShardId
from veccluster_node.metadata.store import Store
from veccluster_node.replica.beats import NodeBeat, NodeBeats

if TYPE_CHECKING:
    from pathlib import Path

    from veccluster_node.shards.host import ShardHost
    from veccluster_node.shards.inbox import Inbox

log = structlog.get_logger(__name__)


class Sender(Protocol):
    """The links to the other nodes."""

    def send_beat(self, node: NodeId, beat: NodeBeat) -> None:
        """Send the node's own heartbeat, or an answer to one; it may be lost."""

    def send(self, node: NodeId, shard: ShardId, message: Message) -> None:
        """Send a message; it may be lost."""

    def reaches(self, node: NodeId) -> bool:
        """False when the node has been away for a while."""

    def is_connected(self, node: NodeId) -> bool:
        """Whether there is a connection."""

    def has_ended(self, node: NodeId) -> bool:
        """Whether nothing has listened at the node's address for a while."""


class Offers(Protocol):
    """Snapshots that others may fetch."""

    def offer(self, shard: ShardId, header: Header, root: "Path") -> None:
        """Make one for the member that `header` is for, and tell it."""

    def is_under_way(self, shard: ShardId, to: Member) -> bool:
        """Whether that member is fetching one."""


class Replication:
    """The surroundings of every replica of this node; the rest of the node is attached when it is there."""

    def __init__(self, me: NodeId, loop: asyncio.AbstractEventLoop, silence: float) -> None:
        """A node is silent that has not answered for `silence` seconds."""
        self.links: Sender | None = None
        self.offers: Offers | None = None
        self.store: Store | None = None
        self.host: ShardHost | None = None
        self.inbox: Inbox | None = None
        self._me = me
        self._loop = loop
        self._reading: set[ShardId] = set()
        self.beats = NodeBeats(self._send_beat, self._tick_one, time.monotonic, silence)

    # -- heartbeats

    def tick(self) -> None:
        """Time for heartbeats; from any thread."""
        if (inbox := self.inbox) is None:
            return
        inbox.tick()
        state = self.store.state if self.store else None
        others = set(state.alive) & set(state.nodes) if state else set()
        self.beats.tick(others - {self._me}, self._node_has_ended)

    def _send_beat(self, node: NodeId, beat: NodeBeat) -> None:
        if self.links:
            self.links.send_beat(node, beat)

    def _tick_one(self, shard: ShardId) -> None:
        if self.inbox:
            self.inbox.feed(shard, on.Tick())

    # -- the network

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        """Send a message; it may be lost."""
        if self.links:
            self.links.send(to.node, shard, message)

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        """Whether to send records makes sense."""
        if self.links and not self.links.reaches(to.node):
            return False
        return self.offers is None or not self.offers.is_under_way(shard, to)

    def has_ended(self, to: Member) -> bool:
        """Whether the process of that node has ended, as far as anybody can tell."""
        return self._node_has_ended(to.node)

    def _node_has_ended(self, node: NodeId) -> bool:
        if self.links is None:
            return False
        if self.links.has_ended(node):
            return True
        state = self.store.state if self.store else None
        is_gone = state is not None and bool(state.revision) and node not in state.alive
        return is_gone and not self.links.is_connected(node)

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        """Let a member fetch everything."""
        if self.offers and self.host:
            self.offers.offer(shard, header, self.host.directory(shard))

    def reaches_etcd(self) -> bool:
        """Whether this node has a lease."""
        return self.host is None or self.host.metadata_is_fresh()

    def swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        """Change the shard's record."""
        self._soon(self._swap(shard, target, expected))

    def read_configuration(self, shard: ShardId) -> None:
        """Read the shard's record, unless that is under way."""
        self._soon(self._read(shard))

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        """Make a decision about a batch over several shards."""
        self._soon(self._propose(shard, decision, forgotten))

    def changed(self, shard: ShardId) -> None:
        """Let the node's loops look again."""
        if store := self.store:
            self._call(store.wake)

    async def _swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        outcome, now = on.Outcome.unknown, None
        try:
            if self.store:
                outcome, now = await self.store.swap_shard(shard, target, expected)
        finally:  # a replica that gets no answer never asks again
            if self.inbox:
                self.inbox.feed(shard, on.Answered(target, outcome, now))

    async def _propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        if self.store is None:
            return
        operation, attempt = decision.batch
        try:
            found = await self.store.decide(shard.collection, decision, forgotten)
        except VecClusterError as error:  # the replica asks again after a while
            log.warning("batch_not_decided", shard=str(shard), operation=operation, reason=error.detail)
        else:
            verdict = found.verdict.value if isinstance(found, Decision) else None
            log.warning("batch_overdue", shard=str(shard), operation=operation, attempt=attempt, verdict=verdict)

    async def _read(self, shard: ShardId) -> None:
        if self.store is None or shard in self._reading:
            return
        self._reading.add(shard)
        try:
            now = await self.store.read_shard(shard)
            if now and self.inbox:
                self.inbox.see(shard, now)
        except VecClusterError as error:
            log.warning("configuration_not_read", shard=str(shard), reason=error.detail)
        finally:
            self._reading.discard(shard)

    def _soon(self, work: Coroutine[None, None, None]) -> None:
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended: the node stops
            work.close()

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            log.debug("loop_ended")
