"""Equal vectors: a graph holds one of them, and leads to the others through it.

In a graph, equal vectors fill each other's lists of edges, and nothing leads from them to the rest or back: among
8,000 equal ones nothing was found of 4,000 others (docs/decisions/0008-recall.md). A row that is in no graph since an
equal one is has that one as its twin. Equal is what is equally far from everything, not what looks the same in a
smaller type: of so many that look the same a search could not tell which to look at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from veccluster_node.engine.distance import F32, I64, U64, Mask

_BLOCK = 4096

Compared: TypeAlias = Callable[[slice | I64], F32]
"""Vectors (n, d) of these rows, as they are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Twins:
    """`rows` (t,) that a graph does not hold; row `of` (t,), which it does, stands for each. Ascending by `of`, then
    `rows`.
    """

    of: I64
    rows: I64

    def __len__(self) -> int:
        return len(self.rows)

    def among(self, proposed: I64, most: int) -> I64:
        """The rows that a graph proposes, each followed by its twins, at most `most` of each."""
        first = np.searchsorted(self.of, proposed, "left")
        counts = np.minimum(np.searchsorted(self.of, proposed, "right") - first, most)
        ends = np.cumsum(counts + 1)
        total = int(ends[-1]) if len(ends) else 0
        if total == len(proposed):
            return proposed
        out = np.empty(total, np.int64)
        theirs = np.ones(total, bool)
        theirs[ends - counts - 1] = False
        out[~theirs] = proposed
        within = np.arange(total - len(proposed)) - np.repeat(np.cumsum(counts) - counts, counts)
        out[theirs] = self.rows[np.repeat(first, counts) + within]
        return out

    def save(self, path: Path) -> None:
        """Write them to a file, as little-endian int64: all of `of`, then all of `rows`."""
        path.write_bytes(np.stack([self.of, self.rows]).astype("<i8").tobytes())

    @classmethod
    def load(cls, path: Path) -> "Twins":
        """Read what `save` wrote."""
        of, rows = np.fromfile(path, "<i8").reshape(2, -1)
        return cls(of, rows)


def first_equals(compared: Compared, rows: int) -> I64:
    """For each of so many rows (n,) the first row that is equal to it: mostly itself."""
    keys = np.concatenate(
        [np.zeros(0, np.uint64), *(_keys(compared(slice(i, i + _BLOCK))) for i in range(0, rows, _BLOCK))]
    )
    order = np.argsort(keys, kind="stable")
    new = np.ones(rows, bool)
    new[1:] = keys[order[1:]] != keys[order[:-1]]
    firsts = np.arange(rows)
    firsts[order] = order[new][np.cumsum(new) - 1]
    copies = np.flatnonzero(firsts != np.arange(rows))
    for i in range(0, len(copies), _BLOCK):
        some = copies[i : i + _BLOCK]
        same = (compared(some) == compared(firsts[some])).all(axis=1)
        firsts[some[~same]] = some[~same]
    return firsts


def _keys(block: F32) -> U64:
    """A number for each row; those of equal rows are equal, and those of others hardly ever."""
    words = (block + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    factors = np.random.default_rng(0).integers(0, 1 << 64, words.shape[1], np.uint64) | np.uint64(1)
    keys: U64 = words.astype(np.uint64) @ factors
    return keys


def twins_of(firsts: I64, held: Mask) -> Twins:
    """Who stands for whom, when a graph holds the rows `held` (n,) already: for each group of equals one that is held,
    or the first. All that are neither held nor twins have to go into it.
    """
    stands = np.arange(len(firsts))
    inside = np.flatnonzero(held)[::-1]
    stands[firsts[inside]] = inside  # of several the first is written last
    of = np.where(held, np.arange(len(firsts)), stands[firsts])
    rows = np.flatnonzero(of != np.arange(len(firsts)))
    order = np.argsort(of[rows], kind="stable")
    return Twins(of[rows][order], rows[order])
