"""Whatever a client sends, a real node says what is wrong and what would be right, keeps nothing, and goes on."""

import gzip
import json
import random
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from support import cluster as clusters
from support.http import (
    ARROW,
    JSON,
    NDJSON,
    OCTETS,
    Collection,
    arrow,
    arrow_stream,
    call,
    collection,
    floats,
    ndjson,
    problem,
)
from veccluster.model.limits import DEFAULTS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOOD = {"id": "good", "vector": [1, 2, 3], "metadata": {"a": 1}}
HERE = {"id": "here", "vector": [0.5, 0, 1], "metadata": {"kept": True}}


@pytest.fixture(scope="module")
def made() -> Iterator[Collection]:
    """Three-dimensional with cosine; holds `HERE` and nothing else, before and after each test."""
    with collection(3, "cosine") as words:
        words.upsert(HERE)
        yield words


def processes() -> list[int]:
    return [clusters.shared().process(f"test-{n}").process.pid for n in range(3)]


@pytest.fixture(autouse=True)
def nothing_is_stored_and_the_same_processes_go_on(made: Collection) -> Iterator[None]:
    before = processes()
    yield
    assert processes() == before
    for node in range(3):
        assert made.json("GET", "/vectors", node=node)["vectors"] == [HERE]


@dataclass(frozen=True)
class Case:
    """A request that is refused: with `status`, about `field`, for a reason that holds `said`."""

    said: str
    method: str = "POST"
    path: str = "/search"
    body: Any = None
    status: int = 400
    field: str | None = None
    kind: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body)
        return f"{self.method} {self.path[:40]} {body[:60]!r} {self.headers or ''}"


def search(said: str, field: str | None = None, /, **members: Any) -> Case:
    """A search, good but for `members`."""
    return Case(said, body={"vector": [1, 2, 3]} | members, field=field)


def check(case: Case, reply: Any) -> None:
    text = problem(reply, case.status)
    reasons = [e["reason"] for e in text.get("errors", []) if case.field in (None, e["field"])]
    assert case.field is None or reasons, f"{case.field} is not named: {text}"
    assert case.said in " ".join([text["detail"], *reasons]), text


# ---- vectors, in every form ------------------------------------------------------------------------------------------

BAD_VECTORS = {
    "too short": ({"vector": [1, 2]}, "vector", "must have 3 numbers, the collection's dimension; has 2"),
    "too long": ({"vector": [1, 2, 3, 4]}, "vector", "must have 3 numbers, the collection's dimension; has 4"),
    "empty vector": ({"vector": []}, "vector", "must have 3 numbers"),
    "zero": ({"vector": [0, 0, -0.0]}, "vector", "must not be zero: with cosine it has no direction"),
    "almost zero": ({"vector": [1e-20, 0, 0]}, "vector", "must not be shorter than 1e-15 with cosine"),
    "beyond float32": ({"vector": [1, 1e39, 3]}, "vector[1]", "must be a finite number that float32 can hold"),
    "too far": ({"vector": [1e16, 0, 0]}, "vector", "must not be longer than 1e+15"),
    "empty id": ({"id": ""}, "id", "must be a string of 1 to 512 bytes of UTF-8, has 0"),
    "long id": ({"id": "é" * 257}, "id", "must be a string of 1 to 512 bytes of UTF-8, has 514"),
    "metadata a list": ({"metadata": [1]}, "metadata", "must be an object, is a list"),
    "metadata a string": ({"metadata": "x"}, "metadata", "must be an object, is a string"),
    "metadata too large": ({"metadata": {"a": "x" * 70_000}}, "metadata", "must be at most 65536 bytes of JSON"),
    "metadata too deep": (
        {"metadata": json.loads('{"a":' * 17 + "1" + "}" * 17)},
        "metadata",
        "is nested too deep; it may have 16 levels",
    ),
    "long integer": ({"metadata": {"a": [2**64]}}, "metadata.a[0]", "must be a whole number of at most 64 bits"),
    "huge number": ({"metadata": {"a": 10**400}}, "metadata", "must hold numbers that a float can hold"),
}


def in_form(form: str, *rows: dict[str, Any]) -> tuple[bytes, str]:
    if form == "json":
        return json.dumps({"vectors": rows}).encode(), JSON
    return (ndjson(*rows), NDJSON) if form == "ndjson" else (arrow(*rows), ARROW)


@pytest.mark.parametrize("form", ["json", "ndjson", "arrow"])
@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_bad_vector_is_named_and_its_batch_not_stored(made, name, form):
    members, field, reason = BAD_VECTORS[name]
    bad = {**GOOD, "id": "bad", **members}
    rows = [bad] if form == "arrow" and field == "vector" else [GOOD, bad, {**GOOD, "id": "other"}]
    body, kind = in_form(form, *rows)
    said = problem(made.call("POST", "/vectors", body, kind=kind))
    (error,) = said["errors"]
    assert error["field"] == field and reason in error["reason"]
    if form != "arrow" or "index" in error:  # a schema is wrong for all of its rows
        assert error["index"] == rows.index(bad)
        assert error["id"] == (None if field == "id" else "bad")
        assert f"vector {error['index']}: {field} " in said["detail"]
    assert form == "json" or said["upserted"] == 0


