"""The filter language: what a filter means, and the SQL over `records(seq, id, metadata)` that means the same.

    {"pos": "n"}                                     equality
    {"pointers": {"$gte": 3, "$lt": 10}}             $eq $ne $gt $gte $lt $lte $in $nin $exists
    {"words": {"$contains": "dog"}}                  member of a list, or substring of a text
    {"$and": [..]}, {"$or": [..]}, {"$not": {..}}    logic; several keys of one object, and several operators, mean and
    {"$id": {"$in": [..]}}                           the id: all operators but $exists and $contains

Semantics, of which `matches` is the reference:

- A field is a path: `a.b` is the member `b` of the object `a`. The path is split at every dot, so a key that holds a
  dot itself cannot be reached, nor can a key at the top that begins with `$`. Paths do not reach into lists.
- Values in filters are texts, numbers, true, false and null. Types never coerce: "3" is not 3, true is not 1, and null
  equals only a null that is there.
- Numbers compare by value, whole or not, and exactly: 3 equals 3.0, and 2^53 + 1 is greater than 2.0^53.
- `$gt`, `$gte`, `$lt`, `$lte` compare numbers with numbers and texts with texts, the latter by code points. A field of
  another type does not match.
- `$contains` matches a list that has an equal member, and a text that has the given text as a substring.
- A missing field matches only `{"$exists": false}`, `$ne`, `$nin`, and what `$not` makes of the others: `$ne` and
  `$nin` are exactly the negations of `$eq` and `$in`.
- `{}` as a whole matches everything; empty objects inside, `{"$and": []}` and `{"a": {}}`, are refused as mistakes.
  `{"$in": []}` matches nothing.

The SQL is exact as well, although SQLite's own conversion of JSON is not: it may be an ulp off for a fraction, turns
integers from 2^63 into fractions, and ends a text at U+0000. So a comparison in SQL only decides what lies clear of
such cases, and `FUNCTIONS` decide the rest from the JSON text; they must be registered on every connection.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeAlias

import orjson

from veccluster.errors import InvalidRequest
from veccluster.model.limits import DEFAULTS, Limits
from veccluster.model.validation import MAX_NAME, kind_of

Scalar: TypeAlias = str | int | float | bool | None

INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
"""Whole numbers that JSON bodies may hold."""
SQL_INT_MAX = (1 << 63) - 1


class Operator(StrEnum):
    """What a condition asks of one field; `$ne` and `$nin` are parsed as negations."""

    eq = "$eq"
    gt = "$gt"
    gte = "$gte"
    lt = "$lt"
    lte = "$lte"
    in_ = "$in"
    exists = "$exists"
    contains = "$contains"


ID: Final = ("$id",)
"""The path that stands for the id. No field has it, since a field's first key never begins with `$`."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one field. `value` is a tuple for `$in` and a scalar otherwise."""

    path: tuple[str, ...]
    operator: Operator
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All of the clauses; none at all is true."""

    clauses: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the clauses."""

    clauses: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Exactly what the clause does not match."""

    clause: "Filter"


Filter: TypeAlias = And | Or | Not | Condition
EVERYTHING: Final = And(())


@dataclass(frozen=True, slots=True)
class Sql:
    """A WHERE clause with `?` for its parameters, in order. It may be NULL instead of false."""

    where: str
    params: tuple[Any, ...]


# ---- parsing ---------------------------------------------------------------------------------------------------------

LOGIC = ("$and", "$or", "$not")
NEGATED = MappingProxyType({"$ne": Operator.eq, "$nin": Operator.in_})
OPERATORS = (*Operator, *NEGATED)
ID_OPERATORS = tuple(o for o in OPERATORS if o not in {Operator.exists, Operator.contains})
ORDER = frozenset({Operator.gt, Operator.gte, Operator.lt, Operator.lte})


def parse(value: object, limits: Limits = DEFAULTS, *, field: str = "filter") -> Filter:
    """The filter that a JSON value (as `orjson.loads` or `msgspec` gives it) stands for.

    Raises InvalidRequest that names the place, as in `filter.$and[1].pointers.$gte`; `field` is the name of the root.
    """
    return _Parser(limits).whole(value, field, depth=1, root=True)


@dataclass(frozen=True, slots=True)
class Where:
    """A filter as somebody gave it, and what it means: parsed once in a process, however many shards are asked."""

    given: object
    """A JSON value."""
    filter: Filter

    @classmethod
    def of(cls, value: object, limits: Limits = DEFAULTS) -> "Where":
        """As `parse`."""
        return cls(value, parse(value, limits))

    @property
    def text(self) -> bytes:
        """As JSON, for another process."""
        return orjson.dumps(self.given)


class _Parser:
    """Recursive descent that counts clauses as it goes; depth is bounded before it recurses."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.clauses = 0

    def whole(self, value: object, at: str, depth: int, *, root: bool = False) -> Filter:
        """An object of fields and logical operators."""
        if not isinstance(value, dict):
            _refuse(at, "must be an object", value)
        if not value and not root:
            _refuse(at, "must not be empty")
        if depth > self.limits.max_filter_depth:
            _refuse(at, f"is nested too deep; a filter may have {self.limits.max_filter_depth} levels")
        return _all([self.key(str(key), held, f"{at}.{key}", depth) for key, held in value.items()])

    def key(self, key: str, value: object, at: str, depth: int) -> Filter:
        """One key of an object: logic, the id, or a field."""
        if key == "$not":
            self.count(at)
            return Not(self.whole(value, at, depth + 1))
        if key in LOGIC:
            return self.logic(key, value, at, depth)
        if key == "$id":
            return self.field(ID, value, at)
        if key.startswith("$"):
            _unknown(at, key, (*LOGIC, "$id"), OPERATORS)
        return self.field(_path(key, at), value, at)

    def logic(self, key: str, value: object, at: str, depth: int) -> Filter:
        """`$and` and `$or` with their list."""
        self.count(at)
        if not isinstance(value, list):
            _refuse(at, "must be a list of filters", value)
        if not value:
            _refuse(at, "must hold at least one filter, is empty")
        clauses = tuple(self.whole(clause, f"{at}[{i}]", depth + 1) for i, clause in enumerate(value))
        return And(clauses) if key == "$and" else Or(clauses)

    def field(self, path: tuple[str, ...], value: object, at: str) -> Filter:
        """What is asked of a field: a scalar it must equal, or an object of operators."""
        if not isinstance(value, dict):
            return self.condition(path, Operator.eq, value, at)
        if not value:
            _refuse(at, "must hold at least one operator, such as $eq")
        return _all([self.operator(path, str(key), operand, f"{at}.{key}") for key, operand in value.items()])

    def operator(self, path: tuple[str, ...], key: str, operand: object, at: str) -> Filter:
        """One operator of a field."""
        allowed = ID_OPERATORS if path == ID else OPERATORS
        if key not in allowed:
            _unknown(at, key, allowed, LOGIC)
        if key in NEGATED:
            return Not(self.condition(path, NEGATED[key], operand, at))
        return self.condition(path, Operator(key), operand, at)

    def condition(self, path: tuple[str, ...], operator: Operator, operand: object, at: str) -> Condition:
        """One condition, its operand checked."""
        self.count(at)
        if operator is Operator.in_:
            return Condition(path, operator, self.values(path, operand, at))
        if operator is Operator.exists:
            if not isinstance(operand, bool):
                _refuse(at, "must be true or false", operand)
            return Condition(path, operator, operand)
        if path == ID:
            return Condition(path, operator, _text(operand, at))
        if operator in ORDER and (isinstance(operand, bool) or not isinstance(operand, str | int | float)):
            _refuse(at, "must be a number or a string", operand)
        return Condition(path, operator, _scalar(operand, at))

    def values(self, path: tuple[str, ...], operand: object, at: str) -> tuple[Scalar, ...]:
        """The list of `$in`, without repetitions of the same text."""
        if not isinstance(operand, list):
            _refuse(at, "must be a list of values", operand)
        if len(operand) > self.limits.max_filter_values:
            _refuse(at, f"must hold at most {self.limits.max_filter_values} values, holds {len(operand)}")
        check = _text if path == ID else _scalar
        return tuple(check(member, f"{at}[{i}]") for i, member in enumerate(operand))

    def count(self, at: str) -> None:
        self.clauses += 1
        if self.clauses > self.limits.max_filter_clauses:
            _refuse(at, f"is one condition too many; a filter may have {self.limits.max_filter_clauses}")


