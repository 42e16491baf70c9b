"""Decide which generations of a shard replica are built, merged or built anew.

A search walks every generation's graph and looks at the whole tail, so few generations and a short tail make it
fast; but putting a vector into a graph is by far the dearest step of all (some hundred µs), a hundred times that of
copying a finished row into a new file (some µs). So the tail joins the newest generation and older ones as long as
that copies at most `copies_per_row` rows for each new one, the largest of the merged graphs is kept and the others
are added to it, and what is larger is left alone: each vector enters a graph about once for each factor of
`copies_per_row` in size.

Pure: sizes in, one action out; deciding again on its result does nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class GenerationState:
    """One generation: live rows, dead rows, and ghosts (vectors that are only left in the graph)."""

    live: int
    dead: int
    ghosts: int = 0
    graph: bool = True
    damaged: bool = False
    """Its files are unusable; its rows are searched exactly until it is built anew."""

    @property
    def wasted(self) -> float:
        """The part of what a search walks over that it cannot answer with."""
        return (self.dead + self.ghosts) / max(1, self.live + self.dead + self.ghosts)


@dataclass(frozen=True, slots=True)
class ShardState:
    """What a decision is made from: generations oldest first; the tail's rows (dead ones too), and its age."""

    generations: tuple[GenerationState, ...]
    tail_rows: int
    tail_live: int
    tail_seconds: float
    """Since the oldest operation of the tail."""
    tail_operations: int
    """Seqs behind the newest generation: rows, deletions, and what neither shows any more."""
    log_bytes: int


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Numbers that decisions keep to."""

    tail_rows: int = 2048
    """Above this the tail is built into a generation."""
    tail_seconds: float = 30.0
    """After this long a quarter of `tail_rows` is enough."""
    graph_rows: int = 2048
    """Fewer rows than this get no graph: looking at all of them is as fast, and exact."""
    generation_rows: int = 1_000_000
    copies_per_row: int = 32
    max_generations: int = 4
    max_wasted: float = 0.25
    log_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True)
class Build:
    """Make one generation of generations[first:last] and, if `tail`, everything behind them.

    `base` is the generation whose graph is kept and added to; None builds the graph from the vectors alone. `graph`
    says whether there is to be one at all.
    """

    first: int
    last: int
    tail: bool
    base: int | None
    graph: bool
    reason: str


def decide(shard: ShardState, limits: GenerationLimits = GenerationLimits(), *, force: bool = False) -> Build | None:
    """The one build that helps most now, or None. `force` asks for the tail to be built whatever its size."""
    generations = shard.generations
    for i, generation in enumerate(generations):
        if generation.damaged:
            return _build(shard, limits, i, i + 1, reason="its files are damaged")
    if shard.tail_operations and (reason := _tail_reason(shard, limits, force=force)):
        return _build(shard, limits, _merge_from(shard, limits), len(generations), tail=True, reason=reason)
    for i, generation in enumerate(generations):
        if generation.wasted > limits.max_wasted:
            return _build(shard, limits, i, i + 1, reason=f"{generation.wasted:.0%} of it is dead")
    return _fewer(shard, limits)


def _tail_reason(shard: ShardState, limits: GenerationLimits, *, force: bool) -> str | None:
    if shard.tail_rows > limits.tail_rows:
        return f"the tail holds {shard.tail_rows} vectors"
    if shard.tail_seconds > limits.tail_seconds and shard.tail_rows > limits.tail_rows // 4:
        return f"{shard.tail_rows} vectors have been in the tail for {shard.tail_seconds:.0f} s"
    if shard.log_bytes > limits.log_bytes:
        return f"the log has {shard.log_bytes} bytes"
    return "asked for" if force else None


def _merge_from(shard: ShardState, limits: GenerationLimits) -> int:
    """The oldest generation that the tail should be merged with; their number when it should stand alone."""
    generations, first = shard.generations, len(shard.generations)
    new = shard.tail_live
    total = new
    while first > 0:
        older = generations[first - 1].live
        if total + older > limits.generation_rows or (
            older >= limits.graph_rows and older > limits.copies_per_row * new
        ):
            break
        first -= 1
        total += older
        new += min(older, total - older)
    return first


def _fewer(shard: ShardState, limits: GenerationLimits) -> Build | None:
    """When there are too many generations, merge the two neighbours for which that is cheapest."""
    generations = shard.generations
    if len(generations) <= limits.max_generations:
        return None
    pairs = [
        (min(a.live, b.live), i)
        for i, (a, b) in enumerate(pairwise(generations))
        if a.live + b.live <= limits.generation_rows
    ]
    if not pairs:
        return None
    _, i = min(pairs)
    return _build(shard, limits, i, i + 2, reason=f"there are {len(generations)} generations")


def _build(
    shard: ShardState, limits: GenerationLimits, first: int, last: int, *, tail: bool = False, reason: str
) -> Build:
    merged = shard.generations[first:last]
    live = sum(g.live for g in merged) + (shard.tail_live if tail else 0)
    graph = live >= limits.graph_rows
    return Build(first, last, tail, _base(merged, first, limits) if graph else None, graph, reason)


def _base(merged: Sequence[GenerationState], first: int, limits: GenerationLimits) -> int | None:
    """The largest graph that is worth keeping: whole, and with few dead."""
    able = [
        (g.live, i) for i, g in enumerate(merged, first) if g.graph and not g.damaged and g.wasted <= limits.max_wasted
    ]
    return max(able)[1] if able else None
