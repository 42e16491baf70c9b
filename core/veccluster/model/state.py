"""What is: nodes, collections and shards, as etcd keeps them and as the decisions see them.

Immutable values with JSON on the outside (msgspec). The key of each in etcd is in the docstring; `revision` is the
`mod_revision` that a compare-and-swap compares, filled in when a value is read and never written.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, NewType

import msgspec

NodeId = NewType("NodeId", str)
Epoch = NewType("Epoch", int)
Seq = NewType("Seq", int)
Revision = NewType("Revision", int)
Incarnation = NewType("Incarnation", str)
"""Identity of the contents of one replica's disk; another one each time they were lost or found corrupt (rule 9)."""

POINTS = 1 << 64
"""Ids hash to points in [0, POINTS)."""


class Metric(StrEnum):
    """How far apart two vectors are; for each, a smaller distance is nearer."""

    cosine = "cosine"
    l2 = "l2"
    dot = "dot"


class Precision(StrEnum):
    """The type in which the graph stores vectors; answers are re-scored with the raw float32 ones."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    i8 = "i8"


class ReadConsistency(StrEnum):
    """What a read may miss."""

    eventual = "eventual"
    session = "session"
    quorum = "quorum"
    strong = "strong"


class WriteConsistency(StrEnum):
    """How many in-sync replicas a write asks for."""

    one = "one"
    quorum = "quorum"
    all = "all"


class NodeState(StrEnum):
    """A node's place in its life."""

    joining = "joining"
    active = "active"
    draining = "draining"
    drained = "drained"
    unknown = "unknown"
    """One that this version does not know: the node is a member, and is given nothing more."""

    @classmethod
    def _missing_(cls, _: object) -> "NodeState":
        return cls.unknown


class Member(NamedTuple):
    """A replica with the contents of its disk. The same node with another disk is another member (rules 6 and 9)."""

    node: NodeId
    incarnation: Incarnation


class ShardId(msgspec.Struct, frozen=True, order=True):
    """One shard of one collection: the collection's uuid and the shard's number."""

    collection: str
    number: int

    def __str__(self) -> str:
        return f"{self.collection}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> "ShardId | None":
        """From `UUID.N`; None if the text is something else."""
        uuid, _, number = text.partition(".")
        return cls(uuid, int(number)) if number.isdecimal() else None


class IndexParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of the HNSW graph: `m` edges a vertex, `ef_*` candidates kept while building and searching."""

    m: int = 16
    ef_construction: int = 128
    ef_search: int = 128
    precision: Precision = Precision.f32


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """`collections/NAME`: a set of vectors of one dimension under one metric. `shards` is a number by now."""

    name: str
    uuid: str
    dimension: int
    metric: Metric
    shards: int
    replication_factor: int = 1
    min_in_sync: int = 1
    index: IndexParameters = IndexParameters()
    filterable: tuple[str, ...] = ()
    read_consistency: ReadConsistency = ReadConsistency.session
    write_consistency: WriteConsistency = WriteConsistency.quorum
    shards_asked: int | None = None
    """What the creator asked for; None is "auto". Kept so that an identical request is known as such."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """`nodes/ID`: a member of the cluster, alive or not."""

    id: NodeId
    address: str
    """host:port for clients."""
    peer_address: str
    """host:port for other nodes."""
    zone: str = ""
    incarnation: str = ""
    """Identity of the contents of its disk (rule 9)."""
    incarnations: Mapping[str, str] = msgspec.field(default_factory=dict)
    """By shard (`UUID.N`): of those of its replicas that were lost, damaged or given up since and began anew."""
    version: str = ""
    takes_batches: bool = False
    """Whether it understands batches over several shards in a log; those from before there were any do not say."""
    proves_itself: bool = False
    """Whether it proves to other nodes who it is, and asks it of them; those from before there was a secret do not."""
    state: NodeState = NodeState.active

    def member(self, shard: ShardId) -> Member:
        """The node as a member of the shard: with the contents of its disk as far as the shard is concerned."""
        return Member(self.id, Incarnation(self.incarnations.get(str(shard), self.incarnation)))


class ReadOnly(msgspec.Struct, frozen=True, kw_only=True):
    """A shard that answers reads and takes no writes."""

    shard: str
    """`UUID.N`."""
    why: str
    way_on: str = ""
    """What a person has to do; empty where the node mends it by itself."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`alive/ID`, leased: the node is there, and how it fares."""

    id: NodeId
    boot: str
    """Changes at each start of the process."""
    disk_used: int = 0
    disk_total: int = 0
    memory_used: int = 0
    issues: tuple[str, ...] = ()
    """What the node itself would have a person know, in words."""
    serving: tuple[str, ...] = ()
    """Shards (`UUID.N`) that this process serves as their primary."""
    read_only: tuple[ReadOnly, ...] = ()
    """Shards that this process has open and can write no more."""
    recovering: tuple[str, ...] = ()
    """Shards that this process is opening."""
    room: int | None = None
    """How many more shards may be open, by the files that the process may open; None when it does not say."""
    broken: tuple[str, ...] = ()
    """Shards that this process should serve and cannot."""
    cut_off: tuple[str, ...] = ()
    """Shards that it serves and whose writes wait for copies that it does not hear."""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """`shards/UUID/N`: who is primary, in which epoch, and who is in sync. Changed only by compare-and-swap."""

    id: ShardId
    epoch: Epoch
    primary: Member
    in_sync: tuple[Member, ...]
    learners: tuple[Member, ...] = ()
    min_in_sync: int = 1
    successor: Member | None = None
    """To whom the primary is asked to hand over (rule 12)."""
    start: int = 0
    """First point of the range that the shard owns."""
    end: int = POINTS
    """First point beyond the range."""
    history: str = ""
    """The id of the history of etcd (`History`) in which it was written, or found to be right."""
    revision: Revision = Revision(0)

    @property
    def members(self) -> frozenset[Member]:
        """Every replica that the record names."""
        return frozenset((self.primary, *self.in_sync, *self.learners))

    def member_on(self, node: NodeId) -> Member | None:
        """The replica on that node; of several disks of it the one that is in sync."""
        return next((m for m in (*self.in_sync, *self.learners) if m.node == node), None)
