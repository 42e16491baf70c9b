"""The table in docs/reliability.md has a row for each figure, and a run writes into its own row only."""

from pathlib import Path

from chaos import report
from chaos.damage import DAMAGES
from chaos.nemeses import NEMESES, Figures
from chaos.run import Asked, Tally


def asked(nemesis: str = "kill", cycles: int = 500, operations: int = 1500, duration: float = 60.0) -> Asked:
    return Asked(nemesis, cycles, 1, operations, duration, recovery=90.0, clients=6, pause=0.01)


def test_the_document_has_a_row_with_its_command_for_each_figure() -> None:
    text = report.FILE.read_text()
    for figure in report.FIGURES:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {figure.what} |")]
        measured = line.split("|")[3].strip()
        assert line == report.row(figure, measured)
        assert measured
        assert figure.nemesis in {*NEMESES, *DAMAGES}


def test_a_run_writes_its_own_row_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "reliability.md"
    rows = [report.row(figure, report.NOT_YET) for figure in report.FIGURES]
    file.write_text("\n".join(["before", *rows, "after"]) + "\n")
    tally = Tally(cycles=100, figures=Figures(outages=[3.0] * 98 + [7.0, 9.0]))
    assert report.write(file, asked("primary", 100), tally)
    found = file.read_text().splitlines()
    (changed,) = [i for i, line in enumerate(found) if line not in ["before", *rows, "after"]]
    assert "| p50 3.0 s, p99 7.0 s, worst 9.0 s of 100 |" in found[changed]
    assert len(found) == len(rows) + 2


def test_a_run_that_is_too_short_measures_nothing(tmp_path: Path) -> None:
    assert report.measured_by(asked(cycles=499)) is None
    assert report.measured_by(asked("mixed", 100)) is None
    assert report.measured_by(asked("mixed", 100, operations=10_000)) is not None
    assert report.measured_by(asked("etcd-away", 1)) is None
    assert not report.write(tmp_path / "untouched", asked(cycles=1), Tally())
