"""The filter language: what is refused, what matches, and that SQLite agrees with the reference about all of it."""

import itertools
import sqlite3
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veccluster.decisions import filters
from veccluster.decisions.filters import FUNCTIONS, index_expressions, matches, parse, to_sql
from veccluster.errors import InvalidRequest
from veccluster.model.limits import DEFAULTS as LIMITS


def database(*records: tuple[str, dict[str, Any]], filterable: tuple[str, ...] = ()) -> sqlite3.Connection:
    """Records as the storage keeps them; their seqs are their positions."""
    db = sqlite3.connect(":memory:")
    for name, (function, arguments) in FUNCTIONS.items():
        db.create_function(name, arguments, function, deterministic=True)
    db.execute("CREATE TABLE records(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL)")
    for number, expression in enumerate(e for field in filterable for e in index_expressions(field)):
        db.execute(f"CREATE INDEX filterable_{number} ON records({expression})")
    rows = [(seq, id_, orjson.dumps(metadata).decode()) for seq, (id_, metadata) in enumerate(records)]
    db.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
    return db


def selected(db: sqlite3.Connection, value: Any) -> set[int]:
    sql = to_sql(parse(value))
    return {seq for (seq,) in db.execute(f"SELECT seq FROM records WHERE {sql.where}", sql.params)}


# ---- what matches ----------------------------------------------------------------------------------------------------

