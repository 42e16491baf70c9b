"""Several real replicas of one shard in one process: real disks and threads; network and etcd obey the test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from support.storage import MAINTENANCE, POOL, SMALL, spec
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic import Batch, Decision
from veccluster.decisions.replication.atomic_deciding import Known, made_at
from veccluster.decisions.replication.messages import Header, Message, Snapshot
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import Epoch, Incarnation, Member, NodeId, Revision, ShardId
from veccluster_node.replica import snapshots
from veccluster_node.replica.beats import NodeBeat, NodeBeats
from veccluster_node.replica.ports import Standing
from veccluster_node.replica.replica import Replica
from veccluster_node.replica.settings import StorageSettings

TICK = 0.05


def member(number: int, disk: str = "disk") -> Member:
    return Member(NodeId(f"n{number}"), Incarnation(disk))


class Shard:
    """The replicas of one shard, by node number; a cut is a pair of node ids between which nothing arrives."""

    def __init__(self, root: Path, count: int, *, min_in_sync: int, settings: StorageSettings) -> None:
        members = [member(i) for i in range(count)]
        self.root = root
        self.settings = replace(settings, silence=6 * TICK, rest_after=4 * TICK)
        self.key = Configuration(
            Epoch(0), members[0], frozenset(members), min_in_sync=min_in_sync, replicas=count, revision=Revision(1)
        )
        self.members = {m.node: m for m in members}
        self.replicas: dict[NodeId, Replica] = {}
        self.beats = {node: self._beats_of(node) for node in self.members}
        """The heartbeats of nodes, which outlive the replicas here."""
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.etcd_away: set[NodeId] = set()
        self.ended: set[NodeId] = set()
        """Nodes whose process is known to have ended."""
        self.known = Known(Revision(1))
        """What etcd says of batches over several shards."""
        self._lock = threading.RLock()
        self._fetching = threading.Lock()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def start(self) -> None:
        for node in self.members:
            self.open(node)
        self._ticker.start()

    def close(self) -> None:
        self._stopped.set()
        self._ticker.join()
        for node in list(self.replicas):
            self.stop(node)

    def open(self, node: NodeId) -> Replica:
        """Open what is on the node's disk."""
        around = Around(self, node)
        path = self.root / f"{node}-{self.members[node].incarnation}"
        replica = Replica.open(
            path,
            spec(),
            self.settings,
            maintenance=MAINTENANCE,
            me=self.members[node],
            surroundings=around,
            pool=POOL,
        )
        self.replicas[node] = replica
        replica.feed(on.Seen(self.key))
        replica.know(self.known)
        return replica

    def stop(self, node: NodeId) -> None:
        self.replicas.pop(node).close()

    def swap(self, target: Configuration, expected: Revision) -> tuple[on.Outcome, Configuration]:
        """What etcd does, and everybody hears of it."""
        with self._lock:
            if expected != self.key.revision:
                return on.Outcome.refused, self.key
            self.key = replace(target, revision=Revision(expected + 1))
            now = self.key
        for node, replica in list(self.replicas.items()):
            if node not in self.etcd_away:
                replica.feed(on.Seen(now))
        return on.Outcome.swapped, now

    def decide(self, decision: Decision, forgotten: Revision | None = None) -> Decision:
        """The decision that is there now: this one if there was none and none were forgotten since."""
        with self._lock:
            found = next((d for d in self.known.decisions if d.batch == decision.batch), None)
            if found or (forgotten is not None and forgotten != self.known.forgotten):
                return found or decision
            revision = Revision(self.known.revision + 1)
            made = made_at(decision, revision)
            self._tell(Known(revision, self.known.forgotten, (*self.known.decisions, made)))
        return made

    def forget(self, *gone: Batch) -> None:
        """Delete decisions, as the leader does when all shards have them."""
        with self._lock:
            revision = Revision(self.known.revision + 1)
            left = tuple(d for d in self.known.decisions if d.batch not in gone)
            self._tell(Known(revision, revision, left))

    def _tell(self, known: Known) -> None:
        self.known = known
        for node, replica in list(self.replicas.items()):
            if node not in self.etcd_away:
                replica.know(known)

    def promote(self, node: NodeId) -> None:
        """What the leader does when the primary is gone."""
        with self._lock:
            epoch = Epoch(self.key.epoch + 1)
            self.swap(replace(self.key, epoch=epoch, primary=self.members[node], successor=None), self.key.revision)

    def enlist(self, node: NodeId) -> None:
        """Have a node learn the shard."""
        with self._lock:
            self.swap(replace(self.key, learners=self.key.learners | {self.members[node]}), self.key.revision)

    def deliver(self, sender: NodeId, to: Member, message: Message) -> None:
        replica = self.replicas.get(to.node)
        if replica and (sender, to.node) not in self.cuts:
            replica.feed(on.Received(message, sender))

    def fetch(self, sender: NodeId, header: Header) -> None:
        """Carry a snapshot over."""
        to = self.replicas.get(header.to.node)
        if to is None or (sender, header.to.node) in self.cuts or not self._fetching.acquire(blocking=False):
            return
        with self._fetching_ends():
            offered = snapshots.export(self.replicas[sender].path, to.path / "incoming")
            snapshots.verify(to.path / "incoming", offered)
            self.deliver(sender, header.to, Snapshot(header, offered.through, offered))
            self.wait(lambda: to.staged or header.to in self.key.in_sync)  # it may have come by the log meanwhile
            if to.staged:
                self.reopen(header.to.node)

    @contextmanager
    def _fetching_ends(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._fetching.release()

    def reopen(self, node: NodeId) -> None:
        """What a node does about a replica that has a snapshot ready or whose disk failed."""
        self.stop(node)
        self.open(node)

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, holds: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until something holds."""
        with self._changed:
            assert self._changed.wait_for(holds, timeout), (self.key, self.standings())

    def standings(self) -> dict[NodeId, Standing]:
        return {n: r.standing for n, r in self.replicas.items()}

    @property
    def primary(self) -> Replica:
        """The replica that serves, when one does."""
        self.wait(lambda: any(s.serving == self.key.epoch for s in self.standings().values()))
        return next(r for r in self.replicas.values() if r.standing.serving == self.key.epoch)

    def _tick(self) -> None:
        while not self._stopped.wait(TICK):
            for node, replica in list(self.replicas.items()):
                if not replica.rests:
                    replica.feed(on.Tick())
                self.beats[node].tick(self.members.keys() - {node}, self.ended.__contains__)
            self.changed()

    def tell(self, sender: NodeId, to: NodeId, beat: NodeBeat) -> None:
        """Carry a node's heartbeat over, if both are there."""
        if sender in self.replicas and to in self.replicas and (sender, to) not in self.cuts:
            self.beats[to].received(sender, beat)

    def _beats_of(self, node: NodeId) -> NodeBeats:
        def wake(shard: ShardId) -> None:
            if replica := self.replicas.get(node):
                replica.feed(on.Tick())

        return NodeBeats(lambda to, beat: self.tell(node, to, beat), wake, time.monotonic, self.settings.silence)


class Around:
    """The surroundings of one of them."""

    def __init__(self, shard: Shard, node: NodeId) -> None:
        self.beats = shard.beats[node]
        self._shard = shard
        self._node = node

    def send(self, shard: ShardId, to: Member, message: Message) -> None:
        self._shard.deliver(self._node, to, message)

    def takes_records(self, shard: ShardId, to: Member) -> bool:
        return True

    def has_ended(self, to: Member) -> bool:
        return to.node in self._shard.ended

    def offer_snapshot(self, shard: ShardId, header: Header) -> None:
        threading.Thread(target=self._shard.fetch, args=(self._node, header), daemon=True).start()

    def swap(self, shard: ShardId, target: Configuration, expected: Revision) -> None:
        outcome, now = on.Outcome.unknown, None
        if self._node not in self._shard.etcd_away:
            outcome, now = self._shard.swap(target, expected)
        if replica := self._shard.replicas.get(self._node):
            replica.feed(on.Answered(target, outcome, now))

    def reaches_etcd(self) -> bool:
        return self._node not in self._shard.etcd_away

    def read_configuration(self, shard: ShardId) -> None:
        if self._node not in self._shard.etcd_away and (replica := self._shard.replicas.get(self._node)):
            replica.feed(on.Seen(self._shard.key))

    def propose(self, shard: ShardId, decision: Decision, forgotten: Revision) -> None:
        if self._node not in self._shard.etcd_away:
            self._shard.decide(decision, forgotten)

    def changed(self, shard: ShardId) -> None:
        self._shard.changed()


@contextmanager
def replicated(
    root: Path, count: int = 3, *, min_in_sync: int = 2, settings: StorageSettings = SMALL
) -> Iterator[Shard]:
    """A shard with so many replicas, all open."""
    shard = Shard(root, count, min_in_sync=min_in_sync, settings=settings)
    shard.start()
    try:
        yield shard
    finally:
        shard.close()
