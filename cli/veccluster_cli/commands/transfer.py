"""`veccluster export` and `import`."""

from pathlib import Path
from typing import Any

import click

from veccluster_cli import files
from veccluster_cli.options import client_of, filter_option, output_option, server_option, timeout_option, without_none
from veccluster_cli.output import Format, print_one, progress_bar, remark


@click.command("export")
@click.argument("collection")
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["ndjson", "arrow"]), help="Default: from the file's name, or ndjson."
)
@filter_option
@server_option
@timeout_option
def export_(
    collection: str,
    file: Path,
    kind: files.Kind | None,
    filter_: dict[str, Any] | None,
    servers: tuple[str, ...],
    timeout: float,
) -> None:
    """Write a collection's vectors to a file (.ndjson or .arrow); - is standard output.

    `veccluster import` of the file gives the same collection again. What is written meanwhile may or may not be in it.
    """
    with client_of(servers, timeout) as client:
        info = client.collection(collection)
        total = client.count(collection, filter=filter_)
        with progress_bar(f"Exporting {collection}", total) as bar:
            vectors = client.iterate(collection, filter=filter_)
            done = files.write(file, kind or files.kind_of(file), info, vectors, lambda rows: bar.update(rows))
    remark(f"Exported {done:,} vectors of {collection} to {'standard output' if str(file) == '-' else file}.")


@click.command("import")
@click.argument("collection")
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["ndjson", "arrow"]), help="Default: from the file's name, or ndjson."
)
@click.option("--create", is_flag=True, help="Create the collection first, as the file says.")
@click.option("--metric", help="With --create: cosine, l2 or dot, if the file does not say.")
@server_option
@timeout_option
@output_option
def import_(
    collection: str,
    file: Path,
    kind: files.Kind | None,
    create: bool,
    metric: str | None,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
) -> None:
    """Store all vectors of a file (.ndjson or .arrow, as `veccluster export` writes them); - is standard input."""
    with client_of(servers, timeout) as client, files.open_source(file, kind or files.kind_of(file)) as source:
        if create:
            settings = {**source.settings, **without_none({"metric": metric})}
            client.create_collection(collection, source.dimension, **settings)
        with progress_bar(f"Importing into {collection}") as bar:
            done = client.upload(collection, source.rows, progress=lambda p: bar.update(p.done))
    print_one({"upserted": done.upserted}, form)
