"""The judge of linearizability itself: right on histories that are known to be right or wrong, and like brute force."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chaos.linearizability import Operation, Value, judge


def put(start: int, end: int | None, value: int) -> Operation:
    return Operation(start, end, value)


def drop(start: int, end: int | None, found: bool | None = None) -> Operation:
    return Operation(start, end, None, found=found)


def read(start: int, end: int, value: Value) -> Operation:
    return Operation(start, end, value, reads=True)


GOOD = {
    "nothing": [],
    "one after the other": [put(0, 1, 1), read(2, 3, 1), put(4, 5, 2), read(6, 7, 2)],
    "a read during a write shows the old": [put(0, 1, 1), put(2, 9, 2), read(3, 4, 1)],
    "a read during a write shows the new": [put(0, 1, 1), put(2, 9, 2), read(3, 4, 2)],
    "two writes at once end either way": [put(0, 9, 1), put(1, 8, 2), read(10, 11, 1)],
    "reads that overlap each other take turns": [put(0, 1, 1), put(2, 20, 2), read(3, 10, 2), read(4, 9, 1)],
    "an open write shows late": [put(0, 1, 1), put(2, None, 2), read(3, 4, 1), read(50, 51, 2)],
    "an open write never shows": [put(0, 1, 1), put(2, None, 2), read(3, 4, 1), read(50, 51, 1)],
    "an open delete takes effect late": [put(0, 1, 1), drop(2, None), read(3, 4, 1), read(5, 6, None)],
    "a delete says what it found": [put(0, 1, 1), drop(2, 3, True), drop(4, 5, False), read(6, 7, None)],
    "a delete finds an open write that nobody read": [put(0, None, 1), drop(2, 3, True), read(4, 5, None)],
}
BAD = {
    "a read of nothing after a write": [put(0, 1, 1), read(2, 3, None)],
    "a stale read": [put(0, 1, 1), put(2, 3, 2), read(4, 5, 1)],
    "a value that nobody wrote": [put(0, 1, 1), read(2, 3, 7)],
    "a read before the write began": [read(0, 1, 1), put(2, 3, 1)],
    "the new, then the old": [put(0, 1, 1), put(2, 20, 2), read(3, 4, 2), read(5, 6, 1)],
    "an open write shows and goes": [put(0, 1, 1), put(2, None, 2), read(3, 4, 2), read(5, 6, 1)],
    "a deleted value comes back": [put(0, 1, 1), drop(2, 3), read(4, 5, 1)],
    "a delete finds what is gone": [put(0, 1, 1), drop(2, 3, True), drop(4, 5, True)],
    "a delete finds nothing where something is": [put(0, 1, 1), drop(2, 3, False)],
    "two readers disagree on the order": [
        *(put(0, 30, 1), put(1, 31, 2)),
        *(read(2, 3, 1), read(4, 5, 2), read(6, 7, 1)),
    ],
    "an acknowledged write is lost to an open one that was seen before": [
        *(put(0, None, 1), read(1, 2, 1), put(3, 4, 2), read(5, 6, 1)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_fits(name: str) -> None:
    assert judge(GOOD[name]).fits is True


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_does_not_fit_and_is_told_where(name: str) -> None:
    verdict = judge(BAD[name])
    assert verdict.fits is False
    assert verdict.stuck


def by_brute_force(operations: Sequence[Operation]) -> bool:
    """Try every choice of the open ones and every order."""
    ended = [o for o in operations if o.end is not None]
    open_ = [o for o in operations if o.end is None]
    chosen = (c for n in range(len(open_) + 1) for c in itertools.combinations(open_, n))
    return any(_fits(order) for some in chosen for order in itertools.permutations([*ended, *some]))


def _fits(order: Sequence[Operation]) -> bool:
    held: Value = None
    for at, one in enumerate(order):
        if any(later.end is not None and later.end < one.start for later in order[at + 1 :]):
            return False
        fits, held = one.after(held)
        if not fits:
            return False
    return True


@st.composite
def any_history(draw: st.DrawFn, most: int = 5) -> list[Operation]:
    """Small, and right or wrong as it comes."""
    size = draw(st.integers(0, most))
    moments = draw(st.permutations(range(2 * size)))
    made = []
    for i in range(size):
        start, end = sorted(moments[2 * i : 2 * i + 2])
        kind = draw(st.sampled_from("wwrrd"))
        if kind == "r":
            made.append(read(start, end, draw(st.sampled_from([None, *range(size)]))))
        elif kind == "w":
            made.append(put(start, draw(st.sampled_from([end, end, None])), i))
        else:
            open_ = draw(st.booleans())
            made.append(
                drop(start, None if open_ else end, None if open_ else draw(st.sampled_from([None, True, False])))
            )
    return made


@settings(max_examples=400, deadline=None)
@given(any_history())
def test_it_judges_as_brute_force_does(history: list[Operation]) -> None:
    assert judge(history).fits is by_brute_force(history)


@st.composite
def good_history(draw: st.DrawFn) -> list[Operation]:
    """What clients of a register saw: each operation took effect at some moment while it was under way."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    held: Value = None
    made = []
    for i in range(draw(st.integers(2, 120))):
        at, reach = 1000 * i, draw(st.sampled_from([400, 2000, 5000]))
        start, end = at - chance.randrange(1, reach), at + chance.randrange(1, reach)
        kind = chance.choice("wwrrrd")
        open_ = chance.random() < 0.05
        if kind == "r":
            made.append(read(start, end, held))
        elif kind == "w":
            if not open_ or chance.random() < 0.5:
                held = i
            made.append(put(start, None if open_ else end, i))
        else:
            made.append(drop(start, None if open_ else end, None if open_ else held is not None))
            if not open_ or chance.random() < 0.5:
                held = None
    return made


