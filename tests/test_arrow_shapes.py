"""Vectors in Arrow are taken as they are or refused in words; no number ever moves from one vector into another."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from support.http import arrow_stream
from veccluster.errors import InvalidRequest
from veccluster.model.limits import DEFAULTS
from veccluster.model.state import Collection, Metric
from veccluster_node.http import codecs

WORDS = Collection(name="words", uuid="w", dimension=3, metric=Metric.l2, shards=1)
SIX = np.arange(6, dtype=np.float32)


async def decoded(vectors: Any) -> np.ndarray:
    """The vectors that a body with such a column stands for."""
    table = pa.table({"id": [f"v{i}" for i in range(len(vectors))], "vector": vectors})

    async def chunks() -> AsyncIterator[bytes]:
        body = arrow_stream(table)
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    batches = [batch async for batch in codecs.decode_upsert_arrow(chunks(), WORDS, DEFAULTS, 1000)]
    return np.concatenate([batch.vectors for batch in batches])


async def test_lists_of_differing_lengths_are_refused_row_by_row_although_their_numbers_would_fit() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await decoded(pa.array([[0, 1], [2, 3, 4, 5]], pa.list_(pa.float32())))
    assert [(e["index"], e["id"], e["reason"]) for e in refused.value.errors] == [
        (0, "v0", "must have 3 numbers, the collection's dimension; has 2"),
        (1, "v1", "must have 3 numbers, the collection's dimension; has 4"),
    ]


@pytest.mark.parametrize("type_", [pa.float32(), pa.float64(), pa.float16()])
async def test_tensors_with_one_axis_are_vectors(type_: pa.DataType) -> None:
    numbers = SIX.reshape(2, 3).astype(type_.to_pandas_dtype())
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(numbers)
    assert (await decoded(tensors)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(SIX.reshape(1, 2, 3)),
            r"must be tensors with one axis of 3 numbers, have the shape \[2, 3\]",
        ),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(SIX.reshape(3, 2)),
            "must have 3 numbers, the collection's dimension; has 2",
        ),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
            "must be a column of fixed-size lists of 3 float32, is",
        ),
        (
            pa.array([[0, 1, 2]], pa.list_view(pa.float32())),
            "must be a column of fixed-size lists of 3 float32, is list",
        ),
        (pa.array([[[0, 1, 2]]], pa.list_(pa.list_(pa.float32(), 3), 1)), "must be a column of fixed-size lists"),
        (pa.array([b"\0" * 12], pa.binary(12)), "must be a column of fixed-size lists"),
        (pa.array([bytes(16)], pa.uuid()), "must be a column of fixed-size lists"),
    ],
)
async def test_columns_that_are_no_vectors_of_the_dimension_are_refused_in_words(vectors: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        await decoded(vectors)
    assert [e["field"] for e in refused.value.errors] == ["vector"]
