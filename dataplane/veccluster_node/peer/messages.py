"""The messages between nodes, as MessagePack: a coordinator asks, the node that hosts the shards answers.

A message about several shards is answered for those that could; `failed` has the problem document of each of the
others, so that one bad shard never hides what the rest know. Vectors travel as little-endian float32, row after row;
metadata as the JSON text that was stored.
"""

from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import msgspec

from veccluster.decisions.replication.atomic import Verdict
from veccluster.model.state import Epoch, Member, ReadConsistency, Revision, Seq, ShardId, WriteConsistency
from veccluster_node.engine.search import Hit, Stored
from veccluster_node.service.shard_service import ShardReport

Problem = dict[str, Any]
Failures = dict[int, Problem]
"""By shard number."""
Position = tuple[int, int]
"""(epoch, seq) up to which a replica has applied its log."""


Decided = dict[int, list[Seq]]
"""By shard number: the places of prepares whose batches must be decided in what is read (rule 15)."""


class Reply(msgspec.Struct, frozen=True):
    """Base of all replies."""


R = TypeVar("R", bound=Reply)


class Request(msgspec.Struct, Generic[R], frozen=True, tag=True, kw_only=True):
    """Base of all requests; `reply` is the type of the answer."""

    reply: ClassVar[type[Reply]] = Reply
    principal: str | None = None
    """Who asks, and of which request of a client it is a part; nobody says so yet."""
    trace: str | None = None


class Written(Reply, frozen=True):
    """The write is durable and applied: its position, and how many vectors it stored or removed."""

    position: Position
    count: int


class Upsert(Request[Written], frozen=True, tag=True, kw_only=True):
    """Store these vectors in one shard, all or none."""

    reply = Written
    shard: ShardId
    op_id: str
    ids: list[str]
    vectors: bytes
    metadata: list[bytes]
    level: WriteConsistency = WriteConsistency.one


class DeleteIds(Request[Written], frozen=True, tag=True, kw_only=True):
    """Remove these ids from one shard; unknown ones are no error."""

    reply = Written
    shard: ShardId
    op_id: str
    ids: list[str]
    level: WriteConsistency = WriteConsistency.one


class DeleteWhere(Request[Written], frozen=True, tag=True, kw_only=True):
    """Remove what matches the filter (JSON) from one shard."""

    reply = Written
    shard: ShardId
    op_id: str
    filter: bytes
    level: WriteConsistency = WriteConsistency.one


Write: TypeAlias = Upsert | DeleteIds | DeleteWhere


class Standing(Reply, frozen=True):
    """How an operation over several shards stands in one: `decisions.replication.atomic.Standing`."""

    attempt: int
    at: Seq
    verdict: Verdict | None = None


class PrepareBatch(Request[Standing], frozen=True, tag=True, kw_only=True):
    """Keep one shard's part of a batch over several, until it is decided (rule 15)."""

    reply = Standing
    shard: ShardId
    operation: str
    attempt: int
    participants: list[int]
    ids: list[str]
    vectors: bytes
    metadata: list[bytes]
    level: WriteConsistency = WriteConsistency.one


class SettleBatch(Request[Written], frozen=True, tag=True, kw_only=True):
    """Wait until a batch that is decided is so in this shard."""

    reply = Written
    shard: ShardId
    operation: str
    attempt: int
    level: WriteConsistency = WriteConsistency.one


class Showing(msgspec.Struct, frozen=True, array_like=True):
    """What a state that was read says of batches over several shards: `decisions.replication.atomic.Showing`, whose
    `applied` the reply has already.
    """

    pending: list[Seq]
    latest: dict[int, Seq]


Showings = dict[int, Showing]
"""By shard number; those that say nothing are left out."""


class Shown(Reply, frozen=True):
    """What is applied of batches here, by shard."""

    applied: dict[int, Position]
    showing: Showings
    failed: Failures


class GetShowing(Request[Shown], frozen=True, tag=True, kw_only=True):
    """Ask what is applied of batches."""

    reply = Shown
    collection: str
    shards: list[int]


class Found(Reply, frozen=True):
    """For each query the nearest hits over the shards that answered, nearest first."""

    hits: list[list[Hit]]
    applied: dict[int, Position]
    failed: Failures
    showing: Showings = {}


class Search(Request[Found], frozen=True, tag=True, kw_only=True):
    """Search several shards of one collection; `at_least` is what a session has seen of each."""

    reply = Found
    collection: str
    shards: list[int]
    at_least: dict[int, Position]
    vectors: bytes
    queries: int
    k: int
    filter: bytes | None
    ef: int | None
    exact: bool
    with_metadata: bool
    with_vector: bool
    level: ReadConsistency = ReadConsistency.session
    decided: Decided = {}
    source: str = ""


class Got(Reply, frozen=True):
    """The vectors that exist among those asked for."""

    found: list[Stored]
    applied: dict[int, Position]
    failed: Failures
    showing: Showings = {}


class Get(Request[Got], frozen=True, tag=True, kw_only=True):
    """Fetch by id; `ids` by shard number."""

    reply = Got
    collection: str
    ids: dict[int, list[str]]
    at_least: dict[int, Position]
    level: ReadConsistency = ReadConsistency.session
    decided: Decided = {}
    source: str = ""


class Listed(Reply, frozen=True):
    """Ids in order, at most `limit` over the shards that answered."""

    ids: list[str]
    failed: Failures
    applied: dict[int, Position] = {}
    showing: Showings = {}


