"""What is asked of a node's shards is the same whether they are here or beyond the wire: requests, replies, errors."""

from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest

from veccluster.decisions.filters import Where
from veccluster.decisions.replication.atomic import Batch, Showing, Standing, Verdict
from veccluster.errors import NotPrimary, ReplicaBehind
from veccluster.model.limits import Limits
from veccluster.model.state import NodeId, ReadConsistency, Seq, ShardId, WriteConsistency
from veccluster_node.engine.search import Hit, Query, Stored
from veccluster_node.peer import messages as m
from veccluster_node.peer.answers import Answers
from veccluster_node.peer.remote import RemoteShards
from veccluster_node.service import shard_service as s

SHARD = ShardId("u", 2)
WHERE = Where.of({"$and": [{"a": {"$gt": 1}}, {"b": "x"}]})
ROWS = s.UpsertBatch(["a", "b"], np.arange(6, dtype=np.float32).reshape(2, 3), [b"{}", b'{"x":1}'])
READ: dict[str, Any] = {
    "collection": "u",
    "shards": [0, 2],
    "level": ReadConsistency.strong,
    "at_least": {2: (3, 9)},
    "decided": {0: [Seq(4)]},
    "source": "10.0.0.1",
    "principal": "somebody",
    "trace": "t-1",
}
CHANGE: dict[str, Any] = {"shard": SHARD, "level": WriteConsistency.all, "principal": "somebody", "trace": "t-1"}
ABOUT: dict[str, Any] = {
    "applied": {0: (3, 7)},
    "failed": {2: ReplicaBehind("shard u.2: it lags")},
    "frontier": {0: Showing(Seq(7), frozenset({Seq(4)}), {2: Seq(5)})},
}
QUERY = Query(np.ones((2, 3), np.float32), 5, WHERE, ef=9, exact=True, with_metadata=True, with_vector=True)
HITS = [[Hit(0.5, "a", b"{}", bytes(12))], []]

CASES = [
    (s.Search(**READ, query=QUERY), s.Found(hits=HITS, **ABOUT)),
    (s.Get(**READ, ids={0: ["a"], 2: ["b"]}), s.Got(found=[Stored("a", bytes(12), b"{}")], **ABOUT)),
    (s.ListIds(**READ, after="a", limit=4, where=WHERE), s.Listed(ids=["b"], **ABOUT)),
    (s.Count(**READ, where=None), s.Counted(count=3, **ABOUT)),
    (s.Write(**CHANGE, operation="op", change=ROWS), s.Written((3, 9), 2)),
    (s.Write(**CHANGE, operation="op", change=s.Removal(["a"])), s.Written((3, 9), 1)),
    (s.Write(**CHANGE, operation="op", change=WHERE), s.Written((3, 9), 1)),
    (s.Prepare(**CHANGE, batch=Batch("op", 2), participants=[0, 2], rows=ROWS), Standing(2, Seq(8), Verdict.applied)),
    (s.Settle(**CHANGE, batch=Batch("op", 2)), s.Written((3, 9), 2)),
    (s.GetPositions(collection="u", shards=[0, 2], principal="somebody"), s.Durable(durable={0: (3, 9)})),
    (s.GetFrontiers(collection="u", shards=[0, 2], trace="t-1"), s.ShardsReply(**ABOUT)),
    (s.GetReport(collection="u"), s.Report([s.ShardReport(SHARD, 1, 2, 3, 4, 5, False, 6, 7)], ["words/1"])),
]


class Recorder:
    """Any shards: notes what it is asked, and answers as it is told."""

    def __init__(self, reply: Any) -> None:
        self.asked: list[Any] = []
        self._reply = reply

    def __getattr__(self, verb: str) -> Any:
        async def answer(request: Any) -> Any:
            self.asked.append(request)
            if isinstance(self._reply, Exception):
                raise self._reply
            return self._reply

        return answer


class Wire:
    """Carries messages as bytes, as `Peers` does."""

    def __init__(self, shards: Recorder) -> None:
        self._answers = Answers(shards, Limits(), {})

    async def call(self, _: NodeId, message: Any, *, timeout: float) -> Any:
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=m.AnyRequest)
        reply = msgspec.msgpack.encode(await self._answers.to(decoded))
        return msgspec.msgpack.decode(reply, type=type(message).reply)


def remote(shards: Recorder) -> RemoteShards:
    return RemoteShards(Wire(shards), NodeId("n"), 1.0)  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Something that can be compared: arrays as lists, errors as their documents, records as their members."""
    match value:
        case np.ndarray():
            return value.tolist()
        case Exception():
            return value.problem() if isinstance(value, ReplicaBehind) else repr(value)
        case dict():
            return {key: plain(one) for key, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
        case _ if hasattr(value, "__dataclass_fields__"):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


@pytest.mark.parametrize(("request_", "reply"), CASES, ids=lambda case: type(case).__name__)
async def test_another_node_is_asked_the_same_and_says_the_same(request_, reply) -> None:
    shards = Recorder(reply)
    told = await request_.ask(remote(shards))
    assert plain(shards.asked) == [plain(request_)]
    assert type(told) is type(reply) and plain(told) == plain(reply)


@pytest.mark.parametrize(("request_", "_"), CASES, ids=lambda case: type(case).__name__)
async def test_what_went_wrong_there_is_what_is_raised_here(request_, _) -> None:
    with pytest.raises(NotPrimary):
        await request_.ask(remote(Recorder(NotPrimary("another node is"))))


async def test_a_message_of_a_version_that_knew_neither_principal_nor_trace_is_understood() -> None:
    old = {
        "type": "Count",
        "collection": "u",
        "shards": [0],
        "filter": b'{"a":1}',
        "at_least": {},
        "level": "session",
        "decided": {},
        "source": "",
    }
    shards = Recorder(s.Counted(count=3))
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=m.AnyRequest)
    assert await Answers(shards, Limits(), {}).to(message) == m.Counted(3, {})
    (asked,) = shards.asked
    assert asked == s.Count(collection="u", shards=[0], where=Where.of({"a": 1}))


def test_every_message_about_shards_has_an_answer() -> None:
    others = {m.GetDecisions, m.GetDigests, m.BeginAnew, m.GetCopy, m.Ping, m.AwaitCollection}
    known = set(m.AnyRequest.__args__)
    assert Answers(Recorder(None), Limits(), {})._table.keys() == known - others
