"""A few of the damaged files that `make chaos NEMESIS=logs` and `NEMESIS=generations` try by the thousand."""

import random

import pytest

from chaos import damage

pytestmark = pytest.mark.e2e


def test_damaged_logs_give_a_prefix_or_say_so() -> None:
    said: list[str] = []
    assert damage.logs(300, 1, said.append).violations == 0, said


def test_damaged_generations_give_right_answers_or_a_plain_word() -> None:
    said: list[str] = []
    assert damage.generations(12, 1, said.append).violations == 0, said


def test_what_is_harmed_is_never_what_it_was_but_by_chance() -> None:
    chance, data = random.Random(1), bytes(range(256)) * 4
    assert sum(damage.harm(data, chance) == data for _ in range(500)) < 5
