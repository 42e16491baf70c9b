"""Bodies to arrays and back: JSON, NDJSON, Arrow and bare float32. The rules for each vector are in `rows`.

A JSON upsert is one batch: its ids are distinct, and it is refused whole, with what is wrong with each of its vectors.
A stream (NDJSON, Arrow) may be of any length and is cut into batches of distinct ids: where an id comes again a new
batch begins, so that the later vector replaces the earlier one. The first batch with a mistake ends the stream, after
the batches before it have been handed out. Cuts depend on the content alone, not on how it arrived.

Functions are synchronous work on bytes, to be called from a thread; the two async generators use threads themselves.
Whatever bytes come, nothing but `VecClusterError` leaves. In replies distances and scores are float64, vectors float32,
each printed with as many digits as it takes to read back the same.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from veccluster.decisions.filters import Where
from veccluster.errors import InvalidRequest
from veccluster.model import api
from veccluster.model.limits import MAX_ERRORS, Limits
from veccluster.model.state import Collection, Metric, ReadConsistency
from veccluster.model.validation import did_you_mean, kind_of
from veccluster_node.engine.search import Hit, Query, Stored
from veccluster_node.http.arrow import ArrowReader, Columns, NotArrow
from veccluster_node.http.density import has_more_items, has_more_values
from veccluster_node.http.negotiation import ARROW
from veccluster_node.http.rows import F32, ITEM, MANY, Item, Making, Mistake, read_numbers, unusable
from veccluster_node.runtime.budget import UNBOUNDED, WEIGHT, Ticket
from veccluster_node.service.shard_service import UpsertBatch

M = TypeVar("M", bound=api.Request)

BATCH_BYTES = 16 << 20
"""A batch of a stream ends when its vectors and metadata have come to this size."""


# ---- JSON objects ----------------------------------------------------------------------------------------------------

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_options(model: type[M], body: bytes, limits: Limits) -> M:
    """A body without vectors."""
    if has_more_values(body, limits.max_values):
        raise _about("", f"must hold at most {limits.max_values} JSON values beside vectors")
    return model.parse(body)


def _members(body: bytes, known: Sequence[str]) -> dict[str, bytes]:
    """The members of an object as JSON text; `InvalidRequest` if it is none or has others than the known ones."""
    try:
        members = {name: bytes(raw) for name, raw in _MEMBERS.decode(body).items()}
    except _UNREADABLE as error:
        raise _unlike(body, "an object", error) from None
    unknown = [name for name in members if name not in known]
    if unknown:
        reasons = {name: "is not a known field" + did_you_mean(name, known) for name in unknown[:MAX_ERRORS]}
        errors = [{"field": name, "reason": reason} for name, reason in reasons.items()]
        more = {"more_errors": len(unknown) - len(errors)} if len(unknown) > len(errors) else {}
        raise InvalidRequest(f"{errors[0]['field']}: {errors[0]['reason']}", errors, **more)
    return members


def _list(raw: bytes | None, name: str, wanted: str) -> list[msgspec.Raw]:
    """The items of a list as JSON text."""
    if raw is None:
        raise InvalidRequest.field(name, "must be given")
    try:
        return _LIST.decode(raw)
    except _UNREADABLE as error:
        raise _unlike(raw, wanted, error, name) from None


def _unlike(raw: bytes, wanted: str, said: Exception | None = None, name: str = "") -> InvalidRequest:
    """Why JSON text is not what was wanted: broken, or of another kind. `name` is of the member, if it is one.

    `said` is what its decoder said, for texts that are too much to be decoded once more.
    """
    if has_more_values(raw, MANY):
        return _about(name, f"must be {wanted}: {said or 'it is much more'}")
    try:
        reason = f"must be {wanted}, is {kind_of(orjson.loads(raw))}"
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" + (f" of {name}" if name else "")
        hint = "; JSON has no NaN and no Infinity" if re.search(rb"NaN|Infinity", raw) else ""
        reason = f"is not JSON: {error.msg} at {where}{hint}"
    return _about(name, reason)


def _about(name: str, reason: str) -> InvalidRequest:
    """An error about a member, or about the body itself, whose name is empty."""
    return InvalidRequest(f"{name}: {reason}" if name else f"the body {reason}", [{"field": name, "reason": reason}])


# ---- upserts ---------------------------------------------------------------------------------------------------------


class _Upsert(msgspec.Struct, forbid_unknown_fields=True):
    vectors: list[Item]
    atomic: bool = False


_UPSERT: Final = msgspec.json.Decoder(_Upsert)


def decode_upsert_json(body: bytes, collection: Collection, limits: Limits) -> tuple[UpsertBatch, bool]:
    """The batch of a JSON body, and whether it is to be atomic."""
    if body.count(b"{") > 4 * limits.max_batch:
        _check_rows(body, limits)
    try:
        asked = _UPSERT.decode(body)
    except _UNREADABLE:
        return _decode_upsert_slowly(body, collection, limits)
    making = _making(len(asked.vectors), collection, limits)
    for number, item in enumerate(asked.vectors):
        making.add_item(number, item)
    return making.finish(), asked.atomic


def _decode_upsert_slowly(body: bytes, collection: Collection, limits: Limits) -> tuple[UpsertBatch, bool]:
    """The same for a body of which some member is not as it should be, to say which ones and why."""
    _check_rows(body, limits)
    members = _members(body, _Upsert.__struct_fields__)
    items = _list(members.get("vectors"), "vectors", "a list of objects with id, vector and metadata")
    if members.get("atomic", b"false").strip() not in (b"true", b"false"):
        raise _unlike(members["atomic"], "true or false", name="atomic")
    making = _making(len(items), collection, limits)
    for number, item in enumerate(items):
        making.add_json(number, item)
    return making.finish(), members.get("atomic") == b"true"


def _check_rows(body: bytes, limits: Limits) -> None:
    """Refuse a body with far too many vectors before they are objects; commas of its two levels tell how many."""
    if has_more_items(body, limits.max_batch + len(_Upsert.__struct_fields__), depth=2):
        raise InvalidRequest.field("vectors", f"must be 1 to {limits.max_batch} vectors, are more")


def _making(rows: int, collection: Collection, limits: Limits) -> Making:
    if not 1 <= rows <= limits.max_batch:
        raise InvalidRequest.field("vectors", f"must be 1 to {limits.max_batch} vectors, are {rows}")
    return Making(collection, limits, rows)


class _Batches:
    """Cuts rows into batches of distinct ids, none too large."""

    def __init__(self, collection: Collection, limits: Limits, rows: int) -> None:
        self.collection = collection
        self.limits = limits
        self.rows = min(rows, limits.max_batch)
        self.number = 0
        """Of the next row in the body."""
        self._making: Making | None = None
        self._last = 0
        """Bytes of the last batch, which is on its way to the disks."""

    @property
    def held(self) -> int:
        """Bytes of the batch in the making and of the last one, which is there as arrays and as messages."""
        return (self._making.size if self._making else 0) + 2 * self._last

    def before(self, id_: str | None) -> Iterator[UpsertBatch]:
        """The batch that must end before a row with this id is added, if one must."""
        making = self._making
        if making and (id_ in making.ids or self.number - making.first >= self.rows or making.size >= BATCH_BYTES):
            yield from self.end()

    def add(self) -> tuple[Making, int]:
        """Where the next row goes, and its number."""
        if self._making is None:
            self._making = Making(self.collection, self.limits, self.rows, self.number)
        self.number += 1
        return self._making, self.number - 1

    def end(self) -> Iterator[UpsertBatch]:
        """The last batch, or the one that is complete."""
        if self._making:
            self._last = self._making.size
            yield self._making.finish()
        elif not self.number:
            raise InvalidRequest("the body must hold at least one vector, it is empty")
        self._making = None


class _Stream(Protocol):
    """Takes a body in pieces and gives the batches that are complete."""

    def held_with(self, piece: int) -> int:
        """Bytes that are held when so many more have come."""

    def feed(self, chunk: bytes) -> Iterator[UpsertBatch]:
        """The batches that end within this piece."""

    def close(self) -> Iterator[UpsertBatch]:
        """The last batch."""


class _NdjsonStream:
    """One vector object a line; empty lines are skipped."""

    def __init__(self, collection: Collection, limits: Limits, batch_rows: int) -> None:
        self._batches = _Batches(collection, limits, batch_rows)
        self._limit = limits.max_record_size
        self._pending = bytearray()

    def held_with(self, piece: int) -> int:
        """Bytes that are held when so many more have come."""
        return WEIGHT * (len(self._pending) + piece) + self._batches.held

    def feed(self, chunk: bytes) -> Iterator[UpsertBatch]:
        """The batches that end within this piece."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield from self._take(bytes(self._pending) + line)
            self._pending.clear()
        self._pending += rest
        self._check(len(self._pending))

    def close(self) -> Iterator[UpsertBatch]:
        """The last batch; the last line may lack its end."""
        yield from self._take(bytes(self._pending))
        yield from self._batches.end()

    def _take(self, line: bytes) -> Iterator[UpsertBatch]:
        self._check(len(line))
        if not line.strip():
            return
        try:
            item = ITEM.decode(line)
        except _UNREADABLE:
            yield from self._batches.before(None)
            making, number = self._batches.add()
            making.add_json(number, line)
        else:
            yield from self._batches.before(item.id)
            making, number = self._batches.add()
            making.add_item(number, item)

    def _check(self, size: int) -> None:
        if size > self._limit:
            number = self._batches.number
            reason = f"must be a line of at most {self._limit} bytes"
            error = {"index": number, "id": None, "field": "", "reason": reason}
            raise InvalidRequest(f"vector {number} {reason}", [error])


