"""A few threads keep all replicas in shape: who rests is not looked at, and a long build holds up nobody else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from support.storage import opened, upsert, write
from veccluster_node.replica.maintenance import Maintenance, Upkeep

PATIENCE = 30


@pytest.fixture
def maintenance() -> Iterator[Maintenance]:
    made = Maintenance()
    yield made
    made.close()


def idle() -> bool:
    return False


def counting(limit: int) -> tuple[Callable[[], bool], threading.Event]:
    """A look that asks for nothing; the event is set when it was called so often."""
    calls, reached = [0], threading.Event()

    def look() -> bool:
        calls[0] += 1
        if calls[0] == limit:
            reached.set()
        return False

    return look, reached


def test_a_replica_more_is_no_thread_more(tmp_path) -> None:
    with ExitStack() as replicas:
        replicas.enter_context(opened(tmp_path / "first"))
        before = threading.active_count()
        for number in range(10):
            replica = replicas.enter_context(opened(tmp_path / str(number)))
            write(replica, [upsert("a", [1] * 8)])
        assert threading.active_count() == before


def test_what_is_asked_for_sooner_is_done_sooner(maintenance: Maintenance) -> None:
    look, looked = counting(1)
    upkeep = Upkeep(look, idle)
    maintenance.look(upkeep, 3600)
    maintenance.look(upkeep, 0)
    assert looked.wait(PATIENCE)
    maintenance.end(upkeep)


def test_others_are_looked_at_while_one_builds_and_builds_are_one_at_a_time(maintenance: Maintenance) -> None:
    building, go_on, under_way, most = threading.Event(), threading.Event(), [0], [0]

    def build() -> bool:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        building.set()
        assert go_on.wait(PATIENCE)
        under_way[0] -= 1
        return False

    builders = [Upkeep(lambda: True, build) for _ in range(3)]
    for upkeep in builders:
        maintenance.look(upkeep, 0)
    assert building.wait(PATIENCE)
    look, looked = counting(1)
    other = Upkeep(look, idle)
    maintenance.look(other, 0)
    assert looked.wait(PATIENCE)
    go_on.set()
    for upkeep in [*builders, other]:
        maintenance.end(upkeep)
    assert most[0] == 1


def test_what_comes_while_a_replica_is_worked_on_is_seen_afterwards(maintenance: Maintenance) -> None:
    begun, go_on, calls, again = threading.Event(), threading.Event(), [0], threading.Event()

    def look() -> bool:
        calls[0] += 1
        if calls[0] == 1:
            begun.set()
            assert go_on.wait(PATIENCE)
        else:
            again.set()
        return False

    upkeep = Upkeep(look, idle)
    maintenance.look(upkeep, 0)
    assert begun.wait(PATIENCE)
    maintenance.look(upkeep, 0)
    assert calls[0] == 1
    go_on.set()
    assert again.wait(PATIENCE)
    maintenance.end(upkeep)


def test_a_replica_that_ended_is_not_worked_on_any_more_and_a_failure_ends_no_thread(maintenance: Maintenance) -> None:
    def fail() -> bool:
        raise RuntimeError("nobody thought of this")

    ended = Upkeep(lambda: pytest.fail("it has ended"), idle)
    maintenance.look(ended, 0.2)
    maintenance.end(ended)
    for _ in range(4):
        failing = Upkeep(fail, idle)
        maintenance.look(failing, 0)
    look, looked = counting(1)
    upkeep = Upkeep(look, idle)
    maintenance.look(upkeep, 0.3)
    assert looked.wait(PATIENCE)
    maintenance.end(upkeep)
