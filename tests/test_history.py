"""The checker itself: it must find what is wrong in histories that are known to be wrong."""

from support.history import History


def _history() -> History:
    history = History()
    history.invoke(["a"], 1)
    history.acknowledge(["a"], 1)
    return history


def test_a_good_history_has_no_violations() -> None:
    assert _history().violations({"a": 1}) == []


def test_a_lost_write_is_found() -> None:
    assert _history().violations({}) == ["a holds None, allowed are [1]"]


def test_an_old_value_that_comes_back_is_found() -> None:
    history = _history()
    history.invoke(["a"], 2)
    history.acknowledge(["a"], 2)
    assert history.violations({"a": 1})


def test_a_deleted_id_that_comes_back_is_found() -> None:
    history = _history()
    history.invoke(["a"], None)
    history.acknowledge(["a"], None)
    assert history.violations({"a": 1})
    assert history.violations({}) == []


def test_what_nobody_wrote_is_found() -> None:
    assert _history().violations({"a": 1, "b": 7}) == ["b was never written"]


def test_an_unknown_outcome_allows_both() -> None:
    history = _history()
    history.invoke(["a"], 2)
    history.lose_sight(["a"])
    assert history.violations({"a": 1}) == history.violations({"a": 2}) == []
    assert history.violations({"a": 3})
