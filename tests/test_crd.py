"""The CRDs in crds/ and the model say the same: texts, every field, every rule, and what they make of any object."""

import json
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import event, given, settings
from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo

from support import apiserver
from support.rules import CHANGES, COLLECTION, RULES
from support.specs import TEXTS, near, objects
from veccluster.errors import InvalidSpec
from veccluster.model import crd
from veccluster.model.rules import Part, refused_changes
from veccluster.model.spec import (
    VecCluster,
    VecClusterSpec,
    VecCollection,
    VecCollectionSpec,
)
from veccluster.model.validation import field_errors

CRDS = Path(__file__).parents[1] / "crds"
RESOURCES: dict[str, type[Part]] = {"vecclusters.yaml": VecCluster, "veccollections.yaml": VecCollection}
SCHEMAS = {name: apiserver.schema_of(yaml.safe_load((CRDS / name).read_text())) for name in RESOURCES}

KNOWN_DIFFERENCES = """
What the API server sees and the model does not, or the other way round; the generators avoid these:
- 3.0 is an integer to the API server; the model wants 3.
- metadata other than its name is the API server's own affair; so is whether apiVersion and kind are right.
"""


# --- texts ---


@pytest.mark.parametrize("name", RESOURCES)
def test_the_file_is_what_the_generator_writes(name):
    assert (CRDS / name).read_text() == crd.as_text(crd.crds()[name]), "run `make crds`"


def test_make_crds_writes_all_files(tmp_path):
    subprocess.run([sys.executable, "-m", "veccluster.model.crd", str(tmp_path)], check=True)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {f.name: f.read_text() for f in CRDS.iterdir()}


# --- what Kubernetes asks of a schema ---


