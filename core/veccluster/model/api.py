"""The bodies of the HTTP interface: what a request may hold and what a reply holds.

These classes check requests and are what the OpenAPI document is made of. The bulk of upserts and searches, the vectors
themselves, never passes through here: the codecs of the node read them straight into arrays, by the same rules.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic import model_validator as validated
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError

from veccluster.errors import InvalidRequest
from veccluster.model.limits import (
    MAX_ERRORS,
    MAX_FILTERABLE,
    MAX_ID_BYTES,
    MAX_REPLICATION_FACTOR,
    MAX_SHARDS,
    NAME_PATTERN,
    Limits,
)
from veccluster.model.names import FieldPath, unique
from veccluster.model.spec import IndexSpec, VecClusterSpec
from veccluster.model.state import Collection as StoredCollection
from veccluster.model.state import Metric, NodeState, ReadConsistency, WriteConsistency
from veccluster.model.units import ShardCount, Shards
from veccluster.model.validation import FieldError, broken_rules, field_errors, kind_of

# ---- requests --------------------------------------------------------------------------------------------------------


class Request(BaseModel):
    """Base of request bodies: nothing unknown, nothing coerced."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, body: bytes | str) -> Self:
        """Read JSON; `InvalidRequest` names every field that is wrong."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            listed = field_errors(error, cls, most=MAX_ERRORS)
            raise invalid(listed, max(error.error_count(), len(listed))) from None
        except UnicodeEncodeError:
            raise InvalidRequest("the body must be JSON in UTF-8") from None


def invalid(errors: list[FieldError], count: int = 0) -> InvalidRequest:
    """The exception that says all of `errors`, or the first hundred of `count`."""
    listed = errors[:MAX_ERRORS]
    sentences = "; ".join(f"{e['field'] or 'the body'}: {e['reason']}" for e in listed)
    more = {"more_errors": count - len(listed)} if len(listed) == MAX_ERRORS < count else {}
    return InvalidRequest(sentences, listed, **more)


def id_problem(value: object) -> str | None:
    """What is wrong with an id; None for a good one."""
    if not isinstance(value, str):
        return f"must be a string of 1 to {MAX_ID_BYTES} bytes, is {kind_of(value)}"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "must be text that UTF-8 can express; it holds half of a surrogate pair"
    if not 1 <= size <= MAX_ID_BYTES:
        return f"must be a string of 1 to {MAX_ID_BYTES} bytes of UTF-8, has {size}"
    return None


def _id(value: object) -> str:
    if problem := id_problem(value):
        raise PydanticCustomError("unit", "{reason}", {"reason": problem})
    assert isinstance(value, str)
    return value


Id = Annotated[str, PlainValidator(_id), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES})]
FilterObject = Annotated[dict[str, Any], WithJsonSchema({"$ref": "#/components/schemas/Filter"})]
VectorNumbers = Annotated[list[float], Field(min_length=1)]


SHARDS: JsonSchemaValue = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_SHARDS}, {"const": "auto"}]}


class Index(IndexSpec):
    """Parameters of the graph that answers searches."""

    model_config = ConfigDict(alias_generator=str)


class CreateCollection(Request):
    """What a new collection should be; what is left out is as the cluster's defaults say."""

    dimension: Annotated[int, Field(ge=1)]
    """Components of each vector."""
    metric: Metric
    """How far apart two vectors are."""
    shards: Annotated[Shards, ShardCount(), WithJsonSchema(SHARDS)] | None = None
    """A number from 1 to 128, or "auto" for one a node."""
    replication_factor: Annotated[int, Field(ge=1, le=MAX_REPLICATION_FACTOR)] | None = None
    """Copies of each shard."""
    min_in_sync: Annotated[int, Field(ge=1, le=MAX_REPLICATION_FACTOR)] | None = None
    """Copies that must be in sync for a shard to accept writes."""
    index: Index | None = None
    """Parameters of the graph that answers searches."""
    filterable: (
        Annotated[
            tuple[FieldPath, ...],
            Field(max_length=MAX_FILTERABLE, json_schema_extra={"uniqueItems": True}),
            AfterValidator(unique),
        ]
        | None
    ) = None
    """Metadata fields with an index of their own, for filters that use them often."""
    read_consistency: ReadConsistency | None = None
    """For reads that do not say."""
    write_consistency: WriteConsistency | None = None
    """For writes that do not say."""

    def collection(
        self, name: str, *, uuid: str, cluster: VecClusterSpec, nodes: int, limits: Limits
    ) -> StoredCollection:
        """The collection that this asks for in a cluster of `nodes` nodes; `InvalidRequest` if there cannot be."""
        shards = cluster.shards if self.shards is None else self.shards
        factor = self.replication_factor or cluster.effective_replication_factor
        in_sync = self.min_in_sync or (
            min(cluster.effective_min_in_sync, factor) if self.replication_factor is None else factor // 2 + 1
        )
        if errors := [*_name_errors(name), *self._errors(factor, in_sync, max(nodes, cluster.nodes), limits)]:
            raise invalid(errors)
        return StoredCollection(
            name=name,
            uuid=uuid,
            dimension=self.dimension,
            metric=self.metric,
            shards=max(nodes, 1) if shards == "auto" else shards,
            shards_asked=None if shards == "auto" else shards,
            replication_factor=factor,
            min_in_sync=in_sync,
            index=(self.index or Index()).parameters(),
            filterable=self.filterable or (),
            read_consistency=self.read_consistency or cluster.consistency.read,
            write_consistency=self.write_consistency or cluster.consistency.write,
        )

    def _errors(self, factor: int, in_sync: int, nodes: int, limits: Limits) -> list[FieldError]:
        errors: list[FieldError] = []
        if self.dimension > limits.max_dimension:
            reason = f"must be at most {limits.max_dimension}, is {self.dimension}"
            errors.append({"field": "dimension", "reason": reason})
        if factor > nodes:
            reason = f"must be at most the number of nodes ({nodes}), is {factor}"
            errors.append({"field": "replication_factor", "reason": reason})
        if in_sync > factor:
            reason = f"must be at most replication_factor ({factor}), is {in_sync}"
            errors.append({"field": "min_in_sync", "reason": reason})
        for i, field in enumerate(self.filterable or ()):
            if not _NO_INDEX.isdisjoint(field):
                reason = "must not hold quotation marks, backslashes or control characters"
                errors.append({"field": f"filterable[{i}]", "reason": reason})
        return errors


