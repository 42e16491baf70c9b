"""How much a graph must be asked for: measured on rows that are held back from it, whose neighbours a scan knows.

How far a graph has to look for the nearest depends on the data, and on nothing that one could tell beforehand. So
a build keeps some of the new rows back, asks the unfinished graph for their neighbours as a search would, compares
with a full scan, and notes the least breadth that finds enough; then it puts them in. Searches that do not
say an `ef` of their own use that breadth.

Where no sane breadth finds enough, the graph itself is not good enough, and the next of `attempts` is made. What a
graph finds of the nearest ten says little of the nearest thousand, so that is measured, too; where it cannot be
reached, searches look at everything. docs/decisions/0008-recall.md has the numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from veccluster.model.state import IndexParameters, Metric, Precision
from veccluster_node.engine.distance import F32, F64, I64, coarse, exact
from veccluster_node.engine.graph import Draft, Reaches, Rows

PROMISED = 0.97
"""Part of the nearest k that is found at the least."""
TARGET = 0.985
"""Part of the nearest ten that must be found: above what is promised, for a sample is only a sample."""
_SLIP = 0.02
"""How much a graph may lose by additions before it is made anew, where even the best does not reach the target."""
_K = 10
_ASKED = {_K: 256, 100: 64, 1_000: 24, 10_000: 16}
"""The ks that are measured, and how many questions are enough: each tells of k neighbours."""
_SPARE = 10
"""Rows looked at beyond the nearest k, since `coarse` may order near ties wrongly."""
_GROWN = 1.25
"""How much a graph may grow by additions that lose what is beyond the nearest ten before it is made anew."""
SCAN_FROM = 16
"""A graph that must keep more than one candidate for this many of its vectors is slower than looking at all."""
_FEWEST = 16
"""With fewer questions nothing can be said."""
_BLOCK = 1 << 22
"""Distances worked on at once."""
_BREADTHS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_OVERFETCH = {Precision.f32: 1, Precision.bf16: 2, Precision.f16: 2, Precision.i8: 4}
"""How many candidates for each result, since a smaller type puts them in a slightly different order."""


class Wider(msgspec.Struct, frozen=True):
    """What was found out about searches for more than ten."""

    k: int
    breadth: float
    recall: float


class Calibration(msgspec.Struct, frozen=True):
    """What was found out about a graph."""

    breadth: float = 1.0
    """How many times the collection's `ef_search` a search for ten keeps."""
    recall: float | None = None
    """Part of the nearest ten found at this breadth; None where too few rows were new to tell."""
    wider: tuple[Wider, ...] = ()
    """The same for larger k, ascending, up to the largest for which a search walks the graph at all; generations from
    before this was measured do not say."""
    made_of: int = 0
    """How many vectors the graph had when it was last made anew; 0 where nobody noted it."""

    @property
    def reaches_wider(self) -> bool:
        """Whether as much is found as is promised for whatever k was measured."""
        return all(one.recall >= PROMISED for one in self.wider)

    def reaches(self, metric: Metric) -> Reaches:
        """The breadth that searches up to each k need, ascending; None where they must look at everything.

        Beyond what is measured they must, too. Where nothing was, what was measured for ten is believed, but not
        under dot: with lengths that vary, graphs that were made in any order lose most of what is beyond.
        """
        found = [(_K, self.breadth, 1.0 if self.recall is None else self.recall)]
        found += [(one.k, one.breadth, one.recall) for one in self.wider]
        if not self.wider and metric is not Metric.dot:
            found[-1] = (_ENDLESS, *found[-1][1:])
        return tuple((k, breadth if recall >= PROMISED else None) for k, breadth, recall in found)


_ENDLESS = 1 << 62


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
    wider: bool = False
    """Whether more than ten must be found as well as is promised, too."""

    def succeeds(self, found: Calibration) -> bool:
        """Whether the graph is kept."""
        if self.wider and not found.reaches_wider:
            return False
        return found.recall is None or found.recall >= self.accept


