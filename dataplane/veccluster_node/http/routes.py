"""The routes for clients: each reads a request, asks the coordinator, and writes the answer.

Bodies are read and written by `codecs`, errors become problem documents in `problems`; what is left here is the order
of things. Anything heavy that is not waiting runs in a thread, so that one large body does not hold up the others.
"""

import asyncio
import base64
import binascii
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson
from aiohttp import web

import veccluster_node
from veccluster.decisions import descriptors
from veccluster.decisions.filters import Where
from veccluster.decisions.shard_map import ShardMap, records_of
from veccluster.errors import (
    CollectionNotFound,
    Conflict,
    InsufficientStorage,
    InvalidRequest,
    Unavailable,
    VecClusterError,
    VectorNotFound,
)
from veccluster.model import api, token
from veccluster.model.cluster import ClusterState, History
from veccluster.model.limits import Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import Collection, NodeState, ReadConsistency, ShardId, WriteConsistency
from veccluster.model.validation import did_you_mean
from veccluster_node.coordinator.coordinator import Outcome, Reading
from veccluster_node.http import codecs, negotiation, openapi, recoveries
from veccluster_node.node.data_node import DataNode
from veccluster_node.service.shard_service import ShardReport, UpsertBatch

T = TypeVar("T")

Session = Mapping[ShardId, token.Position]

LARGE = 64 << 10
"""Bytes from which a body is decoded in a thread."""

DEFAULT_PAGE = 100

BINARY_ARGUMENTS = tuple(api.BinarySearch.model_fields)
"""Of the query string, for a search whose body is vectors."""

CREATION_TIMEOUT = 15.0
"""Seconds that the creation of a collection waits until every shard is served."""


