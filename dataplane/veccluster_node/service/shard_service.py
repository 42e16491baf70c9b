"""`ShardService`: how a coordinator asks a node for its shards, and the values that pass, one request and reply a verb.

A request is the same from the route to the replica: plain values, no bytes. On this node `LocalShards` (shards/) takes
it as it is; for another `RemoteShards` (peer/) alone makes a message of it, and of the message that comes back a reply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np

from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Batch, Showing, Standing
from veccluster.errors import VecClusterError
from veccluster.model.state import ReadConsistency, Seq, ShardId, WriteConsistency
from veccluster.model.token import Position
from veccluster_node.engine.distance import F32
from veccluster_node.engine.search import Hit, Query, Stored

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

LIGHT_QUERIES = 32
"""A search for more vectors than this takes its time."""


# ---- replies


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsReply:
    """About several shards: those that answered, and what went wrong with each of the others.

    So one bad shard never hides what the rest know.
    """

    applied: Mapping[int, Position] = field(default_factory=dict)
    """The state in which each shard was read."""
    failed: Mapping[int, VecClusterError] = field(default_factory=dict)
    frontier: Mapping[int, Showing] = field(default_factory=dict)
    """What each of those states shows of batches over several shards (rule 15)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(ShardsReply):
    """For each query the nearest hits over the shards that answered, nearest first."""

    hits: Sequence[Sequence[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Got(ShardsReply):
    """The vectors that exist among those asked for."""

    found: Sequence[Stored]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(ShardsReply):
    """Ids in order, over the shards that answered."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(ShardsReply):
    """How many vectors match, over the shards that answered."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable(ShardsReply):
    """How far the log of each replica is durable, of those that are in sync."""

    durable: Mapping[int, Position]


@dataclass(frozen=True, slots=True)
class Written:
    """The write is durable and applied: its position, and how many vectors it stored or removed."""

    position: Position
    count: int


class ShardReport(msgspec.Struct, frozen=True):
    """How one shard on a node fares; nodes send it as it is."""

    shard: ShardId
    epoch: int
    vectors: int
    tail: int
    generations: int
    indexed: int
    building: bool
    disk_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Every shard that a node serves, and those that it is about to serve, as collection/number."""

    shards: Sequence[ShardReport]
    opening: Sequence[str] = ()


# ---- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[R_co]):
    """Base of all requests."""

    principal: str | None = None
    """Who asks; nobody says so yet."""
    trace: str | None = None
    """Of which request of a client it is a part; nobody says so yet."""
    is_read: ClassVar[bool] = True
    """Whether it only looks, so that it may be stopped when nobody waits for it any more."""

    async def ask(self, shards: "ShardService") -> R_co:
        """Ask it of a node."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsRequest(Request[R_co]):
    """About several shards of one collection on one node."""

    collection: str
    """Its uuid."""
    shards: Sequence[int] = ()
    level: ReadConsistency = ReadConsistency.session
    at_least: Mapping[int, Position] = field(default_factory=dict)
    """What must be shown of each shard, since somebody has seen it."""
    decided: Mapping[int, Sequence[Seq]] = field(default_factory=dict)
    """The places of prepares whose batches must be decided in what is read (rule 15)."""
    source: str = ""
    """The address of the client that asks, for which no more than a share of a node works at once."""

    @property
    def is_slow(self) -> bool:
        """Whether it may look at every row, so that each other replica would be as slow."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(ShardsRequest[Found]):
    """The nearest of each query."""

    query: Query

    @property
    def is_slow(self) -> bool:
        """With a filter, where it is to be exact, and where it is many."""
        return self.query.where is not None or self.query.exact or len(self.query.vectors) > LIGHT_QUERIES

    async def ask(self, shards: "ShardService") -> Found:
        """By `ShardService.search`."""
        return await shards.search(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Get(ShardsRequest[Got]):
    """Vectors by id; of `ids`, by shard, those of `shards`."""

    ids: Mapping[int, Sequence[str]]

    async def ask(self, shards: "ShardService") -> Got:
        """By `ShardService.get`."""
        return await shards.get(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListIds(ShardsRequest[Listed]):
    """The first `limit` ids after `after` in byte order."""

    after: str | None
    limit: int
    where: Where | None = None

    @property
    def is_slow(self) -> bool:
        """With a filter."""
        return self.where is not None

    async def ask(self, shards: "ShardService") -> Listed:
        """By `ShardService.list_ids`."""
        return await shards.list_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(ShardsRequest[Counted]):
    """How many vectors match."""

    where: Where | None = None

    @property
    def is_slow(self) -> bool:
        """With a filter."""
        return self.where is not None

    async def ask(self, shards: "ShardService") -> Counted:
        """By `ShardService.count`."""
        return await shards.count(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPositions(ShardsRequest[Durable]):
    """How far the replicas are: what a read at `quorum` must show (rule 13)."""

    async def ask(self, shards: "ShardService") -> Durable:
        """By `ShardService.positions`."""
        return await shards.positions(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetFrontiers(ShardsRequest[ShardsReply]):
    """What is applied of batches over several shards."""

    async def ask(self, shards: "ShardService") -> ShardsReply:
        """By `ShardService.frontiers`."""
        return await shards.frontiers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetReport(Request[Report]):
    """How a node's shards fare; `collection` (uuid) narrows it."""

    collection: str | None = None

    async def ask(self, shards: "ShardService") -> Report:
        """By `ShardService.report`."""
        return await shards.report(self)


@dataclass(frozen=True, slots=True, eq=False)
class UpsertBatch:
    """n vectors with distinct ids: `vectors` is float32 (n, dimension), `metadata` a JSON object each."""

    ids: Sequence[str]
    vectors: F32
    metadata: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "UpsertBatch":
        """Some of them."""
        vectors = np.ascontiguousarray(self.vectors[rows], dtype="<f4")
        return UpsertBatch([self.ids[i] for i in rows], vectors, [self.metadata[i] for i in rows])


@dataclass(frozen=True, slots=True)
class Removal:
    """Ids to remove; unknown ones are no error."""

    ids: Sequence[str]


Change: TypeAlias = UpsertBatch | Removal | Where
"""What a write does to one shard: it stores vectors, removes ids, or removes what matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest(Request[R_co]):
    """A change of one shard, which its primary carries out; `level` is how many replicas must have it."""

    shard: ShardId
    level: WriteConsistency = WriteConsistency.one
    is_read: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(ShardRequest[Written]):
    """Change a shard, wholly or not at all; the same `operation` again changes nothing more."""

    operation: str
    change: Change

    async def ask(self, shards: "ShardService") -> Written:
        """By `ShardService.write`."""
        return await shards.write(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(ShardRequest[Standing]):
    """Keep one shard's part of a batch over several, until it is decided (rule 15)."""

    batch: Batch
    participants: Sequence[int]
    rows: UpsertBatch

    async def ask(self, shards: "ShardService") -> Standing:
        """By `ShardService.prepare`."""
        return await shards.prepare(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(ShardRequest[Written]):
    """Wait until a batch that is decided is so in this shard."""

    batch: Batch

    async def ask(self, shards: "ShardService") -> Written:
        """By `ShardService.settle`."""
        return await shards.settle(self)


# ---- the port


class ShardService(Protocol):
    """The shards of one node. What a client did wrong is raised; what is wrong with a shard is in `failed`."""

    async def search(self, request: Search) -> Found:
        """The nearest of each query."""

    async def get(self, request: Get) -> Got:
        """Vectors by id."""

    async def list_ids(self, request: ListIds) -> Listed:
        """Ids in byte order."""

    async def count(self, request: Count) -> Counted:
        """How many vectors match."""

    async def write(self, request: Write) -> Written:
        """Change a shard."""

    async def prepare(self, request: Prepare) -> Standing:
        """Keep a part of a batch over several shards: how that stands here."""

    async def settle(self, request: Settle) -> Written:
        """Wait until a batch is decided here."""

    async def positions(self, request: GetPositions) -> Durable:
        """How far the replicas are."""

    async def frontiers(self, request: GetFrontiers) -> ShardsReply:
        """What is applied of batches over several shards."""

    async def report(self, request: GetReport) -> Report:
        """How the shards fare."""
