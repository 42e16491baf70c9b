"""The rules that every vector of an upsert or a search obeys, whatever form its body has; rows that become a batch.

- An id is 1 to 512 bytes of UTF-8. A vector has the collection's dimension, and its components are finite in float32;
  its length is at most 1e15 and, with cosine, at least 1e-15 (a zero vector has no direction).
- Metadata is a JSON object with integers of at most 64 bits. It is kept as it was sent, but for white space and the
  spelling of escapes and fractions: a batch holds it as orjson prints it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from veccluster.decisions.filters import INT_MAX, INT_MIN
from veccluster.errors import InvalidRequest
from veccluster.model.api import id_problem
from veccluster.model.limits import MAX_ERRORS, Limits
from veccluster.model.state import Collection, Metric
from veccluster.model.validation import did_you_mean, kind_of
from veccluster_node.engine.distance import MAX_LENGTH, MIN_LENGTH, lengths
from veccluster_node.http.density import has_more_values
from veccluster_node.service.shard_service import UpsertBatch

F32: TypeAlias = npt.NDArray[np.float32]
Numbers: TypeAlias = Sequence[float] | F32


# ---- one vector, one metadata object ---------------------------------------------------------------------------------


class Mistake(Exception):
    """One thing that is wrong: with `field`, as `reason` says."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


MANY: Final = 1_000_000
"""JSON values that nothing here has, and that are not decoded only to say so."""

_NUMERIC: Final = b"0123456789+-.eE, \t\r\n"
_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")


def read_numbers(raw: bytes, dimension: int, name: str) -> list[float]:
    """The `dimension` numbers of a JSON list; they may still be too large for float32."""
    if raw.count(b",") > MANY:
        raise Mistake(name, f"must have {dimension} numbers, the collection's dimension; has more")
    try:
        values = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Mistake(name, _unreadable(error)) from None
    if not isinstance(values, list):
        raise Mistake(name, f"must be a list of numbers, is {kind_of(values)}")
    if raw.strip()[1:-1].translate(None, _NUMERIC):  # something else than numbers, which numpy would convert
        for i, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Mistake(f"{name}[{i}]", f"must be a number, is {kind_of(value)}")
    if len(values) != dimension:
        raise Mistake(name, f"must have {dimension} numbers, the collection's dimension; has {len(values)}")
    return values


def read_metadata(raw: bytes, limits: Limits) -> bytes:
    """A metadata object as orjson prints it."""
    if len(raw) > limits.max_metadata_size and has_more_values(raw, limits.max_metadata_size):
        raise Mistake("metadata", f"must be at most {limits.max_metadata_size} bytes of JSON, is more")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Mistake("metadata", _unreadable(error)) from None
    if value is None:
        return b"{}"
    if not isinstance(value, dict):
        raise Mistake("metadata", f"must be an object, is {kind_of(value)}")
    if raw.count(b"{") + raw.count(b"[") > limits.max_metadata_depth and _is_deeper(value, limits.max_metadata_depth):
        raise Mistake("metadata", f"is nested too deep; it may have {limits.max_metadata_depth} levels")
    if _LONG_INTEGER.search(raw):  # orjson makes fractions of integers beyond 64 bits
        _check_integers(_with_long_integers(raw), "metadata")
    text = orjson.dumps(value)
    if len(text) > limits.max_metadata_size:
        raise Mistake("metadata", f"must be at most {limits.max_metadata_size} bytes of JSON, is {len(text)}")
    return text


def _unreadable(error: orjson.JSONDecodeError) -> str:
    if "infinity" in error.msg:
        return f"must hold numbers that a float can hold; that at column {error.colno} is too large"
    return f"is not JSON: {error}"


def _is_deeper(value: object, levels: int) -> bool:
    """Whether more than `levels` objects and lists are inside each other."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(held, levels - 1) for held in inner)


def _with_long_integers(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError):
        raise Mistake("metadata", "holds a number with too many digits") from None


def _check_integers(value: object, at: str) -> None:
    if isinstance(value, dict):
        for key, held in value.items():
            _check_integers(held, f"{at}.{key}")
    elif isinstance(value, list):
        for i, held in enumerate(value):
            _check_integers(held, f"{at}[{i}]")
    elif isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        raise Mistake(at, "must be a whole number of at most 64 bits, from -2^63 to 2^64-1; longer ones fit a string")


def unusable(vectors: F32, metric: Metric, name: str = "vector") -> Iterator[tuple[int, Mistake]]:
    """The rows of (n, d) that cannot be stored or asked for, with what is wrong with each."""
    size = lengths(vectors)
    usable = size <= MAX_LENGTH
    if metric is Metric.cosine:
        usable &= size >= MIN_LENGTH
    for row in np.flatnonzero(~usable):
        yield int(row), _why_not(vectors[row], float(size[row]), name)


def _why_not(vector: F32, size: float, name: str) -> Mistake:
    infinite = np.flatnonzero(~np.isfinite(vector))
    if infinite.size:
        at = int(infinite[0])
        return Mistake(f"{name}[{at}]", f"must be a finite number that float32 can hold, is {vector[at]}")
    if size > MAX_LENGTH:
        return Mistake(name, f"must not be longer than {MAX_LENGTH:g}, is {size:g}")
    if not vector.any():
        return Mistake(name, "must not be zero: with cosine it has no direction")
    return Mistake(name, f"must not be shorter than {MIN_LENGTH:g} with cosine, is {size:g}")


# ---- a batch in the making -------------------------------------------------------------------------------------------


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """One vector object with what is heavy left as JSON text."""

    id: str
    vector: msgspec.Raw
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


ITEM: Final = msgspec.json.Decoder(Item)


@dataclass(slots=True)
class Errors:
    """What is wrong with the vectors of a body: the first hundred, and how many more."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0

    def add(self, index: int, id_: object, mistake: Mistake) -> None:
        """One more; `index` counts from the start of the body."""
        self.count += 1
        if len(self.listed) < MAX_ERRORS:
            known = id_ if isinstance(id_, str) and id_problem(id_) is None else None
            self.listed.append({"index": index, "id": known, "field": mistake.field, "reason": mistake.reason})

    def check(self) -> None:
        """Raise `InvalidRequest` if there are any."""
        if not self.count:
            return
        self.listed.sort(key=lambda e: e["index"])
        first = self.listed[0]
        more = {"more_errors": self.count - len(self.listed)} if self.count > len(self.listed) else {}
        part = f": {first['field']}" if first["field"] else ""
        said = f"vector {first['index']}{part} {first['reason']}"
        rest = f" (and {self.count - 1} more)" if self.count > 1 else ""
        raise InvalidRequest(said + rest, self.listed, **more)


