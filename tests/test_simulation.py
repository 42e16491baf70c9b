"""Replicas on a simulated clock, network, disk and etcd keep every promise; without any one rule they break one.

`make simulate SEEDS=10000` is the long run.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from simulation.checks import Violation
from simulation.mutations import FAILING_ROWS, HIDDEN, MUTATIONS
from simulation.run import Result, Rules, simulate
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster_node.replica.ready import Ready

SEEDS = 60
BOUND = 1000
"""Seeds within which the absence of a rule has to show."""


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_seeds_keep_every_promise(first: int) -> None:
    results = [simulate(seed) for seed in range(first, first + 10)]
    assert sum(r.acknowledged for r in results) > 300
    assert sum(r.promotions for r in results) > 15


def test_batches_that_cannot_be_applied_break_no_promise() -> None:
    assert sum(simulate(seed, Rules(weather=FAILING_ROWS)).reads for seed in range(10)) > 300


def test_the_seeds_reach_everything_that_a_replica_can_be_asked_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    done: set[type] = set()
    do_one = Ready.carry_out

    def notice(self: Ready, effect: do.Effect) -> Iterator[on.Event]:
        done.add(type(effect))
        return do_one(self, effect)

    monkeypatch.setattr(Ready, "carry_out", notice)
    for seed in range(30):
        simulate(seed)
    assert set(get_args(do.Effect)) - done == {do.Diverged}  # which would be a violation


def test_a_seed_is_always_the_same_run_whatever_python_hashes() -> None:
    def run(hashing: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-m", "simulation", "--seeds", "1", "--from", "4", "--trace"]
        lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        return "\n".join(line for line in lines[:-1] if "frozenset" not in line)

    assert run("1") == run("2")
    assert simulate(4) == simulate(4)


SHOWS_AT = {
    "AnyDisk": 0,
    "AnyDiskAnswers": 13,
    "AskLearners": 37,
    "BlindLeader": 40,
    "CountAll": 8,
    "CutAtWatermark": 1,
    "DifferenceWakesNobody": 3,
    "ExpandLate": 8,
    "ForgetSession": 3,
    "ForgetsTooMuch": 45,
    "ForgetUnknown": 14,
    "HandOverToAnyone": 6,
    "LeaveFirst": 5,
    "NeverReleases": 14,
    "NeverRests": 1,
    "NoCut": 4,
    "NoFence": 80,
    "OldConfirmation": 34,
    "OldName": 3,
    "PrimaryAcksBeforeSync": 57,
    "PromiseBeforeSync": 9,
    "PromoteAnyone": 0,
    "RecordsForEveryone": 4,
    "ResumeEpoch": 2,
    "ServesUnapplied": 0,
    "ShrinkFirst": 7,
    "ShrinkToOne": 1,
    "SilenceWakesNobody": 1,
    "Stubborn": 9,
    "TrustEpoch": 1,
    "TrustsWhatIsForgotten": 49,
    "Undaunted": 1,
    "WaitsForEver": 1,
}
"""A seed that shows the absence of a rule, so that the test need not look for one until something changes; 0 where none
is named.
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - HIDDEN.keys()))
def test_a_run_without_the_rule_breaks_a_promise(name: str) -> None:
    for seed in itertools.chain([SHOWS_AT.get(name, 0)], range(BOUND)):
        try:
            simulate(seed, MUTATIONS[name].rules)
        except Violation:
            return
    pytest.fail(f"no seed of {BOUND} shows that {MUTATIONS[name].instead} (rule {MUTATIONS[name].rule})")


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_a_rule_that_is_kept_without_proof_is_one_whose_absence_does_not_show(name: str) -> None:
    assert all(isinstance(simulate(seed, MUTATIONS[name].rules), Result) for seed in range(10))
