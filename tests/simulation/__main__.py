"""python -m simulation [--atomic] [--seeds N] [--from SEED] [--mutation NAME] [--trace]"""

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from simulation import run
from simulation.atomic import mutations as atomic_mutations
from simulation.atomic import rules as atomic_rules
from simulation.atomic import run as atomic_run
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
    batches: int = 0

    def add(self, result: run.Result | atomic_run.Result) -> None:
        self.events += result.events
        self.acknowledged += result.acknowledged
        self.reads += result.reads
        self.promotions += result.promotions
        self.lost += result.doomed
        self.batches += result.batches if isinstance(result, atomic_run.Result) else 0

    def __str__(self) -> str:
        several = f" ({self.batches} of them batches over several shards)" if self.batches else ""
        return (
            f"{self.seeds} seeds, {self.failed} failed; {self.events} events, {self.acknowledged} acknowledged writes"
            f"{several}, {self.reads} reads, {self.promotions} promotions, {self.lost} runs lost every copy"
        )


def _simulate(
    parser: argparse.ArgumentParser, asked: argparse.Namespace
) -> Callable[[int], run.Result | atomic_run.Result]:
    """What runs a seed."""
    known = atomic_mutations.MUTATIONS if asked.atomic else MUTATIONS
    if asked.mutation and asked.mutation not in known:
        parser.error(f"there is no mutation {asked.mutation}; there are {', '.join(sorted(known))}")
    if asked.atomic:
        batches = atomic_mutations.MUTATIONS[asked.mutation].rules if asked.mutation else atomic_rules.Rules()
        return lambda seed: atomic_run.simulate(seed, batches, trace=asked.trace)
    rules = MUTATIONS[asked.mutation].rules if asked.mutation else run.Rules()
    return lambda seed: run.simulate(seed, rules, trace=asked.trace)


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--mutation", help="remove a rule")
    parser.add_argument("--atomic", action="store_true", help="several shards, and batches over them")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # the trace says it all
    simulate = _simulate(parser, asked)
    tally, began = Tally(), time.monotonic()
    for seed in range(asked.first, asked.first + asked.seeds):
        tally.seeds += 1
        try:
            tally.add(simulate(seed))
        except (Exception, Violation) as error:  # noqa: BLE001 - a defect of any kind is a seed that fails
            tally.failed += 1
            again = f"make simulate SEEDS=1 FROM={seed}" + (f" MUTATION={asked.mutation}" if asked.mutation else "")
            again += " ATOMIC=1" if asked.atomic else ""
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
