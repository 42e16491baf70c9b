"""The judges find what is wrong in histories that are known to be wrong, and nothing in what is right."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos import judges
from chaos.history import History, Outcome, Read, Write


class Story:
    """Writes a history, one operation after the other unless told otherwise."""

    def __init__(self) -> None:
        self.history = History()
        self._seq = 0

    def begins(self, value: int | None, client: str = "c", one: str = "a") -> Write:
        h = self.history
        return h.begin(Write(one, value, client, None, f"op{h.now()}", h.now()))

    def ends(self, write: Write, outcome: Outcome = Outcome.stored, seq: int | None = None, epoch: int = 1) -> None:
        if outcome is Outcome.stored:
            self._seq = (self._seq + 1) if seq is None else seq
            write.shard, write.epoch, write.seq = 0, epoch, self._seq
        self.history.settle(write, outcome)

    def writes(self, value: int | None, outcome: Outcome = Outcome.stored, **more: object) -> Write:
        write = self.begins(value)
        self.ends(write, outcome, **more)  # type: ignore[arg-type]
        return write

    def shows(self, value: int | None, level: str = "strong", client: str = "r", one: str = "a") -> None:
        h = self.history
        start = h.now()
        h.saw(Read(one, value, client, level, start, h.now()))

    def wrong(self) -> str:
        return "\n".join(judges.everything(self.history))


@pytest.fixture
def story() -> Story:
    return Story()


def test_what_is_right_is_not_found_wrong(story: Story) -> None:
    for level in ("strong", "quorum", "session", "eventual"):
        story.shows(None, level)
    story.writes(1)
    story.writes(2, Outcome.refused)
    story.shows(1)
    story.shows(None, "eventual", client="late")
    story.writes(3, Outcome.unknown)
    story.shows(1, "quorum")
    story.shows(3, "quorum")
    story.writes(None)
    story.shows(1, "session", client="other")
    story.shows(None)
    assert story.wrong() == ""
    assert judges.final(story.history, {}) == []


def test_a_stale_strong_read_is_found(story: Story) -> None:
    story.writes(1)
    story.writes(2)
    story.shows(1)
    assert "fit in no order" in story.wrong()
    assert "although c: write 2 of a" in story.wrong()


@pytest.mark.parametrize("value", [1, None])
def test_a_stale_quorum_read_is_found(story: Story, value: int | None) -> None:
    story.writes(1)
    story.writes(2)
    story.shows(value, "quorum")
    assert "although c: write 2 of a" in story.wrong()


def test_a_stale_eventual_read_is_allowed(story: Story) -> None:
    story.writes(1)
    story.writes(2)
    story.shows(1, "eventual")
    story.shows(None, "eventual")
    assert story.wrong() == ""


def test_a_read_of_what_nobody_wrote_is_found_at_every_level(story: Story) -> None:
    for level in ("strong", "quorum", "session", "eventual"):
        story.shows(7, level)
    assert story.wrong().count("which nobody had written") == 4


def test_a_read_of_what_was_refused_is_found(story: Story) -> None:
    story.writes(1)
    story.writes(2, Outcome.refused)
    story.shows(2, "eventual")
    assert "a write that was refused" in story.wrong()


def test_a_session_that_does_not_read_its_own_write_is_found(story: Story) -> None:
    story.writes(1)
    story.writes(2)
    story.shows(1, "session", client="c")
    assert "although its session had seen" in story.wrong()


def test_a_session_that_goes_back_is_found(story: Story) -> None:
    story.writes(1)
    story.writes(2)
    story.shows(2, "session")
    story.shows(1, "session")
    assert "although its session had seen" in story.wrong()


def test_a_session_that_forgets_a_delete_of_its_own_is_found(story: Story) -> None:
    story.writes(1)
    story.writes(None)
    story.shows(1, "session", client="c")
    assert "although its session had seen" in story.wrong()


def test_two_operations_at_one_place_of_a_log_are_found(story: Story) -> None:
    story.writes(1, seq=5, epoch=1)
    story.writes(2, seq=5, epoch=2)
    assert "has two operations at seq 5" in story.wrong()


def test_a_log_that_goes_back_is_found(story: Story) -> None:
    story.writes(1, seq=5)
    story.writes(2, seq=4)
    story.writes(3, seq=6)
    assert "goes back" in story.wrong()


def test_writes_that_overlap_may_have_any_order_in_the_log(story: Story) -> None:
    one, other = story.begins(1), story.begins(2)
    story.ends(one, seq=5)
    story.ends(other, seq=4)
    assert story.wrong() == ""


def test_a_lost_write_is_found_at_the_end(story: Story) -> None:
    story.writes(1)
    assert judges.final(story.history, {"a": 1}) == []
    assert "a holds None at the end" in judges.final(story.history, {})[0]


def test_a_deleted_or_replaced_value_that_is_back_is_found_at_the_end(story: Story) -> None:
    story.writes(1)
    story.writes(2)
    assert "a holds 1 at the end" in judges.final(story.history, {"a": 1})[0]
    story.writes(None)
    assert "a holds 2 at the end" in judges.final(story.history, {"a": 2})[0]
    assert judges.final(story.history, {}) == []


def test_what_was_refused_or_never_written_is_found_at_the_end(story: Story) -> None:
    story.writes(1)
    story.writes(2, Outcome.refused)
    assert judges.final(story.history, {"a": 2})
    assert judges.final(story.history, {"a": 1, "b": 3}) == ["b holds 3 at the end, and was never written"]


def test_an_unknown_write_may_show_at_the_end_however_late(story: Story) -> None:
    story.writes(1, Outcome.unknown)
    story.writes(2)
    for held in (1, 2):
        assert judges.final(story.history, {"a": held}) == []
    assert judges.final(story.history, {})


def a_run(seed: int) -> tuple[Story, int | None]:
    """What several clients of one register see, some of them reading an old copy at level eventual."""
    chance, story = random.Random(seed), Story()
    held: int | None = None
    old = held
    under_way: list[Write] = []
    for _ in range(chance.randrange(1, 60)):
        kind = chance.random()
        if kind < 0.35:
            under_way.append(story.begins(story.history.next_value(), f"c{len(under_way)}"))
        elif kind < 0.65 and under_way:
            write = under_way.pop(chance.randrange(len(under_way)))
            outcome = chance.choice([Outcome.stored, Outcome.stored, Outcome.unknown, Outcome.refused])
            if outcome is Outcome.stored or (outcome is Outcome.unknown and chance.random() < 0.5):
                old, held = held, write.value
            story.ends(write, outcome)
        else:
            story.shows(held, chance.choice(["strong", "quorum"]))
            story.shows(old, "eventual")
    return story, held


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_no_run_of_a_correct_store_is_found_wrong(seed: int) -> None:
    story, held = a_run(seed)
    assert story.wrong() == ""
    assert judges.final(story.history, {} if held is None else {"a": held}) == []


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_run_that_forgets_its_last_acknowledged_write_is_found(seed: int) -> None:
    story, _ = a_run(seed)
    before = {w.value for w in story.history.writes["a"]}
    story.writes(story.history.next_value())
    allowed = judges.allowed_at_the_end(story.history.writes["a"])
    for value in [None, *sorted(before - allowed)]:
        assert judges.final(story.history, {} if value is None else {"a": value})
