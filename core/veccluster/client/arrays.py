"""Rows on their way into a request: vectors as float32 arrays, bodies as JSON (Arrow is in `arrow`).

What the server would refuse anyway is refused here only where encoding would hide it: NaN and infinity (JSON has
none), a value that float32 cannot hold, and shapes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike

from veccluster.client.results import FloatArray
from veccluster.errors import InvalidRequest

Metadata = Mapping[str, Any]
_JSON = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows to be stored: ids, vectors float32 (n, d), and a metadata object or None each."""

    ids: Sequence[str]
    vectors: FloatArray
    metadata: Sequence[Metadata | None]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(self.ids[part], self.vectors[part], self.metadata[part])

    def batches(self, size: int) -> Iterator[tuple[int, "Rows"]]:
        """Cut into batches of at most `size` rows, each with the number of its first row."""
        for start in range(0, len(self), size):
            yield start, self[start : start + size]


def one_vector(vector: ArrayLike) -> FloatArray:
    """float32 (d,); raises InvalidRequest."""
    array = _as_float32(vector, "vector")
    if array.ndim != 1:
        raise InvalidRequest.field(
            "vector", f"must have one axis (use search_many for several), has shape {array.shape}"
        )
    return array


def many_vectors(vectors: ArrayLike) -> FloatArray:
    """float32 (n, d), C-contiguous; raises InvalidRequest."""
    array = _as_float32(vectors, "vectors")
    if array.ndim != 2:
        raise InvalidRequest.field("vectors", f"must have shape (n, dimension), has shape {array.shape}")
    return array


def make_rows(ids: Sequence[str], vectors: ArrayLike, metadata: Sequence[Metadata | None] | None) -> Rows:
    """Rows from columns of one length; raises InvalidRequest."""
    array = many_vectors(vectors)
    if len(ids) != len(array):
        raise InvalidRequest.field("ids", f"must be as many as the vectors ({len(array)}), are {len(ids)}")
    if metadata is not None and len(metadata) != len(ids):
        raise InvalidRequest.field("metadata", f"must be as many as the ids ({len(ids)}), are {len(metadata)}")
    return Rows(ids, array, metadata if metadata is not None else [None] * len(ids))


def rows_from_items(items: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows from `{"id", "vector", "metadata"?}` objects; raises InvalidRequest."""
    items = list(items)
    errors = [
        {"index": i, "id": item.get("id"), "field": name, "reason": "is missing"}
        for i, item in enumerate(items)
        for name in ("id", "vector")
        if name not in item
    ]
    errors += [
        {"index": i, "id": item.get("id"), "field": name, "reason": "is not a field of a vector; put it into metadata"}
        for i, item in enumerate(items)
        for name in item.keys() - {"id", "vector", "metadata"}
    ]
    if errors:
        first = errors[0]
        raise InvalidRequest(f"item {first['index']}: {first['field']} {first['reason']}", errors)
    lengths = {np.shape(item["vector"]) for item in items}
    if len(lengths) > 1:
        raise InvalidRequest.field("vectors", f"must all have the same length, have {sorted(map(str, lengths))}")
    return make_rows(
        [item["id"] for item in items], [item["vector"] for item in items], [i.get("metadata") for i in items]
    )


def upsert_json(rows: Rows, *, atomic: bool) -> bytes:
    """The body of an upsert; raises InvalidRequest for metadata that JSON cannot hold."""
    vectors = [
        {"id": i, "vector": v} if m is None else {"id": i, "vector": v, "metadata": m}
        for i, v, m in zip(rows.ids, rows.vectors, rows.metadata, strict=True)
    ]
    return to_json({"vectors": vectors, "atomic": True} if atomic else {"vectors": vectors}, "metadata")


def to_json(value: Any, field: str) -> bytes:
    """JSON, with numpy arrays and numbers as such; raises InvalidRequest."""
    try:
        return orjson.dumps(value, option=_JSON)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise InvalidRequest.field(field, f"must be something that JSON can hold: {error}") from error


def from_json(text: str | bytes, field: str) -> Any:
    """What JSON text says; raises InvalidRequest."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.field(field, f"must be JSON: {error}") from error


def _as_float32(values: ArrayLike, field: str) -> FloatArray:
    try:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.field(field, f"must be numbers, all rows of one length: {error}") from error
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = f"row {place[0]}, position {place[1]}" if array.ndim > 1 else f"position {place[0]}"
        raise InvalidRequest.field(field, f"must be finite float32 numbers, is {array[place]} at {where}")
    return array
