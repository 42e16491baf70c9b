"""The OpenAPI 3.1 document of the HTTP interface: every route, body, header and error.

Bodies come from the models in `veccluster.model.api`; a test of the application holds the routes equal to `ROUTES`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from veccluster.errors import PROBLEM_BASE
from veccluster.model import api, token
from veccluster.model.limits import DEFAULTS, MAX_ID_BYTES, NAME_PATTERN, Limits
from veccluster.model.state import ReadConsistency, WriteConsistency
from veccluster_node.http.negotiation import ARROW, JSON, NDJSON, OCTETS, OPERATION_HEADER, PROBLEM

Json = dict[str, Any]

_REQUESTS: Final = (
    api.CreateCollection,
    api.Upsert,
    api.Search,
    api.Count,
    api.GetVectors,
    api.Delete,
    api.Recover,
)
_REPLIES: Final = (
    api.Collection,
    api.Collections,
    api.CollectionDetail,
    api.Upserted,
    api.Deleted,
    api.SearchReply,
    api.Vector,
    api.FoundVectors,
    api.Page,
    api.Counted,
    api.Recovery,
    api.Cluster,
    api.Status,
    api.Readiness,
    api.Problem,
)

# ---- schemas ---------------------------------------------------------------------------------------------------------


def _schemas(limits: Limits) -> Json:
    """The components: models as pydantic describes them, and the filter language."""
    modes = [(m, "validation") for m in _REQUESTS] + [(m, "serialization") for m in _REPLIES]
    _, described = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: Json = {name: _plain(schema) for name, schema in described["$defs"].items()}
    _bound(schemas, limits)
    return {**schemas, **_filter_schemas(limits)}


def _plain(schema: Any) -> Any:
    """The schema without what is only meant for Kubernetes."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _plain(held) for name, held in schema.items() if not name.startswith("x-kubernetes-")}


_NEVER_NULL: Final = (("Search", "vector"), ("Search", "vectors"), ("Delete", "ids"), ("Delete", "filter"))
"""Members of which one must be given: null is not a way to leave them out."""


def _bound(schemas: Json, limits: Limits) -> None:
    """Put in the bounds that are settings, and so not part of the models."""
    most = {
        ("CreateCollection", "dimension"): {"maximum": limits.max_dimension},
        ("Upsert", "vectors"): {"maxItems": limits.max_batch},
        ("UpsertItem", "vector"): {"maxItems": limits.max_dimension},
        ("Search", "k"): {"maximum": limits.max_k},
        ("Search", "ef"): {"maximum": limits.max_ef},
        ("Search", "vector"): {"maxItems": limits.max_dimension},
        ("Search", "vectors"): {"maxItems": limits.max_queries},
        ("GetVectors", "ids"): {"maxItems": limits.max_list},
        ("Delete", "ids"): {"maxItems": limits.max_batch},
    }
    for (model, member), bound in most.items():
        schema = schemas[model]["properties"][member]
        (schema["anyOf"][0] if "anyOf" in schema else schema).update(bound)
    for model, member in _NEVER_NULL:
        schema = schemas[model]["properties"][member]
        del schema["default"]
        schema |= schema.pop("anyOf")[0]