class ListIds(Request[Listed], frozen=True, tag=True, kw_only=True):
    """The first ids after `after` in byte order."""

    reply = Listed
    collection: str
    shards: list[int]
    after: str | None
    limit: int
    filter: bytes | None
    at_least: dict[int, Position]
    level: ReadConsistency = ReadConsistency.session
    decided: Decided = {}
    source: str = ""


class Counted(Reply, frozen=True):
    """How many vectors match, over the shards that answered."""

    count: int
    failed: Failures
    applied: dict[int, Position] = {}
    showing: Showings = {}


class Count(Request[Counted], frozen=True, tag=True, kw_only=True):
    """Count what matches the filter."""

    reply = Counted
    collection: str
    shards: list[int]
    filter: bytes | None
    at_least: dict[int, Position]
    level: ReadConsistency = ReadConsistency.session
    decided: Decided = {}
    source: str = ""


Read: TypeAlias = Search | Get | ListIds | Count
"""What only looks: it may be stopped at any time, when nobody waits for it any more. `source` is the address of the
client that asks, for which no more than a share of a node works at once."""


def is_read(request: Request[Any]) -> bool:
    """Whether a request only looks."""
    return isinstance(request, Read)


class Report(Reply, frozen=True):
    """Every shard that this node serves, and those that it is about to serve, as collection/number."""

    shards: list[ShardReport]
    opening: list[str] = []


class GetReport(Request[Report], frozen=True, tag=True, kw_only=True):
    """Ask how a node's shards fare; `collection` (uuid) narrows it."""

    reply = Report
    collection: str | None = None


class Positions(Reply, frozen=True):
    """How far the log of each replica here is durable, of those that are in sync."""

    durable: dict[int, Position]
    failed: Failures


class GetPositions(Request[Positions], frozen=True, tag=True, kw_only=True):
    """Ask for durable positions: what a read at `quorum` must show (rule 13)."""

    reply = Positions
    collection: str
    shards: list[int]


class ShardDigests(msgspec.Struct, frozen=True, array_like=True):
    """What the rows of one replica were as of some seqs: how many, and the sum of their hashes."""

    shard: ShardId
    incarnation: str
    notes: dict[int, tuple[int, int]]


class Digests(Reply, frozen=True):
    """Those of the replicas that are open and in sync here."""

    shards: list[ShardDigests]


class GetDigests(Request[Digests], frozen=True, tag=True, kw_only=True):
    """Ask for the digests of replicas, to compare them with the primary's (decisions/integrity.py)."""

    reply = Digests
    shards: list[ShardId]


class BeginAnew(Request["Known"], frozen=True, tag=True, kw_only=True):
    """Tell a replica of this incarnation that its rows are wrong; `known` in the answer: it is here."""

    shard: ShardId
    incarnation: str
    why: str


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What a node holds of a shard, in use or not; see `veccluster.decisions.lost_quorum.Copy`."""

    durable: Position
    epoch: int
    vectors: int
    written_ns: int | None
    doubt: str | None
    trouble: str | None
    is_mendable: bool
    committed: Position = (0, 0)
    lineage: tuple[tuple[int, int], ...] = ()


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What a record said of a shard; see `veccluster.decisions.replication.values.Configuration`."""

    epoch: Epoch
    primary: Member
    in_sync: list[Member]
    learners: list[Member]
    min_in_sync: int
    replicas: int
    successor: Member | None
    revision: Revision


class CopyReport(Reply, frozen=True):
    """As which member of the shard the node answers, what it holds of it, or why it cannot say that now."""

    member: Member
    copy: Copy | None = None
    busy: str | None = None
    history: str = ""
    """The history of etcd that is in force there."""
    known: Configuration | None = None
    """What it goes by, if etcd's record of the shard is not to be believed now."""
    serves: bool = False
    """As the primary of that."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about a batch over several shards."""

    operation: str
    attempt: int
    verdict: Verdict
    prepared: dict[int, Seq]
    revision: Revision


class Decisions(Reply, frozen=True):
    """By collection (uuid), all that a node knows, also what etcd has forgotten when it went back."""

    history: str
    """The history of etcd that is in force there."""
    made: dict[str, list[Decision]]


class GetDecisions(Request[Decisions], frozen=True, tag=True, kw_only=True):
    """Ask for all decisions about batches over several shards."""

    reply = Decisions


class GetCopy(Request[CopyReport], frozen=True, tag=True, kw_only=True):
    """Ask for whatever the node holds of a shard, whether the shard's record names it or not."""

    reply = CopyReport
    shard: ShardId


class Pong(Reply, frozen=True):
    """The node is there."""

    boot: str


class Ping(Request[Pong], frozen=True, tag=True, kw_only=True):
    """Ask a node whether it is there, on the loop that serves clients."""

    reply = Pong


class Known(Reply, frozen=True):
    """Whether the node has heard of it in time."""

    known: bool


BeginAnew.reply = Known


class AwaitCollection(Request[Known], frozen=True, tag=True, kw_only=True):
    """Wait until a node knows that this collection can be used, or, with `gone`, that it was deleted."""

    reply = Known
    name: str
    uuid: str
    gone: bool


AnyRequest = (
    Upsert
    | DeleteIds
    | DeleteWhere
    | Search
    | Get
    | ListIds
    | Count
    | GetReport
    | GetDecisions
    | GetPositions
    | PrepareBatch
    | SettleBatch
    | GetShowing
    | GetDigests
    | BeginAnew
    | GetCopy
    | Ping
    | AwaitCollection
)