def _all(clauses: list[Filter]) -> Filter:
    return clauses[0] if len(clauses) == 1 else And(tuple(clauses))


def _path(key: str, at: str) -> tuple[str, ...]:
    _text(key, at)
    return tuple(key.split("."))


def _text(value: object, at: str) -> str:
    if not isinstance(value, str):
        _refuse(at, "must be a string", value)
    if not _is_unicode(value):
        _refuse(at, "must be text that UTF-8 can express; it holds half of a surrogate pair")
    return value


def _scalar(value: object, at: str) -> Scalar:
    """A value that a field may equal; what JSON cannot carry (NaN, integers beyond 64 bits) is refused."""
    if isinstance(value, str):
        return _text(value, at)
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        _refuse(at, "must be a whole number of at most 64 bits, from -2^63 to 2^64-1")
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        _refuse(at, "must be a finite number")
    if value is not None and not isinstance(value, int | float):
        _refuse(at, "must be a string, a number, true, false or null; $contains looks into lists", value)
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(at: str, reason: str, found: object = ...) -> NoReturn:
    raise InvalidRequest.field(at, reason if found is ... else f"{reason}, is {kind_of(found)}")


def _unknown(at: str, key: str, allowed: tuple[str, ...], elsewhere: tuple[str, ...]) -> NoReturn:
    """Refuse a name that is no operator here, and say which one was probably meant."""
    if key in elsewhere or key in (*OPERATORS, *LOGIC, "$id"):
        _refuse(at, f"cannot stand here; here can stand a field or {', '.join(allowed)}")
    close = [] if len(key) > MAX_NAME else difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(allowed)}"
    if not key.startswith("$") and not close:
        hint += '; "a.b" reaches into an object'
    _refuse(at, f"is not an operator; {hint}")


