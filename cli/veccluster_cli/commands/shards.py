"""`veccluster shards`: what a person does about single shards."""

import click

from veccluster.client import Client, ShardRecovery
from veccluster.errors import RecoveryRefused
from veccluster_cli.options import client_of, output_option, server_option, timeout_option
from veccluster_cli.output import Format, print_one, print_rows, remark, say

COPY_COLUMNS = (
    ("node", "NODE"),
    ("role", "ROLE"),
    ("epoch", ">EPOCH"),
    ("seq", ">SEQ"),
    ("vectors", ">VECTORS"),
    ("written", "LAST WRITE"),
    ("problem", "PROBLEM"),
)
MISSING_COLUMNS = (("node", "MISSING NODE"), ("since", "SINCE"), ("why", "WHY"))


@click.group()
def shards() -> None:
    """Look after single shards."""


@shards.command()
@click.argument("collection")
@click.argument("number", metavar="SHARD", type=click.IntRange(min=0))
@click.option("--accept-data-loss", is_flag=True, help="Do it, after a confirmation.")
@click.option(
    "--confirm", metavar="COLLECTION/SHARD", help="With --accept-data-loss: do not ask; as one would type it."
)
@server_option
@timeout_option
@output_option
def recover(
    collection: str,
    number: int,
    accept_data_loss: bool,
    confirm: str | None,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
) -> None:
    """Go on with what is left of a shard whose other copies are gone for good.

    For a shard that says Lost quorum, when the nodes or disks that it misses will not come back; if they may, start
    them instead. Without --accept-data-loss nothing is changed: it shows every copy that can be reached, with which one
    the shard would go on, and what would be lost.
    """
    if confirm is not None and not accept_data_loss:
        raise click.UsageError("--confirm goes with --accept-data-loss.")
    with client_of(servers, timeout) as client:
        report = client.recover_shard(collection, number)
        if not accept_data_loss:
            _show(report, form)
            _say_how_to_go_on(report, f"{collection} {number}")
            return
        if report.refusal is not None:
            raise RecoveryRefused(f"shard {number} of collection {collection}: {report.refusal}")
        _show(_accepted(client, report, collection, number, confirm), form)
    remark(f"Accepted: shard {number} of {collection} goes on with what is left of it.")


def _accepted(
    client: Client, report: ShardRecovery, collection: str, number: int, confirm: str | None
) -> ShardRecovery:
    """What was done, once the person has said exactly what it is to be done to."""
    name = f"{collection}/{number}"
    if confirm is None:
        for line in report.losses:
            remark(f"- {line}")
        confirm = click.prompt(f"Type {name} to accept this", err=True)
    if confirm != name:
        raise click.UsageError(f"Nothing is changed: {confirm!r} is not {name!r}.")
    return client.recover_shard(collection, number, accept=report.expected)


def _show(report: ShardRecovery, form: Format) -> None:
    if form != "table":
        print_one(report.details, form)
        return
    print_rows(report.copies, COPY_COLUMNS, form)
    if report.missing:
        say()
        print_rows(report.missing, MISSING_COLUMNS, form)
    if report.then is not None:
        say()
        print_one(report.then, form)
    if report.losses:
        say()
        for line in report.losses:
            say(f"- {line}")


def _say_how_to_go_on(report: ShardRecovery, arguments: str) -> None:
    if report.refusal is not None:
        remark(f"There is nothing to accept: {report.refusal}.")
    else:
        remark(f"Nothing is changed. To accept this: veccluster shards recover {arguments} --accept-data-loss")