class Making:
    """Rows on their way to a batch: good ones as arrays, bad ones as errors."""

    def __init__(self, collection: Collection, limits: Limits, rows: int, first: int = 0) -> None:
        """Room for `rows`, of which the first has number `first` in the whole body."""
        self.collection = collection
        self.limits = limits
        self.first = first
        self.errors = Errors()
        self.ids: dict[str, int] = {}
        """Number in the body by id."""
        self.size = 0
        """Bytes of vectors and metadata."""
        self._metadata: list[bytes] = []
        self._vectors = np.zeros((rows, collection.dimension), np.float32)

    def add_json(self, number: int, raw: bytes | msgspec.Raw) -> None:
        """Add row `number` of the body from the JSON of a vector object."""
        try:
            item = ITEM.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            for id_, mistake in self._mistakes(bytes(raw)):
                self.errors.add(number, id_, mistake)
        else:
            self.add_item(number, item)

    def add_item(self, number: int, item: Item) -> None:
        """Add a row whose members are all there."""
        raw = bytes(item.vector)
        self.add_row(
            number, item.id, lambda: read_numbers(raw, self.collection.dimension, "vector"), bytes(item.metadata)
        )

    def add_row(self, number: int, id_: str | None, vector: Callable[[], Numbers], metadata: bytes | None) -> None:
        """Add a row. `vector` gives its numbers or raises `Mistake`; None for metadata is an empty object."""
        try:
            known, numbers, text = self._new_id(id_), vector(), self._text(metadata)
        except Mistake:
            for part in (lambda: self._new_id(id_), vector, lambda: self._text(metadata)):
                self._note(number, id_, part)
            return
        with np.errstate(over="ignore"):
            self._vectors[len(self.ids)] = numbers
        self.ids[known] = number
        self._metadata.append(text)
        self.size += len(text) + self._vectors.itemsize * self.collection.dimension

    def _note(self, number: int, id_: str | None, part: Callable[[], object]) -> None:
        try:
            part()
        except Mistake as mistake:
            self.errors.add(number, id_, mistake)

    def _text(self, metadata: bytes | None) -> bytes:
        return b"{}" if metadata is None else read_metadata(metadata, self.limits)

    def _new_id(self, id_: str | None) -> str:
        if problem := id_problem(id_):
            raise Mistake("id", problem)
        assert id_ is not None
        if id_ in self.ids:
            raise Mistake("id", f"must be distinct within a batch; vector {self.ids[id_]} has the same")
        return id_

    def finish(self) -> UpsertBatch:
        """The batch; `InvalidRequest` if anything is wrong with any of its rows."""
        ids, vectors = list(self.ids), self._vectors[: len(self.ids)]
        for row, mistake in unusable(vectors, self.collection.metric):
            self.errors.add(self.ids[ids[row]], ids[row], mistake)
        self.errors.check()
        return UpsertBatch(ids, vectors, self._metadata)

    def _mistakes(self, raw: bytes) -> Iterator[tuple[object, Mistake]]:
        """What is wrong with JSON text that is not a vector object, each with the id that is there."""
        if has_more_values(raw, MANY):
            yield None, Mistake("", "must be an object with id, vector and metadata, and nothing else")
            return
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            yield None, Mistake("", f"is not JSON: {error}")
            return
        if not isinstance(value, dict):
            yield None, Mistake("", f"must be an object with id, vector and metadata; is {kind_of(value)}")
            return
        id_ = value.get("id")
        for name in islice(value.keys() - set(Item.__struct_fields__), MAX_ERRORS):
            hint = did_you_mean(name, Item.__struct_fields__) or "; other members belong into metadata"
            yield id_, Mistake(name, "is not a known field" + hint)
        if "id" in value and (problem := id_problem(id_)):
            yield id_, Mistake("id", problem)
        for name in {"id", "vector"} - value.keys():
            yield id_, Mistake(name, "must be given")
        try:
            if "vector" in value:
                read_numbers(orjson.dumps(value["vector"]), self.collection.dimension, "vector")
            read_metadata(orjson.dumps(value.get("metadata")), self.limits)
        except Mistake as mistake:
            yield id_, mistake
