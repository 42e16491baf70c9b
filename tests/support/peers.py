"""Peer threads of several nodes in one process, on real ports, and wires that a test can cut."""

import asyncio
import queue
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from support.replication import member
from veccluster.decisions.replication.events import Received
from veccluster.decisions.replication.messages import Header, Replicate
from veccluster.decisions.replication.values import Lineage, Record, Run
from veccluster.model.state import Epoch, Node, NodeId, Seq, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.peer.proofs import Secret
from veccluster_node.peer.thread import PeerThread

SHARD = ShardId("words", 0)
SECRET = b"known to whoever reads this, and to nobody else"


def header(sender: int = 0, to: int = 1, *, epoch: int = 2, commit: int = 0) -> Header:
    lineage = Lineage((Run(Epoch(1), Seq(1)), Run(Epoch(epoch), Seq(5))))
    return Header(Epoch(epoch), member(sender), member(to), lineage, Seq(commit), 0)


def replicate(number: int, size: int = 0, *, sender: int = 0, to: int = 1) -> Replicate:
    """The message of this number, with a record of so many bytes."""
    records = (Record(Epoch(2), Seq(number + 1), 1, f"op-{number}", bytes(size)),) if size else ()
    return Replicate(header(sender, to, commit=number), records)


class End:
    """The peer thread of node `n<number>`, and everything that it was given."""

    def __init__(self, number: int, members: dict[NodeId, Node], path: Path, **options: Any) -> None:
        self.id = NodeId(f"n{number}")
        self.members = members
        self.received: queue.Queue[tuple[ShardId, Any]] = queue.Queue()
        self._came = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.replicas: dict[ShardId, Path] = {}
        self.ticks = threading.Semaphore(0)
        self.answer: Callable[[m.AnyRequest], Any] = self._pong
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.path = path / self.id
        self.path.mkdir(exist_ok=True)
        self.secret = Secret(SECRET)
        self.older: list[NodeId] = []
        settings: dict[str, Any] = {"heartbeat": 60.0, **options}
        self.thread = PeerThread(
            self.listener,
            self.id,
            members=self._known,
            secret=self.secret,
            older=lambda: self.older,
            answer=lambda request: self.answer(request),
            deliver=self._deliver,
            tick=self.ticks.release,
            allows=lambda shard, header: True,
            directory=lambda shard, to: self.replicas.get(shard) if to.node == self.id else None,
            outgoing=self.path / "outgoing",
            **settings,
        )
        self.announce(self.port)

    def announce(self, port: int) -> None:
        """Have the others find this node at that port of this machine."""
        address = f"127.0.0.1:{port}"
        self.members[self.id] = Node(id=self.id, address="", peer_address=address, proves_itself=True)

    def _known(self) -> Mapping[NodeId, Node]:
        return self.members

    async def _pong(self, _: m.AnyRequest) -> m.Reply:
        return m.Pong(boot=self.id)

    def send(self, to: "End", message: Any, shard: ShardId = SHARD) -> None:
        self.thread.links.send(to.id, shard, message)

    async def next(self, timeout: float = 20.0) -> tuple[ShardId, Any]:
        """The next message that came."""
        async with asyncio.timeout(timeout):
            while self.received.empty():
                self._came.clear()
                await self._came.wait()
        return self.received.get_nowait()

    async def until(self, number: int) -> list[int]:
        """Numbers of `replicate` messages that came, up to this one."""
        numbers = []
        while not numbers or numbers[-1] != number:
            _, message = await self.next()
            if isinstance(message, Replicate):
                numbers.append(message.header.commit)
        return numbers

    def _deliver(self, shard: ShardId, received: Received) -> None:
        self.received.put((shard, received.message))
        assert self._loop
        self._loop.call_soon_threadsafe(self._came.set)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self.thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.thread.stop()


async def send_until(sender: End, to: End, number: int) -> list[int]:
    """Send the message of this number again and again, as replication does, until it comes; what came until then."""
    waiting = asyncio.create_task(to.until(number))
    while not waiting.done():
        sender.send(to, replicate(number))
        await asyncio.wait([waiting], timeout=0.05)
    return waiting.result()


class Wire:
    """A relay to a port: what goes through it can be cut, or stand still."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.connections = 0
        self.flows = asyncio.Event()
        self.flows.set()
        self.delay = 0.0
        """Seconds that each 64 KiB take."""
        self.carried = 0
        self.cut_after: int | None = None
        """Bytes after which the connections are cut, once."""
        self._streams: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End every connection at once."""
        for stream in self._streams:
            stream.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._streams |= {writer, back}
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        self._streams.discard(writer)
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self.flows.wait()
                await asyncio.sleep(self.delay * len(data) / (1 << 16))
                writer.write(data)
                await writer.drain()
                self.carried += len(data)
                if self.cut_after is not None and self.carried >= self.cut_after:
                    self.cut_after = None
                    self.cut()
        writer.close()


@asynccontextmanager
async def wire(to: End) -> AsyncIterator[Wire]:
    """A relay through which the others reach `to` from now on."""
    made = Wire(to.port)
    server = await asyncio.start_server(made._accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    to.announce(made.port)
    try:
        yield made
    finally:
        server.close()
        made.flows.set()
        made.cut()
