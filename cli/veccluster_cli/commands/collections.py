"""`veccluster collections`: list, show, create, delete."""

from typing import Any

import click

from veccluster_cli.options import client_of, output_option, server_option, timeout_option, without_none
from veccluster_cli.output import Format, print_one, print_rows, remark, say

COLUMNS = (
    ("name", "NAME"),
    ("dimension", ">DIMENSION"),
    ("metric", "METRIC"),
    ("shards", ">SHARDS"),
    ("filterable", "FILTERABLE"),
)
SHARD_COLUMNS = (
    ("number", ">SHARD"),
    ("primary", "PRIMARY"),
    ("available", "AVAILABLE"),
    ("vectors", ">VECTORS"),
    ("indexed", ">INDEXED"),
    ("building", "BUILDING"),
    ("disk_bytes", ">DISK BYTES"),
    ("memory_bytes", ">MEMORY BYTES"),
)


@click.group()
def collections() -> None:
    """List, show, create and delete collections."""


@collections.command("list")
@server_option
@timeout_option
@output_option
def list_(servers: tuple[str, ...], timeout: float, form: Format) -> None:
    """List the collections."""
    with client_of(servers, timeout) as client:
        print_rows([c.details for c in client.collections()], COLUMNS, form)


@collections.command()
@click.argument("name")
@server_option
@timeout_option
@output_option
def show(name: str, servers: tuple[str, ...], timeout: float, form: Format) -> None:
    """Show everything about one collection."""
    with client_of(servers, timeout) as client:
        details = dict(client.collection(name).details)
    if form != "table":
        print_one(details, form)
        return
    shards = details.pop("shard_states", ())
    print_one(details, form)
    say()
    print_rows(shards, SHARD_COLUMNS, form)


@collections.command()
@click.argument("name")
@click.option("--dimension", type=int, required=True, help="How many numbers a vector has.")
@click.option("--metric", default="cosine", show_default=True, help="cosine, l2 or dot.")
@click.option("--shards", help="auto, or 1 to 128.")
@click.option("--replication-factor", type=int, help="Copies of each shard.")
@click.option("--min-in-sync", type=int, help="Copies that must have a write before it is acknowledged.")
@click.option("--m", type=int, help="Edges of each vertex of the index graph.")
@click.option("--ef-construction", type=int, help="How widely the graph is searched while it is built.")
@click.option("--ef-search", type=int, help="How widely the graph is searched, unless a search says otherwise.")
@click.option("--precision", help="Type of the vectors in the graph: f32, f16, bf16 or i8.")
@click.option("--filterable", multiple=True, metavar="FIELD", help="A metadata field to index; may be repeated.")
@click.option("--read-consistency", help="eventual, session, quorum or strong.")
@click.option("--write-consistency", help="one, quorum or all.")
@server_option
@timeout_option
@output_option
def create(name: str, servers: tuple[str, ...], timeout: float, form: Format, **asked: Any) -> None:
    """Create a collection; the same again is fine."""
    index = without_none({key: asked.pop(key) for key in ("m", "ef_construction", "ef_search", "precision")})
    shards = asked.pop("shards")
    filterable = list(asked.pop("filterable"))
    with client_of(servers, timeout) as client:
        info = client.create_collection(
            name,
            shards=int(shards) if shards and shards.isdecimal() else shards,
            index=index or None,
            filterable=filterable or None,
            **asked,
        )
    print_one(info.details, form)


@collections.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
@timeout_option
def delete(name: str, yes: bool, servers: tuple[str, ...], timeout: float) -> None:
    """Delete a collection with all its vectors."""
    with client_of(servers, timeout) as client:
        if not yes:
            count = client.count(name)
            click.confirm(f"Delete collection {name} with {count:,} vectors?", abort=True, err=True)
        client.delete_collection(name)
    remark(f"Deleted {name}.")
