"""Who is there is judged soon, and not by the first sign of trouble."""

import pytest

from veccluster.decisions.presence import Presence, Probe
from veccluster.model.state import NodeId

A, B = NodeId("a"), NodeId("b")
HEARTBEAT, TIMEOUT = 0.5, 3.0


def _presence(*leased: NodeId) -> Presence:
    made = Presence(heartbeat=HEARTBEAT, timeout=TIMEOUT)
    made.saw([A, B], leased, 0.0)
    return made


@pytest.mark.parametrize("how", Probe)
def test_a_node_with_a_lease_is_there_whatever_it_answers_once(how: Probe) -> None:
    presence = _presence(A)
    presence.probed(A, how, 1.0)
    assert presence.is_serving(A, 100.0)


def test_a_process_that_ended_is_gone_before_its_lease_is() -> None:
    presence = _presence(A)
    presence.probed(A, Probe.refused, 1.0)
    presence.probed(A, Probe.refused, 1.0 + HEARTBEAT)
    assert not presence.is_serving(A, 1.6)
    assert presence.away(A, 1.6) == pytest.approx(0.6)
    presence.probed(A, Probe.answered, 2.0)
    assert presence.is_serving(A, 2.0)


def test_a_node_that_nothing_listens_for_only_now_and_then_is_there() -> None:
    presence = _presence(A)
    for second in range(1, 20):
        presence.probed(A, Probe.refused, float(second))
        presence.probed(A, Probe.silent, second + 0.3)
        assert presence.is_serving(A, second + 0.4)


def test_a_node_that_lost_its_lease_is_there_for_as_long_as_it_answers() -> None:
    presence = _presence(A)
    presence.saw([A, B], [], 1.0)
    for second in range(1, 60):
        presence.probed(A, Probe.answered, float(second))
        assert presence.is_serving(A, second + 0.9)
    assert not presence.is_serving(A, 62.0)


@pytest.mark.parametrize("how", [Probe.silent, Probe.refused])
def test_a_node_that_did_not_answer_is_gone_with_its_lease(how: Probe) -> None:
    presence = _presence(A)
    presence.probed(A, Probe.answered, 1.0)
    presence.probed(A, how, 2.5)
    presence.saw([A, B], [A], 3.0)
    assert presence.is_serving(A, 3.0)
    presence.saw([A, B], [], 3.1)
    assert not presence.is_serving(A, 3.1)


def test_a_node_whose_lease_ends_before_it_was_asked_is_given_the_time_to_answer_once() -> None:
    presence = _presence(A)
    presence.saw([A, B], [], 0.1)
    assert presence.is_serving(A, 1.0)
    assert not presence.is_serving(A, 1.0 + presence.patience)


def test_what_a_node_answered_long_ago_says_nothing() -> None:
    presence = _presence(A)
    presence.probed(A, Probe.refused, 1.0)
    presence.saw([A, B], [], 100.0)
    assert presence.is_serving(A, 100.1)
    assert not presence.is_serving(A, 100.1 + presence.patience)


def test_an_observer_that_has_just_begun_gives_a_node_without_lease_the_whole_timeout() -> None:
    presence = _presence()
    presence.probed(A, Probe.silent, 1.5)
    assert presence.is_serving(A, TIMEOUT)
    assert not presence.is_serving(A, TIMEOUT + 0.1)


def test_where_nothing_listens_nobody_is_waited_for() -> None:
    presence = _presence()
    presence.probed(A, Probe.refused, 0.1)
    assert not presence.is_serving(A, 0.1)


def test_a_node_is_away_since_it_was_last_known_to_serve() -> None:
    presence = _presence(A)
    presence.saw([A, B], [A], 10.0)
    presence.saw([A, B], [], 11.0)
    presence.probed(A, Probe.answered, 12.0)
    assert presence.away(A, 12.1) == 0.0
    presence.probed(A, Probe.refused, 13.0)
    assert presence.away(A, 20.0) == 8.0
    presence.saw([A, B], [A], 21.0)
    assert presence.away(A, 21.0) == 0.0


def test_who_is_no_member_is_not_there() -> None:
    presence = _presence(A)
    presence.saw([B], [B], 1.0)
    assert not presence.is_serving(A, 1.0)
    presence.probed(A, Probe.answered, 1.0)
    assert not presence.is_serving(A, 1.0)
