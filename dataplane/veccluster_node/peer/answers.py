"""Answers what other nodes ask: of a message a request to this node's shards, and of the reply a message again.

Which kind of message is answered by whom is one table; what is not about shards is answered by whoever wires it here.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson

from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Batch, Showing
from veccluster.errors import VecClusterError
from veccluster.model.limits import Limits
from veccluster_node.engine.distance import F32
from veccluster_node.engine.search import Query
from veccluster_node.peer import messages as m
from veccluster_node.service import shard_service as s

Answer = Callable[[Any], Awaitable[m.Reply]]
"""Takes a message of one kind."""


class Answers:
    """The answer to a message of any kind."""

    def __init__(self, shards: s.ShardService, limits: Limits, others: Mapping[type[m.Request[Any]], Answer]) -> None:
        """`others` answer what is not about shards; filters are within `limits`."""
        self._shards = shards
        self._limits = limits
        self._table: dict[type[m.Request[Any]], Answer] = {
            m.Search: self._search,
            m.Get: self._get,
            m.ListIds: self._list_ids,
            m.Count: self._count,
            m.Upsert: self._upsert,
            m.DeleteIds: self._delete_ids,
            m.DeleteWhere: self._delete_where,
            m.PrepareBatch: self._prepare,
            m.SettleBatch: self._settle,
            m.GetPositions: self._positions,
            m.GetShowing: self._frontiers,
            m.GetReport: self._report,
            **others,
        }

    async def to(self, message: m.AnyRequest) -> m.Reply:
        """The answer to this one."""
        return await self._table[type(message)](message)

    async def _search(self, message: m.Search) -> m.Found:
        query = Query(
            vectors=np.frombuffer(message.vectors, dtype="<f4").reshape(message.queries, -1),
            k=message.k,
            where=self._where(message.filter),
            ef=message.ef,
            exact=message.exact,
            with_metadata=message.with_metadata,
            with_vector=message.with_vector,
        )
        reply = await self._shards.search(s.Search(**_read(message), shards=message.shards, query=query))
        return m.Found(hits=[list(hits) for hits in reply.hits], **_told(reply))

    async def _get(self, message: m.Get) -> m.Got:
        reply = await self._shards.get(s.Get(**_read(message), shards=list(message.ids), ids=message.ids))
        return m.Got(found=list(reply.found), **_told(reply))

    async def _list_ids(self, message: m.ListIds) -> m.Listed:
        request = s.ListIds(
            **_read(message),
            shards=message.shards,
            after=message.after,
            limit=message.limit,
            where=self._where(message.filter),
        )
        reply = await self._shards.list_ids(request)
        return m.Listed(ids=list(reply.ids), **_told(reply))

    async def _count(self, message: m.Count) -> m.Counted:
        request = s.Count(**_read(message), shards=message.shards, where=self._where(message.filter))
        reply = await self._shards.count(request)
        return m.Counted(count=reply.count, **_told(reply))

    async def _upsert(self, message: m.Upsert) -> m.Written:
        return await self._write(message, _rows(message))

    async def _delete_ids(self, message: m.DeleteIds) -> m.Written:
        return await self._write(message, s.Removal(message.ids))

    async def _delete_where(self, message: m.DeleteWhere) -> m.Written:
        return await self._write(message, Where.of(orjson.loads(message.filter), self._limits))

    async def _write(self, message: m.Write, change: s.Change) -> m.Written:
        operation = message.op_id
        request = s.Write(shard=message.shard, level=message.level, operation=operation, change=change, **_by(message))
        written = await self._shards.write(request)
        return m.Written(written.position, written.count)

    async def _prepare(self, message: m.PrepareBatch) -> m.Standing:
        request = s.Prepare(
            shard=message.shard,
            level=message.level,
            batch=Batch(message.operation, message.attempt),
            participants=message.participants,
            rows=_rows(message),
            **_by(message),
        )
        standing = await self._shards.prepare(request)
        return m.Standing(standing.attempt, standing.at, standing.verdict)

    async def _settle(self, message: m.SettleBatch) -> m.Written:
        batch = Batch(message.operation, message.attempt)
        request = s.Settle(shard=message.shard, level=message.level, batch=batch, **_by(message))
        written = await self._shards.settle(request)
        return m.Written(written.position, written.count)

    async def _positions(self, message: m.GetPositions) -> m.Positions:
        request = s.GetPositions(collection=message.collection, shards=message.shards, **_by(message))
        reply = await self._shards.positions(request)
        return m.Positions(dict(reply.durable), _problems(reply.failed))

    async def _frontiers(self, message: m.GetShowing) -> m.Shown:
        request = s.GetFrontiers(collection=message.collection, shards=message.shards, **_by(message))
        return m.Shown(**_told(await self._shards.frontiers(request)))

    async def _report(self, message: m.GetReport) -> m.Report:
        reply = await self._shards.report(s.GetReport(collection=message.collection, **_by(message)))
        return m.Report(list(reply.shards), list(reply.opening))

    def _where(self, text: bytes | None) -> Where | None:
        return Where.of(orjson.loads(text), self._limits) if text else None


def _by(message: m.Request[Any]) -> dict[str, Any]:
    return {"principal": message.principal, "trace": message.trace}


def _read(message: m.Read) -> dict[str, Any]:
    return {
        "collection": message.collection,
        "level": message.level,
        "at_least": message.at_least,
        "decided": message.decided,
        "source": message.source,
        **_by(message),
    }


def _rows(message: m.Upsert | m.PrepareBatch) -> s.UpsertBatch:
    vectors: F32 = np.frombuffer(message.vectors, "<f4").reshape(len(message.ids), -1)
    return s.UpsertBatch(message.ids, vectors, message.metadata)


def _told(reply: s.ShardsReply) -> dict[str, Any]:
    return {
        "applied": dict(reply.applied),
        "failed": _problems(reply.failed),
        "showing": {n: _showing(one) for n, one in reply.frontier.items() if one.pending or one.latest},
    }


def _showing(showing: Showing) -> m.Showing:
    return m.Showing(sorted(showing.pending), dict(showing.latest))


def _problems(failed: Mapping[int, VecClusterError]) -> m.Failures:
    return {n: error.problem() for n, error in failed.items()}
