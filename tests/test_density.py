"""How much a JSON text would become is told without making it."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from veccluster_node.http import density

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a",[]{}\\/é\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a",[]{}\\'), inner),
)


def values(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(values, inner))


@given(JSON_VALUES, st.booleans())
def test_values_are_never_counted_too_low_and_strings_never_counted(value: Any, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode()
    count = values(value)
    assert density.has_more_values(text, count - 1) or count == 1
    assert not density.has_more_values(text, 2 * count)  # an item that is a list counts twice


def test_items_are_counted_at_their_depth_alone() -> None:
    rows = b",".join([b'{"id":"a,b","vector":[1,2,3,4,5,6]}'] * 10_000)
    body = b'{"vectors":[' + rows + b'],"atomic":false}'
    assert not density.has_more_items(body, 10_000 + 2, depth=2)
    assert density.has_more_items(body, 9_000, depth=2)
    assert not density.has_more_items(body, 2, depth=1)


def test_a_string_that_never_ends_is_no_riddle() -> None:
    assert not density.has_more_values(b'{"a":"' + b'\\",[' * 1_000_000, 10)
