"""What the client takes for a vector: arrays and lists of numbers, as they are; nothing is cut, filled or converted."""

import array
import datetime

import numpy as np
import pyarrow as pa
import pytest

from veccluster.client import arrow
from veccluster.client.arrays import bounded
from veccluster.client.vectors import many_vectors, one_vector, queries
from veccluster.errors import InvalidRequest

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "vectors",
    [
        MATRIX,
        MATRIX.astype(np.float64),
        MATRIX.astype(np.float16),
        MATRIX.astype(np.int8),
        MATRIX.astype(np.uint64),
        MATRIX.astype(">f8"),
        np.asfortranarray(MATRIX),
        np.repeat(MATRIX, 2, axis=1)[:, ::2],
        MATRIX.tolist(),
        tuple(map(tuple, MATRIX.tolist())),
        list(MATRIX),
        [MATRIX[0].tolist(), MATRIX[1]],
        [list(MATRIX[0]), tuple(MATRIX[1].astype(np.int64))],
        [array.array("d", MATRIX[0]), memoryview(MATRIX[1])],
        MATRIX.astype(object),
        np.ma.masked_array(MATRIX, mask=False),
        pa.array(MATRIX.tolist()),
        pa.chunked_array([[row] for row in MATRIX.tolist()]),
        [[0, 1.0, 2], [3, 4, 5.0]],
    ],
    ids=lambda v: type(v).__name__,
)
def test_numbers_in_any_form_are_vectors(vectors):
    taken = many_vectors(vectors)
    assert taken.dtype == np.float32 and taken.flags.c_contiguous
    np.testing.assert_array_equal(taken, MATRIX)


NO_NUMBERS = [
    ("abc", "a string"),
    (b"abcdefgh", "bytes"),
    (bytearray(b"abcdefgh"), "bytes"),
    (["1", "2"], "a string at position 0"),
    ([1.0, "2"], "a string at position 1"),
    ([1.0, True], "a boolean at position 1"),
    ([1.0, np.bool_(True)], "at position 1"),
    ([1.0, None], "null at position 1"),
    ([1.0, 2j], "a complex at position 1"),
    ([datetime.date(2020, 1, 1)], "a date at position 0"),
    (np.array(["1", "2"]), "an array of <U1"),
    (np.array([b"1", b"2"]), "an array of |S1"),
    (np.array([True, False]), "an array of bool"),
    (np.array([1.0, 2j]), "an array of complex128"),
    (np.array(["2020-01-01"], "datetime64[D]"), "an array of datetime64[D]"),
    (np.array([1, 2], "timedelta64[s]"), "an array of timedelta64[s]"),
    (np.array([1.0, "2"], object), "a string at position 1"),
    (np.array([1.0, True], object), "a boolean at position 1"),
    (np.array([(1.0, 2.0)], "f4,f4"), "an array of"),
    (np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 0, 1]), "masked at position 2"),
    ([np.ma.masked_array([1.0, 2.0], mask=[0, 1])], "masked at row 0, position 1"),
    ([[1.0, 2.0], [3.0, np.ma.masked]], "masked"),
    ({1.0, 2.0}, "a set"),
    ({"a": 1.0}, "an object"),
    (None, "null"),
    (pa.array([1.0, None]).to_pylist(), "null at position 1"),
]


