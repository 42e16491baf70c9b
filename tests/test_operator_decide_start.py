"""What the operator says of a cluster that comes up for the first time, and of one that grows: no alarm, always why."""

from typing import Any

import pytest

from test_operator_decide import conditions, pod, report
from veccluster_operator.decide import status
from veccluster_operator.decide.observed import Observed

THREE = status.Situation(desired=3, endpoints=("http://demo.default.svc:8001",))
EMPTY = {"under_replicated": 0, "unavailable": 0, "moving": 0, "total": 0}
NOBODY = {"report_problem": "no node of the cluster answers: there is no node to ask yet"}


def life(*rounds: Observed, situation: status.Situation = THREE) -> tuple[list[dict[str, Any]], list[status.News]]:
    """The status after each round, and everything that was told."""
    found: list[dict[str, Any]] = []
    told: list[status.News] = []
    for observed in rounds:
        before = found[-1] if found else {}
        found.append(status.of(observed, situation, 1, before))
        told += status.news(found[-1], before)
    return found, told


def joining() -> dict[str, Any]:
    """What the first node says of a cluster that holds nothing yet."""
    return {**report("degraded", **EMPTY), "issues": ["No leader is elected yet: new collections wait until one is."]}


def test_a_cluster_that_comes_up_for_the_first_time_is_no_cause_for_alarm():
    found, told = life(
        Observed(**NOBODY),
        Observed(pods=[pod(0, ready=False)], **NOBODY),
        Observed(pods=[pod(0), pod(1, ready=False), pod(2, ready=False)], report=joining()),
        Observed(pods=[pod(n) for n in range(3)], report=report(**EMPTY)),
    )
    assert [said.get("health") for said in found] == [None, None, None, "healthy"]
    assert [conditions(said)["Degraded"][:2] for said in found] == [("Unknown", "Starting")] * 3 + [
        ("False", "Healthy")
    ]
    assert "pod demo-0 has not become ready yet" in conditions(found[1])["Degraded"][2]
    assert not [news for news in told if news.warning]
    assert not [news for news in told if "no reason" in news.message]


def test_a_first_start_that_cannot_go_on_is_told_with_its_reason():
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    stuck = pod(0, ready=False, containerStatuses=[{"name": "node", "state": waiting}])
    found, told = life(Observed(pods=[stuck], **NOBODY), Observed(pods=[pod(0, ready=False)], **NOBODY))
    assert conditions(found[0])["Degraded"] == (
        "True",
        "NotStarted",
        "pod demo-0: ImagePullBackOff: no such image",
    )
    assert conditions(found[1])["Degraded"][:2] == ("Unknown", "Starting")
    assert [news.message for news in told if news.warning] == ["pod demo-0: ImagePullBackOff: no such image"]


def test_a_cluster_that_was_up_and_does_not_answer_is_critical_and_it_is_said_why():
    up = Observed(pods=[pod(n) for n in range(3)], report=report())
    for gone, why in (
        (Observed(**NOBODY), "No pod of a node is there."),
        (Observed(pods=[pod(0)], report_problem="no node answers"), "The cluster cannot be asked how it is"),
        (Observed(pods=[pod(0)]), "The cluster cannot be asked how it is"),
    ):
        found, told = life(up, gone)
        assert found[-1]["health"] == "critical"
        assert conditions(found[-1])["Degraded"][:2] == ("True", "Critical")
        assert why in conditions(found[-1])["Degraded"][2]
        assert any(news.warning for news in told)


def test_a_cluster_that_grows_is_not_degraded_by_that():
    up = Observed(pods=[pod(n) for n in range(3)], report=report())
    five = status.Situation(desired=5)
    _, told = life(
        Observed(pods=[pod(n) for n in range(3)], report=report()),
        Observed(pods=[*(pod(n) for n in range(3)), pod(3, ready=False)], report=report()),
        Observed(pods=[*(pod(n) for n in range(4)), pod(4, ready=False)], report=report()),
        situation=five,
    )
    assert not [news for news in told if news.warning]
    found, _ = life(up, Observed(pods=[*(pod(n) for n in range(3)), pod(3, ready=False)], report=report()))
    assert found[-1]["health"] == "healthy"
    grown = status.of(up, five, 1, found[-1])
    assert conditions(grown)["Progressing"][:2] == ("True", "StartingNodes")
    assert conditions(grown)["Degraded"] == ("False", "Healthy", "nothing is wrong")


def test_a_pod_that_was_there_and_is_gone_is_the_reason():
    found, _ = life(
        Observed(pods=[pod(n) for n in range(3)], report=report()),
        Observed(pods=[pod(0), pod(1)], report=report()),
    )
    assert conditions(found[-1])["Degraded"] == (
        "True",
        "Degraded",
        "Pod demo-2 is not there; the StatefulSet controller makes it anew.",
    )


@pytest.mark.parametrize("health", ["degraded", "critical"])
def test_nodes_that_do_not_say_why_are_answered_for(health):
    silent = {**report(health), "issues": []}
    found = status.of(Observed(pods=[pod(n) for n in range(3)], report=silent), THREE, 1)
    assert "no reason" not in conditions(found)["Degraded"][2]
    assert conditions(found)["Degraded"][2]