BAD_JSON_VECTORS = {
    '{"id": 7, "vector": [1,2,3]}': ("id", "must be a string of 1 to 512 bytes, is a number"),
    '{"id": null, "vector": [1,2,3]}': ("id", "must be a string of 1 to 512 bytes, is null"),
    '{"id": ["a"], "vector": [1,2,3]}': ("id", "is a list"),
    '{"vector": [1,2,3]}': ("id", "must be given"),
    '{"id": "bad"}': ("vector", "must be given"),
    '{"id": "bad", "vector": null}': ("vector", "must be a list of numbers, is null"),
    '{"id": "bad", "vector": "1,2,3"}': ("vector", "must be a list of numbers, is a string"),
    '{"id": "bad", "vector": {"0": 1}}': ("vector", "must be a list of numbers, is an object"),
    '{"id": "bad", "vector": [1, "2", 3]}': ("vector[1]", "must be a number, is a string"),
    '{"id": "bad", "vector": [1, 2, true]}': ("vector[2]", "must be a number, is a boolean"),
    '{"id": "bad", "vector": [null, 2, 3]}': ("vector[0]", "must be a number, is null"),
    '{"id": "bad", "vector": [[1, 2, 3]]}': ("vector[0]", "must be a number, is a list"),
    '{"id": "bad", "vector": [1, 2, 1e400]}': ("vector", "must hold numbers that a float can hold"),
    '{"id": "bad", "vector": [1, 2, 3], "meta": {}}': ("meta", "is not a known field"),
    '{"id": "bad", "vector": [1, 2, 3], "metdata": {}}': ("metdata", 'did you mean "metadata"?'),
    "[1, 2, 3]": ("", "must be an object with id, vector and metadata; is a list"),
    "7": ("", "must be an object with id, vector and metadata; is a number"),
}


@pytest.mark.parametrize("form", ["json", "ndjson"])
@pytest.mark.parametrize("text", BAD_JSON_VECTORS)
def test_a_vector_object_of_wrong_types_is_told_member_by_member(made, text, form):
    field, reason = BAD_JSON_VECTORS[text]
    good = json.dumps(GOOD)
    body, kind = (f'{{"vectors": [{good}, {text}]}}', JSON) if form == "json" else (f"{good}\n{text}\n", NDJSON)
    (error,) = problem(made.call("POST", "/vectors", body.encode(), kind=kind))["errors"]
    assert (error["index"], error["field"]) == (1, field)
    assert reason in error["reason"]


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "bad", "vector": [1, NaN, 3]}',
        '{"id": "bad", "vector": [1, Infinity, 3]}',
        '{"id": "bad", "vector": [1, -Infinity, 3]}',
        '{"id": "bad", "vector": [1, 2, 3',
        '{"id": "bad", "vector": [1, 2,, 3]}',
        '{"id": "bad", "vector": [1, 2, 3],}',
        "{'id': 'bad', 'vector': [1, 2, 3]}",
        '{"id": "\\ud800", "vector": [1, 2, 3]}',
        '{"id": "bad", "vector": [01, 2, 3]}',
        '{"id": "bad", "vector": [0x1, 2, 3]}',
        '{"id": "bad", "vector": [1, 2, 3], "metadata": {"a": "\\udfff"}}',
    ],
)
@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_what_is_not_json_is_called_so(made, text, form):
    body, kind = (f'{{"vectors": [{text}]}}', JSON) if form == "json" else (text, NDJSON)
    said = problem(made.call("POST", "/vectors", body.encode(), kind=kind))["detail"]
    assert "is not JSON" in said and "  " not in said


def test_every_mistake_of_a_batch_is_listed_up_to_a_hundred(made):
    rows = [{"id": f"bad{i}", "vector": [1] * (i % 2)} for i in range(150)]
    said = problem(made.call("POST", "/vectors", {"vectors": [GOOD, *rows]}))
    assert len(said["errors"]) == 100 and said["more_errors"] == 50
    assert [e["index"] for e in said["errors"]] == list(range(1, 101))


def test_an_id_twice_in_a_batch_is_refused(made):
    (error,) = problem(made.call("POST", "/vectors", {"vectors": [GOOD, GOOD]}))["errors"]
    assert (error["index"], error["field"]) == (1, "id")
    assert error["reason"] == "must be distinct within a batch; vector 0 has the same"


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"", JSON, "the body is not JSON"),
        (b"", NDJSON, "must hold at least one vector, it is empty"),
        (b"\n \n", NDJSON, "must hold at least one vector, it is empty"),
        (b"", ARROW, "the body must be an Arrow stream; it is empty"),
        (b"[]", JSON, "the body must be an object, is a list"),
        (b'"vectors"', JSON, "the body must be an object, is a string"),
        (b"{}", JSON, "vectors: must be given"),
        (b'{"vectors": []}', JSON, "vectors: must be 1 to 10000 vectors, are 0"),
        (b'{"vectors": {}}', JSON, "vectors: must be a list of objects with id, vector and metadata, is an object"),
        (b'{"vectors": null}', JSON, "vectors: must be a list of objects with id, vector and metadata, is null"),
        (b'{"vector": []}', JSON, 'vector: is not a known field; did you mean "vectors"?'),
        (b'{"vectors": [{}], "atomic": "yes"}', JSON, "atomic: must be true or false, is a string"),
        (b'{"vectors": [{"id": "\xff", "vector": [1,2,3]}]}', JSON, "is not JSON"),
        (b'{"id": "\xff\xfe", "vector": [1,2,3]}', NDJSON, "is not JSON"),
        (b"\xef\xbb\xbf{}", JSON, "is not JSON"),
        ('{"vectors": []}'.encode("utf-16"), JSON, "is not JSON"),
        (b'{"id": "a", "vector": [1, 2, 3], "metadata": "' + b"x" * (1 << 20), NDJSON, "a line of at most 1048576"),
        (b"not arrow at all, sorry", ARROW, "the body must be an Arrow stream"),
        (json.dumps({"vectors": [GOOD]}).encode(), ARROW, "the body must be an Arrow stream"),
    ],
)
def test_a_body_that_is_no_batch_is_refused(made, body, kind, said):
    assert said in problem(made.call("POST", "/vectors", body, kind=kind))["detail"]


