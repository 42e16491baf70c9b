"""Killed at any moment, a replica holds every acknowledged batch whole, and no batch in part."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from support.storage import check_holds, opened
from support.storage_writer import SETTINGS, SPEC, batches_in, model_after

TESTS = Path(__file__).parent
MANY = 10**6


def writer(path, first, count, *more, failpoints=""):
    return subprocess.Popen(
        [sys.executable, "-m", "support.storage_writer", str(path), str(first), str(count), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=TESTS,
        env={**os.environ, "VECCLUSTER_FAILPOINTS": failpoints},
    )


def acknowledged(lines):
    return max((int(line) for line in lines if line.strip().isdigit()), default=-1) + 1


def check_after_crash(path, acknowledged_batches):
    """All that was acknowledged is there, in whole batches, and nothing is amiss; says how many there are."""
    with opened(path, SPEC, SETTINGS) as replica:
        held = batches_in(replica.applied_seq)
        assert held >= acknowledged_batches
        check_holds(replica, model_after(held)[0])
        assert replica.issues == ()
    return held


def kill_rounds(path, rounds, seed):
    rng = Random(seed)
    held = 0
    for _ in range(rounds):
        with writer(path, held, MANY) as process:
            lines = [process.stdout.readline() for _ in range(rng.choice([0, 1, 5, 20, 60]))]
            process.kill()
            lines += process.stdout.readlines()
        held = check_after_crash(path, max(held, acknowledged(lines)))
    assert held > rounds


@pytest.mark.e2e
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    kill_rounds(tmp_path / "s", 4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_a_hundred_times_loses_nothing_that_was_acknowledged(tmp_path):
    kill_rounds(tmp_path / "s", 100, seed=2)


QUICK = ["log.synced=20-kill", "current.write=1-kill", "trim=kill"]
SLOW = [
    "log.write=20-kill",
    "log.written=20-kill",
    "log.roll=2-kill",
    "apply=20-kill",
    "records.commit=20-kill",
    "current.written=1-kill",
    "log.trim=kill",
]


@pytest.mark.parametrize("place", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_a_crash_at_a_bad_moment_loses_nothing_that_was_acknowledged(tmp_path, place):
    with writer(tmp_path / "s", 0, 1200, "build", failpoints=place) as process:
        lines = process.stdout.readlines()
    assert process.returncode == -9, f"{place} was never reached"
    held = check_after_crash(tmp_path / "s", acknowledged(lines))
    with writer(tmp_path / "s", held, 20) as process:
        lines = process.stdout.readlines()
    assert process.returncode == 0
    assert check_after_crash(tmp_path / "s", acknowledged(lines)) == held + 20


@pytest.mark.e2e
@pytest.mark.parametrize(
    "place",
    ["generation.manifest", *(pytest.param(p, marks=pytest.mark.slow) for p in ("build.rows", "build.graph"))],
)
def test_a_build_that_is_killed_is_tried_again_and_holds_up_no_write(tmp_path, place):
    with writer(tmp_path / "s", 0, 150, failpoints=f"{place}=kill") as process:
        lines = [process.stdout.readline() for _ in range(150)]
        process.kill()
    assert acknowledged(lines) == 150
    check_after_crash(tmp_path / "s", 150)
    assert not list((tmp_path / "s" / "generations").glob("*/manifest.json"))
    with writer(tmp_path / "s", 150, 10, "build") as process:
        assert '"issues": []' in process.stdout.read()
    check_after_crash(tmp_path / "s", 160)
    assert list((tmp_path / "s" / "generations").glob("*/manifest.json"))
