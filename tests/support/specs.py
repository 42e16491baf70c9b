"""Resources of all kinds, good and bad, drawn from the schema that describes them."""

from typing import Any

from hypothesis import strategies as st

from support.apiserver import at_the_very_end

JUNK: tuple[Any, ...] = (None, True, 0, -1, 3.5, 10**6, "", "x", [], ["x"], {}, {"x": 1})

TEXTS = (
    *(
        "10Gi",
        "512Mi",
        "1.5Gi",
        "0.5",
        "100",
        "64Ti",
        "65Ti",
        "1Gi",
        "1023Mi",
        "16Mi",
        "1Pi",
        "1K",
        "16Mi ",
        "1e9",
        "0",
    ),
    *("500ms", "3s", "1h30m", "0s", "10m", "24h", "24h1ms", "1ms", "0.5ms", "999999h", "5 s", "-1s", "100ms", "1d"),
    *("80%", "0%", "1%", "101%", "100%", "a", "a-b", "A", "a_b", "a.b", "-a", "a-", "1a", "é", "a b", "a\n", "x" * 600),
    *(
        "http://etcd:2379",
        "https://a/b",
        "ftp://a",
        "img:1",
        "reg.example/a@sha256:0",
        "author.name",
        ".a",
        "$a",
        "a..b",
    ),
    *("500m", "2", "auto", "Auto", "1", "true", "null", "a'b", 'a"b', "a\\b", "%s", "{a}"),
)
"""Texts that are right for one field and wrong for another."""


def near(schema: dict[str, Any]) -> list[float]:
    """Numbers at and around the bounds of a numeric schema."""
    low, high = schema.get("minimum", 0), schema.get("maximum", 2**31)
    step = 1 if schema["type"] == "integer" else 0.001
    return [low - step, low, low + step, (low + high) // 2 if step == 1 else 0.5, high - step, high, high + step]


def objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that are mostly as `schema` wants them, here and there not."""
    sane = _sane(schema)
    return st.integers(0, 150).flatmap(lambda n: sane if n else st.sampled_from(JUNK))


def _sane(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.one_of(st.sampled_from(TEXTS), st.integers(-1, 130))
    kinds = {
        "object": _object,
        "array": lambda s: st.lists(objects(s["items"]), max_size=3),
        "string": _text,
        "boolean": lambda _: st.booleans(),
    }
    kind = schema["type"]
    return kinds[kind](schema) if kind in kinds else _number(schema)


def _number(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    inside = near(schema)[1:-1]
    return st.one_of(*[st.sampled_from(inside)] * 6, st.sampled_from(near(schema)))


def _text(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "pattern" in schema:
        right = st.from_regex(at_the_very_end(schema["pattern"]))
        usual = [schema["default"]] if "default" in schema else TEXTS
        return st.one_of(right, right, st.sampled_from(usual), st.sampled_from(usual), st.sampled_from(TEXTS))
    return st.sampled_from(TEXTS)


@st.composite
def _object(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """A few of the fields, and the required ones nearly always."""
    fields = schema.get("properties", {})
    if not fields:
        inner = schema.get("additionalProperties", {"type": "string"})
        return draw(st.dictionaries(st.sampled_from(["a", "b.c/d"]), objects(inner), max_size=2))
    chosen = set(draw(st.lists(st.sampled_from(sorted(fields)), max_size=5)))
    if draw(st.integers(0, 60)):
        chosen |= set(schema.get("required", ()))
    found = {name: draw(objects(fields[name])) for name in sorted(chosen)}
    if not draw(st.integers(0, 150)):
        found["unheardOf"] = 1
    return found
