"""What is measured on: vectors with metadata, held-out queries, and the true neighbours by full scan."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

SELECTIVITY = {"50 %": 500, "10 %": 100, "1 %": 10, "0.1 %": 1}
"""Filters by the field `slot`, which is 0 to 999, evenly: how many slots each lets through."""


@dataclass(frozen=True)
class Dataset:
    """`vectors` (n, d) and `queries` (q, d); `slots` (n,) is what the filters are about."""

    name: str
    ids: list[str]
    vectors: F32
    metadata: list[dict[str, Any]]
    queries: F32
    slots: npt.NDArray[np.int64]


NAMES = (("vectors.npy", "words.jsonl.gz", "held-out.npy"), ("base.npy", "base.jsonl.gz", "queries.npy"))
"""Vectors, their metadata (optional), and queries, as the files are called in a directory of data."""


def load(directory: Path, rows: int | None) -> Dataset:
    """Read the data of a directory, at most `rows` vectors of it."""
    names = next((n for n in NAMES if (directory / n[0]).exists()), None)
    if names is None:
        raise SystemExit(f"{directory} holds neither {' nor '.join(n[0] for n in NAMES)}")
    vectors = np.load(directory / names[0])[:rows].astype(np.float32)
    metadata: list[dict[str, Any]] = [{"id": str(row)} for row in range(len(vectors))]
    if (directory / names[1]).exists():
        with gzip.open(directory / names[1], "rt", encoding="utf-8") as lines:
            metadata = [json.loads(line) for _, line in zip(range(len(vectors)), lines, strict=False)]
    slots = np.random.default_rng(1).permutation(len(vectors)) % 1000
    for row, slot in zip(metadata, slots, strict=True):
        row["slot"] = int(slot)
    queries = np.load(directory / names[2]).astype(np.float32)
    return Dataset(directory.name, [m["id"] for m in metadata], vectors, metadata, queries, slots)


def nearest(vectors: F32, queries: F32, k: int, metric: str) -> npt.NDArray[np.int64]:
    """Rows of the true `k` nearest of each query, nearest first; shape (q, k)."""
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    distances = -(queries @ vectors.T)
    if metric == "l2":
        distances = (vectors**2).sum(axis=1) + 2 * distances
    k = min(k, len(vectors))
    some = np.argpartition(distances, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distances, some, axis=1), axis=1)
    return np.take_along_axis(some, order, axis=1)


def recall(found: list[list[str]], truth: npt.NDArray[np.int64], ids: list[str]) -> float:
    """The part of the true neighbours that was found."""
    wanted = [{ids[row] for row in rows} for rows in truth]
    hits = sum(len(want.intersection(got)) for want, got in zip(wanted, found, strict=True))
    return hits / sum(map(len, wanted))
