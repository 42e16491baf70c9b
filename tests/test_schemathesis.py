"""What the OpenAPI document says is what a real node does: requests made from it, right and wrong, are answered by it.

The collection in a path is one that is there, unless its name is what is wrong with the request.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi import checks as openapi_checks

import veccluster_node
from support import cluster as clusters
from support.http import OCTETS, Collection, call, collection, floats
from veccluster_node.http.openapi import document

load_all_checks()

API = schemathesis.openapi.from_dict(document(veccluster_node.VERSION))
API.config.phases.coverage.enabled = False  # it would make bodies of ten thousand vectors
CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.allow_header_conformance,
]
MAY_FAIL_LATER = {503, 504}
"""A token may speak of what has not happened yet; creations at once may wait for each other."""


@pytest.fixture(scope="module")
def target():
    """A collection with a few vectors, some of whose ids are likely to be asked for."""
    with collection(3, "l2", filterable=["pos"]) as made:
        made.upsert(*({"id": i, "vector": [n, 1, 0], "metadata": {"pos": "n"}} for n, i in enumerate("ab0")))
        yield made
        Collection(f"{made.name}-fuzz").call("DELETE")


def is_wrong(case: schemathesis.Case, where: ParameterLocation) -> bool:
    """Whether a part of the request was made to be wrong."""
    part = case.meta.components.get(where) if case.meta else None
    return part is not None and part.mode is schemathesis.GenerationMode.NEGATIVE


def aim(case: schemathesis.Case, name: str) -> None:
    """Put in a collection that is there, and vectors of its dimension, where the request is meant to be right."""
    if "name" in (case.path_parameters or {}) and not is_wrong(case, ParameterLocation.PATH):
        case.path_parameters["name"] = name
    if is_wrong(case, ParameterLocation.BODY):
        return
    if case.media_type == OCTETS:
        case.body = floats([1, 2, 3])
    elif isinstance(case.body, dict):
        fit_vectors(case.body)


def fit_vectors(body: dict[str, Any]) -> None:
    """Three numbers to each vector of a body."""
    for member in (body, *(v for v in body.get("vectors", []) if isinstance(v, dict))):
        if isinstance(member.get("vector"), list):
            member["vector"] = fitted(member["vector"])
    if "dimension" not in body and isinstance(body.get("vectors"), list):
        body["vectors"] = [fitted(v) if isinstance(v, list) else v for v in body["vectors"]]


def fitted(vector: list[float]) -> list[float]:
    return (vector * 3)[:3]


def attack(case: schemathesis.Case, made: Collection) -> None:
    """Send a request and hold the answer to the document."""
    name = made.name
    if case.operation.path == "/v1/collections/{name}" and case.method != "GET":
        name = f"{made.name}-fuzz"
        if isinstance(case.body, dict) and case.body.get("shards") in range(4, 129):
            case.body["shards"] = 3  # more take their time
    aim(case, name)
    reply = case.call_and_validate(base_url=clusters.shared().servers[0], checks=CHECKS)
    assert reply.status_code < 500 or reply.status_code in MAY_FAIL_LATER, reply.text


def fixed(examples: int) -> settings:
    """So many requests of each operation, the same in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


@API.parametrize()
@fixed(25)
def test_every_operation_does_what_the_document_says(case, target):
    attack(case, target)


@pytest.mark.slow
@pytest.mark.timeout(600)
@API.parametrize()
@fixed(300)
def test_every_operation_does_what_the_document_says_three_hundred_times(case, target):
    attack(case, target)


def test_every_node_serves_this_document():
    for server in clusters.shared().servers:
        assert call("GET", f"{server}/openapi.json").json() == document(veccluster_node.VERSION)
