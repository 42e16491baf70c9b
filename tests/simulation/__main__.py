"""python -m simulation [--seeds N] [--from SEED] [--mutation NAME] [--trace]"""

import argparse
import sys
import time
import traceback
from dataclasses import dataclass

from simulation import run
from simulation.checks import Violation
from simulation.mutations import MUTATIONS

ENOUGH = 5
"""Seeds that fail before it stops looking for more."""
EVERY = 1000
"""Seeds after which it says how far it is."""


def say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


@dataclass
class Tally:
    """What a number of seeds amounted to."""

    seeds: int = 0
    failed: int = 0
    events: int = 0
    acknowledged: int = 0
    reads: int = 0
    promotions: int = 0
    lost: int = 0

    def add(self, result: run.Result) -> None:
        self.events += result.events
        self.acknowledged += result.acknowledged
        self.reads += result.reads
        self.promotions += result.promotions
        self.lost += result.doomed

    def __str__(self) -> str:
        return (
            f"{self.seeds} seeds, {self.failed} failed; {self.events} events, {self.acknowledged} acknowledged writes, "
            f"{self.reads} reads, {self.promotions} promotions, {self.lost} runs lost every copy"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="remove a rule")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    asked = parser.parse_args()
    rules = MUTATIONS[asked.mutation].rules if asked.mutation else run.Rules()
    tally, began = Tally(), time.monotonic()
    for seed in range(asked.first, asked.first + asked.seeds):
        tally.seeds += 1
        try:
            tally.add(run.simulate(seed, rules, trace=asked.trace))
        except Exception as error:  # noqa: BLE001 - a defect of any kind is a seed that fails
            tally.failed += 1
            again = f"make simulate SEEDS=1 FROM={seed}" + (f" MUTATION={asked.mutation}" if asked.mutation else "")
            say(f"seed {seed}: {type(error).__name__}: {error}\n    again: {again} TRACE=1")
            if not isinstance(error, Violation):
                traceback.print_exc()
            if tally.failed >= ENOUGH:
                break
        if tally.seeds % EVERY == 0 and tally.seeds < asked.seeds:
            say(f"... {tally}")
    say(f"{tally}; {time.monotonic() - began:.0f} s")
    return 1 if tally.failed else 0


sys.exit(main())
