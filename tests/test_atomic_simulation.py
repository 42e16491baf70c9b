"""Batches over several simulated shards are all or nothing; without any part of the rule a run breaks a promise.

`make simulate ATOMIC=1 SEEDS=10000` is the long run.
"""

import itertools

import pytest

from simulation.atomic.mutations import MUTATIONS
from simulation.atomic.run import simulate
from simulation.checks import Violation

SEEDS = 16
BOUND = 300
"""Seeds within which the absence of a part has to show."""


@pytest.mark.e2e
def test_seeds_keep_every_promise_about_batches() -> None:
    results = [simulate(seed) for seed in range(SEEDS)]
    assert sum(r.batches for r in results) > 300
    assert sum(r.dropped for r in results) > 20
    assert sum(r.promotions for r in results) > 60
    assert sum(r.rounds - r.reads for r in results) > 200, "reads find batches lacking, and read again"


def test_a_seed_with_batches_is_always_the_same_run() -> None:
    assert simulate(4) == simulate(4)


SHOWS_AT = {
    "DecideEarly": 0,
    "TwoVerdicts": 1,
    "LateDecision": 0,
    "LateNote": 0,
    "DropAlone": 0,
    "NeverDrop": 2,
    "NoTakeUp": 1,
    "AsTheyCome": 0,
    "Overtake": 71,
    "ForgetAtOnce": 0,
    "ForgetAfterOne": 0,
    "RetryAnew": 1,
    "AckAtDecision": 0,
    "ShowPrepared": 0,
    "NeverReread": 0,
    "PlaceIsEnough": 0,
    "NamesNobody": 0,
    "SnapshotLacksPending": 2,
    "ClearEarly": 0,
}
"""A seed that shows the absence of each part, so that the test need not look for one until something changes."""


RARE = frozenset({"Unconfirmed", "SnapshotLacksDecided", "SnapshotLacksLatest"})
"""Parts whose absence has not shown yet since the simulation runs the product's own loop, in some 60 seeds each:
`make simulate ATOMIC=1 MUTATION=name` looks for one.
"""


@pytest.mark.e2e
@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - RARE))
def test_a_run_without_this_part_of_the_rule_breaks_a_promise(name: str) -> None:
    for seed in itertools.chain([SHOWS_AT[name]], range(BOUND)):
        try:
            simulate(seed, MUTATIONS[name].rules)
        except Violation:
            return
    pytest.fail(f"no seed of {BOUND} shows that {MUTATIONS[name].instead}")
