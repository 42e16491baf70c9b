"""Carry out a client's request over all shards of a collection: any node can, from what it knows of the cluster.

A write goes to the primary of each id's shard, all at once (`writes`). A read asks each node once for all of its shards
and merges what comes back (`reads`). What could not be done is said by shard: reads fail with `ShardsUnavailable`
unless the client allows a partial answer; writes say which ids are stored, which are not, and of which nobody knows.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Protocol, TypeVar

from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Batch, Decision, Showing
from veccluster.decisions.shard_map import ShardMap
from veccluster.errors import (
    InsufficientStorage,
    MetadataUnavailable,
    OutcomeUnknown,
    ShardsUnavailable,
    TooFewReplicas,
    Unavailable,
    VecClusterError,
)
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Collection, NodeId, ReadConsistency, Revision, ShardId, WriteConsistency
from veccluster.model.token import Position
from veccluster_node.coordinator.asking import Asking, ShardsOf, Wait
from veccluster_node.coordinator.atomic import AtomicWrite
from veccluster_node.coordinator.naming import batch_name, write_name
from veccluster_node.coordinator.reads import Read
from veccluster_node.coordinator.writes import write
from veccluster_node.engine.search import Hit, Query, Stored, nearness
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.service.shard_service import (
    Change,
    Count,
    Get,
    GetFrontiers,
    GetReport,
    ListIds,
    Prepare,
    Removal,
    Report,
    Search,
    ShardReport,
    ShardsReply,
    ShardsRequest,
    UpsertBatch,
    Write,
    Written,
)
from veccluster_node.wal.operations import check_size, size_of

R = TypeVar("R", bound=ShardsReply)
Session = Mapping[ShardId, Position]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read may miss, what its client has seen, and that client's address."""

    level: ReadConsistency
    session: Session
    source: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A write that succeeded everywhere: how many vectors, and where the shards stand now."""

    count: int
    positions: Mapping[ShardId, Position]


@dataclass(frozen=True, slots=True)
class Hits:
    """Hits of each query, nearest first; `missing` are shards that did not answer (empty unless partial is allowed)."""

    hits: Sequence[Sequence[Hit]]
    positions: Mapping[ShardId, Position]
    missing: Sequence[int]


class Batches(Protocol):
    """What etcd knows of the batches of one collection (15)."""

    def forgotten(self) -> Revision:
        """When decisions were last forgotten, as far as is known here."""

    async def decide(self, decision: Decision, forgotten: Revision) -> Decision | Revision:
        """Make a decision unless there is one, or some were forgotten since: what there is instead."""


def _no_batches(_: str) -> Batches:
    raise MetadataUnavailable("etcd is needed to decide about a batch over several shards")


class Coordinator:
    """Requests over a whole collection, as node `me` sees it; `wait` is for a change of the state."""

    def __init__(
        self,
        me: NodeId,
        state: Callable[[], ClusterState],
        wait: Wait,
        peers: Peers,
        shards_of: ShardsOf,
        *,
        batches: Callable[[str], Batches] = _no_batches,
        read_timeout: float,
        write_timeout: float,
    ) -> None:
        """`batches` is what etcd knows of a collection's batches over several shards."""
        self._batches = batches
        self._state = state
        self._peers = peers
        self._asking = Asking(me, state, wait, peers, shards_of)
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout

    def _map(self, collection: Collection) -> ShardMap:
        return ShardMap.of(collection, self._state().shards)

    # Writes

    async def upsert(
        self,
        collection: Collection,
        batch: UpsertBatch,
        operation: str,
        level: WriteConsistency,
        *,
        atomic: bool = False,
    ) -> Outcome:
        """Store a batch. Each shard takes its part whole or not at all; if `atomic`, all of them do, or none (15)."""
        rows = self._map(collection).rows_by_shard(batch.ids)
        parts = {n: batch if len(chosen) == len(batch) else batch.take(chosen) for n, chosen in rows.items()}
        _check_sizes(parts.values())
        if atomic and len(parts) > 1:
            return await self._upsert_atomic(collection, batch, parts, operation, level)
        return await self._write(collection, parts, operation, level, "upserted", "stored")

    async def _upsert_atomic(
        self,
        collection: Collection,
        batch: UpsertBatch,
        parts: Mapping[int, UpsertBatch],
        operation: str,
        level: WriteConsistency,
    ) -> Outcome:
        first = Batch(batch_name(operation, batch), 1)
        requests = {
            n: Prepare(
                shard=ShardId(collection.uuid, n), batch=first, participants=sorted(parts), rows=part, level=level
            )
            for n, part in parts.items()
        }
        store = self._batches(collection.uuid)
        write = AtomicWrite(
            self._asking, requests, forgotten=store.forgotten, decide=store.decide, timeout=self._write_timeout
        )
        try:
            return _in_all(collection, await write.run())
        except VecClusterError as error:
            raise _named(collection, error) from error

    async def delete_ids(
        self, collection: Collection, ids: Sequence[str], operation: str, level: WriteConsistency
    ) -> Outcome:
        """Remove these ids; those that are not there are no error and do not count."""
        rows = self._map(collection).rows_by_shard(ids)
        changes = {n: Removal([ids[i] for i in chosen]) for n, chosen in rows.items()}
        return await self._write(collection, changes, operation, level, "deleted", "deleted")

    async def delete_where(
        self, collection: Collection, where: Where, operation: str, level: WriteConsistency
    ) -> Outcome:
        """Remove what matches, in every shard."""
        changes = dict.fromkeys(self._map(collection).numbers, where)
        return await self._write(collection, changes, operation, level, "deleted", "deleted")

    async def _write(
        self,
        collection: Collection,
        changes: Mapping[int, Change],
        operation: str,
        level: WriteConsistency,
        counted: str,
        done: str,
    ) -> Outcome:
        async def one(number: int, change: Change) -> Written:
            shard = ShardId(collection.uuid, number)
            name = write_name(operation, shard, change)
            request = Write(shard=shard, operation=name, change=change, level=level)
            return await write(self._asking, request, timeout=self._write_timeout)

        answers = await asyncio.gather(*(one(n, change) for n, change in changes.items()), return_exceptions=True)
        good: dict[int, Written] = {}
        failed: dict[int, VecClusterError] = {}
        for number, answer in zip(changes, answers, strict=True):
            if isinstance(answer, VecClusterError):
                failed[number] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                good[number] = answer
        written = _in_all(collection, good)
        if failed:
            ids = {n: c.ids for n, c in changes.items() if isinstance(c, UpsertBatch | Removal)}
            raise _write_failure(collection, failed, ids, {counted: written.count}, done)
        return written

    # Reads

    async def search(
        self, collection: Collection, query: Query, reading: Reading, *, allow_partial: bool = False
    ) -> Hits:
        """The k nearest of each query over every shard, by distance, then id."""
        request = Search(collection=collection.uuid, query=query, level=reading.level, source=reading.source)
        read = Read(self._asking, collection, request, reading.session, self._read_timeout)
        part = await read.run(self._map(collection).numbers, patient=not allow_partial)
        if part.failed and not allow_partial:
            raise _read_failure(collection, part.failed)
        lists = (merge(*(r.hits[q] for r in part.good), key=nearness) for q in range(len(query.vectors)))
        hits = [list(islice(merged, query.k)) for merged in lists]
        return Hits(hits, _positions(collection, part.good), sorted(part.failed))

    async def get(
        self, collection: Collection, ids: Sequence[str], reading: Reading
    ) -> tuple[dict[str, Stored], Session]:
        """The vectors that exist among `ids`, by id, and up to where the shards were read."""
        rows = self._map(collection).rows_by_shard(ids)
        wanted = {n: [ids[i] for i in chosen] for n, chosen in rows.items()}
        request = Get(collection=collection.uuid, ids=wanted, level=reading.level, source=reading.source)
        replies = await self._read_all(collection, wanted, reading, request)
        return {s.id: s for r in replies for s in r.found}, _positions(collection, replies)

    async def list_ids(
        self, collection: Collection, after: str | None, limit: int, where: Where | None, reading: Reading
    ) -> tuple[list[str], Session]:
        """The first `limit` ids after `after` in the order of their UTF-8 bytes, over every shard, and up to where
        those were read.
        """
        request = ListIds(
            collection=collection.uuid,
            after=after,
            limit=limit,
            where=where,
            level=reading.level,
            source=reading.source,
        )
        replies = await self._read_all(collection, self._map(collection).numbers, reading, request)
        ids = list(islice(merge(*(r.ids for r in replies)), limit))
        return ids, _positions(collection, replies)

    async def count(self, collection: Collection, where: Where | None, reading: Reading) -> tuple[int, Session]:
        """How many vectors match, over every shard, and up to where those were read."""
        request = Count(collection=collection.uuid, where=where, level=reading.level, source=reading.source)
        replies = await self._read_all(collection, self._map(collection).numbers, reading, request)
        return sum(r.count for r in replies), _positions(collection, replies)

    async def _read_all(
        self, collection: Collection, numbers: Iterable[int], reading: Reading, request: ShardsRequest[R]
    ) -> list[R]:
        read = Read(self._asking, collection, request, reading.session, self._read_timeout)
        part = await read.run(numbers, patient=True)
        if part.failed:
            raise _read_failure(collection, part.failed)
        return part.good

    # The cluster

    async def frontiers(self, uuid: str, numbers: Iterable[int]) -> dict[int, Showing]:
        """What the primaries of these shards have applied of batches over several shards, as far as they say."""
        by_node: dict[NodeId, list[int]] = {}
        for n in numbers:
            if record := self._state().shards.get(ShardId(uuid, n)):
                by_node.setdefault(record.primary.node, []).append(n)
        asked = (
            self._asking.call(node, GetFrontiers(collection=uuid, shards=some), REPORT_TIMEOUT)
            for node, some in by_node.items()
        )
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return {n: f for a in answers if isinstance(a, ShardsReply) for n, f in a.frontier.items()}

    async def reports(self, uuid: str | None = None) -> tuple[list[ShardReport], dict[NodeId, Report | None]]:
        """What the nodes say of their shards, once each, and the answer of each node that gave one."""
        state = self._state()
        nodes = list(state.nodes)
        asked = (self._ask_for_report(node, uuid) for node in nodes)
        answers = dict(zip(nodes, await asyncio.gather(*asked), strict=True))
        reports: dict[ShardId, ShardReport] = {}
        for node, answer in answers.items():
            for report in answer.shards if answer else ():
                record = state.shards.get(report.shard)
                if report.shard not in reports or (record and record.primary.node == node):
                    reports[report.shard] = report  # what its primary says counts, if that says something
        return list(reports.values()), answers

    async def spread(self, collection: Collection, *, gone: bool = False) -> None:
        """Wait until every node that can be asked knows that the collection is there, or `gone`.

        So that a client that was told so may go on at any node. One that gives no answer in time learns it from etcd.
        """
        news = m.AwaitCollection(name=collection.name, uuid=collection.uuid, gone=gone)
        asked = (self._peers.call(node, news, timeout=REPORT_TIMEOUT) for node in self._state().alive)
        await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_for_report(self, node: NodeId, uuid: str | None) -> Report | None:
        try:
            return await self._asking.call(node, GetReport(collection=uuid), REPORT_TIMEOUT)
        except VecClusterError:
            return None


