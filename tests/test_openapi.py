"""The OpenAPI document is valid, and says of bodies what the code does."""

from typing import Any

import jsonschema
import orjson
import pytest
from openapi_spec_validator import validate

from veccluster.errors import InvalidRequest
from veccluster.model import api
from veccluster.model.limits import DEFAULTS, Limits
from veccluster.model.spec import VecClusterSpec
from veccluster.model.state import Collection, Metric
from veccluster_node.http import codecs
from veccluster_node.http.openapi import ROUTES, document

DOCUMENT = document("1.2.3")


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)
    assert orjson.loads(orjson.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_the_routes_are_those_of_the_interface() -> None:
    assert set(ROUTES) == {
        ("PUT", "/v1/collections/{name}"),
        ("GET", "/v1/collections"),
        ("GET", "/v1/collections/{name}"),
        ("DELETE", "/v1/collections/{name}"),
        ("POST", "/v1/collections/{name}/shards/{number}/recover"),
        ("POST", "/v1/collections/{name}/vectors"),
        ("POST", "/v1/collections/{name}/search"),
        ("POST", "/v1/collections/{name}/count"),
        ("GET", "/v1/collections/{name}/vectors"),
        ("GET", "/v1/collections/{name}/vectors/{id}"),
        ("DELETE", "/v1/collections/{name}/vectors/{id}"),
        ("POST", "/v1/collections/{name}/vectors/get"),
        ("POST", "/v1/collections/{name}/vectors/delete"),
        ("GET", "/v1/cluster"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    }


def operations() -> list[dict[str, Any]]:
    return [o for path in DOCUMENT["paths"].values() for o in path.values()]


def test_operations_have_ids_of_their_own_and_say_how_they_fail() -> None:
    ids = [o["operationId"] for o in operations()]
    assert len(set(ids)) == len(ids)
    for operation in operations():
        codes = operation["responses"].keys()
        assert {"500", "503"} <= codes
        assert ("requestBody" in operation) <= ({"400", "413", "415"} <= codes)


def test_limits_that_are_settings_are_in_the_document() -> None:
    schemas = document("1", Limits(max_k=7, max_batch=8, max_dimension=9))["components"]["schemas"]
    assert schemas["Search"]["properties"]["k"]["maximum"] == 7
    assert schemas["Upsert"]["properties"]["vectors"]["maxItems"] == 8
    assert schemas["CreateCollection"]["properties"]["dimension"]["maximum"] == 9


def test_nothing_in_the_document_is_only_meant_for_kubernetes() -> None:
    assert b"x-kubernetes" not in orjson.dumps(DOCUMENT)


WORDS = Collection(name="words", uuid="uuid", dimension=3, metric=Metric.cosine, shards=1)


def accepted(model: str, value: Any) -> bool:
    """Whether the code takes the value as the body that the model describes."""
    body = orjson.dumps(value)
    try:
        if model == "CreateCollection":
            api.CreateCollection.parse(body).collection(
                "a", uuid="u", cluster=VecClusterSpec(), nodes=1, limits=DEFAULTS
            )
        elif model == "Upsert":
            codecs.decode_upsert_json(body, WORDS, DEFAULTS)
        elif model == "Search":
            codecs.decode_search_json(body, WORDS, DEFAULTS)
        elif model == "Filter":
            codecs.where_of_text(body, DEFAULTS)
        else:
            {"Delete": api.Delete, "Count": api.Count, "Recover": api.Recover}[model].parse(body).model_dump()
    except InvalidRequest:
        return False
    return True


def described(model: str, value: Any) -> bool:
    schema = {"$ref": f"#/components/schemas/{model}", "components": DOCUMENT["components"]}
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(value))


CREATE = {"dimension": 3, "metric": "l2"}
ROW = {"id": "a", "vector": [1, 2, 3]}


@pytest.mark.parametrize(
    ("model", "value", "good"),
    [
        ("CreateCollection", CREATE, True),
        ("CreateCollection", {**CREATE, "shards": "auto", "filterable": ["a", "b.c"], "min_in_sync": 1}, True),
        ("CreateCollection", {**CREATE, "index": {"m": 2, "ef_search": 10, "precision": "i8"}}, True),
        ("CreateCollection", {**CREATE, "shards": 128, "read_consistency": "strong", "write_consistency": "all"}, True),
        ("CreateCollection", {"dimension": 3}, False),
        ("CreateCollection", {**CREATE, "dimension": 0}, False),
        ("CreateCollection", {**CREATE, "dimension": 8193}, False),
        ("CreateCollection", {**CREATE, "dimension": "3"}, False),
        ("CreateCollection", {**CREATE, "metric": "hamming"}, False),
        ("CreateCollection", {**CREATE, "shards": 129}, False),
        ("CreateCollection", {**CREATE, "shards": "many"}, False),
        ("CreateCollection", {**CREATE, "index": {"m": 1}}, False),
        ("CreateCollection", {**CREATE, "index": {"efSearch": 10}}, False),
        ("CreateCollection", {**CREATE, "index": {"precision": "f8"}}, False),
        ("CreateCollection", {**CREATE, "filterable": ["a", "a"]}, False),
        ("CreateCollection", {**CREATE, "filterable": [str(i) for i in range(33)]}, False),
        ("CreateCollection", {**CREATE, "filterable": ["a..b"]}, False),
        ("CreateCollection", {**CREATE, "write_consistency": "strong"}, False),
        ("CreateCollection", {**CREATE, "colour": "red"}, False),
        ("CreateCollection", [], False),
        ("Upsert", {"vectors": [ROW]}, True),
        ("Upsert", {"vectors": [{**ROW, "metadata": {"a": [1, {"b": None}]}}], "atomic": True}, True),
        ("Upsert", {"vectors": [{**ROW, "metadata": None}]}, True),
        ("Upsert", {"vectors": []}, False),
        ("Upsert", {"vectors": [{**ROW, "id": 1}]}, False),
        ("Upsert", {"vectors": [{**ROW, "id": ""}]}, False),
        ("Upsert", {"vectors": [{**ROW, "metadata": []}]}, False),
        ("Upsert", {"vectors": [{**ROW, "vector": []}]}, False),
        ("Upsert", {"vectors": [{**ROW, "vector": ["1", 2, 3]}]}, False),
        ("Upsert", {"vectors": [{**ROW, "x": 1}]}, False),
        ("Upsert", {"vectors": [ROW], "atomic": None}, False),
        ("Search", {"vector": [1, 2, 3]}, True),
        ("Search", {"vectors": [[1, 2, 3]], "k": 1, "include": ["metadata", "vector"], "filter": {"a": 1}}, True),
        ("Search", {"vector": [1, 2, 3], "filter": None, "ef": None, "consistency": None, "include": None}, True),
        ("Search", {"vector": [1, 2, 3], "k": None}, False),
        ("Search", {}, False),
        ("Search", {"vector": None}, False),
        ("Search", {"vector": [1, 2, 3], "vectors": None}, False),
        ("Search", {"vector": [1, 2, 3], "vectors": [[1, 2, 3]]}, False),
        ("Search", {"vector": [1, 2, 3], "k": 10_001}, False),
        ("Search", {"vector": [1, 2, 3], "ef": 0}, False),
        ("Search", {"vector": [1, 2, 3], "include": ["id"]}, False),
        ("Search", {"vector": [1, 2, 3], "filter": {"a": {}}}, False),
        ("Count", {}, True),
        ("Count", {"filter": {"a": 1}, "consistency": "eventual"}, True),
        ("Count", {"filters": {}}, False),
        ("Recover", {}, True),
        ("Recover", {"accept_data_loss": False, "expected": None}, True),
        ("Recover", {"accept_data_loss": True, "expected": "7 n0/disk"}, True),
        ("Recover", {"accept_data_loss": True}, False),
        ("Recover", {"accept_data_loss": True, "expected": None}, False),
        ("Recover", {"accept_data_loss": 1}, False),
        ("Recover", {"force": True}, False),
        ("Delete", {"ids": ["a", "b"]}, True),
        ("Delete", {"filter": {"a": 1}}, True),
        ("Delete", {}, False),
        ("Delete", {"ids": None}, False),
        ("Delete", {"ids": ["a"], "filter": None}, False),
        ("Delete", {"ids": []}, False),
        ("Delete", {"ids": [1]}, False),
        ("Delete", {"filter": {}}, False),
        ("Delete", {"ids": ["a"], "filter": {"a": 1}}, False),
        ("Filter", {}, True),
        ("Filter", {"pos": "n", "pointers": {"$gte": 3, "$lt": 10}, "": None}, True),
        ("Filter", {"$or": [{"a": {"$in": [1, "x", None, True]}}, {"$not": {"b": {"$exists": False}}}]}, True),
        ("Filter", {"$id": {"$in": ["a"], "$gt": "b"}}, True),
        ("Filter", {"$id": "a"}, True),
        ("Filter", {"$and": []}, False),
        ("Filter", {"$and": [{}]}, False),
        ("Filter", {"$not": {}}, False),
        ("Filter", {"$nor": [{"a": 1}]}, False),
        ("Filter", {"a": [1]}, False),
        ("Filter", {"a": {}}, False),
        ("Filter", {"a": {"$gt": True}}, False),
        ("Filter", {"a": {"$gt": None}}, False),
        ("Filter", {"a": {"$exists": 1}}, False),
        ("Filter", {"a": {"$in": "x"}}, False),
        ("Filter", {"a": {"b": 1}}, False),
        ("Filter", {"$id": 1}, False),
        ("Filter", {"$id": {"$contains": "a"}}, False),
    ],
)
def test_the_document_and_the_code_take_the_same_bodies(model: str, value: Any, good: bool) -> None:
    assert (described(model, value), accepted(model, value)) == (good, good)


def test_replies_are_as_described() -> None:
    detail = api.CollectionDetail.of(
        WORDS,
        count=None,
        index_state="unknown",
        shard_states=[api.ShardState(number=0, primary=None, epoch=1, available=False)],
    )
    assert described("CollectionDetail", orjson.loads(detail.model_dump_json()))
    assert described("Problem", InvalidRequest.field("k", "must be at least 1").problem())
    assert not described("Problem", {"title": "?"})
