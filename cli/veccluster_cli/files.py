"""Files of vectors: what an export writes, and the small files that other commands read.

NDJSON: one {"id", "vector", "metadata"} a line. Arrow: an IPC stream with columns id, vector (fixed-size list of
float32) and metadata (JSON text), whose schema carries the collection's settings. Both give back exactly what was
stored: a float32 is written with the fewest digits that read as the same float32. What can be imported is in `sources`.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from veccluster.client import CollectionInfo, Vector
from veccluster.client.arrays import Rows
from veccluster.client.values import from_json, to_json
from veccluster.client.vectors import as_float32, queries
from veccluster.errors import InvalidRequest
from veccluster_cli.destinations import written
from veccluster_cli.sources import PIECE_ROWS, SETTINGS_KEY, Kind, cut, kind_of, objects, read, require_object

SETTINGS = ("metric", "filterable", "index")
"""What an Arrow file says about the collection that it came from."""


def export_kind(file: Path) -> Kind:
    """The format to write, from the file's name; InvalidRequest if that promises another."""
    kind = kind_of(file)
    if kind not in {"ndjson", "arrow"}:
        raise InvalidRequest.field(str(file), "an export is NDJSON (.ndjson, .jsonl) or Arrow (.arrow)")
    return kind


def write(
    file: Path, kind: Kind, info: CollectionInfo, vectors: Iterable[Vector], report: Callable[[int], None]
) -> int:
    """Write vectors, whole or not at all; `report` is told how many are written. Returns how many there were."""
    done = 0
    with written(file) as out, _writer(kind, out, info) as write_piece:
        for piece in cut(vectors, PIECE_ROWS):
            write_piece(piece)
            done += len(piece)
            report(done)
    return done


def read_items(file: Path) -> list[dict[str, Any]]:
    """The objects of a small file: NDJSON, or a JSON list."""
    with read(file) as data:
        text = data.read()
    if text.lstrip().startswith(b"["):
        found = from_json(text, str(file))
        return [require_object(item, f"item {number}") for number, item in enumerate(found)]
    return [item for _, item in objects(io.BytesIO(text))]


def read_vectors(file: Path) -> NDArray[np.float32]:
    """Query vectors float32 (q, d) from a .npy file, or from JSON: one vector or a list of them."""
    with read(file) as data:
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


@contextmanager
def _writer(kind: Kind, out: IO[bytes], info: CollectionInfo) -> Iterator[Callable[[list[Vector]], None]]:
    if kind == "ndjson":
        yield lambda piece: out.writelines(_line(vector) for vector in piece)
        return
    import pyarrow as pa

    from veccluster.client.arrow import to_batch, upsert_schema

    settings = {key: info.details[key] for key in SETTINGS if info.details.get(key)}
    schema = upsert_schema(info.dimension).with_metadata({SETTINGS_KEY: orjson.dumps(settings)})
    with pa.ipc.new_stream(out, schema) as writer:
        yield lambda piece: writer.write_batch(to_batch(_rows(piece), schema))


def _line(vector: Vector) -> bytes:
    return to_json({"id": vector.id, "vector": vector.vector, "metadata": vector.metadata}, "metadata") + b"\n"


def _rows(piece: list[Vector]) -> Rows:
    return Rows([v.id for v in piece], np.stack([v.vector for v in piece]), [v.metadata for v in piece])