def _filter_schemas(limits: Limits) -> Json:
    filter_ref = {"$ref": "#/components/schemas/Filter"}
    inner = {"allOf": [filter_ref], "minProperties": 1}
    clauses = {"type": "array", "items": inner, "minItems": 1}
    number = {"type": "number", "description": "Without a fraction or exponent: of at most 64 bits."}
    value = {"anyOf": [{"type": "string"}, number, {"type": "boolean"}, {"type": "null"}]}
    ordered = {"anyOf": [{"type": "string"}, number]}
    values = {"type": "array", "items": value, "maxItems": limits.max_filter_values}
    order = ("$gt", "$gte", "$lt", "$lte")
    operators = {
        **dict.fromkeys(("$eq", "$ne", "$contains"), value),
        **dict.fromkeys(order, ordered),
        **dict.fromkeys(("$in", "$nin"), values),
        "$exists": {"type": "boolean"},
    }
    text = {"type": "string"}
    texts = {"type": "array", "items": text, "maxItems": limits.max_filter_values}
    of_id = {**dict.fromkeys(("$eq", "$ne", *order), text), **dict.fromkeys(("$in", "$nin"), texts)}
    return {
        "Filter": {
            "type": "object",
            "description": (
                "MongoDB's way to say which vectors are meant, over their metadata. Several keys, and several "
                "operators, mean and. `a.b` reaches into objects. Types never coerce. At most "
                f"{limits.max_filter_depth} levels and {limits.max_filter_clauses} conditions."
            ),
            "properties": {
                "$and": clauses,
                "$or": clauses,
                "$not": inner,
                "$id": {"anyOf": [{"type": "string"}, _operators(of_id)]},
            },
            "patternProperties": {"^([^$]|$)": {"$ref": "#/components/schemas/FieldCondition"}},
            "additionalProperties": False,
            "examples": [{"pos": "n"}, {"pointers": {"$gte": 3, "$lt": 10}}, {"words": {"$contains": "dog"}}],
        },
        "FieldCondition": {
            "description": "A value that the field equals, or operators. A missing field matches only `$ne`, `$nin`, "
            "`$not` and `$exists: false`. `$contains`: member of a list, or substring of a text.",
            "anyOf": [*value["anyOf"], _operators(operators)],
        },
    }


def _operators(known: Mapping[str, Any]) -> Json:
    return {"type": "object", "properties": dict(known), "minProperties": 1, "additionalProperties": False}


# ---- parameters, bodies and answers ----------------------------------------------------------------------------------


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _parameter(name: str, where: str, schema: Json, description: str, **more: Any) -> Json:
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, "description": description, "schema": schema, **required, **more}


_INTEGER: Final = {"type": "integer", "minimum": 1}
_IN_JSON: Final = {JSON: {"schema": _ref("schemas", "Filter")}}


def _parameters(limits: Limits) -> Json:
    """Every parameter, by the name that operations use."""
    read = {"type": "string", "enum": [c.value for c in ReadConsistency]}
    write = {"type": "string", "enum": [c.value for c in WriteConsistency]}
    include = {"type": "array", "items": {"type": "string", "enum": ["metadata", "vector"]}, "maxItems": 2}
    flag = {"type": "boolean", "default": False}
    binary = "For a body of float32."
    where = {"name": "filter", "in": "query", "content": _IN_JSON}
    return {
        "name": _parameter("name", "path", {"type": "string", "pattern": NAME_PATTERN}, "The collection."),
        "id": _parameter(
            "id", "path", {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}, "The vector; 1 to 512 bytes."
        ),
        "number": _parameter("number", "path", {"type": "integer", "minimum": 0}, "The shard."),
        "limit": _parameter(
            "limit", "query", {**_INTEGER, "maximum": limits.max_list, "default": 100}, "Vectors in the page."
        ),
        "cursor": _parameter("cursor", "query", {"type": "string"}, "From the page before: asks for what follows."),
        "filter": {**where, "description": "Only vectors that match."},
        "read": _parameter("consistency", "query", read, "What the read may miss; as the collection says if left out."),
        "write": _parameter(
            "consistency", "query", write, "How many replicas must have it; as the collection says if left out."
        ),
        "session": _parameter(
            token.HEADER,
            "header",
            {"type": "string", "pattern": "^[A-Za-z0-9_-]*$"},
            "The token of an earlier reply: what it saw, this sees.",
        ),
        "operation": _parameter(
            OPERATION_HEADER,
            "header",
            {"type": "string", "pattern": "^[!-~]{1,128}$"},
            "Names this write, so that it is carried out once however often it is sent. With another body it is "
            "another write.",
        ),
        "k": _parameter("k", "query", {**_INTEGER, "maximum": limits.max_k, "default": 10}, f"Results. {binary}"),
        "ef": _parameter("ef", "query", {**_INTEGER, "maximum": limits.max_ef}, f"Candidates. {binary}"),
        "include": _parameter(
            "include", "query", include, f"What to return as well. {binary}", style="form", explode=False
        ),
        "exact": _parameter("exact", "query", flag, f"Look at every vector. {binary}"),
        "allow_partial": _parameter("allow_partial", "query", flag, f"Answer even if shards cannot. {binary}"),
        "many": _parameter(
            "many",
            "query",
            {"type": "boolean"},
            f"Whether `results` are a list of lists; if left out, when there are several vectors. {binary}",
        ),
        "queries": _parameter(
            "queries", "query", {**_INTEGER, "maximum": limits.max_queries}, f"How many vectors there are. {binary}"
        ),
        "dimension": _parameter(
            "dimension",
            "query",
            {**_INTEGER, "maximum": limits.max_dimension},
            f"How many numbers each has. Of several vectors this or `queries` must be given. {binary}",
        ),
        "where": {**where, "description": f"Only vectors that match. {binary}"},
        "shards": _parameter(
            "shards",
            "query",
            {"type": "string", "enum": ["all"]},
            "Whether the node must serve all of its shards, too, as who is about to restart another one asks.",
        ),
    }


