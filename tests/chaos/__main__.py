"""python -m chaos --nemesis NAME --cycles N: real nodes and a real etcd under faults, and a verdict."""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from chaos import arena, checkpoints, clocks, nemeses, report
from chaos.damage import DAMAGES
from chaos.machines import Cluster, NotRecovered
from chaos.run import Asked, Run, Tally

SPEC = {"tuning": {"maxTail": 200, "queryTimeout": "5s"}}


def say(what: str) -> None:
    print(what, flush=True)  # noqa: T201


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="A cluster of real processes under real faults.")
    parser.add_argument("--nemesis", default="mixed", choices=sorted({*nemeses.NEMESES, *DAMAGES}))
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="chooses the faults; another one each time by default")
    parser.add_argument("--operations", type=int, default=600, help="least number of operations in a cycle's history")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds that etcd-away lasts")
    parser.add_argument("--recovery", type=float, default=90.0, help="seconds within which all must be in order again")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--factor", type=int, default=3, help="replication factor")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.01, help="mean seconds between two operations of a client")
    parser.add_argument("--spec", type=json.loads, default={}, help="JSON that goes into the VecCluster's spec")
    parser.add_argument("--keep", type=Path, default=None, help="where histories and logs of bad cycles go")
    parser.add_argument("--report", action="store_true", help="write the figures into docs/reliability.md")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    asked = Asked(
        given.nemesis, given.cycles, seed, given.operations, given.duration, given.recovery, given.clients, given.pause
    )
    if given.nemesis in DAMAGES:
        say(f"{given.cycles} damaged {given.nemesis}, SEED={seed}")
        return conclude(given, asked, DAMAGES[given.nemesis](given.cycles, seed, say))
    if why := arena.missing() or nemeses.why_not(given.nemesis):
        say(f"chaos: {why}")
        return 2
    arena.enter(arguments)
    arena.build()
    keep = given.keep or Path(tempfile.gettempdir()) / f"veccluster-chaos-{given.nemesis}-{seed}"
    say(f"{given.nodes} nodes, replication factor {given.factor}, etcd of 3; nemesis {given.nemesis}, SEED={seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="veccluster-chaos-", ignore_cleanup_errors=True) as base:
        jumps = given.nemesis in {"clock", "mixed"} and clocks.missing() is None
        spec = (checkpoints.SPEC if given.nemesis == "checkpoint" else SPEC) | given.spec
        cluster = Cluster(Path(base), given.nodes, given.factor, spec, clocks=jumps)
        try:
            cluster.start()
            tally = asyncio.run(Run(cluster, asked, keep, say).all())
        except NotRecovered as error:
            cluster.keep_logs(keep)
            say(f"chaos: {error}\n  logs: {keep}")
            return 1
        finally:
            cluster.end()
    verdict(tally, time.monotonic() - began)
    return conclude(given, asked, tally)


def conclude(given: argparse.Namespace, asked: Asked, tally: Tally) -> int:
    """Write down what a whole run measured, good or bad; the exit code."""
    if given.report and tally.cycles == asked.cycles and given.nodes == given.factor == 3:
        written = report.write(report.FILE, asked, tally)
        say(f"{report.FILE.name} has the figure" if written else "too short for a figure of docs/reliability.md")
    say(f"{tally.cycles} cases, {tally.violations} wrong" if given.nemesis in DAMAGES else "")
    return 0 if tally.good and tally.cycles else 1


def verdict(tally: Tally, took: float) -> None:
    """The last lines."""
    figures = tally.figures
    say(
        f"{tally.cycles} cycles in {took:.0f} s: {tally.operations} operations, {tally.strong} of them judged for "
        f"linearizability; writes {tally.acknowledged} acknowledged, {tally.unknown} unknown, {tally.refused} refused; "
        f"{tally.lost} lost or wrong at the end, {tally.violations} violations, {tally.unrecovered} not recovered"
    )
    if figures.outages:
        say(f"write outage: {report.spread(figures.outages)}")
    if figures.recoveries:
        say(f"in order again: {report.spread(figures.recoveries)}")
    if figures.gets:
        say(f"gets under slow filters: {figures.get_errors} not answered; {report.spread(figures.gets)}")
    if figures.searches:
        say(f"{figures.searches} searches with the client's defaults, {figures.search_errors} errors")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
