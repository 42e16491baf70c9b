"""Rows as Arrow, for bulk uploads and files. A module of its own, since loading pyarrow takes a while."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from veccluster.client.arrays import Metadata, Rows, bounded, make_rows
from veccluster.client.values import from_json, kind, to_json
from veccluster.errors import InvalidRequest

Source: TypeAlias = (
    pa.Table
    | pa.RecordBatch
    | pa.RecordBatchReader
    | Iterable[tuple[Sequence[str], ArrayLike, Sequence[Metadata | None] | None]]
)
"""What can be uploaded: Arrow with columns id, vector, metadata (JSON text); or (ids, vectors, metadata) in pieces."""


def upsert_schema(dimension: int) -> pa.Schema:
    """The columns of vectors in Arrow."""
    vector = pa.list_(pa.float32(), dimension)
    return pa.schema([("id", pa.string()), ("vector", vector), ("metadata", pa.string())])


def upsert_arrow(rows: Rows) -> bytes:
    """The body of a bulk upsert: an Arrow stream of one record batch."""
    sink = pa.BufferOutputStream()
    schema = upsert_schema(rows.vectors.shape[1])
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(to_batch(rows, schema))
    body: bytes = sink.getvalue().to_pybytes()
    return body


def to_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of `upsert_schema`; raises InvalidRequest for ids that are no strings."""
    metadata = [None if m is None else to_json(m, "metadata").decode() for m in rows.metadata]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), rows.vectors.shape[1])
    return pa.record_batch([_text_column(rows.ids), vectors, pa.array(metadata, pa.string())], schema=schema)


def rows_from_arrow(batch: pa.RecordBatch, first: int = 0) -> Rows:
    """Rows from a record batch with columns id, vector and, if it likes, metadata (JSON text).

    Errors number the rows from `first` on.
    """
    names = batch.schema.names
    if not {"id", "vector"} <= set(names) <= {"id", "vector", "metadata"} or len(set(names)) < len(names):
        raise InvalidRequest.field("columns", f"must be id, vector and metadata, are {', '.join(names)}")
    texts = _texts(batch.column("metadata")) if "metadata" in names else [None] * batch.num_rows
    metadata = [None if t is None else from_json(t, f"metadata of row {row}") for row, t in enumerate(texts, first)]
    return make_rows(batch.column("id").to_pylist(), _matrix(batch.column("vector"), first), metadata, first)


def _texts(column: pa.Array) -> list[str | None]:
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_)):
        raise InvalidRequest.field("metadata", f"must be a column of strings that hold JSON, is {column.type}")
    texts: list[str | None] = column.to_pylist()
    return texts


def _matrix(column: pa.Array, first: int) -> np.ndarray[Any, Any]:
    """The lists of a column as rows of an array; each has as many numbers as the first."""
    lists = _lists(column)
    if lists.null_count:
        raise InvalidRequest.field("vector", f"must not be null, is in row {first + _place(lists.is_null())}")
    sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    size = int(sizes[0]) if len(sizes) else 0
    if (sizes != size).any():
        row = int(np.argmax(sizes != size))
        said = f"row {first + row} has {sizes[row]} numbers, row {first} has {size}"
        raise InvalidRequest.field("vector", f"must all have the same length; {said}")
    flat = lists.flatten()
    if flat.null_count:
        row = _place(flat.is_null()) // size
        raise InvalidRequest.field("vector", f"must not hold nulls, does in row {first + row}")
    matrix: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), size)
    return matrix


def _lists(column: pa.Array) -> pa.Array:
    """A column of vectors as lists of numbers; tensors of a fixed shape are kept as such."""
    lists, type_ = column, column.type
    if isinstance(type_, pa.FixedShapeTensorType):
        if len(type_.shape) != 1:
            raise InvalidRequest.field("vector", f"must be tensors with one axis, have shape {tuple(type_.shape)}")
        lists, type_ = column.storage, type_.storage_type
    listed = pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_)
    if not listed or not (pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type)):
        raise InvalidRequest.field("vector", f"must be a column of lists of numbers, is {column.type}")
    return lists


def _place(which: pa.BooleanArray) -> int:
    """The position of the first that is true."""
    return int(np.argmax(which.to_numpy(zero_copy_only=False)))


def bodies(source: Source, most: int, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The source as bulk upserts of at most `most` rows and about `most_bytes`, each with its number of rows."""
    for rows in pieces(source, most):
        sizes = _sizes(rows)
        for part in bounded(range(len(rows)), sizes.__getitem__, most, most_bytes):
            yield len(part), upsert_arrow(rows[part[0] : part[-1] + 1])


def _sizes(rows: Rows) -> list[int]:
    """Bytes of each row in a body, but for what the columns share."""
    vector = rows.vectors.shape[1] * rows.vectors.itemsize
    texts = (0 if metadata is None else len(to_json(metadata, "metadata")) for metadata in rows.metadata)
    return [vector + len(id_.encode()) + text for id_, text in zip(rows.ids, texts, strict=True)]


def pieces(source: Source, most: int) -> Iterator[Rows]:
    """The source in pieces, those of Arrow of at most `most` rows; an error numbers the rows from the first of all."""
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    done = 0
    if isinstance(source, pa.Table | pa.RecordBatchReader):
        for batch in source.to_reader() if isinstance(source, pa.Table) else source:
            for start in range(0, batch.num_rows, max(most, 1)):
                yield rows_from_arrow(batch.slice(start, max(most, 1)), done + start)
            done += batch.num_rows
        return
    for number, piece in enumerate(_iterated(source)):
        try:
            rows = _rows_of_piece(piece)
        except InvalidRequest as error:
            for item in error.extra["errors"]:
                if "index" in item:
                    item["index"] += done
            raise InvalidRequest(f"piece {number}: {error.detail}", error.errors) from error
        yield rows
        done += len(rows)


def _iterated(source: Any) -> Iterable[Any]:
    if isinstance(source, str | bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        wanted = "must be an Arrow Table or RecordBatchReader, or an iterable of (ids, vectors, metadata) pieces"
        raise InvalidRequest.field("source", f"{wanted}, is {kind(source)}")
    return source


def _rows_of_piece(piece: Any) -> Rows:
    if not isinstance(piece, tuple | list) or len(piece) not in (2, 3):
        raise InvalidRequest.field("source", f"must give pieces of (ids, vectors, metadata), gives {kind(piece)}")
    return make_rows(piece[0], piece[1], piece[2] if len(piece) == 3 else None)


def total_of(source: Source) -> int | None:
    """How many rows the source has, where it knows."""
    return source.num_rows if isinstance(source, pa.Table | pa.RecordBatch) else None


def _text_column(ids: Sequence[str]) -> pa.Array:
    try:
        return pa.array(ids, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, TypeError) as error:
        raise InvalidRequest.field("ids", f"must be strings: {error}") from error
