"""What a search looks at: segments of vectors with the seq of each, and when each died.

The writer publishes a new `SearchView` *before* it commits the rows to SQLite; a reader begins a read transaction,
and only then looks at the view. So a view holds at least every vector that is alive in the reader's state S; what is
too new has a seq or a death beyond S. Only rows that had died by `floor` may be missing, so a reader whose S is
older than `floor` begins again. Nothing here needs a lock between them, and a feed through shared memory can take
the place of the one in this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from veccluster_node.engine.distance import F32, I64, U64, Mask, lengths
from veccluster_node.engine.graph import Graph
from veccluster_node.engine.twins import Twins

ALIVE = np.uint64(2**64 - 1)
"""The death of what is alive."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Vectors in memory or mapped from a file; all arrays have one entry a vector, ascending by seq.

    `died` is written in place by the writer: the seq of the operation that ended each vector, or ALIVE. Without
    `graph` a segment is searched by looking at all of it.
    """

    seqs: U64
    vectors: F32
    lengths: F32
    died: U64
    longest: float
    """No vector is longer than this."""
    graph: Graph | None = None
    twins: Twins | None = None
    """Rows that the graph does not hold, since it holds an equal one."""

    @property
    def ghosts(self) -> int:
        """Vectors that are only in the graph."""
        if not self.graph:
            return 0
        return max(0, self.graph.entries + (len(self.twins) if self.twins else 0) - len(self))

    def __len__(self) -> int:
        return len(self.seqs)

    def alive(self, at: int) -> Mask:
        """Which vectors are alive in the state after seq `at`."""
        return (self.seqs <= np.uint64(at)) & (self.died > np.uint64(at))

    def find(self, seqs: U64) -> tuple[I64, Mask]:
        """The rows of `seqs`, and which of them are here at all."""
        if not len(self):
            return np.zeros(len(seqs), np.int64), np.zeros(len(seqs), bool)
        rows = np.minimum(np.searchsorted(self.seqs, seqs), len(self) - 1).astype(np.int64)
        return rows, self.seqs[rows] == seqs

    def mark_dead(self, deaths: Mapping[int, int]) -> int:
        """Note at which seq each of these seqs died; says how many of them are here."""
        keys = np.fromiter(deaths, np.uint64, len(deaths))
        rows, here = self.find(keys)
        self.died[rows[here]] = np.fromiter(deaths.values(), np.uint64, len(deaths))[here]
        return int(here.sum())


@dataclass(frozen=True, slots=True, eq=False)
class SearchView:
    """Everything there is to search. Rows that died at or before `floor` may be missing."""

    floor: int = 0
    segments: tuple[Segment, ...] = ()


class Feed(Protocol):
    """Where a reader gets the current view from."""

    def view(self) -> SearchView:
        """The newest view; called after the reader's read transaction has begun."""
        ...


def segment_of(seqs: U64, vectors: F32) -> Segment:
    """A segment in memory, all of it alive."""
    size = lengths(vectors)
    return Segment(seqs, vectors, size, np.full(len(seqs), ALIVE), float(size.max(initial=0.0)))


class Tail:
    """The vectors behind the newest generation, appended in chunks that never move, so that views of them stay good."""

    def __init__(self, dimension: int, after: int, *, largest_chunk: int = 4096) -> None:
        self.after = after
        """Only seqs beyond this are in the tail."""
        self._dimension = dimension
        self._largest = largest_chunk
        self._chunks: list[_Chunk] = []

    def __len__(self) -> int:
        return sum(len(s) for s in self.segments())

    def append(self, seqs: Sequence[int], vectors: F32) -> None:
        """Add vectors (n, dimension) with ascending seqs beyond all before."""
        done = 0
        while done < len(seqs):
            if not self._chunks or self._chunks[-1].room == 0:
                last = self._chunks[-1].capacity if self._chunks else 32
                self._chunks.append(_Chunk(self._dimension, min(self._largest, 2 * last)))
            done += self._chunks[-1].fill(seqs[done:], vectors[done:])

    def drop(self, through: int) -> None:
        """Forget what a generation holds by now: all seqs up to `through`."""
        self.after = through
        self._chunks = [c for c in self._chunks if c.count and c.seqs[c.count - 1] > through]

    def segments(self) -> tuple[Segment, ...]:
        """What is in the tail, oldest first."""
        return tuple(s for c in self._chunks if len(s := c.segment(self.after)))

    def size(self) -> int:
        """Bytes of memory that it takes."""
        return sum(c.vectors.nbytes + 20 * c.capacity for c in self._chunks)


class _Chunk:
    def __init__(self, dimension: int, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.seqs = np.zeros(capacity, np.uint64)
        self.vectors = np.zeros((capacity, dimension), np.float32)
        self.lengths = np.zeros(capacity, np.float32)
        self.died = np.full(capacity, ALIVE)
        self.longest = 0.0

    @property
    def room(self) -> int:
        return self.capacity - self.count

    def fill(self, seqs: Sequence[int], vectors: F32) -> int:
        n = min(self.room, len(seqs))
        rows = slice(self.count, self.count + n)
        self.seqs[rows] = seqs[:n]
        self.vectors[rows] = vectors[:n]
        self.lengths[rows] = size = lengths(vectors[:n])
        self.longest = max(self.longest, float(size.max(initial=0.0)))
        self.count += n
        return n

    def segment(self, after: int) -> Segment:
        first = int(np.searchsorted(self.seqs[: self.count], np.uint64(after), side="right"))
        rows = slice(first, self.count)
        return Segment(self.seqs[rows], self.vectors[rows], self.lengths[rows], self.died[rows], self.longest)


def inherit_deaths(new: Segment, old: Sequence[Segment]) -> Segment:
    """Copy into `new` what the segments that it replaces know of deaths."""
    died = new.died.copy()
    for segment in old:
        rows, here = segment.find(new.seqs)
        died[here] = segment.died[rows[here]]
    return replace(new, died=died)
