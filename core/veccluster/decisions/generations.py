"""Decide which generations of a shard replica are built, merged or built anew.

A search walks every generation's graph and looks at the whole tail, so few generations and a short tail make it
fast; but putting a vector into a graph is by far the dearest step of all (some hundred µs), a hundred times that of
copying a finished row into a new file (some µs). So the tail joins the newest generation and older ones as long as
that copies at most `copies_per_row` rows for each new one, the largest of the merged graphs is kept and the others
are added to it, and what is larger is left alone: each vector enters a graph about once for each factor of
`copies_per_row` in size.

What is deleted must leave the disk, too. So the tail is also built when the log is much larger than what there is
(sending everything would then be cheaper than sending the log), the list before the one in use is dropped when it holds
mostly what is deleted, and no build begins that would fill the disk.

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
    """Of the log behind the newest generation."""
    all_log_bytes: int = 0
    row_bytes: int = 0
    """Of all living rows, as the file of rows holds them."""
    list_bytes: int = 0
    """Of the generations in use."""
    spare_bytes: int = 0
    """Of those that only the list before names."""
    spare_log_bytes: int = 0
    """Of the log that is kept only since the list before ends earlier."""
    graph_bytes: int = 0
    """Of one row in a graph."""
    room: int | None = None
    """Bytes that are free on the disk, if that is to count."""
    disk: int = 0
    """Bytes of the whole disk."""


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
    spare_bytes: int = 1 << 20
    """What is deleted may take this on the disk, besides a part of what there is."""
    log_per_row_byte: int = 2
    list_per_list: float = 1.25
    keep_free: float = 0.02
    """Part of the disk that a build leaves free."""
    least_free: int = 16 << 20


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
    if shard.tail_seconds > limits.tail_seconds and shard.all_log_bytes > _most_log(shard, limits):
        return f"the log has {shard.all_log_bytes} bytes for {shard.row_bytes} of rows"
    return "asked for" if force else None


def _most_log(shard: ShardState, limits: GenerationLimits) -> int:
    return limits.spare_bytes + limits.log_per_row_byte * shard.row_bytes


def drops_the_list_before(shard: ShardState, limits: GenerationLimits = GenerationLimits()) -> bool:
    """Whether the list before the one in use holds mostly what is deleted, itself or by the log behind it.

    Otherwise it is kept until the next build: it is what the rows can be made from when a newer generation is damaged.
    """
    if any(generation.damaged for generation in shard.generations):
        return False
    too_long = shard.all_log_bytes > _most_log(shard, limits) and shard.spare_log_bytes > limits.spare_bytes // 2
    return too_long or shard.spare_bytes > limits.spare_bytes + limits.list_per_list * shard.list_bytes


def room_for(shard: ShardState, build: Build) -> int:
    """Bytes that a build will take on the disk, about."""
    live = sum(g.live for g in shard.generations) + shard.tail_live
    return _rows_of(shard, build) * (shard.row_bytes // max(1, live) + (shard.graph_bytes if build.graph else 0))


def _rows_of(shard: ShardState, build: Build) -> int:
    return sum(g.live for g in shard.generations[build.first : build.last]) + (shard.tail_live if build.tail else 0)


def that_fits(shard: ShardState, build: Build, limits: GenerationLimits = GenerationLimits()) -> Build | None:
    """The build, or the tail alone, or nothing: what leaves room on the disk.

    What frees more than it takes may use up more: it is the way out of a full disk.
    """
    alone = _build(shard, limits, len(shard.generations), len(shard.generations), tail=True, reason=build.reason)
    for one in (build, alone) if build.tail else (build,):
        merged = shard.generations[one.first : one.last]
        frees = sum(g.dead + g.ghosts for g in merged) > _rows_of(shard, one)
        keep = 0 if frees else max(limits.least_free, int(limits.keep_free * shard.disk))
        if shard.room is None or room_for(shard, one) + keep <= shard.room:
            return one
    return None


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