class _ArrowStream:
    """The rows of record batches, one after the other."""

    def __init__(self, collection: Collection, limits: Limits, batch_rows: int) -> None:
        self._batches = _Batches(collection, limits, batch_rows)
        self._reader = ArrowReader(collection.dimension, limits)

    def held_with(self, piece: int) -> int:
        """Bytes that are held when so many more have come."""
        return WEIGHT * (self._reader.held + piece) + self._batches.held

    def feed(self, chunk: bytes) -> Iterator[UpsertBatch]:
        """The batches that end within this piece."""
        try:
            for columns in self._reader.feed(chunk):
                for start in range(0, len(columns), self._batches.rows):
                    yield from self._take(columns, start, min(start + self._batches.rows, len(columns)))
        except (NotArrow, Mistake) as error:
            raise self._refusal(error) from None

    def close(self) -> Iterator[UpsertBatch]:
        """The last batch."""
        try:
            self._reader.close()
        except NotArrow as error:
            raise self._refusal(error) from None
        yield from self._batches.end()

    def _take(self, columns: Columns, start: int, stop: int) -> Iterator[UpsertBatch]:
        for row, (id_, metadata) in enumerate(columns.texts(start, stop), start):
            yield from self._batches.before(id_)
            making, number = self._batches.add()
            making.add_row(number, id_, partial(columns.vector, row), metadata)

    def _refusal(self, error: NotArrow | Mistake) -> InvalidRequest:
        if isinstance(error, Mistake):
            return InvalidRequest.field(error.field, error.reason)
        rows = self._batches.number
        return InvalidRequest(f"{error} (after {rows} vectors)" if rows else str(error))


