"""A clock that jumps moves the time of day of a running process, and nothing else of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import clocks

pytestmark = pytest.mark.e2e

TELL = """
import sys, time, datetime
for _ in sys.stdin:
    began = time.monotonic(); time.sleep(0.01)
    print(time.time(), datetime.datetime.now(datetime.UTC).timestamp(), time.monotonic() - began, flush=True)
"""


def test_a_running_process_sees_the_jump_at_once_and_sleeps_as_before(tmp_path: Path) -> None:
    clock = clocks.Clock(tmp_path, "n0")
    with subprocess.Popen(
        [sys.executable, "-c", TELL],
        env={**os.environ, **clock.environment()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def told() -> list[float]:
            process.stdin.write("\n")
            process.stdin.flush()
            return [float(word) for word in process.stdout.readline().split()]

        first = told()
        clock.set(86_400)
        later = told()
        clock.set(-3_600)
        back = told()
        process.stdin.close()
    for index in (0, 1):
        assert 86_400 <= later[index] - first[index] < 86_460
        assert 3_540 <= first[index] - back[index] <= 3_600
    assert all(0.01 <= said[2] < 5 for said in (first, later, back))
