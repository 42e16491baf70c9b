"""Files that can be imported, read without holding more than a piece of them in memory.

NDJSON has one {"id", "vector", "metadata"} a line. Arrow (a stream or a file), Parquet and CSV have columns
(`columns`). A .npy file has a vector a row; its ids are the numbers of the rows, or the lines of another file.
"""

import gzip
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import orjson

from veccluster.client.arrays import Rows, make_rows, rows_from_items
from veccluster.client.values import a_text, an_object, check, from_json
from veccluster.client.vectors import one_vector
from veccluster.errors import InvalidRequest
from veccluster_cli.columns import Asked, roles_of, rows_from_table

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["ndjson", "arrow", "csv", "parquet", "npy"]
T = TypeVar("T")

KINDS: Mapping[str, Kind] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
}
PIECE_ROWS = 1_000
SETTINGS_KEY = b"veccluster.collection"
"""Where the schema of Arrow says what collection it came from."""
_ARROW_FILE_MAGIC = b"ARROW1"
_ITEM_FIELDS = {"id", "vector", "metadata"}


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows to be uploaded, and what the file says about their collection."""

    rows: Iterable[Rows]
    dimension: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def kind_of(file: Path) -> Kind:
    """The format that a file's name promises: NDJSON without one; InvalidRequest for a name that promises another."""
    suffixes = file.suffixes[:-1] if file.suffix == ".gz" else file.suffixes
    if not suffixes:
        return "ndjson"
    if (kind := KINDS.get(suffixes[-1].lower())) is None:
        known = "NDJSON (.ndjson, .jsonl), CSV (.csv, .tsv), Parquet (.parquet), Arrow (.arrow, .feather), .npy"
        raise InvalidRequest.field(str(file), f"its name is of no format that is known: {known}; --format names one")
    return kind


@contextmanager
def opened(file: Path, kind: Kind, asked: Asked, *, delimiter: str | None, ids: Path | None) -> Iterator[FileSource]:
    """The rows of a file; InvalidRequest names the line or row that is wrong."""
    if kind == "npy":
        yield _source(_npy_rows(_on_disk(file, ".npy"), ids))
    elif kind == "parquet":
        with _on_disk(file, "Parquet").open("rb") as data:
            yield _parquet_source(data, asked)
    else:
        with read(file) as data:
            yield _stream_source(file, data, kind, asked, delimiter)


