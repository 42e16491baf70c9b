"""Bodies in every form: what is read, what is refused and in which words, and that garbage does no more than that."""

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veccluster.decisions.filters import Where
from veccluster.errors import InvalidRequest, VecClusterError
from veccluster.model.limits import DEFAULTS, Limits
from veccluster.model.state import Collection, Metric, ReadConsistency
from veccluster_node.engine.search import Hit, Stored
from veccluster_node.http import codecs
from veccluster_node.http.codecs import UpsertBatch, decode_search_binary, decode_search_json
from veccluster_node.http.negotiation import ARROW, JSON


def collection(metric: Metric = Metric.cosine, dimension: int = 3) -> Collection:
    return Collection(name="words", uuid="uuid", dimension=dimension, metric=metric, shards=1)


WORDS = collection()
GOOD = {"id": "a", "vector": [1, 2.5, -3], "metadata": {"pos": "n"}}
Row = Mapping[str, Any]


def upsert_json(*rows: Any, limits: Limits = DEFAULTS, into: Collection = WORDS, **members: Any) -> UpsertBatch:
    return codecs.decode_upsert_json(json.dumps({"vectors": rows, **members}).encode(), into, limits)[0]


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def stream(
    body: bytes,
    *,
    form: str,
    size: int = 1 << 16,
    rows: int = 1000,
    limits: Limits = DEFAULTS,
    into: Collection = WORDS,
) -> tuple[list[UpsertBatch], VecClusterError | None]:
    """The batches that come out, and the error at the end if there is one."""
    decode = {"ndjson": codecs.decode_upsert_ndjson, "arrow": codecs.decode_upsert_arrow}[form]

    async def collect() -> tuple[list[UpsertBatch], VecClusterError | None]:
        batches: list[UpsertBatch] = []
        try:
            async for batch in decode(pieces(body, size), into, limits, rows):
                batches.append(batch)
        except VecClusterError as error:
            return batches, error
        return batches, None

    return asyncio.run(collect())


