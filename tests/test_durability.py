"""kill -9 of nodes at any moment, under load: no acknowledged write is lost, nothing deleted or replaced comes back."""

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest

from support.history import History
from support.nodes import Nodes
from veccluster import Client
from veccluster.errors import VecClusterError

pytestmark = pytest.mark.e2e

DIMENSION = 16
WRITERS = 3
IDS_OF_ONE = 400
BATCH = 40


def vector_of(value: int) -> np.ndarray:
    """A vector that tells which write it is from: no other value has it."""
    return np.random.default_rng(value).standard_normal(DIMENSION).astype(np.float32)


class Writer(threading.Thread):
    """Upserts, replaces and deletes ids that nobody else writes, until told to stop; remembers every answer."""

    def __init__(self, number: int, servers: list[str], history: History, stop: threading.Event) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.number = number
        self.client = Client(servers, timeout=20)
        self.history = history
        self.stop = stop
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            chance = random.Random(self.number)
            step = 0
            while not self.stop.is_set():
                step += 1
                chosen = chance.sample(range(IDS_OF_ONE), BATCH)
                self._write(
                    [f"w{self.number}-{i}" for i in chosen], self.number + WRITERS * step, chance.random() < 0.2
                )
        except BaseException as error:  # noqa: BLE001 - the test raises it in its own thread
            self.problem = error
        finally:
            self.client.close()

    def _write(self, ids: list[str], value: int, delete: bool) -> None:
        self.history.invoke(ids, None if delete else value)
        try:
            if delete:
                self.client.delete("words", ids)
            else:
                vectors = np.tile(vector_of(value), (len(ids), 1))
                self.client.upsert("words", ids, vectors, [{"value": value}] * len(ids))
        except VecClusterError:
            self.history.lose_sight(ids)
        else:
            self.history.acknowledge(ids, None if delete else value)


def _held(client: Client) -> dict[str, int]:
    """Every id with the number of the write that it holds; metadata and vector must be of the same write."""
    held = {}
    for stored in client.iterate("words"):
        assert stored.metadata is not None
        held[stored.id] = stored.metadata["value"]
        np.testing.assert_array_equal(stored.vector, vector_of(held[stored.id]), err_msg=stored.id)
    return held


def _attack(nodes: Nodes, kills: int, hit: Callable[[int], None]) -> History:
    """Write under `kills` blows, then let everything come back; what the history allows must be what is there."""
    history, stop = History(), threading.Event()
    with nodes.client(timeout=30) as client:
        client.create_collection("words", dimension=DIMENSION, metric="l2", filterable=["value"])
        writers = [Writer(n, nodes.servers, history, stop) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        try:
            chance = random.Random(kills)
            for number in range(kills):
                hit(number)
                enough = history.acknowledged + BATCH * chance.randrange(1, 40)
                while history.acknowledged < enough and all(w.is_alive() for w in writers):
                    stop.wait(0.005)
        finally:
            stop.set()
            for writer in writers:
                writer.join(timeout=60)
        assert [w.problem for w in writers] == [None] * WRITERS
        nodes.wait_healthy()
        held = _held(client)
        assert history.violations(held) == []
        assert client.count("words") == len(held)
        _searches_agree(client, held)
    return history


def _searches_agree(client: Client, held: dict[str, int]) -> None:
    """An exact search finds every id once, at its own vector, and nothing that is gone."""
    for value in sorted(set(held.values()))[:20]:
        same = {i for i, v in held.items() if v == value}
        hits = client.search("words", vector_of(value), k=len(same) + 1, exact=True)
        assert {h.id for h in hits if h.distance == 0.0} == same
        assert len({h.id for h in hits}) == len(hits)


def _kill_one(nodes: Nodes, chance: random.Random) -> Callable[[int], None]:
    def hit(_: int) -> None:
        victim = chance.randrange(nodes.size)
        nodes.kill(victim)
        nodes.start(victim)
        nodes.wait_ready(victim)

    return hit


def test_no_acknowledged_write_is_lost_by_kill_9() -> None:
    with Nodes(3, spec={"tuning": {"maxTail": 200}}) as nodes:
        history = _attack(nodes, 8, _kill_one(nodes, random.Random(1)))
    assert history.acknowledged > 1000


def test_no_acknowledged_write_is_lost_when_all_nodes_are_killed_at_once() -> None:
    with Nodes(3, spec={"tuning": {"maxTail": 200}}) as nodes:

        def hit(_: int) -> None:
            nodes.kill(*range(nodes.size))
            for number in range(nodes.size):
                nodes.start(number)
            for number in range(nodes.size):
                nodes.wait_ready(number)

        _attack(nodes, 3, hit)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(4))
def test_no_acknowledged_write_is_lost_by_a_hundred_kills(seed: int) -> None:
    """A hundred in four clusters, so that recovery is seen on small and on grown data."""
    with Nodes(3, spec={"tuning": {"maxTail": 200}}) as nodes:
        _attack(nodes, 25, _kill_one(nodes, random.Random(seed)))
