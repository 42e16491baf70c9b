"""The name under which a shard knows a write: the client's operation id, and a digest of what is to be done.

Without the latter a write with another's id, say of a batch that was mended after an error, would be answered as the
first one was, and lost. What is digested is written down here byte by byte, apart from the messages between nodes:
nodes of different versions must name a repetition alike, or it would be carried out twice. Vectors are not copied.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
import xxhash

from veccluster.decisions.filters import Where
from veccluster.model.state import ShardId
from veccluster_node.engine.distance import F32
from veccluster_node.service.shard_service import Change, Removal, UpsertBatch

_encode: Final = msgspec.msgpack.Encoder().encode
_MAP, _LIST = 0x80, 0x90
"""MessagePack: the first byte of a short one, to which its length is added."""
_LEVEL: Final = _encode("level") + _encode("one")
"""A write that is sent again at another level is the same write."""


def write_name(operation: str, shard: ShardId, change: Change) -> str:
    """What a change of one shard is called."""
    return f"{operation} {_digest(_write(operation, shard, change))}"


def batch_name(operation: str, rows: UpsertBatch) -> str:
    """What a batch over several shards is called in all of them."""
    return f"{operation} {_digest(_rows(rows))}"


def _digest(parts: Iterator[bytes | memoryview]) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _write(operation: str, shard: ShardId, change: Change) -> Iterator[bytes | memoryview]:
    match change:
        case UpsertBatch(ids, vectors, metadata):
            yield _beginning(7, "Upsert", operation, shard)
            yield _encode("ids") + _encode(ids) + _encode("vectors")
            yield from _binary(vectors)
            yield _encode("metadata") + _encode(metadata)
        case Removal(ids):
            yield _beginning(5, "DeleteIds", operation, shard) + _encode("ids") + _encode(ids)
        case Where() as where:
            yield _beginning(5, "DeleteWhere", operation, shard) + _encode("filter") + _encode(where.text)
    yield _LEVEL


def _rows(rows: UpsertBatch) -> Iterator[bytes | memoryview]:
    yield bytes([_LIST + 3]) + _encode(rows.ids)
    yield from _binary(rows.vectors)
    yield _encode(rows.metadata)


def _beginning(members: int, kind: str, operation: str, shard: ShardId) -> bytes:
    named = {"type": kind, "shard": shard, "op_id": operation}
    return bytes([_MAP + members]) + _encode(named)[1:]


def _binary(vectors: F32) -> Iterator[bytes | memoryview]:
    """As MessagePack would write their bytes."""
    raw = vectors.astype("<f4", order="C", copy=False).data.cast("B")
    if len(raw) < 1 << 8:
        yield b"\xc4" + len(raw).to_bytes(1, "big")
    elif len(raw) < 1 << 16:
        yield b"\xc5" + len(raw).to_bytes(2, "big")
    else:
        yield b"\xc6" + len(raw).to_bytes(4, "big")
    yield raw
