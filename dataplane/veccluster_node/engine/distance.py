"""How far apart vectors are: fast for many, and exactly the same on every path for the few that are answered.

`coarse` works in float32: fast, and off by at most `slack`. `exact` sums float64 products row by row in an order
that does not depend on what else is computed with it, so that a vector has one distance to a query, whether a graph,
a scan or the tail found it, and equal distances are equal (ties are then ordered by id).
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from veccluster.model.state import Metric

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_LENGTH = 1e15
MIN_LENGTH = 1e-15
"""Beyond these float32 products overflow or vanish, and neighbours would be arbitrary."""

_UNIT = 2.0**-24
_BLAS_FROM = 4
"""Queries at once."""
_ROWS = 4096
"""Rows that are worked on in float64 at once."""


def lengths(matrix: F32) -> F32:
    """Euclidean lengths of the rows of (n, d), computed in float64."""
    out = np.empty(len(matrix), np.float32)
    for i in range(0, len(matrix), _ROWS):
        rows = matrix[i : i + _ROWS].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            out[i : i + _ROWS] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return out


def unusable(metric: Metric, matrix: F32) -> Mask:
    """Which rows of (n, d) cannot be stored or asked for: not finite, longer than 1e15, or too short for cosine
    (1e-15).
    """
    size = lengths(matrix)
    with np.errstate(invalid="ignore"):
        bad = ~(size <= MAX_LENGTH)
        return bad | (size < MIN_LENGTH) if metric is Metric.cosine else bad


def coarse(metric: Metric, queries: F32, query_lengths: F32, rows: F32, row_lengths: F32) -> F32:
    """Distances (q, n) of queries (q, d) to rows (n, d), each off by at most `slack`."""
    products = _products(queries, rows)
    if metric is Metric.dot:
        products *= np.float32(-1)
        return products
    if metric is Metric.cosine:
        products /= query_lengths[:, None]
        products /= row_lengths[None, :]
        products *= np.float32(-1)
        products += np.float32(1)
        return products
    products *= np.float32(-2)
    products += np.square(query_lengths)[:, None]
    products += np.square(row_lengths)[None, :]
    return products


def _products(queries: F32, rows: F32) -> F32:
    """Dot products (q, n).

    BLAS pays from several queries on: for one it is slower than a plain pass over the rows, and its threads wait for
    each other for milliseconds when the cores are busy.
    """
    if len(queries) >= _BLAS_FROM:
        matrix: F32 = queries @ rows.T
        return matrix
    return np.stack([np.einsum("ij,j->i", rows, query) for query in queries])


def slack(metric: Metric, dimension: int, query_length: float, longest: float) -> float:
    """Bound of |coarse - exact| for one query and rows not longer than `longest`: a dot product's error is below
    d·u·|q||x|.
    """
    relative = (dimension + 8) * _UNIT
    if metric is Metric.cosine:
        return 2 * relative
    if metric is Metric.dot:
        return relative * query_length * longest
    return 2 * relative * (query_length + longest) ** 2


def exact(metric: Metric, query: F32, rows: F32) -> F64:
    """Distances (n,) of one query (d,) to rows (n, d): cosine 1 - cos, l2 squared Euclidean, dot -dot."""
    out = np.empty(len(rows), np.float64)
    q = query.astype(np.float64)
    for i in range(0, len(rows), _ROWS):
        block = rows[i : i + _ROWS].astype(np.float64)
        if metric is Metric.l2:
            block -= q
            out[i : i + _ROWS] = np.square(block, out=block).sum(axis=1)
            continue
        dots = (block * q).sum(axis=1)
        if metric is Metric.cosine:
            dots /= np.sqrt(np.square(q).sum() * np.square(block).sum(axis=1))
            dots = 1.0 - dots
        else:
            dots = -dots
        out[i : i + _ROWS] = dots
    return out
