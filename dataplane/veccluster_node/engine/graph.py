"""The approximate index behind a small interface: encode, draft, open, search, sizes. The engine is usearch (HNSW).

A graph only proposes candidates; its distances are never answered. So it stores what keeps the order and suits the
type: unit vectors for cosine, the vectors for l2 and dot, times `scale` where the type is small. dot is plain inner
product: the reduction to an angle with one dimension more (Bachrach et al. 2014) found far less
(docs/decisions/0005-storage.md).
"""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import usearch
from usearch.index import Index

from veccluster.errors import Unavailable
from veccluster.model.state import IndexParameters, Metric, Precision
from veccluster_node.engine.distance import F32, I64, U64, Mask

Reaches: TypeAlias = tuple[tuple[int, float | None], ...]
"""Up to which k a graph needs which breadth, ascending; None where it does not find enough at any."""
ENGINE = f"usearch {usearch.__version__}"
_BLOCK = 4096
_SAMPLE = 20_000
_QUANTILE = 0.9995
_F16_LENGTH = 100.0
"""The length that the longest vector gets in f16 under l2 and dot: far from both ends of the type."""


class Encoding(msgspec.Struct, frozen=True):
    """How vectors are stored in a graph; part of a generation's manifest."""

    metric: Metric
    precision: Precision
    dimension: int
    scale: float = 1.0

    def stored(self, vectors: F32, lengths: F32) -> npt.NDArray[Any]:
        """What the graph stores for vectors (n, dimension)."""
        return self._cast(directions(self.metric, vectors, lengths), self.scale)

    def query(self, queries: F32, lengths: F32) -> npt.NDArray[Any]:
        """What the graph is asked for queries (q, dimension). Under dot their length does not matter, so it is made
        to fit.
        """
        if self.metric is not Metric.dot:
            return self.stored(queries, lengths)
        largest = float(np.abs(queries).max(initial=0.0)) or 1.0
        return self._cast(queries, 127.0 / largest if self.precision is Precision.i8 else 1.0 / largest)

    def _cast(self, directions: F32, scale: float) -> npt.NDArray[Any]:
        if scale != 1.0:
            directions = directions * np.float32(scale)
        if self.precision is Precision.i8:
            return np.clip(np.rint(directions), -127, 127).astype(np.int8)
        return np.ascontiguousarray(directions, np.float32)


def directions(metric: Metric, vectors: F32, lengths: F32) -> F32:
    """What of vectors (n, d) says how near they are, before a smaller type takes its part of it."""
    return vectors / lengths[:, None] if metric is Metric.cosine else vectors


def choose_encoding(metric: Metric, precision: Precision, vectors: F32, lengths: F32) -> Encoding:
    """The encoding that suits vectors (n, d).

    i8 takes ±127 at the 99.95 % quantile of |component|, since larger ones are rare; under dot they are what is
    looked for, so there at the largest.
    """
    encoding = Encoding(metric, precision, vectors.shape[1])
    longest = float(lengths.max(initial=0.0))
    if not longest or precision in {Precision.f32, Precision.bf16}:
        return encoding
    if precision is Precision.f16:
        return encoding if metric is Metric.cosine else msgspec.structs.replace(encoding, scale=_F16_LENGTH / longest)
    if metric is Metric.dot:
        edge = max(float(np.abs(vectors[i : i + _BLOCK]).max()) for i in range(0, len(vectors), _BLOCK))
    else:
        rows = np.unique(np.linspace(0, len(vectors) - 1, _SAMPLE).astype(np.int64))
        sample = np.abs(directions(metric, vectors[rows], lengths[rows]))
        edge = float(np.quantile(sample, _QUANTILE)) or float(sample.max())
    return msgspec.structs.replace(encoding, scale=127.0 / (edge or 1.0))


def still_suits(encoding: Encoding, fresh: Encoding) -> bool:
    """Whether a graph in `encoding` may take vectors for which `fresh` would have been chosen."""
    return 0.8 < encoding.scale / fresh.scale < 1.25