_ERRORS: Final[Mapping[int, str]] = {
    400: "Something in the request is wrong; `errors` says what would be right.",
    403: "It comes from a web page, or by a name, that is not allowed.",
    404: "There is no such collection, or vector.",
    406: "The reply cannot be given in any of the types in Accept.",
    408: "The body arrives too slowly, or has stopped arriving.",
    409: "A collection of this name exists and differs; a shard's loss cannot be accepted; or the operation id is "
    "older than what is remembered, and nothing was done.",
    413: "The body is too large, or what it does in one shard.",
    415: "The body is of a type, or compressed in a way, that is not read here.",
    500: "Something unforeseen; `incident` finds it in the node's log.",
    503: "It cannot be done now; the same request may succeed later.",
    504: "It was sent and no answer came; with the same operation id it is safe to send it again.",
    507: "A disk is full, or a limit of memory or of open files is reached.",
}
_RETRIABLE: Final = (503, 504, 507)


def _responses() -> Json:
    """The error answers, by status."""
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    content = {PROBLEM: {"schema": _ref("schemas", "Problem")}}
    unparsed = {
        "text/plain": {"schema": {"type": "string", "description": "Of what is not HTTP, or has too long a line."}}
    }
    return {
        f"Error{status}": {
            "description": description,
            "content": {**content, **unparsed} if status == 400 else content,
            **({"headers": retry} if status in _RETRIABLE else {}),
        }
        for status, description in _ERRORS.items()
    }


def _content(schema: str, *kinds: str) -> Json:
    """A body of this schema in JSON, or opaque in another type."""
    opaque: Mapping[str, Json] = {NDJSON: {"schema": {"type": "string"}}, ARROW: {}, OCTETS: {}}
    return {kind: opaque[kind] if kind in opaque else {"schema": _ref("schemas", schema)} for kind in kinds or (JSON,)}


def _answer(description: str, content: Json | None = None, **headers: str) -> Json:
    answer: Json = {"description": description}
    if content:
        answer["content"] = content
    named = {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }
    return {**answer, "headers": named} if named else answer


_TOKEN: Final = {token.HEADER.replace("-", "_"): "The same as `token`."}
_SEEN: Final = {
    token.HEADER.replace("-", "_"): "Session token: a later read that sends it sees at least what this one saw."
}


