"""The keys of a cluster in etcd and what each holds: from key and value to the state of the cluster, and back.

All of it lies under /veccluster/NAMESPACE/NAME/, values are JSON:

    nodes/ID                       a Node
    alive/ID                       a Load, leased
    secret                         what nodes prove themselves with to each other, as text (peer/proofs.py)
    leader                         the election; the value is the node's id
    history                        a History, once etcd went back to an older state
    history/batches                its id, once the batches of before that were looked after
    collections/NAME               a Collection
    shards/UUID/N                  a Shard, without its id and revision, which the key and etcd say
    intents/drop/UUID              a Drop
    intents/drop/UUID/done/ID      node ID holds nothing of it any more
    atomic/UUID/decisions/HASH/K   what became of attempt K of an operation over several shards (batches.py)
    atomic/UUID/forgotten          its revision is when such keys were last deleted
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import msgspec
import xxhash

from veccluster.decisions.replication.atomic import Batch
from veccluster.model.cluster import Drop, DroppedBy, History
from veccluster.model.limits import MAX_SHARDS
from veccluster.model.state import POINTS, Collection, Load, Node, NodeId, Shard, ShardId
from veccluster_etcd.values import KeyValue

T = TypeVar("T")


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
    def secret(self) -> str:
        """What nodes prove themselves with."""
        return self.prefix + "secret"

    @property
    def leader(self) -> str:
        """The election."""
        return self.prefix + "leader"

    @property
    def history(self) -> str:
        """Which history of etcd this is."""
        return self.prefix + "history"

    @property
    def history_of_batches(self) -> str:
        """The history in which batches may be decided again."""
        return self.prefix + "history/batches"

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


# ---- from key and value to what they say -----------------------------------------------------------------------------


class Unreadable(Exception):
    """A key, or its value, that says nothing this version understands: why, in words."""


class Kind(StrEnum):
    """What keys are about."""

    leader = "leader"
    history = "history"
    nodes = "nodes"
    alive = "alive"
    collections = "collections"
    shards = "shards"
    drops = "drops"
    dropped_by = "dropped_by"


class Slot(NamedTuple):
    """What one key is about."""

    kind: Kind
    id: Any


def slot_of(path: str) -> Slot | None:
    """What the key with this path under the prefix is about; None if it is of a kind that a newer version knows."""
    match path.split("/"):
        case ["leader" | "history" as kind]:
            return Slot(Kind(kind), "")
        case ["nodes" | "alive" as kind, node]:
            return Slot(Kind(kind), NodeId(node))
        case ["collections", name]:
            return Slot(Kind.collections, name)
        case ["shards", uuid, number]:
            if not _SEVERAL.fullmatch(number):
                raise Unreadable(f"the number of a shard must end its name, not {number!r}")
            return Slot(Kind.shards, ShardId(uuid, int(number)))
        case ["intents", "drop", uuid]:
            return Slot(Kind.drops, uuid)
        case ["intents", "drop", uuid, "done", node]:
            return Slot(Kind.dropped_by, DroppedBy(uuid, NodeId(node)))
        case _:
            return None


_SEVERAL = re.compile("0|[1-9][0-9]{0,5}")
_UUID = re.compile("[-_A-Za-z0-9]{1,64}")


def value_of(slot: Slot, found: KeyValue) -> Any:
    """What the key says; `Unreadable` if that makes no sense."""
    match slot.kind:
        case Kind.leader:
            return NodeId(found.value.decode(errors="replace"))
        case Kind.dropped_by:
            return True
        case Kind.shards:
            return decode_shard(slot.id, found.value, found.mod_revision)
    value = _DECODERS[slot.kind](found.value)
    if wrong := _contradiction(slot, value):
        raise Unreadable(wrong)
    return value


def _contradiction(slot: Slot, value: Any) -> str | None:
    """Why the value cannot be that of this key."""
    match value:
        case Node(id=said) | Load(id=said) | Drop(uuid=said) | Collection(name=said) if said != slot.id:
            return f"it is about {said!r}"
        case Collection() if not _UUID.fullmatch(value.uuid):
            return f"its uuid is {value.uuid!r}"
        case Collection() if not (0 < value.shards <= MAX_SHARDS and value.dimension > 0):
            return f"it has {value.shards} shards and dimension {value.dimension}"
        case Collection() if not 0 < value.min_in_sync <= value.replication_factor:
            return f"min_in_sync is {value.min_in_sync} of {value.replication_factor} replicas"
        case Node() if not (_ADDRESS.fullmatch(value.address) and _ADDRESS.fullmatch(value.peer_address)):
            return f"its addresses are {value.address!r} and {value.peer_address!r}, not host:port"
    return None


_ADDRESS = re.compile(r"[^\s/@]+:[0-9]{1,5}")


def _decoder(type_: type[T]) -> Callable[[bytes], T]:
    decode = msgspec.json.Decoder(type_).decode

    def checked(value: bytes) -> T:
        try:
            return decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unreadable(str(error)) from error

    return checked


decode_node = _decoder(Node)
decode_load = _decoder(Load)
decode_collection = _decoder(Collection)
decode_drop = _decoder(Drop)
decode_history = _decoder(History)

_DECODERS: dict[Kind, Callable[[bytes], Any]] = {
    Kind.nodes: decode_node,
    Kind.alive: decode_load,
    Kind.collections: decode_collection,
    Kind.drops: decode_drop,
    Kind.history: decode_history,
}


def decode_shard(shard: ShardId, value: bytes, mod_revision: int) -> Shard:
    """A shard's record, with its id and revision, which are not in the value."""
    try:
        fields = msgspec.json.decode(value)
        if not isinstance(fields, dict):
            raise Unreadable("it is no JSON object")
        if isinstance(fields.get("primary"), str):  # as it was written while a shard had one replica
            only = (fields["primary"], fields.pop("primary_incarnation"))
            fields |= {"primary": only, "in_sync": [only], "learners": []}
        read = msgspec.convert({**fields, "id": msgspec.to_builtins(shard), "revision": mod_revision}, Shard)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise Unreadable(str(error)) from error
    if read.epoch < 0 or read.min_in_sync < 1 or not 0 <= read.start < read.end <= POINTS:
        raise Unreadable("its epoch, min_in_sync, start or end is out of bounds")
    if not read.in_sync or read.primary not in read.in_sync:
        raise Unreadable("its primary is not in sync")
    return read