WORD = {
    "pos": "n",
    "pointers": 3,
    "weight": 0.5,
    "whole": 3.0,
    "words": ["dog", "domestic dog", 3, None],
    "text": "a domestic dog",
    "yes": True,
    "nothing": None,
    "deep": {"er": {"est": 1}},
    "a.b": 1,
    "big": 2**53 + 1,
    "huge": 2**64 - 1,
}


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, True),
        ({"pos": "n"}, True),
        ({"pos": "N"}, False),
        ({"pos": {"$eq": "n"}, "pointers": {"$gte": 3, "$lt": 10}}, True),
        ({"pointers": "3"}, False),
        ({"pointers": 3.0}, True),
        ({"whole": 3}, True),
        ({"yes": 1}, False),
        ({"yes": True}, True),
        ({"pointers": True}, False),
        ({"yes": {"$gt": 0}}, False),
        ({"pointers": {"$gt": "2"}}, False),
        ({"pos": {"$gt": 2}}, False),
        ({"pos": {"$gt": "m", "$lte": "n"}}, True),
        ({"big": {"$gt": 2.0**53}}, True),
        ({"big": 2.0**53}, False),
        ({"huge": {"$lt": 2.0**64}}, True),
        ({"huge": 2.0**64}, False),
        ({"huge": {"$gt": 2**64 - 2}}, True),
        ({"nothing": None}, True),
        ({"absent": None}, False),
        ({"absent": {"$ne": 1}}, True),
        ({"absent": {"$nin": [1, None]}}, True),
        ({"absent": {"$exists": False}}, True),
        ({"nothing": {"$exists": True}}, True),
        ({"$not": {"absent": {"$gt": 1}}}, True),
        ({"pos": {"$ne": "n"}}, False),
        ({"pos": {"$in": ["v", "n", 3]}}, True),
        ({"pos": {"$in": []}}, False),
        ({"pos": {"$nin": []}}, True),
        ({"words": {"$contains": "dog"}}, True),
        ({"words": {"$contains": "do"}}, False),
        ({"words": {"$contains": 3.0}}, True),
        ({"words": {"$contains": None}}, True),
        ({"words": "dog"}, False),
        ({"text": {"$contains": "dog"}}, True),
        ({"text": {"$contains": ""}}, True),
        ({"pointers": {"$contains": 3}}, False),
        ({"deep.er.est": 1}, True),
        ({"deep.er": {"$exists": True}}, True),
        ({"deep.er": {"$in": [1, "x"]}}, False),
        ({"a.b": 1}, False),
        ({"words.0": "dog"}, False),
        ({"$id": "w1"}, True),
        ({"$id": {"$in": ["w0", "w1"], "$gt": "w"}}, True),
        ({"$id": {"$nin": ["w1"]}}, False),
        ({"$or": [{"pos": "v"}, {"$and": [{"pos": "n"}, {"weight": {"$lt": 1}}]}]}, True),
        ({"$not": {"pos": "n", "pointers": 4}}, True),
    ],
)
def test_a_filter_means_what_the_documentation_says(filter_: dict[str, Any], expected: bool) -> None:
    assert matches(parse(filter_), "w1", WORD) is expected
    assert selected(database(("w1", WORD)), filter_) == ({0} if expected else set())


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter_", "field", "reason"),
    [
        ([], "filter", "must be an object, is a list"),
        ("pos = n", "filter", "must be an object, is a string"),
        ({"$and": []}, "filter.$and", "must hold at least one filter, is empty"),
        ({"$and": {}}, "filter.$and", "must be a list of filters, is an object"),
        ({"$or": [{"a": 1}, {}]}, "filter.$or[1]", "must not be empty"),
        ({"$or": [3]}, "filter.$or[0]", "must be an object, is a number"),
        ({"$not": [1]}, "filter.$not", "must be an object, is a list"),
        (
            {"$and": [{}, {"pointers": {"$gte": [3]}}][1:]},
            "filter.$and[0].pointers.$gte",
            "must be a number or a string, is a list",
        ),
        ({"a": {"$gt": True}}, "filter.a.$gt", "must be a number or a string, is a boolean"),
        ({"a": {"$gt": None}}, "filter.a.$gt", "must be a number or a string, is null"),
        ({"a": {}}, "filter.a", "must hold at least one operator, such as $eq"),
        ({"a": {"$gtr": 3}}, "filter.a.$gtr", "is not an operator; did you mean $gt?"),
        ({"a": {"gte": 3}}, "filter.a.gte", "is not an operator; did you mean $gte?"),
        ({"$ands": [{"a": 3}]}, "filter.$ands", "is not an operator; did you mean $and?"),
        ({"a": {"$in": "x"}}, "filter.a.$in", "must be a list of values, is a string"),
        ({"a": {"$in": [1, [2]]}}, "filter.a.$in[1]", "is a list"),
        ({"a": [1]}, "filter.a", "$contains looks into lists, is a list"),
        ({"a": {"$exists": 1}}, "filter.a.$exists", "must be true or false, is a number"),
        ({"a": {"$contains": ["x"]}}, "filter.a.$contains", "is a list"),
        ({"a": {"b": 1}}, "filter.a.b", '"a.b" reaches into an object'),
        ({"a": {"$and": [1]}}, "filter.a.$and", "cannot stand here"),
        ({"$gt": 3}, "filter.$gt", "cannot stand here"),
        ({"$id": 3}, "filter.$id", "must be a string, is a number"),
        ({"$id": {"$in": ["a", 3]}}, "filter.$id.$in[1]", "must be a string, is a number"),
        ({"$id": {"$exists": True}}, "filter.$id.$exists", "cannot stand here"),
        ({"a": 2**64}, "filter.a", "at most 64 bits"),
        ({"a": {"$gt": float("inf")}}, "filter.a.$gt", "must be a finite number"),
        ({"a": "\ud800"}, "filter.a", "half of a surrogate pair"),
        ({"\udfff": 1}, "filter.\udfff", "half of a surrogate pair"),
    ],
)
def test_a_mistake_is_named_with_its_place(filter_: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(filter_)
    (error,) = refusal.value.errors
    assert error["field"] == field
    assert reason in error["reason"]


def nested(depth: int) -> dict[str, Any]:
    filter_: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        filter_ = {"$not": filter_}
    return filter_


def test_depth_conditions_and_values_are_bounded() -> None:
    parse(nested(LIMITS.max_filter_depth), LIMITS)
    for too_deep in (LIMITS.max_filter_depth + 1, 5000):
        with pytest.raises(InvalidRequest, match="nested too deep; a filter may have 16 levels"):
            parse(nested(too_deep), LIMITS)
    with pytest.raises(InvalidRequest, match="one condition too many; a filter may have 256"):
        parse({"$or": [{"a": 1}] * LIMITS.max_filter_clauses}, LIMITS)
    with pytest.raises(InvalidRequest, match="at most 10000 values, holds 10001"):
        parse({"a": {"$in": list(range(10_001))}}, LIMITS)


# ---- SQL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filter_",
    [
        {"f": "n"},
        {"f": 3},
        {"f": 3.5},
        {"f": {"$in": ["n", "v"]}},
        {"f": {"$in": [1, 2.5, "n", True, None]}},
        {"f": {"$gt": 3}},
        {"f": {"$gte": 3, "$lt": 4}},
        {"f": {"$gt": "a", "$lte": "b"}},
        {"g.h": "n", "other": 3},
        {"$or": [{"f": "n"}, {"g.h": 3}]},
    ],
)
def test_declared_fields_are_found_by_their_index(filter_: dict[str, Any]) -> None:
    db = database(filterable=("f", "g.h"))
    sql = to_sql(parse(filter_))
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN SELECT seq FROM records WHERE {sql.where}", sql.params)]
    assert any("USING INDEX filterable_" in step for step in plan)
    assert not any(step.startswith("SCAN records") for step in plan)


