"""The demo, whole and interrupted: it says what it promises, and leaves no process and no directory behind."""

import socket
import subprocess
import sys

import psutil
import pytest

from support.cluster import wait_until
from veccluster.client import CollectionInfo
from veccluster.client.results import ShardState
from veccluster_cli import demo
from veccluster_cli.local import LocalFailure, runtime
from veccluster_cli.local.state import Desired

COMMAND = [sys.executable, "-c", "from veccluster_cli.main import main; main()", "demo"]


@pytest.fixture
def start(tmp_path):
    """Start the demo with a temporary directory of its own; at the end of the test that must be empty."""

    def start_demo():
        environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    yield start_demo
    wait_until(lambda: not left_over(str(tmp_path)), "all processes to end")
    assert list(tmp_path.iterdir()) == []


def left_over(text):
    return [p for p in psutil.process_iter(["cmdline"]) if text in " ".join(p.info["cmdline"] or ())]


class Building:
    """A client of a collection whose graphs come one after the other."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def collection(self, name):
        state, *indexed = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        shards = tuple(ShardState(number=n, vectors=4000, indexed=i) for n, i in enumerate(indexed))
        return CollectionInfo(
            name=name, dimension=4, metric="l2", shards=2, count=8000, index_state=state, shard_states=shards
        )


def test_what_is_measured_is_the_index_and_not_a_scan_that_does_for_it(capsys):
    """Also in the moment in which a build is due and has not begun."""
    client = Building(("ready", 0, 0), ("building", 0, 4000), ("ready", 0, 4000), ("ready", 3100, 4000))
    demo._index(demo.Stage(), client, max_tail=1000)
    assert client.steps == [("ready", 3100, 4000)]
    said = capsys.readouterr().out
    assert "Waiting for the graphs" in said
    assert "7,100 of 8,000 vectors are in a graph." in said


def test_the_demo_has_more_vectors_in_each_shard_than_are_scanned():
    cluster = demo.read_cluster(demo.find_examples() / "laptop.yaml")
    assert cluster.spec.tuning.max_tail < 12_000 / cluster.spec.nodes / 2


def test_a_cluster_that_is_not_healthy_is_not_shown(monkeypatch, tmp_path):
    reached = runtime.Step(4, 4, "degraded", ("Node demo-0: its disk is full.",))
    desired = Desired(generation=1, name="demo", namespace="default", spec={}, node_ports=(8001,))
    monkeypatch.setattr(runtime, "up", lambda *_, **__: desired)
    monkeypatch.setattr(runtime, "down", lambda _: True)
    monkeypatch.setattr(demo, "show_start", lambda *_: reached)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    told = pytest.raises(LocalFailure, match=r"The cluster runs and is degraded: Node demo-0: its disk is full\.")
    with told, demo._cluster(demo.Stage(), demo.find_examples() / "laptop.yaml", keep=False):
        pytest.fail("it goes on")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_shows_neighbours_recall_latency_and_shards_also_when_its_port_is_taken(start):
    taken = socket.socket()
    with taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8001))
            taken.listen()
        except OSError:
            pass  # somebody else holds it, which does as well
        out, err = start().communicate(timeout=110)
    for words in ("Port 8001", "hawk", "semi-skimmed milk", "Recall@10", "p95", "shard 2 on demo-", "How to go on"):
        assert words in out
    assert " of 12,000 vectors are in a graph" in out
    assert ", 0 in a graph" not in out
    assert "\x1b" not in out + err


POINTS = [(words, number) for words in ("A cluster", "12,000 words of", "What is near") for number in (2, 15, 9)]
POINTS.remove(("A cluster", 9))
"""Killed without warning before there is a supervisor, the demo leaves an empty directory."""


@pytest.mark.slow
@pytest.mark.parametrize(("words", "number"), POINTS)
def test_a_demo_that_is_ended_at_any_point_leaves_nothing(start, words, number):
    demo = start()
    for line in demo.stdout:
        if words in line:
            break
    demo.send_signal(number)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode in {130, 128 + number, -number} and "Traceback" not in err
