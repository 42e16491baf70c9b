"""Heartbeats for shards at rest: one message a pair of nodes, whatever the number of shards.

A primary rests when every other member has everything and nothing is on its way (`ReplicaLoop`). It beats no more;
its node's heartbeats name the shard instead, by a token for each member, which says: this shard, this primary's epoch,
this member, this last operation. A follower that has applied just that has the same token. A node answers a heartbeat
with the tokens that none of its replicas has, and their primaries wake and beat for themselves; a node that is silent,
or has ended, wakes all that rest with it. So whoever would have heard a shard's beats hears the node's, and whatever a
beat of the shard's own would have shown, a token that is missing shows.

A node of an older version gives no answer, and no shard rests with it. Nothing here is needed to be safe: what it tells
is who is there (rules 3 and 13 say what for), and a replica that is woken for nothing goes back to rest.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import xxhash

from veccluster.decisions.replication.values import Member
from veccluster.model.state import Epoch, NodeId, Seq, ShardId

Token = int


@dataclass(frozen=True, slots=True)
class Resting:
    """A node's heartbeat: the tokens of the members of other nodes' that its resting primaries take for complete."""

    number: int
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Differing:
    """The answer to the heartbeat with this number: the tokens that no replica here has."""

    number: int
    tokens: tuple[Token, ...] = ()


NodeBeat = Resting | Differing


def token(shard: ShardId, epoch: Epoch, primary: Member, member: Member, last: Seq) -> Token:
    """What a primary and its follower both say of a follower that has everything."""
    said = (shard.collection, shard.number, epoch, *primary, *member, last)
    return xxhash.xxh3_64_intdigest("\n".join(map(str, said)).encode())


@dataclass(slots=True)
class _Peer:
    """Another node."""

    number: int = 0
    """Of the last heartbeat that it was sent."""
    heard: float | None = None
    """When it last answered."""
    answered: int = 0
    """The newest heartbeat that it has answered."""
    resting: dict[Token, tuple[ShardId, int]] = field(default_factory=dict)
    """What rests with it, and the first heartbeat that says so."""
    said: tuple[float, frozenset[Token]] = (0.0, frozenset())
    """Its own last heartbeat, and when it came."""


class NodeBeats:
    """Thread-safe. `send` must return at once, `wake` too: it has a loop tick."""

    def __init__(
        self,
        send: Callable[[NodeId, NodeBeat], None],
        wake: Callable[[ShardId], None],
        now: Callable[[], float],
        silence: float,
    ) -> None:
        """A node is silent that has not answered for `silence` seconds."""
        self._send, self._wake, self._now = send, wake, now
        self._silence = silence
        self._lock = threading.Lock()
        self._peers: dict[NodeId, _Peer] = {}
        self._resting: dict[ShardId, tuple[tuple[NodeId, Token], ...]] = {}
        self._followed: dict[Token, NodeId] = {}
        """What replicas here have, and the node of the primary that they have it from."""
        self._following: dict[ShardId, Token] = {}
        self._ticked = now()

    # -- for loops

    def rest(self, shard: ShardId, tokens: Mapping[Member, Token]) -> bool:
        """Stand in for the primary's beats; False when some node would not understand, or is not heard."""
        with self._lock:
            now = self._now()
            peers = {member.node: self._peers.get(member.node) for member in tokens}
            if any(p is None or p.heard is None or now - p.heard > self._silence for p in peers.values()):
                return False
            for member, one in tokens.items():
                peer = self._peers[member.node]
                peer.resting[one] = (shard, peer.number + 1)
            self._resting[shard] = tuple((member.node, one) for member, one in tokens.items())
            return True

    def resume(self, shard: ShardId) -> dict[NodeId, float]:
        """The primary beats for itself again: when each node last stood for its member, if it has."""
        with self._lock:
            heard: dict[NodeId, float] = {}
            for node, one in self._resting.pop(shard, ()):
                peer = self._peers[node]
                _, since = peer.resting.pop(one, (shard, 0))
                if peer.heard is not None and since <= peer.answered:
                    heard[node] = peer.heard
            return heard

    def follow(self, shard: ShardId, primary: Member | None, one: Token | None) -> None:
        """Note what a follower has, or that it is no longer complete."""
        with self._lock:
            if (before := self._following.pop(shard, None)) is not None:
                self._followed.pop(before, None)
            if one is not None and primary is not None:
                self._following[shard], self._followed[one] = one, primary.node

    def primary_heard(self, shard: ShardId) -> float:
        """When the node of the primary last said that the follower here has everything; 0 if its last word was not."""
        with self._lock:
            one = self._following.get(shard)
            node = self._followed.get(one) if one is not None else None
            at, tokens = self._peers[node].said if node in self._peers else (0.0, frozenset())
            return at if one in tokens else 0.0

    # -- for the node

    def tick(self, nodes: Iterable[NodeId], has_ended: Callable[[NodeId], bool]) -> None:
        """Send heartbeats to these nodes, and to those with which something rests; wake what rests with silent ones."""
        with self._lock:
            for node in sorted(nodes):
                self._peers.setdefault(node, _Peer())
            beats = [self._beat(node, peer) for node, peer in self._peers.items() if peer.resting or node in nodes]
            waking = self._of_silent(has_ended)
        for node, beat in beats:
            self._send(node, beat)
        for shard in sorted(waking):
            self._wake(shard)

    def _beat(self, node: NodeId, peer: _Peer) -> tuple[NodeId, NodeBeat]:
        peer.number += 1
        return node, Resting(peer.number, tuple(peer.resting))

    def _of_silent(self, has_ended: Callable[[NodeId], bool]) -> set[ShardId]:
        now, before = self._now(), self._ticked
        self._ticked = now
        if now - before > self._silence / 2:  # it was this process that stood still
            for peer in self._peers.values():
                peer.heard = now if peer.heard is not None else None
        silent = [p for n, p in self._peers.items() if p.resting and (self._is_silent(p, now) or has_ended(n))]
        return {shard for peer in silent for shard, _ in peer.resting.values()}

    def _is_silent(self, peer: _Peer, now: float) -> bool:
        return peer.heard is None or now - peer.heard > self._silence

    def received(self, node: NodeId, beat: NodeBeat) -> None:
        """Another node has proved to be the one that says this."""
        if isinstance(beat, Resting):
            self._send(node, self._answer(node, beat))
            return
        for shard in sorted(self._answered(node, beat)):
            self._wake(shard)

    def _answer(self, node: NodeId, beat: Resting) -> Differing:
        with self._lock:
            self._peers.setdefault(node, _Peer()).said = (self._now(), frozenset(beat.tokens))
            return Differing(beat.number, tuple(one for one in beat.tokens if self._followed.get(one) != node))

    def _answered(self, node: NodeId, beat: Differing) -> set[ShardId]:
        """What has to wake."""
        with self._lock:
            if (peer := self._peers.get(node)) is None or beat.number > peer.number:
                return set()  # an answer to an earlier run of this process
            peer.heard, peer.answered = self._now(), max(peer.answered, beat.number)
            return {peer.resting[one][0] for one in beat.tokens if one in peer.resting}
