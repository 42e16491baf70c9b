"""`make model`: looks at far more states than the tests do, and shows what each rule is for."""

import argparse
import sys
import time
from collections.abc import Iterator

from model import batches, replication
from model.beside import Beside
from model.explore import Found, follow, search, walk
from model.replication import MUCH
from model.stories import STORIES

SMALL = (
    replication.Bounds(epochs=2, changes=2, crashes=1),
    replication.Bounds(epochs=2, changes=2, crashes=0, wipes=1),
    replication.Bounds(epochs=3, changes=2, crashes=0),
    replication.Bounds(epochs=2, changes=2, crashes=0, reads=1),
    replication.Bounds(values=2, epochs=2, changes=1, crashes=1),
)
BATCHES = (
    batches.Bounds(((0, 1), (0, 1)), forgets=2),
    batches.Bounds(coordinators=2, attempts=2, forgets=2),
    batches.Bounds(((0, 1), (1, 2)), forgets=1),
)


def say(what: object) -> None:
    print(what, flush=True)  # noqa: T201 - it is what the command is for


def explored(states: int, walks: int) -> Iterator[Found]:
    """What there is with all rules."""
    for bounds in SMALL:
        say(f"all states within {bounds}")
        yield search(replication.Replication(bounds), states=states)
    for several in BATCHES:
        say(f"all states within {several}")
        yield search(batches.Batches(several), states=states)
    say(f"{walks} walks within {MUCH}")
    yield walk(replication.Replication(MUCH), walks=walks, length=80)


def broken(rule: str, walks: int) -> Found:
    """What comes of leaving it out."""
    if rule in STORIES:
        bounds, *story = STORIES[rule]
        return follow(replication.Replication(bounds, rule), story)
    return walk(replication.Replication(MUCH, rule), walks=walks, length=80)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make model")
    parser.add_argument("--states", type=int, default=1_000_000, help="how many to look at, at most")
    parser.add_argument("--walks", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=100, help="runs of the simulation beside the model")
    asked, failed, began = parser.parse_args(), 0, time.monotonic()
    for found in explored(asked.states, asked.walks):
        say(f"  {found}; {time.monotonic() - began:.0f} s")
        failed += found.violation is not None
    for rule, instead in replication.WITHOUT.items():
        say(f"without rule {rule}: {instead}")
        say(f"  {broken(rule, asked.walks)}")
    steps = 0
    for seed in range(asked.seeds):
        beside = Beside(seed)
        beside.run()
        steps += beside.steps
    say(f"{asked.seeds} seeds of the simulation beside the model: {steps} steps, all of them allowed")
    return min(failed, 1)


sys.exit(main())
