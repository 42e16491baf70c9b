"""What the simulation believes of a disk is true of the real one: the same effects, and nothing worse after a crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.disks import KINDS, Perfect, Real, Simulated, Step, Story, steps

TESTS = Path(__file__).parent
SEED, STEPS = 5, 160

numbers = st.integers(0, 999)
ordinary = st.tuples(st.sampled_from(KINDS), numbers)
crash = st.tuples(st.just("crash"), numbers)
life = st.tuples(st.lists(ordinary, max_size=30).map(tuple), crash).map(lambda drawn: [*drawn[0], drawn[1]])
with_crashes = st.lists(life, min_size=1, max_size=4).map(
    lambda lives: [("epoch", 1), *(s for life in lives for s in life)]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ordinary, max_size=50))
def test_without_a_crash_all_disks_hold_the_same(tmp_path_factory: pytest.TempPathFactory, taken: list[Step]) -> None:
    stories = [Story(Perfect()), Story(Simulated()), Story(Real(tmp_path_factory.mktemp("disk") / "s"))]
    for story in stories:
        for step in taken:
            story.take(step)
        story.take(("settle", 0))
    first, *others = stories
    for story in others:
        assert story.disk.image() == first.disk.image()
        assert story.disk.found() == first.disk.found()
        assert vars(story.journal) == vars(first.journal)


@settings(max_examples=300, deadline=None)
@given(with_crashes)
def test_after_any_crash_the_simulated_disk_has_what_was_synced_and_nothing_that_was_not_written(
    taken: list[Step],
) -> None:
    story = Story(Simulated())
    for step in taken:
        story.take(step)


@settings(max_examples=40, deadline=None)
@given(with_crashes)
def test_after_any_crash_the_real_disk_has_what_was_synced_and_nothing_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, taken: list[Step]
) -> None:
    story = Story(Real(tmp_path_factory.mktemp("disk") / "s"))
    for step in taken:
        story.take(step)


QUICK = ["epoch.write=3-", "log.written=5-", "log.roll=2-", "log.unlink", "log.cut=1-", "log.cut_written=2-"]
QUICK += ["snapshot.staged", "snapshot.removed=1-"]
SLOW = ["epoch.written=1-", "log.write=9-", "log.sync=6-", "log.synced=4-", "log.unlink=1-", "snapshot.stage=1-"]
SLOW += ["snapshot.replace=2-", "snapshot.replace=5-", "snapshot.removed=3-", "snapshot.finish=1-"]


@pytest.mark.parametrize("place", [*QUICK, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_killed_anywhere_a_real_disk_has_what_was_synced_and_nothing_that_was_not_written(
    tmp_path: Path, place: str
) -> None:
    name, _, skip = place.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "support.disks", str(tmp_path / "s"), str(SEED), str(STEPS)],
        env={**os.environ, "VECCLUSTER_FAILPOINTS": f"{name}={skip}kill"},
        cwd=TESTS,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -9, f"{place} was never reached"
    *before, last = steps(SEED, STEPS)[: int(done.stdout.split()[-1]) + 1]
    story = Story(Perfect())
    for step in before:
        story.take(step)
    if last[0] != "settle":  # a sync that did not end proves nothing
        story.take(last)
    disk = Real(tmp_path / "s")
    story.check(disk.image(), disk.found())
