"""The reference of every field of VecCluster and VecCollection, written from the CRDs.

`python -m veccluster.model.reference FILE` writes it (`make crds`); a test holds docs/reference.md equal to this. Every
object of a spec gets a table of its own, so that one can find a field by looking through the headings.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from veccluster.model.crd import Schema, crds

_HEADER = """<!-- Written by `make crds` from core/veccluster/model; change that, not this. -->
# Reference: VecCluster and VecCollection

Every field, with its type, what is allowed, and what it is when it is left out. The API server refuses whatever does
not keep to this, with the sentences below, and so does `veccluster up`. What is described here and not there yet is
refused by name; [operations.md](operations.md) is about running a cluster,
[kubernetes.md](kubernetes.md) about installing it.
"""

_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")
_VALUES = re.compile(r" \(%s\)|, is %s|, but \w+ is %s")  # what a sentence says about the object at hand


def reference() -> str:
    """The whole document."""
    return "\n".join([_HEADER, *(line for crd in crds().values() for line in _resource(crd))])


def _resource(crd: Schema) -> Iterator[str]:
    names, (version,) = crd["spec"]["names"], crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    short = ", ".join(f"`{name}`" for name in names["shortNames"])
    yield f"## {names['kind']}\n"
    yield schema["description"] + "\n"
    yield f"`apiVersion: {crd['spec']['group']}/{version['name']}`; `kubectl get {names['plural']}`, short {short}."
    if scale := version["subresources"].get("scale"):
        yield f"`kubectl scale` sets `{scale['specReplicasPath'].lstrip('.')}`."
    yield ""
    for rule in schema["x-kubernetes-validations"]:
        yield f"- {_sentence(rule)}."
    yield ""
    for part in ("spec", "status"):
        yield from _object(part, schema["properties"][part], names["kind"])


def _object(path: str, schema: Schema, kind: str) -> Iterator[str]:
    """A heading, a table of the fields, the rules between them, and the same for every object inside."""
    yield f"### {kind}: {path.removesuffix('[]')}\n"
    yield schema["description"] + "\n"
    yield "| field | type | default | what it is |"
    yield "| --- | --- | --- | --- |"
    inside = []
    for name, field in schema["properties"].items():
        described = field.get("description", "")
        default = _default(field, required=name in schema.get("required", ()))
        yield f"| `{name}` | {_cell(_type(field))} | {default} | {_cell(described)} |"
        inner = field.get("items", field)
        if "properties" in inner:
            where = f"{path}.{name}" + ("" if inner is field else "[]")
            inside.append((where, {**inner, "description": described}))
    yield ""
    if rules := [
        f"- `{r['fieldPath'].lstrip('.')}` {_sentence(r)}." for r in schema.get("x-kubernetes-validations", ())
    ]:
        yield from (*rules, "")
    for where, inner in inside:
        yield from _object(where, inner, kind)


def _type(field: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        unique = ", each once" if field.get("x-kubernetes-list-type") == "set" else ""
        return f"list{_count(field, 'Items')}{unique}; of {_plural(field['items'])}"
    if "additionalProperties" in field:
        return f"map{_count(field, 'Properties')}; to {_plural(field['additionalProperties'])}"
    if "properties" in field:
        return "object, see below"
    if "x-kubernetes-preserve-unknown-fields" in field:
        return "object, as in any pod"
    if "x-kubernetes-int-or-string" in field:
        return _with_rules("integer or text", field)
    return _with_rules({"string": "text"}.get(field["type"], field["type"]) + _bounds(field), field)


def _plural(field: Mapping[str, Any]) -> str:
    return "objects, see below" if "properties" in field else _type(field)


def _bounds(field: Mapping[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    if low is not None:
        return f", at least {_number(low)}"
    return _count(field, "Length", " characters")


def _count(field: Mapping[str, Any], of: str, unit: str = "") -> str:
    low, high = field.get(f"min{of}"), field.get(f"max{of}")
    if high is None:
        return ""
    return f", {low} to {high}{unit}" if low else f", at most {high}{unit}"


def _with_rules(text: str, field: Mapping[str, Any]) -> str:
    return "; ".join([text, *(_sentence(rule) for rule in field.get("x-kubernetes-validations", ()))])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(field: Mapping[str, Any], *, required: bool) -> str:
    if required:
        return "**required**"
    value = field.get("default")
    if "properties" in field and value is not None:
        # What the fields inside say of themselves is in their own table.
        value = {name: v for name, v in value.items() if "default" not in field["properties"][name]} or None
    if value in (None, ""):
        return ""
    return _cell(f"`{value if isinstance(value, str) else json.dumps(value)}`")


def _sentence(rule: Mapping[str, str]) -> str:
    """What a rule says, without the values of an object."""
    if "message" in rule:
        return rule["message"]
    quoted = _QUOTED.match(rule["messageExpression"])
    if not quoted:
        raise ValueError(f"no text to read in {rule['messageExpression']}")
    text = re.sub(r"\\(.)", r"\1", quoted[1])
    return _VALUES.sub("", text.replace("%%", "%")).partition("; is ")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(path: str) -> None:
    """Write the document to `path`."""
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - the model does no I/O but here
        file.write(reference())


if __name__ == "__main__":
    main(sys.argv[1])