def test_ten_thousand_values_are_one_parameter() -> None:
    values = [f"w{i}" for i in range(10_000)]
    db = database(*((v, {"w": v}) for v in values[:500]), ("x", {"w": "x"}))
    for filter_ in ({"w": {"$in": values}}, {"$id": {"$in": values}}):
        assert len(to_sql(parse(filter_)).where) < 500
        assert selected(db, filter_) == set(range(500))


def test_the_largest_filter_is_within_what_sqlite_takes() -> None:
    conditions = [{f"f{i}": {"$gte": i + 0.5}} for i in range(LIMITS.max_filter_clauses - 1)]
    assert selected(database(("a", {"f7": 9}), ("b", {})), {"$or": conditions}) == {0}


def test_the_sql_of_odd_keys_cannot_be_broken_out_of() -> None:
    for key in ("'", "'); DROP TABLE records; --", '"', "\\", "\0", "", "a'b", "$", "x[0]", "日本"):
        db = database(("a", {key or "": 1, "o": {key: 2}}), ("b", {}))
        if not key.startswith("$"):
            assert selected(db, {key: 1}) == {0}
        assert selected(db, {f"o.{key}": 2}) == {0}


# Values are drawn from few, nasty ones, so that filters and records meet.
texts = st.sampled_from(
    [
        "",
        "a",
        "b",
        "ab",
        "a\0",
        "a\0b",
        "\0",
        '"',
        "a\\u0000",
        "\x7f",
        "\n",
        "é",
        "\U0001f600",
        "\uffff",
        "[1]",
        "1",
        "null",
    ]
) | st.text(max_size=3)
near = [0, 1, 3, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, -(2**63), -(2**53) - 1]
numbers = (
    st.sampled_from([*near, *map(float, near), -0.0, 0.1, 0.5, 5e-324, 1e-300, 1.7976931348623157e308, 1e22, 1e-5])
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.tuples(st.floats(1e-10, 1e25), st.integers(-3, 3)).map(lambda p: p[0] * (1 + p[1] * 2**-52))
)
scalars = texts | numbers | st.booleans() | st.none()
keys = st.sampled_from(["a", "b", "", '"', "\\", "\0", "'", "k[0]", "é"])
metadata = st.dictionaries(
    keys, st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=2), max_leaves=5)
)
paths = st.lists(keys, min_size=1, max_size=2).map(".".join)
ids = st.sampled_from(["a", "a\0", "b", "B", "é", "\U0001f600"])


def conditions(draw_from: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    ordered = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])
    return (
        st.dictionaries(st.sampled_from(["$eq", "$ne", "$contains"]), draw_from, min_size=1, max_size=1)
        | st.dictionaries(ordered, draw_from.filter(lambda v: v is not None and not isinstance(v, bool)), min_size=1)
        | st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(draw_from, max_size=4), min_size=1, max_size=1)
        | st.booleans().map(lambda b: {"$exists": b})
    )


id_conditions = st.dictionaries(st.sampled_from(["$eq", "$ne", "$gt", "$lte"]), ids, min_size=1) | st.lists(ids).map(
    lambda found: {"$in": found}
)


def filters_over(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.dictionaries(paths, conditions(values) | values, min_size=1, max_size=2)
    leaves |= st.fixed_dictionaries({"$id": id_conditions})
    return st.recursive(
        leaves,
        lambda f: (
            st.dictionaries(
                st.sampled_from(["$and", "$or"]), st.lists(f, min_size=1, max_size=3), min_size=1, max_size=1
            )
            | f.map(lambda held: {"$not": held})
        ),
        max_leaves=4,
    )


def leaves_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for held in value.values() for leaf in leaves_of(held)]
    if isinstance(value, list):
        return [leaf for held in value for leaf in leaves_of(held)]
    return [value]


