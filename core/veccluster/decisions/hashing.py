"""Where an id lives: an id hashes to a point, a shard owns a range of points.

The hash is part of the format of the data: changing it would lose every stored vector, so golden values are pinned in
a test. Ranges rather than a modulus, so that a shard can later be split in two without touching the others.

numpy is loaded by who hashes batches: the operator reads a cluster's state without it, and its image has none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import xxhash

from veccluster.model.state import POINTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def point_of(id: str) -> int:  # noqa: A002 - it is what everyone calls it
    """The point of `id` in [0, 2^64): xxh3 of its UTF-8 bytes, the same on every machine and in every process."""
    return xxhash.xxh3_64_intdigest(id.encode())


@lru_cache(maxsize=256)
def starts(shards: int) -> tuple[int, ...]:
    """The first point of each of `shards` even ranges, ascending; `starts(n)[0]` is 0."""
    if shards < 1:
        raise ValueError(f"a collection has at least one shard, not {shards}")
    return tuple(i * POINTS // shards for i in range(shards))


def ranges(shards: int) -> list[tuple[int, int]]:
    """Split [0, 2^64) into `shards` half-open ranges (start, end) whose lengths differ by one at most."""
    first = starts(shards)
    return list(zip(first, (*first[1:], POINTS), strict=True))


def shard_of(point: int, ranges: Sequence[tuple[int, int]]) -> int:
    """The number of the range that owns `point`; `ranges` ascend and cover all points."""
    return bisect_right(ranges, point, key=lambda r: r[0]) - 1


def shards_of(ids: Sequence[str], starts: Sequence[int]) -> npt.NDArray[np.intp]:
    """For each id the number of the range that owns it, as an array of shape (len(ids),).

    `starts` are the first points of the ranges, ascending, the first one 0: `starts(n)` for a collection of n shards.
    """
    import numpy as np

    points = np.fromiter((point_of(i) for i in ids), dtype=np.uint64, count=len(ids))
    return np.searchsorted(np.asarray(starts, dtype=np.uint64), points, side="right") - 1
