"""What `import` reads: each format gives the rows that were meant, or is refused with the place that is wrong."""

import gzip
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veccluster.errors import InvalidRequest
from veccluster_cli import csvfiles, sources
from veccluster_cli.columns import Asked

PLAIN = Asked()
NUMBERED = Asked(vector=("v*",))


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The rows of a file of this name and content, in one piece for each that the file is read in."""
    monkeypatch.chdir(tmp_path)

    def read_file(name, content, asked=PLAIN, **options):
        path = tmp_path / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path) if name.endswith(".parquet") else write_stream(content, path)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        options = {"delimiter": None, "ids": None} | options
        with sources.opened(path, sources.kind_of(path), asked, **options) as source:
            ids, vectors, metadata = [], [], []
            for piece in source.rows:
                ids += piece.ids
                vectors += piece.vectors.tolist()
                metadata += piece.metadata
        return ids, vectors, metadata

    return read_file


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def refused(read, words, *arguments, **options):
    with pytest.raises(InvalidRequest) as told:
        read(*arguments, **options)
    assert words in told.value.detail


# CSV


def test_csv_has_vectors_as_json_and_metadata_of_the_kind_that_all_cells_have(read):
    text = (
        "\ufeffid,vector,year,zip,ok,long,note,empty\r\n"
        '007,"[1, 2.5]",1999,01234,true,123456789012345678901234,"a ""b"", c\nd",\r\n'
        "\r\n"
        'b,"[3,4]",2e3,99999,False,1,,\r\n'
    )
    ids, vectors, metadata = read("a.csv", text)
    assert ids == ["007", "b"] and vectors == [[1, 2.5], [3, 4]]
    assert metadata == [
        {"year": 1999, "zip": "01234", "ok": True, "long": "123456789012345678901234", "note": 'a "b", c\nd'},
        {"year": 2000, "zip": "99999", "ok": False, "long": "1"},
    ]


def test_csv_has_columns_of_numbers_other_names_and_other_delimiters(read):
    asked = Asked(id="key", vector=("v*",), text=("n",))
    text = "v0;key;v1;n;v2\n1;a;2;5;3\n-1;b;.5;6;1e-3\n"
    ids, vectors, metadata = read("a.csv", text, asked, delimiter=";")
    assert ids == ["a", "b"] and metadata == [{"n": "5"}, {"n": "6"}]
    assert np.allclose(vectors, [[1, 2, 3], [-1, 0.5, 0.001]])
    assert read("a.tsv", "id\tx\ty\na\t1\t2\n", Asked(vector=("y", "x")))[1] == [[2, 1]]


def test_csv_takes_whole_metadata_and_is_unpacked(read):
    packed = gzip.compress(b'id,vector,metadata,n\na,[1],"{""deep"": [1, null]}",3\nb,[2],,\n')
    assert read("a.csv.gz", packed) == (["a", "b"], [[1], [2]], [{"deep": [1, None], "n": 3}, None])
    refused(read, "must be a whole file of gzip", "a.csv.gz", packed[:-12])
    refused(read, "must be a whole file of gzip", "a.csv.gz", b"id,vector")


WRONG_CSV = {
    "no id": ("key,vector\na,[1]\n", "there is no column id (the columns are key, vector); --id-column"),
    "no vector": ("id,v0\na,1\n", "there is no column vector (the columns are id, v0); --vector-column"),
    "nothing": ("", "there are no columns"),
    "a name twice": ("id,vector,n,n\n", "n is there twice"),
    "lengths": ('id,vector\na,"[1,2]"\nb,"[1,2,3]"\n', "line 3 has 3 numbers, line 2 has 2"),
    "too few cells": ("id,vector,n\na,[1]\n", "line 2: must have 3 cells as the header has, has 2"),
    "no JSON": ("id,vector\na,1 2\n", "vector of line 2: must be JSON"),
    "NaN": ("id,vector\na,[NaN]\n", "JSON has no NaN"),
    "no vector in a line": ("id,vector\na,[1]\nb,\n", "of line 3 is missing"),
    "a text in a vector": ('id,vector\na,"[""1""]"\n', "vector of line 2: must be numbers, is a string"),
    "broken quotes": ('id,vector\na,"[1]"x\n', "line 2: must be CSV"),
    "no UTF-8": (b"id,vector\n\xff,[1]\n", "must be text in UTF-8"),
    "metadata is no object": ("id,vector,metadata\na,[1],5\n", "metadata of line 2: must be an object"),
    "said twice": ('id,vector,metadata,n\na,[1],"{""n"":1}",2\n', "line 2 holds n, for which there is a column, too"),
}


@pytest.mark.parametrize(("text", "words"), WRONG_CSV.values(), ids=WRONG_CSV)
def test_csv_that_is_wrong_is_refused_with_the_line(read, text, words):
    refused(read, words, "a.csv", text)


def test_csv_that_changes_later_is_refused_with_the_line_and_the_way_on(read, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_ROWS", 2)
    start = "id,vector,n\na,[1],1\nb,[2],2\n"
    refused(
        read, "line 4: n must be a number as in the first lines, is 'x'; --text-column n", "a.csv", start + "c,[3],x\n"
    )
    refused(read, "line 4: n must be a number", "a.csv", start + "c,[3],123456789012345678901234\n")
    refused(read, "line 4 has 2 numbers, the rows before have 1", "a.csv", start + 'c,"[3,4]",1\n')
    assert read("a.csv", start + "c,[3],x\n", Asked(text=("n",)))[2] == [{"n": "1"}, {"n": "2"}, {"n": "x"}]
    refused(read, "no column m, which --text-column names", "a.csv", start, Asked(text=("m",)))
    refused(read, "line 3: v1 must be a finite float32 number", "a.csv", "id,v0,v1\na,1,2\nb,1,nan\n", NUMBERED)
    refused(read, "line 2: v0 must be a finite float32 number", "a.csv", "id,v0,v1\na,,2\n", NUMBERED)


def test_numbers_of_csv_are_those_of_json():
    assert csvfiles.meaning_of(["1", "-2.5e3", ""]) == "number"
    for cell in ("007", "+1", "1_000", "0x1", "nan", "1e999", " 1", "18446744073709551616"):
        assert csvfiles.meaning_of(["1", cell]) == "text"
    assert csvfiles.meaning_of(["", ""]) == "text"


# Parquet and Arrow


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_become_ids_vectors_and_metadata(read, name):
    import datetime

    table = pa.table(
        {
            "key": pa.array([7, 8], pa.int64()),
            "emb": pa.array([[1, 2], [3, 4]], pa.list_(pa.float64())),
            "day": pa.array([datetime.date(2024, 2, 29), None]),
            "at": pa.array([1, 2], pa.timestamp("ns")),
            "price": pa.array([Decimal("3.00"), Decimal("2.50")]),
            "tags": pa.array([["x"], []], pa.list_(pa.string())),
            "metadata": pa.array(['{"whole": 18446744073709551615}', None]),
            "__index_level_0__": pa.array([0, 1]),
        }
    )
    ids, vectors, metadata = read(name, table, Asked(id="key", vector=("emb",)))
    assert ids == ["7", "8"] and vectors == [[1, 2], [3, 4]]
    first = {"day": "2024-02-29", "at": "1970-01-01 00:00:00.000000001", "price": 3, "tags": ["x"]}
    assert metadata[0] == {"whole": 18446744073709551615, **first}
    assert metadata[1].keys() == {"at", "price", "tags"} and metadata[1]["price"] == 2.5


def listed(rows, kind=None):
    return pa.table(
        {"id": [str(i) for i in range(len(rows))], "vector": pa.array(rows, kind or pa.list_(pa.float32()))}
    )


def test_vectors_of_tables_are_lists_tensors_json_or_columns_of_numbers(read):
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2]], pa.list_(pa.float32(), 2))
    )
    assert read("a.arrow", pa.table({"id": ["a"], "vector": tensors}))[1] == [[1, 2]]
    assert read("a.parquet", listed([[1, 2]], pa.large_list(pa.float16())))[1] == [[1, 2]]
    assert read("a.parquet", pa.table({"id": ["a"], "vector": ["[1, 2]"]}))[1] == [[1, 2]]
    assert read("a.parquet", pa.table({"id": ["a"], "v0": [1], "v1": [0.5]}), NUMBERED)[1] == [[1, 0.5]]


def test_lists_of_differing_lengths_are_refused_and_never_cut_anew(read, monkeypatch):
    refused(read, "row 1 has 4 numbers, row 0 has 2", "a.arrow", listed([[1, 2], [3, 4, 5, 6]]))
    refused(read, "row 1 has 4 numbers, row 0 has 2", "a.parquet", listed([[1, 2], [3, 4, 5, 6]]))
    lines = [{"id": "a", "vector": [1, 2]}, {"id": "b", "vector": [3, 4, 5, 6]}]
    refused(read, "line 3 has 4 numbers, line 1 has 2", "a.ndjson", "\n\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(sources, "PIECE_ROWS", 2)
    rows = [[1, 2], [1, 2], [3, 4, 5, 6], [3, 4, 5, 6]]
    refused(read, "row 2 has 4 numbers, the rows before have 2", "a.parquet", listed(rows))
    refused(read, "row 2 has 4 numbers, the rows before have 2", "a.arrow", listed(rows))
    lines = "\n".join(json.dumps({"id": "a", "vector": row}) for row in rows)
    refused(read, "line 3 has 4 numbers, the lines before have 2", "a.ndjson", lines)


WRONG_TABLES = {
    "no id": (pa.table({"vector": [[1.0]]}), "there is no column id"),
    "ids are fractions": (pa.table({"id": [1.5], "vector": [[1.0]]}), "strings or whole numbers, is double"),
    "id is null": (pa.table({"id": ["a", None], "vector": [[1.0], [2.0]]}), "of row 1 is missing"),
    "vector is null": (pa.table({"id": ["a", "b"], "vector": [[1.0], None]}), "must not be null, is in row 1"),
    "vector holds null": (pa.table({"id": ["a", "b"], "vector": [[1.0], [None]]}), "nulls, does in row 1"),
    "vector is NaN": (pa.table({"id": ["a", "b"], "vector": [[1.0], [float("nan")]]}), "is nan at row 1"),
    "vector is texts": (pa.table({"id": ["a"], "vector": [["x"]]}), "lists of numbers"),
    "metadata is NaN": (pa.table({"id": ["a"], "vector": [[1.0]], "n": [float("nan")]}), "must be a finite number"),
    "metadata is bytes": (pa.table({"id": ["a"], "vector": [[1.0]], "n": [b"x"]}), "is bytes"),
    "metadata is long": (
        pa.table({"id": ["a"], "vector": [[1.0]], "n": [Decimal(2**70)]}),
        "must be a whole number of at most 64 bits",
    ),
    "metadata holds long": (
        pa.table({"id": ["a"], "vector": [[1.0]], "metadata": ['{"n": 123456789012345678901234}']}),
        "must be a whole number of at most 64 bits",
    ),
}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(("table", "words"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_tables_that_are_wrong_are_refused_with_the_row(read, name, table, words):
    refused(read, words, name, table)


def test_files_that_are_not_what_their_name_says_are_refused(read):
    for name, words in (
        ("a.parquet", "Parquet"),
        ("a.arrow", "Arrow"),
        ("a.npy", ".npy"),
        ("a.xlsx", "no format that is"),
    ):
        refused(read, words, name, b"garbage")
    refused(read, "must be a file on a disk", "a.parquet.gz", b"")


# NDJSON


WRONG_LINES = {
    "no object": ("[1]", "line 2: must be an object"),
    "no vector": ('{"id": "b"}', "line 2: vector: is missing"),
    "another field": ('{"id": "b", "vector": [1], "colour": 1}', "line 2: colour: is not a field of a vector"),
    "id is a number": ('{"id": 5, "vector": [1]}', "line 2: id: must be a string"),
    "a text in a vector": (
        '{"id": "b", "vector": ["1"]}',
        "line 2: vector: must be numbers, is a string at position 0",
    ),
    "too large": ('{"id": "b", "vector": [1e300]}', "line 2: vector: must be finite float32 numbers"),
    "long": (
        '{"id": "b", "vector": [1], "metadata": {"n": 123456789012345678901234}}',
        "line 2: metadata.n: must be a wh",
    ),
    "NaN": ('{"id": "b", "vector": [1], "metadata": {"n": NaN}}', "line 2: must be JSON"),
}


@pytest.mark.parametrize(("line", "words"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_line_that_is_wrong_is_named(read, line, words):
    refused(read, words, "a.ndjson", '{"id": "a", "vector": [1]}\n' + line + "\n")


def test_ndjson_goes_by_several_names_and_is_unpacked(read):
    line = b'{"id": "a", "vector": [1], "metadata": {"n": 18446744073709551615}}\n'
    for name, content in (
        ("a.jsonl", line),
        ("a.NDJSON", line),
        ("noname", line),
        ("a.b.ndjson.gz", gzip.compress(line)),
    ):
        assert read(name, content) == (["a"], [[1]], [{"n": 18446744073709551615}])


# NumPy


def test_npy_has_the_numbers_of_its_rows_or_lines_as_ids(read, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_ROWS", 2)
    array = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2))
    assert read("a.npy", array) == (["0", "1", "2"], array.tolist(), [None] * 3)
    (tmp_path / "ids").write_text("x\r\ny y\nz")
    assert read("a.npy", array, ids=tmp_path / "ids")[0] == ["x", "y y", "z"]
    (tmp_path / "ids").write_text("x\ny\n")
    refused(read, "must have a line for each of 3 vectors, has 2", "a.npy", array, ids=tmp_path / "ids")


WRONG_ARRAYS = {
    "one axis": (np.ones(3), "must have shape (n, dimension), has shape (3,)"),
    "texts": (np.array([["1"]]), "must be numbers"),
    "complex": (np.ones((1, 2), complex), "must be numbers"),
    "booleans": (np.ones((1, 2), bool), "must be numbers"),
    "NaN": (np.array([[1.0], [1.0], [np.nan]]), "is nan at row 2"),
}


@pytest.mark.parametrize(("array", "words"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_arrays_that_are_no_vectors_are_refused(read, monkeypatch, array, words):
    monkeypatch.setattr(sources, "PIECE_ROWS", 2)
    refused(read, words, "a.npy", array)
