"""How much a graph must be asked for: measured on rows that are held back from it, whose neighbours a scan knows.

How far a graph has to look for the nearest depends on the data, and on nothing that one could tell beforehand. So
a build keeps some of the new rows back, asks the unfinished graph for their neighbours as a search would, compares
with a full scan, and notes the least breadth that finds enough; then it puts them in. Searches that do not
say an `ef` of their own use that breadth.

Where no sane breadth finds enough, the graph itself is not good enough, and the next of `attempts` is made.
docs/decisions/0008-recall.md has the numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from veccluster.model.state import IndexParameters, Metric, Precision
from veccluster_node.storage.distance import F32, F64, I64, coarse, exact
from veccluster_node.storage.graph import Draft, Rows

TARGET = 0.985
"""Part of the nearest ten that must be found: above what is promised (0.97), for a sample is only a sample."""
_SLIP = 0.02
"""How much a graph may lose by additions before it is made anew, where even the best does not reach the target."""
_K = 10
_SPARE = 10
"""Rows looked at beyond the nearest ten, since `coarse` may order near ties wrongly."""
_QUESTIONS = 256
_FEWEST = 16
"""With fewer questions nothing can be said."""
_BLOCK = 1 << 22
"""Distances worked on at once."""
_BREADTHS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_OVERFETCH = {Precision.f32: 1, Precision.bf16: 2, Precision.f16: 2, Precision.i8: 4}
"""How many candidates for each result, since a smaller type puts them in a slightly different order."""


class Calibration(msgspec.Struct, frozen=True):
    """What was found out about a graph."""

    breadth: float = 1.0
    """How many times the collection's `ef_search` a search keeps."""
    recall: float | None = None
    """Part of the nearest ten found at this breadth; None where too few rows were new to tell."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to make a graph."""

    parameters: IndexParameters
    extend: bool
    """Go on from the old graph."""
    most: float
    """The breadth to put up with."""
    accept: float = TARGET
    """The recall to put up with at that breadth."""

    def succeeds(self, found: Calibration) -> bool:
        """Whether the graph is kept."""
        return found.recall is None or found.recall >= self.accept


def attempts(asked: IndexParameters, base: tuple[IndexParameters, Calibration] | None) -> Iterator[Attempt]:
    """Ways to make a graph, cheapest first; the last succeeds whatever it finds.

    Going on from an old graph (`base`) puts up with a larger breadth than a fresh one, so that not every
    addition to difficult data makes the graph anew; and with a little less than what was the best before.
    """
    if base:
        parameters, before = base
        accept = TARGET
        if before.recall is not None and before.recall < TARGET:
            accept = before.recall - _SLIP
        yield Attempt(parameters, extend=True, most=max(6.0, before.breadth), accept=accept)
    if not base or base[0] != denser(asked):
        yield Attempt(asked, extend=False, most=4.0)
    yield Attempt(denser(asked), extend=False, most=_BREADTHS[-1], accept=0.0)


def denser(parameters: IndexParameters) -> IndexParameters:
    """Twice the edges, chosen from twice the candidates."""
    return msgspec.structs.replace(
        parameters, m=2 * parameters.m, ef_construction=max(2 * parameters.ef_construction, 4 * parameters.m)
    )


def candidates(k: int, precision: Precision) -> int:
    """How many candidates are wanted for `k` results."""
    return k * _OVERFETCH[precision]


def with_ghosts(wanted: int, ghosts: float) -> int:
    """How many to fetch for `wanted` living ones when a part `ghosts` of what a graph holds is gone."""
    return round(wanted / (1 - ghosts)) + 4


def reach(fetch: int, ef: int, precision: Precision, breadth: float) -> tuple[int, int]:
    """How many proposals to ask a graph for, and how many to keep meanwhile, where `fetch` and `ef` would do at
    breadth 1. A smaller type may need more candidates, too.
    """
    asked = fetch if precision is Precision.f32 else round(breadth * fetch)
    return asked, round(breadth * max(ef, fetch))


def questions(new: I64, rows: int) -> I64:
    """Which of the `new` rows to hold back when there are `rows` in all; none when that would say too little.

    A question costs a scan of all rows, some 0.1 µs each; putting a row in costs some hundred µs, copying it to the new
    files some 30. So this many keep measuring at about a tenth of building.
    """
    count = min(_QUESTIONS, len(new) // 4, 40 + 700 * len(new) // max(1, rows))
    if count < _FEWEST:
        return new[:0]
    return new[np.linspace(0, len(new) - 1, count).astype(np.int64)]


def calibrate(draft: Draft, rows: Rows, held: I64, *, most: float) -> Calibration:
    """Find the least breadth, up to `most`, at which the graph of all `rows` but `held` answers these well enough."""
    limits = _tenth_distances(rows, held, draft.encoding.metric)
    ghosts = max(0.0, 1 - (len(rows.seqs) - len(held)) / len(draft))
    precision = draft.encoding.precision
    fetch = with_ghosts(candidates(_K, precision), ghosts)

    def recall(breadth: float) -> float:
        keys, counts = draft.search(
            rows.vectors[held], rows.lengths[held], *reach(fetch, draft.parameters.ef_search, precision, breadth)
        )
        found = 0
        for row, limit, seqs, count in zip(held, limits, keys, np.broadcast_to(counts, len(held)), strict=True):
            proposed = rows.vectors[rows.find(seqs[:count])]
            near = exact(draft.encoding.metric, rows.vectors[row], proposed) <= limit
            found += min(_K, int(np.count_nonzero(near)))
        return found / (_K * len(held))

    return least(recall, most)


def least(recall: Callable[[float], float], most: float) -> Calibration:
    """The smallest breadth up to `most` whose recall is enough, or `most`."""
    found = Calibration()
    for breadth in _BREADTHS:
        if breadth > most:
            break
        found = Calibration(breadth, reached := recall(breadth))
        if reached >= TARGET:
            break
    return found


def _tenth_distances(rows: Rows, held: I64, metric: Metric) -> F64:
    """For each held row (h,), how far the tenth nearest of the others is."""
    near = _nearest(rows, held, metric, _K + _SPARE)
    distances = [exact(metric, rows.vectors[row], rows.vectors[some]) for row, some in zip(held, near, strict=True)]
    return np.sort(np.stack(distances), axis=1)[:, _K - 1]


def _nearest(rows: Rows, held: I64, metric: Metric, count: int) -> I64:
    """Rows (h, count) of the others nearest to each held row, but for near ties, in no order."""
    parts: list[tuple[F32, I64]] = []
    step = max(count, _BLOCK // len(held))
    for start in range(0, len(rows.seqs), step):
        block = slice(start, start + step)
        far = coarse(metric, rows.vectors[held], rows.lengths[held], rows.vectors[block], rows.lengths[block])
        far[:, held[(held >= start) & (held < start + step)] - start] = np.inf
        near = np.argpartition(far, min(count, far.shape[1]) - 1, axis=1)[:, :count]
        parts.append((np.take_along_axis(far, near, axis=1), near + start))
    far, near = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return np.take_along_axis(near, np.argpartition(far, count - 1, axis=1)[:, :count], axis=1)