def ndjson(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def arrow(
    rows: Sequence[Row],
    *,
    vector: pa.DataType | None = None,
    batch: int = 1000,
    text: pa.DataType | None = None,
    **options: Any,
) -> bytes:
    columns = {
        "id": pa.array([row["id"] for row in rows], pa.string()).cast(text or pa.string()),
        "vector": pa.array([row["vector"] for row in rows], vector or pa.list_(pa.float32(), 3)),
        "metadata": pa.array(
            [None if row.get("metadata") is None else json.dumps(row["metadata"]) for row in rows], pa.string()
        ).cast(text or pa.string()),
    }
    return arrow_stream(pa.table(columns), batch, **options)


def arrow_stream(table: pa.Table, batch: int = 1000, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, batch)
    return sink.getvalue().to_pybytes()


def in_each_form(row: Row, into: Collection = WORDS) -> Mapping[str, VecClusterError | None]:
    """What is said of one vector, by the form of the body."""
    said: dict[str, VecClusterError | None] = {"json": None}
    try:
        upsert_json(row, into=into)
    except VecClusterError as error:
        said["json"] = error
    said["ndjson"] = stream(ndjson(row), form="ndjson", into=into)[1]
    said["arrow"] = stream(arrow([row]), form="arrow", into=into)[1]
    return said


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_json_batch_becomes_arrays() -> None:
    second = {"id": "b", "vector": [0, 0, 1e-3]}
    body = json.dumps({"vectors": [GOOD, second], "atomic": True}, indent=2).encode()
    batch, atomic = codecs.decode_upsert_json(body, WORDS, DEFAULTS)
    assert atomic
    assert batch.ids == ["a", "b"]
    assert batch.vectors.dtype == np.float32
    np.testing.assert_array_equal(batch.vectors, np.array([[1, 2.5, -3], [0, 0, 1e-3]], np.float32))
    assert batch.metadata == [b'{"pos":"n"}', b"{}"]


def test_metadata_is_kept_as_it_was_sent_but_for_white_space() -> None:
    text = '{ "b": [1, 1.0, true, null, 18446744073709551615, -9223372036854775808],\n "a" : {"x": "\\u00e9\\u0000"} }'
    body = '{"vectors": [{"id": "a", "vector": [1, 2, 3], "metadata": ' + text + "}]}"
    (stored,) = codecs.decode_upsert_json(body.encode(), WORDS, DEFAULTS)[0].metadata
    expected = '{"b":[1,1.0,true,null,18446744073709551615,-9223372036854775808],"a":{"x":"é\\u0000"}}'
    assert stored.decode() == expected


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_a_stream_is_the_same_however_it_arrives(size: int) -> None:
    rows = [{"id": f"w{i % 40}", "vector": [i, 1, 0], "metadata": {"i": i}} for i in range(1, 100)]
    for form, body in (("ndjson", ndjson(*rows)), ("arrow", arrow(rows, batch=13))):
        batches, error = stream(body, form=form, size=size, rows=32)
        assert error is None
        assert [len(b) for b in batches] == [32, 32, 32, 3]
        assert [i for b in batches for i in b.ids] == [row["id"] for row in rows]
        assert [float(v[0]) for b in batches for v in b.vectors] == list(range(1, 100))
        assert batches[0].metadata[0] == b'{"i":1}'


@pytest.mark.parametrize("form", ["ndjson", "arrow"])
def test_in_a_stream_an_id_that_comes_again_begins_a_new_batch(form: str) -> None:
    rows = [{"id": i, "vector": [n, 1, 1]} for n, i in enumerate("abcabxx", 1)]
    body = ndjson(*rows) if form == "ndjson" else arrow(rows)
    batches, error = stream(body, form=form)
    assert error is None
    assert [b.ids for b in batches] == [["a", "b", "c"], ["a", "b", "x"], ["x"]]
    assert batches[-1].vectors[0, 0] == 7


@pytest.mark.parametrize(
    "vector",
    [
        pa.list_(pa.float32(), 3),
        pa.list_(pa.float64(), 3),
        pa.list_(pa.float16(), 3),
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
    ],
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_arrow_columns_of_several_types_are_read(vector: pa.DataType, text: pa.DataType) -> None:
    rows = [
        {"id": f"w{i}", "vector": [np.float16(i), np.float16(1), np.float16(0)], "metadata": {"i": i}} for i in range(5)
    ]
    (batch,), error = stream(arrow(rows, vector=vector, text=text), form="arrow")
    assert error is None
    assert batch.ids == ["w0", "w1", "w2", "w3", "w4"]
    np.testing.assert_array_equal(batch.vectors, np.array([[i, 1, 0] for i in range(5)], np.float32))
    assert batch.metadata[4] == b'{"i":4}'


def test_arrow_metadata_may_be_null_or_left_out() -> None:
    rows = [{**GOOD, "metadata": None}]
    without = pa.table({"id": ["a"], "vector": pa.array([[1, 2, 3]], pa.list_(pa.float32(), 3))})
    empty = without.append_column("metadata", pa.nulls(1))
    for body in (arrow(rows), arrow_stream(without), arrow_stream(empty)):
        (batch,), error = stream(body, form="arrow")
        assert (batch.metadata, error) == ([b"{}"], None)


def test_arrow_dictionaries_that_grow_are_read() -> None:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("id", pa.dictionary(pa.int32(), pa.string())), ("vector", pa.list_(pa.float32(), 3))])
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as writer:
        for ids in (["a", "b"], ["a", "b", "c"]):
            column = pa.DictionaryArray.from_arrays(pa.array(range(len(ids)), pa.int32()), pa.array(ids))
            writer.write_batch(
                pa.record_batch([column, pa.array([[1, 2, 3]] * len(ids), schema.field(1).type)], schema=schema)
            )
    batches, error = stream(sink.getvalue().to_pybytes(), form="arrow")
    assert error is None
    assert [b.ids for b in batches] == [["a", "b"], ["a", "b", "c"]]


def test_a_stream_is_read_as_it_comes() -> None:
    """The first batch is out before the second half of the body exists."""
    body = arrow([{"id": f"w{i}", "vector": [1, 2, 3]} for i in range(60)], batch=5)
    asked = []

    async def slow() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 64):
            asked.append(start)
            yield body[start : start + 64]

    async def first() -> UpsertBatch:
        async for batch in codecs.decode_upsert_arrow(slow(), WORDS, DEFAULTS, 5):
            return batch
        raise AssertionError

    assert asyncio.run(first()).ids == ["w0", "w1", "w2", "w3", "w4"]
    assert asked[-1] < len(body) / 2


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**GOOD, "vector": [1e39, 1, 1]}, "vector[0]", "must be a finite number that float32 can hold, is inf"),
        ({**GOOD, "vector": [1, 1, -1e39]}, "vector[2]", "must be a finite number that float32 can hold, is -inf"),
        ({**GOOD, "vector": [0, 0, 0]}, "vector", "must not be zero: with cosine it has no direction"),
        ({**GOOD, "vector": [0, -0.0, 1e-60]}, "vector", "must not be zero: with cosine it has no direction"),
        ({**GOOD, "vector": [0, 0, 1e-30]}, "vector", "must not be shorter than 1e-15 with cosine"),
        ({**GOOD, "vector": [1e30, 0, 0]}, "vector", "must not be longer than 1e+15"),
        ({**GOOD, "id": ""}, "id", "must be a string of 1 to 512 bytes of UTF-8, has 0"),
        ({**GOOD, "id": "é" * 257}, "id", "must be a string of 1 to 512 bytes of UTF-8, has 514"),
        ({**GOOD, "metadata": [1]}, "metadata", "must be an object, is a list"),
        ({**GOOD, "metadata": "x"}, "metadata", "must be an object, is a string"),
        ({**GOOD, "metadata": {"a": "x" * 70_000}}, "metadata", "must be at most 65536 bytes of JSON, is 70008"),
        ({**GOOD, "metadata": {"a": {"b": [2**64]}}}, "metadata.a.b[0]", "must be a whole number of at most 64 bits"),
        ({**GOOD, "metadata": {"a": -(2**63) - 1}}, "metadata.a", "must be a whole number of at most 64 bits"),
    ],
)
def test_a_bad_vector_is_refused_in_the_same_words_in_each_form(row: Row, field: str, reason: str) -> None:
    for form, error in in_each_form(row).items():
        assert isinstance(error, InvalidRequest), form
        (said,) = error.errors
        assert said["index"] == 0
        assert said["field"] == field
        assert reason in said["reason"]
        assert error.status == 400


