"""JSON values on their way out and in, by the rules of the nodes and with their words.

Encoders are more lenient than the interface: they make null of NaN and of infinity, and fractions of whole numbers
beyond 64 bits. What a node would refuse if it saw it must not become something else on the way to it. So everything
that is sent as JSON goes through `to_json`, and every JSON text that a person gives through `from_json`. No I/O.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np
import orjson

from veccluster.errors import InvalidRequest

T = TypeVar("T")

_JSON = orjson.OPT_SERIALIZE_NUMPY
_LONG_INTEGER = re.compile(rb"[0-9]{19}")
_NOT_FINITE = "must be a finite number; JSON has no NaN and no Infinity"
_TOO_LARGE = "must be a whole number of at most 64 bits, from -2^63 to 2^64-1; longer ones fit a string"


def to_json(value: Any, field: str) -> bytes:
    """JSON, with numpy arrays and numbers as such; raises InvalidRequest that names the place within `field`."""
    try:
        text = orjson.dumps(value, option=_JSON)
    except TypeError as error:
        check(value, field)
        raise InvalidRequest.field(field, f"must be something that JSON can hold: {error}") from error
    if b"null" in text:  # what NaN and infinity become
        check(value, field)
    return text


def from_json(text: str | bytes, field: str) -> Any:
    """What JSON text says, whole numbers of any length as such; raises InvalidRequest."""
    try:
        value = orjson.loads(text)
        raw = text.encode() if isinstance(text, str) else text
        return msgspec.json.decode(raw) if _LONG_INTEGER.search(raw) else value
    except orjson.JSONDecodeError as error:
        raise InvalidRequest.field(field, _unreadable(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest.field(field, "holds a number with too many digits") from error


def _unreadable(error: orjson.JSONDecodeError) -> str:
    if "infinity" in error.msg:
        return f"must hold numbers that a float can hold; that at column {error.colno} is too large"
    hint = "; JSON has no NaN and no Infinity" if re.search("NaN|Infinity", str(error.doc)) else ""
    return f"must be JSON: {error}{hint}"


def check(value: object, at: str) -> None:
    """Raise InvalidRequest for the first thing within `value` that JSON, or a node, cannot hold; `at` is its path."""
    try:
        _check(value, at)
    except RecursionError:
        raise InvalidRequest.field(at, "is nested too deep") from None


def _check(value: object, at: str) -> None:
    if isinstance(value, Mapping):
        for key, held in value.items():
            if not isinstance(key, str):
                _refuse(at, "must have strings as keys", key)
            _check_text(key, at)
            _check(held, f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for i, held in enumerate(value):
            _check(held, f"{at}[{i}]")
    elif isinstance(value, np.ndarray):
        _check_array(value, at)
    else:
        _check_single(value, at)


def _check_single(value: object, at: str) -> None:
    if isinstance(value, str):
        _check_text(value, at)
    elif isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise InvalidRequest.field(at, _NOT_FINITE)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise InvalidRequest.field(at, _TOO_LARGE)
    elif not _is_known(value):
        _refuse(at, "must be a string, a number, true, false, null, a list or an object", value)


def _check_array(array: np.ndarray[Any, Any], at: str) -> None:
    """Arrays of numbers and booleans become lists; no others do."""
    if array.dtype.kind not in "iufb":
        raise InvalidRequest.field(at, f"must be an array of numbers or booleans, is one of {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest.field(at, _NOT_FINITE)


def _check_text(text: str, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "must be text that UTF-8 can express; it holds half of a surrogate pair"
        raise InvalidRequest.field(at.encode(errors="replace").decode(), reason) from None


def _is_known(value: object) -> bool:
    try:
        orjson.dumps(value, option=_JSON)
    except TypeError:
        return False
    return True


def a_list(value: Iterable[T], field: str) -> list[T]:
    """The members of a list, or of anything like it. A text is none, although Python makes letters of it."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        _refuse(field, "must be a list", value)
    return list(value)


def an_object(value: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """The same value; InvalidRequest if it is none with keys."""
    if not isinstance(value, Mapping):
        _refuse(field, "must be an object", value)
    return value


def a_text(value: str, field: str) -> str:
    """The same value; InvalidRequest if it is no text, or none that can be sent."""
    if not isinstance(value, str):
        _refuse(field, "must be a string", value)
    _check_text(value, field)
    return value


def kind(value: object) -> str:
    """What a value is, in the words of the nodes."""
    from veccluster.model.validation import kind_of  # here, since it takes a while to load and few need it

    if isinstance(value, bytes | bytearray):
        return "bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return kind_of(value)


def _refuse(field: str, wanted: str, found: object) -> NoReturn:
    raise InvalidRequest.field(field, f"{wanted}, is {kind(found)}")
