"""`veccluster`: the command line.

Errors are one clear line on stderr and an exit code (`EXIT_HELP`); a traceback is only ever shown for a defect, and
when asked for.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

import click
from click.shell_completion import get_completion_class

from veccluster.errors import InvalidRequest, InvalidSpec, NotFound, OutcomeUnknown, Unreachable, VecClusterError
from veccluster_cli.local import LocalFailure
from veccluster_cli.output import flushed, remark
from veccluster_cli.utf8 import TEXT

PROGRAM = "veccluster"
DEBUG_VARIABLE = "VECCLUSTER_DEBUG"
EXIT_CODES: tuple[tuple[type[VecClusterError], int], ...] = (
    (InvalidSpec, 2),
    (Unreachable, 3),
    (NotFound, 4),
    (OutcomeUnknown, 5),
    (LocalFailure, 6),
    (VecClusterError, 1),
)
DEFECT, INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 70, 130, 141, 143
SHOWN_ERRORS = 10

EXIT_HELP = """\b
Exit codes:
  0    done; `up`: all runs, and was said to be healthy or why not
  1    the cluster answered with an error
  2    the command or a file is wrong
  3    no address of the cluster answers
  4    no such collection or vector
  5    a write was sent and no answer came: its outcome is unknown
  6    the local runtime cannot do it on this machine
  70   a defect of this program
  130  interrupted
  141  whoever reads the output has closed it
  143  terminated"""


COMMANDS = {
    "up": "cluster:up",
    "down": "cluster:down",
    "status": "cluster:status",
    "logs": "cluster:logs",
    "collections": "collections:collections",
    "shards": "shards:shards",
    "upsert": "vectors:upsert",
    "search": "vectors:search",
    "get": "vectors:get",
    "delete": "vectors:delete",
    "count": "vectors:count",
    "export": "transfer:export_",
    "import": "transfer:import_",
}
"""Where each command is: its module under `veccluster_cli.commands`, and its name there."""


class LazyGroup(click.Group):
    """Loads the module of a command when that command is used, so that each waits only for what it needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one would learn them."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, if there is one."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"veccluster_cli.commands.{module}"), attribute)
        _take_only_utf8(command)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """The context; help is printed here."""
        with _closed_output():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _closed_output():
            return super().invoke(ctx)


class _OutputClosed(BaseException):
    """Whoever reads the output has closed it."""


@contextmanager
def _closed_output() -> Iterator[None]:
    """Tell a pipe that nobody reads from other errors of the system, before click takes it for one."""
    try:
        yield
    except BrokenPipeError as error:
        raise _OutputClosed from error


def _take_only_utf8(command: click.Command) -> None:
    """Have each text that a command takes refused if it is none; the names of files may be any bytes."""
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = TEXT
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _take_only_utf8(inner)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_HELP)
@click.version_option(package_name="veccluster", prog_name=PROGRAM)
def cli() -> None:
    """VecCluster: a distributed vector database.

    `up`, `down`, `status` and `logs` run a cluster on this machine from a VecCluster file; the other commands work with
    the data of any cluster: the one that runs here, or one named with --server.
    """


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands: source <(veccluster completion bash)."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end, in ./.veccluster/demo.")
def demo(keep: bool) -> None:
    """Watch a three-node cluster answer questions about 12,000 real word embeddings."""
    from veccluster_cli import demo as show  # only the demo needs what it imports

    show.run(keep=keep)


def main() -> None:
    """Run the command line; every error becomes one clear line and an exit code."""
    _prepare_streams()
    with _terminated_as_interrupted():
        code = _run(lambda: cli.main(prog_name=PROGRAM, standalone_mode=False))
    flushed(sys.stderr)
    sys.exit(code if flushed(sys.stdout) or code else OUTPUT_CLOSED)


def _prepare_streams() -> None:
    """Have output that goes nowhere, or that the reader's encoding cannot express, be no error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as the process
        if mode == "w" and isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM end what is under way as Ctrl-C does, so that everything is cleaned up and said."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """SIGTERM: what is under way is ended as an interrupt ends it."""


def _run(work: Callable[[], object]) -> int:
    try:
        code = work()
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        remark("Interrupted.")
        return INTERRUPTED
    except _Terminated:
        remark("Terminated.")
        return TERMINATED
    except _OutputClosed:
        return OUTPUT_CLOSED
    except VecClusterError as error:
        _explain(error)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except OSError as error:
        remark(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    except Exception as error:
        if DEBUG_VARIABLE in os.environ:
            raise
        remark(f"Error: {type(error).__name__}: {error}. This is a defect; {DEBUG_VARIABLE}=1 shows where.")
        return DEFECT
    return _code_of(code)


def _code_of(code: object) -> int:
    return code if isinstance(code, int) else 0


def _explain(error: VecClusterError) -> None:
    """One line, and one more for each field that is wrong when there are several."""
    errors = error.errors if isinstance(error, InvalidRequest) else ()
    if len(errors) < 2:
        remark(f"Error: {error.detail}")
        return
    remark(f"Error: {error.title}: {len(errors)} things are wrong")
    for item in errors[:SHOWN_ERRORS]:
        place = f"item {item['index']}: " if "index" in item else ""
        field = f"{item['field']}: " if item.get("field") else ""  # empty: it is about all of it
        remark(f"  {place}{field}{item.get('reason')}")
    if len(errors) > SHOWN_ERRORS:
        remark(f"  and {len(errors) - SHOWN_ERRORS} more")


if __name__ == "__main__":
    main()