@settings(max_examples=100, deadline=None)
@given(good_history())
def test_what_a_register_did_fits(history: list[Operation]) -> None:
    assert judge(history).fits is True


def certainly_over(history: Sequence[Operation], value: Value, moment: int) -> bool:
    """The value was written, and replaced by something that began after that and was over at `moment`."""
    written = [o for o in history if not o.reads and o.value == value]
    if value is None or len(written) != 1 or written[0].end is None:
        return False
    after = [o for o in history if not o.reads and o.end is not None and o.start > (written[0].end or 0)]
    return any(o.end is not None and o.end < moment for o in after)


@settings(max_examples=100, deadline=None)
@given(good_history(), st.data())
def test_a_good_history_with_one_stale_read_in_it_does_not_fit(history: list[Operation], data: st.DataObject) -> None:
    changed = [
        (i, value)
        for i, one in enumerate(history)
        if one.reads
        for value in {o.value for o in history if not o.reads}
        if certainly_over(history, value, one.start)
    ]
    assume(changed)
    i, value = data.draw(st.sampled_from(changed))
    history[i] = replace(history[i], value=value)
    assert judge(history).fits is False


@settings(max_examples=100, deadline=None)
@given(good_history(), st.data())
def test_a_good_history_without_a_write_that_was_read_does_not_fit(
    history: list[Operation], data: st.DataObject
) -> None:
    seen = {o.value for o in history if o.reads} - {None}
    assume(seen)
    lost = data.draw(st.sampled_from(sorted(v for v in seen if v is not None)))
    assert judge([o for o in history if o.reads or o.value != lost]).fits is False


def test_a_search_that_takes_too_long_is_given_up_and_says_so() -> None:
    assert judge(GOOD["one after the other"], budget=2).fits is None


def test_hundreds_of_operations_with_open_ones_among_them_are_judged_in_a_moment() -> None:
    history = [put(10 * i, None if i % 20 == 0 else 10 * i + 45, i) for i in range(400)]
    history += [read(10 * i + 46, 10 * i + 47, i) for i in range(399) if i % 20]
    assert judge(history).fits is True
    assert judge([*history, read(5000, 5001, 3)]).fits is False
