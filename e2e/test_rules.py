"""Every rule of both CRDs on the real API server: an object that it takes, and one that it refuses in the rule's words.

The rules are those of the model; a test holds that the installed CRDs have no others. Examples for rules across fields
are the ones by which the fast tests hold model and CRD equal; for a rule about one field they are found among texts
that are right for some fields and wrong for others. A rule that finds none fails here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from e2e.cluster.process import CommandFailed
from e2e.conftest import fresh_namespace
from support import apiserver
from support.rules import CHANGES, COLLECTION, RULES
from support.specs import TEXTS
from veccluster.model import crd
from veccluster.model.rules import Part
from veccluster.model.spec import API_VERSION, VecCluster, VecCollection

SCHEMAS = {
    resource: apiserver.schema_of(made)
    for resource, made in zip(("VecCluster", "VecCollection"), crd.crds().values(), strict=True)
}
BASE: dict[str, dict[str, Any]] = {"VecCluster": {}, "VecCollection": COLLECTION}
BESIDE: dict[str, dict[str, Any]] = {
    ".spec.metadata.tls": {"metadata": {"endpoints": ["https://etcd:2379"]}},
    ".spec.metadata.credentialsSecret": {"metadata": {"endpoints": ["https://etcd:2379"]}},
    ".spec.security.auth.secretName": {"security": {"auth": {"method": "basic"}}},
    ".spec.security.auth.jwt": {"security": {"auth": {"method": "jwt"}}},
    ".spec.security.acl": {"security": {"tls": {"enabled": True}, "auth": {"method": "mtls"}}},
    ".spec.storage.autogrow": {"storage": {"size": "1Gi"}},
    ".spec.failover.heartbeat": {"failover": {"timeout": "5m"}},
    ".spec.failover.timeout": {"failover": {"heartbeat": "50ms"}},
}
"""What must be said besides, for a field to be given at all."""
NAMES = {"VecCluster": "1a", "VecCollection": "a.b"}
"""Names that Kubernetes allows and we do not."""


@dataclass(frozen=True)
class Example:
    """A rule at its place in a resource, and specs that show it; `before` only where it is about changes."""

    kind: str
    path: str
    rule: dict[str, str]
    accepted: dict[str, Any]
    refused: dict[str, Any]
    before: dict[str, Any] | None = None
    refused_name: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}{self.path}: {self.rule['rule'][:60]}"

    @property
    def field(self) -> str:
        """The field to blame, as the API server writes it."""
        return (self.path + self.rule.get("fieldPath", "")).removeprefix(".").replace("[]", "[0]")

    @property
    def says(self) -> str:
        """What the rule says of what is refused."""
        body = resource(self.kind, self.refused, self.refused_name or "demo")
        value = apiserver.defaulted(body, SCHEMAS[self.kind])
        for word in re.findall(r"[^.\[\]]+|\[\]", self.path):
            value = value[0 if word == "[]" else word]
        return apiserver.message(self.rule, value)


def rules_in(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Every rule of a schema with the path of the part that it is about."""
    yield from ((path, rule) for rule in schema.get("x-kubernetes-validations", ()))
    for name, inner in schema.get("properties", {}).items():
        yield from rules_in(inner, f"{path}.{name}")
    if inner := schema.get("items") or schema.get("additionalProperties"):
        yield from rules_in(inner, f"{path}[]")


def parts_in(part: type[Part], path: str) -> Iterator[tuple[str, type[Part]]]:
    """A part of the model and all parts inside it, with their paths."""
    yield path, part
    for name, info in part.model_fields.items():
        if inner := _part_of(info.annotation):
            yield from parts_in(inner, f"{path}.{info.alias or name}")


def _part_of(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for a in get_args(annotation) if (found := _part_of(a))), None)


def resource(kind: str, spec: dict[str, Any], name: str = "demo") -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def schema_at(kind: str, path: str) -> dict[str, Any]:
    schema = SCHEMAS[kind]
    for word in re.findall(r"[^.\[\]]+|\[\]", path):
        schema = (schema.get("items") or schema["additionalProperties"]) if word == "[]" else schema["properties"][word]
    return schema


def sample(schema: dict[str, Any]) -> Any:
    """Some value that the schema takes."""
    if "default" in schema or "enum" in schema:
        return schema.get("default", schema.get("enum", [None])[0])
    kind = schema.get("type")
    if kind == "object":
        return {name: sample(schema["properties"][name]) for name in schema.get("required", ())}
    if kind == "array":
        return [sample(schema["items"])] * schema.get("minItems", 0)
    if kind == "string":
        return next(text for text in TEXTS if not apiserver.complaints(text, schema))
    return schema.get("minimum", 1)


def put(value: Any, schema: dict[str, Any], words: list[str]) -> Any:
    """`value` at the end of a path, with what the objects on the way require."""
    if not words:
        return value
    first, *rest = words
    if first == "[]":
        return (
            [put(value, schema["items"], rest)]
            if "items" in schema
            else {"a": put(value, schema["additionalProperties"], rest)}
        )
    around = sample({k: v for k, v in schema.items() if k != "default"})
    return {**around, first: put(value, schema["properties"][first], rest)}


