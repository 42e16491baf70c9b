"""The peer port: answers what other nodes ask about the shards of this one, and takes what their replicas send.

It runs on the peer thread's loop, which only moves bytes: questions are answered elsewhere (`answer`), and what
replicas send is handed on at once (`receive`).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from veccluster.errors import RequestTimeout, Unavailable, VecClusterError
from veccluster.model.state import NodeId, ShardId
from veccluster_node.peer import links, snapshots, wire
from veccluster_node.peer.client import MEDIA_TYPE, PATH, Handler
from veccluster_node.peer.messages import AnyRequest, is_read
from veccluster_node.peer.proofs import HELLO, Doorkeeper
from veccluster_node.runtime.budget import Budget, Ticket
from veccluster_node.runtime.door import Door, answer_of, connections_for
from veccluster_node.runtime.shielded import to_its_end

MAX_BODY = 512 * 1024 * 1024
"""A coordinator's own limits are far below; this only bounds what a stranger could send."""
MAX_CONNECTIONS = 4096
"""Of all other nodes; each asks on as many as it has questions."""
SHARE_OF_FILES = 4
"""They may take this part of the files that the process may open."""
READ_TIME = 60.0
"""Seconds in which a question has arrived."""
MAX_LINKS = 256
"""Links at once; the nodes of a cluster are fewer."""
HELD = 512 << 20
"""Bytes of questions that are there at once, where the node's memory does not say less; the oldest is always taken."""
TWICE = 2
"""A question is there as it came and as what it says."""
SILENCE = 60.0
"""Seconds after which a link is given up on which nothing came, not even a ping: the peer has gone without a word."""

log = structlog.get_logger()
_decoder = msgspec.msgpack.Decoder(AnyRequest)


class PeerPort:
    """The aiohttp application of the peer port, and its end."""

    def __init__(
        self,
        me: NodeId,
        *,
        doorkeeper: Doorkeeper,
        answer: Handler,
        receive: Callable[[NodeId, ShardId, wire.Received], None],
        file: Callable[[str, str], Path | None],
        door: Door | None = None,
        held: int = HELD,
    ) -> None:
        """`receive` is told which node has sent what; `file` says where a file of a snapshot is, by the snapshot's id
        and the file's path in it. `held` is how many bytes of questions may be there at once.
        """
        self._me = me
        self._doorkeeper = doorkeeper
        self._answer = answer
        self._receive = receive
        self._file = file
        self._links: set[web.WebSocketResponse] = set()
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False
        self._budget = Budget(held)
        if door is None:
            door = Door(connections_for(MAX_CONNECTIONS, SHARE_OF_FILES), farewell=_farewell)
        self.door = door
        self.application = web.Application(client_max_size=MAX_BODY, middlewares=[self.door.watch()])
        self.application.router.add_get(HELLO, doorkeeper.hello)
        self.application.router.add_post(PATH, self._ask)
        self.application.router.add_get(links.PATH, self._replicate)
        self.application.router.add_get(snapshots.PATH + "/{id}/{file:.+}", self._give)

    async def drain(self, timeout: float) -> None:
        """Take no more questions, and return when those under way are answered, or after so many seconds."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._quiet.wait()

    async def hang_up(self) -> None:
        """Close the links from other nodes."""
        await asyncio.gather(*(stream.close(code=WSCloseCode.GOING_AWAY) for stream in list(self._links)))

    # -- questions

    async def _ask(self, request: web.Request) -> web.Response:
        """Answer; when the connection is closed (`handler_cancellation`) a read is stopped, and all else goes on."""
        self._doorkeeper.admit(request)
        with self._counted(), self._budget.ticket() as ticket:
            try:
                message = _decoder.decode(await _read(request, ticket))
            except (Unavailable, RequestTimeout) as error:
                return _packed(error.problem(), status=error.status)
            except msgspec.DecodeError as error:
                return _packed({"title": "Not a message between nodes", "detail": str(error)}, status=400)
            answering = self._answer_to(message)
            return await (answering if is_read(message) else to_its_end(answering))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    async def _answer_to(self, message: AnyRequest) -> web.Response:
        with self._counted():
            if self._draining:
                stopping = Unavailable("the node is stopping")
                return _packed(stopping.problem(), status=stopping.status)
            try:
                return _packed(await self._answer(message))
            except VecClusterError as error:
                return _packed(error.problem(), status=error.status)
            except Exception:  # the other node must get an answer it can read, whatever broke here
                log.exception("peer_request_failed", message=type(message).__name__)
                problem = VecClusterError(f"the node failed while it handled {type(message).__name__}; see its log")
                return _packed(problem.problem(), status=problem.status)

    # -- replication

    async def _replicate(self, request: web.Request) -> web.StreamResponse:
        """Take what a node's replicas send, for as long as it does."""
        node = self._doorkeeper.admit(request)
        meant = request.query.get("to")
        if meant != self._me:  # an address that another node had before
            return web.Response(status=421, text=f"this is {self._me}, not {meant}")
        if len(self._links) >= MAX_LINKS:
            return web.Response(status=503, text=f"there are {MAX_LINKS} links")
        stream = web.WebSocketResponse(compress=False, max_msg_size=MAX_BODY, receive_timeout=SILENCE, timeout=1.0)
        await stream.prepare(request)
        self._links.add(stream)
        try:
            await self._take_from(node, stream)
        except TimeoutError:
            pass
        except msgspec.DecodeError as error:
            log.warning("link_not_understood", node=node, detail=str(error))
            await stream.close(code=WSCloseCode.UNSUPPORTED_DATA)
        finally:
            self._links.discard(stream)
        return stream

    async def _take_from(self, node: NodeId, stream: web.WebSocketResponse) -> None:
        async for frame in stream:
            if frame.type is not WSMsgType.BINARY:
                if frame.type is WSMsgType.ERROR:
                    log.error("frame_not_taken", node=node, reason=str(frame.data), largest=MAX_BODY)
                return
            for shard, message in wire.decode(frame.data):
                try:
                    self._receive(node, shard, message)
                except Exception:  # the rest is for other shards
                    log.exception("message_not_taken", shard=str(shard), message=type(message).__name__)

    async def _give(self, request: web.Request) -> web.StreamResponse:
        """A file of a snapshot, or a range of it."""
        self._doorkeeper.admit(request)
        path = self._file(request.match_info["id"], request.match_info["file"])
        return web.FileResponse(path) if path else web.Response(status=404)


async def _read(request: web.Request, ticket: Ticket) -> bytes:
    """A question as it arrives, within what all of them may hold."""
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIME):
            async for chunk in request.content.iter_any():
                await ticket.hold_more(TWICE * len(chunk))
                body += chunk
                if len(body) > MAX_BODY:
                    raise web.HTTPRequestEntityTooLarge(max_size=MAX_BODY, actual_size=len(body))
    except TimeoutError:
        raise RequestTimeout(f"the question did not arrive within {READ_TIME:g} s") from None
    return bytes(body)


def _farewell(error: VecClusterError) -> bytes:
    return answer_of(error, MEDIA_TYPE, msgspec.msgpack.encode(error.problem()))


def _packed(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(value), status=status, content_type=MEDIA_TYPE)
