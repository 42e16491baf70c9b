"""All that can happen to a few batches over a few shards keeps rule 15's promises; without any part of it, not.

The simulation (`test_atomic_simulation.py`) runs the product's code through much of what can happen; this looks at all
of it, in a model of what docs/replication.md says.
"""

import pytest

from model.batches import WITHOUT, Attempt, Batches, Bounds, Prepare, State
from model.explore import search

STATES = 100_000
"""More than any of these has."""
BOTH = (0, 1)
TWO_BATCHES = Bounds((BOTH, BOTH))

EVERYTHING = [
    TWO_BATCHES,
    Bounds(attempts=2, forgets=2),
    Bounds(coordinators=2, forgets=2),
    Bounds(((0, 1, 2),), forgets=1),
]


@pytest.mark.parametrize("bounds", EVERYTHING, ids=str)
def test_no_promise_is_broken_whatever_happens(bounds: Bounds) -> None:
    found = search(Batches(bounds), states=STATES)
    assert found.complete, str(found)


FORGETTING = Bounds(forgets=1)
BROKEN = {
    "all prepared": (Bounds(), "a read shows half of a batch"),
    "create": (Bounds(), "two verdicts"),
    "drops alone": (Bounds(), "half of a batch is applied"),
    "drops": (Bounds(), "a batch stays prepared for ever"),
    "order": (TWO_BATCHES, "shards disagree about the order of batches"),
    "hold up": (TWO_BATCHES, "shards disagree about the order of batches"),
    "forgotten at once": (FORGETTING, "two verdicts"),
    "forgotten by all": (FORGETTING, "two verdicts"),
    "compare": (FORGETTING, "two verdicts"),
    "note first": (FORGETTING, "two verdicts"),
    "confirm": (FORGETTING, "two verdicts"),
    "known to be dropped": (Bounds(attempts=2), "a batch is applied twice"),
    "hidden": (Bounds(), "a read shows half of a batch"),
    "read again": (Bounds(), "a read shows half of a batch"),
    "undecided": (Bounds(), "a read shows half of a batch"),
    "named": (Bounds(), "a read shows half of a batch"),
    "applied by all": (Bounds(), "an acknowledged batch is not applied everywhere"),
}
"""What happens without each part, and within which bounds."""


class Prepared(Batches):
    """Begins where every shard has prepared every batch: there is less to look at before two of them are decided."""

    def initial(self) -> State:
        state = super().initial()
        for batch, participants in enumerate(self.bounds.batches):
            for shard in participants:
                state = state.append(shard, Prepare(Attempt(batch, 1)))
        return state


@pytest.mark.parametrize("without", WITHOUT)
def test_a_promise_is_broken_without_this_part(without: str) -> None:
    bounds, broken = BROKEN[without]
    model = Prepared(bounds, without) if bounds == TWO_BATCHES else Batches(bounds, without)
    found = search(model, states=STATES)
    assert found.violation == broken, f"although {WITHOUT[without]}: {found}"
