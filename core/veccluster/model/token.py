"""Session tokens: what a client has seen of each shard, opaque to it.

A write or a read answers with a token; the next read sends it back, and a replica that has not come so far does not
answer. Tokens merge to the furthest position of each shard, so a client may send several. Furthest by seq: what a token
names was acknowledged or shown, and keeps its seq in every later epoch, while an earlier epoch may reach further.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping

import msgspec

from veccluster.errors import InvalidRequest
from veccluster.model.state import ShardId

Position = tuple[int, int]
"""(epoch, seq)."""
Positions = Mapping[ShardId, Position]

HEADER = "Session-Token"
_Wire = dict[str, dict[int, Position]]


def encode(positions: Positions) -> str:
    """The token for these positions."""
    wire: _Wire = {}
    for shard, position in sorted(positions.items()):
        wire.setdefault(shard.collection, {})[shard.number] = position
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(wire)).decode().rstrip("=")


def decode(text: str) -> dict[ShardId, Position]:
    """The positions in one token, or in several with commas between them; `InvalidRequest` if it is none of ours."""
    return merge(_decode_one(part.strip()) for part in text.split(",") if part.strip())


def merge(several: Iterable[Positions]) -> dict[ShardId, Position]:
    """The furthest position of each shard."""
    merged: dict[ShardId, Position] = {}
    for positions in several:
        for shard, position in positions.items():
            merged[shard] = max(position, merged.get(shard, position), key=_reach)
    return merged


def _reach(position: Position) -> Position:
    epoch, seq = position
    return (seq, epoch)


def _decode_one(token: str) -> dict[ShardId, Position]:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        wire = msgspec.msgpack.decode(raw, type=_Wire)
    except (binascii.Error, msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest.field(HEADER, "must be a token from an earlier reply, as it was given") from error
    return {ShardId(uuid, n): position for uuid, shards in wire.items() for n, position in shards.items()}