def test_metadata_depth_is_bounded() -> None:
    def nested(levels: int) -> Row:
        value: Any = 1
        for _ in range(levels - 1):
            value = [value]
        return {**GOOD, "metadata": {"a": value}}

    assert set(in_each_form(nested(16)).values()) == {None}
    for levels in (17, 900):
        for error in in_each_form(nested(levels)).values():
            assert isinstance(error, InvalidRequest)
            assert "it may have 16 levels" in error.detail


def test_zero_and_tiny_vectors_are_fine_without_cosine() -> None:
    for metric in (Metric.l2, Metric.dot):
        for vector in ([0, 0, 0], [0, 0, 1e-30]):
            assert set(in_each_form({**GOOD, "vector": vector}, collection(metric)).values()) == {None}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"id": "a"}, "vector", "must be given"),
        ({"vector": [1, 2, 3]}, "id", "must be given"),
        ({**GOOD, "id": 3}, "id", "must be a string of 1 to 512 bytes, is a number"),
        ({**GOOD, "id": None}, "id", "must be a string of 1 to 512 bytes, is null"),
        ({**GOOD, "vector": [1, 2]}, "vector", "must have 3 numbers, the collection's dimension; has 2"),
        ({**GOOD, "vector": [1, "2", 3]}, "vector[1]", "must be a number, is a string"),
        ({**GOOD, "vector": [1, 2, True]}, "vector[2]", "must be a number, is a boolean"),
        ({**GOOD, "vector": [1, 2, None]}, "vector[2]", "must be a number, is null"),
        ({**GOOD, "vector": [[1, 2, 3]]}, "vector[0]", "must be a number, is a list"),
        ({**GOOD, "vector": "1,2,3"}, "vector", "must be a list of numbers, is a string"),
        ({**GOOD, "vector": None}, "vector", "must be a list of numbers, is null"),
        ({**GOOD, "metdata": {}}, "metdata", 'is not a known field; did you mean "metadata"?'),
        ({**GOOD, "colour": "red"}, "colour", "is not a known field; other members belong into metadata"),
        ("x", "", "must be an object with id, vector and metadata; is a string"),
    ],
)
def test_json_of_the_wrong_shape_is_refused_naming_the_member(row: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        upsert_json(GOOD | {"id": "other"}, row)
    _, streamed = stream(ndjson(GOOD | {"id": "other"}, row), form="ndjson")
    for error in (refusal.value, streamed):
        assert isinstance(error, InvalidRequest)
        assert [(e["index"], e["field"]) for e in error.errors] == [(1, field)]
        assert reason in error.errors[0]["reason"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b'{"vectors": [', "at line 1, column"),
        (b'{"vectors": [\n  {"id": "a",, }]}', "at line 2, column 14"),
        (b'{"vectors": [{"id": "a", "vector": [NaN, 1, 2]}]}', "JSON has no NaN and no Infinity"),
        (b'{"vectors": [{"id": "a", "vector": [1, 2, -Infinity]}]}', "JSON has no NaN and no Infinity"),
        (b'{"vectors": [{"id": "a\xff", "vector": [1, 2, 3]}]}', "is not JSON"),
        (b'{"vectors": [{"id": "\\ud800", "vector": [1, 2, 3]}]}', "is not JSON"),
        (b'{"vectors": [{"id": "a", "vector": [1, 2, 3], "metadata": {"a": "\\udfff"}}]}', "is not JSON"),
        (b"[]", "the body must be an object, is a list"),
        (b'{"vectors": []}', "vectors: must be 1 to 10000 vectors, are 0"),
        (b'{"vectors": {}}', "vectors: must be a list of objects with id, vector and metadata, is an object"),
        (b"{}", "vectors: must be given"),
        (b'{"vectors": [{"id": "a", "vector": [1, 2, 3]}], "atomic": 1}', "atomic: must be true or false, is a number"),
        (b'{"vectors": [], "atomics": true}', 'atomics: is not a known field; did you mean "atomic"?'),
        (b"[" * 100_000, "the body"),
        (b'{"vectors":' * 5_000, "the body"),
    ],
)
def test_a_body_that_is_no_upsert_is_refused_saying_why(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        codecs.decode_upsert_json(body, WORDS, DEFAULTS)
    assert said in refusal.value.detail


def test_every_bad_vector_of_a_batch_is_listed_up_to_a_hundred() -> None:
    rows = [{"id": f"w{i}", "vector": [1, 2, 3]} for i in range(200)]
    rows[5] = {"id": "w5", "vector": [1, 2], "metadata": {"x": 2**70}}
    rows[7] = {"id": "w3", "vector": [0, 0, 0]}
    rows[9] = {"id": "w9", "vector": [0, 0, 0]}
    with pytest.raises(InvalidRequest) as refusal:
        upsert_json(*rows)
    assert [(e["index"], e["id"], e["field"]) for e in refusal.value.errors] == [
        (5, "w5", "vector"),
        (5, "w5", "metadata.x"),
        (7, "w3", "id"),
        (9, "w9", "vector"),
    ]
    assert "vector 3 has the same" in refusal.value.errors[2]["reason"]
    with pytest.raises(InvalidRequest) as refusal:
        upsert_json(*[{"id": str(i), "vector": []} for i in range(130)])
    assert len(refusal.value.errors) == 100
    assert refusal.value.extra["more_errors"] == 30
    assert "(and 129 more)" in refusal.value.detail


def test_a_batch_over_the_limit_is_refused() -> None:
    limits = Limits(max_batch=2)
    rows = [{"id": str(i), "vector": [1, 2, 3]} for i in range(3)]
    assert len(upsert_json(*rows[:2], limits=limits)) == 2
    with pytest.raises(InvalidRequest, match="must be 1 to 2 vectors, are 3"):
        upsert_json(*rows, limits=limits)


@pytest.mark.parametrize("form", ["ndjson", "arrow"])
def test_a_stream_that_goes_wrong_gives_the_batches_before_and_names_the_row(form: str) -> None:
    rows: list[Row] = [{"id": f"w{i}", "vector": [1, 2, 3]} for i in range(25)]
    rows[17] = {"id": "w17", "vector": [1, 2, 1e39]}
    body = ndjson(*rows) if form == "ndjson" else arrow(rows, batch=7)
    batches, error = stream(body, form=form, rows=5)
    assert [len(b) for b in batches] == [5, 5, 5]
    assert isinstance(error, InvalidRequest)
    assert [(e["index"], e["id"], e["field"]) for e in error.errors] == [(17, "w17", "vector[2]")]


def test_a_line_of_ndjson_is_bounded_and_may_lack_its_end() -> None:
    (batch,), error = stream(
        ndjson(GOOD).rstrip() + b"\r\n\n  \n" + ndjson({**GOOD, "id": "b"}).rstrip(), form="ndjson"
    )
    assert (batch.ids, error) == (["a", "b"], None)
    _, error = stream(b'{"id": "' + b"x" * 2_000_000, form="ndjson")
    assert isinstance(error, InvalidRequest)
    assert "must be a line of at most 1048576 bytes" in error.detail
    _, error = stream(ndjson(GOOD) + b'{"id": "b", "vec', form="ndjson")
    assert isinstance(error, InvalidRequest)
    assert error.errors[0]["index"] == 1
    assert "is not JSON" in error.errors[0]["reason"]


@pytest.mark.parametrize("form", ["ndjson", "arrow"])
def test_an_empty_stream_is_refused(form: str) -> None:
    empty = arrow([])
    for body in (b"", b"\n\n") if form == "ndjson" else (b"", empty):
        _, error = stream(body, form=form)
        assert isinstance(error, InvalidRequest)
        assert "empty" in error.detail


VECTOR = pa.array([[1, 2, 3]], pa.list_(pa.float32(), 3))


@pytest.mark.parametrize(
    ("table", "field", "reason"),
    [
        (pa.table({"id": ["a"]}), "vector", "must be a column of the stream"),
        (pa.table({"vector": VECTOR}), "id", "must be a column of the stream"),
        (pa.table({"id": [1], "vector": VECTOR}), "id", "must be a column of strings, is int64"),
        (pa.table({"id": [b"a"], "vector": VECTOR}), "id", "must be a column of strings, is binary"),
        (pa.table({"id": pa.array(["a"], pa.string_view()), "vector": VECTOR}), "id", "is string_view"),
        (pa.table({"id": ["a"], "vector": VECTOR, "metadata": [1]}), "metadata", "a column of strings, is int64"),
        (pa.table({"id": ["a"], "vector": VECTOR, "colour": ["red"]}), "colour", "is not a column that is read here"),
        (pa.table({"id": ["a"], "vector": [1.5]}), "vector", "must be a column of fixed-size lists of 3 float32"),
        (pa.table({"id": ["a"], "vector": [[1, 2, 3]]}), "vector", "must be a column of fixed-size lists of 3 float32"),
        (
            pa.table({"id": ["a"], "vector": pa.array([[1, 2]], pa.list_(pa.float32(), 2))}),
            "vector",
            "must have 3 numbers, the collection's dimension; has 2",
        ),
        (pa.Table.from_arrays([pa.array(["a"]), VECTOR, VECTOR], ["id", "vector", "vector"]), "vector", "there once"),
    ],
)  # fmt: skip
def test_arrow_columns_that_are_not_read_are_refused_by_name(table: pa.Table, field: str, reason: str) -> None:
    batches, error = stream(arrow_stream(table), form="arrow")
    assert not batches
    assert isinstance(error, InvalidRequest)
    assert error.errors[0]["field"] == field
    assert reason in error.errors[0]["reason"]


@pytest.mark.parametrize(
    ("ids", "vectors", "type_", "expected"),
    [
        (["a", None], [[1, 2, 3]] * 2, pa.list_(pa.float32(), 3), (1, "id", "is null")),
        (["a", "b"], [[1, 2, 3], None], pa.list_(pa.float32(), 3), (1, "vector", "must not be null")),
        (["a", "b"], [[1, 2, 3], None], pa.list_(pa.float32()), (1, "vector", "must not be null")),
        (["a", "b"], [[1, 2, 3], [1, None, 3]], pa.list_(pa.float32(), 3), (1, "vector", "must not hold nulls")),
        (["a", "b"], [[1, 2, 3], [1, None, 3]], pa.list_(pa.float64()), (1, "vector", "must not hold nulls")),
        (["a", "b"], [[1, 2, 3], [1, 2]], pa.list_(pa.float32()), (1, "vector", "must have 3 numbers")),
        (["a", "b"], [[1, 2, 3], [1, float("nan"), 2]], pa.list_(pa.float32(), 3), (1, "vector[1]", "is nan")),
        (["a", "b"], [[1, 2, 3], [1, float("-inf"), 2]], pa.list_(pa.float64(), 3), (1, "vector[1]", "is -inf")),
    ],
)
def test_arrow_rows_with_nulls_or_nan_are_refused(
    ids: list[str | None], vectors: list[Any], type_: pa.DataType, expected: tuple[int, str, str]
) -> None:
    _, error = stream(arrow_stream(pa.table({"id": ids, "vector": pa.array(vectors, type_)})), form="arrow")
    assert isinstance(error, InvalidRequest)
    assert (error.errors[0]["index"], error.errors[0]["field"]) == expected[:2]
    assert expected[2] in error.errors[0]["reason"]


def test_arrow_that_could_grow_is_refused() -> None:
    rows = [GOOD]
    _, error = stream(arrow(rows, compression="zstd"), form="arrow")
    assert error is not None
    assert "must not be compressed" in error.detail
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array(["x" * 100_000]))
    table = pa.table({"id": huge, "vector": pa.array([[1, 2, 3]] * 1000, pa.list_(pa.float32(), 3))})
    _, error = stream(arrow_stream(table), form="arrow")
    assert error is not None
    assert "the dictionary holds one of 100000" in error.detail
    _, error = stream(
        arrow([{**GOOD, "id": f"{i:0500}"} for i in range(100)]),
        form="arrow",
        limits=Limits(max_arrow_batch_size=10_000),
    )
    assert error is not None
    assert "use record batches of at most 10000 bytes" in error.detail
    for size in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"):
        _, error = stream(b"\xff\xff\xff\xff" + size + b"\0" * 100, form="arrow")
        assert error is not None


