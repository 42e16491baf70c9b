"""Vectors from whatever a person has them in: float32 arrays, or a refusal that says where they are none.

numpy makes numbers of texts, of truth values and of dates, and forgets masks and imaginary parts. None of that is a
vector, so what is not a number is looked for before numpy gets to see it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from veccluster.client.results import FloatArray
from veccluster.client.values import kind
from veccluster.errors import InvalidRequest

Place = tuple[int, ...]

_NUMBERS = (int, float, np.integer, np.floating)
_PLAIN = frozenset({int, float})
_UNREADABLE = (TypeError, ValueError, RuntimeError)


def one_vector(vector: ArrayLike, field: str = "vector") -> FloatArray:
    """float32 (d,); raises InvalidRequest."""
    array = as_float32(vector, field)
    if array.ndim != 1:
        hint = " (use search_many for several)" if array.ndim == 2 and field == "vector" else ""
        raise InvalidRequest.field(field, f"must have one axis{hint}, has shape {array.shape}")
    if not len(array):
        raise InvalidRequest.field(field, "must have at least one number")
    return array


def many_vectors(vectors: ArrayLike, field: str = "vectors", first: int = 0) -> FloatArray:
    """float32 (n, d), C-contiguous; raises InvalidRequest, which numbers the rows of an array from `first` on."""
    array = as_float32(vectors, field, first)
    if array.ndim != 2:
        raise InvalidRequest.field(field, f"must have shape (n, dimension), has shape {array.shape}")
    if len(array) and not array.shape[1]:
        raise InvalidRequest.field(field, "must have at least one number each")
    return array


def queries(vectors: ArrayLike, field: str = "vectors") -> FloatArray:
    """As `many_vectors`, of which there is one at least."""
    array = many_vectors(vectors, field)
    if not len(array):
        raise InvalidRequest.field(field, "must be at least one vector")
    return array


def as_float32(values: ArrayLike, field: str, first: int = 0) -> FloatArray:
    """The same numbers in the same shape as float32, C-contiguous; all of them are finite there."""
    numbers = _numbers(values, field, ())
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(numbers, dtype=np.float32, order="C")
    except OverflowError as error:
        raise InvalidRequest.field(field, f"must be finite float32 numbers: {error}") from error
    except _UNREADABLE as error:
        raise InvalidRequest.field(field, f"must be numbers, all rows of one length: {error}") from error
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = _at((place[0] + first, *place[1:]) if len(place) > 1 else place)
        raise InvalidRequest.field(field, f"must be finite float32 numbers, is {array[place]}{where}")
    return array


def _numbers(values: Any, field: str, at: Place) -> Any:
    """The same, as what numpy makes an array of without converting anything but numbers."""
    if isinstance(values, list | tuple):
        _check_list(values, field, at)
        return values
    if isinstance(values, str | bytes | bytearray):
        raise _refusal(field, kind(values), at)
    if isinstance(values, np.ma.MaskedArray):
        return _unmasked(values, field, at)
    try:
        array = np.asarray(values)
    except _UNREADABLE as error:
        raise InvalidRequest.field(field, f"must be numbers{_at(at)}: {error}") from error
    if array.dtype.kind == "O":
        return _numbers(_members(array, values, field, at), field, at)
    if array.dtype.kind not in "iuf":
        found = f"an array of {array.dtype}" if array.ndim else kind(values)
        raise _refusal(field, found, at)
    return array


def _members(array: np.ndarray[Any, Any], values: Any, field: str, at: Place) -> list[Any]:
    """What an array of objects holds; numpy also makes one of a single thing that is nothing to it."""
    if not array.ndim:
        raise _refusal(field, kind(values), at)
    return list(array)


def _unmasked(values: "np.ma.MaskedArray[Any, Any]", field: str, at: Place) -> Any:
    masked = np.argwhere(np.ma.getmaskarray(values))
    if len(masked):
        raise _refusal(field, "masked", (*at, *(int(i) for i in masked[0])))
    return _numbers(np.ma.getdata(values), field, at)


def _check_list(values: Sequence[Any], field: str, at: Place) -> None:
    """Refuse members that are no numbers, and rows of differing lengths."""
    if _PLAIN.issuperset(map(type, values)):
        return
    first: Place | None = None
    for i, value in enumerate(values):
        here = (*at, i)
        if isinstance(value, bool | None):
            raise _refusal(field, kind(value), here)
        shape = () if isinstance(value, _NUMBERS) else _shape(value, field, here)
        if first is None:
            first = shape
        elif shape != first:
            raise _uneven(field, at, i, shape, first)


def _shape(value: Any, field: str, at: Place) -> Place:
    """How many numbers a member of a list has, on each axis; it is checked."""
    numbers = _numbers(value, field, at)
    if not isinstance(numbers, list | tuple):
        shape: Place = numbers.shape
        return shape
    inner = () if not numbers or isinstance(numbers[0], _NUMBERS) else _shape(numbers[0], field, at)
    return (len(numbers), *inner)


def _uneven(field: str, at: Place, row: int, shape: Place, first: Place) -> InvalidRequest:
    if at or len(shape) > 1 or len(first) > 1:
        said = f"must be numbers, all rows of one shape; that{_at((*at, row))} is {shape}, the first is {first}"
    elif not shape or not first:
        said = f"must be numbers or rows of numbers, not both; row {row} is {'a row' if shape else 'a number'}"
    else:
        said = f"must all have the same length; row {row} has {shape[0]} numbers, row 0 has {first[0]}"
    return InvalidRequest.field(field, said)


def _refusal(field: str, found: str, at: Place) -> InvalidRequest:
    return InvalidRequest.field(field, f"must be numbers, is {found}{_at(at)}")


def _at(place: Place) -> str:
    """Where in an array: nothing for the whole of it."""
    if not place:
        return ""
    if len(place) == 1:
        return f" at position {place[0]}"
    return f" at row {place[0]}, position {', '.join(map(str, place[1:]))}"
