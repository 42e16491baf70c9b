# ruff: noqa: A002 - `filter` and `id` are the names that the interface gives these arguments
"""The asyncio client. Every method is one logical request: retried where that is safe, within `timeout` seconds."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import msgspec
import orjson
from numpy.typing import ArrayLike

from veccluster import operation_ids
from veccluster.client import arrays
from veccluster.client.addresses import Addresses
from veccluster.client.arrays import Metadata, Rows
from veccluster.client.results import (
    ClusterInfo,
    CollectionInfo,
    Deleted,
    FloatArray,
    Found,
    GetResult,
    NodeInfo,
    Page,
    Progress,
    SearchResult,
    SearchResults,
    ShardRecovery,
    Upserted,
    Vector,
    convert,
    decode,
    load,
)
from veccluster.client.sessions import Sessions
from veccluster.client.transport import OPERATION_HEADER, Call, Transport
from veccluster.client.values import a_list, a_text, an_object, to_json
from veccluster.client.vectors import one_vector, queries
from veccluster.errors import CollectionNotFound, InvalidRequest, PayloadTooLarge, VecClusterError

if TYPE_CHECKING:
    from veccluster.client.arrow import Source

_T = TypeVar("_T")

DEFAULT_TIMEOUT = 30.0
BATCH_ROWS = 500
"""Rows in one upsert request: about 2 MB of JSON at 384 dimensions."""
UPLOAD_ROWS = 2_000
"""Rows in one bulk request: about 3 MB of Arrow at 384 dimensions, held in memory until it is acknowledged."""
REQUEST_BYTES = 8 << 20
"""Size from which on a request has fewer rows than that; far below what a node takes at once."""
GET_IDS = 1_000
"""Ids in one request for many: as many as a node takes."""
LONGEST_QUERY = 2_000
"""Characters of a filter that still go into the query string beside a binary body; a longer one makes it JSON."""

_JSON = {"Content-Type": "application/json"}
_BINARY = {"Content-Type": "application/octet-stream"}
_ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}

Filter = Mapping[str, Any]


class AsyncClient:
    """A client of one cluster; safe to share between tasks of one event loop, and kept open for reuse.

    `servers` is one address of the cluster or several (`http://host:port`): reads of vectors take turns over those that
    answer, and when one is down another is asked. Errors are the classes of `veccluster.errors`: one for each type of
    problem that a cluster answers with, `Unreachable` when no address answers in time, and `OutcomeUnknown` when a
    write was sent and no answer came. Writes carry an operation id, so a retry is never carried out twice. What this
    client has written it reads, on whichever node: session tokens are kept by itself.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "http://127.0.0.1:8001",
        *,
        timeout: float = DEFAULT_TIMEOUT,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`timeout`: seconds for a request with its retries, unless the call sets its own; `headers`: for each."""
        self.timeout = timeout
        self._transport = Transport(Addresses.parse(servers), headers or {})
        self._sessions = Sessions()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    # Collections

    async def create_collection(
        self,
        name: str,
        dimension: int,
        *,
        metric: str = "cosine",
        shards: int | str | None = None,
        replication_factor: int | None = None,
        min_in_sync: int | None = None,
        index: Mapping[str, Any] | None = None,
        filterable: Sequence[str] | None = None,
        read_consistency: str | None = None,
        write_consistency: str | None = None,
        timeout: float | None = None,
    ) -> CollectionInfo:
        """Create a collection; what is None is left to the cluster. The same again is fine, different raises Conflict.

        `metric`: cosine, l2 or dot. `shards`: "auto" or 1 to 128. `index`: m, ef_construction, ef_search, precision.
        `filterable`: metadata fields that get an index of their own.
        """
        asked = {
            "dimension": dimension,
            "metric": metric,
            "shards": shards,
            "replication_factor": replication_factor,
            "min_in_sync": min_in_sync,
            "index": None if index is None else an_object(index, "index"),
            "filterable": None if filterable is None else _texts(filterable, "filterable"),
            "read_consistency": read_consistency,
            "write_consistency": write_consistency,
        }
        body = to_json({key: value for key, value in asked.items() if value is not None}, "collection")
        call = Call("PUT", _path(name), headers=_JSON | _operation(), body=body, write=True)
        return _collection(load(await self._send(call, timeout)))

    async def collections(self, *, timeout: float | None = None) -> list[CollectionInfo]:
        """All collections, by name."""
        reply = load(await self._send(Call("GET", "/v1/collections"), timeout))
        return [_collection(one) for one in reply["collections"]]

    async def collection(self, name: str, *, timeout: float | None = None) -> CollectionInfo:
        """One collection; raises CollectionNotFound."""
        return _collection(load(await self._send(Call("GET", _path(name)), timeout)))

    async def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a collection with all its vectors; raises CollectionNotFound."""
        call = Call("DELETE", _path(name), headers=_operation(), write=True, done_if=CollectionNotFound)
        await self._send(call, timeout)
        self._sessions.forget(name)

    # Writing

    async def upsert(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: ArrayLike,
        metadata: Sequence[Metadata | None] | None = None,
        *,
        atomic: bool = False,
        batch_rows: int = BATCH_ROWS,
        timeout: float | None = None,
    ) -> Upserted:
        """Store vectors (n, d) under their ids, in place of what they held.

        Sent in batches of at most `batch_rows` and some 8 MiB, one after the other; with `atomic` in one, which is
        stored whole or not at all. When one fails, the error's `extra["stored"]` says how many rows are known to be
        stored. `timeout` is for each.
        """
        rows = arrays.make_rows(ids, vectors, metadata)
        return await self._upsert(collection, rows, atomic, batch_rows, timeout)

    async def upsert_items(
        self,
        collection: str,
        items: Iterable[Mapping[str, Any]],
        *,
        atomic: bool = False,
        batch_rows: int = BATCH_ROWS,
        timeout: float | None = None,
    ) -> Upserted:
        """As `upsert`, for `{"id": "a", "vector": [..], "metadata": {..}}` objects."""
        rows = arrays.rows_from_items(items)
        return await self._upsert(collection, rows, atomic, batch_rows, timeout)

    async def upload(
        self,
        collection: str,
        source: "Source",
        *,
        total: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        rows_per_request: int = UPLOAD_ROWS,
        timeout: float | None = None,
    ) -> Upserted:
        """Store any number of vectors as Arrow, in requests of at most `rows_per_request` rows and 8 MiB, in order.

        `source`: Arrow (Table or RecordBatchReader) with columns id, vector and metadata (JSON text), or an iterable of
        (ids, vectors, metadata) pieces. `progress` is called after each acknowledged request. Memory is bounded by one
        piece. When one fails, the error's `extra["stored"]` says how many rows are known to be stored. `timeout` is
        for each request.
        """
        from veccluster.client import arrow  # here, since it takes a while to load and few need it

        total = arrow.total_of(source) if total is None else total
        done = 0
        bodies = arrow.bodies(source, rows_per_request, REQUEST_BYTES)
        while (part := _next_part(bodies, done)) is not None:
            count, body = part
            call = self._write(collection, "/vectors", _ARROW, body)
            done += await self._send_part(collection, call, count, done, timeout)
            if progress is not None:
                progress(Progress(done, total))
        return Upserted(done)

    async def delete(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        *,
        filter: Filter | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """Delete by ids or by filter; ids that are not there are no error."""
        if (ids is None) == (filter is None):
            raise InvalidRequest.field("ids", "must be given, or filter, and not both")
        body = _filtered(filter) if ids is None else to_json({"ids": _texts(ids, "ids")}, "ids")
        call = self._write(collection, "/vectors/delete", _JSON, body)
        return decode(await self._send(call, timeout, collection), Deleted)

    # Reading

    async def search(
        self,
        collection: str,
        vector: ArrayLike,
        *,
        k: int = 10,
        filter: Filter | None = None,
        include: Sequence[str] = (),
        ef: int | None = None,
        exact: bool = False,
        consistency: str | None = None,
        allow_partial: bool = False,
        timeout: float | None = None,
    ) -> SearchResult:
        """The `k` nearest of one vector (d,).

        `include`: "metadata", "vector". `ef`: how widely the graph is searched; `exact` looks at every vector. Raises
        ShardsUnavailable when a shard cannot answer, unless `allow_partial`.
        """
        row = one_vector(vector)
        options = _search_options(k, filter, include, ef, exact, consistency, allow_partial)
        reply = load(await self._send(self._search_call(collection, row, options), timeout, collection))
        return convert(reply | {"hits": reply["results"]}, SearchResult)

    async def search_many(
        self,
        collection: str,
        vectors: ArrayLike,
        *,
        k: int = 10,
        filter: Filter | None = None,
        include: Sequence[str] = (),
        ef: int | None = None,
        exact: bool = False,
        consistency: str | None = None,
        allow_partial: bool = False,
        timeout: float | None = None,
    ) -> SearchResults:
        """As `search` for many vectors (q, d) in one request."""
        rows = queries(vectors)
        options = _search_options(k, filter, include, ef, exact, consistency, allow_partial)
        reply = load(await self._send(self._search_call(collection, rows, options), timeout, collection))
        if len(reply["results"]) != len(rows):
            raise VecClusterError(
                f"{len(rows)} queries of {rows.shape[1]} numbers were sent, and {len(reply['results'])} were answered: "
                f"the dimension of {collection} is another, or this is no VecCluster node"
            )
        whole = {key: reply[key] for key in ("partial", "missing_shards") if key in reply}
        return convert(reply | {"results": [whole | {"hits": hits} for hits in reply["results"]]}, SearchResults)

    async def get(
        self,
        collection: str,
        id: str,
        *,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> Vector:
        """One vector by its id; raises VectorNotFound."""
        path = _path(collection, f"/vectors/{quote(a_text(id, 'id'), safe='')}")
        query = _without_none(consistency=consistency)
        call = Call("GET", path, query, self._sessions.headers(collection), spread=True)
        return decode(await self._send(call, timeout, collection), Vector)

    async def get_many(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        include: Sequence[str] | None = None,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> GetResult:
        """The vectors that there are among `ids`, in that order, each once, and which ids are not there.

        `include`: "metadata", "vector"; both when left out. Asked for in requests of 1,000 ids, one after the other;
        `timeout` is for each.
        """
        wanted = list(dict.fromkeys(_texts(ids, "ids")))
        options: dict[str, Any] = {} if include is None else {"include": _texts(include, "include")}
        options |= _without_none(consistency=consistency)
        found: list[Found] = []
        missing: list[str] = []
        for start in range(0, len(wanted), GET_IDS):
            body = to_json(options | {"ids": wanted[start : start + GET_IDS]}, "body")
            headers = _JSON | self._sessions.headers(collection)
            call = Call("POST", _path(collection, "/vectors/get"), headers=headers, body=body, spread=True)
            part = decode(await self._send(call, timeout, collection), GetResult)
            found += part.vectors
            missing += part.missing
        return GetResult(tuple(found), tuple(missing))

    async def page(
        self,
        collection: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        filter: Filter | None = None,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> Page:
        """A part of the collection in a stable order; `cursor` of the page before asks for the next."""
        query = _without_none(limit=str(limit), cursor=cursor, filter=_filter_text(filter), consistency=consistency)
        call = Call("GET", _path(collection, "/vectors"), query, self._sessions.headers(collection), spread=True)
        return decode(await self._send(call, timeout, collection), Page)

    async def iterate(
        self,
        collection: str,
        *,
        filter: Filter | None = None,
        page_rows: int = 500,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Vector]:
        """Every vector of the collection that matches; `timeout` is for each page."""
        cursor: str | None = None
        while True:
            page = await self.page(
                collection, limit=page_rows, cursor=cursor, filter=filter, consistency=consistency, timeout=timeout
            )
            for vector in page.vectors:
                yield vector
            cursor = page.cursor
            if cursor is None:
                return

    async def count(
        self,
        collection: str,
        *,
        filter: Filter | None = None,
        consistency: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many vectors there are, or match."""
        body = _filtered(filter, consistency=consistency)
        headers = _JSON | self._sessions.headers(collection)
        call = Call("POST", _path(collection, "/count"), headers=headers, body=body, spread=True)
        return int(load(await self._send(call, timeout, collection))["count"])

    # The cluster

    async def cluster(self, *, timeout: float | None = None) -> ClusterInfo:
        """Health, nodes, shards and issues in words."""
        reply = load(await self._send(Call("GET", "/v1/cluster"), timeout))
        nodes = [NodeInfo(**_known(NodeInfo, node), details=node) for node in reply.get("nodes", ())]
        return msgspec.structs.replace(
            convert(reply | {"nodes": (), "details": reply}, ClusterInfo), nodes=tuple(nodes)
        )

    async def recover_shard(
        self, collection: str, number: int, *, accept: str | None = None, timeout: float | None = None
    ) -> ShardRecovery:
        """What is left of a shard that has lost too many copies, and what would be lost by going on with that.

        Nothing is changed, unless `accept` is `expected` of a report: then what that report says is done.
        """
        asked = {} if accept is None else {"accept_data_loss": True, "expected": accept}
        body, path = to_json(asked, "accept"), _path(collection, f"/shards/{number}/recover")
        call = Call("POST", path, headers=_JSON, body=body, write=accept is not None)
        reply = load(await self._send(call, timeout))
        return convert(reply | {"details": reply}, ShardRecovery)

    async def health(self, *, timeout: float = 3.0) -> dict[str, str]:
        """For each address: "ready", "alive" (not ready yet), or "unreachable"."""
        known = self._transport.addresses.known
        found = await asyncio.gather(*(self._transport.probe(address, "/readyz", timeout) for address in known))
        words = ["unreachable" if status is None else "ready" if status < 300 else "alive" for status in found]
        return dict(zip(map(str, known), words, strict=True))

    # Inside

    async def _send(self, call: Call, timeout: float | None, session: str | None = None) -> bytes:
        """The body of the reply; its token goes to the `session` of that collection."""
        reply = await self._transport.send(call, self.timeout if timeout is None else timeout)
        if session is not None:
            self._sessions.learn(session, reply.token)
        return reply.body

    async def _upsert(
        self,
        collection: str,
        rows: Rows,
        atomic: bool,
        batch_rows: int,
        timeout: float | None,
    ) -> Upserted:
        most, most_bytes = (max(len(rows), 1), sys.maxsize) if atomic else (batch_rows, REQUEST_BYTES)
        stored = 0
        for batch in arrays.bounded(arrays.rows_json(rows), len, most, most_bytes):
            stored += await self._upsert_batch(collection, batch, atomic, stored, timeout)
        return Upserted(stored)

    async def _upsert_batch(
        self, collection: str, rows: list[bytes], atomic: bool, start: int, timeout: float | None
    ) -> int:
        """Store a batch; in halves where it is more than the cluster is set to take at once."""
        call = self._write(collection, "/vectors", _JSON, arrays.upsert_json(rows, atomic=atomic))
        try:
            return await self._send_part(collection, call, len(rows), start, timeout)
        except PayloadTooLarge:
            if atomic or len(rows) == 1:
                raise
        half = len(rows) // 2
        stored = await self._upsert_batch(collection, rows[:half], atomic, start, timeout)
        return stored + await self._upsert_batch(collection, rows[half:], atomic, start + half, timeout)

    async def _send_part(self, collection: str, call: Call, rows: int, start: int, timeout: float | None) -> int:
        """Send `rows` rows of a larger write, from row `start` on; an error counts rows from the first of all."""
        try:
            reply = load(await self._send(call, timeout, collection))
        except VecClusterError as error:
            error.extra["stored"] = start + int(error.extra.get("upserted", 0))
            for item in error.extra.get("errors", ()):
                if isinstance(item.get("index"), int):
                    item["index"] += start
            raise
        if reply["upserted"] != rows:
            said = f"{rows} rows were sent, and the cluster says that it stored {reply['upserted']}"
            raise VecClusterError(said, stored=start)
        return rows

    def _write(self, collection: str, below: str, kind: Mapping[str, str], body: bytes) -> Call:
        headers = {**kind, **_operation(), **self._sessions.headers(collection)}
        return Call("POST", _path(collection, below), headers=headers, body=body, write=True)

    def _search_call(self, collection: str, vectors: FloatArray, options: dict[str, Any]) -> Call:
        """Binary when everything else fits into the query string, JSON when not."""
        path, session = _path(collection, "/search"), self._sessions.headers(collection)
        text = _filter_text(options.get("filter"))
        many = vectors.ndim == 2
        if text is not None and len(text) > LONGEST_QUERY:
            name = "vectors" if many else "vector"
            body = to_json(options | {"filter": orjson.Fragment(text), name: vectors}, "search")
            return Call("POST", path, {}, _JSON | session, body, spread=True)
        query = {key: _query_text(value) for key, value in options.items() if key != "filter"}
        # Bytes do not say where a vector ends, so that the node could take them for others.
        query |= {"queries": str(len(vectors) if many else 1), "dimension": str(vectors.shape[-1])}
        query |= {"many": _query_text(many)} | _without_none(filter=text)
        raw = vectors.astype("<f4", copy=False).tobytes()
        return Call("POST", path, query, _BINARY | session, raw, spread=True)


def _path(collection: str, below: str = "") -> str:
    return f"/v1/collections/{quote(a_text(collection, 'collection'), safe='')}{below}"


def _operation() -> dict[str, str]:
    return {OPERATION_HEADER: operation_ids.new()}


def _texts(values: Iterable[str], field: str) -> list[str]:
    return [a_text(value, f"{field}[{i}]") for i, value in enumerate(a_list(values, field))]


def _without_none(**values: _T | None) -> dict[str, _T]:
    return {key: value for key, value in values.items() if value is not None}


def _next_part(parts: Iterator[tuple[int, bytes]], stored: int) -> tuple[int, bytes] | None:
    """The next request of a bulk upload; an error says how many rows are stored by then."""
    try:
        return next(parts, None)
    except VecClusterError as error:
        error.extra["stored"] = stored
        raise


def _filter_text(filter: Filter | None) -> str | None:
    return None if filter is None else to_json(an_object(filter, "filter"), "filter").decode()


def _filtered(filter: Filter | None, **more: str | None) -> bytes:
    """A body with a filter, if there is one; errors name the place within that."""
    text = _filter_text(filter)
    return to_json(_without_none(filter=None if text is None else orjson.Fragment(text), **more), "body")


def _query_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list) else str(value)


def _search_options(
    k: int,
    filter: Filter | None,
    include: Sequence[str],
    ef: int | None,
    exact: bool,
    consistency: str | None,
    allow_partial: bool,
) -> dict[str, Any]:
    """The arguments of a search that differ from the defaults."""
    options: dict[str, Any] = {"k": k}
    if included := _texts(include, "include"):
        options["include"] = included
    if exact:
        options["exact"] = True
    if allow_partial:
        options["allow_partial"] = True
    rest = {"filter": filter, "ef": ef, "consistency": consistency}
    return options | {key: value for key, value in rest.items() if value is not None}


def _collection(reply: dict[str, Any]) -> CollectionInfo:
    return convert(_known(CollectionInfo, reply) | {"details": reply}, CollectionInfo)


def _known(kind: type[CollectionInfo | NodeInfo], reply: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a reply that the class has."""
    return {key: reply[key] for key in kind.__struct_fields__ if key in reply and reply[key] is not None}
