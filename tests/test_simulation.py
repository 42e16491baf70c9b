"""Replicas on a simulated clock, network, disk and etcd keep every promise; without any one rule they break one.

`make simulate SEEDS=10000` is the long run.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from simulation.checks import Violation
from simulation.mutations import HIDDEN, MUTATIONS
from simulation.node import Node
from simulation.run import Result, simulate
from veccluster.decisions.replication import effects as do

SEEDS = 60
BOUND = 1000
"""Seeds within which the absence of a rule has to show."""


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_seeds_keep_every_promise(first: int) -> None:
    results = [simulate(seed) for seed in range(first, first + 10)]
    assert sum(r.acknowledged for r in results) > 300
    assert sum(r.promotions for r in results) > 15


def test_the_seeds_reach_everything_that_a_replica_can_be_asked_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    done: set[type] = set()
    do_one = Node._do

    def notice(self: Node, effect: do.Effect) -> None:
        done.add(type(effect))
        do_one(self, effect)

    monkeypatch.setattr(Node, "_do", notice)
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
    "AckBeforeSync": 0,
    "AnyCopies": 0,
    "AnyDisk": 8,
    "AnyDiskAnswers": 13,
    "AnyPrimary": 0,
    "AnyRejection": 0,
    "AnySource": 0,
    "ApplyAll": 0,
    "AskLearners": 204,
    "BlindLeader": 9,
    "CountAll": 0,
    "CutAtWatermark": 0,
    "ExpandLate": 0,
    "FewCopies": 0,
    "ForgetSession": 0,
    "ForgetUnknown": 63,
    "HandOverToAnyone": 1,
    "JoinWithGap": 0,
    "LeaveFirst": 5,
    "MadeUpEpoch": 0,
    "NoCut": 11,
    "NoFence": 16,
    "NoOperationIds": 0,
    "OldConfirmation": 15,
    "OldName": 3,
    "OverByEtcd": 0,
    "PrimaryAcksBeforeSync": 2,
    "PrimaryAppliesAll": 0,
    "PromiseBeforeSync": 1,
    "PromoteAnyone": 8,
    "ResumeEpoch": 0,
    "ServeBeforeStored": 1,
    "ShrinkFirst": 0,
    "ShrinkToOne": 1,
    "Stubborn": 1,
    "TrustEpoch": 15,
}
"""A seed that shows the absence of each rule, so that the test need not look for one until something changes."""


@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - HIDDEN.keys()))
def test_a_run_without_the_rule_breaks_a_promise(name: str) -> None:
    for seed in itertools.chain([SHOWS_AT[name]], range(BOUND)):
        try:
            simulate(seed, MUTATIONS[name].rules)
        except Violation:
            return
    pytest.fail(f"no seed of {BOUND} shows that {MUTATIONS[name].instead} (rule {MUTATIONS[name].rule})")


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_a_rule_that_is_kept_without_proof_is_one_whose_absence_does_not_show(name: str) -> None:
    assert all(isinstance(simulate(seed, MUTATIONS[name].rules), Result) for seed in range(10))