async def decode_upsert_ndjson(
    chunks: AsyncIterator[bytes],
    collection: Collection,
    limits: Limits,
    batch_rows: int,
    ticket: Ticket = UNBOUNDED,
) -> AsyncIterator[UpsertBatch]:
    """The batches of at most `batch_rows` vectors that a stream of JSON lines stands for, as they become complete."""
    async for batch in _decoded(_NdjsonStream(collection, limits, batch_rows), chunks, ticket):
        yield batch


async def decode_upsert_arrow(
    chunks: AsyncIterator[bytes],
    collection: Collection,
    limits: Limits,
    batch_rows: int,
    ticket: Ticket = UNBOUNDED,
) -> AsyncIterator[UpsertBatch]:
    """The batches of at most `batch_rows` vectors that an Arrow stream stands for, as they become complete."""
    async for batch in _decoded(_ArrowStream(collection, limits, batch_rows), chunks, ticket):
        yield batch


async def _decoded(stream: _Stream, chunks: AsyncIterator[bytes], ticket: Ticket) -> AsyncIterator[UpsertBatch]:
    async for chunk in chunks:
        await ticket.hold(stream.held_with(len(chunk)))
        found = stream.feed(chunk)
        while (batch := await asyncio.to_thread(next, found, None)) is not None:
            yield batch
    found = stream.close()
    while (batch := await asyncio.to_thread(next, found, None)) is not None:
        yield batch