REPORT_TIMEOUT = 2.0


def _check_sizes(parts: Iterable[UpsertBatch]) -> None:
    """`PayloadTooLarge`, before anything is stored anywhere, if a shard could not take its part."""
    for part in parts:
        check_size(size_of(part.ids, sum(map(len, part.metadata)), part.vectors.size * 4))


def _in_all(collection: Collection, written: Mapping[int, Written]) -> Outcome:
    positions = {ShardId(collection.uuid, n): w.position for n, w in written.items()}
    return Outcome(sum(w.count for w in written.values()), positions)


def _positions(collection: Collection, replies: Iterable[ShardsReply]) -> dict[ShardId, Position]:
    return {ShardId(collection.uuid, n): position for reply in replies for n, position in reply.applied.items()}


def _why(collection: Collection, failed: Mapping[int, VecClusterError]) -> str:
    """One sentence for the failed shards: which ones, and each different reason once."""
    reasons: dict[str, list[int]] = {}
    for number, error in sorted(failed.items()):
        reasons.setdefault(error.detail, []).append(number)
    parts = (f"{', '.join(map(str, numbers))} ({reason})" for reason, numbers in reasons.items())
    return f"collection {collection.name}, shard {'; shard '.join(parts)}"


def _read_failure(collection: Collection, failed: Mapping[int, VecClusterError]) -> VecClusterError:
    return ShardsUnavailable(
        f"cannot be read now: {_why(collection, failed)}",
        missing_shards=sorted(failed),
    )


