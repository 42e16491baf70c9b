"""What pydantic finds wrong, in the words of a person who wrote JSON or YAML: `[{field, reason}]`.

Fields are paths as they were written (`spec.tolerations[0].key`); reasons say what would be right. Rules across fields
raise `broken_rules`, which names several fields at once.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypedDict, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

Location = Sequence[int | str]

MAX_NAME = 200
"""Characters of a name from which on it is not looked at for what may have been meant."""


class FieldError(TypedDict):
    """One thing that is wrong: where, and what would be right."""

    field: str
    reason: str


def broken_rules(errors: Iterable[FieldError]) -> PydanticCustomError:
    """The error that a validator raises for rules across fields; the fields are relative to its own value."""
    return PydanticCustomError("broken_rules", "breaks rules across fields", {"errors": list(errors)})


def field_errors(
    error: ValidationError, model: type[BaseModel], within: str = "", most: int | None = None
) -> list[FieldError]:
    """Everything in `error`, raised for `model`, or the first `most`; `within` is the path of the model itself."""
    all_details = error.errors(include_url=False)
    places = {d["loc"] for d in all_details}
    found = (f for d in all_details if not _only_a_consequence(d, places) for f in _explain(d, model, within))
    return list(islice(found, most))


def _only_a_consequence(details: ErrorDetails, places: set[tuple[int | str, ...]]) -> bool:
    """Pydantic does not count items that are wrong, and then finds their list too short."""
    loc = details["loc"]
    return details["type"] == "too_short" and any(p[: len(loc)] == loc and len(p) > len(loc) for p in places)


def _explain(details: ErrorDetails, model: type[BaseModel], within: str) -> Iterator[FieldError]:
    loc = details["loc"]
    if details["type"] == "broken_rules":
        for inner in details["ctx"]["errors"]:
            yield {"field": path((*loc, inner["field"]), within), "reason": inner["reason"]}
    elif details["type"] == "extra_forbidden":
        yield {"field": path(loc, within), "reason": "is not a known field" + _hint(str(loc[-1]), model, loc[:-1])}
    else:
        yield {"field": path(loc, within), "reason": _reason(details)}


def path(loc: Location, within: str = "") -> str:
    """A location as one writes it: `("a", 0, "b")` within `x` is `x.a[0].b`."""
    written = within
    for part in loc:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            written += f".{part}" if written and part else part
    return written


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean "minNodes"?` when one of `known` is much like `given`, else nothing."""
    if len(given) > MAX_NAME:
        return ""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(given.lower().replace("_", "").replace("-", ""), by_lower, n=1, cutoff=0.7)
    return f'; did you mean "{by_lower[close[0]]}"?' if close else ""


def kind_of(value: object) -> str:
    """What JSON calls `value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        ((int, float), "a number"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    ]
    return next((name for types, name in kinds if isinstance(value, types)), f"a {type(value).__name__}")


def shown(value: object) -> str:
    """A value, short enough for a message; of lists and objects only what they are."""
    if isinstance(value, list | tuple | Mapping):
        return kind_of(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(given: str, model: type[BaseModel], loc: Location) -> str:
    owner = _model_at(model, loc)
    return did_you_mean(given, (f.alias or name for name, f in owner.model_fields.items())) if owner else ""


def _model_at(model: type[BaseModel], loc: Location) -> type[BaseModel] | None:
    """The model at a location inside `model`, if the types lead there."""
    for part in loc:
        if isinstance(part, int):
            continue
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        inner = next(models_in(fields[part].annotation), None) if part in fields else None
        if inner is None:
            return None
        model = inner
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type such as `tuple[Toleration, ...] | None` is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""For wrong types: what would be right."""

_BOUNDS = {
    "greater_than_equal": "must be at least {ge}, is {input}",
    "greater_than": "must be more than {gt}, is {input}",
    "less_than_equal": "must be at most {le}, is {input}",
    "less_than": "must be less than {lt}, is {input}",
    "literal_error": "must be {expected}, is {input}",
    "enum": "must be {expected}, is {input}",
    "string_too_short": "must have at least {min_length} characters, is {input}",
    "string_too_long": "must have at most {max_length} characters, has {length}",
    "string_pattern_mismatch": "must match {pattern}, is {input}",
    "too_short": "must have at least {min_length} items, has {actual_length}",
    "too_long": "must have at most {max_length} items, has {length}",
    "value_error": "{error}",
}
"""For wrong values, filled in with what pydantic knows."""


def _reason(details: ErrorDetails) -> str:
    given, context = details["input"], details.get("ctx", {})
    kind = details["type"]
    if kind == "missing":
        return "must be given"
    if wanted := _WANTED.get(kind):
        return f"must be {wanted}, is {shown(given) if kind_of(given) == 'a number' else kind_of(given)}"
    if pattern := _BOUNDS.get(kind):
        return pattern.format_map({**context, "input": shown(given), "length": _length(given)})
    return _plain(details["msg"])


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]
