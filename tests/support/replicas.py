"""A cluster as a coordinator sees it: its state, and replicas behind real sockets that do what a test says.

The replicas are not ours, since ours cannot be made to stand still, to lag or to refuse at a given moment; they all
show the same rows, each as far as `applied` says.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Self

import msgspec
from aiohttp import web

from veccluster.decisions import hashing
from veccluster.errors import NotPrimary, ReplicaBehind, VecClusterError
from veccluster.model.cluster import ClusterState
from veccluster.model.state import (
    Collection,
    Epoch,
    Incarnation,
    Load,
    Member,
    Metric,
    Node,
    NodeId,
    ReadConsistency,
    Revision,
    Shard,
    ShardId,
)
from veccluster_node.coordinator.coordinator import Coordinator
from veccluster_node.engine.search import Hit, Stored
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import MEDIA_TYPE, PATH, Peers
from veccluster_node.peer.proofs import Secret
from veccluster_node.peer.remote import RemoteShards

_decoder = msgspec.msgpack.Decoder(m.AnyRequest)
UUID = "u"


def member(number: int) -> Member:
    return Member(NodeId(f"n{number}"), Incarnation(f"disk-{number}"))


class Replicas:
    """The replicas of one node, and the port at which it is asked."""

    def __init__(self, number: int, cluster: "FakeCluster") -> None:
        self.id = NodeId(f"n{number}")
        self.cluster = cluster
        self.serves: set[int] = set()
        """Of which shards it is primary."""
        self.applied: dict[int, int] = {}
        """How far it is, by shard; as far as everybody if nothing is said."""
        self.showing: m.Showings = {}
        """What it says of batches over several shards, until it is asked for a state in which they are decided."""
        self.never_decides = False
        self.refuses: dict[int, VecClusterError] = {}
        """With what it answers, by shard."""
        self.answers_lost = 0
        """How many of the next writes it carries out and does not answer."""
        self.requests: list[m.AnyRequest] = []
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._stands_still_in: type[m.Request] | None = None
        self.stopped = 0
        """How many requests it was told to end before it had answered."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post(PATH, self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def die(self) -> None:
        """Nobody listens any more, and what was under way is lost."""
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    def stand_still(self) -> None:
        self._goes_on.clear()

    def stand_still_in(self, kind: type[m.Request]) -> None:
        """Answer everything else."""
        self._stands_still_in = kind
        self._goes_on.clear()

    def go_on(self) -> None:
        self._stands_still_in = None
        self._goes_on.set()

    def asked(self, kind: type[m.Request]) -> list[m.Request]:
        return [r for r in self.requests if isinstance(r, kind)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            reply, status = msgspec.msgpack.encode(await self.handle(_decoder.decode(await request.read()))), 200
        except VecClusterError as error:
            reply, status = msgspec.msgpack.encode(error.problem()), error.status
        except ConnectionResetError:
            request.transport.abort()
            return web.Response()
        return web.Response(body=reply, status=status, content_type=MEDIA_TYPE)

    async def handle(self, request: m.AnyRequest) -> m.Reply:
        self.requests.append(request)
        self.cluster.something_happened()
        if self._stands_still_in is None or isinstance(request, self._stands_still_in):
            await self._wait()
        match request:
            case m.Ping():
                return m.Pong("b")
            case m.Upsert() | m.DeleteIds():
                return self._write(request)
            case m.GetPositions():
                bad = self._failing(request.shards, ReadConsistency.eventual, {})
                return m.Positions({n: (1, self._at(n)) for n in request.shards if n not in bad}, _problems(bad))
            case m.Get():
                bad = self._failing(request.ids, request.level, request.at_least)
                good = [n for n in request.ids if n not in bad]
                rows = [i for n in good for i in request.ids[n] if i in self.cluster.rows[n]]
                return m.Got([Stored(i, bytes(4), b"{}") for i in rows], self._position(good), _problems(bad))
        assert isinstance(request, m.Search | m.ListIds | m.Count)
        for n in request.decided if not self.never_decides else ():
            self.showing.pop(n, None)
        bad = self._failing(request.shards, request.level, request.at_least)
        good = [n for n in request.shards if n not in bad]
        ids = sorted(i for n in good for i in self.cluster.rows[n])
        match request:
            case m.Search():
                hits = [[Hit(0.0, i) for i in ids[: request.k]] for _ in range(request.queries)]
                return m.Found(hits, self._position(good), _problems(bad))
            case m.ListIds():
                return m.Listed(ids[: request.limit], _problems(bad), self._position(good))
            case m.Count():
                showing = {n: self.showing[n] for n in good if n in self.showing}
                return m.Counted(len(ids), _problems(bad), self._position(good), showing)

    async def _wait(self) -> None:
        try:
            await self._goes_on.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            self.cluster.something_happened()
            raise

    def _write(self, request: m.Upsert | m.DeleteIds) -> m.Written:
        n = request.shard.number
        if error := self.refuses.get(n):
            raise error
        if n not in self.serves:
            raise NotPrimary(f"{self.id} does not order the writes of shard {n}")
        written = self.cluster.carry_out(request)
        if self.answers_lost:
            self.answers_lost -= 1
            raise ConnectionResetError
        return written

    def _failing(
        self, numbers: Iterable[int], level: ReadConsistency, at_least: dict[int, m.Position]
    ) -> dict[int, VecClusterError]:
        found = {n: self.refuses[n] for n in numbers if n in self.refuses}
        for n in numbers:
            if level is ReadConsistency.strong and n not in self.serves:
                found[n] = NotPrimary(f"{self.id} is not the primary of shard {n}")
            elif at_least.get(n, (0, 0))[1] > self._at(n):
                found[n] = ReplicaBehind(f"{self.id} is behind in shard {n}")
        return found

    def _at(self, number: int) -> int:
        return self.applied.get(number, self.cluster.seqs[number])

    def _position(self, numbers: Iterable[int]) -> dict[int, m.Position]:
        return {n: (1, self._at(n)) for n in numbers}


def _problems(failed: dict[int, VecClusterError]) -> m.Failures:
    return {n: error.problem() for n, error in failed.items()}


class FakeCluster:
    """`nodes` nodes; shard i of the collection is in sync on `factor` of them, beginning with node i, its primary."""

    def __init__(self, nodes: int = 3, *, shards: int = 3, factor: int = 3) -> None:
        self.nodes = [Replicas(n, self) for n in range(nodes)]
        self.collection = Collection(
            name="c", uuid=UUID, dimension=1, metric=Metric.l2, shards=shards, replication_factor=factor
        )
        self.rows: dict[int, set[str]] = {n: set() for n in range(shards)}
        self.seqs = dict.fromkeys(range(shards), 0)
        self.done: dict[tuple[int, str], m.Written] = {}
        """What was carried out, by shard and operation id; a repetition is answered alike."""
        self.state = ClusterState()
        self.waits = 0
        """How often a coordinator waited for the state to change."""
        self._changed = asyncio.Event()
        self._happened = asyncio.Event()
        self._peers: list[Peers] = []

    async def __aenter__(self) -> Self:
        for node in self.nodes:
            await node.start()
        known = {
            n.id: Node(id=n.id, address="unused", peer_address=f"127.0.0.1:{n.port}", incarnation=f"disk-{i}")
            for i, n in enumerate(self.nodes)
        }
        alive = {i: Load(id=i, boot="b") for i in known}
        self.become(ClusterState(collections={"c": self.collection}, nodes=known, alive=alive))
        for number in range(self.collection.shards):
            homes = [(number + i) % len(self.nodes) for i in range(self.collection.replication_factor)]
            self.record(number, homes)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            node.go_on()
        for peers in self._peers:
            await peers.close()
        for node in self.nodes:
            await node.die()

    def coordinator(self, at: int, *, read_timeout: float = 5.0, write_timeout: float = 5.0) -> Coordinator:
        """One on node `at`, whose own replicas it asks without a socket."""
        node = self.nodes[at]
        peers = Peers(node.id, node.handle, lambda: self.state.nodes, Secret())
        self._peers.append(peers)
        return Coordinator(
            node.id,
            lambda: self.state,
            self.wait,
            peers,
            lambda of, timeout: RemoteShards(peers, of, timeout),
            read_timeout=read_timeout,
            write_timeout=write_timeout,
        )

    # The state

    def become(self, state: ClusterState) -> None:
        self.state = msgspec.structs.replace(state, revision=Revision(self.state.revision + 1))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, holds: Callable[[ClusterState], bool], timeout: float) -> bool:
        self.waits += 1
        self.something_happened()
        try:
            async with asyncio.timeout(timeout):
                while not holds(self.state):
                    await self._changed.wait()
        except TimeoutError:
            return holds(self.state)
        return True

    def something_happened(self) -> None:
        happened, self._happened = self._happened, asyncio.Event()
        happened.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Until it holds; looked at when a replica is asked or a coordinator waits."""
        async with asyncio.timeout(10):
            while not holds():
                await self._happened.wait()

    def record(self, number: int, in_sync: list[int], learners: Iterable[int] = ()) -> None:
        """Write down who has the shard; the first in sync is primary, and serves."""
        shard = ShardId(UUID, number)
        before = self.state.shards.get(shard)
        made = Shard(
            id=shard,
            epoch=Epoch(before.epoch + 1 if before else 1),
            primary=member(in_sync[0]),
            in_sync=tuple(member(n) for n in in_sync),
            learners=tuple(member(n) for n in learners),
            revision=Revision(self.state.revision + 1),
        )
        for i, node in enumerate(self.nodes):
            (node.serves.add if i == in_sync[0] else node.serves.discard)(number)
        self.become(msgspec.structs.replace(self.state, shards={**self.state.shards, shard: made}))

    def lease_ends(self, number: int) -> None:
        alive = {i: load for i, load in self.state.alive.items() if i != f"n{number}"}
        self.become(msgspec.structs.replace(self.state, alive=alive))

    # The rows

    def carry_out(self, request: m.Upsert | m.DeleteIds) -> m.Written:
        n = request.shard.number
        if (n, request.op_id) not in self.done:
            self.seqs[n] += len(request.ids)
            change = self.rows[n].update if isinstance(request, m.Upsert) else self.rows[n].difference_update
            change(request.ids)
            self.done[n, request.op_id] = m.Written((1, self.seqs[n]), len(request.ids))
        return self.done[n, request.op_id]

    def ids(self, each: int) -> list[str]:
        """So many ids of every shard, in order; shard by shard."""
        wanted = dict.fromkeys(self.rows, each)
        found: list[str] = []
        number = 0
        starts = hashing.starts(self.collection.shards)
        while any(wanted.values()):
            (n,) = hashing.shards_of([f"id-{number:05}"], starts)
            if wanted[int(n)]:
                wanted[int(n)] -= 1
                found.append(f"id-{number:05}")
            number += 1
        return found

    def fill(self, each: int) -> list[str]:
        """Rows in every shard, which all replicas have; their ids."""
        ids = self.ids(each)
        for i, n in zip(ids, hashing.shards_of(ids, hashing.starts(self.collection.shards)), strict=True):
            self.rows[int(n)].add(i)
        self.seqs = dict.fromkeys(self.rows, each)
        return ids