@pytest.mark.parametrize(("value", "words"), NO_NUMBERS, ids=[repr(v)[:40] for v, _ in NO_NUMBERS])
def test_what_numpy_would_make_numbers_of_is_no_vector(value, words):
    for take in (one_vector, many_vectors):
        with pytest.raises(InvalidRequest) as refused:
            take(value)
        assert words in refused.value.detail, refused.value.detail


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1.0, 2.0], [3.0]], "row 1 has 1 numbers, row 0 has 2"),
        ([np.ones(2), np.ones(2), np.ones(3)], "row 2 has 3 numbers, row 0 has 2"),
        ([[1.0], 2.0], "row 1 is a number"),
        ([1.0, [2.0]], "row 1 is a row"),
        ([[[1.0], [2.0]], [[1.0], [2.0, 3.0]]], "all rows of one shape"),
        ([[[1.0]]], "must have shape (n, dimension), has shape (1, 1, 1)"),
        ([1.0, 2.0], "must have shape (n, dimension), has shape (2,)"),
        (1.0, "has shape ()"),
        ([[], []], "at least one number each"),
        ([[1.0, 10**39]], "must be finite float32 numbers, is inf at row 0, position 1"),
        ([[1.0, 10**400]], "must be finite float32 numbers"),
        ([[1.0, float("nan")]], "must be finite float32 numbers, is nan at row 0, position 1"),
    ],
)
def test_rows_are_as_long_as_each_other_and_finite(value, words):
    with pytest.raises(InvalidRequest) as refused:
        many_vectors(value)
    assert words in refused.value.detail, refused.value.detail


def test_one_vector_has_one_axis_and_a_search_one_vector_at_least():
    for value in (1.0, [], [[1.0]], np.ones((1, 1, 1)), float("nan")):
        with pytest.raises(InvalidRequest, match="vector: must"):
            one_vector(value)
    with pytest.raises(InvalidRequest, match="at least one vector"):
        queries(np.ones((0, 3)))
    assert many_vectors(np.ones((0, 3))).shape == (0, 3)  # nothing to store is nothing wrong


def test_what_is_bounded_is_cut_in_order_and_never_empty():
    sizes = [3, 3, 3, 9, 20, 1, 1, 1, 1, 1]
    parts = list(bounded(sizes, lambda size: size, 4, 9))
    assert parts == [[3, 3, 3], [9], [20], [1, 1, 1, 1], [1]]
    assert list(bounded([], len, 4, 9)) == []


# ---- Arrow -----------------------------------------------------------------------------------------------------------


def table(vectors, **more):
    return pa.table({"id": [f"r{i}" for i in range(len(vectors))], "vector": vectors, **more})


def taken(source):
    return [(list(rows.ids), rows.vectors.tolist(), list(rows.metadata)) for rows in arrow.pieces(source, 100)]


def refused(source):
    with pytest.raises(InvalidRequest) as caught:
        list(arrow.pieces(source, 100))
    return caught.value


LISTS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
TENSOR = pa.fixed_shape_tensor(pa.float32(), [2])


def column(kind):
    if kind == "tensor":
        return pa.ExtensionArray.from_storage(TENSOR, pa.array(LISTS, pa.list_(pa.float32(), 2)))
    return pa.array(LISTS, kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float64()),
        pa.large_list(pa.float16()),
        pa.list_(pa.int32()),
        "tensor",
    ],
    ids=str,
)
def test_lists_and_tensors_of_arrow_are_vectors_whole_sliced_and_chunked(kind):
    vectors = column(kind)
    assert taken(table(vectors)) == [(["r0", "r1", "r2"], LISTS, [None] * 3)]
    assert taken(table(vectors).slice(1, 1)) == [(["r1"], LISTS[1:2], [None])]
    assert taken(table(vectors.slice(1))) == [(["r0", "r1"], LISTS[1:], [None] * 2)]
    assert taken(table(pa.chunked_array([vectors[:1], vectors[1:1], vectors[1:]]))) == [
        (["r0"], LISTS[:1], [None]),
        (["r1", "r2"], LISTS[1:], [None] * 2),
    ]
    (batch,) = table(vectors).to_batches()
    assert taken(batch) == [(["r0", "r1", "r2"], LISTS, [None] * 3)]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list], ids=["list", "large_list"])
def test_lists_of_differing_lengths_are_refused_and_not_cut_anew(kind):
    vectors = pa.array([[1, 2], [3, 4, 5, 6]], kind(pa.float32()))
    assert "row 1 has 4 numbers, row 0 has 2" in str(refused(table(vectors)))
    assert "row 1 has 4 numbers, row 0 has 2" in str(
        refused(pa.table({"id": list("abc"), "vector": [[0, 1], [1] * 4, [1] * 3]}))
    )


