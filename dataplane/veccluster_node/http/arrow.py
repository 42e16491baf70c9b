"""Read an Arrow stream as it arrives, without trusting it.

pyarrow reads streams only from a source that blocks, and believes what they say of their own sizes. So the messages are
told apart here, by the few numbers that frame them, and bounded; each record batch then goes to pyarrow behind the
schema and dictionaries that it needs, and is validated in full before anything looks at it.

Accepted columns: `id` (string), `vector` (fixed-size list, list, or tensor with one axis, of floats) and, if wanted,
`metadata` (JSON text), the texts also dictionary-encoded. Compressed bodies are refused, since their true size is not
known beforehand; the request as a whole may be compressed instead.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from veccluster.model.limits import MAX_ID_BYTES, Limits
from veccluster_node.http.rows import F32, Mistake

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_WANTED: Final = "an Arrow stream"


class NotArrow(Exception):
    """The bytes are not an Arrow stream that can be read here, as the text says."""


@dataclass(frozen=True, slots=True)
class _Message:
    kind: int
    raw: bytes
    """With its framing."""
    compressed: bool


class _Table:
    """A table of a flatbuffer; reading beyond the buffer raises `struct.error`."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - self._read("<i", at)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        """The table that the buffer is about."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def scalar(self, slot: int, form: str, default: int = 0) -> int:
        """A number in a field."""
        at = self._field(slot)
        return default if at is None else self._read(form, at)

    def table(self, slot: int) -> "_Table | None":
        """A table that a field refers to."""
        at = self._field(slot)
        return None if at is None else _Table(self._data, at + self._read("<I", at))

    def _field(self, slot: int) -> int | None:
        place = 4 + 2 * slot
        if place + 2 > self._read("<H", self._vtable):
            return None
        offset = self._read("<H", self._vtable + place)
        return self._at + offset if offset else None

    def _read(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset points before the buffer")
        number: int = struct.unpack_from(form, self._data, at)[0]
        return number


class _Framing:
    """Cuts bytes into messages; holds at most one unfinished message."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._needed = 8
        """Bytes that must be there before it is worth looking again."""
        self.ended = False

    @property
    def held(self) -> int:
        """Bytes of the unfinished message."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> Iterator[_Message]:
        """The messages that are complete with this chunk."""
        self._pending += chunk
        while not self.ended and len(self._pending) >= self._needed:
            message = self._next()
            if message:
                yield message
        if self.ended and self._pending:
            raise NotArrow("bytes follow the end of the Arrow stream")

    def close(self) -> None:
        """Complain if a message is not complete."""
        if self._pending:
            raise NotArrow(f"the Arrow stream is cut off: {len(self._pending)} bytes of {self._needed} are there")

    def _next(self) -> _Message | None:
        head = bytes(self._pending[:8])
        if head[:4] != _CONTINUATION:
            raise NotArrow(f"the body must be {_WANTED} in the format of Arrow 0.15 or later; it begins otherwise")
        size = struct.unpack("<i", head[4:])[0]
        if size == 0:
            self.ended = True
            del self._pending[:8]
            self._needed = 8
            return None
        self._need(8 + size if size > 0 else -1)
        if len(self._pending) < self._needed:
            return None
        return self._message(bytes(self._pending[8 : 8 + size]), 8 + size)

    def _message(self, head: bytes, body_at: int) -> _Message | None:
        try:
            table = _Table.root(head)
            kind, body = table.scalar(1, "<B"), table.scalar(3, "<q")
            compressed = _is_compressed(kind, table)
        except struct.error:
            raise NotArrow("the header of an Arrow message is damaged") from None
        self._need(body_at + body if body >= 0 else -1)
        if len(self._pending) < self._needed:
            return None
        raw = bytes(self._pending[: self._needed])
        del self._pending[: self._needed]
        self._needed = 8
        return _Message(kind, raw, compressed)

    def _need(self, size: int) -> None:
        if not 0 <= size <= self._limit:
            said = f"of {size} bytes" if size >= 0 else "of a negative size"
            raise NotArrow(f"an Arrow message {said} cannot be; use record batches of at most {self._limit} bytes")
        self._needed = size


def _is_compressed(kind: int, message: _Table) -> bool:
    header = message.table(2)
    if kind == _DICTIONARY and header:
        header = header.table(1)
    return kind in (_DICTIONARY, _RECORDS) and header is not None and header.table(3) is not None


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The rows of one record batch, valid as Arrow: texts to be read in parts, so that none is large in Python.

    `_vectors` is float32 (n, dimension), with `_mistakes` for the rows whose vector is none.
    """

    _vectors: F32
    _mistakes: dict[int, Mistake]
    _ids: Any
    _metadata: Any

    def __len__(self) -> int:
        return len(self._vectors)

    def vector(self, row: int) -> F32:
        """float32 (dimension,); raises `Mistake` if the row has none."""
        if mistake := self._mistakes.get(row):
            raise mistake
        vector: F32 = self._vectors[row]
        return vector

    def texts(self, start: int, stop: int) -> Iterator[tuple[str | None, bytes | None]]:
        """Id and metadata of rows from `start` to `stop`."""
        metadata = [None] * (stop - start) if self._metadata is None else _texts(self._metadata, start, stop)
        for id_, text in zip(_texts(self._ids, start, stop), metadata, strict=True):
            yield id_, None if text is None else text.encode()


def _texts(column: Any, start: int, stop: int) -> list[str | None]:
    part = column.slice(start, stop - start)
    if pa.types.is_dictionary(part.type):
        part = part.dictionary_decode()
    texts: list[str | None] = part.to_pylist()
    return texts


class ArrowReader:
    """Takes a stream of vectors in pieces and gives its record batches. Everything raises `NotArrow` or `Mistake`."""

    def __init__(self, dimension: int, limits: Limits) -> None:
        self._dimension = dimension
        self._limits = limits
        self._framing = _Framing(limits.max_arrow_batch_size)
        self._prefix = b""
        """Schema and dictionaries."""

    @property
    def held(self) -> int:
        """Bytes that wait for the rest of their message, or for what refers to them."""
        return self._framing.held + len(self._prefix)

    def feed(self, chunk: bytes) -> Iterator[Columns]:
        """The record batches that are complete with this chunk."""
        for message in self._framing.feed(chunk):
            if columns := self._take(message):
                yield columns

    def close(self) -> None:
        """Complain if the stream is not complete."""
        self._framing.close()
        if not self._prefix:
            raise NotArrow(f"the body must be {_WANTED}; it is empty")

    def _take(self, message: _Message) -> Columns | None:
        if (message.kind == _SCHEMA) == bool(self._prefix):
            raise NotArrow("an Arrow stream must begin with its schema, and have one")
        if message.compressed:
            raise NotArrow("the buffers must not be compressed; compress the request with Content-Encoding instead")
        try:
            if message.kind == _RECORDS:
                return self._columns(pa.ipc.open_stream(pa.py_buffer(self._prefix + message.raw)).read_next_batch())
            if message.kind == _SCHEMA:
                check_schema(pa.ipc.open_stream(pa.py_buffer(message.raw)).schema, self._dimension)
            elif message.kind != _DICTIONARY:
                raise NotArrow(f"an Arrow stream of record batches holds no message of kind {message.kind}")
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise NotArrow(f"the Arrow stream is damaged: {_first_line(error)}") from None
        self._prefix += message.raw
        if len(self._prefix) > self._limits.max_arrow_batch_size:
            raise NotArrow(f"the dictionaries together must be at most {self._limits.max_arrow_batch_size} bytes")
        return None

    def _columns(self, batch: Any) -> Columns:
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in batch.schema.names}
        metadata = columns.get("metadata")
        if metadata is not None and pa.types.is_null(metadata.type):
            metadata = None
        _check_dictionary(columns["id"], "id", MAX_ID_BYTES)
        _check_dictionary(metadata, "metadata", self._limits.max_metadata_size)
        given = columns["vector"]
        rows = given.storage if isinstance(given.type, pa.FixedShapeTensorType) else given
        vectors, mistakes = _vectors(rows, self._dimension)
        return Columns(vectors, mistakes, columns["id"], metadata)


def check_schema(schema: Any, dimension: int) -> None:
    """Raise `Mistake` for columns that are missing, unknown, there twice, or of a type that is not read here."""
    for name in schema.names:
        if name not in {"id", "vector", "metadata"}:
            raise Mistake(name, "is not a column that is read here; they are id, vector and metadata")
        if schema.names.count(name) > 1:
            raise Mistake(name, "must be there once")
    for name in ("id", "vector"):
        if name not in schema.names:
            raise Mistake(name, "must be a column of the stream")
    for name in ("id", "metadata"):
        type_ = schema.field(name).type if name in schema.names else pa.string()
        if not (_is_text(type_) or (name == "metadata" and pa.types.is_null(type_))):
            raise Mistake(name, f"must be a column of strings, is {type_}")
    _check_vector_type(schema.field("vector").type, dimension)


def _is_text(type_: Any) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _check_vector_type(type_: Any, dimension: int) -> None:
    if isinstance(type_, pa.FixedShapeTensorType):  # with one axis it is a fixed-size list by another name
        if len(type_.shape) != 1:
            raise Mistake(
                "vector", f"must be tensors with one axis of {dimension} numbers, have the shape {type_.shape}"
            )
        type_ = type_.storage_type
    fixed = pa.types.is_fixed_size_list(type_)
    listed = fixed or pa.types.is_list(type_) or pa.types.is_large_list(type_)
    if not listed or not pa.types.is_floating(type_.value_type):
        raise Mistake("vector", f"must be a column of fixed-size lists of {dimension} float32, is {type_}")
    if fixed and type_.list_size != dimension:
        raise Mistake("vector", f"must have {dimension} numbers, the collection's dimension; has {type_.list_size}")


def _check_dictionary(column: Any, name: str, limit: int) -> None:
    """Refuse a dictionary with huge texts, which its indices could multiply."""
    if column is None or not pa.types.is_dictionary(column.type):
        return
    longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    if longest > limit:
        raise Mistake(name, f"must be strings of at most {limit} bytes; the dictionary holds one of {longest}")


def _vectors(column: Any, dimension: int) -> tuple[F32, dict[int, Mistake]]:
    """The column as float32 (n, dimension), and what is wrong with rows that are not `dimension` numbers."""
    mistakes = dict(_vector_mistakes(column, dimension))
    vectors = np.zeros((len(column), dimension), np.float32)
    good = np.ones(len(column), bool)
    good[list(mistakes)] = False
    kept = column.filter(pa.array(good)) if mistakes else column
    with np.errstate(over="ignore"):
        vectors[good] = kept.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return vectors, mistakes


def _vector_mistakes(column: Any, dimension: int) -> Iterator[tuple[int, Mistake]]:
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            yield int(row), Mistake("vector", "must not be null")
    if not pa.types.is_fixed_size_list(column.type):
        sizes = pc.fill_null(pc.list_value_length(column), dimension).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(sizes != dimension):
            text = f"must have {dimension} numbers, the collection's dimension; has {sizes[row]}"
            yield int(row), Mistake("vector", text)
    inner = column.flatten()
    if inner.null_count:
        parents = pc.list_parent_indices(column).to_numpy()
        for row in np.unique(parents[inner.is_null().to_numpy(zero_copy_only=False)]):
            yield int(row), Mistake("vector", "must not hold nulls")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
