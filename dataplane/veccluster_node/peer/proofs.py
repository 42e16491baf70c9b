"""Who is at the other end of a connection between nodes: proved with a secret that the cluster keeps in etcd.

Whoever may read the cluster's keys is a node of it. A node that wants something asks the other one for a challenge
(`Introductions`), which is that one's own for as long as its process runs, and shows with every request an HMAC of both
ids and the challenge (`Doorkeeper`). The secret itself never travels, and the one that answers proves first that it
knows it too. Against somebody who reads or changes what is on the wire only encryption helps; this is against everybody
else.

A secret that was replaced (etcd was emptied, or put back to what it held before) goes on being good beside the new one,
in every process that knew it.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Collection, Mapping

import aiohttp
import msgspec
import structlog
from aiohttp import web

from veccluster.errors import Unavailable
from veccluster.model.state import Node, NodeId
from veccluster_node.peer import connections

HELLO = "/peer/v1/hello"
SCHEME = "VecCluster"
LENGTH = 32
"""Bytes of a secret that is made here."""

log = structlog.get_logger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """To a hello: the challenge, and for each secret that is good what proves that it is known here."""

    challenge: str
    proofs: list[str]


class Secret:
    """What the nodes of a cluster prove themselves with, as far as this process knows; for any thread."""

    def __init__(self, *known: bytes) -> None:
        self.known: tuple[bytes, ...] = known
        """The newest first, and the one before."""
        self.doubt: Callable[[], None] = lambda: None
        """Called when somebody could not prove themselves: etcd may have another one by now."""

    def learn(self, secret: bytes) -> None:
        """This is the one now."""
        self.known = (secret, *(s for s in self.known if s != secret))[:2]


def _are_equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _proof(secret: bytes, *words: str) -> str:
    return hmac.digest(secret, msgspec.msgpack.encode(words), "sha256").hex()


class Doorkeeper:
    """Knows who asks: for the peer port of node `me`."""

    def __init__(
        self,
        me: NodeId,
        secret: Secret,
        members: Callable[[], Mapping[NodeId, Node]],
        older: Callable[[], Collection[NodeId]],
    ) -> None:
        """`older` are the nodes that are there and of a version from before there were secrets: while there are any,
        whoever shows nothing is let in, since it may be one of them.
        """
        self.me = me
        self._secret = secret
        self.members = members
        self._older = older
        self._challenge = secrets.token_hex(16)
        self._said: frozenset[NodeId] = frozenset()

    async def hello(self, request: web.Request) -> web.Response:
        """Give the challenge to whoever wants to prove itself."""
        if request.query.get("to") != self.me:
            return web.Response(status=421, text=f"this is {self.me}")
        asked = request.query.get("challenge", "")
        if not re.fullmatch("[0-9a-f]{32}", asked):
            return web.Response(status=400, text="challenge must be 32 hexadecimal digits")
        proofs = [_proof(s, "hello", self.me, asked, self._challenge) for s in self._secret.known]
        return web.Response(body=msgspec.msgpack.encode(Answer(self._challenge, proofs)))

    def admit(self, request: web.Request) -> NodeId:
        """Which node asks; 401 and 403 for whoever proves nothing, or is no member."""
        shown = request.headers.get("Authorization")
        if shown is None:
            return self._admit_older(request.query.get("from"))
        scheme, node, proof = (*shown.split(" "), "", "")[:3]
        known = self._secret.known if shown.isascii() else ()
        right = [_proof(s, "ask", node, self.me, self._challenge) for s in known]
        if scheme != SCHEME or not any(_are_equal(proof, r) for r in right):
            self._secret.doubt()
            raise web.HTTPUnauthorized(text="this proves nothing here: ask for the challenge")
        if node not in self.members():
            raise web.HTTPForbidden(text=f"{node} is not a member of the cluster, as far as is known here")
        return NodeId(node)

    def _admit_older(self, named: str | None) -> NodeId:
        older = frozenset(self._older())
        if older != self._said:
            self._said = older
            log.warning("peers_without_proof", let_in=bool(older), because_of=sorted(older))
        if not older or (named and named not in older):
            raise web.HTTPUnauthorized(text="a node of this cluster proves that it is one")
        return NodeId(named or "")


class Introductions:
    """Proves to other nodes that this one is `me`; for any loop."""

    def __init__(self, me: NodeId, secret: Secret) -> None:
        self._me = me
        self._secret = secret
        self._proofs: dict[NodeId, tuple[str, str]] = {}
        """By node: its address, and what it is shown there."""

    async def to(self, member: Node, session: aiohttp.ClientSession) -> dict[str, str]:
        """The headers of a request to that node, which is asked for its challenge if that is not known.

        `Unavailable` if it is not who it should be.
        """
        if not member.proves_itself:
            return {}
        known = self._proofs.get(member.id)
        if known is None or known[0] != member.peer_address:
            known = self._proofs[member.id] = (member.peer_address, await self._introduced(member, session))
        return {"Authorization": f"{SCHEME} {self._me} {known[1]}"}

    def refused(self, member: Node) -> None:
        """What was shown is not good, or not any more: another process may answer there."""
        if self._proofs.pop(member.id, None):
            self._secret.doubt()

    async def _introduced(self, member: Node, session: aiohttp.ClientSession) -> str:
        mine = secrets.token_hex(16)
        ends = {"to": member.id, "challenge": mine}
        async with session.get(connections.url(member, HELLO), params=ends) as response:
            raw = await response.content.read(1 << 12)
            if response.status != 200:
                raise Unavailable(
                    f"what answers at {member.peer_address} is not node {member.id}: {raw.decode(errors='replace')}"
                )
        try:
            answer = msgspec.msgpack.decode(raw, type=Answer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"what answers at {member.peer_address} is not node {member.id}: {error}") from error
        for secret in self._secret.known:
            right = _proof(secret, "hello", member.id, mine, answer.challenge)
            if any(_are_equal(right, p) for p in answer.proofs):
                return _proof(secret, "ask", self._me, member.id, answer.challenge)
        self._secret.doubt()
        raise Unavailable(f"what answers at {member.peer_address} does not prove that it is node {member.id}")
