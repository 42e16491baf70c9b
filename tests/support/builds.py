"""Builds in the test's own process: much faster than a child for a handful of rows."""

import pytest

from veccluster_node.engine.build import Job, run
from veccluster_node.replica import builder


class Here:
    """What the builder takes for its child."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self) -> None:
        run(self._job)

    def kill(self) -> None:
        pass


def build_here(monkeypatch: pytest.MonkeyPatch, look: float = 2.0) -> None:
    """Build so from now on; `look`: how often a builder looks by itself, in seconds."""
    monkeypatch.setattr(builder, "Child", Here)
    monkeypatch.setattr(builder, "_LOOK", look)
