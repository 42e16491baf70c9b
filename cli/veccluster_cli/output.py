"""What a command prints: a table for people, JSON or YAML for machines; progress and remarks go to stderr.

Colours, bars and the like appear on a terminal only; in a pipe there are plain lines of any width. What users and nodes
say is shown as it is: nothing in it is markup or the name of a picture, and what would move a cursor is escaped.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

import orjson
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Format = Literal["table", "json", "yaml"]
Column = tuple[str, str]
"""Key in the row, and title; a title that begins with ">" is aligned to the right."""

_PIPE_WIDTH = 1_000_000
"""Lines in a pipe are never folded or cut."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let it be seen; the library would end the process."""
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    """A console that writes plain text, of any width, when it is not a terminal; text is shown as it is."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def shown(text: str) -> str:
    """The text on one line, with escapes for what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def remark(text: str) -> None:
    """Tell a person something that is not the result; where nobody listens, that is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(shown(text) + "\n")
    flushed(sys.stderr)


def flushed(stream: TextIO) -> bool:
    """Whether all that was written has gone out; what cannot is forgotten, since Python would complain at its end."""
    try:
        stream.flush()
    except ValueError:  # closed
        return True
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()
        return False
    return True


def say(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(shown(text) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: numpy arrays become lists."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], form: Format) -> None:
    """Many things: a table of the columns, or everything that is known as a list."""
    found = list(rows)
    if form != "table":
        _print_data(found, form)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for _, title in columns:
        table.add_column(title.lstrip(">"), justify="right" if title.startswith(">") else "left", overflow="fold")
    for row in found:
        table.add_row(*(_cell(row.get(key)) for key, _ in columns))
    _print_table(table)


def print_one(thing: Mapping[str, Any], form: Format) -> None:
    """One thing: a line for each member, or everything as an object."""
    if form != "table":
        _print_data(thing, form)
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in thing.items():
        table.add_row(Text(shown(key)), _cell(value))
    _print_table(table)


def _print_table(table: Table) -> None:
    console = make_console()
    with console.capture() as drawn:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in drawn.get().splitlines())


def _print_data(value: Any, form: Format) -> None:
    if form == "json":
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2).decode()
    else:
        text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=120).rstrip("\n")
    sys.stdout.write(text + "\n")


def _cell(value: Any) -> Text:
    """A value in a table."""
    match value:
        case None:
            text = "-"
        case str():
            text = value
        case float():
            text = f"{value:.4f}"
        case _:
            text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return Text(shown(text))


class Bar:
    """A progress bar of one long piece of work; silent unless stderr is a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int | None = None, text: str | None = None) -> None:
        """Where the work is now; None leaves what was said before."""
        changes: dict[str, Any] = {"total": total, "description": text}
        self._progress.update(self._task, completed=done, **{k: v for k, v in changes.items() if v is not None})


@contextmanager
def progress_bar(text: str, total: int | None = None, *, console: Console | None = None) -> Iterator[Bar]:
    """A bar for the time of the block."""
    console = console or make_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(text, total=total))