# ---- Arrow -----------------------------------------------------------------------------------------------------------


def table(**columns: Any) -> pa.Table:
    """One good row, but for `columns`; None leaves one out."""
    good = {
        "id": pa.array(["good"]),
        "vector": pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32(), 3)),
        "metadata": pa.array(["{}"]),
    }
    return pa.table({name: held for name, held in (good | columns).items() if held is not None})


def vectors(*rows: Any, kind: Any = None) -> pa.Array:
    return pa.array(list(rows), kind or pa.list_(pa.float32(), 3))


@pytest.mark.parametrize(
    ("columns", "field", "said"),
    [
        ({"id": None}, "id", "must be a column of the stream"),
        ({"vector": None}, "vector", "must be a column of the stream"),
        ({"extra": pa.array([1])}, "extra", "is not a column that is read here; they are id, vector and metadata"),
        ({"id": pa.array([7])}, "id", "must be a column of strings, is int64"),
        ({"id": pa.array([b"x"])}, "id", "must be a column of strings, is binary"),
        ({"metadata": pa.array([{"a": 1}])}, "metadata", "must be a column of strings, is struct"),
        ({"vector": pa.array(["1,2,3"])}, "vector", "must be a column of fixed-size lists of 3 float32, is string"),
        ({"vector": vectors([1, 2, 3], kind=pa.list_(pa.int32(), 3))}, "vector", "fixed-size lists of 3 float32"),
        ({"vector": vectors([[1.0]], kind=pa.list_(pa.list_(pa.float32())))}, "vector", "fixed-size lists of 3"),
        ({"vector": vectors([1, 2], kind=pa.list_(pa.float32(), 2))}, "vector", "must have 3 numbers"),
        ({"vector": vectors([1, 2], kind=pa.list_(pa.float32()))}, "vector", "must have 3 numbers"),
        ({"vector": vectors(None)}, "vector", "must not be null"),
        ({"vector": vectors([1, None, 3])}, "vector", "must not hold nulls"),
        ({"vector": vectors([1, float("nan"), 3])}, "vector[1]", "must be a finite number that float32 can hold"),
        ({"vector": vectors([1, 2, float("-inf")])}, "vector[2]", "must be a finite number that float32 can hold"),
        ({"vector": vectors([1, 2, 1e39], kind=pa.list_(pa.float64(), 3))}, "vector[2]", "that float32 can hold"),
        ({"vector": vectors([0, 0, 0])}, "vector", "must not be zero"),
        ({"id": pa.array([None], pa.string())}, "id", "must be a string of 1 to 512 bytes, is null"),
        ({"metadata": pa.array(["{a:1}"])}, "metadata", "is not JSON"),
        ({"metadata": pa.array(["[]"])}, "metadata", "must be an object, is a list"),
    ],
)
def test_arrow_columns_that_are_not_as_documented_are_named(made, columns, field, said):
    body = arrow_stream(table(**columns))
    (error,) = problem(made.call("POST", "/vectors", body, kind=ARROW))["errors"]
    assert error["field"] == field and said in error["reason"]


def test_arrow_that_is_a_file_compressed_or_without_rows_is_refused(made):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table())
    packed = pa.BufferOutputStream()
    with pa.ipc.new_stream(packed, table().schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table())
    for body, said in (
        (sink.getvalue().to_pybytes(), "the body must be an Arrow stream"),
        (packed.getvalue().to_pybytes(), "must not be compressed; compress the request with Content-Encoding"),
        (arrow_stream(table().slice(0, 0)), "must hold at least one vector"),
    ):
        assert said in problem(made.call("POST", "/vectors", body, kind=ARROW))["detail"]


def test_an_arrow_stream_that_is_cut_off_anywhere_is_refused(made):
    body = arrow(GOOD, {**GOOD, "id": "other"})
    end = len(body) - 8  # the mark of the end may be missing
    for length in sorted({*range(0, end, 37), *range(end - 5, end)}):
        said = problem(made.call("POST", "/vectors", body[:length], kind=ARROW, node=length % 3))
        assert said["upserted"] == 0, length