# ---- searches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SearchRequest:
    """What to search for, and how to: `many` says that the reply is a list of lists."""

    query: Query
    many: bool
    consistency: ReadConsistency | None
    allow_partial: bool


def decode_search_json(body: bytes, collection: Collection, limits: Limits) -> SearchRequest:
    """A search with `vector` or `vectors`; the filter has been checked."""
    known = list(api.Search.model_fields)
    if has_more_items(body, limits.max_queries + limits.max_dimension + len(known), depth=2):
        raise InvalidRequest.field("vectors", f"must be 1 to {limits.max_queries} vectors, are more")
    members = _members(body, known)
    one, many = members.pop("vector", None), members.pop("vectors", None)
    rest = b",".join(orjson.dumps(name) + b":" + raw for name, raw in members.items())
    options = decode_options(api.Search, b"{" + rest + b"}", limits).check(limits)
    if one is not None and many is not None:
        raise InvalidRequest.field("vector", "must be left out when vectors are given")
    if one is not None:
        lists = {"vector": one}
    elif many is not None:
        lists = {f"vectors[{i}]": bytes(raw) for i, raw in enumerate(_list(many, "vectors", "a list of vectors"))}
    else:
        raise InvalidRequest.field("vector", "must be given, or else vectors")
    _check_size(len(lists), options, collection, limits, "vectors")
    vectors = np.zeros((len(lists), collection.dimension), np.float32)
    errors = []
    for row, (name, raw) in enumerate(lists.items()):
        try:
            with np.errstate(over="ignore"):
                vectors[row] = read_numbers(raw, collection.dimension, name)
        except Mistake as mistake:
            errors.append(mistake)
            vectors[row] = 1  # nothing more is wrong with this one
    errors += _unusable_queries(vectors, collection, list(lists))
    _refuse(errors)
    return _search_request(vectors, many is not None, options, limits)


def decode_search_binary(
    body: bytes, query: Mapping[str, str], collection: Collection, limits: Limits
) -> SearchRequest:
    """A search whose body is one or more vectors of little-endian float32 and whose other arguments are in the query.

    Bytes do not say where a vector ends: of several, `queries` and `dimension` say it. `include` is a list with commas,
    `filter` JSON text. `many` (true or false) says whether the reply is to be a list of lists; when left out it is if
    there are several vectors.
    """
    options = api.BinarySearch.parse(_query_as_json(query)).check(limits)
    _check_shape(len(body), options, collection.dimension)
    vectors = np.frombuffer(body, "<f4").reshape(-1, collection.dimension).astype(np.float32, copy=False)
    _check_size(len(vectors), options, collection, limits, "")
    if options.many is False and len(vectors) > 1:
        raise InvalidRequest.field("many", f"must not be false with {len(vectors)} vectors")
    _refuse(_unusable_queries(vectors, collection, [f"vectors[{i}]" for i in range(len(vectors))]))
    many = len(vectors) > 1 if options.many is None else options.many
    return _search_request(vectors, many, options, limits)


def _check_shape(size: int, said: api.BinarySearch, dimension: int) -> None:
    """Refuse a body that is not as many vectors of the collection's dimension as it is said to be."""
    if said.dimension is not None and said.dimension != dimension:
        raise InvalidRequest.field("dimension", f"must be {dimension}, the collection's; is {said.dimension}")
    one = dimension * 4
    if not size or size % one:
        what = f"one or more vectors of {dimension} little-endian float32 ({one} bytes each)"
        raise _about("", f"must be {what}, is {size} bytes")
    if said.queries is not None and size != said.queries * one:
        raise InvalidRequest.field("queries", _other_shape(size, said.queries, dimension))
    if size > one and said.dimension is None and said.queries is None:
        reason = f"must be given, or else dimension: the body may be {size // one} vectors of {dimension} or others"
        raise InvalidRequest.field("queries", reason)


