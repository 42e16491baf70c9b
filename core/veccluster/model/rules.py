"""The base of all parts of the model, and rules across fields that hold in Python and in the CRD alike.

A rule is written once, beside the fields that it is about: CEL for the API server, the same condition in Python, and
one sentence for both, in which `{maxNodes}` stands for that field's value. A test holds the two conditions equal.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from veccluster.errors import InvalidSpec
from veccluster.model.units import Anything, cel_text
from veccluster.model.validation import FieldError, broken_rules, field_errors, models_in, path

_PLACEHOLDER = re.compile(r"\{([A-Za-z.]+)\}")


@dataclass(frozen=True)
class Rule:
    """What must be true of a part's fields together."""

    field: str
    """Path of the field to blame, relative to the part."""
    says: str
    """What would be right, after the field's name; `{maxNodes}` is that field's value."""
    cel: str
    """The condition on `self`, as the API server evaluates it after it has filled in defaults."""
    holds: Callable[[Any], bool]
    """The same condition on the part."""

    def reason(self, part: "Part") -> str:
        """The sentence, with values filled in."""
        written = part.as_written()
        return _PLACEHOLDER.sub(lambda m: str(_at(written, m[1])), self.says)

    def as_cel(self) -> dict[str, str]:
        """An item of `x-kubernetes-validations`."""
        named = ", ".join(f"self.{name}" for name in _PLACEHOLDER.findall(self.says))
        template = cel_text(_PLACEHOLDER.sub("%s", self.says.replace("%", "%%")))
        # Not `+` and string(): the API server cannot bound the length of what they give, and refuses the CRD.
        message = {"messageExpression": f"{template}.format([{named}])"} if named else {"message": self.says}
        return {"rule": self.cel, **message, "fieldPath": "." + self.field}


@dataclass(frozen=True)
class Lasting:
    """What must be true of a part before and after a change."""

    field: str
    """Path of the field to blame, relative to the part."""
    says: str
    """What would be right, after the field's name."""
    cel: str
    """The condition on `self` and `oldSelf`."""
    holds: Callable[[Any, Any], bool]
    """The same condition on the part before and the part after."""

    def as_cel(self) -> dict[str, str]:
        """An item of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.says, "fieldPath": "." + self.field}


class Part(BaseModel):
    """A part of a resource: camelCase outside, snake_case inside, nothing unknown, nothing coerced, never changed.

    As in Kubernetes, a field that is null counts as left out; inside `Anything` it is kept, where null may mean remove.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=to_camel,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    lasting: ClassVar[tuple[Lasting, ...]] = ()

    @classmethod
    def parse(cls, value: object, within: str = "") -> Self:
        """Read JSON-like data; `InvalidSpec` lists every field that is wrong, with paths starting at `within`."""
        try:
            # By way of JSON text: only there pydantic's strictness means JSON's types, in which an enum is a string.
            return cls.model_validate_json(json.dumps(_without_nulls(value, cls)))
        except ValidationError as error:
            raise invalid(field_errors(error, cls, within)) from None

    def as_written(self) -> dict[str, Any]:
        """JSON-like data with every default filled in; `parse` gives the same part back."""
        return self.model_dump(mode="json", exclude_none=True)

    def as_asked(self) -> dict[str, Any]:
        """JSON-like data of only what differs from the defaults; `parse` gives the same part back.

        Whether a default was written out or filled in cannot be told, and a field that is added to the model later
        changes nothing here until somebody uses it.
        """
        return self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in self.rules if not rule.holds(self)]
        if broken:
            raise broken_rules({"field": r.field, "reason": r.reason(self)} for r in broken)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        resolved = handler.resolve_ref_schema(written)
        for name, info in cls.model_fields.items():
            described = resolved["properties"][info.alias or name]
            described.pop("default", None)
            if not info.is_required() and info.default is not None:
                described["default"] = _written(cls, name, info.default)
        if rules := [r.as_cel() for r in cls.rules] + [r.as_cel() for r in cls.lasting]:
            resolved["x-kubernetes-validations"] = rules
        return written


def refused_changes(old: Part, new: Part, within: str = "") -> list[FieldError]:
    """What cannot be changed from `old` to `new`, both of the same class; empty when all of it can."""
    found: list[FieldError] = [
        {"field": path((rule.field,), within), "reason": rule.says} for rule in new.lasting if not rule.holds(old, new)
    ]
    for name, info in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Part) and isinstance(after, Part):
            found += refused_changes(before, after, path((info.alias or name,), within))
    return found


def invalid(errors: Sequence[FieldError]) -> InvalidSpec:
    """The exception that says all of `errors`."""
    sentences = "; ".join(f"{e['field']} {e['reason']}" if e["field"] else e["reason"] for e in errors)
    return InvalidSpec(sentences, errors)


def _written(part: type[Part], name: str, default: Any) -> Any:
    """A field's default as one would write it; the API server validates defaults without filling in nested ones."""
    alone = part.model_construct(**{name: default}).model_dump(mode="json", include={name}, exclude_none=True)
    (written,) = alone.values()
    return written


def _without_nulls(value: object, part: type[BaseModel] | None = None) -> object:
    if isinstance(value, dict):
        fields = {info.alias or name: info for name, info in part.model_fields.items()} if part else {}
        return {k: _field_without_nulls(v, fields.get(k)) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v, part) for v in value]
    return value


def _field_without_nulls(value: object, field: FieldInfo | None) -> object:
    if field and any(isinstance(m, Anything) for m in _metadata_of(field.rebuild_annotation())):
        return value
    return _without_nulls(value, next(models_in(field.annotation), None) if field else None)


def _metadata_of(annotation: Any) -> Iterator[object]:
    """What `Annotated` says anywhere in a type such as `Annotated[dict, Anything()] | None`."""
    yield from getattr(annotation, "__metadata__", ())
    for inner in get_args(annotation):
        yield from _metadata_of(inner)


def _at(written: Any, where: str) -> object:
    for name in where.split("."):
        written = written[name]
    return written
