"""The view of one shard as its writer keeps it: generations, tail, and who died when.

Only the writer's thread changes it; `view` may be called from any. Each change is a new immutable view, published by
one assignment, except for deaths and the unused ends of the tail's chunks, which no reader of an older state looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veccluster.decisions.generations import GenerationState
from veccluster_node.engine.distance import F32
from veccluster_node.engine.records import Changes
from veccluster_node.engine.view import ALIVE, SearchView, Segment, Tail, inherit_deaths


@dataclass(slots=True, eq=False)
class Slot:
    """One generation in use, covering seqs in (after, through]. A damaged one is held in memory instead of mapped."""

    name: str
    after: int
    through: int
    segment: Segment
    damaged: bool = False
    dead: int = 0

    def state(self) -> GenerationState:
        """What the decision about builds wants to know."""
        rows, graph = len(self.segment), self.segment.graph
        return GenerationState(
            live=rows - self.dead,
            dead=self.dead,
            ghosts=self.segment.ghosts,
            graph=graph is not None,
            damaged=self.damaged,
        )


class LocalFeed:
    """A feed for readers in the same process."""

    def __init__(self, slots: Sequence[Slot], tail: Tail, *, floor: int, dimension: int) -> None:
        self.slots = list(slots)
        self.tail = tail
        self._dimension = dimension
        self._floor = floor
        for slot in self.slots:
            slot.dead = int(np.count_nonzero(slot.segment.died != ALIVE))
        self.tail_dead = 0
        self._publish()

    def view(self) -> SearchView:
        """The newest view."""
        return self._view

    def _publish(self) -> None:
        self._view = SearchView(self._floor, (*(s.segment for s in self.slots), *self.tail.segments()))

    def apply(self, changes: Changes) -> None:
        """Show what is about to be committed."""
        if changes.born:
            vectors = b"".join(op.vector for op in changes.born.values())
            self.tail.append(list(changes.born), _matrix(vectors, self._dimension))
        if changes.died:
            for slot in self.slots:
                slot.dead += slot.segment.mark_dead(changes.died)
            self.tail_dead += sum(s.mark_dead(changes.died) for s in self.tail.segments())
        self._publish()

    def replace(self, first: int, last: int, slot: Slot, *, floor: int) -> None:
        """Put `slot` in the place of slots[first:last], and of the tail's part that it covers."""
        old = [*(s.segment for s in self.slots[first:last]), *self.tail.segments()]
        slot.segment = inherit_deaths(slot.segment, old)
        slot.dead = int(np.count_nonzero(slot.segment.died != ALIVE))
        self.slots[first:last] = [slot]
        if slot.through > self.tail.after:
            self.tail.drop(slot.through)
            self.tail_dead = sum(int(np.count_nonzero(s.died != ALIVE)) for s in self.tail.segments())
        self._floor = max(self._floor, floor)
        self._publish()

    def memory(self) -> int:
        """Bytes that it keeps in memory, besides what is mapped."""
        resident = 0
        for slot in self.slots:
            resident += 20 * len(slot.segment) + (slot.segment.vectors.nbytes if slot.damaged else 0)
            resident += 16 * slot.segment.graph.entries if slot.segment.graph else 0
            resident += 16 * len(slot.segment.twins) if slot.segment.twins else 0
        return resident + self.tail.size()


def _matrix(data: bytes, dimension: int) -> F32:
    return np.frombuffer(data, "<f4").reshape(-1, dimension)
