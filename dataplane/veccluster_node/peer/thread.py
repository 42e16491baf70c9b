"""The thread that talks to the other nodes: its own event loop with the peer port, the links and the heartbeats.

Replication must go on while the loop that serves clients is busy, and a beat that is late costs a failover; so nothing
here computes, and nothing here waits for that loop but the questions that it has to answer itself.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import structlog
from aiohttp import web

from veccluster.decisions.replication.events import Received
from veccluster.decisions.replication.messages import Header, Snapshot
from veccluster.model.state import Member, Node, NodeId, ShardId
from veccluster_node.peer import wire
from veccluster_node.peer.client import Handler
from veccluster_node.peer.links import Links
from veccluster_node.peer.messages import AnyRequest, Reply
from veccluster_node.peer.proofs import Doorkeeper, Introductions, Secret
from veccluster_node.peer.server import HELD, PeerPort
from veccluster_node.peer.snapshots import RATE, Transfers
from veccluster_node.replica.beats import Differing, NodeBeat, Resting
from veccluster_node.runtime.door import DoorSite

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that requests under way are given when the node stops."""

log = structlog.get_logger(__name__)


class PeerThread:
    """Everything between this node and the others, from `start` to `stop`."""

    def __init__(
        self,
        listener: socket.socket,
        me: NodeId,
        *,
        members: Callable[[], Mapping[NodeId, Node]],
        secret: Secret,
        older: Callable[[], Collection[NodeId]] = tuple,
        answer: Handler,
        deliver: Callable[[ShardId, Received], None],
        allows: Callable[[ShardId, Header], bool],
        tick: Callable[[], None],
        hear: Callable[[NodeId, NodeBeat], None] = lambda node, beat: None,
        directory: Callable[[ShardId, Member], Path | None],
        outgoing: Path,
        heartbeat: float,
        snapshot_rate: float = RATE,
        held: int = HELD,
    ) -> None:
        """`answer` runs on the loop that calls `start`, all others on the thread: they must return at once.

        `older` is as for `Doorkeeper`. `deliver` is given what replicas send to this node's, `tick` is called every
        `heartbeat` seconds, `hear` is given the heartbeats of other nodes, `directory` says where the open replica
        keeps its files that is this member and no other; `allows` whether the sender of a header may be a replica's
        primary. `outgoing` is a directory for snapshots, on the file system of the replicas; what is in it goes. `held`
        is how many bytes of questions may be there at once.
        """
        introductions = Introductions(me, secret)
        self.links = Links(me, members, introductions)
        self.transfers = Transfers(
            self.links,
            members,
            introductions,
            directory=directory,
            deliver=self._hand_over,
            outgoing=outgoing,
            rate=snapshot_rate,
        )
        self._doorkeeper = Doorkeeper(me, secret, members, older)
        self._allows = allows
        self._listener = listener
        self._answer = answer
        self._deliver = deliver
        self._tick = tick
        self._hear = hear
        self._heartbeat = heartbeat
        self._held = held
        self._main: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._started: Future[None] = Future()

    async def start(self) -> None:
        """Return when the port answers."""
        self._main = asyncio.get_running_loop()
        self._thread.start()
        await asyncio.wrap_future(self._started)

    async def stop(self) -> None:
        """Answer what is under way, with the links still there since writes may wait for them; then end."""
        if self._loop and self._stopping:
            with suppress(RuntimeError):  # it has ended before
                self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join)

    # -- in the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            if self._started.done():
                log.exception("peer_thread_failed")
                raise
            self._started.set_exception(error)

    async def _live(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        port = PeerPort(
            self._doorkeeper.me,
            doorkeeper=self._doorkeeper,
            answer=self._ask_main,
            receive=self._receive,
            file=self.transfers.file,
            held=self._held,
        )
        runner = web.AppRunner(
            port.application, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        await runner.setup()
        await self.links.open()
        await self.transfers.open()
        await DoorSite(runner, self._listener, port.door).start()
        beats = asyncio.create_task(self._beat())
        self._started.set_result(None)
        await self._stopping.wait()
        await port.drain(SHUTDOWN_TIMEOUT)
        beats.cancel()
        await port.hang_up()
        await self.transfers.close()
        await self.links.close()
        await runner.cleanup()

    async def _ask_main(self, request: AnyRequest) -> Reply:
        """Have the question answered by the loop that serves clients: when it stalls, nobody may be told otherwise."""
        assert self._main is not None

        async def answer() -> Reply:
            return await self._answer(request)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer(), self._main))

    def _receive(self, node: NodeId, shard: ShardId, message: wire.Received) -> None:
        match message:
            case wire.SnapshotOffer(header=header):
                if header.sender.node == node and self._allows(shard, header):
                    self.transfers.offered(shard, message)
            case wire.SnapshotTaken():
                self.transfers.taken(node, message)
            case Resting() | Differing():
                self._hear(node, message)
            case _:
                self._deliver(shard, Received(message, node))

    def _hand_over(self, shard: ShardId, snapshot: Snapshot) -> None:
        """It came from whom its offer came from."""
        self._deliver(shard, Received(snapshot, snapshot.header.sender.node))

    async def _beat(self) -> None:
        assert self._loop is not None
        due = self._loop.time()
        while True:
            try:
                self._tick()
            except Exception:  # the next beat may go better
                log.exception("beat_failed")
            # Beats that were missed are not made up for.
            due = max(due + self._heartbeat, self._loop.time())
            await asyncio.sleep(due - self._loop.time())
