"""Replication's messages as bytes, and the frames in which many travel together.

A frame is a MessagePack list of [collection, shard number, kind, message]. Messages are encoded where they are sent,
once, and a frame joins what waits, so that payloads are copied as rarely as can be. The names of the fields are part
of the format: a node ignores fields that it does not know, and kinds that it does not know (rolling upgrades).
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import structlog

from veccluster.decisions.replication.messages import Accepted, Contradicted, Header, Message, Rejected, Replicate
from veccluster.model.state import ShardId
from veccluster_node.replica.beats import Differing, NodeBeat, Resting
from veccluster_node.replica.snapshots import Offered

log = structlog.get_logger(__name__)


class SnapshotOffer(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a snapshot can be fetched from the sender, under this id."""

    header: Header
    id: str
    offered: Offered


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an offer: it waits or is being fetched (not `done`), or nobody needs its files any more."""

    id: str
    done: bool
    why: str = ""
    """Why it was not wanted, or could not be fetched; empty when it was."""


NO_SHARD: Final = ShardId("", 0)
"""Whom messages are for that are the node's own."""
Sendable = Message | SnapshotOffer | SnapshotTaken | NodeBeat
Received = Replicate | Accepted | Rejected | Contradicted | SnapshotOffer | SnapshotTaken | Resting | Differing

_KINDS: Final[dict[str, type[Received]]] = {
    "replicate": Replicate,
    "accepted": Accepted,
    "rejected": Rejected,
    "contradicted": Contradicted,
    "snapshot": SnapshotOffer,
    "snapshot-taken": SnapshotTaken,
    "resting": Resting,
    "differing": Differing,
}
_NAMES: Final[dict[type[Sendable], str]] = {of: name for name, of in _KINDS.items()}
_decoders: Final = {name: msgspec.msgpack.Decoder(of) for name, of in _KINDS.items()}
_frames: Final = msgspec.msgpack.Decoder(list[tuple[str, int, str, msgspec.Raw]])
_warned: set[tuple[str, str]] = set()


def encode(shard: ShardId, message: Sendable) -> bytes:
    """One message, to be put into a frame. A snapshot travels as an offer and files, never in a message."""
    return msgspec.msgpack.encode((shard.collection, shard.number, _NAMES[type(message)], message))


def frame(messages: Sequence[bytes]) -> bytes:
    """Encoded messages as one frame."""
    return b"".join((_list_of(len(messages)), *messages))


def decode(data: bytes) -> Iterator[tuple[ShardId, Received]]:
    """What a frame holds, in the order in which it was sent; `msgspec.DecodeError` when it is none."""
    for collection, number, kind, raw in _frames.decode(data):
        if (decoder := _decoders.get(kind)) is None:
            _warn_once("unknown_message", kind, "a newer version sent it; such messages are ignored")
            continue
        try:
            message = decoder.decode(raw)
        except msgspec.DecodeError as error:
            _warn_once("message_not_understood", kind, str(error))
        else:
            yield ShardId(collection, number), message


def _warn_once(event: str, kind: str, detail: str) -> None:
    if (event, kind) not in _warned:
        _warned.add((event, kind))
        log.warning(event, kind=kind, detail=detail)


def _list_of(length: int) -> bytes:
    """The beginning of a MessagePack list."""
    if length < 1 << 4:
        return bytes([0x90 | length])
    return b"\xdc" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xdd" + length.to_bytes(4, "big")