def test_a_damaged_arrow_stream_is_read_or_refused_and_harms_nobody():
    dice = random.Random(3)
    body = arrow(*({**GOOD, "id": f"v{i}"} for i in range(3)))
    with collection() as scratch:
        for _ in range(250):
            damaged = bytearray(body)
            for _ in range(dice.randint(1, 4)):
                damaged[dice.randrange(len(body))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            reply = scratch.call("POST", "/vectors", bytes(damaged), kind=ARROW)
            assert reply.status_code == 200 or problem(reply)


# ---- searches --------------------------------------------------------------------------------------------------------

NESTED = json.loads('{"$not": ' * 17 + '{"a": 1}' + "}" * 17)

SEARCHES = [
    *(search("must be at least 1, is", "k", k=k) for k in (0, -1)),
    *(search("must be at most 10000, is", "k", k=k) for k in (10_001, 10**30)),
    *(search("must be a whole number, is", "k", k=k) for k in (1.5, "3", None, True, [1])),
    search("must be at least 1, is 0", "ef", ef=0),
    search("must be at most 10000, is 10001", "ef", ef=10_001),
    search("must be a whole number, is a string", "ef", ef="64"),
    search("must be true or false, is a string", "exact", exact="true"),
    search("must be true or false, is", "allow_partial", allow_partial=1),
    search("must be 'eventual', 'session', 'quorum' or 'strong', is \"all\"", "consistency", consistency="all"),
    search("must be 'metadata' or 'vector', is \"id\"", "include[0]", include=["id"]),
    search("must be a list, is a string", "include", include="metadata"),
    search("must have at most 2 items", "include", include=["vector"] * 3),
    search('did you mean "filter"?', "fliter", fliter={}),
    search("is not a known field", "top_k", top_k=3),
    search("must be a list of numbers, is null", "vector", vector=None),
    search("must have 3 numbers, the collection's dimension; has 2", "vector", vector=[1, 2]),
    search("must be a number, is a string", "vector[0]", vector=["1", 2, 3]),
    search("must be a finite number that float32 can hold", "vector[2]", vector=[1, 2, 1e39]),
    search("must not be zero", "vector", vector=[0, 0, 0]),
    search("must be left out when vectors are given", "vector", vectors=[[1, 2, 3]]),
    Case("must be given, or else vectors", body={}, field="vector"),
    Case("must be 1 to 1000 vectors, are 0", body={"vectors": []}, field="vectors"),
    Case("must be 1 to 1000 vectors, are 1001", body={"vectors": [[1, 2, 3]] * 1001}, field="vectors"),
    Case("must have 3 numbers", body={"vectors": [[1, 2, 3], [1]]}, field="vectors[1]"),
    Case("must be a number, is null", body={"vectors": [[1, 2, 3], [1, 2, None]]}, field="vectors[1][2]"),
    Case("must be a list of vectors, is a number", body={"vectors": 7}, field="vectors"),
    Case("must be at most 1000 with 100 vectors", body={"vectors": [[1, 2, 3]] * 100, "k": 1001}, field="k"),
    Case("the body must be an object, is a list", body=[1, 2, 3]),
    Case("JSON has no NaN and no Infinity", body=b'{"vector": [1, NaN, 3]}', kind=JSON),
    Case("the body is not JSON", body=b'{"vector": [1, 2, 3]', kind=JSON),
    Case("the body is not JSON", body=b"", kind=JSON),
    Case("is not an argument here", path="/search?k=3", body={"vector": [1, 2, 3]}, field="k"),
]

FILTERS = [
    ("filter", [], "must be an object, is a list"),
    ("filter", "pos", "must be an object, is a string"),
    ("filter.a.$regex", {"a": {"$regex": "x"}}, "is not an operator"),
    ("filter.a.$gte2", {"a": {"$gte2": 1}}, "did you mean $gte?"),
    ("filter.$nor", {"$nor": [{"a": 1}]}, "is not an operator; did you mean $or?"),
    ("filter.a.b", {"a": {"b": 1}}, '"a.b" reaches into an object'),
    ("filter.a", {"a": {}}, "must hold at least one operator"),
    ("filter.a", {"a": [1]}, "$contains looks into lists, is a list"),
    ("filter.$and", {"$and": []}, "must hold at least one filter, is empty"),
    ("filter.$and", {"$and": {"a": 1}}, "must be a list of filters, is an object"),
    ("filter.$or[1]", {"$or": [{"a": 1}, 7]}, "must be an object, is a number"),
    ("filter.$not", {"$not": {}}, "must not be empty"),
    ("filter.a.$in", {"a": {"$in": 1}}, "must be a list of values, is a number"),
    ("filter.a.$in[0]", {"a": {"$in": [[1]]}}, "must be a string, a number, true, false or null"),
    ("filter.a.$in", {"a": {"$in": list(range(10_001))}}, "must hold at most 10000 values, holds 10001"),
    ("filter.a.$gt", {"a": {"$gt": True}}, "must be a number or a string, is a boolean"),
    ("filter.a.$gt", {"a": {"$gt": None}}, "must be a number or a string, is null"),
    ("filter.a.$exists", {"a": {"$exists": 1}}, "must be true or false, is a number"),
    ("filter.a", {"a": 2**64}, "must be a whole number of at most 64 bits"),
    ("filter.$id", {"$id": 7}, "must be a string, is a number"),
    ("filter.$id.$contains", {"$id": {"$contains": "a"}}, "cannot stand here"),
    ("filter" + ".$not" * 16, NESTED, "is nested too deep; a filter may have 16 levels"),
    ("filter.$and[255].a", {"$and": [{"a": 1}] * 257}, "is one condition too many; a filter may have 256"),
]


def filtered(field: str, filter_: Any, said: str) -> Iterator[Case]:
    """The same mistake wherever a filter can stand."""
    text = json.dumps(filter_)
    yield search(said, field, filter=filter_)
    yield Case(said, path="/count", body={"filter": filter_}, field=field)
    yield Case(said, path="/vectors/delete", body={"filter": filter_}, field=field)
    if len(text) < 10_000:
        path = f"/search?filter={text}"
        yield Case(said, path=path, body=floats([1, 2, 3]), kind=OCTETS, field=field)
        yield Case(said, method="GET", path=f"/vectors?filter={text}", field=field)


@pytest.mark.parametrize("case", SEARCHES, ids=str)
def test_a_search_that_cannot_be_is_refused(made, case):
    check(case, made.call(case.method, case.path, case.body, kind=case.kind))


@pytest.mark.parametrize(("field", "filter_", "said"), FILTERS, ids=lambda value: str(value)[:40])
def test_a_filter_that_means_nothing_is_refused_wherever_it_stands(made, field, filter_, said):
    for case in filtered(field, filter_, said):
        check(case, made.call(case.method, case.path, case.body, kind=case.kind))


@pytest.mark.parametrize(
    ("query", "body", "said"),
    [
        ("", b"", "one or more vectors of 3 little-endian float32 (12 bytes each), is 0 bytes"),
        ("", b"\0" * 13, "is 13 bytes"),
        ("", floats([0, 0, 0]), "vectors[0]: must not be zero"),
        ("dimension=3", floats([1, 2, 3], [1, float("nan"), 3]), "vectors[1][1]: must be a finite number"),
        ("", np.array([1, 2, 3], ">f4").tobytes(), "vectors[0]: must not be shorter than 1e-15 with cosine"),
        ("k=0", floats([1, 2, 3]), "k: must be at least 1, is 0"),
        ("k=ten", floats([1, 2, 3]), "k: must be a whole number, is a string"),
        ("k=", floats([1, 2, 3]), "k: must be a whole number, is a string"),
        ("k=1e3", floats([1, 2, 3]), "k: must be a whole number, is a string"),
        ("k=1&k=2", floats([1, 2, 3]), "k: must be given once"),
        ("ef=0", floats([1, 2, 3]), "ef: must be at least 1, is 0"),
        ("exact=yes", floats([1, 2, 3]), "exact: must be true or false, is a string"),
        ("include=score", floats([1, 2, 3]), "include[0]: must be 'metadata' or 'vector'"),
        ("filter={", floats([1, 2, 3]), "filter: must be JSON"),
        ("filter=[1]", floats([1, 2, 3]), "filter: must be an object, is a list"),
        ("many=false&queries=2", floats([1, 2, 3], [4, 5, 6]), "many: must not be false with 2 vectors"),
        ("vector=[1,2,3]", floats([1, 2, 3]), "vector: is not an argument here"),
        ("consistency=all", floats([1, 2, 3]), "consistency: must be 'eventual', 'session', 'quorum' or 'strong'"),
        ("k=1000&dimension=3", floats(*[[1, 2, 3]] * 101), "k: must be at most 990 with 101 vectors"),
        ("dimension=3", floats(*[[1, 2, 3]] * 1001), "the body must be 1 to 1000 vectors, are 1001"),
    ],
)
def test_a_binary_search_that_cannot_be_is_refused(made, query, body, said):
    assert said in problem(made.call("POST", f"/search?{query}", body, kind=OCTETS))["detail"]


def test_a_reply_with_more_vectors_than_a_body_may_hold_is_refused():
    with collection(8192) as wide:
        asked = {"vector": [1] * 8192, "k": 2049, "include": ["vector"]}
        said = problem(wide.call("POST", "/search", asked))["detail"]
        assert "k: must be at most 2048 with 1 vectors of dimension 8192, when vectors are included" in said
        assert wide.search(asked["vector"], k=2048, include=["vector"]) == []


# ---- other routes ----------------------------------------------------------------------------------------------------

DELETES = [
    Case("must be given, or else filter", path="/vectors/delete", body={}, field="ids"),
    Case("must be left out", path="/vectors/delete", body={"ids": ["a"], "filter": {"a": 1}}, field="ids"),
    Case("must have at least 1 items", path="/vectors/delete", body={"ids": []}, field="ids"),
    Case("must have at least 1 items", path="/vectors/delete", body={"filter": {}}, field="filter"),
    Case("must not be null", path="/vectors/delete", body={"ids": None}, field="ids"),
    Case("must be a list, is a string", path="/vectors/delete", body={"ids": "here"}, field="ids"),
    Case("is a number", path="/vectors/delete", body={"ids": ["here", 7]}, field="ids[1]"),
    Case("has 0", path="/vectors/delete", body={"ids": [""]}, field="ids[0]"),
    Case("at most 10000 ids", path="/vectors/delete", body={"ids": [str(i) for i in range(10_001)]}, field="ids"),
    Case("is not a known field", path="/vectors/delete", body={"id": "here"}, field="id"),
    Case("invalid JSON", path="/vectors/delete", body=b"", kind=JSON),
]
COUNTS = [
    Case("is not a known field", path="/count", body={"filters": {}}, field="filters"),
    Case("must be an object, is a list", path="/count", body=[]),
    Case("must be an object, is a string", path="/count", body={"filter": "a"}, field="filter"),
    Case("must be 'eventual'", path="/count", body={"consistency": 1}, field="consistency"),
    Case("invalid JSON", path="/count", body=b"{", kind=JSON),
    Case("is not an argument here", path="/count?filter={}", body={}, field="filter"),
]
PAGES = [
    *(
        Case("must be a number from 1 to 1000, is", "GET", f"/vectors?limit={limit}", field="limit")
        for limit in ("0", "-1", "1001", "1.5", "ten", "", "1e2", "9" * 400, "٣")
    ),
    *(
        Case("must be the cursor of an earlier page", "GET", f"/vectors?cursor={cursor}", field="cursor")
        for cursor in ("!", "a", "_w", "é", "%FF", "AAAA=AAAA")
    ),
    Case("must be JSON", "GET", "/vectors?filter={", field="filter"),
    Case("must be an object", "GET", "/vectors?filter=1", field="filter"),
    Case("must be given once", "GET", "/vectors?limit=1&limit=2", field="limit"),
    Case('did you mean "limit"?', "GET", "/vectors?limits=1", field="limits"),
    Case("there are consistency, limit, cursor, filter", "GET", "/vectors?page=1", field="page"),
    Case("must be one of eventual, session, quorum, strong", "GET", "/vectors?consistency=all", field="consistency"),
    Case("must be one of one, quorum, all", "DELETE", "/vectors/x?consistency=strong", field="consistency"),
    Case("must be one of one, quorum, all", "POST", "/vectors?consistency=strong", GOOD, field="consistency"),
    Case("is not an argument here; there are consistency", "GET", "/vectors/here?include=x", field="include"),
    Case("is not an argument here", "GET", "?verbose=1", field="verbose"),
    Case("is not an argument here", "DELETE", "?force=1", field="force"),
]
IDS = [
    Case("must be a string of 1 to 512 bytes of UTF-8, has 513", "GET", "/vectors/" + "x" * 513, field="id"),
    Case("has 514", "DELETE", "/vectors/" + "%C3%A9" * 257, field="id"),
    *(
        Case("must be UTF-8, percent-encoded", m, f"/vectors/{i}", field="id")
        for m in ("GET", "DELETE")
        for i in ("%FF", "a%C3", "%ED%A0%80")
    ),
    Case("holds no vector 'nobody'", "GET", "/vectors/nobody", status=404),
    Case("holds no vector '\\x00'", "GET", "/vectors/%00", status=404),
    Case("holds no vector 'nobody'", "DELETE", "/vectors/nobody", status=404),
    Case("there is no /v1/collections", "GET", "/vectors/", status=404),
    Case("there is no /v1/collections", "GET", "/vectors/a/b", status=404),
]
HEADERS = [
    *(
        Case("must be 1 to 128 visible ASCII characters", path="/vectors", body={"vectors": [GOOD]},
             field="Operation-Id", headers=(("Operation-Id", given),))
        for given in ("", "a b", "x" * 129, "é")
    ),
    *(
        Case("must be a token from an earlier reply", path=path, body=body, field="Session-Token",
             headers=(("Session-Token", given),))
        for given in ("nonsense", "!", "gQ", "é", "AAAA,BBBB")
        for path, body in (("/search", {"vector": [1, 2, 3]}), ("/count", {}))
    ),
    *(
        Case("Content-Type must be", path=path, body=b"{}", status=415, kind=kind)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "json", "")
        for path in ("/vectors", "/search", "/vectors/delete", "/count")
    ),
    Case("Content-Type must be application/json, is", path="/count", body=b"{}", status=415, kind=NDJSON),
    Case("the charset must be utf-8", path="/count", body=b"{}", status=415, kind="application/json; charset=latin1"),
    *(
        Case("Content-Encoding must be gzip or zstd", path="/count", body=b"{}", status=415, kind=JSON,
             headers=(("Content-Encoding", encoding),))
        for encoding in ("br", "deflate", "gzip, gzip", "rot13")
    ),
    *(
        Case("the reply can be", method, path, body, 406, headers=(("Accept", accept),))
        for method, path, body in (("POST", "/search", {"vector": [1, 2, 3]}), ("GET", "/vectors", None))
        for accept in ("text/html", "application/json;q=0", "nonsense")
    ),
    *(
        Case("takes", method, path, status=405)
        for method, path in (("PATCH", ""), ("POST", ""), ("GET", "/search"), ("PUT", "/vectors"), ("DELETE", "/count"))
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", [*DELETES, *COUNTS, *PAGES, *IDS, *HEADERS], ids=str)
def test_what_no_route_can_do_is_refused(made, case):
    options = {"headers": {name: held.encode() for name, held in case.headers}}
    check(case, made.call(case.method, case.path, case.body, kind=case.kind, **options))


def test_too_many_mistakes_are_not_all_listed(made):
    said = problem(made.call("POST", "/count", {f"x{i}": 1 for i in range(300)}))
    assert len(said["errors"]) == 100 and said["more_errors"] == 200
    said = problem(made.call("POST", "/search", {f"x{i}": 1 for i in range(300)}))
    assert len(said["errors"]) == 100 and said["more_errors"] == 200


# ---- collections -----------------------------------------------------------------------------------------------------

CREATE = {"dimension": 3, "metric": "l2"}
CREATIONS = [
    (b"", "", "invalid JSON"),
    ([], "", "must be an object, is a list"),
    ({}, "dimension", "must be given"),
    ({"dimension": 3}, "metric", "must be given"),
    *(({**CREATE, "dimension": d}, "dimension", "must be at least 1") for d in (0, -1)),
    *(({**CREATE, "dimension": d}, "dimension", "must be a whole number") for d in (1.5, "3", None, True)),
    *(({**CREATE, "dimension": d}, "dimension", "must be at most 8192") for d in (8193, 10**30)),
    ({**CREATE, "metric": "hamming"}, "metric", "must be 'cosine', 'l2' or 'dot', is \"hamming\""),
    ({**CREATE, "metric": 1}, "metric", "must be 'cosine', 'l2' or 'dot', is 1"),
    *(({**CREATE, "shards": s}, "shards", "") for s in (0, 129, -1, "many", 1.5, True, [])),
    *(({**CREATE, "replication_factor": n}, "replication_factor", "must be at") for n in (0, 8)),
    ({**CREATE, "replication_factor": 7}, "replication_factor", "must be at most the number of nodes ("),
    ({**CREATE, "min_in_sync": 4}, "min_in_sync", "must be at most replication_factor (3), is 4"),
    ({**CREATE, "index": {"m": 1}}, "index.m", "must be at least"),
    ({**CREATE, "index": {"precision": "f8"}}, "index.precision", "must be"),
    ({**CREATE, "index": {"efSearch": 9}}, "index.efSearch", 'did you mean "ef_search"?'),
    ({**CREATE, "index": 7}, "index", "must be an object"),
    ({**CREATE, "filterable": "pos"}, "filterable", "must be a list, is a string"),
    ({**CREATE, "filterable": [7]}, "filterable[0]", "must be a field of the metadata such as"),
    ({**CREATE, "filterable": ["a", "a"]}, "filterable", ""),
    ({**CREATE, "filterable": ["a..b"]}, "filterable[0]", ""),
    ({**CREATE, "filterable": ['a"b']}, "filterable[0]", "must not hold quotation marks"),
    ({**CREATE, "filterable": [str(i) for i in range(33)]}, "filterable", "must have at most 32 items"),
    ({**CREATE, "read_consistency": "one"}, "read_consistency", "must be 'eventual'"),
    ({**CREATE, "write_consistency": "strong"}, "write_consistency", "must be 'one', 'quorum' or 'all'"),
    ({**CREATE, "name": "x"}, "name", "is not a known field"),
    ({**CREATE, "dimensions": 3}, "dimensions", 'did you mean "dimension"?'),
]


@pytest.mark.parametrize(("body", "field", "said"), CREATIONS, ids=lambda value: str(value)[:60])
def test_a_collection_that_cannot_be_is_not_created(body, field, said):
    refused = Collection(clusters.unique_name("refused"))
    check(Case(said, field=field), refused.call("PUT", body=body, kind=JSON))
    assert refused.call("GET").status_code == 404


@pytest.mark.parametrize(
    "name", ["A", "Words", "-a", "_a", "a b", "a.b", "ä", "x" * 64, "%00", "%FF", "..", "%2E%2E", "{name}", "a%0A"]
)
def test_a_name_that_no_collection_can_have_is_refused_on_every_route(name):
    url = f"{clusters.shared().servers[0]}/v1/collections/{name}"
    if name in ("..", "%2E%2E"):  # requests would resolve it by itself
        answer = exchange(
            f"GET /v1/collections/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        assert b" 400 " in answer.split(b"\r\n")[0] and b'"field":"name"' in answer
        return
    for method, path, body in (
        ("PUT", "", CREATE),
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/vectors", {"vectors": [GOOD]}),
        ("GET", "/vectors", None),
        ("POST", "/search", {"vector": [1]}),
        ("POST", "/count", {}),
        ("GET", "/vectors/a", None),
        ("DELETE", "/vectors/a", None),
        ("POST", "/vectors/delete", {"ids": ["a"]}),
    ):
        check(Case("must be 1 to 63 lower-case letters, digits, - and _", field="name"), call(method, url + path, body))


@pytest.mark.parametrize("name", ["nobody", "0", "x" * 63])
def test_a_collection_that_is_not_there_is_not_found_on_every_route(name):
    url = f"{clusters.shared().servers[1]}/v1/collections/{name}"
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/vectors", {"vectors": [GOOD]}),
        ("GET", "/vectors", None),
        ("POST", "/search", {"vector": [1]}),
        ("POST", "/count", {}),
        ("GET", "/vectors/a", None),
        ("DELETE", "/vectors/a", None),
        ("POST", "/vectors/delete", {"ids": ["a"]}),
    ):
        said = problem(call(method, url + path, body), 404)
        assert said["type"].endswith("/collection-not-found") and name in said["detail"]


# ---- bombs -----------------------------------------------------------------------------------------------------------

MEGA = 1 << 20
LISTS = b"[" + b"[]," * (10 * MEGA) + b"[]]"
"""30 MiB of text that would be 1 GB of objects."""
LONG = json.dumps("k" * (8 * MEGA)).encode()

BOMBS = {
    "nested lists": ("/vectors", b'{"vectors": ' + b"[" * MEGA),
    "nested vector": ("/vectors", b'{"vectors": [{"id": "a", "vector": ' + b"[" * MEGA + b"]" * MEGA + b"}]}"),
    "nested metadata": ("/vectors", b'{"vectors":[{"id":"a","vector":[1,2,3],"metadata":' + b'{"a":' * MEGA),
    "nested filter": ("/count", b'{"filter": ' + b'{"$not":' * MEGA + b"1" + b"}" * (MEGA + 1)),
    "nested search": ("/search", b'{"vector": ' + b"[" * MEGA + b"]" * MEGA + b"}"),
    "many vectors": ("/vectors", b'{"vectors":' + LISTS + b"}"),
    "many little vectors": ("/vectors", b'{"vectors":[' + b'{"id":"","vector":1},' * MEGA + b"{}]}"),
    "a dense vector": ("/vectors", b'{"vectors":[{"id":"a","vector":' + LISTS + b"}]}"),
    "dense metadata": ("/vectors", b'{"vectors":[{"id":"a","vector":[1,2,3],"metadata":{"a":' + LISTS + b"}}]}"),
    "a dense unknown member": ("/vectors", b'{"vectors":[{"id":"a","vector":[1,2,3],"x":' + LISTS + b"}]}"),
    "dense and not an object": ("/vectors", LISTS),
    "a dense query": ("/search", b'{"vector":' + LISTS + b"}"),
    "many queries": ("/search", b'{"vectors":' + LISTS + b"}"),
    "a dense filter": ("/search", b'{"vector":[1,2,3],"filter":{"a":{"$in":' + LISTS + b"}}}"),
    "a dense count": ("/count", b'{"filter":{"a":{"$in":' + LISTS + b"}}}"),
    "many ids": ("/vectors/delete", b'{"ids":' + LISTS + b"}"),
    "many members": ("/search", b"{" + b"".join(b'"%d":0,' % i for i in range(MEGA)) + b'"":0}'),
    "many options": ("/count", b"{" + b"".join(b'"%d":0,' % i for i in range(MEGA)) + b'"":0}'),
    "a long member": ("/vectors", b"{" + LONG + b":1}"),
    "a long member of a vector": ("/vectors", b'{"vectors":[{"id":"a","vector":[1,2,3],' + LONG + b":1}]}"),
    "a long member of a search": ("/search", b'{"vector":[1,2,3],' + LONG + b":1}"),
    "a long operator": ("/count", b'{"filter":{"a":{' + LONG.replace(b'"', b'"$', 1) + b":1}}}"),
    "a long id": ("/vectors", b'{"vectors":[{"id":' + LONG + b',"vector":[1,2,3]}]}'),
    "a long id to delete": ("/vectors/delete", b'{"ids":[' + LONG + b"]}"),
    "a string without an end": ("/search", b'{"vector": "' + b'\\"' * (5 * MEGA)),
    "a long number": ("/search", b'{"vector":[1,2,3],"k":' + b"9" * MEGA + b"}"),
    "a long fraction": ("/search", b'{"vector":[1,2,0.' + b"9" * MEGA + b"e99999]}"),
}


def memory(node: int) -> int:
    """Bytes that the node's process has held at most, where the system says so."""
    status = Path(f"/proc/{processes()[node]}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_json_is_refused_at_once_and_in_few_words(made, name):
    path, body = BOMBS[name]
    before, started = memory(0), time.monotonic()
    said = problem(made.call("POST", path, body, kind=JSON))
    assert len(json.dumps(said)) < 10_000 or len(said["errors"]) == 100
    assert time.monotonic() - started < 10
    assert memory(0) - before < 8 * len(body) + (64 << 20)


def bomb(encoding: str) -> bytes:
    """100 MiB of zeros, in few bytes."""
    zeros = bytes(MEGA)
    packer = zlib.compressobj(9, wbits=31) if encoding == "gzip" else zstd.ZstdCompressor()
    return b"".join(packer.compress(zeros) for _ in range(100)) + packer.flush()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_of_zeros_is_refused_at_the_limit(made, encoding):
    headers = {"Content-Encoding": encoding}
    body, before = bomb(encoding), memory(0)
    for path, kind, status in (
        ("/vectors", JSON, 413),
        ("/search", OCTETS, 413),
        ("/vectors", NDJSON, 400),
        ("/vectors", ARROW, 400),
    ):
        said = problem(made.call("POST", path, body, kind=kind, headers=headers), status)
        assert status == 400 or "at most 67108864 bytes, after decompression" in said["detail"]
    assert memory(0) - before < 256 << 20


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_is_not_what_its_encoding_says_is_refused(made, encoding):
    pack = {"gzip": gzip.compress, "zstd": zstd.compress}[encoding]
    whole = pack(json.dumps({"vectors": [GOOD]}).encode())
    for body in (whole[:-1], whole[: len(whole) // 2], whole + b"x", b"plain", whole[:-4] + b"\0\1\2\3"):
        reply = made.call("POST", "/vectors", body, kind=JSON, headers={"Content-Encoding": encoding})
        if encoding == "zstd" and body[:-4] == whole[:-4] and len(body) == len(whole):
            continue  # zstd frames need not carry a checksum
        assert f"the body is not what Content-Encoding says, {encoding}" in problem(reply)["detail"]


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(made):
    limit = DEFAULTS.max_body_size
    chunk = b" " * MEGA

    def unsaid() -> Iterator[bytes]:
        for _ in range(limit // MEGA + 1):
            yield chunk

    head = f"POST /v1/collections/{made.name}/vectors HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    announced = exchange(f"{head}Content-Type: {JSON}\r\nContent-Length: {limit + 1}\r\n\r\n".encode(), once=True)
    assert b" 413 " in announced.split(b"\r\n")[0] and f"at most {limit} bytes".encode() in announced
    said = problem(made.call("POST", "/vectors", unsaid(), kind=JSON), 413)
    assert f"at most {limit} bytes" in said["detail"]


# ---- not even HTTP ---------------------------------------------------------------------------------------------------


def exchange(data: bytes, *, hang_up: bool = False, once: bool = False) -> bytes:
    """What a node answers to these bytes until it closes the connection, or `once`, or after we `hang_up`."""
    host, port = clusters.shared().servers[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(data)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            if once:
                return connection.recv(1 << 16)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (ConnectionResetError, BrokenPipeError):
            return b""


@pytest.mark.parametrize(
    "data",
    [
        b"\0\1\2\3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        b"POST /v1/collections/a/count HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/collections/a/count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9" + b"9" * 40 + b"\r\n\r\n",
        b"POST /v1/collections/a/count HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_not_http_is_refused(data):
    assert re.match(rb"HTTP/1\.[01] 400 ", exchange(data))


def request(name: str, body: bytes, **headers: str) -> bytes:
    lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    return f"POST /v1/collections/{name}/vectors HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode() + body


def test_a_body_that_breaks_off_stores_nothing(made):
    row = ndjson(GOOD)
    for data in (
        request(made.name, row, Content_Type=NDJSON, Content_Length="1000"),
        request(made.name, row, Content_Type=JSON, Content_Length="1000"),
        request(made.name, arrow(GOOD), Content_Type=ARROW, Content_Length="100000"),
        request(made.name, b"%x\r\n%s\r\n" % (len(row), row), Content_Type=NDJSON, Transfer_Encoding="chunked"),
        request(made.name, b"%x\r\n%s\r\nzz\r\n" % (len(row), row), Content_Type=NDJSON, Transfer_Encoding="chunked"),
        request(made.name, b"ffffffffffffffffffff\r\n" + row, Content_Type=NDJSON, Transfer_Encoding="chunked"),
    ):
        answer = exchange(data, hang_up=True)
        assert not answer or b" 400 " in answer.split(b"\r\n")[0], answer


def test_requests_after_one_another_on_a_connection_are_answered_in_order_also_after_errors(made):
    bad = request(made.name, b"x" * 200_000, Content_Type="text/plain", Content_Length="200000")
    empty = request(made.name, b"{}", Content_Type=JSON, Content_Length="2")
    fine = f"GET /v1/collections/{made.name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    last = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = exchange(fine + empty + bad + fine + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"400", b"415", b"200", b"404"]
