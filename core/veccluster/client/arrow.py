"""Rows as Arrow, for bulk uploads and files. A module of its own, since loading pyarrow takes a while."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import pyarrow as pa
from numpy.typing import ArrayLike

from veccluster.client.arrays import Metadata, Rows, from_json, make_rows, to_json
from veccluster.errors import InvalidRequest

Source: TypeAlias = (
    pa.Table | pa.RecordBatchReader | Iterable[tuple[Sequence[str], ArrayLike, Sequence[Metadata | None] | None]]
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


def rows_from_arrow(batch: pa.RecordBatch) -> Rows:
    """Rows from a record batch with columns id, vector and, if it likes, metadata (JSON text)."""
    names = set(batch.schema.names)
    if not {"id", "vector"} <= names <= {"id", "vector", "metadata"}:
        raise InvalidRequest.field("columns", f"must be id, vector and metadata, are {', '.join(batch.schema.names)}")
    vectors = batch.column("vector")
    if vectors.null_count or (len(vectors) and vectors.flatten().null_count):
        raise InvalidRequest.field("vector", "must not hold nulls")
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    if len(vectors) and len(flat) % len(vectors):
        raise InvalidRequest.field("vector", "must all have the same length")
    texts = batch.column("metadata").to_pylist() if "metadata" in names else [None] * len(vectors)
    metadata = [None if text is None else from_json(text, "metadata") for text in texts]
    shape = (len(vectors), len(flat) // len(vectors) if len(vectors) else 0)
    return make_rows(batch.column("id").to_pylist(), flat.reshape(shape), metadata)


def pieces(source: Source, rows: int) -> Iterator[Rows]:
    """The source in pieces of at most `rows` rows."""
    if isinstance(source, pa.Table):
        source = source.to_reader(max_chunksize=rows)
    if isinstance(source, pa.RecordBatchReader | pa.RecordBatchStreamReader):
        found: Iterable[Rows] = (rows_from_arrow(batch) for batch in source)
    else:
        found = (make_rows(*piece) for piece in source)
    for piece in found:
        for _, part in piece.batches(rows):
            yield part


def total_of(source: Source) -> int | None:
    """How many rows the source has, where it knows."""
    return source.num_rows if isinstance(source, pa.Table) else None


def _text_column(ids: Sequence[str]) -> pa.Array:
    try:
        return pa.array(ids, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, TypeError) as error:
        raise InvalidRequest.field("ids", f"must be strings: {error}") from error
