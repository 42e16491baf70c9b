"""`veccluster up`, `down`, `status`, `logs`."""

import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from veccluster.client import ClusterInfo
from veccluster.errors import InvalidSpec, Unreachable
from veccluster.model.spec import VecCluster, parse_vecclusters
from veccluster_cli.local import runtime
from veccluster_cli.local.state import Desired, StateDirectory, Status, default_directory, known_directories
from veccluster_cli.options import client_of, directory_option, output_option, program, server_option, the_directory
from veccluster_cli.output import Format, flushed, make_console, print_one, print_rows, remark, say, shown

LOG_LINES = 20


@click.command()
@click.option("-f", "--file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@directory_option
@click.option("--port", type=click.IntRange(1, 65_000), help="Port of the first node; default 8001, or as before.")
@click.option("--timeout", type=click.FloatRange(min=1), default=90.0, show_default=True, help="Seconds to wait.")
def up(file: Path, data_dir: Path | None, port: int | None, timeout: float) -> None:
    """Run the cluster of a VecCluster file on this machine, or apply a changed file.

    Starts an etcd and the nodes as processes that stay until `veccluster down`, and waits until the cluster is healthy.
    A cluster that runs and cannot become healthy by itself stays, with the reasons in words; the exit code is 0 then,
    too, and `veccluster status` says how it is.
    """
    cluster = read_cluster(file)
    directory = StateDirectory(data_dir.resolve()) if data_dir else default_directory(cluster.metadata.name)
    with runtime.starting(directory, cluster, port=port, say=remark) as desired:
        reached = show_start(directory, desired, timeout)
    with suppress(BrokenPipeError):  # it runs; whoever read this needs no more of it
        _say_how_to_go_on(directory, desired, reached, named=data_dir is not None)
    flushed(sys.stdout)


@click.command()
@click.argument("name", required=False)
@directory_option
@click.option("--delete-data", is_flag=True, help="Delete everything that the cluster stored, too.")
@click.option("--yes", is_flag=True, help="With --delete-data: do not ask.")
def down(name: str | None, data_dir: Path | None, delete_data: bool, yes: bool) -> None:
    """Stop a local cluster. Its data stays, unless --delete-data is given."""
    directory = the_directory(data_dir, name)
    if not delete_data:
        stopped = runtime.down(directory)
        remark(f"{directory.path.name} is stopped." if stopped else f"{directory.path.name} was not running.")
        remark(f"Its data is kept in {directory.path}; `veccluster up` goes on from there.")
        return
    if not yes:
        click.confirm(f"Delete everything that the cluster stored in {directory.path}?", abort=True, err=True)
    left = runtime.delete(directory)
    remark(f"Stopped {directory.path.name}, and deleted what it had stored in {directory.path}.")
    for path in left:
        remark(f"{path} is left: it is, or is behind, a link to {path.resolve()}.")


@click.command()
@server_option
@directory_option
@click.option("--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds to wait.")
@output_option
def status(servers: tuple[str, ...], data_dir: Path | None, timeout: float, form: Format) -> None:
    """Show the health of a cluster: nodes, shards and issues in words.

    Of a local cluster whose nodes do not answer, the processes are shown instead.
    """
    local = the_directory(data_dir, None) if data_dir or (not servers and known_directories()) else None
    desired = local.desired() if local else None
    if local and not local.supervised():
        raise Unreachable(f"{local.path.name} is stopped; `veccluster up -f FILE` starts it.")
    try:
        with client_of(servers or tuple(desired.servers if desired else ()), timeout) as client:
            info = client.cluster()
    except Unreachable:
        if local:
            _print_processes(local, form)
        raise
    print_cluster(info, form)


@click.command()
@click.argument("process", required=False)
@directory_option
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=LOG_LINES, show_default=True, help="How many lines of each."
)
def logs(process: str | None, data_dir: Path | None, lines: int) -> None:
    """Show the last lines of a local cluster's logs: of all its processes, or of one (demo-0, etcd-0, supervisor)."""
    directory = the_directory(data_dir, None)
    files = sorted(directory.log_of("*").parent.glob("*.log"))
    known = [file.stem for file in files]
    if process is not None and process not in known:
        raise click.UsageError(f"There is no log of {process}; there are logs of {', '.join(known) or 'nothing'}.")
    for file in files:
        if process in {None, file.stem}:
            _print_tail(file, lines, titled=process is None)