def test_rows_are_numbered_from_the_first_of_all():
    parts = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0]]]
    assert "row 3 has 1 numbers, row 2 has 2" in str(refused(table(pa.chunked_array(parts))))
    nan = [[[1.0, 2.0]], [[5.0, 6.0], [7.0, float("nan")]]]
    assert "is nan at row 2, position 1" in str(refused(table(pa.chunked_array(nan))))
    error = refused(table(pa.chunked_array(parts[:1] * 2), metadata=["{}", "{}", "{}", f'{{"a": {1 << 64}}}']))
    assert error.errors[0]["index"] == 3 and error.errors[0]["field"] == "metadata.a"
    error = refused([(["a"], [[1.0]], None), (["b"], [[1.0]], [{"a": float("inf")}])])
    assert error.errors[0]["index"] == 1 and str(error).startswith("piece 1: ")


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (pa.array([[1, 2], None], pa.list_(pa.float32())), "must not be null, is in row 1"),
        (pa.array([[1, 2], None], pa.list_(pa.float32(), 2)), "must not be null, is in row 1"),
        (pa.array([[1, 2], [3, None]], pa.list_(pa.float32())), "must not hold nulls, does in row 1"),
        (pa.array([[1, 2], [3, None]], pa.list_(pa.float32(), 2)), "must not hold nulls, does in row 1"),
        (pa.array([[True, False]]), "lists of numbers, is list<"),
        (pa.array([["1", "2"]]), "lists of numbers, is list<"),
        (pa.array([1.0, 2.0]), "lists of numbers, is double"),
        (pa.array(["a"]), "lists of numbers, is string"),
        (
            pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.float32(), [1, 2]), pa.array([[1, 2]], pa.list_(pa.float32(), 2))
            ),
            "tensors with one axis, have shape (1, 2)",
        ),
    ],
    ids=lambda v: str(getattr(v, "type", "")),
)
def test_columns_that_hold_no_vectors_are_refused_in_words(vectors, words):
    assert words in str(refused(table(vectors)))


def test_metadata_of_arrow_are_texts_of_json():
    (rows,) = arrow.pieces(table(pa.array(LISTS), metadata=['{"a": 1}', None, "{}"]), 100)
    assert rows.metadata == [{"a": 1}, None, {}]
    encoded = pa.array(['{"a": 1}', None, "{}"]).dictionary_encode()
    assert taken(table(pa.array(LISTS), metadata=encoded))[0][2] == [{"a": 1}, None, {}]
    assert "must be JSON" in str(refused(table(pa.array(LISTS), metadata=["{}", "{", None])))
    assert "metadata must be an object, is a list" in str(refused(table(pa.array(LISTS), metadata=["{}", "[]", None])))
    assert "column of strings" in str(refused(table(pa.array(LISTS), metadata=[{"a": 1}] * 3)))


@pytest.mark.parametrize("source", ["ab", b"ab", {"a": 1}, 7, [("a",)], ["ab"], [1]])
def test_what_is_no_source_of_rows_is_refused_in_words(source):
    assert "source" in refused(source).errors[0]["field"]


def test_requests_are_cut_by_bytes_as_well_as_by_rows():
    rows = pa.table({"id": list("abcdef"), "vector": [[1.0] * 8] * 6, "metadata": [f'{{"a": "{"x" * 900}"}}'] * 6})
    assert [count for count, _ in arrow.bodies(rows, 4, 1 << 20)] == [4, 2]
    cut = list(arrow.bodies(rows, 4, 2_000))
    assert [count for count, _ in cut] == [2, 2, 2]
    assert [pa.ipc.open_stream(body).read_all()["id"].to_pylist() for _, body in cut] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "f"],
    ]
    assert [count for count, _ in arrow.bodies(rows, 4, 10)] == [1] * 6