def parts_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from parts_of(inner, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from parts_of(schema[keyword], f"{path}[]")


@pytest.mark.parametrize("name", RESOURCES)
def test_the_schema_is_structural(name):
    for path, schema in parts_of(SCHEMAS[name]):
        assert not schema.keys() & {"$ref", "anyOf", "allOf", "oneOf", "not", "const", "title", "nullable"}, path
        assert ("type" in schema) != ("x-kubernetes-int-or-string" in schema), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert not schema.get("uniqueItems"), path
        assert not isinstance(schema.get("additionalProperties"), bool), path


@pytest.mark.parametrize("name", RESOURCES)
def test_what_rules_look_at_is_bounded_so_that_their_cost_is(name):
    for path, schema in parts_of(SCHEMAS[name]):
        if schema.get("type") == "string" and "x-kubernetes-validations" in schema:
            assert "maxLength" in schema, path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        for rule in schema.get("x-kubernetes-validations", []):
            assert {"message", "messageExpression"} & rule.keys(), f"{path} has a rule that does not say what is right"
            blamed = schema
            for field in rule.get("fieldPath", "").split(".")[1:]:
                blamed = blamed["properties"][field]  # or the API server refuses the CRD


@pytest.mark.parametrize("name", RESOURCES)
def test_every_field_is_described(name):
    root = SCHEMAS[name]
    for path, schema in parts_of(root):
        if not path.endswith("[]") and not path.startswith(".metadata"):
            assert schema.get("description", "").endswith("."), f"{path} has no description"


def test_kubectl_shows_and_scales_clusters():
    spec = crd.crds()["vecclusters.yaml"]["spec"]
    (version,) = spec["versions"]
    assert [c["name"] for c in version["additionalPrinterColumns"]] == ["Nodes", "Ready", "Health", "Vectors", "Age"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.nodes"
    assert "status" in version["subresources"]
    assert spec["names"]["shortNames"] == ["vc"]
    paths = {path for path, _ in parts_of(SCHEMAS["vecclusters.yaml"])}
    for column in version["additionalPrinterColumns"][:-1]:
        assert column["jsonPath"] in paths
    assert version["subresources"]["scale"]["statusReplicasPath"] in paths


# --- field by field ---


def model_in(annotation: Any) -> type[Part] | None:
    """The part that a field is (itself, or the items of its list)."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((m for a in get_args(annotation) if (m := model_in(a))), None)


def pairs(part: type[Part], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, FieldInfo, dict[str, Any]]]:
    """Every field of the model with the CRD's part for it; fails when one side has a field that the other has not."""
    names = {info.alias: info for info in part.model_fields.values()}
    assert names.keys() == schema["properties"].keys(), path
    for name, info in names.items():
        field = schema["properties"][name]
        if path == "" and name in {"apiVersion", "kind", "metadata"}:
            continue
        yield f"{path}.{name}", info, field
        if inner := model_in(info.annotation):
            yield from pairs(inner, field.get("items", field), f"{path}.{name}")


ALL_FIELDS = [(p, i, s) for name, part in RESOURCES.items() for p, i, s in pairs(part, SCHEMAS[name])]
each_field = pytest.mark.parametrize(("path", "info", "schema"), ALL_FIELDS, ids=[p for p, _, _ in ALL_FIELDS])


def bare(annotation: Any) -> Any:
    """Without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    options = [a for a in get_args(annotation) if a is not type(None)]
    return bare(options[0]) if type(None) in get_args(annotation) and len(options) == 1 else annotation


@each_field
def test_types_and_enums_are_the_same(path, info, schema):
    kind = bare(info.annotation)
    if get_origin(kind) is Literal:
        assert schema["enum"] == list(get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        assert schema["enum"] == [m.value for m in kind]
    else:
        assert "enum" not in schema
    if get_origin(kind) is tuple:
        assert schema["type"] == "array"
    elif get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Part)):
        assert schema["type"] == "object"
    elif kind is bool:
        assert schema["type"] == "boolean"


@pytest.mark.parametrize("part", [VecClusterSpec, VecCollectionSpec])
def test_defaults_are_the_same(part):
    required = {"cluster": "demo", "dimension": 3} if part is VecCollectionSpec else {}
    schema = SCHEMAS["vecclusters.yaml" if part is VecClusterSpec else "veccollections.yaml"]["properties"]["spec"]
    assert apiserver.defaulted(required, schema) == part.parse(required).as_written()


@each_field
def test_each_default_is_the_same(path, info, schema):
    if info.is_required() or info.default is None:
        assert "default" not in schema
    else:
        assert only(info).parse({"only": schema["default"]}).only == info.default


def annotated(info: FieldInfo) -> Any:
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def only(info: FieldInfo) -> type[Part]:
    """A part with one field, to ask the model about that field alone."""
    return create_model("Only", __base__=Part, only=(annotated(info), ...))


@each_field
def test_both_sides_accept_the_same_values_and_give_the_same_reason(path, info, schema):
    if schema.get("type") in {"object", "array"}:
        return
    part = only(info)
    candidates: list[Any] = [*TEXTS, True, False, -1, 0, 1, 3.5, [], {}, *schema.get("enum", ()), 128, 129]
    if schema.get("type") in {"integer", "number"}:
        candidates += near(schema)
    for value in candidates:
        refused = apiserver.complaints(value, schema)
        try:
            part.parse({"only": value})
            reason = None
        except InvalidSpec as error:
            reason = error.errors[0]["reason"]
        assert bool(refused) == (reason is not None), (value, refused, reason)
        rules = schema.get("x-kubernetes-validations", [])
        said = [m for _, m in refused if any(apiserver.message(r, value) == m for r in rules)]
        if said and plain(value, schema):
            assert reason.startswith(said[0])


def plain(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a text is shown as it is by both sides: not too long, nothing to escape."""
    unescaped = isinstance(value, str) and value.isprintable() and not {'"', "\\"} & set(value)
    return unescaped and len(value) <= schema.get("maxLength", 60)


# --- rules across fields ---


def all_parts(part: type[Part] = Part) -> Iterator[type[Part]]:
    for sub in part.__subclasses__():
        yield sub
        yield from all_parts(sub)


def test_every_rule_has_its_examples():
    assert {p: len(p.rules) for p in all_parts() if p.rules} == {p: len(e) for p, e in RULES.items()}
    assert {p: len(p.lasting) for p in all_parts() if p.lasting} == {p: len(e) for p, e in CHANGES.items()}


def judged_by_crd(part: type[Part], value: Any, old: Any = None) -> set[tuple[str, str]]:
    return {(p.removeprefix("."), m) for p, m in apiserver.complaints(value, crd.structural(part), old)}


def judged_by_model(part: type[Part], value: Any) -> set[tuple[str, str]]:
    try:
        part.model_validate_json(json.dumps(value))
    except ValidationError as error:
        return {(e["field"], e["reason"]) for e in field_errors(error, part)}
    return set()


@pytest.mark.parametrize(
    ("part", "number"),
    [(p, i) for p, e in RULES.items() for i in range(len(e))],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_rule_refuses_the_same_in_the_same_words(part, number):
    accepted, refused = RULES[part][number]
    rule = part.rules[number]
    assert judged_by_model(part, accepted) == judged_by_crd(part, accepted) == set()
    found = judged_by_model(part, refused)
    assert found == judged_by_crd(part, refused)
    assert rule.field in {field for field, _ in found}


@pytest.mark.parametrize(
    ("part", "number"),
    [(p, i) for p, e in CHANGES.items() for i in range(len(e))],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_rule_about_changes_refuses_the_same_in_the_same_words(part, number):
    before, accepted, refused = CHANGES[part][number]
    old = part.parse(before)
    assert refused_changes(old, part.parse(accepted)) == [] and not judged_by_crd(part, accepted, before)
    found = {(e["field"], e["reason"]) for e in refused_changes(old, part.parse(refused))}
    assert found == judged_by_crd(part, refused, before)
    assert part.lasting[number].field in {field for field, _ in found}


# --- any object ---


def verdicts(crd_name: str, spec: Any, name: str = "demo") -> tuple[bool, bool]:
    """Whether the CRD takes a resource with this spec, and whether the model does."""
    part, schema = RESOURCES[crd_name], SCHEMAS[crd_name]
    resource = {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": part.__name__,
        "metadata": {"name": name},
        "spec": spec,
    }
    try:
        parsed = part.parse(resource)
    except InvalidSpec:
        return not apiserver.complaints(resource, schema), False
    written = apiserver.defaulted(resource, schema)
    assert part.parse(written) == parsed, "defaults differ"
    assert part.parse(parsed.as_written()) == parsed, "does not survive being written and read"
    assert type(parsed.spec).parse(parsed.spec.as_asked()) == parsed.spec, "does not survive without its defaults"
    return not apiserver.complaints(resource, schema), True


@settings(max_examples=120, deadline=None)
@given(objects(SCHEMAS["vecclusters.yaml"]["properties"]["spec"]))
def test_crd_and_model_agree_on_any_cluster(spec):
    by_crd, by_model = verdicts("vecclusters.yaml", spec)
    event(f"accepted: {by_model}")
    assert by_crd == by_model


@settings(max_examples=80, deadline=None)
@given(objects(SCHEMAS["veccollections.yaml"]["properties"]["spec"]))
def test_crd_and_model_agree_on_any_collection(spec):
    by_crd, by_model = verdicts("veccollections.yaml", spec)
    event(f"accepted: {by_model}")
    assert by_crd == by_model


@pytest.mark.parametrize(
    "name", ["a", "demo-1", "a" * 40, "a" * 41, "a" * 63, "a" * 64, "1a", "-a", "a-", "A", "a.b", ""]
)
@pytest.mark.parametrize("resource", RESOURCES)
def test_crd_and_model_agree_on_names(resource, name):
    spec = {} if resource == "vecclusters.yaml" else COLLECTION
    by_crd, by_model = verdicts(resource, spec, name=name)
    assert by_crd == by_model
