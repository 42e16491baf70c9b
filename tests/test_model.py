"""The model of rules 1 to 13 keeps its promises, breaks them without any one rule, and allows what the code does."""

import itertools

import pytest

from model.beside import Beside, Deviation
from model.explore import follow, search, walk
from model.replication import MUCH, WITHOUT, Bounds, Replication
from model.stories import STORIES
from simulation.checks import Violation
from simulation.mutations import MUTATIONS

DEVIATES_AT = {
    "PrimaryAcksBeforeSync": 57,
    "ShrinkFirst": 8,
    "ExpandLate": 17,
    "AnyDiskAnswers": 7,
    "NoFence": 12,
    "ForgetUnknown": 12,
    "PromiseBeforeSync": 5,
    "Stubborn": 4,
    "OldName": 3,
    "BlindLeader": 11,
    "ResumeEpoch": 2,
    "CutAtWatermark": 1,
    "NoCut": 4,
    "LeaveFirst": 5,
    "CountAll": 8,
    "ShrinkToOne": 1,
    "ServeBeforeStored": 2,
    "HandOverToAnyone": 5,
    "OverByEtcd": 5,
    "TrustsWhatIsForgotten": 4,
}
"""A seed of the simulation in which code without the rule leaves the model, so that the test need not look for one
until something changes; 0 where none is named.
"""

BOUND = 200

UNSEEN = {
    "RecordsForEveryone": "what is sent in vain is no step",
    "OldConfirmation": "reads are not compared",
    "TrustEpoch": "reads are not compared",
    "ReadTooEarly": "reads are not compared",
    "ForgetSession": "reads are not compared",
    "AskLearners": "reads are not compared",
    "NoOperationIds": "the model does not know which operations are the same",
    "DeposedLeader": "what an old leader does is what a leader may do",
    "ForgetsTooMuch": "it leaves the model in fewer than one run of thirty; the simulation shows what it breaks",
}
"""Rules of which the code may leave one out without leaving the model."""

BELOW = {"loop", "rest"}
"""What the model knows nothing of: in which order a loop works, and whom nobody wakes."""


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(epochs=2, changes=1, crashes=1),
        Bounds(epochs=2, changes=2, crashes=0),
    ],
    ids=str,
)
def test_no_state_of_a_small_shard_breaks_a_promise(bounds):
    found = search(Replication(bounds), states=100_000)
    assert found.complete, found
    assert found.violation is None, found


def test_no_walk_through_a_larger_one_does():
    found = walk(Replication(MUCH), walks=100, length=70)
    assert found.states > 2_000
    assert found.violation is None, found


@pytest.mark.parametrize("rule", [r for r in WITHOUT if r not in STORIES])
def test_without_a_rule_some_walk_breaks_a_promise(rule):
    assert walk(Replication(MUCH, rule), walks=2_000, length=70).violation


@pytest.mark.parametrize("rule", STORIES)
def test_without_a_rule_a_story_ends_badly_that_cannot_happen_with_it(rule):
    bounds, *story = STORIES[rule]
    without, with_it = follow(Replication(bounds, rule), story), follow(Replication(bounds), story)
    assert without.violation
    assert without.states == len(story), f"after {without.path[-1:]} it cannot go on"
    assert with_it.violation is None
    assert with_it.states < len(story)


@pytest.mark.parametrize("seed", range(10))
def test_what_the_code_does_are_steps_of_the_model(seed):
    beside = Beside(seed)
    beside.run()
    assert beside.steps > 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [n for n in MUTATIONS if n not in UNSEEN and MUTATIONS[n].rule not in BELOW])
def test_code_without_a_rule_leaves_the_model(name):
    for seed in itertools.chain([DEVIATES_AT.get(name, 0)], range(BOUND)):
        try:
            Beside(seed, MUTATIONS[name].rules).run()
        except Deviation:
            return
        except Violation:  # a promise was broken before the model was left
            continue
    pytest.fail(f"in no seed of {BOUND} code leaves the model when {MUTATIONS[name].instead}")