_NO_INDEX = frozenset(map(chr, (*range(0x20), 0x22, 0x5C, 0x7F)))
"""Characters of keys that SQLite's JSON paths cannot express, so that no index can be made."""
_COMPARED = (
    "dimension",
    "metric",
    "replication_factor",
    "min_in_sync",
    "index",
    "filterable",
    "read_consistency",
    "write_consistency",
)


def differences(held: StoredCollection, asked: StoredCollection) -> list[str]:
    """Members in which a collection differs from what is asked for under its name, each with both values."""
    found = [f for f in _COMPARED if getattr(held, f) != getattr(asked, f)]
    said = [f"{f} is {_said(getattr(held, f))}, not {_said(getattr(asked, f))}" for f in found]
    if held.shards_asked != asked.shards_asked:
        said.append(f"shards is {held.shards_asked or 'auto'}, not {asked.shards_asked or 'auto'}")
    return said


def _said(value: object) -> str:
    return ", ".join(value) or "empty" if isinstance(value, tuple) else str(value)


def check_name(name: str) -> str:
    """The name of a collection as it is; `InvalidRequest` if there can be none of that name."""
    if errors := _name_errors(name):
        raise invalid(errors)
    return name


def _name_errors(name: str) -> list[FieldError]:
    if re.fullmatch(NAME_PATTERN, name):
        return []
    reason = "must be 1 to 63 lower-case letters, digits, - and _, starting with a letter or digit"
    return [{"field": "name", "reason": reason}]


class UpsertItem(Request):
    """A vector to be stored under its id, in place of what the id held."""

    id: Id
    """1 to 512 bytes of UTF-8."""
    vector: VectorNumbers
    """As many finite numbers as the collection's dimension; kept as float32."""
    metadata: dict[str, Any] | None = None
    """Any object, for filters and for you."""


class Upsert(Request):
    """A batch of vectors; refused whole if one of them is invalid."""

    vectors: Annotated[list[UpsertItem], Field(min_length=1)]
    atomic: bool = False
    """Store all or none of it, also when it spans shards."""


