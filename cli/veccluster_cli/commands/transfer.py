"""`veccluster export` and `import`."""

from pathlib import Path
from typing import Any

import click

from veccluster.errors import InvalidRequest, NotFound, VecClusterError
from veccluster_cli import files, sources
from veccluster_cli.columns import Asked
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
    kind: sources.Kind | None,
    filter_: dict[str, Any] | None,
    servers: tuple[str, ...],
    timeout: float,
) -> None:
    """Write a collection's vectors to a file (.ndjson or .arrow, also with .gz); - is standard output.

    `veccluster import` of the file gives the same collection again. What is written meanwhile may or may not be in it.
    A file appears, in place of what had its name, when all is in it; a pipe or a device is written to.
    """
    kind = kind or files.export_kind(file)
    with client_of(servers, timeout) as client:
        info = client.collection(collection)
        total = client.count(collection, filter=filter_)
        with progress_bar(f"Exporting {collection}", total) as bar:
            vectors = client.iterate(collection, filter=filter_)
            done = files.write(file, kind, info, vectors, lambda rows: bar.update(rows))
    remark(f"Exported {done:,} vectors of {collection} to {'standard output' if str(file) == '-' else file}.")


@click.command("import")
@click.argument("collection")
@click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["ndjson", "csv", "parquet", "arrow", "npy"]),
    help="Default: from the file's name, or ndjson.",
)
@click.option("--create", is_flag=True, help="Create the collection first, as the file says.")
@click.option("--metric", help="With --create: cosine, l2 or dot, if the file does not say.")
@click.option("--id-column", metavar="NAME", help="The column with the ids; default id.")
@click.option(
    "--vector-column",
    "vector_columns",
    metavar="NAME",
    multiple=True,
    help="The column with the vectors; or those with one number each, as a pattern (v*) or repeated. Default vector.",
)
@click.option(
    "--text-column", "text_columns", metavar="NAME", multiple=True, help="CSV: a column that is text; may be repeated."
)
@click.option("--delimiter", metavar="CHARACTER", help="CSV: what is between cells; default a comma, in .tsv a tab.")
@click.option("--ids", type=click.Path(path_type=Path, exists=True), help=".npy: a file with an id a line.")
@server_option
@timeout_option
@output_option
def import_(
    collection: str,
    file: Path,
    kind: sources.Kind | None,
    create: bool,
    metric: str | None,
    ids: Path | None,
    delimiter: str | None,
    servers: tuple[str, ...],
    timeout: float,
    form: Format,
    **columns: Any,
) -> None:
    """Store all vectors of a file, in place of what their ids held; - is standard input.

    \b
    NDJSON   .ndjson .jsonl   {"id": "a", "vector": [0.1, 0.2], "metadata": {"n": 1}} a line
    CSV      .csv .tsv        a header, and a column id; a column vector with JSON lists
                              as "[0.1, 0.2]", or columns of numbers (--vector-column)
    Parquet  .parquet         as CSV; vectors are lists of numbers
    Arrow    .arrow .feather  as Parquet; a stream or a file, as `veccluster export` writes it
    NumPy    .npy             a vector a row; the ids are the numbers of the rows, from 0 on, or --ids

    The other columns become fields of the metadata, and a column metadata holds whole objects, as JSON. A file
    can be imported again: what is stored already is replaced. NDJSON, CSV and streams of Arrow may be packed (.gz).
    """
    kind = kind or sources.kind_of(file)
    asked = _asked(kind, delimiter, ids, **columns)
    stored = 0
    with client_of(servers, timeout) as client:
        try:
            with sources.opened(file, kind, asked, delimiter=delimiter, ids=ids) as source:
                if create:
                    settings = {**source.settings, **without_none({"metric": metric})}
                    client.create_collection(collection, source.dimension, **settings)
                with progress_bar(f"Importing into {collection}") as bar:
                    for piece in source.rows:  # read here: the client's thread is to be free for an interrupt
                        stored += client.upload(collection, [(piece.ids, piece.vectors, piece.metadata)]).upserted
                        bar.update(stored)
        except BaseException as error:
            _say_what_is_stored(stored + _stored_of(error, stored), error)
            raise
    print_one({"upserted": stored}, form)


def _asked(
    kind: sources.Kind,
    delimiter: str | None,
    ids: Path | None,
    id_column: str | None,
    vector_columns: tuple[str, ...],
    text_columns: tuple[str, ...],
) -> Asked:
    """What is said of columns; a usage error for what the format has not."""
    for option, given, kinds in (
        ("--id-column", id_column, {"csv", "parquet", "arrow"}),
        ("--vector-column", vector_columns, {"csv", "parquet", "arrow"}),
        ("--text-column", text_columns, {"csv"}),
        ("--delimiter", delimiter, {"csv"}),
        ("--ids", ids, {"npy"}),
    ):
        if given and kind not in kinds:
            raise click.UsageError(f"{option} goes with {', '.join(sorted(kinds))}; this is {kind}.")
    if delimiter is not None and len(delimiter) != 1:
        raise click.UsageError("--delimiter must be one character.")
    return Asked(id_column or "id", vector_columns or ("vector",), text_columns)


def _stored_of(error: BaseException, before: int) -> int:
    """How many rows of the piece that failed are stored; what the error says of its rows is made to be of the file."""
    if not isinstance(error, VecClusterError):
        return 0
    for item in error.extra.get("errors", ()):
        if isinstance(item.get("index"), int) and "stored" in error.extra:  # else the piece was never sent
            item["index"] += before
    return int(error.extra.get("stored", 0))


def _say_what_is_stored(rows: int, error: BaseException) -> None:
    if isinstance(error, InvalidRequest | NotFound) and not rows:
        remark("Nothing is stored.")
        return
    perhaps = "" if isinstance(error, InvalidRequest) else ", and perhaps some of those that follow"
    remark(f"{rows:,} rows are stored{perhaps}. The import can be repeated: what is stored already is replaced.")