def merged(one: Any, other: Any) -> Any:
    """Objects inside each other; what `other` says counts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **{k: merged(one[k], v) if k in one else v for k, v in other.items()}}
    return other


def spec_with(kind: str, path: str, value: Any) -> dict[str, Any]:
    """A spec with `value` at the path, and what it needs beside it."""
    words = re.findall(r"[^.\[\]]+|\[\]", path)[1:]
    spec = put(value, SCHEMAS[kind]["properties"]["spec"], words)
    for prefix, beside in BESIDE.items():
        if path.startswith(prefix):
            spec = merged(beside, spec)
    return merged(BASE[kind], spec)


def across_fields() -> Iterator[Example]:
    for root in (VecCluster, VecCollection):
        kind, spec = root.__name__, _part_of(root.model_fields["spec"].annotation)
        assert spec
        for path, part in parts_in(spec, ".spec"):
            for rule, (accepted, refused) in zip(part.rules, RULES[part] if part.rules else (), strict=True):
                yield Example(
                    kind, path, rule.as_cel(), spec_with(kind, path, accepted), spec_with(kind, path, refused)
                )
            for lasting, change in zip(part.lasting, CHANGES[part] if part.lasting else (), strict=True):
                before, accepted, refused = (spec_with(kind, path, value) for value in change)
                yield Example(kind, path, lasting.as_cel(), accepted, refused, before)


def about_one_field(known: set[tuple[str, str, str]]) -> Iterator[Example]:
    for kind, schema in SCHEMAS.items():
        for path, rule in rules_in(schema):
            if (kind, path, rule["rule"]) in known:
                continue
            if not path:  # the name
                fine = spec_with(kind, ".spec", {})
                yield Example(kind, path, rule, fine, fine, refused_name=NAMES[kind])
                continue
            at = schema_at(kind, path)
            fine = (spec_with(kind, path, text) for text in TEXTS if not apiserver.complaints(text, at))
            accepted = next((s for s in fine if not apiserver.complaints(resource(kind, s), schema)), None)
            refused = next((spec_with(kind, path, text) for text in TEXTS if _breaks(rule, text, at)), None)
            assert accepted and refused, f"no text shows {kind}{path}: {rule['rule']}"
            yield Example(kind, path, rule, accepted, refused)


def _breaks(rule: dict[str, str], text: str, schema: dict[str, Any]) -> bool:
    """Whether a text breaks the rule, and is not so long that the API server looks no further."""
    said = [message for _, message in apiserver.complaints(text, schema)]
    return apiserver.message(rule, text) in said and len(text) <= schema.get("maxLength", len(text))


ACROSS = list(across_fields())
EXAMPLES = ACROSS + list(about_one_field({(e.kind, e.path, e.rule["rule"]) for e in ACROSS}))
each_example = pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[str(e) for e in EXAMPLES])


@pytest.fixture(scope="module")
def answers(kubectl, rules_namespace):
    """What the API server says to every example, by the object's name; all are sent in three commands."""
    existing, accepted, refused = [], [], []
    for number, example in enumerate(EXAMPLES):
        if example.before is not None:
            existing += [resource(example.kind, paused(example, example.before), f"{w}-{number}") for w in "ar"]
        accepted.append(resource(example.kind, paused(example, example.accepted), f"a-{number}"))
        refused.append(resource(example.kind, paused(example, example.refused), example.refused_name or f"r-{number}"))
    kubectl.apply(existing, namespace=rules_namespace)
    return said(kubectl, accepted, rules_namespace) | said(kubectl, refused, rules_namespace)


def paused(example, spec):
    return spec | ({"paused": True} if example.kind == "VecCluster" else {})


def said(kubectl, resources, namespace):
    """Kind and name of each object with what the API server complains of; nothing where it took it."""
    sent = json.dumps({"apiVersion": "v1", "kind": "List", "items": resources})
    try:
        text = kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", namespace=namespace, stdin=sent)
    except CommandFailed as error:
        text = error.said
    taken = re.findall(r"^(\w+)\.veccluster\.io/(\S+) serverside-applied", text, re.MULTILINE)
    refused = re.findall(r'(\w+)\.veccluster\.io "(\S+)" is invalid: (.*)$', text, re.MULTILINE)
    found = {(kind.lower(), name): "" for kind, name in taken}
    found |= {(kind.lower(), name): why for kind, name, why in refused}
    assert found.keys() == {(r["kind"].lower(), r["metadata"]["name"]) for r in resources}, text
    return found


@pytest.fixture(scope="module")
def rules_namespace(cluster, operator):
    with fresh_namespace(cluster, "rules") as name:
        yield name


def test_the_installed_definitions_have_the_rules_of_the_model_and_no_others(kubectl, operator):
    shown = {(e.kind, e.path, e.rule["rule"]) for e in EXAMPLES}
    for kind in SCHEMAS:
        installed = kubectl.json("get", "crd", f"{kind.lower()}s.veccluster.io")
        there = {(kind, path, rule["rule"]) for path, rule in rules_in(apiserver.schema_of(installed))}
        assert there == {one for one in shown if one[0] == kind}


@each_example
def test_a_rule_takes_what_is_right_and_refuses_the_rest_in_its_words(answers, number):
    example = EXAMPLES[number]
    kind = example.kind.lower()
    assert answers[kind, f"a-{number}"] == ""
    refused = answers[kind, example.refused_name or f"r-{number}"]
    assert example.says in refused
    assert f"{example.field}: " in refused or not example.field
