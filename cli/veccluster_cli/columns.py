"""Tables as vectors: which column is the id, which are the vector; the others are metadata. No I/O.

Rows are counted from 0, and so are they in errors.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veccluster.client.arrays import Rows, make_rows
from veccluster.client.values import an_object, from_json
from veccluster.client.vectors import as_float32, one_vector
from veccluster.errors import InvalidRequest

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = "metadata"
"""A column of this name holds whole objects, as JSON or as structs."""
_PANDAS_INDEX = "__index_level_*__"
"""What pandas calls an index without a name."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person says of the columns."""

    id: str = "id"
    vector: Sequence[str] = ("vector",)
    """Names, or patterns such as v*."""
    text: Sequence[str] = ()
    """Columns of a CSV file that are text, whatever they look like."""


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns of a table are."""

    id: str
    vector: Sequence[str]
    fields: Sequence[str]
    """They become fields of the metadata."""
    objects: bool
    """Whether the column `metadata` holds whole objects."""


def roles_of(names: Sequence[str], asked: Asked) -> Roles:
    """Which column is what; raises InvalidRequest."""
    there = f"the columns are {', '.join(names)}" if names else "there are no columns"
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InvalidRequest.field("columns", f"must have names of their own; {', '.join(twice)} is there twice")
    if asked.id not in names:
        raise InvalidRequest.field("id", f"there is no column {asked.id} ({there}); --id-column names another")
    vector: list[str] = []
    for pattern in asked.vector:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            hint = "--vector-column names another, or a pattern of several, such as 'v*'"
            raise InvalidRequest.field("vector", f"there is no column {pattern} ({there}); {hint}")
        vector += (name for name in found if name != asked.id and name not in vector)
    rest = [n for n in names if n != asked.id and n not in vector and not fnmatchcase(n, _PANDAS_INDEX)]
    return Roles(asked.id, vector, [name for name in rest if name != METADATA], METADATA in rest)


def rows_from_table(batch: "pa.RecordBatch", roles: Roles, first: int, dimension: int | None) -> Rows:
    """The rows of a batch that begins with row `first`; each has `dimension` numbers, if that is known by now."""
    ids = _ids(batch.column(roles.id), first)
    if len(roles.vector) == 1:
        vectors = _vectors(batch.column(roles.vector[0]), first)
    else:
        vectors = np.column_stack([_numbers(batch.column(name), name, first) for name in roles.vector])
    require_length(vectors, dimension, lambda row: f"row {row + first}")
    fields = {name: _values(batch.column(name)) for name in roles.fields}
    objects = _objects(batch.column(METADATA), first) if roles.objects else [None] * len(ids)
    metadata = [
        merged({name: values[row] for name, values in fields.items()}, whole, f"row {first + row}")
        for row, whole in enumerate(objects)
    ]
    return make_rows(ids, vectors, metadata, first)


def merged(fields: Mapping[str, Any], whole: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """The metadata of a row: what columns say, but for empty cells, and what the object says; None if nothing does."""
    found = {name: value for name, value in fields.items() if value is not None}
    if whole is None:
        return found or None
    if both := sorted(found.keys() & whole.keys()):
        raise InvalidRequest.field(METADATA, f"of {where} holds {both[0]}, for which there is a column, too")
    return {**whole, **found}


def require_length(vectors: NDArray[np.float32], dimension: int | None, name: Callable[[int], str]) -> None:
    """Raise InvalidRequest if these vectors are of another length than those before; `name` tells where one is."""
    if dimension is not None and len(vectors) and vectors.shape[1] != dimension:
        said = f"{name(0)} has {vectors.shape[1]} numbers, the rows before have {dimension}"
        raise InvalidRequest.field("vector", f"must all have the same length; {said}")


def vectors_from_texts(texts: Sequence[str | None], name: Callable[[int], str]) -> NDArray[np.float32]:
    """Vectors from JSON lists; `name` tells where the one at a position is."""
    vectors: list[NDArray[np.float32]] = []
    for row, text in enumerate(texts):
        if text is None or not text.strip():
            raise InvalidRequest.field("vector", f"of {name(row)} is missing")
        vectors.append(one_vector(from_json(text, f"vector of {name(row)}"), f"vector of {name(row)}"))
        if len(vectors[row]) != len(vectors[0]):
            said = f"{name(row)} has {len(vectors[row])} numbers, {name(0)} has {len(vectors[0])}"
            raise InvalidRequest.field("vector", f"must all have the same length; {said}")
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


def _ids(column: "pa.Array", first: int) -> list[str]:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if column.null_count:
        raise InvalidRequest.field("id", f"of row {first + _first_null(column)} is missing")
    if pa.types.is_integer(kind):
        return [str(value) for value in column.to_pylist()]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InvalidRequest.field("id", f"must be a column of strings or whole numbers, is {column.type}")
    ids: list[str] = column.to_pylist()
    return ids


def _vectors(column: "pa.Array", first: int) -> NDArray[np.float32]:
    """Lists of numbers, or texts that hold them as JSON."""
    import pyarrow as pa

    from veccluster.client.arrow import rows_from_arrow

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return vectors_from_texts(column.to_pylist(), lambda row: f"row {first + row}")
    ids = pa.array([""] * len(column), pa.string())
    return rows_from_arrow(pa.RecordBatch.from_arrays([ids, column], ["id", "vector"]), first).vectors


def _numbers(column: "pa.Array", name: str, first: int) -> NDArray[np.float32]:
    import pyarrow as pa

    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise InvalidRequest.field(name, f"must be a column of numbers to be part of the vector, is {column.type}")
    if column.null_count:
        raise InvalidRequest.field(name, f"of row {first + _first_null(column)} is missing")
    return as_float32(column.to_numpy(zero_copy_only=False), name)


def _objects(column: "pa.Array", first: int) -> list[Mapping[str, Any] | None]:
    values = _values(column)
    return [
        None if value is None else _object(value, f"metadata of row {first + row}") for row, value in enumerate(values)
    ]


def _object(value: Any, field: str) -> Mapping[str, Any]:
    return an_object(from_json(value, field) if isinstance(value, str) else value, field)


def _values(column: "pa.Array") -> list[Any]:
    """The values as JSON has them; moments are texts, and maps are objects."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's have no nanoseconds
        try:
            column = column.cast(pa.timestamp("us", column.type.tz))
        except pa.ArrowInvalid:
            column = column.cast(pa.string())
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(held) for key, held in value.items()}
        case list() if value and all(isinstance(held, tuple) for held in value):
            return {key: _plain(held) for key, held in value}
        case list():
            return [_plain(held) for held in value]
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return value


def _first_null(column: "pa.Array") -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
