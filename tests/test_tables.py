"""Tables that share with their successors what has not changed say what dicts would, and old ones stay as they were."""

from collections.abc import Mapping

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from support.states import collection, node, shard
from veccluster.model.state import Shard, ShardId
from veccluster.model.tables import CollectionTable, ShardTable, Table

ROWS = st.dictionaries(st.integers(0, 2000), st.integers() | st.none(), max_size=20)


@given(st.lists(ROWS))
def test_a_table_says_what_a_dict_would_and_so_do_those_before_it(changes: list[dict[int, int | None]]) -> None:
    table: Table[int, int] = Table()
    expected: dict[int, int] = {}
    history = [(table, dict(expected))]
    for news in changes:
        table = table.changed(news)
        expected = {k: v for k, v in {**expected, **news}.items() if v is not None}
        history.append((table, dict(expected)))
    for was, said in history:
        assert was == said
        assert len(was) == len(said)
        assert all(k in was for k in said)


@st.composite
def records(draw: st.DrawFn) -> dict[ShardId, Shard | None]:
    changed: dict[ShardId, Shard | None] = {}
    for number in draw(st.sets(st.integers(0, 5))):
        of = ShardId(draw(st.sampled_from(["a", "b"])), number)
        nodes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
        members = [node(n).member(of) for n in nodes]
        after = draw(st.sampled_from([None, *members]))
        made = msgspec.structs.replace(
            shard(0, node(nodes[0])), id=of, in_sync=tuple(members[:2]), learners=tuple(members[2:]), successor=after
        )
        changed[of] = draw(st.sampled_from([None, made, made]))
    return changed


@given(st.lists(records()))
def test_the_indexes_of_a_table_of_shards_say_what_its_rows_do(changes: list[Mapping[ShardId, Shard | None]]) -> None:
    table = ShardTable()
    for news in changes:
        table = table.changed(news)
    assert table == ShardTable(dict(table))
    for n in range(5):
        named = {i for i, s in table.items() if any(m.node == node(n).id for m in (*s.members, s.successor) if m)}
        assert set(table.on(node(n).id)) == named
        assert table.led.get(node(n).id, 0) == sum(s.primary.node == node(n).id for s in table.values())
    for uuid in ("a", "b", "c"):
        assert table.within(uuid) == {i for i in table if i.collection == uuid}


def test_a_collection_is_found_by_its_uuid_for_as_long_as_it_is_there() -> None:
    old = collection("words", 1)
    new = msgspec.structs.replace(old, uuid="another")
    table = CollectionTable({"words": old})
    assert table.by_uuid == {old.uuid: old}
    assert table.changed({"words": new}).by_uuid == {"another": new}
    assert table.changed({"words": None}).by_uuid == {}
    assert table["words"] == old
