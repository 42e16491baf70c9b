"""What a shard is told to do, and how it is told in the log.

Every operation has a seq of its own, dense within the shard; a `Batch` is what one caller asked of one shard, and is
durable, applied and answered as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from veccluster.decisions.replication import atomic
from veccluster.errors import PayloadTooLarge
from veccluster.model.state import Revision, Seq

if TYPE_CHECKING:
    from veccluster.decisions.filters import Filter


class Upsert(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    """Give `id` this vector (little-endian float32, `dimension` of them) and metadata (a JSON object as UTF-8)."""

    id: str
    vector: bytes
    metadata: bytes


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """Forget `id`; nothing happens when it is not there."""

    id: str


class Nothing(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    """Takes a seq and changes nothing: what a `DeleteWhere` that matches nothing leaves, so that a retry finds it."""


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Keep this shard's part of a batch over several shards until it is decided (15); alone in its record.

    `content` are its `count` operations, encoded by `encode_content`.
    """

    operation: str
    attempt: int
    participants: tuple[int, ...]
    count: int
    content: bytes

    @property
    def batch(self) -> atomic.Batch:
        """The attempt that it is part of."""
        return atomic.Batch(self.operation, self.attempt)

    def meaning(self) -> atomic.Prepare:
        """What it is to the rules, which do not look at the operations."""
        return atomic.Prepare(self.batch, self.participants, self.count, b"")


class Decide(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """Apply, or drop, what was prepared; alone in its record, which has a seq for each operation that it applies."""

    operation: str
    attempt: int
    verdict: atomic.Verdict
    prepared: dict[int, Seq]
    revision: Revision

    @classmethod
    def of(cls, decision: atomic.Decision) -> "Decide":
        """How a decision is put in the log."""
        return cls(*decision.batch, decision.verdict, dict(decision.prepared), decision.revision)

    def meaning(self) -> atomic.Decision:
        """What it is to the rules."""
        return atomic.Decision(
            atomic.Batch(self.operation, self.attempt), self.verdict, dict(self.prepared), self.revision
        )


Op = Upsert | Delete
LoggedOp = Upsert | Delete | Nothing | Prepare | Decide


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Delete what `filter` matches in the state that all earlier operations leave behind.

    It may be several records, in a row. The last has its operation id; the ids of the others begin with it.
    `looked` is what somebody found before, who had the time: then only what came since needs to be looked at.
    """

    filter: "Filter"
    looked: "Looked | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What a filter matched in the state after `applied_seq`: rows never change, so each matches while it lives."""

    applied_seq: int
    seqs: "npt.NDArray[np.uint64]"


def part_id(op_id: str, after: Seq) -> str:
    """The operation id of a record of a delete by filter that is not its last, if the log ended at `after` before."""
    return f"{op_id}{_PART}{after}"


def parts_of(op_id: str) -> tuple[str, str]:
    """Where such ids begin and end, in the order of texts."""
    return op_id + _PART, op_id + _PART[:-1] + "!"


_PART = " part "


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """What one log record says besides its place: `ops[i]` has seq first_seq + i. `time_ns` is the primary's clock.

    A `Decide` stands for the operations that were prepared.
    """

    time_ns: int
    op_id: str
    ops: tuple[LoggedOp, ...]


LARGEST_RECORD = 128 << 20
"""Bytes of one record's operations. Whatever a record goes through on its way to a follower takes one of this size:
what may wait for a peer, a frame, the follower's queue."""
_OVERHEAD = 32
"""More than what encoding adds to an operation."""


def size_of(ids: Sequence[str], *parts: int) -> int:
    """At least what operations on these ids take in a record, with so many bytes of vectors and metadata."""
    return sum(map(len, map(str.encode, ids))) + _OVERHEAD * len(ids) + sum(parts)


def check_size(size: int, largest: int = LARGEST_RECORD) -> None:
    """`PayloadTooLarge` for operations that no record can hold: no follower would take it."""
    if size > largest:
        raise PayloadTooLarge(
            f"the part of this batch that belongs to one shard takes {size} bytes, and a shard takes at most {largest} "
            "at once; nothing was stored; send it in several requests"
        )


def in_parts(ids: Sequence[str], most: int) -> Iterator[list[str]]:
    """The ids, cut so that the operations on each part take at most `most` bytes, or are a single one."""
    part: list[str] = []
    size = 0
    for id_ in ids:
        more = size_of([id_])
        if part and size + more > most:
            yield part
            part, size = [], 0
        part.append(id_)
        size += more
    if part:
        yield part


class _Head(msgspec.Struct, frozen=True, array_like=True):
    time_ns: int
    op_id: str
    ops: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log: a batch (still encoded), its epoch and the seqs that it takes (`count` ≥ 1)."""

    epoch: int
    first_seq: int
    count: int
    payload: bytes

    @property
    def last_seq(self) -> int:
        """The seq of the batch's last operation."""
        return self.first_seq + self.count - 1

    @property
    def op_id(self) -> str:
        """The batch's operation id, without decoding the rest."""
        return _head_decoder.decode(self.payload).op_id

    @property
    def time_ns(self) -> int:
        """When it was asked for, by the clock of the primary."""
        return _head_decoder.decode(self.payload).time_ns

    def batch(self) -> Batch:
        """Decode the batch; `msgspec.DecodeError` cannot happen behind a checksum that holds."""
        return _decoder.decode(self.payload)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch. `upserted` and `deleted` count what changed; `replayed` tells a retry from the first
    time.
    """

    first_seq: int
    last_seq: int
    upserted: int
    deleted: int
    replayed: bool = False
    epoch: int = 0
    """The epoch in which it was acknowledged."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_head_decoder = msgspec.msgpack.Decoder(_Head)
_content_decoder = msgspec.msgpack.Decoder(tuple[Op, ...])


def encode_batch(time_ns: int, op_id: str, ops: Sequence[LoggedOp]) -> bytes:
    """Encode a batch for the log."""
    return _encoder.encode(Batch(time_ns, op_id, tuple(ops)))


def encode_content(ops: Sequence[Op]) -> bytes:
    """Encode the operations of a batch that is to be prepared."""
    return _encoder.encode(tuple(ops))


def decode_content(content: bytes) -> tuple[Op, ...]:
    """The operations of a batch that was prepared."""
    return _content_decoder.decode(content)