def _index(encoding: Encoding, parameters: IndexParameters, *, lookups: bool) -> Index:
    return Index(
        ndim=encoding.dimension,
        metric="l2sq" if encoding.metric is Metric.l2 else "ip",
        dtype=str(encoding.precision),
        connectivity=parameters.m,
        expansion_add=parameters.ef_construction,
        expansion_search=parameters.ef_search,
        enable_key_lookups=lookups,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors as they were given (n, dimension), their seqs (n,), ascending, and lengths (n,)."""

    seqs: U64
    vectors: F32
    lengths: F32

    def find(self, seqs: U64) -> I64:
        """The rows of those of `seqs` that are here."""
        rows: I64 = np.minimum(np.searchsorted(self.seqs, seqs), len(self.seqs) - 1).astype(np.int64)
        return rows.compress(self.seqs[rows] == seqs)


class Draft:
    """A graph that is being built, in memory."""

    def __init__(
        self, encoding: Encoding, parameters: IndexParameters, *, base: Path | None = None, threads: int = 1
    ) -> None:
        """Begin with nothing, or with the graph in file `base`."""
        self.encoding = encoding
        self.parameters = parameters
        self._threads = threads
        self._index = _index(encoding, parameters, lookups=True)
        if base is not None:
            self._index.load(str(base))
            self._index.expansion_add = parameters.ef_construction  # type: ignore[misc]  # it has a setter

    def __len__(self) -> int:
        return len(self._index)

    def add(self, rows: Rows, which: I64) -> None:
        """Put the rows of numbers `which` in.

        Under l2 the longest go first: short vectors are near to everything, and those that come first would fill
        the lists of edges, so that nothing leads to long ones any more. Under dot it is the long ones that are near
        to everything, so there the shortest go first (docs/decisions/0008-recall.md).
        """
        if self.encoding.metric is not Metric.cosine:
            sign = -1 if self.encoding.metric is Metric.l2 else 1
            which = which[np.argsort(sign * rows.lengths[which], kind="stable")]
        for i in range(0, len(which), _BLOCK):
            block = which[i : i + _BLOCK]
            stored = self.encoding.stored(rows.vectors[block], rows.lengths[block])
            self._index.add(rows.seqs[block], stored, threads=self._threads)

    def holds(self, seqs: U64) -> Mask:
        """Which of `seqs` are in it."""
        return (
            np.asarray(self._index.contains(seqs), bool).reshape(len(seqs)) if len(self) else np.zeros(len(seqs), bool)
        )

    def search(self, queries: F32, lengths: F32, k: int, ef: int) -> tuple[U64, I64]:
        """As `Graph.search`."""
        return _ask(self._index, self.encoding.query(queries, lengths), min(k, len(self)), ef)

    def save(self, path: Path) -> None:
        """Write it to a file; `OSError` when the disk is full."""
        try:
            self._index.save(str(path))
        except RuntimeError as error:  # usearch does not say why
            if shutil.disk_usage(path.parent).free < self._index.serialized_length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _ask(index: Index, encoded: npt.NDArray[Any], k: int, ef: int) -> tuple[U64, I64]:
    index.expansion_search = max(ef, k)  # type: ignore[misc]  # it has a setter
    found = index.search(encoded, k, threads=1)
    keys = np.asarray(found.keys, np.uint64).reshape(len(encoded), -1)
    counts = getattr(found, "counts", None)
    return keys, np.full(1, keys.shape[1]) if counts is None else np.asarray(counts, np.int64)


class Graph:
    """An opened graph file, mapped into memory; safe for any number of threads.

    usearch keeps the breadth of a search (`expansion_search`) and its scratch space per index object and lets go of
    the GIL while it searches, so each concurrent search has an object of its own over the same mapped pages, up to
    `handles` of them.
    """

    def __init__(
        self,
        path: Path,
        encoding: Encoding,
        parameters: IndexParameters,
        entries: int,
        *,
        handles: int,
        reaches: Reaches = ((1 << 62, 1.0),),
    ) -> None:
        """Map the file, whose checksum the caller has verified: a damaged one can kill the process."""
        self.encoding = encoding
        self._reaches = reaches
        self.entries = entries
        """Vectors in the graph, dead ones included."""
        self._path = path
        self._parameters = parameters
        self._idle: list[Index] = []
        self._lock = threading.Lock()
        self._free = threading.Semaphore(handles)
        with self._handle():
            pass

    def breadth(self, k: int) -> float | None:
        """How much more than usual a search for `k` must keep to find enough, as the build measured it
        (`calibration`); None where it has to look at everything.
        """
        return next((breadth for most, breadth in self._reaches if k <= most), None)

    @contextmanager
    def _handle(self) -> Iterator[Index]:
        with self._free:
            with self._lock:
                index = self._idle.pop() if self._idle else None
            if index is None:
                index = _index(self.encoding, self._parameters, lookups=False)
                try:
                    index.view(str(self._path))
                except RuntimeError as error:  # usearch does not say why; the file itself was found to be good
                    raise Unavailable(f"the graph {self._path.parent.name} cannot be mapped now: {error}") from error
            try:
                yield index
            finally:
                with self._lock:
                    self._idle.append(index)

    def search(self, queries: F32, lengths: F32, k: int, ef: int) -> tuple[U64, I64]:
        """Seqs (q, k) proposed for queries (q, d), and how many (q,) of each row are filled; nearest first, roughly."""
        with self._handle() as index:
            return _ask(index, self.encoding.query(queries, lengths), min(k, self.entries), ef)