def _named(collection: Collection, error: VecClusterError) -> VecClusterError:
    """The error of an atomic batch, with the collection."""
    if error.status < 500:
        return error
    done = "nobody knows whether this was stored, send it again" if isinstance(error, OutcomeUnknown) else "not stored"
    return type(error)(f"{done}: collection {collection.name}: {error.detail}")


def _write_failure(
    collection: Collection,
    failed: Mapping[int, VecClusterError],
    ids: Mapping[int, Sequence[str]],
    counted: Mapping[str, int],
    done: str,
) -> VecClusterError:
    """The gravest of the failures, with what was done and which ids were not (or perhaps not)."""
    client_errors = [e for e in failed.values() if e.status < 500]
    if client_errors:
        return client_errors[0]
    unknown = [n for n, e in failed.items() if isinstance(e, OutcomeUnknown)]
    certain = [n for n in failed if n not in unknown]
    extra = {
        **counted,
        "missing_shards": sorted(failed),
        f"not_{done}": [i for n in sorted(certain) for i in ids.get(n, ())],
        f"maybe_{done}": [i for n in sorted(unknown) for i in ids.get(n, ())],
    }
    why = _why(collection, failed)
    if unknown:
        return OutcomeUnknown(f"nobody knows whether this was {done}, send it again: {why}", **extra)
    return _kind_of_failure(list(failed.values()))(f"not {done}: {why}", **extra)


def _kind_of_failure(errors: Sequence[VecClusterError]) -> type[VecClusterError]:
    """What several shards' failures are together; a full disk is what ends last by itself."""
    if all(isinstance(e, TooFewReplicas) for e in errors):
        return TooFewReplicas
    if all(isinstance(e, InsufficientStorage | Unavailable) for e in errors):
        return InsufficientStorage if any(isinstance(e, InsufficientStorage) for e in errors) else ShardsUnavailable
    return VecClusterError
