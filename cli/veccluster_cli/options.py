"""Options that several commands share, and how a command finds its cluster."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from veccluster.client.values import check, from_json
from veccluster.errors import InvalidRequest, Unreachable
from veccluster_cli.local.ownership import is_clusters
from veccluster_cli.local.state import StateDirectory, known_directories
from veccluster_cli.reaching import TellingClient

F = TypeVar("F", bound=Callable[..., Any])

SERVER_VARIABLE = "VECCLUSTER_SERVER"


class JsonType(click.ParamType[Any]):
    """An argument that is JSON text."""

    name = "JSON"

    def __init__(self, kind: type = object, like: str = "") -> None:
        self._kind = kind
        self._like = like

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; a usage error says what is wrong and shows an example."""
        if not isinstance(value, str):
            return value
        try:
            parsed = from_json(value.encode("utf-8", "surrogateescape"), "")
        except InvalidRequest as error:
            reason = error.errors[0]["reason"].removeprefix("must be JSON: ")
            self.fail(f"must be JSON like {self._like}: {reason}", param, ctx)
        try:
            check(parsed, "")
        except InvalidRequest as error:
            at = error.errors[0]["field"].removeprefix(".")
            self.fail(f"{at} {error.errors[0]['reason']}" if at else error.errors[0]["reason"], param, ctx)
        if not isinstance(parsed, self._kind):
            self.fail(f"must be JSON like {self._like}", param, ctx)
        return parsed


FILTER = JsonType(dict, """'{"pos": "n"}'""")
VECTOR = JsonType(list, "'[0.1, 0.2, ...]'")
METADATA = JsonType(dict, """'{"colour": "red"}'""")


def server_option(command: F) -> F:
    """`--server`, as `servers`."""
    return click.option(
        "--server",
        "servers",
        metavar="URL",
        multiple=True,
        envvar=SERVER_VARIABLE,
        help=f"Address of the cluster; may be repeated. Default: ${SERVER_VARIABLE}, or the cluster that runs here.",
    )(command)


def output_option(command: F) -> F:
    """`-o`, as `form`."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="What to print: a table for people, JSON or YAML for machines.",
    )(command)


def timeout_option(command: F) -> F:
    """`--timeout`, as `timeout`."""
    return click.option(
        "--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds for each request."
    )(command)


def filter_option(command: F) -> F:
    """`--filter`, as `filter_`."""
    return click.option("--filter", "filter_", type=FILTER, help="""Only what matches, as '{"pos": "n"}'.""")(command)


def directory_option(command: F) -> F:
    """`--data-dir`, as `data_dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where the local cluster keeps its state. Default: ./.veccluster/NAME.",
    )(command)


def client_of(servers: tuple[str, ...], timeout: float = 30.0) -> TellingClient:
    """A client of the cluster that was named, or of the one that runs here; Unreachable when there is neither."""
    return TellingClient(servers or running_servers(), timeout=timeout)


def running_servers() -> list[str]:
    """The addresses of the only local cluster that runs in this directory or above."""
    running = [directory for directory in known_directories() if directory.supervised()]
    if not running:
        raise Unreachable(
            "No cluster runs here. Start one with `veccluster up -f FILE`, or name one with --server "
            f"or {SERVER_VARIABLE}."
        )
    if len(running) > 1:
        names = ", ".join(_address_of(directory) for directory in running)
        raise click.UsageError(f"Several clusters run here ({names}): choose one with --server.")
    desired = running[0].desired()
    assert desired is not None
    return desired.servers


def the_directory(data_dir: Path | None, name: str | None) -> StateDirectory:
    """The local cluster that a command is about; a usage error says how to choose when that is not clear."""
    if data_dir is not None:
        return _named_directory(StateDirectory(data_dir.resolve()), name)
    known = known_directories()
    chosen = [d for d in known if name is None or d.path.name == name]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        what = f"No cluster named {name} is" if name else "No cluster is"
        raise click.UsageError(f"{what} kept in this directory or above; --data-dir says where else to look.")
    raise click.UsageError(f"Several clusters are kept here: name one of {', '.join(d.path.name for d in known)}.")


def _named_directory(directory: StateDirectory, name: str | None) -> StateDirectory:
    if not is_clusters(directory):
        raise click.UsageError(f"There is no cluster in {directory.path}.")
    desired = directory.desired()
    if name is not None and (desired is None or desired.name != name):
        there = f"one named {desired.name}" if desired else "one that never started"
        raise click.UsageError(f"There is no cluster named {name} in {directory.path}, but {there}.")
    return directory


def program() -> str:
    """What a person types to run this program: its path when it is not on PATH."""
    if shutil.which("veccluster"):
        return "veccluster"
    path = str(Path(sysconfig.get_path("scripts")) / "veccluster")
    return min(path, os.path.relpath(path), key=len)


def _address_of(directory: StateDirectory) -> str:
    desired = directory.desired()
    return f"{directory.path.name} at {desired.servers[0]}" if desired else directory.path.name


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The members that are set."""
    return {key: value for key, value in values.items() if value is not None}
