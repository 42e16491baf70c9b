"""The shards of another node, asked over the wire: here alone requests become messages, and messages replies."""

from typing import Any

from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Showing, Standing
from veccluster.errors import from_problem
from veccluster.model.state import NodeId, Seq
from veccluster_node.engine.distance import F32
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.service import shard_service as s


class RemoteShards:
    """Implements `ShardService` for one node; each request gets `timeout` seconds.

    Beside what the node answers: `Unavailable` if it cannot be reached, `OutcomeUnknown` if a write was sent and
    no answer came.
    """

    def __init__(self, peers: Peers, node: NodeId, timeout: float) -> None:
        self._peers = peers
        self._node = node
        self._timeout = timeout

    async def search(self, request: s.Search) -> s.Found:
        """The nearest of each query."""
        query = request.query
        message = m.Search(
            **_read(request),
            shards=list(request.shards),
            vectors=_bytes(query.vectors),
            queries=len(query.vectors),
            k=query.k,
            filter=_text(query.where),
            ef=query.ef,
            exact=query.exact,
            with_metadata=query.with_metadata,
            with_vector=query.with_vector,
        )
        reply = await self._ask(message)
        return s.Found(hits=reply.hits, **_reply(reply))

    async def get(self, request: s.Get) -> s.Got:
        """Vectors by id."""
        ids = {n: list(request.ids[n]) for n in request.shards}
        reply = await self._ask(m.Get(**_read(request), ids=ids))
        return s.Got(found=reply.found, **_reply(reply))

    async def list_ids(self, request: s.ListIds) -> s.Listed:
        """Ids in byte order."""
        message = m.ListIds(
            **_read(request),
            shards=list(request.shards),
            after=request.after,
            limit=request.limit,
            filter=_text(request.where),
        )
        reply = await self._ask(message)
        return s.Listed(ids=reply.ids, **_reply(reply))

    async def count(self, request: s.Count) -> s.Counted:
        """How many vectors match."""
        message = m.Count(**_read(request), shards=list(request.shards), filter=_text(request.where))
        reply = await self._ask(message)
        return s.Counted(count=reply.count, **_reply(reply))

    async def write(self, request: s.Write) -> s.Written:
        """Change a shard."""
        to = {"shard": request.shard, "op_id": request.operation, "level": request.level, **_context(request)}
        match request.change:
            case s.UpsertBatch() as rows:
                reply = await self._ask(m.Upsert(**to, **_rows(rows)))
            case s.Removal(ids):
                reply = await self._ask(m.DeleteIds(**to, ids=list(ids)))
            case Where() as where:
                reply = await self._ask(m.DeleteWhere(**to, filter=where.text))
        return s.Written(reply.position, reply.count)

    async def prepare(self, request: s.Prepare) -> Standing:
        """Keep a part of a batch over several shards: how that stands there."""
        message = m.PrepareBatch(
            **_batch(request), participants=list(request.participants), **_rows(request.rows), **_context(request)
        )
        reply = await self._ask(message)
        return Standing(reply.attempt, reply.at, reply.verdict)

    async def settle(self, request: s.Settle) -> s.Written:
        """Wait until a batch is decided there."""
        reply = await self._ask(m.SettleBatch(**_batch(request), **_context(request)))
        return s.Written(reply.position, reply.count)

    async def positions(self, request: s.GetPositions) -> s.Durable:
        """How far the replicas are."""
        message = m.GetPositions(collection=request.collection, shards=list(request.shards), **_context(request))
        reply = await self._ask(message)
        return s.Durable(durable=reply.durable, failed=_errors(reply.failed))

    async def frontiers(self, request: s.GetFrontiers) -> s.ShardsReply:
        """What is applied of batches over several shards."""
        message = m.GetShowing(collection=request.collection, shards=list(request.shards), **_context(request))
        reply = await self._ask(message)
        return s.ShardsReply(**_reply(reply))

    async def report(self, request: s.GetReport) -> s.Report:
        """How the shards fare."""
        reply = await self._ask(m.GetReport(collection=request.collection, **_context(request)))
        return s.Report(reply.shards, reply.opening)

    async def _ask(self, message: m.Request[m.R]) -> m.R:
        return await self._peers.call(self._node, message, timeout=self._timeout)


def _context(request: s.Request[Any]) -> dict[str, Any]:
    return {"principal": request.principal, "trace": request.trace}


def _read(request: s.ShardsRequest[Any]) -> dict[str, Any]:
    return {
        "collection": request.collection,
        "level": request.level,
        "at_least": {n: p for n, p in request.at_least.items() if n in request.shards},
        "decided": {n: list(places) for n, places in request.decided.items() if n in request.shards},
        "source": request.source,
        **_context(request),
    }


def _rows(rows: s.UpsertBatch) -> dict[str, Any]:
    return {"ids": list(rows.ids), "vectors": _bytes(rows.vectors), "metadata": list(rows.metadata)}


def _batch(request: s.Prepare | s.Settle) -> dict[str, Any]:
    operation, attempt = request.batch
    return {"shard": request.shard, "operation": operation, "attempt": attempt, "level": request.level}


def _bytes(vectors: F32) -> bytes:
    return vectors.astype("<f4", order="C", copy=False).tobytes()


def _text(where: Where | None) -> bytes | None:
    return where.text if where else None


def _reply(reply: m.Found | m.Got | m.Listed | m.Counted | m.Shown) -> dict[str, Any]:
    frontier = {n: _showing(Seq(seq), reply.showing.get(n)) for n, (_, seq) in reply.applied.items()}
    return {"applied": reply.applied, "failed": _errors(reply.failed), "frontier": frontier}


def _showing(applied: Seq, told: m.Showing | None) -> Showing:
    return Showing(applied, frozenset(told.pending), told.latest) if told else Showing(applied)


def _errors(failed: m.Failures) -> dict[int, Any]:
    return {n: from_problem(problem) for n, problem in failed.items()}
