"""What the client refuses of metadata, filters and JSON texts: what a node would, in its words, before it is sent."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from veccluster.client.values import a_list, from_json, to_json
from veccluster.decisions import filters
from veccluster.errors import InvalidRequest
from veccluster.model.limits import DEFAULTS
from veccluster_node.http.rows import Mistake, read_metadata

NAN, INF = float("nan"), float("inf")


def refusal(work: Callable[[], Any]) -> tuple[str, str]:
    """(field, reason) of what is refused."""
    with pytest.raises(InvalidRequest) as caught:
        work()
    (error,) = caught.value.errors
    return error["field"], error["reason"]


@pytest.mark.parametrize(
    ("value", "at"),
    [
        ({"a": NAN}, "metadata.a"),
        ({"a": -INF}, "metadata.a"),
        ({"a": {"b": [1, None, INF]}}, "metadata.a.b[2]"),
        ({"a": (None, NAN)}, "metadata.a[1]"),
        ({"a": np.float32(NAN)}, "metadata.a"),
        ({"a": np.float64(NAN)}, "metadata.a"),
        ({"a": np.array([1.0, NAN])}, "metadata.a"),
        ({"a": np.array([[1.0], [INF]], np.float32)}, "metadata.a"),
    ],
)
def test_what_is_not_finite_is_refused_and_not_made_null(value: Any, at: str) -> None:
    field, reason = refusal(lambda: to_json(value, "metadata"))
    assert field == at and reason.startswith("must be a finite number")


def test_a_null_that_was_meant_is_one() -> None:
    value = {"a": None, "null": "null", "b": [None, 1.5, True, np.int64(3), np.array([1, 2])]}
    assert orjson.loads(to_json(value, "metadata")) == {
        "a": None,
        "null": "null",
        "b": [None, 1.5, True, 3, [1, 2]],
    }


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 10**30])
def test_whole_numbers_beyond_64_bits_are_refused_as_a_node_refuses_them(number: int) -> None:
    with pytest.raises(Mistake) as of_node:
        read_metadata(b'{"a": {"b": [%d]}}' % number, DEFAULTS)
    assert refusal(lambda: to_json({"a": {"b": [number]}}, "metadata")) == (of_node.value.field, of_node.value.reason)
    with pytest.raises(InvalidRequest) as of_filter:
        filters.parse({"a": {"$gt": number}})
    field, reason = refusal(lambda: to_json({"a": {"$gt": number}}, "filter"))
    assert field == of_filter.value.errors[0]["field"] and reason.startswith(of_filter.value.errors[0]["reason"])


@pytest.mark.parametrize("number", [(1 << 64) - 1, -(1 << 63), 0])
def test_whole_numbers_of_64_bits_are_sent_as_they_are(number: int) -> None:
    assert to_json({"a": number}, "metadata") == b'{"a":%d}' % number


def test_a_filter_is_refused_in_the_words_of_a_node() -> None:
    with pytest.raises(InvalidRequest) as of_node:
        filters.parse({"$and": [{"a": 1}, {"b": {"$gt": NAN}}]})
    field, reason = refusal(lambda: to_json({"$and": [{"a": 1}, {"b": {"$gt": NAN}}]}, "filter"))
    assert field == of_node.value.errors[0]["field"] and reason.startswith(of_node.value.errors[0]["reason"])


@pytest.mark.parametrize(
    ("value", "at", "words"),
    [
        ({1: 2}, "metadata", "strings as keys, is a number"),
        ({"a": {b"k": 2}}, "metadata.a", "strings as keys, is bytes"),
        ({"a": {1, 2}}, "metadata.a", "is a set"),
        ({"a": 1j}, "metadata.a", "is a complex"),
        ({"a": "x\ud800"}, "metadata.a", "half of a surrogate pair"),
        ({"a": np.array(["x"])}, "metadata.a", "array of numbers or booleans"),
    ],
)
def test_what_json_has_no_word_for_is_named(value: Any, at: str, words: str) -> None:
    field, reason = refusal(lambda: to_json(value, "metadata"))
    assert field == at and words in reason


def test_a_thing_within_itself_is_refused() -> None:
    within: dict[str, Any] = {}
    within["a"] = within
    assert refusal(lambda: to_json(within, "metadata")) == ("metadata", "is nested too deep")


@pytest.mark.parametrize("kind", [str, str.encode])
def test_long_whole_numbers_of_a_text_stay_whole(kind: Callable[[str], Any]) -> None:
    read = from_json(kind(f'{{"a": {1 << 64}, "b": [{-(1 << 70)}, 0.12345678901234567890123]}}'), "line 1")
    assert read == {"a": 1 << 64, "b": [-(1 << 70), 0.12345678901234567890123]}
    assert type(read["a"]) is int
    with pytest.raises(InvalidRequest, match=r"metadata.a: must be a whole number of at most 64 bits"):
        to_json(read, "metadata")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": NaN}', "JSON has no NaN"),
        ('{"a": -Infinity}', "JSON has no NaN"),
        ('{"a": 1e400}', "too large"),
        ("1" * (sys.get_int_max_str_digits() + 1), "too large"),
        ("{", "must be JSON"),
    ],
)
def test_a_text_that_is_not_json_is_refused(text: str, words: str) -> None:
    field, reason = refusal(lambda: from_json(text, "--metadata"))
    assert field == "--metadata" and words in reason


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("12", "a string"),
        (b"12", "bytes"),
        (bytearray(b"12"), "bytes"),
        (np.str_("12"), "a string"),
        ({"1": 2}, "an object"),
        (12, "a number"),
        (None, "null"),
    ],
)
def test_a_text_is_no_list(value: Any, kind: str) -> None:
    assert refusal(lambda: a_list(value, "ids")) == ("ids", f"must be a list, is {kind}")


@pytest.mark.parametrize(
    "value", [["1", "2"], ("1", "2"), np.array(["1", "2"]), iter(["1", "2"]), {"1": 0, "2": 0}.keys()]
)
def test_whatever_has_members_is_a_list(value: Any) -> None:
    assert a_list(value, "ids") == ["1", "2"]
