"""The CustomResourceDefinitions of VecCluster and VecCollection, written from the model.

`python -m veccluster.model.crd FOLDER...` writes them (`make crds`); a test holds the files equal to this and the
schema equal to the model. Pydantic's JSON schema is rewritten into what Kubernetes calls a structural schema: no
references, no alternatives of types, null as "left out", and only keywords that the API server knows.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from veccluster.model.rules import Part
from veccluster.model.spec import API_VERSION, VecCluster, VecCollection
from veccluster.model.units import cel_text

Schema = dict[str, Any]

_HEADER = "# Written by `make crds` from core/veccluster/model; change that, not this.\n"

_KEPT = {
    *("description", "type", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "required"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}
_DROPPED = {"title", "$defs"}


def crds() -> dict[str, Schema]:
    """Each CRD, by the name of its file."""
    return {"vecclusters.yaml": _vecclusters(), "veccollections.yaml": _veccollections()}


def as_text(crd: Schema) -> str:
    """The content of a CRD's file."""
    return _HEADER + yaml.safe_dump(crd, sort_keys=False, width=120, allow_unicode=True)


def _vecclusters() -> Schema:
    columns = [
        _column("Nodes", "integer", ".spec.nodes", "Nodes that there should be"),
        _column("Ready", "integer", ".status.nodes.ready", "Nodes that serve"),
        _column("Health", "string", ".status.health", "healthy, degraded or critical"),
        _column("Vectors", "integer", ".status.vectors", "Vectors in all collections"),
        _column("Age", "date", ".metadata.creationTimestamp", "Since when it exists"),
    ]
    subresources = {
        "status": {},
        "scale": {"specReplicasPath": ".spec.nodes", "statusReplicasPath": ".status.nodes.ready"},
    }
    return _crd(VecCluster, "vecclusters", ["vc"], columns, subresources)


def _veccollections() -> Schema:
    columns = [
        _column("Cluster", "string", ".spec.cluster", "The cluster that holds it"),
        _column("Dimension", "integer", ".spec.dimension", "Components of each vector"),
        _column("Metric", "string", ".spec.metric", "How far apart two vectors are"),
        _column("Vectors", "integer", ".status.vectors", "Vectors in the collection"),
        _column("Age", "date", ".metadata.creationTimestamp", "Since when it exists"),
    ]
    return _crd(VecCollection, "veccollections", ["vcol"], columns, {"status": {}})


def _column(name: str, kind: str, where: str, description: str) -> Schema:
    return {"name": name, "type": kind, "jsonPath": where, "description": description}


def _crd(resource: type[Part], plural: str, short: list[str], columns: list[Schema], subresources: Schema) -> Schema:
    group, version = API_VERSION.split("/")
    kind = resource.__name__
    names = {
        "kind": kind,
        "listKind": kind + "List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": short,
        "categories": ["all", "veccluster"],
    }
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": _root(resource)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


def _root(resource: type[Part]) -> Schema:
    """The resource's schema; of apiVersion, kind and metadata the API server allows to restrict only the name."""
    schema = structural(resource)
    fields = schema["properties"]
    name = fields["metadata"]["properties"]["name"]
    (rule,) = name.pop("x-kubernetes-validations")
    fields["metadata"] = {
        "type": "object",
        "properties": {"name": {k: name[k] for k in ("type", "maxLength", "pattern")}},
    }
    for own in ("apiVersion", "kind"):
        del fields[own]["enum"]
    says = f"metadata.name {rule['message']}, with at most {name['maxLength']} characters"
    test = (
        f"self.metadata.name.size() <= {name['maxLength']} && self.metadata.name.matches({cel_text(name['pattern'])})"
    )
    schema["x-kubernetes-validations"] = [{"rule": test, "message": says}, *schema.get("x-kubernetes-validations", [])]
    schema["required"] = ["spec"]
    return schema


def structural(part: type[Part]) -> Schema:
    """The structural schema of a part of the model."""
    schema = part.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    schema = _resolved(schema, defs)
    out: Schema = {}
    for key, value in schema.items():
        if key in _KEPT:
            out[key] = value
        elif key in _NESTED:
            out |= _NESTED[key](value, defs)
        elif key not in _DROPPED:
            raise ValueError(f"a structural schema has no place for {key}: {value}")
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    return {key: out[key] for key in sorted(out, key=_order)}


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without references, and without null as an alternative; what is said in place wins over what is referred to."""
    if "$ref" in schema:
        target = _resolved(defs[schema["$ref"].rsplit("/", 1)[-1]], defs)
        return {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    if "anyOf" in schema:
        (only,) = (option for option in schema["anyOf"] if option != {"type": "null"})
        return {**_resolved(only, defs), **{k: v for k, v in schema.items() if k != "anyOf"}}
    return schema


def _properties(value: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    return {"properties": {name: _structural(field, defs) for name, field in value.items()}}


def _items(value: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    return {"items": _structural(value, defs)}


def _additional(value: Any, defs: Mapping[str, Any]) -> Schema:
    """False is how the API server behaves anyway; true means an object of somebody else."""
    if isinstance(value, bool):
        return {"x-kubernetes-preserve-unknown-fields": True} if value else {}
    return {"additionalProperties": _structural(value, defs)}


def _const(value: Any, _: Mapping[str, Any]) -> Schema:
    return {"enum": [value]}


def _rules(value: list[dict[str, str]], _: Mapping[str, Any]) -> Schema:
    """The rule first, then what it says."""
    in_order = ("rule", "message", "messageExpression", "fieldPath")
    return {"x-kubernetes-validations": [{key: rule[key] for key in in_order if key in rule} for rule in value]}


_NESTED: dict[str, Callable[[Any, Mapping[str, Any]], Schema]] = {
    "properties": _properties,
    "items": _items,
    "additionalProperties": _additional,
    "const": _const,
    "x-kubernetes-validations": _rules,
}


def _order(key: str) -> tuple[int, str]:
    first = ("description", "type", "x-kubernetes-int-or-string", "default", "enum")
    last = ("required", "properties", "items", "additionalProperties", "x-kubernetes-validations")
    return (first.index(key) if key in first else 10 + last.index(key) if key in last else 9), key


def main(folders: Sequence[str]) -> None:
    """Write every CRD into each of `folders`."""
    for folder in folders:
        for name, crd in crds().items():
            with open(f"{folder}/{name}", "w", encoding="utf-8") as file:  # noqa: PTH123 - the model does no I/O but here
                file.write(as_text(crd))


if __name__ == "__main__":
    main(sys.argv[1:])