class SearchOptions(Request):
    """What a search asks for, but for the query vectors themselves."""

    k: Annotated[int, Field(ge=1)] = 10
    """How many results for each query."""
    filter: FilterObject | None = None
    """Only vectors that match."""
    include: Annotated[list[Literal["metadata", "vector"]], Field(max_length=2)] | None = None
    """What to return besides id, distance and score."""
    ef: Annotated[int, Field(ge=1)] | None = None
    """Candidates to keep while searching: more find more and take longer. As the collection says when left out."""
    exact: bool = False
    """Look at every vector instead of the graph."""
    consistency: ReadConsistency | None = None
    """What the search may miss. As the collection says when left out."""
    allow_partial: bool = False
    """Answer even if some shards cannot, and say which."""

    def check(self, limits: Limits) -> Self:
        """The same; `InvalidRequest` if it is more than the limits allow."""
        bounds = (("k", self.k, limits.max_k), ("ef", self.ef or 1, limits.max_ef))
        errors: list[FieldError] = [
            {"field": name, "reason": f"must be at most {most}, is {asked}"}
            for name, asked, most in bounds
            if asked > most
        ]
        if errors:
            raise invalid(errors)
        return self


class Search(SearchOptions):
    """One query or many: `vector`, or `vectors`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["vector"]}, {"required": ["vectors"]}]})

    vector: VectorNumbers | None = None
    """One query; the reply's `results` are a list of hits."""
    vectors: Annotated[list[VectorNumbers], Field(min_length=1)] | None = None
    """Many queries; the reply's `results` are a list of such lists."""


class BinarySearch(SearchOptions):
    """The arguments of a search whose body is the vectors themselves."""

    queries: Annotated[int, Field(ge=1)] | None = None
    """How many vectors the body holds; where there are several, this or `dimension` must be given."""
    dimension: Annotated[int, Field(ge=1)] | None = None
    """How many numbers each of them has, which must be the collection's dimension."""
    many: bool | None = None
    """Whether the reply's `results` are to be a list of lists; when left out, if there are several vectors."""


class Count(Request):
    """What to count."""

    filter: FilterObject | None = None
    """Only vectors that match; all of them when left out."""
    consistency: ReadConsistency | None = None
    """What the count may miss. As the collection says when left out."""


class GetVectors(Request):
    """Which vectors to get."""

    ids: Annotated[list[Id], Field(min_length=1, fail_fast=True)]
    """Ids; those that are not there are no error. One that is there twice is got once."""
    include: Annotated[list[Literal["metadata", "vector"]], Field(max_length=2)] | None = None
    """What to return besides the id; both when left out."""
    consistency: ReadConsistency | None = None
    """What the read may miss. As the collection says when left out."""

    def check(self, limits: Limits) -> Self:
        """The same; `InvalidRequest` if it is more than the limits allow."""
        if len(self.ids) > limits.max_list:
            raise InvalidRequest.field("ids", f"must hold at most {limits.max_list} ids, holds {len(self.ids)}")
        return self

    @property
    def included(self) -> frozenset[str]:
        """What to return besides the id."""
        return frozenset(("metadata", "vector") if self.include is None else self.include)


class Recover(Request):
    """Whether to go on with what is left of a shard, or only to say what that would be and what it would lose."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"accept_data_loss": {"const": True}}, "required": ["accept_data_loss"]},
            "then": {"properties": {"expected": {"type": "string"}}, "required": ["expected"]},
        }
    )

    accept_data_loss: bool = False
    """Do it. What the report says is lost then cannot be brought back."""
    expected: str | None = None
    """`expected` of the report that is accepted; nothing is done if it would be another one by now."""

    @validated(mode="after")
    def _names_what_it_accepts(self) -> Self:
        if self.accept_data_loss and self.expected is None:
            reason = "must be given with accept_data_loss: it is in the report that is accepted"
            raise broken_rules([{"field": "expected", "reason": reason}])
        return self


class Delete(Request):
    """Which vectors to delete: these ids, or what matches the filter."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["ids"]}, {"required": ["filter"]}]})

    ids: Annotated[list[Id], Field(min_length=1, fail_fast=True)] | None = None
    """Ids; those that are not there are no error."""
    filter: (
        Annotated[
            dict[str, Any],
            Field(min_length=1),
            WithJsonSchema({"allOf": [{"$ref": "#/components/schemas/Filter"}], "minProperties": 1}),
        ]
        | None
    ) = None
    """A filter with at least one condition."""

    @validated(mode="after")
    def _one_of_both(self) -> Self:
        if nulls := [name for name in sorted(self.model_fields_set) if getattr(self, name) is None]:
            raise broken_rules([{"field": name, "reason": "must not be null; leave it out"} for name in nulls])
        if (self.ids is None) == (self.filter is None):
            reason = "must be given, or else filter" if self.ids is None else "must be left out when filter is given"
            raise broken_rules([{"field": "ids", "reason": reason}])
        return self

    def check(self, limits: Limits) -> Self:
        """The same; `InvalidRequest` if it is more than the limits allow."""
        if self.ids is not None and len(self.ids) > limits.max_batch:
            raise InvalidRequest.field("ids", f"must hold at most {limits.max_batch} ids, holds {len(self.ids)}")
        return self