def test_every_truncation_of_an_arrow_stream_is_noticed() -> None:
    body = arrow([{"id": f"w{i}", "vector": [1, 2, 3]} for i in range(6)], batch=3)
    whole = 0
    for end in {*range(0, len(body), 3), *range(0, len(body), 8)}:
        batches, error = stream(body[:end], form="arrow", rows=3)
        whole += error is None
        assert error is None or isinstance(error, InvalidRequest)
        assert all(np.isfinite(b.vectors).all() for b in batches)
    assert whole == 2, "only a stream that ends between record batches, which Arrow allows, is a whole one"


def test_damaged_arrow_streams_neither_crash_nor_hang() -> None:
    rng = random.Random(7)
    bodies = [
        arrow([{"id": f"w{i}", "vector": [1, 2, 3], "metadata": {"i": i}} for i in range(6)], batch=3),
        arrow(
            [{"id": "w", "vector": [1, 2, 3]}] * 3,
            vector=pa.list_(pa.float64()),
            text=pa.dictionary(pa.int8(), pa.string()),
        ),
    ]
    for turn in range(700):
        body = bytearray(bodies[turn % 2])
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(body))
            if rng.random() < 0.5:
                body[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            else:
                body[at : at + 4] = struct.pack("<i", rng.choice((-1, 0, 2**31 - 1, -(2**31), rng.randrange(4096))))
        batches, error = stream(bytes(body), form="arrow", size=rng.choice((100, 1 << 16)))
        assert error is None or error.status == 400
        for batch in batches:
            assert len(batch.ids) == len(batch.vectors) == len(batch.metadata)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\xff\xff\xff\xff" + b))
def test_garbage_is_refused_in_every_form(body: bytes) -> None:
    for form in ("ndjson", "arrow"):
        assert isinstance(stream(body, form=form)[1], InvalidRequest)
    calls: list[Callable[[], Any]] = [
        lambda: codecs.decode_upsert_json(body, WORDS, DEFAULTS),
        lambda: decode_search_json(body, WORDS, DEFAULTS),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "vector", "metadata", "k", "x", "$and"]), v, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(["vectors", "vector", "atomic", "k", "filter", "include", "ef", "exact"]), json_values
    )
)
def test_json_of_any_shape_is_read_or_refused(value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    for call in (codecs.decode_upsert_json, decode_search_json):
        try:
            call(body, WORDS, DEFAULTS)
        except InvalidRequest as refusal:
            orjson.dumps(refusal.problem())


# ---- searches --------------------------------------------------------------------------------------------------------

OPTIONS = {"k": 5, "filter": {"pos": "n"}, "include": ["metadata"], "ef": 100, "exact": True, "allow_partial": True}


def test_a_search_is_the_same_in_json_and_in_binary() -> None:
    vectors = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    options = {**OPTIONS, "consistency": "strong"}
    query = {"k": "5", "filter": '{"pos": "n"}', "include": "metadata", "ef": "100", "exact": "true"}
    query |= {"allow_partial": "true", "consistency": "strong", "queries": "2", "dimension": "3"}
    asked = [
        decode_search_json(json.dumps({"vectors": vectors.tolist(), **options}).encode(), WORDS, DEFAULTS),
        decode_search_binary(vectors.tobytes(), query, WORDS, DEFAULTS),
    ]
    for search in asked:
        query = search.query
        np.testing.assert_array_equal(query.vectors, vectors)
        assert (search.many, query.k, query.where, query.ef) == (True, 5, Where.of({"pos": "n"}), 100)
        assert (query.with_metadata, query.with_vector) == (True, False)
        assert (query.exact, search.allow_partial) == (True, True)
        assert search.consistency is ReadConsistency.strong


def test_one_query_is_not_many_unless_it_says_so() -> None:
    one = np.array([1, 2, 3], np.float32).tobytes()
    assert not decode_search_json(b'{"vector": [1, 2, 3]}', WORDS, DEFAULTS).many
    assert decode_search_json(b'{"vectors": [[1, 2, 3]]}', WORDS, DEFAULTS).many
    assert not decode_search_binary(one, {}, WORDS, DEFAULTS).many
    assert decode_search_binary(one, {"many": "true"}, WORDS, DEFAULTS).many
    assert decode_search_binary(one * 2, {"queries": "2"}, WORDS, DEFAULTS).many
    with pytest.raises(InvalidRequest, match="many: must not be false with 2 vectors"):
        decode_search_binary(one * 2, {"many": "false", "queries": "2"}, WORDS, DEFAULTS)


@pytest.mark.parametrize(
    ("members", "field", "reason"),
    [
        ({}, "vector", "must be given, or else vectors"),
        ({"vector": [1, 2, 3], "vectors": [[1, 2, 3]]}, "vector", "must be left out when vectors are given"),
        ({"vector": [1, 2]}, "vector", "must have 3 numbers"),
        ({"vector": [0, 0, 0]}, "vector", "must not be zero"),
        ({"vector": [1, 2, 1e39]}, "vector[2]", "is inf"),
        ({"vector": [1, 2, "3"]}, "vector[2]", "must be a number, is a string"),
        ({"vectors": []}, "vectors", "must be 1 to 1000 vectors, are 0"),
        ({"vectors": [[1, 2, 3]] * 1001}, "vectors", "must be 1 to 1000 vectors, are 1001"),
        ({"vectors": [[1, 2, 3], [1, 2]]}, "vectors[1]", "must have 3 numbers"),
        ({"vectors": [[1, 2, 3], [0, 0, 0]]}, "vectors[1]", "must not be zero"),
        ({"vectors": [1, 2, 3]}, "vectors[0]", "must be a list of numbers, is a number"),
        ({"vector": [1, 2, 3], "k": 0}, "k", "must be at least 1, is 0"),
        ({"vector": [1, 2, 3], "k": 10_001}, "k", "must be at most 10000, is 10001"),
        ({"vector": [1, 2, 3], "k": "10"}, "k", "must be a whole number, is a string"),
        ({"vector": [1, 2, 3], "k": 1.5}, "k", "must be a whole number"),
        ({"vector": [1, 2, 3], "k": True}, "k", "must be a whole number, is a boolean"),
        ({"vectors": [[1, 2, 3]] * 100, "k": 1001}, "k", "must be at most 1000 with 100 vectors, is 1001"),
        ({"vector": [1, 2, 3], "ef": 10_001}, "ef", "must be at most 10000, is 10001"),
        ({"vector": [1, 2, 3], "include": ["metadata", "vectors"]}, "include[1]", "must be 'metadata' or 'vector'"),
        ({"vector": [1, 2, 3], "consistency": "weak"}, "consistency", "must be 'eventual', 'session', "),
        ({"vector": [1, 2, 3], "exact": 1}, "exact", "must be true or false, is 1"),
        ({"vector": [1, 2, 3], "filter": []}, "filter", "must be an object, is a list"),
        ({"vector": [1, 2, 3], "filter": {"a": {"$near": 1}}}, "filter.a.$near", "is not an operator"),
        ({"vector": [1, 2, 3], "filter": {"a": 2**64}}, "filter.a", "at most 64 bits"),
        ({"vector": [1, 2, 3], "fliter": {}}, "fliter", 'is not a known field; did you mean "filter"?'),
    ],
)  # fmt: skip
def test_a_bad_search_is_refused_naming_the_member(members: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode_search_json(json.dumps(members).encode(), WORDS, DEFAULTS)
    assert refusal.value.errors[0]["field"] == field
    assert reason in refusal.value.errors[0]["reason"]


@pytest.mark.parametrize(
    ("body", "query", "said"),
    [
        (b"", {}, "must be one or more vectors of 3 little-endian float32 (12 bytes each), is 0 bytes"),
        (b"\0" * 13, {}, "is 13 bytes"),
        (b"\0" * 12, {}, "vectors[0]: must not be zero"),
        (
            struct.pack("<3f", 1, float("nan"), 2),
            {},
            "vectors[0][1]: must be a finite number that float32 can hold, is nan",
        ),
        (b"\1\0\0\77" * 3003, {"dimension": "3"}, "the body must be 1 to 1000 vectors, are 1001"),
        (b"\1\0\0\77" * 3, {"k": "0"}, "k: must be at least 1, is 0"),
        (b"\1\0\0\77" * 3, {"k": "ten"}, "k: must be a whole number, is a string"),
        (b"\1\0\0\77" * 3, {"k": ""}, "k: must be a whole number, is a string"),
        (b"\1\0\0\77" * 3, {"k": "9" * 30}, "k: must be a whole number, is a string"),
        (b"\1\0\0\77" * 3, {"include": "metadata,colour"}, "include[1]: must be 'metadata' or 'vector'"),
        (b"\1\0\0\77" * 3, {"exact": "yes"}, "exact: must be true or false, is a string"),
        (b"\1\0\0\77" * 3, {"filter": "{"}, "filter: must be JSON"),
        (b"\1\0\0\77" * 3, {"filter": "3"}, "filter: must be an object, is 3"),
        (b"\1\0\0\77" * 3, {"filter": '{"a": {"$gt": null}}'}, "filter.a.$gt: must be a number or a string, is null"),
        (b"\1\0\0\77" * 3, {"vector": "[1]"}, "vector: is not a known field"),
        (b"\1\0\0\77" * 3, {"kk": "3"}, "kk: is not a known field"),
        (b"\1\0\0\77" * 3, {"k": "007"}, "k: must be JSON"),
    ],
)
def test_a_bad_binary_search_is_refused_saying_why(body: bytes, query: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode_search_binary(body, query, WORDS, DEFAULTS)
    assert said in refusal.value.detail


def test_an_error_about_the_body_itself_has_an_empty_field() -> None:
    for body in (b"", b"\1\0\0\77" * 3003):
        with pytest.raises(InvalidRequest) as refusal:
            decode_search_binary(body, {"dimension": "3"}, WORDS, DEFAULTS)
        assert [e["field"] for e in refusal.value.errors] == [""]


def test_a_filter_in_a_query_string_is_checked_and_handed_on() -> None:
    text = '{"a":{"$gt":18446744073709551615}}'
    assert codecs.where_of_text(text, DEFAULTS).text.decode() == text
    for text in ("", "{", "[]", '{"a": 18446744073709551616}', '{"a": "\\ud800"}', "[" * 100_000, "9" * 10_000):
        with pytest.raises(InvalidRequest):
            codecs.where_of_text(text, DEFAULTS)


# ---- replies ---------------------------------------------------------------------------------------------------------

VECTORS = np.array([[0.1, 1e-8, 3], [1 / 3, -2, 16777217.0]], np.float32)
HITS = [
    [Hit(0.1 + 0.2, "a", b'{"x":1.0}', VECTORS[0].tobytes()), Hit(1.5, "b", b"{}", VECTORS[1].tobytes())],
    [Hit(0.0, "c", b"{}", VECTORS[0].tobytes())],
]
ENVELOPE = {"partial": False, "missing_shards": [], "token": "t", "took_ms": 1.5}


def asked(many: bool, *include: str) -> codecs.SearchRequest:
    query = {"many": str(many).lower(), "include": ",".join(include)}
    return decode_search_binary(np.ones(3, np.float32).tobytes(), query, WORDS, DEFAULTS)


@pytest.mark.parametrize(("metric", "score"), [(Metric.cosine, 1 - 1.5), (Metric.l2, -1.5), (Metric.dot, -1.5)])
def test_a_json_reply_reads_back_exactly(metric: Metric, score: float) -> None:
    body = codecs.encode_search(HITS, asked(True, "metadata", "vector"), collection(metric), ENVELOPE, JSON)
    reply = json.loads(body)
    assert {k: v for k, v in reply.items() if k != "results"} == ENVELOPE
    first, second = reply["results"][0]
    assert first["distance"] == 0.1 + 0.2
    assert second["score"] == score
    assert first["metadata"] == {"x": 1.0}
    np.testing.assert_array_equal(np.array(second["vector"], np.float32), VECTORS[1])
    flat = json.loads(codecs.encode_search(HITS[:1], asked(False), collection(metric), ENVELOPE, JSON))
    assert [hit["id"] for hit in flat["results"]] == ["a", "b"]


def test_floats_in_json_replies_have_as_few_digits_as_float32_needs() -> None:
    body = codecs.encode_vector(Stored("a", VECTORS[0].tobytes(), b'{"x":1}'))
    assert body == b'{"id":"a","vector":[0.1,1e-8,3.0],"metadata":{"x":1}}'


def test_an_arrow_reply_has_a_row_a_hit() -> None:
    body = codecs.encode_search(HITS, asked(True, "metadata", "vector"), WORDS, ENVELOPE, ARROW)
    table = pa.ipc.open_stream(body).read_all()
    assert table.schema.names == ["query", "id", "score", "distance", "metadata", "vector"]
    assert table["query"].to_pylist() == [0, 0, 1]
    assert table["distance"].to_pylist() == [0.1 + 0.2, 1.5, 0.0]
    assert table["metadata"].to_pylist() == ['{"x":1.0}', "{}", "{}"]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32)[:2], VECTORS)
    assert {k.decode(): json.loads(v) for k, v in table.schema.metadata.items()} == ENVELOPE
    plain = pa.ipc.open_stream(codecs.encode_search([[], []], asked(True), WORDS, ENVELOPE, ARROW)).read_all()
    assert (plain.num_rows, plain.schema.names) == (0, ["query", "id", "score", "distance"])


def test_a_page_is_the_same_in_json_and_arrow() -> None:
    page = [Stored("a", VECTORS[0].tobytes(), b'{"x":1}'), Stored("b", VECTORS[1].tobytes(), b"{}")]
    reply = json.loads(codecs.encode_page(page, "next", JSON, 3))
    table = pa.ipc.open_stream(codecs.encode_page(page, "next", ARROW, 3)).read_all()
    assert reply["cursor"] == json.loads(table.schema.metadata[b"cursor"]) == "next"
    for row, (item, columns) in enumerate(zip(reply["vectors"], table.to_pylist(), strict=True)):
        assert item["id"] == columns["id"]
        assert item["metadata"] == json.loads(columns["metadata"])
        np.testing.assert_array_equal(np.array(item["vector"], np.float32), VECTORS[row])
    assert pa.ipc.open_stream(codecs.encode_page([], None, ARROW, 3)).read_all().num_rows == 0


def test_what_a_page_says_in_arrow_can_be_stored_again() -> None:
    page = [Stored("a", VECTORS[0].tobytes(), b'{"x":1}'), Stored("b", VECTORS[1].tobytes(), b"{}")]
    (batch,), error = stream(codecs.encode_page(page, None, ARROW, 3), form="arrow")
    assert error is None
    assert (batch.ids, batch.metadata) == (["a", "b"], [b'{"x":1}', b"{}"])
    np.testing.assert_array_equal(batch.vectors, VECTORS)