# ---- the reference ---------------------------------------------------------------------------------------------------

_MISSING: Final = object()


def matches(filter_: Filter, id_: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a record is matched; the definition that the SQL is tested against."""
    match filter_:
        case And(clauses):
            return all(matches(clause, id_, metadata) for clause in clauses)
        case Or(clauses):
            return any(matches(clause, id_, metadata) for clause in clauses)
        case Not(clause):
            return not matches(clause, id_, metadata)
        case Condition(path, operator, operand):
            found = id_ if path == ID else _reach(metadata, path)
            return _holds(operator, found, operand)


def _reach(value: Any, path: tuple[str, ...]) -> Any:
    """The value at the path, or `_MISSING`."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _holds(operator: Operator, found: Any, operand: Any) -> bool:
    if operator is Operator.exists:
        return (found is not _MISSING) is operand
    if found is _MISSING:
        return False
    if operator is Operator.contains:
        return _contains(found, operand)
    if operator is Operator.in_:
        return any(_equal(found, member) for member in operand)
    if operator is Operator.eq:
        return _equal(found, operand)
    order = _order(found, operand)
    return order is not None and _ORDERED[operator](order)


_ORDERED: Final[Mapping[Operator, Callable[[int], bool]]] = MappingProxyType(
    {
        Operator.gt: lambda order: order > 0,
        Operator.gte: lambda order: order >= 0,
        Operator.lt: lambda order: order < 0,
        Operator.lte: lambda order: order <= 0,
    }
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(found: Any, operand: Scalar) -> bool:
    if _is_number(found) and _is_number(operand):
        return bool(found == operand)  # Python compares int with float exactly
    return type(found) is type(operand) and bool(found == operand)


def _order(found: Any, operand: Any) -> int | None:
    """-1, 0 or 1; None where there is no order. Python orders str by code points."""
    if (_is_number(found) and _is_number(operand)) or (isinstance(found, str) and isinstance(operand, str)):
        return int(found > operand) - int(found < operand)
    return None


def _contains(found: Any, operand: Scalar) -> bool:
    if isinstance(found, list):
        return any(_equal(member, operand) for member in found)
    return isinstance(found, str) and isinstance(operand, str) and operand in found


# ---- SQL -------------------------------------------------------------------------------------------------------------


def to_sql(filter_: Filter) -> Sql:
    """The WHERE clause over `records(seq, id, metadata)` that is true for exactly what `matches` matches.

    `metadata` is JSON text as orjson prints it, of values with integers of at most 64 bits. The size of the SQL grows
    with the conditions, not with the values of `$in`.
    """
    parts = list(_sql(filter_))
    return Sql("".join(text for text, _ in parts), tuple(p for _, params in parts for p in params))


_Part: TypeAlias = tuple[str, tuple[Any, ...]]


def _sql(filter_: Filter) -> Iterator[_Part]:
    match filter_:
        case And(clauses):
            yield from _joined(clauses, " AND ", "1")
        case Or(clauses):
            yield from _joined(clauses, " OR ", "0")
        case Not(clause):
            yield "(", ()
            yield from _sql(clause)
            yield ") IS NOT TRUE", ()  # NULL counts as false, so its negation as true
        case Condition(path, operator, operand):
            yield "(", ()
            yield _id_sql(operator, operand) if path == ID else _Field(path).sql(operator, operand)
            yield ")", ()


def _joined(clauses: tuple[Filter, ...], word: str, empty: str) -> Iterator[_Part]:
    """The clauses in parentheses, halved again and again: a flat chain would be as deep as it is long to SQLite."""
    if len(clauses) <= 1:
        yield empty if not clauses else "", ()
        for clause in clauses:
            yield from _sql(clause)
        return
    half = len(clauses) // 2
    yield "(", ()
    yield from _joined(clauses[:half], word, empty)
    yield word, ()
    yield from _joined(clauses[half:], word, empty)
    yield ")", ()


_MEMBERS: Final = "(SELECT value FROM json_each(?))"
_COMPARATORS: Final = MappingProxyType({"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="})


def _id_sql(operator: Operator, operand: Any) -> _Part:
    """Ids are plain text, which SQLite compares byte by byte; only its JSON would cut one at U+0000."""
    if operator is not Operator.in_:
        return f"id {_COMPARATORS[operator]} ?", (operand,)
    if any("\0" in member for member in operand):
        return f"hex(id) IN {_MEMBERS}", (_json([m.encode().hex().upper() for m in operand]),)
    return f"id IN {_MEMBERS}", (_json(operand),)


_BOOLEANS: Final = "('true', 'false')"
_ESCAPED: Final = frozenset(map(chr, (*range(0x20), 0x22, 0x5C, 0x7F)))
"""Characters that a JSON writer escapes, or may."""


def _is_plain(text: str) -> bool:
    """Whether the JSON text of `text` is the text in quotation marks, whoever writes it."""
    return _ESCAPED.isdisjoint(text)


class _Field:
    """The SQL of one field.

    `raw` is its JSON text, NULL when it is missing; `value` what SQLite makes of it (lists and objects are text, true
    is 1, null is NULL), right but for the cases in the module's docstring. `index_expressions` indexes the type and
    value of `value`, so every condition that can narrow those two says so first.
    """

    def __init__(self, path: tuple[str, ...]) -> None:
        self.indexable = all(key and _is_plain(key) for key in path)
        if self.indexable:
            steps = _quoted("$" + "".join(f'."{key}"' for key in path))
            self.raw, self.value = f"metadata -> {steps}", f"json_extract(metadata, {steps})"
        else:
            self.raw = f"vc_raw(metadata, {_quoted(_json(path))})"
            self.value = f"json_extract({self.raw}, '$')"

    def sql(self, operator: Operator, operand: Any) -> _Part:
        """One condition; may be NULL for false."""
        if operator is Operator.exists:
            return f"({self.raw}) IS {'NOT ' if operand else ''}NULL", ()
        if operator is Operator.contains:
            return self._contains(operand)
        if operator is Operator.in_:
            return self._one_of(operand)
        if operator is Operator.eq:
            return self._one_of((operand,))
        if isinstance(operand, str):
            return self._text_order(operator, operand)
        return self._number_order(operator, operand)

    # Equality: each type of value on its own, joined by OR.

    def _one_of(self, operands: tuple[Scalar, ...]) -> _Part:
        texts = [o for o in operands if isinstance(o, str)]
        numbers = [o for o in operands if isinstance(o, int | float) and not isinstance(o, bool)]
        parts: list[_Part] = []
        if texts:
            parts.append(self._one_of_texts(texts))
        if whole := [n for o in numbers if (n := _whole(o)) is not None]:
            among, params = _among(self._typed("integer"), whole)
            parts.append((f"{among} AND {self.raw} NOT IN {_BOOLEANS}", params))
        if numbers:
            parts.append(self._one_of_fractions(numbers))
        parts += [
            (f"{self._typed('integer')} = {int(b)} AND {self.raw} = '{str(b).lower()}'", ())
            for b in (True, False)
            if any(o is b for o in operands)
        ]
        if None in operands:
            parts.append((f"typeof({self.value}) = 'null' AND {self.raw} = 'null'", ()))
        return " OR ".join(text for text, _ in parts) or "0", tuple(p for _, params in parts for p in params)

    def _one_of_texts(self, texts: list[str]) -> _Part:
        narrow, params = _among(self._typed("text"), texts)
        exact, more = _among(self._canonical(texts), [_json(t) for t in texts])
        return f"{narrow} AND {exact}", params + more

    def _one_of_fractions(self, numbers: list[float]) -> _Part:
        low, high = _around(min(numbers))[0], _around(max(numbers))[1]
        exact, params = _among(f"vc_canonical({self.raw})", [_canonical_number(n) for n in numbers])
        return f"{self._typed('real')} >= ? AND {self.value} <= ? AND {exact}", (low, high, *params)

    def _canonical(self, texts: list[str]) -> str:
        return self.raw if all(map(_is_plain, texts)) else f"vc_canonical({self.raw})"

    def _typed(self, type_: str) -> str:
        """The value, to be compared, where SQLite's type of it is `type_`."""
        return f"typeof({self.value}) = '{type_}' AND {self.value}"

    # Order.

    def _text_order(self, operator: Operator, operand: str) -> _Part:
        """A stored text that SQLite cut at U+0000 is longer than it looks, which matters only where it looks equal."""
        is_text = f"substr({self.raw}, 1, 1) = '\"'"
        if "\0" in operand:
            compare = f"vc_compare({self.raw}, ?) {_COMPARATORS[operator]} 0"
            return f"typeof({self.value}) = 'text' AND {is_text} AND {compare}", (_json(operand),)
        equal, encoded = self._canonical([operand]), _json(operand)
        if operator is Operator.gt:
            return f"{self._typed('text')} >= ? AND {is_text} AND {equal} <> ?", (operand, encoded)
        if operator is Operator.lte:
            both = f"{self._typed('text')} <= ? AND {is_text} AND ({self.value} < ? OR {equal} = ?)"
            return both, (operand, operand, encoded)
        return f"{self._typed('text')} {_COMPARATORS[operator]} ? AND {is_text}", (operand,)

    def _number_order(self, operator: Operator, operand: float) -> _Part:
        """Whole numbers of 63 bits compare exactly in SQL; of the others, those near the operand are looked at."""
        low, high = _around(operand)
        sign, bound = _COMPARATORS[operator], operand if operand <= SQL_INT_MAX else float(operand)
        whole = f"{self._typed('integer')} {sign} ? AND {self.raw} NOT IN {_BOOLEANS}"
        near, clear = (low, high) if operator in {Operator.gt, Operator.gte} else (high, low)
        towards = sign[0]
        decided = f"({self.value} {towards} ? OR vc_compare({self.raw}, ?) {sign} 0)"
        fraction = f"{self._typed('real')} {towards}= ? AND {decided}"
        return f"{whole} OR {fraction}", (bound, near, clear, _json(operand))

    # Membership.

    def _contains(self, operand: Scalar) -> _Part:
        encoded = _json(operand)
        in_list, params = f"substr({self.raw}, 1, 1) = '[' AND vc_contains({self.raw}, ?)", [encoded]
        if isinstance(operand, str) and _is_plain(operand):
            in_list, params = f"instr({self.raw}, ?) > 0 AND {in_list}", [encoded, encoded]
        if not isinstance(operand, str):
            return in_list, tuple(params)
        cut = f"instr({self.raw}, '\\u0000') > 0 AND vc_contains({self.raw}, ?)"
        shown = "0" if "\0" in operand else f"instr({self.value}, ?) > 0"
        in_text = f"substr({self.raw}, 1, 1) = '\"' AND ({shown} OR {cut})"
        return f"{in_list} OR {in_text}", (*params, *([] if "\0" in operand else [operand]), encoded)


def index_expressions(field: str) -> list[str]:
    """What to index for a `filterable` field: expressions over `records`, each for one index.

    Equality, `$in` and comparisons then use it. Empty for a field with an odd key (empty, or with quotation marks,
    backslashes or control characters), whose value only a function of ours can find.
    """
    at = _Field(tuple(field.split(".")))
    return [f"typeof({at.value}), {at.value}"] if at.indexable else []


def _among(expression: str, values: list[Any]) -> _Part:
    """`expression` is one of the values. One parameter however many there are."""
    if len(values) == 1 and not (isinstance(values[0], str) and "\0" in values[0]):
        return f"{expression} = ?", (values[0],)
    return f"{expression} IN {_MEMBERS}", (_json(values),)


def _whole(number: float) -> int | None:
    """The number as SQLite's INTEGER, where it is one."""
    return int(number) if number == int(number) and INT_MIN <= number <= SQL_INT_MAX else None


def _around(number: float) -> tuple[float, float]:
    """An interval outside of which SQLite's conversion from JSON cannot be wrong about the order."""
    near = float(number)
    margin = abs(near) * 1e-9 + 1e-300
    return near - margin, near + margin


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _canonical_number(number: float) -> str:
    """One text for each number: the same for 3 and 3.0, 0 and -0.0."""
    if isinstance(number, float) and number.is_integer() and INT_MIN <= number <= INT_MAX:
        number = int(number)
    return _json(number)


# ---- functions that SQL calls ----------------------------------------------------------------------------------------


def _vc_raw(metadata: str, path: str) -> str | None:
    """The JSON text at a path that SQLite cannot express."""
    found = _reach(orjson.loads(metadata), tuple(orjson.loads(path)))
    return None if found is _MISSING else _json(found)


def _vc_canonical(raw: str | None) -> str | None:
    """JSON text of a scalar as this version writes it, whichever version stored it."""
    if raw is None:
        return None
    value = orjson.loads(raw)
    return _canonical_number(value) if _is_number(value) else _json(value)


def _vc_compare(raw: str | None, operand: str) -> int | None:
    """-1, 0 or 1 as the stored value is less than, equal to or greater than the operand; None if there is no order."""
    return None if raw is None else _order(orjson.loads(raw), orjson.loads(operand))


def _vc_contains(raw: str | None, operand: str) -> bool:
    return raw is not None and _contains(orjson.loads(raw), orjson.loads(operand))


FUNCTIONS: Final[Mapping[str, tuple[Callable[..., Any], int]]] = MappingProxyType(
    {
        "vc_raw": (_vc_raw, 2),
        "vc_canonical": (_vc_canonical, 1),
        "vc_compare": (_vc_compare, 2),
        "vc_contains": (_vc_contains, 2),
    }
)
"""SQL functions, with their number of arguments, to register as deterministic on each connection."""
