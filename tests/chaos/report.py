"""docs/reliability.md: one row for each figure, written from the run that measured it and from nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.run import Asked, Tally

FILE = Path(__file__).parents[2] / "docs" / "reliability.md"
NOT_YET = "not measured yet"


@dataclass(frozen=True, slots=True)
class Figure:
    """A row: what is measured, what is wanted, the command that measures it, and the words for what came out."""

    what: str
    target: str
    command: str
    nemesis: str
    cycles: int
    """Fewer do not count."""
    words: "Callable[[Tally], str]"
    operations: int = 0
    duration: float = 0.0


def _lost(tally: "Tally") -> str:
    return f"{tally.lost} of {tally.acknowledged} in {tally.cycles} cycles; {tally.violations} violations"


def _strong(tally: "Tally") -> str:
    return f"{tally.violations} in {tally.cycles} histories of at least {tally.fewest} operations"


def _etcd(tally: "Tally") -> str:
    figures = tally.figures
    share = figures.writes_stored / max(1, figures.writes_stored + figures.writes_failed)
    return f"{100 * share:.2f} % of {figures.writes_stored + figures.writes_failed}; {max(figures.recoveries):.0f} s"


FIGURES = (
    Figure(
        "acknowledged writes lost, 500 cycles of kill -9", "0",
        "make chaos NEMESIS=kill CYCLES=500", "kill", 500, _lost,
    ),
    Figure(
        "acknowledged writes lost, 200 power cuts, some of all nodes at once", "0",
        "make chaos NEMESIS=power CYCLES=200", "power", 200, _lost,
    ),
    Figure(
        "50 power cuts while the rows are read and the log is cut: writes lost", "0",
        "make chaos NEMESIS=checkpoint CYCLES=50", "checkpoint", 50, _lost,
    ),
    Figure(
        "200 partitions: lost writes; two operations at one place of a log", "0; 0",
        "make chaos NEMESIS=partition CYCLES=200", "partition", 200, _lost,
    ),
    Figure(
        "strong operations out of order, 100 histories of 10,000 operations under mixed faults", "0",
        "make chaos NEMESIS=mixed CYCLES=100 OPERATIONS=10000", "mixed", 100, _strong, operations=10_000,
    ),
    Figure(
        "write outage after the primary is killed, p50 / p99 of 100", "≤ 5 s / ≤ 10 s",
        "make chaos NEMESIS=primary CYCLES=100", "primary", 100, lambda t: spread(t.figures.outages),
    ),
    Figure(
        "search errors at the default level while one node of three is killed, 50 times, client retries on", "0",
        "make chaos NEMESIS=search CYCLES=50", "search", 50,
        lambda t: f"{t.figures.search_errors} of {t.figures.searches}",
    ),
    Figure(
        "50 cycles of slow filters that nobody waits for: gets of the same rows without an answer; the slowest", "0",
        "make chaos NEMESIS=slow-filters CYCLES=50", "slow-filters", 50,
        lambda t: f"{t.figures.get_errors} of {len(t.figures.gets)}; {spread(t.figures.gets)}",
    ),
    Figure(
        "100 cycles of a full disk or I/O errors: writes lost; recovered unaided", "0; all",
        "make chaos NEMESIS=disk CYCLES=100", "disk", 100,
        lambda t: f"{t.lost} of {t.acknowledged}; {t.cycles - t.unrecovered} of {t.cycles}",
    ),
    Figure(
        "disks that die or cannot sync under a running node, 50 reboots: writes lost", "0",
        "make chaos NEMESIS=broken-disk CYCLES=50", "broken-disk", 50, _lost,
    ),
    Figure("100 stalls (SIGSTOP): writes lost", "0", "make chaos NEMESIS=stop CYCLES=100", "stop", 100, _lost),
    Figure("50 wiped disks: writes lost", "0", "make chaos NEMESIS=wipe CYCLES=50", "wipe", 50, _lost),
    Figure("50 cycles of clock jumps: writes lost", "0", "make chaos NEMESIS=clock CYCLES=50", "clock", 50, _lost),
    Figure("100 cycles of faults of etcd: writes lost", "0", "make chaos NEMESIS=etcd CYCLES=100", "etcd", 100, _lost),
    Figure(
        "50 deletes of several records under kill -9: writes lost; everything that matched is gone", "0; all",
        "make chaos NEMESIS=oversized-delete CYCLES=50", "oversized-delete", 50, _lost,
    ),
    Figure(
        "50 cycles of forged frames and requests: writes lost", "0",
        "make chaos NEMESIS=forged CYCLES=50", "forged", 50, _lost,
    ),
    Figure(
        "etcd away 10 min: writes that succeed; back in order after it returns", "≥ 99.9 %; ≤ 30 s",
        "make chaos NEMESIS=etcd-away CYCLES=1 DURATION=600", "etcd-away", 1, _etcd, duration=600,
    ),
    Figure(
        "50 times etcd goes back to a snapshot or an older disk: writes lost; back in order unaided", "0; all",
        "make chaos NEMESIS=etcd-restore CYCLES=50", "etcd-restore", 50,
        lambda t: f"{t.lost} of {t.acknowledged}; {t.cycles - t.unrecovered} of {t.cycles}",
    ),
    Figure(
        "50 times keys in etcd that make no sense: writes lost", "0",
        "make chaos NEMESIS=bad-key CYCLES=50", "bad-key", 50, _lost,
    ),
    Figure(
        "100,000 damaged logs (torn, flipped): crash, hang, silent loss", "0",
        "make chaos NEMESIS=logs CYCLES=100000", "logs", 100_000, lambda t: f"{t.violations} of {t.cycles}",
    ),
    Figure(
        "1,000 damaged generations: dead processes, wrong answers", "0",
        "make chaos NEMESIS=generations CYCLES=1000", "generations", 1000, lambda t: f"{t.violations} of {t.cycles}",
    ),
)  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile and the worst, in seconds."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)]
    return f"p50 {ordered[(len(ordered) - 1) // 2]:.1f} s, p99 {p99:.1f} s, worst {ordered[-1]:.1f} s of {len(ordered)}"


def row(figure: Figure, measured: str) -> str:
    return f"| {figure.what} | {figure.target} | {measured} | `{figure.command}` |"


def measured_by(asked: "Asked") -> Figure | None:
    """The figure that a run measures; None if it is too short for any."""
    fitting = (
        f
        for f in FIGURES
        if f.nemesis == asked.nemesis
        and asked.cycles >= f.cycles
        and asked.operations >= f.operations
        and asked.duration >= f.duration
    )
    return next(fitting, None)


def write(file: Path, asked: "Asked", tally: "Tally") -> bool:
    """Put what a run measured into its row; whether there is one for it."""
    if (figure := measured_by(asked)) is None:
        return False
    lines = file.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {figure.what} |"))
    lines[at] = row(figure, figure.words(tally))
    file.write_text("\n".join(lines) + "\n")
    return True
