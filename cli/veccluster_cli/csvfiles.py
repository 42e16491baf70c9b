"""CSV as vectors, line by line.

A cell is only text; what it means is decided for each column from its first rows, and holds for all of them: numbers
as JSON writes them (so 007 and what has more than 64 bits stay texts), true and false, or text. An empty cell is none.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from veccluster.client.arrays import Rows, make_rows
from veccluster.client.values import an_object, check, from_json
from veccluster.client.vectors import as_float32
from veccluster.errors import InvalidRequest
from veccluster_cli.columns import METADATA, Asked, Roles, merged, require_length, roles_of, vectors_from_texts

Meaning = Literal["number", "boolean", "text"]
Line = tuple[int, list[str]]
"""Its number, and the cells."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}


def rows_from_csv(data: IO[bytes], asked: Asked, delimiter: str, piece_rows: int) -> Iterator[Rows]:
    """The rows of a CSV file with a header, in pieces; InvalidRequest names the line that is wrong."""
    lines = _lines(data, delimiter)
    _, header = next(lines, (0, []))
    roles = roles_of(header, asked)
    if unknown := [name for name in asked.text if name not in header]:
        raise InvalidRequest.field("columns", f"there is no column {unknown[0]}, which --text-column names")
    meanings: Mapping[str, Meaning] | None = None
    dimension, first = None, 0
    while piece := _next_piece(lines, len(header), piece_rows):
        columns = {name: [cells[at] for _, cells in piece] for at, name in enumerate(header)}
        if meanings is None:
            meanings = {n: "text" if n in asked.text else meaning_of(columns[n]) for n in roles.fields}
        rows = _rows(piece, columns, roles, meanings, first, dimension)
        dimension, first = rows.vectors.shape[1], first + len(rows)
        yield rows


def meaning_of(cells: Sequence[str]) -> Meaning:
    """What all cells of a column are."""
    there = [cell for cell in cells if cell]
    if there and all(cell.lower() in _BOOLEANS for cell in there):
        return "boolean"
    return "number" if there and all(map(_is_number, there)) else "text"


def _is_number(cell: str) -> bool:
    if not _NUMBER.fullmatch(cell):
        return False
    try:
        check(from_json(cell, ""), "")
    except InvalidRequest:
        return False
    return True


def _lines(data: IO[bytes], delimiter: str) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.TextIOWrapper(data, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise InvalidRequest.field("file", f"must be text in UTF-8; after line {reader.line_num} it is not") from error
    except csv.Error as error:
        raise InvalidRequest.field(f"line {reader.line_num}", f"must be CSV: {error}") from error


def _next_piece(lines: Iterator[Line], width: int, size: int) -> list[Line]:
    piece: list[Line] = []
    for number, cells in lines:
        if len(cells) != width:
            raise InvalidRequest.field(f"line {number}", f"must have {width} cells as the header has, has {len(cells)}")
        piece.append((number, cells))
        if len(piece) == size:
            break
    return piece


def _rows(
    piece: Sequence[Line],
    columns: Mapping[str, Sequence[str]],
    roles: Roles,
    meanings: Mapping[str, Meaning],
    first: int,
    dimension: int | None,
) -> Rows:
    def name(row: int) -> str:
        return f"line {piece[row][0]}"

    if len(roles.vector) == 1:
        vectors = vectors_from_texts(columns[roles.vector[0]], name)
    else:
        vectors = _numbers(piece, columns, roles.vector)
    require_length(vectors, dimension, name)
    metadata = []
    for row, (number, _) in enumerate(piece):
        fields = {field: _value(columns[field][row], meanings[field], field, number) for field in roles.fields}
        text = columns[METADATA][row] if roles.objects else ""
        at = f"metadata of line {number}"
        metadata.append(merged(fields, an_object(from_json(text, at), at) if text else None, f"line {number}"))
    return make_rows(list(columns[roles.id]), vectors, metadata, first)


def _numbers(piece: Sequence[Line], columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> NDArray[np.float32]:
    try:
        return as_float32(np.array([columns[name] for name in names], dtype=np.float64).T, "vector")
    except (ValueError, InvalidRequest):
        for row, (number, _) in enumerate(piece):
            for name in names:
                _require_number(columns[name][row], f"line {number}", name)
        raise


def _require_number(cell: str, line: str, column: str) -> None:
    try:
        finite = bool(np.isfinite(np.float32(cell)))
    except ValueError:
        finite = False
    if not finite:
        said = f"{column} must be a finite float32 number to be part of the vector, is {cell!r}"
        raise InvalidRequest.field(line, said)


def _value(cell: str, meaning: Meaning, column: str, line: int) -> Any:
    if not cell:
        return None
    if meaning == "text":
        return cell
    if meaning == "boolean" and cell.lower() in _BOOLEANS:
        return _BOOLEANS[cell.lower()]
    if meaning == "number" and _is_number(cell):
        return from_json(cell, column)
    said = f"{column} must be a {meaning} as in the first lines, is {cell!r}"
    raise InvalidRequest.field(f"line {line}", f"{said}; --text-column {column} makes texts of all")