@contextmanager
def read(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, or of standard input; unpacked where the name ends in .gz."""
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as data:
            yield cast("IO[bytes]", data)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InvalidRequest.field(str(file), f"must be a whole file of gzip: {error}") from error


def objects(data: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of NDJSON, each with the number of its line."""
    for number, line in enumerate(data, 1):
        if line.strip():
            yield number, require_object(from_json(line, f"line {number}"), f"line {number}")


def require_object(value: Any, place: str) -> dict[str, Any]:
    """The value, if it is an object; InvalidRequest shows one."""
    if not isinstance(value, dict):
        raise InvalidRequest.field(place, 'must be an object like {"id": "a", "vector": [0.1, 0.2]}')
    return value


def rows_of_objects(piece: Sequence[tuple[int, dict[str, Any]]], dimension: int | None) -> Rows:
    """The rows of objects; InvalidRequest names the line of the first that is wrong."""
    try:
        rows = rows_from_items([item for _, item in piece])
    except InvalidRequest:
        _refuse_first_wrong(piece, dimension)
        raise
    if dimension is not None and rows.vectors.shape[1] != dimension:
        _refuse_first_wrong(piece, dimension)
    return rows


def cut(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """The things in lists of at most `size`."""
    iterator = iter(things)
    while piece := list(islice(iterator, size)):
        yield piece


def _stream_source(file: Path, data: IO[bytes], kind: Kind, asked: Asked, delimiter: str | None) -> FileSource:
    if kind == "arrow":
        return _arrow_source(data, asked)
    if kind == "csv":
        from veccluster_cli.csvfiles import rows_from_csv  # here, since few need it

        tabs = ".tsv" in file.suffixes
        return _source(rows_from_csv(data, asked, delimiter or ("\t" if tabs else ","), PIECE_ROWS))
    return _source(_ndjson_rows(data))


def _source(rows: Iterator[Rows], settings: Mapping[str, Any] | None = None) -> FileSource:
    first = next(rows, None)
    if first is None:
        return FileSource((), 0, settings or {})
    return FileSource(chain([first], rows), first.vectors.shape[1], settings or {})


def _ndjson_rows(data: IO[bytes]) -> Iterator[Rows]:
    dimension = None
    for piece in cut(objects(data), PIECE_ROWS):
        rows = rows_of_objects(piece, dimension)
        dimension = rows.vectors.shape[1]
        yield rows


def _refuse_first_wrong(piece: Sequence[tuple[int, dict[str, Any]]], dimension: int | None) -> None:
    before = "the lines before have"
    for line, item in piece:
        length = _length_of(line, item)
        if dimension is None:
            dimension, before = length, f"line {line} has"
        elif length != dimension:
            said = f"line {line} has {length} numbers, {before} {dimension}"
            raise InvalidRequest.field("vector", f"must all have the same length; {said}")


def _length_of(line: int, item: dict[str, Any]) -> int:
    """How many numbers the vector of an object has, which is right in every way that can be seen alone."""
    at = f"line {line}: "
    for name in ("id", "vector"):
        if name not in item:
            raise InvalidRequest.field(f"{at}{name}", "is missing")
    if more := sorted(item.keys() - _ITEM_FIELDS):
        raise InvalidRequest.field(f"{at}{more[0]}", "is not a field of a vector; put it into metadata")
    a_text(item["id"], f"{at}id")
    if item.get("metadata") is not None:
        check(an_object(item["metadata"], f"{at}metadata"), f"{at}metadata")
    return len(one_vector(item["vector"], f"{at}vector"))


def _arrow_source(data: IO[bytes], asked: Asked) -> FileSource:
    import pyarrow as pa  # here and below, since it takes a while to load and few need it

    try:
        start = data.peek(len(_ARROW_FILE_MAGIC)) if isinstance(data, io.BufferedReader) else b""
        if start.startswith(_ARROW_FILE_MAGIC):
            file = pa.ipc.open_file(data)
            schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            reader = pa.ipc.open_stream(data)
            schema, batches = reader.schema, iter(reader)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest.field("file", f"must be Arrow with columns id, vector and metadata: {error}") from error
    settings = (schema.metadata or {}).get(SETTINGS_KEY)
    return _source(_table_rows(schema, batches, asked), orjson.loads(settings) if settings else {})


def _parquet_source(data: IO[bytes], asked: Asked) -> FileSource:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest.field("file", f"must be Parquet: {error}") from error
    return _source(_table_rows(file.schema_arrow, file.iter_batches(PIECE_ROWS), asked))


def _table_rows(schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], asked: Asked) -> Iterator[Rows]:
    import pyarrow as pa

    roles = roles_of(schema.names, asked)
    dimension, first = None, 0
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, PIECE_ROWS):
                rows = rows_from_table(batch.slice(start, PIECE_ROWS), roles, first, dimension)
                dimension, first = rows.vectors.shape[1], first + len(rows)
                yield rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest.field("file", f"cannot be read after row {first}: {error}") from error


def _on_disk(file: Path, kind: str) -> Path:
    if str(file) == "-" or file.suffix == ".gz" or (file.exists() and not file.is_file()):
        raise InvalidRequest.field(str(file), f"{kind} is read here and there, so it must be a file on a disk")
    return file


def _npy_rows(file: Path, ids: Path | None) -> Iterator[Rows]:
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest.field(str(file), f"must be a .npy file of numbers: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        shape = getattr(vectors, "shape", None)
        raise InvalidRequest.field(str(file), f"must have shape (n, dimension), has shape {shape}")
    count = len(vectors)
    if ids is not None and (lines := sum(1 for _ in _lines(ids))) != count:
        raise InvalidRequest.field(str(ids), f"must have a line for each of {count} vectors, has {lines}")
    names = map(str, range(count)) if ids is None else _lines(ids)
    for start in range(0, count, PIECE_ROWS):
        piece = vectors[start : start + PIECE_ROWS]
        yield make_rows(list(islice(names, len(piece))), np.array(piece), list(repeat(None, len(piece))), start)


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", newline="\n") as data:
        try:
            for line in data:
                yield line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InvalidRequest.field(str(file), f"must be text in UTF-8: {error.reason}") from error