def _operation(
    summary: str,
    answers: Mapping[int, Json],
    *,
    errors: Sequence[int] = (),
    parameters: Sequence[str] = (),
    body: Json | None = None,
    optional_body: bool = False,
) -> Json:
    """One operation; 403, 500 and 503 can happen to any of them."""
    operation: Json = {"summary": summary}
    if parameters:
        operation["parameters"] = [_ref("parameters", name) for name in parameters]
    if body:
        operation["requestBody"] = {"required": not optional_body, "content": body}
    answered = {str(status): answer for status, answer in answers.items()}
    failed = {str(status): _ref("responses", f"Error{status}") for status in sorted({*errors, 403, 500, 503})}
    return {**operation, "responses": {**answered, **failed}}


# ---- routes ----------------------------------------------------------------------------------------------------------

_BODY_ERRORS: Final = (400, 404, 408, 413, 415)


def _collections() -> Json:
    created = _content("Collection")
    return {
        "/v1/collections": {
            "get": _operation("List the collections.", {200: _answer("All of them.", _content("Collections"))}),
        },
        "/v1/collections/{name}": {
            "put": _operation(
                "Create a collection. The same again changes nothing.",
                {201: _answer("It is created.", created), 200: _answer("It is there already.", created)},
                errors=(400, 408, 409, 413, 415, 504, 507),
                parameters=("name",),
                body=_content("CreateCollection"),
            ),
            "get": _operation(
                "A collection, with counts, shards and the state of its index.",
                {200: _answer("The collection.", _content("CollectionDetail"))},
                errors=(400, 404),
                parameters=("name",),
            ),
            "delete": _operation(
                "Delete a collection with all its vectors.",
                {204: _answer("It is gone.")},
                errors=(400, 404, 504),
                parameters=("name",),
            ),
        },
    }


def _shards() -> Json:
    return {
        "/v1/collections/{name}/shards/{number}/recover": {
            "post": _operation(
                "Go on with what is left of a shard that has lost too many copies, and lose what only those had. "
                "Without `accept_data_loss` nothing is changed: the reply says what would be done and lost.",
                {200: _answer("What there is, and what would be done or was.", _content("Recovery"))},
                errors=(*_BODY_ERRORS, 409, 504),
                parameters=("name", "number"),
                body=_content("Recover"),
                optional_body=True,
            ),
        },
    }


def _vectors() -> Json:
    writes = ("name", "write", "operation", "session")
    deleted = _answer("They are gone.", _content("Deleted"), **_TOKEN)
    return {
        "/v1/collections/{name}/vectors": {
            "post": _operation(
                "Store vectors, in place of what their ids held. JSON is one batch, refused whole if one is invalid; "
                "NDJSON (an UpsertItem a line) and Arrow (columns id, vector, metadata as JSON text) may be of any "
                "length and are applied in parts: the reply to one that goes wrong says how many were stored.",
                {200: _answer("They are stored.", _content("Upserted"), **_TOKEN)},
                errors=(*_BODY_ERRORS, 409, 504, 507),
                parameters=writes,
                body=_content("Upsert", JSON, NDJSON, ARROW),
            ),
            "get": _operation(
                "List vectors in the order of their ids.",
                {
                    200: _answer(
                        "A page. In Arrow: columns id, vector, metadata.",
                        _content("Page", JSON, ARROW),
                        Cursor="Asks for what follows; not there on the last page.",
                        **_SEEN,
                    )
                },
                errors=(400, 404, 406),
                parameters=("name", "limit", "cursor", "filter", "read", "session"),
            ),
        },
        "/v1/collections/{name}/vectors/{id}": {
            "get": _operation(
                "Get a vector.",
                {200: _answer("The vector.", _content("Vector"), **_SEEN)},
                errors=(400, 404),
                parameters=("name", "id", "read", "session"),
            ),
            "delete": _operation(
                "Delete a vector.",
                {200: deleted},
                errors=(400, 404, 409, 504),
                parameters=("name", "id", "write", "operation", "session"),
            ),
        },
        "/v1/collections/{name}/vectors/get": {
            "post": _operation(
                "Get vectors by their ids.",
                {
                    200: _answer(
                        "Those that are there, in the order of the ids. In Arrow: columns id and those included; "
                        "`missing` is JSON text in the metadata of the schema.",
                        _content("FoundVectors", JSON, ARROW),
                        **_SEEN,
                    )
                },
                errors=(*_BODY_ERRORS, 406),
                parameters=("name", "session"),
                body=_content("GetVectors"),
            ),
        },
        "/v1/collections/{name}/vectors/delete": {
            "post": _operation(
                "Delete vectors by their ids or by a filter.",
                {200: deleted},
                errors=(*_BODY_ERRORS, 409, 504),
                parameters=writes,
                body=_content("Delete"),
            ),
        },
    }


