"""`veccluster upsert`, `search`, `get`, `delete`, `count`."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from veccluster.client import Client
from veccluster.errors import InvalidRequest
from veccluster_cli import files
from veccluster_cli.options import (
    FILTER,
    METADATA,
    VECTOR,
    client_of,
    filter_option,
    output_option,
    server_option,
    timeout_option,
)
from veccluster_cli.output import Format, print_one, print_rows, remark, say

READ_LEVELS = click.Choice(["eventual", "session", "quorum", "strong"])
consistency_option = click.option(
    "--consistency",
    type=READ_LEVELS,
    help="The read's level. Each command is a session of its own: only strong shows for certain what an earlier one "
    "wrote.",
)
INCLUDES = click.Choice(["metadata", "vector"])


@click.command()
@click.argument("collection")
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path), required=False)
@click.option("--id", "id_", metavar="ID", help="Instead of FILE: the id of one vector.")
@click.option("--vector", type=VECTOR, help="With --id: the vector.")
@click.option("--metadata", type=METADATA, help="With --id: its metadata.")
@click.option("--atomic", is_flag=True, help="All of the file or nothing.")
@server_option
@timeout_option
@output_option
def upsert(
    collection: str,
    file: Path | None,
    id_: str | None,
    vector: list[float] | None,
    metadata: dict[str, Any] | None,
    atomic: bool,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
) -> None:
    """Store vectors, in place of what their ids held.

    FILE holds one {"id", "vector", "metadata"} a line, or is a JSON list of them; - is standard input. For many vectors
    `veccluster import` is faster.
    """
    if (file is None) == (id_ is None) or (id_ is not None) != (vector is not None):
        raise click.UsageError("Give a FILE, or --id with --vector.")
    if file is not None:
        items = files.read_items(file)
    else:
        items = [{"id": id_, "vector": vector} | ({} if metadata is None else {"metadata": metadata})]
    with client_of(servers, timeout) as client:
        done = client.upsert_items(collection, items, atomic=atomic)
    print_one({"upserted": done.upserted}, form)


@click.command()
@click.argument("collection")
@click.option("--vector", type=VECTOR, help="The query, as '[0.1, 0.2, ...]'.")
@click.option("--file", type=click.Path(allow_dash=True, path_type=Path), help="Queries from a .npy or JSON file.")
@click.option("--like", metavar="ID", help="Search with the vector that is stored under this id.")
@click.option("-k", default=10, show_default=True, help="How many neighbours.")
@filter_option
@click.option("--include", multiple=True, type=INCLUDES, default=["metadata"], show_default=True)
@click.option("--ef", type=int, help="How widely the graph is searched.")
@click.option("--exact", is_flag=True, help="Look at every vector instead of the graph.")
@consistency_option
@click.option("--allow-partial", is_flag=True, help="Answer even if shards are unavailable.")
@server_option
@timeout_option
@output_option
def search(
    collection: str,
    vector: list[float] | None,
    file: Path | None,
    like: str | None,
    filter_: dict[str, Any] | None,
    include: tuple[str, ...],
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
    **options: Any,
) -> None:
    """Find the nearest neighbours of a vector, of a file of vectors, or of a stored vector."""
    if sum(given is not None for given in (vector, file, like)) != 1:
        raise click.UsageError("Give one of --vector, --file and --like.")
    with client_of(servers, timeout) as client:
        queries = _queries(client, collection, vector, file, like, options["consistency"])
        found = client.search_many(collection, queries, filter=filter_, include=include, **options)
    many = len(queries) > 1
    rows = [
        {"query": number} | _hit(hit, include) if many else _hit(hit, include)
        for number, result in enumerate(found)
        for hit in result
    ]
    columns = [
        ("id", "ID"),
        ("distance", ">DISTANCE"),
        ("score", ">SCORE"),
        *((name, name.upper()) for name in include),
    ]
    print_rows(rows, [("query", ">QUERY"), *columns] if many else columns, form)
    if found.partial:
        remark(f"Partial: these shards did not answer: {', '.join(map(str, found.missing_shards))}")


@click.command()
@click.argument("collection")
@click.argument("id_", metavar="ID")
@consistency_option
@server_option
@timeout_option
@output_option
def get(
    collection: str, id_: str, consistency: str | None, servers: tuple[str, ...], timeout: float, form: Format
) -> None:
    """Show one vector."""
    with client_of(servers, timeout) as client:
        found = client.get(collection, id_, consistency=consistency)
    print_one({"id": found.id, "metadata": found.metadata, "vector": found.vector}, form)


@click.command()
@click.argument("collection")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--filter", "filter_", type=FILTER, help="Instead of ids: delete what matches.")
@click.option("--yes", is_flag=True, help="With --filter: do not ask.")
@server_option
@timeout_option
@output_option
def delete(
    collection: str,
    ids: tuple[str, ...],
    filter_: dict[str, Any] | None,
    yes: bool,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
) -> None:
    """Delete vectors by ids, or by a filter."""
    if bool(ids) == (filter_ is not None):
        raise click.UsageError("Give ids, or --filter.")
    with client_of(servers, timeout) as client:
        if filter_ is not None and not yes:
            count = client.count(collection, filter=filter_)
            click.confirm(f"Delete {count:,} vectors of {collection}?", abort=True, err=True)
        done = client.delete(collection, list(ids) or None, filter=filter_)
    print_one({"deleted": done.deleted}, form)


@click.command()
@click.argument("collection")
@filter_option
@consistency_option
@server_option
@timeout_option
@output_option
def count(
    collection: str,
    filter_: dict[str, Any] | None,
    consistency: str | None,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
) -> None:
    """Count the vectors."""
    with client_of(servers, timeout) as client:
        found = client.count(collection, filter=filter_, consistency=consistency)
    if form == "table":
        say(str(found))
    else:
        print_one({"count": found}, form)


def _queries(
    client: Client,
    collection: str,
    vector: list[float] | None,
    file: Path | None,
    like: str | None,
    consistency: str | None,
) -> np.ndarray[Any, Any]:
    """The query vectors, float32 (q, d)."""
    if like is not None:
        return client.get(collection, like, consistency=consistency).vector[np.newaxis]
    if file is not None:
        queries = files.read_vectors(file)
        dimension = client.collection(collection).dimension
        if queries.shape[1] != dimension:
            raise InvalidRequest.field(str(file), f"must hold vectors of {dimension} numbers, has {queries.shape[1]}")
        return queries
    return files.as_queries(vector)


def _hit(hit: Any, include: tuple[str, ...]) -> dict[str, Any]:
    found = {"id": hit.id, "distance": hit.distance, "score": hit.score}
    return found | {name: getattr(hit, name) for name in include}
