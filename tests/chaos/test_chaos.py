"""A short run of what `make chaos` does for hours: real nodes, a real etcd, faults at once, and no promise broken.

And the other way round: where nodes are told to acknowledge before the disk has it, a power cut shows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def chaos(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program; its processes end with it."""
    command = [sys.executable, "-m", "chaos", "--keep", str(tmp_path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=220, check=False)


def test_two_cycles_of_mixed_faults_break_no_promise(tmp_path: Path) -> None:
    done = chaos(tmp_path, "--nemesis", "mixed", "--cycles", "2", "--seed", "5", "--operations", "600")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.count(": good") == 2
    assert "0 lost or wrong at the end, 0 violations, 0 not recovered" in done.stdout


@pytest.mark.slow
def test_writes_acknowledged_before_they_are_synced_are_missed_after_a_power_cut_of_all_nodes(tmp_path: Path) -> None:
    careless = '{"tuning": {"maxTail": 200, "walSync": "interval", "walSyncInterval": "1s"}}'
    done = chaos(
        tmp_path, "--nemesis", "power", "--cycles", "10", "--seed", "3", "--operations", "600", "--spec", careless
    )
    assert done.returncode == 1, done.stdout[-5000:] + done.stderr[-2000:]
    assert " WRONG" in done.stdout
    assert "fit in no order" in done.stdout or "goes back" in done.stdout
    assert list(tmp_path.glob("cycle-*.jsonl"))