@dataclass(frozen=True, slots=True)
class Api:
    """What the routes need; each method is a handler."""

    node: DataNode
    spec: VecClusterSpec
    limits: Limits
    batch_rows: int

    # Collections

    async def create(self, request: web.Request) -> web.StreamResponse:
        """PUT /v1/collections/{name}."""
        _query(request)
        name = request.match_info["name"]
        negotiation.check_content_type(request, negotiation.JSON)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        nodes = sum(n.state is NodeState.active for n in self.node.state.nodes.values())
        options = await _in_thread(len(body), codecs.decode_options, api.CreateCollection, body, self.limits)
        asked = options.collection(name, uuid=uuid.uuid4().hex, cluster=self.spec, nodes=nodes, limits=self.limits)
        store = self.node.metadata_for_changes()
        self._check_room(asked)
        created = await store.create_collection(asked)
        held = asked if created else await store.read_collection(name)
        if held is None:
            raise Unavailable(f"collection {name} was deleted while it was being created; send it again")
        if different := api.differences(held, asked):
            raise Conflict(f"collection {name} exists and differs: {'; '.join(different)}")
        await self._wait_until_served(held)
        await self.node.coordinator.spread(held)
        return _json(api.Collection.of(held), status=201 if created else 200)

    def _check_room(self, asked: Collection) -> None:
        """Refuse what could be written down, and never opened."""
        state = self.node.state
        room = {n.id: load.room for n in state.live_nodes() if (load := state.alive.get(n.id))}
        why = descriptors.cannot_fit(asked.shards, asked.replication_factor, room)
        if why and asked.name not in state.collections:
            raise InsufficientStorage(f"collection {asked.name}: {why}")

    async def _wait_until_served(self, collection: Collection) -> None:
        """Answer a creation only when the collection can be used; a repetition of the request waits again."""

        def served(state: ClusterState) -> bool:
            alive = {s for load in state.alive.values() for s in load.serving}
            shards = records_of(state, collection)
            return len(shards) == collection.shards and all(str(s.id) in alive for s in shards)

        if not await self.node.metadata().wait_until(served, timeout=CREATION_TIMEOUT):
            raise Unavailable(
                f"collection {collection.name} is written down, but not all of its shards are served yet: "
                "see /v1/cluster for why, and send the same request again"
            )

    async def collections(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/collections."""
        _query(request)
        self.node.metadata()
        held = sorted(self.node.state.collections.values(), key=lambda c: c.name)
        return _json(api.Collections(collections=[api.Collection.of(c) for c in held]))

    async def collection(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/collections/{name}."""
        _query(request)
        collection = await self._collection(request)
        reports, _ = await self.node.coordinator.reports(collection.uuid)
        by_number = {r.shard.number: r for r in reports}
        shards = ShardMap.of(collection, self.node.state.shards).numbers
        whole = len(by_number) == len(shards)
        building = any(r.building for r in reports)
        return _json(
            api.CollectionDetail.of(
                collection,
                count=sum(r.vectors for r in reports) if whole else None,
                index_state=("building" if building else "ready") if whole else "unknown",
                shard_states=[self._shard_state(collection, n, by_number.get(n)) for n in shards],
            )
        )

    def _shard_state(self, collection: Collection, number: int, report: ShardReport | None) -> api.ShardState:
        shard = next((s for s in records_of(self.node.state, collection) if s.id.number == number), None)
        state = api.ShardState(
            number=number,
            primary=shard.primary.node if shard else None,
            epoch=report.epoch if report else shard.epoch if shard else 0,
            available=report is not None,
        )
        if report is None:
            return state
        return state.model_copy(
            update={
                "vectors": report.vectors,
                "indexed": report.indexed,
                "building": report.building,
                "disk_bytes": report.disk_bytes,
                "memory_bytes": report.memory_bytes,
            }
        )

    async def delete_collection(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/collections/{name}."""
        _query(request)
        name = api.check_name(request.match_info["name"])
        store = self.node.metadata_for_changes()
        if (dropped := await store.drop_collection(name)) is None:
            raise CollectionNotFound(f"there is no collection {name}")
        await self.node.coordinator.spread(dropped, gone=True)
        return web.Response(status=204)

    async def recover(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/shards/{number}/recover."""
        _query(request)
        collection = await self._collection(request)
        number = _number_of(request)
        negotiation.check_content_type(request, negotiation.JSON)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        asked = await _in_thread(len(body), codecs.decode_options, api.Recover, body or b"{}", self.limits)
        if asked.accept_data_loss and asked.expected is not None:
            plan = await self.node.lost_quorum.accept(collection, number, asked.expected)
        else:
            plan = await self.node.lost_quorum.look(collection, number)
        return _json(recoveries.reply(collection, plan, done=asked.accept_data_loss))

    # Vectors

    async def upsert(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/vectors."""
        query = _write_query(request)
        collection = await self._collection(request)
        level = _write_level(query, collection)
        operation = negotiation.operation_id(request)
        kind = negotiation.check_content_type(request, negotiation.JSON, negotiation.NDJSON, negotiation.ARROW)
        if kind != negotiation.JSON:
            return await self._upsert_stream(request, collection, kind, operation, level)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        batch, atomic = await _in_thread(len(body), codecs.decode_upsert_json, body, collection, self.limits)
        written = await self.node.coordinator.upsert(collection, batch, operation, level, atomic=atomic)
        return self._written(request, {"upserted": written.count}, written.positions)

    async def _upsert_stream(
        self, request: web.Request, collection: Collection, kind: str, operation: str, level: WriteConsistency
    ) -> web.StreamResponse:
        """Apply a body of any length batch by batch; the next one is decoded while the last one is written.

        Batches are cut by content alone, so that a repetition with the same operation id is cut, and known, the same
        way; their ids have a space, which a client's cannot have.
        """
        decode = codecs.decode_upsert_ndjson if kind == negotiation.NDJSON else codecs.decode_upsert_arrow
        chunks = negotiation.body_chunks(request)
        upsert = self.node.coordinator.upsert
        behind = _WriteBehind(lambda batch, number: upsert(collection, batch, f"{operation} {number}", level))
        try:
            ticket = negotiation.ticket_of(request)
            async for batch in decode(chunks, collection, self.limits, self.batch_rows, ticket):
                await behind.write(batch)
            await behind.settle()
        except VecClusterError as error:
            raise await behind.give_up(error) from None
        return self._written(request, {"upserted": behind.stored}, behind.positions)

    async def delete_vectors(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/vectors/delete."""
        query = _write_query(request)
        collection = await self._collection(request)
        level = _write_level(query, collection)
        operation = negotiation.operation_id(request)
        negotiation.check_content_type(request, negotiation.JSON)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        asked = (await _in_thread(len(body), codecs.decode_options, api.Delete, body, self.limits)).check(self.limits)
        if asked.ids is not None:
            ids = list(dict.fromkeys(asked.ids))
            written = await self.node.coordinator.delete_ids(collection, ids, operation, level)
        else:
            where = Where.of(asked.filter, self.limits)
            written = await self.node.coordinator.delete_where(collection, where, operation, level)
        return self._written(request, {"deleted": written.count}, written.positions)

    async def delete_vector(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/collections/{name}/vectors/{id}."""
        query = _write_query(request)
        collection = await self._collection(request)
        vector_id = _id_of(request)
        operation = negotiation.operation_id(request)
        level = _write_level(query, collection)
        written = await self.node.coordinator.delete_ids(collection, [vector_id], operation, level)
        if not written.count:
            raise VectorNotFound(f"collection {collection.name} holds no vector {vector_id!r}")
        return self._written(request, {"deleted": written.count}, written.positions)

    async def vector(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/collections/{name}/vectors/{id}."""
        collection = await self._collection(request)
        query = _read_query(request)
        vector_id = _id_of(request)
        reading = self._reading(request, collection, _read_level(query))
        found, positions = await self.node.coordinator.get(collection, [vector_id], reading)
        if vector_id not in found:
            raise VectorNotFound(f"collection {collection.name} holds no vector {vector_id!r}")
        response = web.Response(body=codecs.encode_vector(found[vector_id]), content_type=negotiation.JSON)
        response.headers[token.HEADER] = token.encode(token.merge([reading.session, positions]))
        return response

    async def get_vectors(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/vectors/get."""
        _query(request)
        collection = await self._collection(request)
        accept = negotiation.choose(request, negotiation.JSON, negotiation.ARROW)
        negotiation.check_content_type(request, negotiation.JSON)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        asked = await _in_thread(len(body), codecs.decode_options, api.GetVectors, body, self.limits)
        ids = list(dict.fromkeys(asked.check(self.limits).ids))
        reading = self._reading(request, collection, asked.consistency)
        found, positions = await self.node.coordinator.get(collection, ids, reading)
        rows, missing = [found[i] for i in ids if i in found], [i for i in ids if i not in found]
        size = sum(len(row.vector) + len(row.metadata) for row in rows)
        encode = codecs.encode_found
        body = await _in_thread(size, encode, rows, missing, asked.included, accept, collection.dimension)
        headers = {token.HEADER: token.encode(token.merge([reading.session, positions]))}
        return web.Response(body=body, content_type=accept, headers=headers)

    async def vectors(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/collections/{name}/vectors."""
        collection = await self._collection(request)
        query = _read_query(request, "limit", "cursor", "filter")
        limit = _limit(query, self.limits.max_list)
        where = self._filter_of(query)
        accept = negotiation.choose(request, negotiation.JSON, negotiation.ARROW)
        reading = self._reading(request, collection, _read_level(query))
        await negotiation.ticket_of(request).hold(limit * collection.dimension * 4)
        ids, positions = await self.node.coordinator.list_ids(collection, _after(query), limit, where, reading)
        # Whichever replicas give the vectors must have come as far as those that gave the ids.
        seen = token.merge([reading.session, positions])
        reading = Reading(ReadConsistency.session, seen, reading.source)
        found, _ = await self.node.coordinator.get(collection, ids, reading)
        page = [found[i] for i in ids if i in found]
        cursor = _cursor_after(ids[-1]) if len(ids) == limit else None
        size = sum(len(v.vector) + len(v.metadata) for v in page)
        await negotiation.ticket_of(request).hold(codecs.AS_TEXT * size)
        body = await _in_thread(size, codecs.encode_page, page, cursor, accept, collection.dimension)
        headers = {token.HEADER: token.encode(seen)} | ({"Cursor": cursor} if cursor else {})
        return web.Response(body=body, content_type=accept, headers=headers)

    async def count(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/count."""
        _query(request)
        collection = await self._collection(request)
        negotiation.check_content_type(request, negotiation.JSON)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        asked = await _in_thread(len(body), codecs.decode_options, api.Count, body or b"{}", self.limits)
        where = codecs.where_of(asked.filter, self.limits)
        reading = self._reading(request, collection, asked.consistency)
        count, positions = await self.node.coordinator.count(collection, where, reading)
        reply = _json(api.Counted(count=count))
        reply.headers[token.HEADER] = token.encode(token.merge([reading.session, positions]))
        return reply

    async def search(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/collections/{name}/search."""
        started = time.perf_counter()
        collection = await self._collection(request)
        accept = negotiation.choose(request, negotiation.JSON, negotiation.ARROW)
        kind = negotiation.check_content_type(request, negotiation.JSON, negotiation.OCTETS)
        body = await negotiation.read_body(request, self.limits.max_body_size)
        if kind == negotiation.JSON:
            _query(request)
            asked = await _in_thread(len(body), codecs.decode_search_json, body, collection, self.limits)
        else:
            asked = codecs.decode_search_binary(body, _query(request, *BINARY_ARGUMENTS), collection, self.limits)
        reading = self._reading(request, collection, asked.consistency)
        query = asked.query
        most = len(query.vectors) * query.k * (64 + (collection.dimension * 4 if query.with_vector else 0))
        await negotiation.ticket_of(request).hold_more(most)
        found = await self.node.coordinator.search(collection, query, reading, allow_partial=asked.allow_partial)
        seen = token.encode(token.merge([reading.session, found.positions]))
        envelope = {
            "partial": bool(found.missing),
            "missing_shards": list(found.missing),
            "token": seen,
            "took_ms": round((time.perf_counter() - started) * 1000, 3),
        }
        size = sum(map(len, found.hits)) * (collection.dimension if query.with_vector else 1) * 64
        await negotiation.ticket_of(request).hold(codecs.size_of_hits(found.hits))
        body = await _in_thread(size, codecs.encode_search, found.hits, asked, collection, envelope, accept)
        return web.Response(body=body, content_type=accept, headers={token.HEADER: seen})

    # The cluster

    async def cluster(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/cluster."""
        _query(request)
        state = self.node.state
        reports, answers = await self.node.coordinator.reports()
        answering = {node: answer is not None for node, answer in answers.items()}
        opening = {node: answer.opening for node, answer in answers.items() if answer}
        verdict = self.node.verdict(answering, opening)
        if why := self.node.why_not_ready():
            verdict = verdict.because(f"Node {self.node.id} is not ready: {why}.")
        missing = {s.id for s in state.shards.values()} - {r.shard for r in reports}
        unavailable = missing | {s.id for s in verdict.unavailable}
        return _json(
            api.Cluster(
                health=verdict.health.value,
                issues=list(verdict.issues),
                leader=state.leader,
                nodes=[
                    api.NodeInfo(
                        id=n.id,
                        address=n.address,
                        zone=n.zone,
                        state=n.state if answering.get(n.id, n.id in state.alive) else "down",
                        needed=n.id in verdict.needed,
                        opening=answer.opening if (answer := answers.get(n.id)) else [],
                        version=n.version,
                    )
                    for _, n in sorted(state.nodes.items())
                ],
                shards=api.ShardCounts(
                    total=len(state.shards),
                    under_replicated=len(verdict.under_replicated),
                    unavailable=len(unavailable),
                    moving=len(verdict.moving),
                ),
                vectors=None if missing else sum(r.vectors for r in reports),
                version=veccluster_node.VERSION,
                etcd_version=self.node.etcd_version,
                etcd_went_back=_in_words(state.history),
            )
        )

    async def healthz(self, _: web.Request) -> web.StreamResponse:
        """GET /healthz: the process answers."""
        return _json(api.Status(status="ok"))

    async def readyz(self, request: web.Request) -> web.StreamResponse:
        """GET /readyz: the node answers; with `shards=all`, it serves every shard that it should, too."""
        shards = _query(request, "shards").get("shards")
        if shards not in {None, "all"}:
            raise InvalidRequest.field("shards", f"must be all, or left out, is {shards!r}")
        if why := self.node.why_not_complete() if shards else self.node.why_not_ready():
            raise Unavailable(f"not ready: {why}")
        return _json(api.Readiness(status="ready", opening=self.node.opening()))

    async def document(self, _: web.Request) -> web.StreamResponse:
        """GET /openapi.json."""
        document = openapi.document(veccluster_node.VERSION, self.limits)
        return web.Response(body=orjson.dumps(document), content_type=negotiation.JSON)

    # Helpers

    async def _collection(self, request: web.Request) -> Collection:
        """The collection in the path; one that another node has just created is looked up in etcd."""
        name = api.check_name(request.match_info["name"])
        if (found := self.node.state.collections.get(name)) is not None:
            return found
        store = self.node.metadata()
        if await store.read_collection(name) is None:
            raise CollectionNotFound(f"there is no collection {name}")
        await store.wait_until(lambda state: name in state.collections, timeout=self.node.settings.query_timeout)
        if (found := self.node.state.collections.get(name)) is None:
            raise CollectionNotFound(f"there is no collection {name}")
        return found

    def _session(self, request: web.Request) -> Session:
        """What the client has seen of collections that there are."""
        seen = token.decode(",".join(request.headers.getall(token.HEADER, [])))
        held = {c.uuid for c in self.node.state.collections.values()}
        return {shard: position for shard, position in seen.items() if shard.collection in held}

    def _reading(self, request: web.Request, collection: Collection, level: ReadConsistency | None) -> Reading:
        return Reading(level or collection.read_consistency, self._session(request), request.remote or "")

    def _filter_of(self, query: Mapping[str, str]) -> Where | None:
        return codecs.where_of_text(query["filter"], self.limits) if "filter" in query else None

    def _written(self, request: web.Request, counts: Mapping[str, int], positions: Session) -> web.StreamResponse:
        merged = token.encode(token.merge([self._session(request), positions]))
        return web.Response(
            body=orjson.dumps({**counts, "token": merged}),
            content_type=negotiation.JSON,
            headers={token.HEADER: merged},
        )


def _json(reply: api.Reply, status: int = 200) -> web.Response:
    return web.Response(body=reply.model_dump_json().encode(), status=status, content_type=negotiation.JSON)


class _WriteBehind:
    """Writes one batch of a stream while the next is decoded, and knows how much is stored."""

    def __init__(self, store: Callable[[UpsertBatch, int], Coroutine[Any, Any, Outcome]]) -> None:
        """`store` is given each batch and its number."""
        self.stored = 0
        self.positions: Session = {}
        self._store = store
        self._number = 0
        self._writing: asyncio.Task[Outcome] | None = None

    async def write(self, batch: UpsertBatch) -> None:
        """Begin to write a batch, once the one before is written; raises what went wrong with that one."""
        await self.settle()
        self._writing = asyncio.create_task(self._store(batch, self._number))
        self._writing.add_done_callback(lambda task: task.cancelled() or task.exception())  # the client may be gone
        self._number += 1

    async def settle(self) -> None:
        """Until everything is written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            written = await writing
        except VecClusterError as error:
            self.stored += int(error.extra.get("upserted", 0))
            raise
        self.stored += written.count
        self.positions = token.merge([self.positions, written.positions])

    async def give_up(self, error: VecClusterError) -> VecClusterError:
        """What the client is to know after `error`: that, or what went wrong with the write under way."""
        try:
            await self.settle()
        except VecClusterError as of_write:
            error = of_write
        error.extra["upserted"] = self.stored
        return error


async def _in_thread(size: int, call: Callable[..., T], *arguments: Any) -> T:
    """Call, in a thread if what it works on is large enough (in bytes) to hold others up."""
    if size < LARGE:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)


def _id_of(request: web.Request) -> str:
    """The last part of the path, which the router would take as it is where it is not UTF-8."""
    try:
        vector_id = unquote(request.rel_url.raw_path.rpartition("/")[2], errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest.field("id", "must be UTF-8, percent-encoded") from None
    if problem := api.id_problem(vector_id):
        raise InvalidRequest.field("id", problem)
    return vector_id


def _number_of(request: web.Request) -> int:
    """The shard in the path."""
    text = request.match_info["number"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidRequest.field("number", f"must be a shard's number, from 0 on, is {text!r}")
    return int(text)


def _query(request: web.Request, *known: str) -> dict[str, str]:
    """The query string's arguments; any but the known ones are refused, and so is one given twice."""
    for name in request.query:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InvalidRequest.field(name, f"is not an argument here{hint}; there are {', '.join(known) or 'none'}")
        if len(request.query.getall(name)) > 1:
            raise InvalidRequest.field(name, "must be given once")
    return dict(request.query)


def _read_query(request: web.Request, *known: str) -> dict[str, str]:
    """The same for a read, which may say what it may miss."""
    return _with_level(_query(request, "consistency", *known), ReadConsistency)


def _write_query(request: web.Request) -> dict[str, str]:
    """The same for a write, which may say how many replicas must have it."""
    return _with_level(_query(request, "consistency"), WriteConsistency)


def _with_level(query: dict[str, str], levels: type[ReadConsistency | WriteConsistency]) -> dict[str, str]:
    if (asked := query.get("consistency")) is not None and asked not in set(levels):
        raise InvalidRequest.field("consistency", f"must be one of {', '.join(levels)}, is {asked!r}")
    return query


def _read_level(query: Mapping[str, str]) -> ReadConsistency | None:
    return ReadConsistency(query["consistency"]) if "consistency" in query else None


def _write_level(query: Mapping[str, str], collection: Collection) -> WriteConsistency:
    return WriteConsistency(query["consistency"]) if "consistency" in query else collection.write_consistency


def _limit(query: Mapping[str, str], most: int) -> int:
    text = query.get("limit", str(min(DEFAULT_PAGE, most)))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise InvalidRequest.field("limit", f"must be a number from 1 to {most}, is {text!r}")
    return int(text)


def _cursor_after(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode().rstrip("=")


def _after(query: Mapping[str, str]) -> str | None:
    """The id that a listing goes on after."""
    if (cursor := query.get("cursor")) is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest.field("cursor", "must be the cursor of an earlier page, as it was given") from error


def _in_words(history: History) -> str | None:
    """When etcd was found to have gone back to an older state, and how; None if it never was."""
    if not history.id:
        return None
    at = datetime.fromtimestamp(history.at, UTC).isoformat(timespec="seconds")
    return f"{at}: {history.why}"
