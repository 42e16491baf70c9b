"""What the API server does with an object of a CRD, for tests: defaults, pruning, schema, sets, CEL.

In the API server's order: nulls are dropped, defaults filled in, unknown fields refused (as `kubectl` asks for), then
the schema, list types and CEL rules are checked. Checked by hand against the code of Kubernetes 1.34 itself.
"""

import copy
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from typing import Any

import celpy
import jsonschema
from celpy import celtypes

from veccluster.model.units import Size

Schema = dict[str, Any]


def schema_of(crd: Schema) -> Schema:
    (version,) = crd["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def complaints(value: Any, schema: Schema, old: Any = None) -> list[tuple[str, str]]:
    """(path, message) of everything that the API server refuses; empty when it takes the object."""
    value = defaulted(value, schema)
    found = [*_unknown(value, schema, ""), *_schema_errors(value, schema), *_repeated(value, schema, "")]
    return found + list(_broken_rules(value, schema, "", None if old is None else defaulted(old, schema)))


def defaulted(value: Any, schema: Schema) -> Any:
    """A copy without nulls and with defaults; what the schema does not describe stays as it is."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return copy.deepcopy(value)
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        value = {k: v for k, v in value.items() if v is not None}
        for name, field in fields.items():
            if "default" in field and name not in value:
                value[name] = copy.deepcopy(field["default"])
        extra = schema.get("additionalProperties", {})
        return {k: defaulted(v, fields.get(k, extra)) for k, v in value.items()}
    if isinstance(value, list):
        return [defaulted(v, schema.get("items", {})) for v in value]
    return value


def _unknown(value: Any, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    if schema.get("x-kubernetes-preserve-unknown-fields") or (schema.get("type") == "object" and path == ".metadata"):
        return
    for where, inner, inner_schema in _children(value, schema, path):
        if inner_schema is None:
            yield where, "unknown field"
        else:
            yield from _unknown(inner, inner_schema, where)


def _children(value: Any, schema: Schema, path: str) -> Iterator[tuple[str, Any, Schema | None]]:
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        for name, inner in value.items():
            yield f"{path}.{name}", inner, fields.get(name, schema.get("additionalProperties"))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield f"{path}[{i}]", inner, schema.get("items")


def _int_or_string(_: Any, wanted: bool, instance: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    if wanted and (isinstance(instance, bool) or not isinstance(instance, int | str)):
        yield jsonschema.ValidationError("must be an integer or a string")


def at_the_very_end(pattern: str) -> str:
    """The pattern as RE2 reads it: there $ does not match before a final newline."""
    return pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, str) and not re.search(at_the_very_end(pattern), instance):
        yield jsonschema.ValidationError(f"should match {pattern}")


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"x-kubernetes-int-or-string": _int_or_string, "pattern": _pattern}
)


def _schema_errors(value: Any, schema: Schema) -> Iterator[tuple[str, str]]:
    for error in _Validator(schema).iter_errors(value):
        yield error.json_path.removeprefix("$"), error.message


def _repeated(value: Any, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    if schema.get("x-kubernetes-list-type") == "set" and isinstance(value, list):
        seen: list[Any] = []
        for i, item in enumerate(value):
            if item in seen:
                yield f"{path}[{i}]", "duplicate value"
            seen.append(item)
    for where, inner, inner_schema in _children(value, schema, path):
        yield from _repeated(inner, inner_schema or {}, where)


def _broken_rules(value: Any, schema: Schema, path: str, old: Any) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        if not _evaluate(rule["rule"], value, old):
            yield path + rule.get("fieldPath", ""), message(rule, value)
    for where, inner, inner_schema in _children(value, schema, path):
        name = where.removeprefix(path + ".")
        yield from _broken_rules(inner, inner_schema or {}, where, old.get(name) if isinstance(old, dict) else None)


def message(rule: dict[str, str], value: Any) -> str:
    if "messageExpression" in rule and isinstance(said := _evaluate(rule["messageExpression"], value, None), str):
        return said
    return rule.get("message", f"failed rule: {rule['rule']}")


def _evaluate(expression: str, value: Any, old: Any) -> Any:
    """The expression's value; False when it cannot be evaluated, which the API server takes as a refusal."""
    try:
        context = {"self": celpy.json_to_cel(value)} | ({} if old is None else {"oldSelf": celpy.json_to_cel(old)})
        result = _program(expression).evaluate(context)
    except (celpy.CELEvalError, ValueError, TypeError, KeyError):
        return False
    return bool(result) if isinstance(result, celtypes.BoolType | bool) else str(result)


@cache
def _program(expression: str) -> celpy.Runner:
    env = celpy.Environment()
    return env.program(env.compile(expression), functions=_KUBERNETES)


def _quantity(text: celtypes.StringType) -> celtypes.IntType:
    """Thousandths of bytes, so that "0.5" is exact."""
    try:
        return celtypes.IntType(int(Size.exact(str(text)) * 1000))
    except (ArithmeticError, KeyError):
        raise ValueError(f"{text} is no quantity") from None


def _compare(a: celtypes.IntType, b: celtypes.IntType) -> celtypes.IntType:
    return celtypes.IntType((Decimal(a) > Decimal(b)) - (Decimal(a) < Decimal(b)))


def _format(template: celtypes.StringType, values: celtypes.ListType) -> celtypes.StringType:
    return celtypes.StringType(str(template) % tuple(str(v) for v in values))


_KUBERNETES = {"quantity": _quantity, "compareTo": _compare, "format": _format}
"""Functions of Kubernetes' CEL that cel-python does not know."""