def _other_shape(size: int, queries: int, dimension: int) -> str:
    if size % (queries * 4):
        return f"must be as many as the body holds of {dimension} float32 each, {size // (dimension * 4)}; is {queries}"
    held = size // (queries * 4)
    return f"must be vectors of {dimension} numbers, the collection's dimension; the body holds {queries} of {held}"


def _query_as_json(query: Mapping[str, str]) -> bytes:
    """The arguments of a query string as the JSON that they would be in a body; what fits nothing stays a string."""
    parts = []
    for name, text in query.items():
        if name == "include":
            value = orjson.dumps([part for part in text.split(",") if part])
        elif name == "filter" or text in {"true", "false"} or re.fullmatch("-?[0-9]{1,18}", text):
            value = _as_json(name, text)
        else:
            value = orjson.dumps(text)
        parts.append(orjson.dumps(name) + b":" + value)
    return b"{" + b",".join(parts) + b"}"


def _as_json(name: str, text: str) -> bytes:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.field(name, f"must be JSON: {error}") from None
    return text.encode()


def where_of(given: object, limits: Limits) -> Where | None:
    """A filter from a body that has one, or None."""
    return None if given is None else Where.of(given, limits)


def where_of_text(text: str | bytes, limits: Limits) -> Where:
    """A filter from JSON text."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest.field("filter", f"must be JSON: {error}") from None
    return Where.of(value, limits)


def _check_size(queries: int, options: api.SearchOptions, collection: Collection, limits: Limits, name: str) -> None:
    if not 1 <= queries <= limits.max_queries:
        raise _about(name, f"must be 1 to {limits.max_queries} vectors, are {queries}")
    most, included = limits.max_results // queries, ""
    if "vector" in (options.include or ()):
        most = min(most, limits.max_vector_results // (queries * collection.dimension * 4))
        included = f" of dimension {collection.dimension}, when vectors are included"
    if options.k > most:
        raise InvalidRequest.field("k", f"must be at most {most} with {queries} vectors{included}, is {options.k}")


def _unusable_queries(vectors: F32, collection: Collection, names: Sequence[str]) -> list[Mistake]:
    """What is wrong with queries as numbers; for cosine, l2 and dot alike they obey the rules of stored vectors."""
    mistakes = unusable(vectors, collection.metric)
    return [Mistake(m.field.replace("vector", names[row], 1), m.reason) for row, m in mistakes]


def _refuse(mistakes: Sequence[Mistake]) -> None:
    if mistakes:
        listed = [{"field": m.field, "reason": m.reason} for m in mistakes[:MAX_ERRORS]]
        more = {"more_errors": len(mistakes) - MAX_ERRORS} if len(mistakes) > MAX_ERRORS else {}
        raise InvalidRequest(f"{mistakes[0].field}: {mistakes[0].reason}", listed, **more)


def _search_request(vectors: F32, many: bool, options: api.SearchOptions, limits: Limits) -> SearchRequest:
    include = options.include or ()
    query = Query(
        vectors=vectors,
        k=options.k,
        where=where_of(options.filter, limits),
        ef=options.ef,
        exact=options.exact,
        with_metadata="metadata" in include,
        with_vector="vector" in include,
    )
    return SearchRequest(query, many, options.consistency, options.allow_partial)


# ---- replies ---------------------------------------------------------------------------------------------------------

AS_TEXT: Final = 4
"""Bytes of a reply, and of what it is made from, for each byte of a vector: numbers as text are long."""


def size_of_hits(results: Sequence[Sequence[Hit]]) -> int:
    """Bytes that these and the reply of them take."""
    included = (len(hit.vector or b"") + len(hit.metadata or b"") for hits in results for hit in hits)
    return AS_TEXT * (sum(included) + 64 * sum(map(len, results)))


_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


def encode_search(
    results: Sequence[Sequence[Hit]],
    asked: SearchRequest,
    collection: Collection,
    envelope: Mapping[str, Any],
    accept: str,
) -> bytes:
    """The reply to a search, as JSON or Arrow; `envelope` has the members beside `results`.

    In Arrow they are JSON texts in the metadata of the schema, and a row is a hit: `query` is the query's number.
    """
    if accept == ARROW:
        return _search_arrow(results, asked, collection, envelope)
    encoded = [[_hit(hit, collection.metric) for hit in hits] for hits in results]
    return orjson.dumps({"results": encoded if asked.many else encoded[0], **envelope}, option=_NUMPY)


def _hit(hit: Hit, metric: Metric) -> dict[str, Any]:
    shown = {"id": hit.id, "score": score(hit.distance, metric), "distance": hit.distance}
    if hit.metadata is not None:
        shown["metadata"] = orjson.Fragment(hit.metadata)
    if hit.vector is not None:
        shown["vector"] = np.frombuffer(hit.vector, "<f4")
    return shown


def score(distance: float, metric: Metric) -> float:
    """Larger is better: the cosine, the negative squared distance, or the dot product."""
    return (1.0 if metric is Metric.cosine else 0.0) - distance


def _search_arrow(
    results: Sequence[Sequence[Hit]], asked: SearchRequest, collection: Collection, envelope: Mapping[str, Any]
) -> bytes:
    hits = [hit for some in results for hit in some]
    distances = np.array([hit.distance for hit in hits], np.float64)
    columns = {
        "query": pa.array(np.repeat(np.arange(len(results), dtype=np.int32), [len(some) for some in results])),
        "id": pa.array([hit.id for hit in hits], pa.string()),
        "score": pa.array((1.0 if collection.metric is Metric.cosine else 0.0) - distances),
        "distance": pa.array(distances),
    }
    if asked.query.with_metadata:
        columns["metadata"] = pa.array([hit.metadata for hit in hits], pa.binary()).cast(pa.string())
    if asked.query.with_vector:
        columns["vector"] = _vector_column([hit.vector or b"" for hit in hits], collection.dimension)
    return _arrow(columns, envelope)


def encode_vector(stored: Stored) -> bytes:
    """One stored vector as JSON."""
    return orjson.dumps(_stored(stored), option=_NUMPY)


def encode_page(page: Sequence[Stored], cursor: str | None, accept: str, dimension: int) -> bytes:
    """A page of a listing, as JSON or Arrow; in Arrow `cursor` is in the metadata of the schema, as JSON text."""
    if accept != ARROW:
        return orjson.dumps({"vectors": [_stored(stored) for stored in page], "cursor": cursor}, option=_NUMPY)
    columns = {
        "id": pa.array([stored.id for stored in page], pa.string()),
        "vector": _vector_column([stored.vector for stored in page], dimension),
        "metadata": pa.array([stored.metadata for stored in page], pa.binary()).cast(pa.string()),
    }
    return _arrow(columns, {"cursor": cursor})


def encode_found(
    found: Sequence[Stored], missing: Sequence[str], included: AbstractSet[str], accept: str, dimension: int
) -> bytes:
    """The reply to a request for many, as JSON or Arrow, where `missing` is JSON in the metadata of the schema."""
    if accept != ARROW:
        shown = [{k: v for k, v in _stored(one).items() if k == "id" or k in included} for one in found]
        return orjson.dumps({"vectors": shown, "missing": missing}, option=_NUMPY)
    columns = {"id": pa.array([one.id for one in found], pa.string())}
    if "vector" in included:
        columns["vector"] = _vector_column([one.vector for one in found], dimension)
    if "metadata" in included:
        columns["metadata"] = pa.array([one.metadata for one in found], pa.binary()).cast(pa.string())
    return _arrow(columns, {"missing": missing})


def _stored(stored: Stored) -> dict[str, Any]:
    vector = np.frombuffer(stored.vector, "<f4")
    return {"id": stored.id, "vector": vector, "metadata": orjson.Fragment(stored.metadata)}


def _vector_column(vectors: Sequence[bytes], dimension: int) -> Any:
    flat = np.frombuffer(b"".join(vectors), "<f4").astype(np.float32, copy=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), dimension)


def _arrow(columns: Mapping[str, Any], envelope: Mapping[str, Any]) -> bytes:
    batch = pa.RecordBatch.from_pydict(columns, metadata={name: orjson.dumps(v) for name, v in envelope.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body
