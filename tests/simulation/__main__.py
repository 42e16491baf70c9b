"""python -m simulation [--seeds N] [--from SEED] [--mutation NAME] [--trace]"""

import argparse
import sys
import time
import traceback

from simulation import run
from simulation.checks import Violation
from simulation.mutations import MUTATIONS


def say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="remove a rule")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    asked = parser.parse_args()
    rules = MUTATIONS[asked.mutation].rules if asked.mutation else run.Rules()
    failed, totals, began = [], [0, 0, 0, 0, 0], time.monotonic()
    for seed in range(asked.first, asked.first + asked.seeds):
        try:
            result = run.simulate(seed, rules, trace=asked.trace)
        except Exception as error:  # noqa: BLE001 - a defect of any kind is a seed that fails
            failed.append(seed)
            again = f"make simulate SEEDS=1 FROM={seed}" + (f" MUTATION={asked.mutation}" if asked.mutation else "")
            say(f"seed {seed}: {type(error).__name__}: {error}\n    again: {again} TRACE=1")
            if not isinstance(error, Violation):
                traceback.print_exc()
            if len(failed) >= 5:
                break
            continue
        numbers = (result.events, result.acknowledged, result.reads, result.promotions, result.doomed)
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
    events, acknowledged, reads, promotions, doomed = totals
    seconds = time.monotonic() - began
    say(
        f"{seed - asked.first + 1} seeds from {asked.first} in {seconds:.0f} s: {len(failed)} failed; {events} events, "
        f"{acknowledged} acknowledged writes, {reads} reads, {promotions} promotions, {doomed} runs lost every copy"
    )
    return 1 if failed else 0


sys.exit(main())
