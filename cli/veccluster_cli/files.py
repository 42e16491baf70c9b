"""Files of vectors: NDJSON and Arrow, read and written without holding more than a piece of them in memory.

NDJSON: one {"id", "vector", "metadata"} a line. Arrow: an IPC stream with columns id, vector (fixed-size list of
float32) and metadata (JSON text), whose schema carries the collection's settings; Arrow files are read as well. Both
give back exactly what was stored: a float32 is written with the fewest digits that read as the same float32.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from veccluster.client import CollectionInfo, Vector
from veccluster.client.arrays import Rows, rows_from_items
from veccluster.client.values import from_json, to_json
from veccluster.client.vectors import as_float32, queries
from veccluster.errors import InvalidRequest

if TYPE_CHECKING:
    from veccluster.client.arrow import Source

Kind = Literal["ndjson", "arrow"]
T = TypeVar("T")

PIECE_ROWS = 1_000
SETTINGS = ("metric", "filterable", "index")
"""What an Arrow file says about the collection that it came from."""
_SETTINGS_KEY = b"veccluster.collection"
_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows to be uploaded, and what the file says about their collection."""

    rows: "Source"
    dimension: int
    settings: Mapping[str, Any]


def kind_of(file: Path) -> Kind:
    """The format that a file's name promises."""
    return "arrow" if file.suffix in {".arrow", ".arrows", ".feather"} else "ndjson"


def write(
    file: Path, kind: Kind, info: CollectionInfo, vectors: Iterable[Vector], report: Callable[[int], None]
) -> int:
    """Write vectors, whole or not at all; `report` is told how many are written. Returns how many there were."""
    done = 0
    with _output(file) as out, _writer(kind, out, info) as write_piece:
        for piece in _cut(vectors, PIECE_ROWS):
            write_piece(piece)
            done += len(piece)
            report(done)
    return done


@contextmanager
def open_source(file: Path, kind: Kind) -> Iterator[FileSource]:
    """The rows of a file; InvalidRequest names the line that is wrong."""
    with _input(file) as data:
        yield _arrow_source(data) if kind == "arrow" else _ndjson_source(data)


def read_items(file: Path) -> list[dict[str, Any]]:
    """The objects of a small file: NDJSON, or a JSON list."""
    with _input(file) as data:
        text = data.read()
    if text.lstrip().startswith(b"["):
        found = from_json(text, str(file))
        return [_require_object(item, f"item {number}") for number, item in enumerate(found)]
    return list(_objects(io.BytesIO(text)))


def read_vectors(file: Path) -> NDArray[np.float32]:
    """Query vectors float32 (q, d) from a .npy file, or from JSON: one vector or a list of them."""
    with _input(file) as data:
        content = data.read()
    if not content.startswith(b"\x93NUMPY"):
        return as_queries(from_json(content, str(file)))
    try:
        return as_queries(np.load(io.BytesIO(content), allow_pickle=False))
    except ValueError as error:
        raise InvalidRequest.field(str(file), f"must be a .npy file of numbers: {error}") from error


def as_queries(vectors: Any) -> NDArray[np.float32]:
    """One vector or several as float32 (q, d)."""
    return queries(np.atleast_2d(as_float32(vectors, "vector")), "vector")


def _ndjson_source(data: IO[bytes]) -> FileSource:
    pieces = _row_pieces(data)
    first = next(pieces, None)
    if first is None:
        return FileSource((), 0, {})

    def rows() -> Iterator[Any]:
        yield first.ids, first.vectors, first.metadata
        for piece in pieces:
            yield piece.ids, piece.vectors, piece.metadata

    return FileSource(rows(), first.vectors.shape[1], {})


def _row_pieces(data: IO[bytes]) -> Iterator[Rows]:
    for number, piece in enumerate(_cut(_objects(data), PIECE_ROWS)):
        try:
            yield rows_from_items(piece)
        except InvalidRequest as error:
            first, last = number * PIECE_ROWS + 1, number * PIECE_ROWS + len(piece)
            raise InvalidRequest(f"lines {first} to {last}: {error.detail}", error.errors) from error


def _objects(data: IO[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data, 1):
        if line.strip():
            yield _require_object(from_json(line, f"line {number}"), f"line {number}")


def _require_object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest.field(field, 'must be an object like {"id": "a", "vector": [0.1, 0.2]}')
    return value


def _arrow_source(data: IO[bytes]) -> FileSource:
    import pyarrow as pa  # here and below, since it takes a while to load and few need it

    try:
        start = data.peek(len(_ARROW_FILE_MAGIC)) if isinstance(data, io.BufferedReader) else b""
        if start.startswith(_ARROW_FILE_MAGIC):
            file = pa.ipc.open_file(data)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            reader = pa.RecordBatchReader.from_batches(file.schema, batches)
        else:
            reader = pa.ipc.open_stream(data)
        dimension = getattr(reader.schema.field("vector").type, "list_size", 0)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise InvalidRequest.field("file", f"must be Arrow with columns id, vector and metadata: {error}") from error
    settings = (reader.schema.metadata or {}).get(_SETTINGS_KEY)
    return FileSource(reader, dimension, orjson.loads(settings) if settings else {})


@contextmanager
def _writer(kind: Kind, out: IO[bytes], info: CollectionInfo) -> Iterator[Callable[[list[Vector]], None]]:
    if kind == "ndjson":
        yield lambda piece: out.writelines(_line(vector) for vector in piece)
        return
    import pyarrow as pa

    from veccluster.client.arrow import to_batch, upsert_schema

    settings = {key: info.details[key] for key in SETTINGS if info.details.get(key)}
    schema = upsert_schema(info.dimension).with_metadata({_SETTINGS_KEY: orjson.dumps(settings)})
    with pa.ipc.new_stream(out, schema) as writer:
        yield lambda piece: writer.write_batch(to_batch(_rows(piece), schema))


def _line(vector: Vector) -> bytes:
    return to_json({"id": vector.id, "vector": vector.vector, "metadata": vector.metadata}, "metadata") + b"\n"


def _rows(piece: list[Vector]) -> Rows:
    return Rows([v.id for v in piece], np.stack([v.vector for v in piece]), [v.metadata for v in piece])


@contextmanager
def _output(file: Path) -> Iterator[IO[bytes]]:
    """A file that appears when the block is done, or standard output."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as out:
            yield out
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _input(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as data:
        yield data


def _cut(things: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(things)
    while piece := list(islice(iterator, size)):
        yield piece
