"""docs/http.md lists every route, problem and limit that there is, with its number."""

import re
from dataclasses import fields
from pathlib import Path

from veccluster import errors
from veccluster.model import limits
from veccluster.model.limits import DEFAULTS
from veccluster.model.spec import Tuning
from veccluster_node.http import problems
from veccluster_node.http.openapi import ROUTES

TEXT = (Path(__file__).parent.parent / "docs" / "http.md").read_text(encoding="utf-8")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


def rows(heading: str) -> list[list[str]]:
    """The cells of the last table of a section."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = section.split("| --- |")[-1].splitlines()[1:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]


def test_every_route_is_listed() -> None:
    listed = re.findall(r"^    ([A-Z]+) +(/\S+)", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(ROUTES)


def test_every_problem_is_listed_with_its_status() -> None:
    elsewhere = {errors.Unreachable, errors.InvalidSpec}  # of the client, and of files
    kinds = {e for e in errors._all_types(errors.VecClusterError) if e.__module__ == errors.__name__} - elsewhere
    expected = {(kind.slug, str(kind.status)) for kind in kinds} | {(problems._Refused.slug, "417")}
    assert {(slug, status) for slug, status, _ in rows("Errors")} == expected


def test_every_limit_is_listed_with_its_default() -> None:
    source = Path(limits.__file__).read_text(encoding="utf-8").split("class Limits:")[1]
    settings = dict(re.findall(r'    (\w+): int = [^\n]+\n    """`(max\w+)`:', source))
    assert set(settings.values()) < {f.alias for f in Tuning.model_fields.values()}
    expected = [(settings.get(f.name, ""), getattr(DEFAULTS, f.name)) for f in fields(DEFAULTS)]
    assert [(setting, number(default)) for setting, default, _ in rows("Limits")] == expected
    assert f"`maxConnections` connections ({Tuning().max_connections})" in TEXT


def number(text: str) -> int:
    digits, _, unit = text.replace(",", "").partition(" ")
    return int(digits) * UNITS.get(unit, 1)
