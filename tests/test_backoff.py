"""How long to wait before something is tried again."""

from veccluster import backoff


def test_a_pause_doubles_up_to_the_longest_however_often_something_failed():
    assert [backoff.pause(0.5, n, 3.0) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 3.0]
    assert backoff.pause(0.5, 10**9, 30.0) == 30.0