def _queries() -> Json:
    binary = ("k", "where", "include", "ef", "exact", "read", "allow_partial", "many", "queries", "dimension")
    return {
        "/v1/collections/{name}/search": {
            "post": _operation(
                "Find the nearest vectors. As little-endian float32 the body is one vector or more, and the other "
                "arguments are in the query string.",
                {
                    200: _answer(
                        "The nearest. In Arrow: columns query, id, score, distance, and those included; the other "
                        "members are JSON texts in the metadata of the schema.",
                        _content("SearchReply", JSON, ARROW),
                        **_TOKEN,
                    )
                },
                errors=(*_BODY_ERRORS, 406),
                parameters=("name", *binary, "session"),
                body=_content("Search", JSON, OCTETS),
            ),
        },
        "/v1/collections/{name}/count": {
            "post": _operation(
                "Count vectors.",
                {200: _answer("How many there are.", _content("Counted"), **_SEEN)},
                errors=_BODY_ERRORS,
                parameters=("name", "session"),
                body=_content("Count"),
                optional_body=True,
            ),
        },
    }


def _cluster() -> Json:
    return {
        "/v1/cluster": {
            "get": _operation("Health, nodes, shards.", {200: _answer("The cluster.", _content("Cluster"))}),
        },
        "/healthz": {"get": _operation("The process answers.", {200: _answer("It does.", _content("Status"))})},
        "/readyz": {
            "get": _operation(
                "The node answers; or, with `shards=all`, serves all that it should, too.",
                {200: _answer("It does.", _content("Readiness"))},
                errors=(400,),
                parameters=("shards",),
            )
        },
        "/metrics": {
            "get": _operation(
                "For Prometheus.", {200: _answer("Metrics.", {"text/plain": {"schema": {"type": "string"}}})}
            ),
        },
        "/openapi.json": {
            "get": _operation("This document.", {200: _answer("It.", {JSON: {"schema": {"type": "object"}}})}),
        },
    }


@cache
def document(version: str, limits: Limits = DEFAULTS) -> Json:
    """The whole document; not to be changed by who gets it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VecCluster",
            "version": version,
            "description": (
                "A distributed vector database. Any node answers any request. Requests may be compressed with gzip or "
                f"zstd, and replies are as Accept-Encoding asks. Errors are RFC 9457 documents with types under "
                f"{PROBLEM_BASE}."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(limits),
            "parameters": _parameters(limits),
            "responses": _responses(),
        },
    }


def _paths() -> Json:
    paths: Json = {**_collections(), **_shards(), **_vectors(), **_queries(), **_cluster()}
    for path, operations in paths.items():
        for method, operation in operations.items():
            words = [part.strip("{}") for part in path.removeprefix("/v1").split("/") if part]
            operation["operationId"] = "-".join((method, *words)).replace(".", "-")
    return paths


ROUTES: Final = tuple(sorted((method.upper(), path) for path, operations in _paths().items() for method in operations))
"""(method, path) of every operation; a path names its variables as aiohttp does."""
