# ruff: noqa: A002 - `filter` and `id` are the names that the interface gives these arguments
"""The asyncio client. Every method is one logical request: retried where that is safe, within `timeout` seconds."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import msgspec
from numpy.typing import ArrayLike

from veccluster.client import arrays
from veccluster.client.arrays import Metadata, Rows
from veccluster.client.results import (
    ClusterInfo,
    CollectionInfo,
    Deleted,
    FloatArray,
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
from veccluster.client.transport import OPERATION_HEADER, Addresses, Call, Transport
from veccluster.errors import CollectionNotFound, InvalidRequest, VecClusterError

if TYPE_CHECKING:
    from veccluster.client.arrow import Source

_T = TypeVar("_T")

DEFAULT_TIMEOUT = 30.0
BATCH_ROWS = 500
"""Rows in one upsert request: about 2 MB of JSON at 384 dimensions."""
UPLOAD_ROWS = 2_000
"""Rows in one bulk request: about 3 MB of Arrow at 384 dimensions, held in memory until it is acknowledged."""
LONGEST_QUERY = 2_000
"""Characters of a filter that still go into the query string beside a binary body; a longer one makes it JSON."""

_JSON = {"Content-Type": "application/json"}
_BINARY = {"Content-Type": "application/octet-stream"}
_ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}

Filter = Mapping[str, Any]


class AsyncClient:
    """A client of one cluster; safe to share between tasks of one event loop, and kept open for reuse.

    `servers` is one address of the cluster or several (`http://host:port`); when one is down the next is asked. Errors
    are the classes of `veccluster.errors`: one for each type of problem that a cluster answers with, `Unreachable` when
    no address answers in time, and `OutcomeUnknown` when a write was sent and no answer came. Writes carry an operation
    id, so a retry is never carried out twice. What this client has written it reads: session tokens are kept by itself.
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
            "index": index,
            "filterable": filterable,
            "read_consistency": read_consistency,
            "write_consistency": write_consistency,
        }
        body = arrays.to_json({key: value for key, value in asked.items() if value is not None}, "collection")
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

        Sent in batches of `batch_rows`, one after the other; with `atomic` in one, which is stored whole or not at all.
        When one fails, the error's `extra["stored"]` says how many rows are known to be stored. `timeout` is for each.
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
        """Store any number of vectors as Arrow, in requests of `rows_per_request` rows, in order.

        `source`: Arrow (Table or RecordBatchReader) with columns id, vector and metadata (JSON text), or an iterable of
        (ids, vectors, metadata) pieces. `progress` is called after each acknowledged request. Memory is bounded by one
        request. When one fails, the error's `extra["stored"]` says how many rows are known to be stored. `timeout` is
        for each request.
        """
        from veccluster.client import arrow  # here, since it takes a while to load and few need it

        total = arrow.total_of(source) if total is None else total
        done = 0
        for rows in arrow.pieces(source, rows_per_request):
            call = self._write(collection, "/vectors", _ARROW, arrow.upsert_arrow(rows))
            await self._send_part(collection, call, done, timeout)
            done += len(rows)
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
        body = arrays.to_json({"ids": list(ids)} if ids is not None else {"filter": filter}, "ids")
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
        row = arrays.one_vector(vector)
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
        rows = arrays.many_vectors(vectors)
        options = _search_options(k, filter, include, ef, exact, consistency, allow_partial)
        reply = load(await self._send(self._search_call(collection, rows, options), timeout, collection))
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
        path = _path(collection, f"/vectors/{quote(id, safe='')}")
        call = Call("GET", path, _without_none(consistency=consistency), self._sessions.headers(collection))
        return decode(await self._send(call, timeout, collection), Vector)

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
        call = Call("GET", _path(collection, "/vectors"), query, self._sessions.headers(collection))
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
        body = arrays.to_json(_without_none(filter=filter, consistency=consistency), "filter")
        headers = _JSON | self._sessions.headers(collection)
        call = Call("POST", _path(collection, "/count"), headers=headers, body=body)
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
        body, path = arrays.to_json(asked, "accept"), _path(collection, f"/shards/{number}/recover")
        call = Call("POST", path, headers=_JSON, body=body, write=accept is not None)
        reply = load(await self._send(call, timeout))
        return convert(reply | {"details": reply}, ShardRecovery)

    async def health(self, *, timeout: float = 3.0) -> dict[str, str]:
        """For each address: "ready", "alive" (not ready yet), or "unreachable"."""
        urls = self._transport.addresses.urls
        found = await asyncio.gather(*(self._transport.probe(url, "/readyz", timeout) for url in urls))
        words = ["unreachable" if status is None else "ready" if status < 300 else "alive" for status in found]
        return dict(zip((str(url).rstrip("/") for url in urls), words, strict=True))

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
        stored = 0
        for start, batch in rows.batches(max(len(rows), 1) if atomic else batch_rows):
            body = arrays.upsert_json(batch, atomic=atomic)
            call = self._write(collection, "/vectors", _JSON, body)
            stored += await self._send_part(collection, call, start, timeout)
        return Upserted(stored)

    async def _send_part(self, collection: str, call: Call, start: int, timeout: float | None) -> int:
        """Send the part of a larger write that begins at row `start`; an error counts rows from the first of all."""
        try:
            reply = load(await self._send(call, timeout, collection))
        except VecClusterError as error:
            error.extra["stored"] = start + int(error.extra.get("upserted", 0))
            for item in error.extra.get("errors", ()):
                if isinstance(item.get("index"), int):
                    item["index"] += start
            raise
        return int(reply["upserted"])

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
            return Call("POST", path, {}, _JSON | session, arrays.to_json(options | {name: vectors}, "filter"))
        query = {key: _query_text(value) for key, value in options.items() if key != "filter"}
        query |= {"many": _query_text(many)} | _without_none(filter=text)
        return Call("POST", path, query, _BINARY | session, vectors.astype("<f4", copy=False).tobytes())


def _path(collection: str, below: str = "") -> str:
    return f"/v1/collections/{quote(collection, safe='')}{below}"


def _operation() -> dict[str, str]:
    return {OPERATION_HEADER: str(uuid.uuid4())}


def _without_none(**values: _T | None) -> dict[str, _T]:
    return {key: value for key, value in values.items() if value is not None}


def _filter_text(filter: Filter | None) -> str | None:
    return None if filter is None else arrays.to_json(filter, "filter").decode()


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
    if include:
        options["include"] = [include] if isinstance(include, str) else list(include)
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
