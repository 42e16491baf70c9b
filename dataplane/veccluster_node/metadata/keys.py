"""The keys of a cluster in etcd and what each holds: from key and value to the state of the cluster, and back.

All of it lies under /veccluster/NAMESPACE/NAME/, values are JSON:

    nodes/ID                       a Node
    alive/ID                       a Load, leased
    leader                         the election; the value is the node's id
    collections/NAME               a Collection
    shards/UUID/N                  a Shard, without its id and revision, which the key and etcd say
    intents/drop/UUID              a Drop
    intents/drop/UUID/done/ID      node ID holds nothing of it any more
    atomic/UUID/decisions/HASH/K   what became of attempt K of an operation over several shards (batches.py)
    atomic/UUID/forgotten          its revision is when such keys were last deleted
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import xxhash

from veccluster.decisions.replication.atomic import Batch
from veccluster.model.cluster import ClusterState, Drop, DroppedBy
from veccluster.model.state import Collection, Load, Node, NodeId, Revision, Shard, ShardId


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster."""

    namespace: str
    cluster: str

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return f"/veccluster/{self.namespace}/{self.cluster}/"

    @property
    def leader(self) -> str:
        """The election."""
        return self.prefix + "leader"

    def node(self, node: NodeId) -> str:
        """Registration of a node."""
        return self.prefix + f"nodes/{node}"

    def alive(self, node: NodeId) -> str:
        """Sign of life of a node."""
        return self.prefix + f"alive/{node}"

    def collection(self, name: str) -> str:
        """A collection."""
        return self.prefix + f"collections/{name}"

    def shard(self, shard: ShardId) -> str:
        """A shard."""
        return self.prefix + f"shards/{shard.collection}/{shard.number}"

    def drop(self, uuid: str) -> str:
        """The intent to delete a collection's data."""
        return self.prefix + f"intents/drop/{uuid}"

    @property
    def batches(self) -> str:
        """What all keys about batches over several shards begin with."""
        return self.prefix + "atomic/"

    def batches_of(self, uuid: str) -> str:
        """What those of one collection begin with."""
        return f"{self.batches}{uuid}/"

    def decision(self, uuid: str, batch: Batch) -> str:
        """What became of a batch."""
        name = xxhash.xxh3_128_hexdigest(batch.operation.encode())
        return f"{self.batches_of(uuid)}decisions/{name}/{batch.attempt}"

    def forgotten(self, uuid: str) -> str:
        """Written whenever decisions are deleted."""
        return self.batches_of(uuid) + "forgotten"

    def dropped_by(self, uuid: str, node: NodeId) -> str:
        """A node's report that it has done so."""
        return self.drop(uuid) + f"/done/{node}"


def encode(value: msgspec.Struct) -> bytes:
    """The JSON that etcd keeps."""
    return msgspec.json.encode(value)


def encode_shard(shard: Shard) -> bytes:
    """A shard's JSON; its id is in the key and its revision is etcd's."""
    fields = msgspec.to_builtins(shard)
    return msgspec.json.encode({k: v for k, v in fields.items() if k not in {"id", "revision"}})


def state_of(prefix: str, entries: Mapping[str, tuple[bytes, int]], revision: int) -> ClusterState:
    """The cluster's state from every key under `prefix` with its value and `mod_revision`.

    Keys of kinds unknown here belong to newer versions and are left alone.
    """
    book = _Book()
    for key, (value, mod_revision) in entries.items():
        book.enter(key[len(prefix) :], value, mod_revision)
    return ClusterState(
        revision=Revision(revision),
        collections=book.collections,
        nodes=book.nodes,
        alive=book.alive,
        shards=book.shards,
        drops=book.drops,
        dropped_by=frozenset(book.dropped_by),
        leader=book.leader,
    )


class _Book:
    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.nodes: dict[NodeId, Node] = {}
        self.alive: dict[NodeId, Load] = {}
        self.shards: dict[ShardId, Shard] = {}
        self.drops: dict[str, Drop] = {}
        self.dropped_by: set[DroppedBy] = set()
        self.leader: NodeId | None = None

    def enter(self, path: str, value: bytes, mod_revision: int) -> None:
        match path.split("/"):
            case ["leader"]:
                self.leader = NodeId(value.decode())
            case ["nodes", node]:
                self.nodes[NodeId(node)] = decode_node(value)
            case ["alive", node]:
                self.alive[NodeId(node)] = decode_load(value)
            case ["collections", name]:
                self.collections[name] = decode_collection(value)
            case ["shards", uuid, number]:
                shard = ShardId(uuid, int(number))
                self.shards[shard] = decode_shard(shard, value, mod_revision)
            case ["intents", "drop", uuid]:
                self.drops[uuid] = decode_drop(value)
            case ["intents", "drop", uuid, "done", node]:
                self.dropped_by.add(DroppedBy(uuid, NodeId(node)))


decode_node = msgspec.json.Decoder(Node).decode
decode_load = msgspec.json.Decoder(Load).decode
decode_collection = msgspec.json.Decoder(Collection).decode
decode_drop = msgspec.json.Decoder(Drop).decode


def decode_shard(shard: ShardId, value: bytes, mod_revision: int) -> Shard:
    """A shard's record, with its id and revision, which are not in the value."""
    fields = msgspec.json.decode(value)
    if isinstance(fields["primary"], str):  # as it was written while a shard had one replica
        only = (fields["primary"], fields.pop("primary_incarnation"))
        fields |= {"primary": only, "in_sync": [only], "learners": []}
    return msgspec.convert({**fields, "id": msgspec.to_builtins(shard), "revision": mod_revision}, Shard)