def attempts(
    asked: IndexParameters, base: tuple[IndexParameters, Calibration] | None, entries: int = 0
) -> Iterator[Attempt]:
    """Ways to make a graph of `entries` vectors, cheapest first; the last succeeds whatever it finds.

    Going on from an old graph (`base`) puts up with a larger breadth than a fresh one, so that not every
    addition to difficult data makes the graph anew; and with a little less than what was the best before. It puts up
    with scans beyond the nearest ten until the graph has grown so much that making it anew costs a few times as much
    as the additions did.
    """
    if base:
        parameters, before = base
        accept = TARGET
        if before.recall is not None and before.recall < TARGET:
            accept = before.recall - _SLIP
        grown = entries > _GROWN * before.made_of
        yield Attempt(parameters, extend=True, most=max(6.0, before.breadth), accept=accept, wider=grown)
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
    count = min(_ASKED[_K], len(new) // 4, 40 + 700 * len(new) // max(1, rows))
    if count < _FEWEST:
        return new[:0]
    return new[np.linspace(0, len(new) - 1, count).astype(np.int64)]


def calibrate(draft: Draft, rows: Rows, held: I64, *, most: float, apart: I64 | None = None) -> Calibration:
    """Find the least breadth, up to `most`, at which the graph of all `rows` but `held` answers these well enough.

    `apart` are rows that never will be in the graph: each has an equal there (`twins`), so they are no neighbours.
    """
    outside = held if apart is None else np.union1d(held, apart)
    entries = len(draft) + len(held)
    measure = _Measure(draft, rows, held, outside, max(0.0, 1 - (len(rows.seqs) - len(outside)) / len(draft)))
    found = least(measure.of(_K), most)
    return msgspec.structs.replace(found, wider=tuple(_wider(measure, draft, entries)))


def _wider(measure: "_Measure", draft: Draft, entries: int) -> Iterator[Wider]:
    """What is found of more than ten, up to the largest k for which a search would not rather look at everything."""
    precision = draft.encoding.precision
    largest = min(entries // (4 * _OVERFETCH[precision]), len(measure.rows.seqs) - len(measure.outside) - _SPARE)
    for k in sorted({min(k, largest) for k in _ASKED} - {_K}):
        if k > _K:
            keeps = max(draft.parameters.ef_search, candidates(k, precision))
            one = least(measure.of(k), max(1.0, min(_BREADTHS[-1], entries / (SCAN_FROM * keeps))))
            yield Wider(k, one.breadth, one.recall or 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """Asks an unfinished graph what `held` rows' neighbours are, among all rows but those `outside` of it."""

    draft: Draft
    rows: Rows
    held: I64
    outside: I64
    ghosts: float

    def of(self, k: int) -> Callable[[float], float]:
        """The part of the nearest `k` that is found, by breadth."""
        rows, encoding = self.rows, self.draft.encoding
        count = min(len(self.held), next(n for most, n in _ASKED.items() if k <= most))
        held = self.held[np.linspace(0, len(self.held) - 1, count).astype(np.int64)]
        limits = _distances_of(rows, held, self.outside, encoding.metric, k)
        fetch = with_ghosts(candidates(k, encoding.precision), self.ghosts)

        def recall(breadth: float) -> float:
            asked, ef = reach(fetch, self.draft.parameters.ef_search, encoding.precision, breadth)
            found = 0
            for row, limit in zip(held, limits, strict=True):
                question = slice(row, row + 1)
                keys, counts = self.draft.search(rows.vectors[question], rows.lengths[question], asked, ef)
                proposed = rows.vectors[rows.find(keys[0, : counts[0]])]
                near = exact(encoding.metric, rows.vectors[row], proposed) <= limit
                found += min(k, int(np.count_nonzero(near)))
            return found / (k * len(held))

        return recall


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


def _distances_of(rows: Rows, held: I64, outside: I64, metric: Metric, k: int) -> F64:
    """For each held row (h,), how far the k-th nearest is of the others that are not `outside`."""
    near = _nearest(rows, held, outside, metric, k + _SPARE)
    distances = [exact(metric, rows.vectors[row], rows.vectors[some]) for row, some in zip(held, near, strict=True)]
    return np.partition(np.stack(distances), k - 1, axis=1)[:, k - 1]


def _nearest(rows: Rows, held: I64, outside: I64, metric: Metric, count: int) -> I64:
    """Rows (h, count) nearest to each held row, but for near ties, in no order; none of those `outside`."""
    parts: list[tuple[F32, I64]] = []
    step = max(count, _BLOCK // len(held))
    for start in range(0, len(rows.seqs), step):
        block = slice(start, start + step)
        far = coarse(metric, rows.vectors[held], rows.lengths[held], rows.vectors[block], rows.lengths[block])
        far[:, outside[(outside >= start) & (outside < start + step)] - start] = np.inf
        near = np.argpartition(far, min(count, far.shape[1]) - 1, axis=1)[:, :count]
        parts.append((np.take_along_axis(far, near, axis=1), near + start))
    far, near = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return np.take_along_axis(near, np.argpartition(far, min(count, far.shape[1]) - 1, axis=1)[:, :count], axis=1)