@st.composite
def records_and_filters(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Filters ask for values that are there, next to them, or anything."""
    records = draw(st.lists(metadata, min_size=1, max_size=6))
    there = [leaf for record in records for leaf in leaves_of(record)] or [1]
    values = st.sampled_from(there) | st.sampled_from(there).map(neighbour) | scalars
    return records, draw(st.lists(filters_over(values), min_size=1, max_size=4))


def neighbour(value: Any) -> Any:
    """The same in another type, or a little beside it."""
    if isinstance(value, bool | None):
        return 1
    if isinstance(value, int):
        return float(value)
    if isinstance(value, float):
        return int(value) if abs(value) < 2**62 else value * (1 - 2**-53)
    return value[:-1] if value else "\0"


@settings(max_examples=150, deadline=None)
@given(records_and_filters(), st.booleans())
@example(([{"a": 0.1 + 0.2}, {"a": 0.3}], [{"a": {"$gt": 0.3}}, {"a": 0.3}]), False)
def test_sqlite_agrees_with_the_reference(
    case: tuple[list[dict[str, Any]], list[dict[str, Any]]], indexed: bool
) -> None:
    records, wanted = case
    named = list(zip(["a", "a\0", "b", "B", "é", "\U0001f600"], records, strict=False))
    db = database(*named, filterable=("a", "b", "a.b", "é") if indexed else ())
    for filter_ in wanted:
        parsed = parse(filter_)
        expected = {seq for seq, (id_, held) in enumerate(named) if matches(parsed, id_, held)}
        assert selected(db, filter_) == expected, to_sql(parsed)


NASTY: list[Any] = [
    *[n + d for n in (0, 3, 2**53, 2**63, 2**64 - 2, -(2**63) + 1, -(2**53)) for d in (-1, 0, 1)],
    *[float(n) for n in (0, 3, 2**53, 2**63, 2**64, -(2**63))],
    *[
        f * (1 + d * 2**-52)
        for f in (0.1, 1e22, 1.2345678901234567e-7, 8.41e21, 9.0608011534336e15)
        for d in (-1, 0, 1)
    ],
    *[-0.0, 5e-324, 1e-323, 2.2250738585072014e-308, 1.7976931348623155e308, 1.7976931348623157e308, 4.9e16],
    *["", "a", "b", "ab", "a\0", "a\0b", "\0", "\0b", '"', "a\\u0000", "\\", "\n", "\x7f", "é", "\uffff", "\U0001f600"],
    *[True, False, None, "true", "null", "1", "0.1", "[1]", '{"a":1}'],
]


@pytest.mark.parametrize("filterable", [(), ("x",)], ids=["scanned", "indexed"])
def test_sqlite_agrees_on_every_pair_of_nasty_values(filterable: tuple[str, ...]) -> None:
    held = [*NASTY, [], ["a"], ["a\0b", 0.1], [None, 3.0], {}, {"a": 1}, *[[value] for value in NASTY]]
    named = [(str(i), {"x": value}) for i, value in enumerate(held)] + [("missing", {})]
    db = database(*named, filterable=filterable)
    operators = ["$eq", "$in", "$contains", "$gt", "$gte", "$lt", "$lte"]
    for value, operator in itertools.product(NASTY, operators):
        if operator in filters.ORDER and (value is None or isinstance(value, bool)):
            continue
        filter_ = {"x": {operator: [value, "no such"] if operator == "$in" else value}}
        expected = {seq for seq, (id_, metadata) in enumerate(named) if matches(parse(filter_), id_, metadata)}
        assert selected(db, filter_) == expected, filter_


@given(
    st.recursive(
        scalars | st.just({}),
        lambda v: st.lists(v) | st.dictionaries(paths | st.sampled_from(filters.OPERATORS + filters.LOGIC), v),
    )
)
def test_whatever_is_sent_is_parsed_or_refused(value: Any) -> None:
    try:
        to_sql(parse(value))
    except InvalidRequest as refusal:
        assert refusal.errors[0]["field"].startswith("filter")


def test_stored_numbers_keep_their_meaning_when_their_text_changes() -> None:
    """orjson has changed how it prints fractions before; records written by an older one must still be found."""
    db = database(("a", {}), ("b", {}))
    db.execute("UPDATE records SET metadata = ? WHERE seq = 0", ('{"x":1e16,"y":1e-5}',))
    db.execute("UPDATE records SET metadata = ? WHERE seq = 1", ('{"x":1e+16,"y":0.00001}',))
    assert selected(db, {"x": 1e16}) == selected(db, {"x": 10**16}) == selected(db, {"y": {"$in": [1e-5, 2]}}) == {0, 1}
