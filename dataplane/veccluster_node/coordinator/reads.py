"""One read over the shards of a collection: each node that is asked gets one request for all of its shards.

A reply holds its shards together, so the replies of one read never overlap: where a node fails in some of its shards,
those alone are asked elsewhere; where it gives no answer in time, all of them are asked elsewhere too, and either its
answer is used or those of the others.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from veccluster.decisions import routing
from veccluster.decisions.replication import atomic, reading, values
from veccluster.decisions.routing import NOBODY
from veccluster.errors import ReplicaBehind, ShardsUnavailable, Unavailable, VecClusterError
from veccluster.model.state import Collection, Epoch, NodeId, ReadConsistency, Seq, Shard, ShardId
from veccluster.model.token import Position
from veccluster_node.coordinator.asking import (
    LITTLE_PATIENCE,
    PING_EVERY,
    SHORTEST_WAIT,
    Asking,
    NotYet,
    either,
    together,
)
from veccluster_node.service.shard_service import GetPositions, ShardsReply, ShardsRequest

R = TypeVar("R", bound=ShardsReply)
Positions = Mapping[int, Position]
Errors = dict[int, VecClusterError]


TORN = ReplicaBehind("its state and those of other shards did not show the same batches in time")


@dataclass(frozen=True, slots=True)
class Part(Generic[R]):
    """Replies that do not overlap, and what went wrong with the other shards."""

    good: list[R] = field(default_factory=list)
    failed: Errors = field(default_factory=dict)

    def __add__(self, other: "Part[R]") -> "Part[R]":
        return Part(self.good + other.good, self.failed | other.failed)


class Read(Generic[R]):
    """What is asked, and until when."""

    def __init__(
        self,
        asking: Asking,
        collection: Collection,
        request: ShardsRequest[R],
        seen: Mapping[ShardId, Position],
        timeout: float,
    ) -> None:
        """`request` is as it is asked of each node but for the shards, and what those must show.

        `seen` is what the client has seen, which every level but `eventual` shows.
        """
        self._asking = asking
        self._collection = collection
        self._level = routing.effective(request.level, collection)
        self._request = request
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._vantage = asking.vantage()
        shown = {} if request.level is ReadConsistency.eventual else seen
        self._at_least = {i.number: position for i, position in shown.items() if i.collection == collection.uuid}
        self._reached: set[int] = set()
        self._decided: dict[int, frozenset[Seq]] = {}
        """Which batches over several shards must be decided in what is read (15)."""

    async def run(self, numbers: Iterable[int], *, patient: bool) -> Part[R]:
        """Read these shards; if `patient`, again while another replica may take over, or catch up, until time is up."""
        todo = list(numbers)
        found: Part[R] = Part()

        async def attempt() -> Part[R] | NotYet[Part[R]]:
            nonlocal todo, found
            self._vantage = self._asking.vantage()
            asked = {n: shard for n in todo if (shard := self._record(n)) is not None}
            part = await self._round(todo)
            found = Part(found.good + part.good, part.failed if patient else found.failed | part.failed)
            fitting, torn = self._fitting(found.good)
            whole = Part(fitting, found.failed | dict.fromkeys(torn, TORN))
            todo, found = [*torn, *(part.failed if patient else ())], Part(fitting, found.failed)
            steps = {self._again(asked.get(n), error) for n, error in part.failed.items()} if patient else set()
            if not todo or routing.Again.no in steps:
                return whole
            at_once = bool(torn) or routing.Again.at_once in steps
            return NotYet(lambda: whole, [ShardId(self._collection.uuid, n) for n in todo], at_once)

        # With less time than that nothing would come of another attempt but a reason that says less.
        return await self._asking.until_final(attempt, self._deadline, room=SHORTEST_WAIT)

    def _fitting(self, replies: list[R]) -> tuple[list[R], list[int]]:
        """The replies that show the same batches over several shards (15), and the shards of those that are to be asked
        again, since they lack one that another shows.
        """
        shown = {n: showing for reply in replies for n, showing in reply.frontier.items()}
        lacking = atomic.lacking(shown)
        for n, places in lacking.items():
            self._decided[n] = self._decided.get(n, frozenset()) | places
        torn = [reply for reply in replies if not lacking.keys().isdisjoint(reply.applied)]
        fitting = [reply for reply in replies if lacking.keys().isdisjoint(reply.applied)]
        return fitting, [n for reply in torn for n in reply.applied]

    def _again(self, asked: Shard | None, error: VecClusterError) -> routing.Again:
        state = self._asking.state()
        known = state.shards.get(asked.id) if asked else None
        return routing.again(asked, known, error, state.alive.keys()) if asked else routing.Again.no

    async def _round(self, numbers: list[int]) -> Part[R]:
        nobody: Errors = {
            n: ShardsUnavailable(f"shard {n} has not been given to a node yet", missing_shards=[n])
            for n in numbers
            if self._record(n) is None
        }
        asked = [n for n in numbers if n not in nobody]
        if self._level is ReadConsistency.quorum:
            nobody |= await self._reach([n for n in asked if n not in self._reached])
        reasons: Errors = {
            n: Unavailable(f"shard {n} has no replica that is in sync") for n in asked if n not in nobody
        }
        part = await self._cover(reasons, NOBODY)
        return Part(part.good, part.failed | nobody)

    # Whom to ask

    async def _cover(self, shards: Errors, tried: frozenset[NodeId]) -> Part[R]:
        """Ask for these shards whoever comes next; where nobody is left, it failed for the reason given."""
        level, records = self._asked_level, self._records(shards)
        groups = routing.by_reader(records.values(), level, self._vantage, tried)
        asked = {n for numbers in groups.values() for n in numbers}
        left: Part[R] = Part([], {n: error for n, error in shards.items() if n not in asked})
        parts = await together(*(self._ask(node, numbers, tried) for node, numbers in groups.items()))
        return sum(parts, left)

    async def _ask(self, node: NodeId, numbers: list[int], tried: frozenset[NodeId]) -> Part[R]:
        """What the node says of these shards, or others in its place."""
        request = self._about(numbers)
        call = asyncio.ensure_future(_call(self._asking, node, request, numbers, self._time_for(node)))
        try:
            await asyncio.wait({call}, timeout=self._asking.patience.wait(_kind(request), most=self._timeout / 3))
            if not call.done() and request.is_slow:
                if not self._are_others(numbers, tried | {node}):
                    return await self._unless_moved(call, node, numbers, tried)
                await self._while_there(call, node)
            if not call.done():
                self._asking.is_slow(node, True)
                return await self._hedge(call, node, numbers, tried)
            return await self._mend(call.result(), node, tried)
        finally:
            call.cancel()

    async def _while_there(self, call: "asyncio.Future[Part[R]]", node: NodeId) -> None:
        """Until the answer of a node to what is slow by nature, or its silence also about what is not.

        Others would be as slow: asking them, too, would only keep all copies busy with the same.
        """
        while not call.done():
            if not await self._asking.is_there(node):
                return
            await asyncio.wait({call}, timeout=PING_EVERY)

    async def _mend(self, part: Part[R], node: NodeId, tried: frozenset[NodeId]) -> Part[R]:
        """Ask elsewhere for the shards in which the node failed."""
        if not part.failed:
            return part
        return Part(part.good) + await self._cover(part.failed, tried | {node})

    async def _hedge(
        self, call: "asyncio.Future[Part[R]]", node: NodeId, numbers: list[int], tried: frozenset[NodeId]
    ) -> Part[R]:
        """The answer that is still owed, or those of others, whichever are whole first."""
        if not self._are_others(numbers, tried | {node}):
            return await self._unless_moved(call, node, numbers, tried)
        late: VecClusterError = Unavailable(f"node {node} gave no answer in time")
        others = asyncio.ensure_future(self._cover(dict.fromkeys(numbers, late), tried | {node}))
        try:
            both: tuple[asyncio.Future[Part[R]], ...] = (call, others)
            await either(call, others)
            if not any(one.done() and not one.result().failed for one in both):
                await asyncio.wait(both)
            done = [one.result() for one in both if one.done()]
            best = min(done, key=lambda part: len(part.failed))
            return await self._mend(best, node, tried) if call.done() and best is call.result() else best
        finally:
            others.cancel()

    def _are_others(self, numbers: list[int], tried: frozenset[NodeId]) -> bool:
        """Whether anybody is left who may answer for any of these shards."""
        records = self._records(numbers).values()
        return bool(routing.by_reader(records, self._asked_level, self._vantage, tried))

    async def _unless_moved(
        self, call: "asyncio.Future[Part[R]]", node: NodeId, numbers: list[int], tried: frozenset[NodeId]
    ) -> Part[R]:
        """The answer of the only one who may give it; when another node becomes that, all is asked anew."""
        asked = {record.id: record for record in self._records(numbers).values()}
        left = max(self._deadline - time.monotonic(), 0.001)
        moved = asyncio.ensure_future(self._asking.wait(lambda now: routing.has_moved(now, asked), left))
        try:
            await either(call, moved)
            if not call.done() and moved.result():
                late: VecClusterError = Unavailable(f"node {node} gave no answer and is no longer the primary")
                return await self._cover(dict.fromkeys(numbers, late), tried)
            await asyncio.wait({call})
            return await self._mend(call.result(), node, tried)
        finally:
            moved.cancel()

    def _time_for(self, node: NodeId) -> float:
        """Seconds that the node gets."""
        left = max(self._deadline - time.monotonic(), 0.001)
        return left if node in self._vantage.alive else min(left, LITTLE_PATIENCE)

    def _about(self, numbers: list[int]) -> ShardsRequest[R]:
        at_least = {n: self._at_least[n] for n in numbers if n in self._at_least}
        decided = {n: sorted(self._decided[n]) for n in numbers if n in self._decided}
        return replace(self._request, shards=numbers, level=self._asked_level, at_least=at_least, decided=decided)

    @property
    def _asked_level(self) -> ReadConsistency:
        """A quorum is asked by this node; the replica that is read need only have come so far."""
        return ReadConsistency.session if self._level is ReadConsistency.quorum else self._level

    # Quorums

    async def _reach(self, numbers: list[int]) -> Errors:
        """Learn what the replica that is read must show of each shard; what failed is returned (13).

        Everybody in sync is asked, and so many as it takes are waited for.
        """
        records = self._records(numbers)
        factor = self._collection.replication_factor
        wanted = {n: reading.enough(values.Configuration.of(r, factor)) for n, r in records.items()}
        heard: dict[int, list[values.Position]] = {n: [] for n in records}
        by_node: dict[NodeId, list[int]] = {}
        for n, record in records.items():
            for node in routing.readers(record, ReadConsistency.session, self._vantage):
                by_node.setdefault(node, []).append(n)
        calls = [asyncio.ensure_future(self._positions(node, asked)) for node, asked in by_node.items()]
        why: Errors = {}
        try:
            for done in asyncio.as_completed(calls):
                durable, failed = await done
                why |= failed
                for n, (epoch, seq) in durable.items():
                    heard[n].append(values.Position(Epoch(epoch), Seq(seq)))
                if all(len(heard[n]) >= enough for n, enough in wanted.items()):
                    break
        finally:
            for call in calls:
                call.cancel()
        for n, positions in heard.items():
            if len(positions) >= wanted[n]:
                self._show(n, reading.reach(positions))
        return {n: _no_quorum(len(heard[n]), wanted[n], why.get(n)) for n in numbers if n not in self._reached}

    def _show(self, number: int, reach: Seq) -> None:
        before = self._at_least.get(number, (0, 0))
        self._at_least[number] = max(before, (0, reach), key=lambda position: position[1])
        self._reached.add(number)

    async def _positions(self, node: NodeId, numbers: list[int]) -> tuple[Positions, Errors]:
        asked = self._request
        request = GetPositions(
            collection=asked.collection, shards=numbers, principal=asked.principal, trace=asked.trace
        )
        part = await _call(self._asking, node, request, numbers, self._time_for(node))
        return {n: position for reply in part.good for n, position in reply.durable.items()}, part.failed

    # Records

    def _record(self, number: int) -> Shard | None:
        return self._asking.state().shards.get(ShardId(self._collection.uuid, number))

    def _records(self, numbers: Iterable[int]) -> dict[int, Shard]:
        return {n: record for n in numbers if (record := self._record(n)) is not None}


def _no_quorum(heard: int, wanted: int, why: VecClusterError | None) -> VecClusterError:
    reason = f": {why.detail}" if why else ""
    return Unavailable(f"{heard} of its replicas say how far they are, a quorum is {wanted}{reason}")


async def _call(asking: Asking, node: NodeId, request: ShardsRequest[R], numbers: list[int], timeout: float) -> Part[R]:
    """The node's reply. A client's own error is raised, any other is kept by shard."""
    started = time.monotonic()
    try:
        reply = await asking.call(node, request, timeout)
    except VecClusterError as error:
        if error.status < 500:
            raise
        asking.is_slow(node, not request.is_slow or not await asking.is_there(node))
        return Part([], dict.fromkeys(numbers, error))
    asking.is_slow(node, False)
    asking.patience.learn(_kind(request), time.monotonic() - started)
    return Part([reply], dict(reply.failed))


def _kind(request: ShardsRequest[Any]) -> str:
    """What takes about as long."""
    return f"{'slow ' if request.is_slow else ''}{type(request).__name__}"
