"""YAML to JSON-like data, as strict as the API server's clients are: every mistake has its line.

YAML's own traps are closed: keys may not be given twice, dates and `1:30` are strings, tags and aliases are refused.
"""

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from veccluster.errors import InvalidSpec

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{t}" for t in ("null", "bool", "int", "float"))
_TEXT, _LIST, _MAP = (f"tag:yaml.org,2002:{t}" for t in ("str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """Knows JSON's types and no others."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases are not read here; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in (_NULL, _BOOL, _INT, _FLOAT, _TEXT, _LIST, _MAP, None)
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in (_NULL, _BOOL)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^([-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?|[-+]?[.](inf|Inf|INF)|[.](nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Iterator[Any]:
    """Each document that is not empty, as JSON-like data; `InvalidSpec` says where what cannot be read is."""
    try:
        for document in yaml.load_all(text, Loader=_Loader):
            if document is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise InvalidSpec.field(where, error.problem or "this is not YAML") from None
    except yaml.YAMLError as error:
        raise InvalidSpec.field("the file", f"this is not YAML: {error}") from None
    except (RecursionError, ValueError) as error:
        raise InvalidSpec.field("the file", f"this cannot be read: {error}") from None