# ---- replies ---------------------------------------------------------------------------------------------------------


class Reply(BaseModel):
    """Base of replies. Clients ignore members that they do not know, so that later versions may add some."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Collection(Reply):
    """A collection as it was created."""

    name: str
    uuid: str
    """Distinguishes collections that had the same name one after the other."""
    dimension: int
    metric: Metric
    shards: int
    replication_factor: int
    min_in_sync: int
    index: Index
    filterable: list[str]
    read_consistency: ReadConsistency
    write_consistency: WriteConsistency

    @classmethod
    def of(cls, stored: StoredCollection, **more: Any) -> Self:
        """The reply about a collection; `more` are the members that a subclass adds."""
        index = stored.index
        return cls(
            name=stored.name,
            uuid=stored.uuid,
            dimension=stored.dimension,
            metric=stored.metric,
            shards=stored.shards,
            replication_factor=stored.replication_factor,
            min_in_sync=stored.min_in_sync,
            index=Index(
                m=index.m, ef_construction=index.ef_construction, ef_search=index.ef_search, precision=index.precision
            ),
            filterable=list(stored.filterable),
            read_consistency=stored.read_consistency,
            write_consistency=stored.write_consistency,
            **more,
        )


class Collections(Reply):
    """Every collection, by name."""

    collections: list[Collection]


class ShardState(Reply):
    """One shard of a collection."""

    number: int
    primary: str | None
    """The node that takes its writes; null while it is being placed."""
    epoch: int
    available: bool
    """Whether it can be read and written now."""
    vectors: int | None = None
    """null while its node cannot be asked, as all below."""
    indexed: int | None = None
    """Vectors that are in the graph; the others are scanned, exactly."""
    building: bool | None = None
    """Whether a part of the index is being built."""
    disk_bytes: int | None = None
    memory_bytes: int | None = None


class CollectionDetail(Collection):
    """A collection and how it is."""

    count: int | None
    """Vectors; null if some shard could not be asked."""
    index_state: Literal["ready", "building", "unknown"]
    """`ready`: nothing is being built; `unknown`: some shard could not be asked."""
    shard_states: list[ShardState]


class Upserted(Reply):
    """The vectors are stored, durably."""

    upserted: int
    token: str
    """Session token: a read that sends it sees this write."""


class Deleted(Reply):
    """The vectors are gone, durably."""

    deleted: int
    """How many there were."""
    token: str
    """Session token: a read that sends it sees this write."""


class Hit(Reply):
    """One neighbour."""

    id: str
    distance: float
    """Smaller is nearer: 1 - cos, squared Euclidean, or -dot."""
    score: float
    """Larger is better: cos, -distance, or dot."""
    metadata: dict[str, Any] | None = None
    """If included."""
    vector: list[float] | None = None
    """If included; as it was given."""


class SearchReply(Reply):
    """The nearest vectors, nearest first; equally near ones by id."""

    results: list[Hit] | list[list[Hit]]
    """A list of hits for `vector`; for `vectors` a list of such lists, in their order."""
    partial: bool
    """Whether shards are missing from the answer, which only `allow_partial` permits."""
    missing_shards: list[int]
    """Their numbers."""
    token: str
    """Session token: a later read that sends it sees at least what this one saw."""
    took_ms: float
    """Time in this node, in milliseconds."""


class Vector(Reply):
    """A stored vector."""

    id: str
    vector: list[float]
    """As it was given, in float32."""
    metadata: dict[str, Any]


class FoundVector(Reply):
    """A vector that was asked for by its id."""

    id: str
    vector: list[float] | None = None
    """If included; as it was given, in float32."""
    metadata: dict[str, Any] | None = None
    """If included."""


class FoundVectors(Reply):
    """The vectors that there are among those asked for."""

    vectors: list[FoundVector]
    """In the order of the ids in the request."""
    missing: list[str]
    """Ids that are not there, likewise."""


class Page(Reply):
    """A part of a listing, in the order of the ids' UTF-8 bytes."""

    vectors: list[Vector]
    cursor: str | None
    """Asks for what follows; null on the last page."""


