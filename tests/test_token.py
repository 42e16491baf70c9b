"""Session tokens carry the furthest position of each shard, and nothing that is not one of ours is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veccluster.errors import InvalidRequest
from veccluster.model import token
from veccluster.model.state import ShardId

positions = st.dictionaries(
    st.builds(ShardId, st.uuids().map(lambda u: u.hex), st.integers(0, 127)),
    st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
    max_size=5,
)


@given(positions)
def test_a_token_comes_back_as_what_it_was_made_of(seen: token.Positions) -> None:
    assert token.decode(token.encode(seen)) == seen


@given(positions, positions)
def test_several_tokens_merge_to_the_furthest_position_of_each_shard(a: token.Positions, b: token.Positions) -> None:
    merged = token.decode(f"{token.encode(a)}, {token.encode(b)}")
    assert merged.keys() == {*a, *b}
    for shard, (epoch, seq) in merged.items():
        told = [seen[shard] for seen in (a, b) if shard in seen]
        assert (epoch, seq) in told
        assert seq == max(seq for _, seq in told)


def test_an_epoch_says_nothing_about_how_far_a_position_reaches() -> None:
    shard = ShardId("u", 1)
    assert token.merge([{shard: (3, 4)}, {shard: (2, 9)}]) == {shard: (2, 9)}


@given(st.text(min_size=1, max_size=60))
def test_anything_else_is_refused_by_name_or_is_empty(text: str) -> None:
    try:
        token.decode(text)
    except InvalidRequest as error:
        assert error.errors[0]["field"] == "Session-Token"


def test_a_token_cut_short_is_refused() -> None:
    whole = token.encode({ShardId("u", 1): (3, 4)})
    with pytest.raises(InvalidRequest):
        token.decode(whole[:-3])
