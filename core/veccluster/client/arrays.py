"""Rows on their way into a request: ids, vectors and metadata of one length, cut into bodies (Arrow is in `arrow`).

What the server would refuse anyway is refused here only where encoding would hide it, or where a part of the rows would
be stored before it is found: ids that are no strings, metadata that JSON cannot hold, and shapes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from numpy.typing import ArrayLike

from veccluster.client.results import FloatArray
from veccluster.client.values import a_list, a_text, an_object, to_json
from veccluster.client.vectors import many_vectors
from veccluster.errors import InvalidRequest

T = TypeVar("T")
Metadata = Mapping[str, Any]

MOST_ERRORS = 100
"""Errors that are listed; how many more there are is said."""


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


def bounded(items: Iterable[T], size: Callable[[T], int], most: int, most_bytes: int) -> Iterator[list[T]]:
    """Cut into lists of at most `most` items and `most_bytes`; an item that is larger than that is alone."""
    part: list[T] = []
    total = 0
    for item in items:
        if part and (len(part) >= most or total + size(item) > most_bytes):
            yield part
            part, total = [], 0
        part.append(item)
        total += size(item)
    if part:
        yield part


def make_rows(
    ids: Sequence[str], vectors: ArrayLike, metadata: Sequence[Metadata | None] | None, first: int = 0
) -> Rows:
    """Rows from columns of one length; raises InvalidRequest, which numbers the rows from `first` on."""
    ids, array = a_list(ids, "ids"), many_vectors(vectors, first=first)
    if len(ids) != len(array):
        raise InvalidRequest.field("ids", f"must be as many as the vectors ({len(array)}), are {len(ids)}")
    objects = [None] * len(ids) if metadata is None else a_list(metadata, "metadata")
    if len(objects) != len(ids):
        raise InvalidRequest.field("metadata", f"must be as many as the ids ({len(ids)}), are {len(objects)}")
    rows = Rows(ids, array, objects)
    _refuse([error for row in range(len(rows)) for error in _row_errors(first + row, ids[row], objects[row])])
    return rows


def _row_errors(row: int, id_: Any, metadata: Any) -> Iterator[dict[str, Any]]:
    """What is wrong with a row beside its vector, as a node says it of a batch."""
    try:
        a_text(id_, "id")
        if metadata is not None:
            to_json(an_object(metadata, "metadata"), "metadata")
    except InvalidRequest as error:
        yield {"index": row, "id": id_ if isinstance(id_, str) else None, **error.errors[0]}


def _refuse(errors: list[dict[str, Any]]) -> None:
    if not errors:
        return
    first, rest = errors[0], len(errors) - 1
    more = {"more_errors": len(errors) - MOST_ERRORS} if len(errors) > MOST_ERRORS else {}
    said = f"vector {first['index']}: {first['field']} {first['reason']}"
    raise InvalidRequest(said + (f" (and {rest} more)" if rest else ""), errors[:MOST_ERRORS], **more)


def rows_from_items(items: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows from `{"id", "vector", "metadata"?}` objects; raises InvalidRequest."""
    items = a_list(items, "items")
    for i, item in enumerate(items):
        an_object(item, f"items[{i}]")
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
    return make_rows(
        [item["id"] for item in items], [item["vector"] for item in items], [i.get("metadata") for i in items]
    )


def rows_json(rows: Rows) -> Iterator[bytes]:
    """Each row as the JSON of a vector object."""
    for id_, vector, metadata in zip(rows.ids, rows.vectors, rows.metadata, strict=True):
        item = {"id": id_, "vector": vector}
        if metadata is not None:
            item["metadata"] = orjson.Fragment(to_json(metadata, "metadata"))
        yield orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY)


def upsert_json(rows: Sequence[bytes], *, atomic: bool) -> bytes:
    """The body of an upsert of vector objects."""
    return b'{"vectors":[' + b",".join(rows) + (b'],"atomic":true}' if atomic else b"]}")
