"""A VecCluster from its first file to its end: bad files and good ones, more nodes, a pause, deletion, a second life."""

import json

import pytest

from e2e.cluster.process import CommandFailed
from e2e.support.database import called, is_ready, uid, vec_collection
from e2e.waiting import wait_for

WORDS = 500


def mentions(database, *words):
    """Whether the cluster's Progressing condition and an event say all these words."""

    def said():
        message = database.condition("Progressing").get("message", "")
        assert all(word in message for word in words), message
        assert any(all(word in event for word in words) for event in database.events()), database.events()
        return True

    return said


def test_a_file_that_asks_for_too_much_is_told_in_words_and_corrected_by_a_good_one(kubectl, database):
    database.apply(replicationFactor=1, resources={"requests": {"cpu": "100"}})
    wait_for(mentions(database, "0 of 1 nodes are ready", "demo-0 cannot be scheduled", "Insufficient cpu"), 90, "the scheduler's reason in words")
    assert database.condition("Ready")["status"] == "False"
    database.apply()
    database.wait_until_ready()
    database.wait_until_healthy()


def test_what_is_not_there_yet_is_refused_by_condition_and_event_and_changes_nothing(database): ...
