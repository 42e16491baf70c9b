"""What reaches the replicas of this node: configurations, messages of other replicas, decisions about batches, time.

Everything returns at once and may be called from any thread; a replica that is not open hears nothing.
"""

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.messages import Header, Snapshot
from veccluster.decisions.replication.values import Configuration
from veccluster.model.state import ShardId
from veccluster_node.shards.host import ShardHost


class Inbox:
    """Hands on to each replica what is meant for it."""

    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def see(self, shard: ShardId, configuration: Configuration) -> None:
        """Show a replica what its record says."""
        self.feed(shard, on.Seen(configuration))

    def know(self, shard: ShardId, known: Known) -> None:
        """Show a replica what etcd says of batches over several shards."""
        if hosted := self._host.get(shard):
            hosted.replica.know(known)

    def feed(self, shard: ShardId, event: on.Event) -> None:
        """Tell a replica what happened."""
        if hosted := self._host.get(shard):
            hosted.replica.feed(event)

    def deliver(self, shard: ShardId, received: on.Received) -> None:
        """Give a replica another one's message."""
        if isinstance(received.message, Snapshot):
            self._host.measures.snapshots.inc()
        self.feed(shard, received)

    def allows(self, shard: ShardId, header: Header) -> bool:
        """Whether whoever offers a snapshot is the primary by what the replica knows (16)."""
        hosted = self._host.get(shard)
        now = hosted.replica.standing.configuration if hosted else None
        return now is not None and (now.epoch, now.primary) == (header.epoch, header.sender)

    def tick(self) -> None:
        """Time for heartbeats."""
        for _, hosted in self._host.hosted():
            if not hosted.replica.rests:
                hosted.replica.feed(on.Tick())