class Counted(Reply):
    """How many vectors match."""

    count: int


class FoundCopy(Reply):
    """A copy of a shard that was found."""

    node: str
    incarnation: str
    """Of the contents of its disk."""
    role: Literal["in sync", "learner", "not in the record"]
    """What the shard's record says of it."""
    epoch: int
    """Of its last operation."""
    seq: int
    """Of its last operation: how many it has had."""
    vectors: int
    """As of the last operation that it knows to be committed."""
    written: str | None
    """When its last operation was asked for, in UTC, by the clock of the primary of then; null if that is not known."""
    problem: str | None
    """Why it cannot be used, or may lack something before its last operation; null if nothing is wrong with it."""


class MissingCopy(Reply):
    """A copy that the shard's record calls in sync and that cannot be used."""

    node: str
    incarnation: str
    why: str
    since: str | None
    """When its node was last known to be there, or a little later, in UTC; null if that is not known."""


class Continuation(Reply):
    """With what a shard goes on."""

    primary: str
    epoch: int
    in_sync: list[str]
    min_in_sync: int


class Recovery(Reply):
    """What is left of a shard, and what it means to go on with that."""

    collection: str
    shard: int
    epoch: int
    """By the shard's record, as all below."""
    primary: str
    in_sync: list[str]
    min_in_sync: int
    copies: list[FoundCopy]
    """Every one that was found, in use or not; the best first."""
    missing: list[MissingCopy]
    silent: list[str]
    """Nodes that gave no answer."""
    refusal: str | None
    """Why nothing is to be accepted here; null if the loss can be accepted."""
    then: Continuation | None
    """With what the shard would go on, or goes on by now; null if it is refused."""
    losses: list[str]
    """What is lost and what follows, in words."""
    expected: str
    """To be sent to accept this."""
    done: bool
    """Whether it was accepted: this is what was done."""


class NodeInfo(Reply):
    """A node of the cluster."""

    id: str
    address: str
    zone: str
    state: NodeState | Literal["down"]
    needed: bool
    """Whether a shard that can usually do without one node could not be written if this one stopped now."""
    opening: list[str]
    """Shards, as collection/number, that it should serve and does not yet."""
    version: str


class ShardCounts(Reply):
    """Shards of all collections."""

    total: int
    under_replicated: int
    unavailable: int
    moving: int


class Cluster(Reply):
    """The whole cluster as one node sees it."""

    health: Literal["healthy", "degraded", "critical"]
    issues: list[str]
    """What is wrong, in words, the gravest first."""
    leader: str | None
    """The node that leads; null while there is none."""
    nodes: list[NodeInfo]
    shards: ShardCounts
    vectors: int | None
    """In all collections; null if some shard could not be asked."""
    version: str
    """Of the node that answers."""
    etcd_version: str | None
    """The oldest among the members of etcd; null if they do not say."""
    etcd_went_back: str | None = None
    """When etcd was last found to have gone back to an older state, and how; null if it never was."""


class Status(Reply):
    """The node is there."""

    status: str


class Readiness(Status):
    """The node answers."""

    opening: list[str]
    """Shards, as collection/number, that it should serve and does not yet; others answer for them meanwhile."""


class ProblemError(Reply):
    """One thing that is wrong with a request."""

    field: str
    reason: str
    """What would be right."""
    index: int | None = None
    """Position of the vector in the batch or stream."""
    id: str | None = None
    """The vector's id, if it is one."""


class Problem(Reply):
    """RFC 9457. Types of problems add members of their own."""

    type: str
    """URI that names the kind of problem."""
    title: str
    status: int
    detail: str
    errors: list[ProblemError] | None = None
    """For bad input: everything that is wrong with it, at most 100."""
    more_errors: int | None = None
    """How many more there were."""
