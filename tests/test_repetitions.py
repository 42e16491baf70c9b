"""A write whose repetition comes late is not carried out twice, however late: if its id says when it was made."""

import hashlib
import json
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.storage import GRAPHS, SMALL, opened, upsert
from veccluster import operation_ids
from veccluster.decisions import repetitions
from veccluster.decisions.repetitions import AHEAD, FARTHEST, KEPT_FOR, SECOND
from veccluster.decisions.replication.atomic import Batch
from veccluster.errors import OperationForgotten
from veccluster_node.engine.records import ROWS, SUSPECT
from veccluster_node.replica.replica import Replica
from veccluster_node.wal.operations import Written

FEW = replace(SMALL, operations_kept=10)
MINUTE = 60 * SECOND


def made(at: int, salt: int = 0) -> str:
    """An id that was made at that time."""
    number = at // 1_000_000 << 80 | 0x7 << 76 | 0b10 << 62 | salt
    return str(uuid.UUID(int=number))


def put(replica: Replica, id_: str, value: int, op_id: str, at: int) -> Written:
    return replica.write([upsert(id_, [1] * 8, n=value)], op_id=op_id, time_ns=at).result(30)


def value(replica: Replica, id_: str) -> int:
    (found,) = replica.get([id_])
    assert found
    return json.loads(found.metadata)["n"]


def others(replica: Replica, at: int, number: int = 30) -> None:
    for _ in range(number):
        put(replica, "other", 0, operation_ids.new(), at)


def test_only_ids_that_are_meant_to_say_when_they_were_made_do():
    now = time.time_ns()
    new = operation_ids.new()
    assert uuid.UUID(new).variant == uuid.RFC_4122
    assert uuid.UUID(new).version == 7
    assert abs(repetitions.made_at(new) - now) < MINUTE
    assert repetitions.made_at(f"{new} {hashlib.md5(b'what').hexdigest()}") == repetitions.made_at(new)
    silent = ["load-1", str(uuid.uuid4()), uuid.UUID(new).hex, f"{new} 17 what", ""]
    assert [repetitions.made_at(id_) for id_ in silent] == [None] * 5


Step = tuple[str, int, int, int]
seconds = st.integers(0, 4000).map(lambda n: n * SECOND)
wrong = st.integers(-3000, 3000).map(lambda n: n * SECOND)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 5), seconds, wrong, wrong, st.booleans()), max_size=40))
def test_no_operation_is_carried_out_twice_whatever_the_clocks_say(steps: list[Any]):
    """Some ids, asked for again and again, of primaries and clients with clocks of their own."""
    epoch = 10**18
    ids: dict[int, str] = {}
    remembered: dict[str, int] = {}
    carried_out: set[str] = set()
    since, now = 0, epoch
    for which, passes, clients, primarys, forgets in steps:
        now += passes
        op_id = ids.setdefault(which, made(now + clients, which))
        clock = now + primarys
        if op_id in remembered:
            continue
        if not repetitions.is_forgotten(op_id, since):
            assert op_id not in carried_out
            carried_out.add(op_id)
            remembered[op_id] = repetitions.noted(op_id, clock)
        if forgets and remembered:
            before = repetitions.forgettable(max(remembered.values()), clock)
            remembered = {o: at for o, at in remembered.items() if at >= before}
            since = max(since, repetitions.since_without(before))


def test_an_operation_is_remembered_for_ten_minutes_however_many_come_after_it(tmp_path):
    now = time.time_ns()
    with opened(tmp_path / "s", settings=FEW) as replica:
        first = put(replica, "a", 1, "load-1", now - 9 * MINUTE)
        put(replica, "a", 2, "load-2", now - 9 * MINUTE)
        others(replica, now)
        again = put(replica, "a", 1, "load-1", now)
        assert (again.last_seq, again.replayed) == (first.last_seq, True)
        assert value(replica, "a") == 2


def test_a_repetition_of_what_is_forgotten_is_refused_and_does_nothing(tmp_path):
    now = time.time_ns()
    then = now - KEPT_FOR - 2 * MINUTE
    with opened(tmp_path / "s", settings=FEW) as replica:
        first = made(then)
        assert not put(replica, "a", 1, first, then).replayed
        put(replica, "a", 2, made(then, 1), then)
        others(replica, now)
        with pytest.raises(OperationForgotten, match="made before what is remembered here"):
            put(replica, "a", 1, first, now)
        with pytest.raises(OperationForgotten):
            replica.prepare(Batch(f"{first} all", 1), [0, 1], [upsert("a", [1] * 8, n=1)], time_ns=now).result(30)
        assert value(replica, "a") == 2
        put(replica, "a", 3, made(now), now)
    with opened(tmp_path / "s", settings=FEW) as replica:
        with pytest.raises(OperationForgotten):
            put(replica, "a", 1, first, now)
        assert value(replica, "a") == 3


def test_the_newest_are_remembered_however_old_they_are(tmp_path):
    then = time.time_ns() - 1000 * MINUTE
    with opened(tmp_path / "s", settings=FEW) as replica:
        first = made(then)
        put(replica, "a", 1, first, then)
        others(replica, then + 900 * MINUTE, number=8)
        assert put(replica, "a", 1, first, then + 999 * MINUTE).replayed


def test_what_rows_that_were_made_anew_do_not_remember_is_not_carried_out_again(tmp_path):
    now = time.time_ns()
    then, path = now - 30 * MINUTE, tmp_path / "s"
    with opened(path, settings=GRAPHS) as replica:
        first = made(then)
        put(replica, "a", 1, first, then)
        put(replica, "a", 2, made(then, 1), then)
        assert replica.build(30)
        late = made(now, 2)
        put(replica, "b", 1, late, now)
    (path / SUSPECT).touch()
    with opened(path, settings=GRAPHS) as replica:
        assert (path / f"damaged-{ROWS}").exists()
        with pytest.raises(OperationForgotten):
            put(replica, "a", 1, first, now)
        assert value(replica, "a") == 2
        assert put(replica, "b", 1, late, now).replayed
        put(replica, "c", 1, made(now, 3), now)


def test_neither_an_id_of_the_far_future_nor_a_clock_that_was_there_stops_the_shard_for_ever(tmp_path):
    now = time.time_ns() // 1_000_000 * 1_000_000
    assert repetitions.noted(made(now + FARTHEST), now) == now + FARTHEST - AHEAD
    assert repetitions.noted(made(now + 2 * FARTHEST), now) == now
    with opened(tmp_path / "s", settings=FEW) as replica:
        put(replica, "a", 1, made(now + 2 * FARTHEST), now)
        records = replica._recovered.records
        replica._loop.call(lambda: records._know(now + 400 * FARTHEST)).result(30)
        with pytest.raises(OperationForgotten):
            put(replica, "a", 1, made(now - AHEAD), now)
        put(replica, "a", 1, made(now + AHEAD), now)