def read_cluster(file: Path) -> VecCluster:
    """The one VecCluster of a file; InvalidSpec says what is wrong with it."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{file} is not a text in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        found = parse_vecclusters(text)
    except InvalidSpec as error:
        raise InvalidSpec(f"{file}: {error.detail}", error.errors) from error
    if len(found) != 1:
        names = ", ".join(cluster.metadata.name for cluster in found)
        raise InvalidSpec(f"{file} holds {len(found)} VecClusters ({names}); `veccluster up` takes a file with one.")
    return found[0]


def show_start(directory: StateDirectory, desired: Desired, timeout: float) -> runtime.Step:
    """Wait until the cluster is healthy, and say how far it is: on one line of a terminal, or line by line.

    Returns how far it came: healthy, or running with issues.
    """
    console = make_console(stderr=True)
    step = runtime.Step(0, 0, "")
    steps = runtime.wait_until_healthy(directory, desired, timeout)
    if not console.is_terminal:
        for step in steps:
            remark(_progress_line(desired, step))
        return step
    with console.status(Text(f"Starting {desired.name}")) as line:
        for step in steps:
            line.update(Text(shown(_progress_line(desired, step))))
    return step


def _progress_line(desired: Desired, step: runtime.Step) -> str:
    return f"{desired.name}: {step.done} of {step.total} processes ready; {step.text}"


def etcd_line(desired: Desired) -> str:
    """Which etcd the cluster uses, and what is to be known about it."""
    if desired.etcd is None:
        return f"etcd at {', '.join(desired.endpoints)}"
    members = f", {len(desired.members)} members" if len(desired.members) > 1 else ""
    note = desired.etcd.note
    return f"etcd {desired.etcd.version_text}{members}" + (f" ({note})" if note else "")


def print_cluster(info: ClusterInfo, form: Format) -> None:
    """A cluster's health, nodes and shards."""
    if form != "table":
        print_one(info.details, form)
        return
    shards = info.shards
    not_well = [f"{n} {what}" for n, what in _troubles(info) if n]
    print_one(
        {
            "Health": info.health,
            "Leader": info.leader or "none",
            "Shards": f"{shards.total}" + (f" ({', '.join(not_well)})" if not_well else ""),
            "Vectors": "unknown" if info.vectors is None else f"{info.vectors:,}",
            "Version": info.version,
        },
        form,
    )
    columns = (("id", "NODE"), ("address", "ADDRESS"), ("zone", "ZONE"), ("state", "STATE"))
    say()
    rows = [{"id": n.id, "address": n.address, "zone": n.zone or None, "state": n.state} for n in info.nodes]
    print_rows(rows, columns, form)
    if info.issues:
        _say_issues(info.issues)


def _troubles(info: ClusterInfo) -> tuple[tuple[int, str], ...]:
    shards = info.shards
    return (
        (shards.unavailable, "unavailable"),
        (shards.under_replicated, "under-replicated"),
        (shards.moving, "moving"),
    )


def _print_processes(directory: StateDirectory, form: Format) -> None:
    """What the supervisor sees."""
    status = directory.status()
    if status is None:
        return
    columns = (
        ("name", "PROCESS"),
        ("phase", "STATE"),
        ("address", "ADDRESS"),
        ("starts", ">STARTS"),
        ("message", "LAST WORDS"),
    )
    print_rows(_process_rows(status), columns, form)


def _process_rows(status: Status) -> list[dict[str, Any]]:
    return [
        {
            "name": p.name,
            "phase": "given up" if p.given_up else str(p.phase),
            "address": p.address,
            "starts": p.starts,
            "message": p.message or None,
        }
        for p in status.processes
    ]


def _print_tail(file: Path, lines: int, *, titled: bool) -> None:
    if titled:
        say(f"==> {file} <==")
    with file.open(encoding="utf-8", errors="replace") as log:
        for line in deque(log, maxlen=lines):
            click.echo(line, nl=False)
    if titled:
        say()


def _say_how_to_go_on(directory: StateDirectory, desired: Desired, reached: runtime.Step, *, named: bool) -> None:
    where = f' --data-dir "{directory.path}"' if named else ""
    server = f" --server {desired.servers[0]}" if named else ""
    count = len(desired.node_ports)
    say(f"{desired.name} is {reached.text}: {count} node{'s' if count > 1 else ''} at {', '.join(desired.servers)}")
    say(f"with {etcd_line(desired)}; state and logs in {directory.path}")
    if reached.issues:
        _say_issues(reached.issues)
    say()
    say("Go on with")
    say(f"  {program()} status{where}")
    say(f"  {program()} collections create words --dimension 384{server}")
    say(f"  {program()} down{where}")


def _say_issues(issues: Iterable[str]) -> None:
    say()
    say("Issues:")
    for issue in issues:
        say(f"  {issue}")
