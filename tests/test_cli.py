"""The command line on a real cluster: as a person, a script or a pipe would use it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from support import cluster as clusters
from support.cluster import unique_name, wait_until
from support.commands import runner
from veccluster import Client
from veccluster.errors import InvalidRequest
from veccluster_cli.main import _explain

DIMENSION = 4
COUNT = 2_500
STRONG = ("--consistency", "strong")
"""Each command is a session of its own: no other level shows for certain what an earlier one wrote."""
COMMAND = [sys.executable, "-c", "from veccluster_cli.main import main; main()"]


@pytest.fixture(scope="module")
def servers():
    return clusters.shared().servers


def test_each_thing_that_is_wrong_is_a_line_with_its_place(capsys):
    errors = [
        {"index": 0, "field": "", "reason": "is not JSON"},
        {"index": 3, "field": "id", "reason": "must be given"},
    ]
    _explain(InvalidRequest("two are bad", errors))
    assert capsys.readouterr().err.splitlines()[1:] == ["  item 0: is not JSON", "  item 3: id: must be given"]


@pytest.fixture
def run(servers, tmp_path, monkeypatch, capfdbinary):
    """Run a command in an empty directory; test_local.py starts some as processes."""
    monkeypatch.chdir(tmp_path)
    return runner(servers, monkeypatch, capfdbinary)


@pytest.fixture
def client(servers):
    with Client(servers) as client:
        yield client


@pytest.fixture
def filled(client):
    name = unique_name("cli")
    vectors = np.random.default_rng(3).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    metadata = [
        {"n": i, "even": i % 2 == 0, "text": 'ü "x" \\ \n', "f": i / 3, "deep": {"a": [None]}} for i in range(COUNT)
    ]
    client.create_collection(name, DIMENSION, metric="l2", filterable=["even"])
    client.upload(name, [([f"id{i}" for i in range(COUNT)], vectors, metadata)])
    yield name
    client.delete_collection(name)


def content(client, name):
    return {v.id: (v.vector.tobytes(), json.dumps(v.metadata)) for v in client.iterate(name)}


def test_a_collection_is_created_shown_listed_and_deleted(run):
    name = unique_name("cli")
    run(
        "collections", "create", name, "--dimension", 3, "--metric", "dot", "--shards", 2, "--filterable", "a", "--m", 8
    )
    shown = json.loads(run("collections", "show", name, "-o", "json").stdout)
    assert (shown["dimension"], shown["metric"], shown["shards"], shown["index"]["m"]) == (3, "dot", 2, 8)
    assert name in [c["name"] for c in yaml.safe_load(run("collections", "list", "-o", "yaml").stdout)]
    assert name in run("collections", "list").stdout.decode()
    run("collections", "delete", name, "--yes")
    assert b"no collection" in run("collections", "show", name, code=4).stderr


def test_vectors_are_stored_found_shown_counted_and_deleted(run, filled):
    run("upsert", filled, "--id", "mine", "--vector", "[9, 9, 9, 9]", "--metadata", '{"colour": "[red]"}')
    hits = json.loads(run("search", filled, *STRONG, "--vector", "[9, 9, 9, 9]", "-k", 3, "-o", "json").stdout)
    assert len(hits) == 3 and hits[0]["id"] == "mine" and hits[0]["metadata"] == {"colour": "[red]"}
    assert json.loads(run("get", filled, *STRONG, "mine", "-o", "json").stdout)["vector"] == [9, 9, 9, 9]
    assert '"colour":"[red]"' in run("search", filled, *STRONG, "--like", "mine", "-k", 1).stdout.decode()
    assert run("count", filled, *STRONG).stdout == f"{COUNT + 1}\n".encode()
    assert run("delete", filled, "mine", "nobody", "-o", "json").stdout == b'{\n  "deleted": 1\n}\n'
    run("delete", filled, "--filter", '{"even": true}', "--yes")
    assert json.loads(run("count", filled, *STRONG, "--filter", '{"even": true}', "-o", "json").stdout) == {"count": 0}


def test_a_search_takes_vectors_from_files(run, filled, tmp_path):
    np.save(tmp_path / "q.npy", np.ones((2, DIMENSION)))
    hits = json.loads(run("search", filled, "--file", "q.npy", "-k", 2, "--include", "vector", "-o", "json").stdout)
    assert [h["query"] for h in hits] == [0, 0, 1, 1] and len(hits[0]["vector"]) == DIMENSION
    one = json.loads(run("search", filled, "--file", "-", "-o", "json", stdin=b"[1, 1, 1, 1]").stdout)
    assert one[0]["id"] == hits[0]["id"] and "query" not in one[0]


def seen(client, name, count):
    """Wait until this session sees what another one stored; replicas that are no primary show it a moment later."""
    wait_until(lambda: client.count(name) == count, f"{count} vectors in {name}")


@pytest.mark.parametrize("kind", ["ndjson", "arrow"])
def test_what_was_exported_is_imported_again_to_the_last_bit(run, client, filled, kind):
    copy = unique_name("copy")
    run("export", filled, f"all.{kind}")
    run("import", copy, f"all.{kind}", "--create", "--metric", "l2")
    seen(client, copy, client.count(filled))
    assert content(client, copy) == content(client, filled)
    assert client.collection(copy).metric == "l2"
    client.delete_collection(copy)


@pytest.mark.parametrize("kind", ["ndjson", "arrow"])
def test_exports_and_imports_are_filters_in_a_pipe(run, client, filled, kind):
    copy = unique_name("copy")
    out = run("export", filled, "-", "--format", kind, "--filter", '{"n": {"$lt": 10}}').stdout
    run("import", copy, "-", "--format", kind, "--create", stdin=out)
    seen(client, copy, 10)
    client.delete_collection(copy)


def test_an_arrow_export_says_what_collection_it_came_from(run, client, filled):
    copy = unique_name("copy")
    run("export", filled, "all.arrow")
    run("import", copy, "all.arrow", "--create")
    assert client.collection(copy).metric == "l2" and client.collection(copy).filterable == ("even",)
    client.delete_collection(copy)


def test_an_export_that_fails_leaves_no_file(run, tmp_path):
    run("export", "nobody", "all.ndjson", code=4)
    assert list(tmp_path.iterdir()) == []


def test_status_tells_the_health_nodes_and_shards(run, client):
    wait_until(lambda: client.cluster().health == "healthy", "collections of other tests to be gone")
    text = run("status").stdout.decode()
    assert "healthy" in text and "test-2" in text and "active" in text
    assert json.loads(run("status", "-o", "json").stdout)["health"] == "healthy"


WRONG = {
    "no such command": (("fly",), 2, "fly"),
    "vector is no JSON": (("search", "c", "--vector", "[1,"), 2, "must be JSON like"),
    "no query": (("search", "c"), 2, "--vector, --file and --like"),
    "filter is no object": (("count", "c", "--filter", "[1]"), 2, "must be JSON like"),
    "no such collection": (("count", "nobody"), 4, "no collection nobody"),
    "bad name": (("count", "Bad!"), 1, "name"),
    "no such file": (("import", "c", "nothing.ndjson"), 1, "No such file or directory: nothing.ndjson"),
    "bad address": (("count", "c", "--server", "ftp://x"), 1, "http://127.0.0.1:8001"),
    "no such VecCluster file": (("up", "-f", "nothing.yaml"), 2, "nothing.yaml"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_line_with_an_exit_code(run, arguments, code, words):
    said = run(*arguments, code=code).stderr.decode()
    assert words in said


def test_an_address_where_nobody_answers_is_exit_code_3(run):
    said = run("count", "c", "--server", "http://127.0.0.1:9", "--timeout", 1, code=3).stderr.decode()
    assert "127.0.0.1:9" in said and "refuses connections" in said and said.count("\n") == 1


def test_without_a_cluster_a_command_says_how_to_get_one(run):
    assert b"veccluster up -f FILE" in run("count", "c", code=3, server=False).stderr


def test_a_wrong_line_of_a_file_is_named(run, filled):
    lines = b'{"id": "a", "vector": [1, 2, 3, 4]}\n{"id": "b", "vector": [1, 2\n'
    assert b"line 2" in run("import", filled, "-", code=1, stdin=lines).stderr
    lines = b'{"id": "a", "vector": [1, 2, 3, 4], "colour": 1}\n'
    assert b"put it into metadata" in run("upsert", filled, "-", code=1, stdin=lines).stderr
    assert b"Arrow" in run("import", filled, "-", "--format", "arrow", code=1, stdin=b"garbage").stderr


def test_a_wrong_veccluster_file_is_told_field_by_field(run, tmp_path):
    document = clusters.cluster_document(nodes=0, colour="red")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(document))
    said = run("up", "-f", "wrong.yaml", code=2).stderr.decode()
    assert "spec.nodes" in said and "spec.colour" in said
    assert not (tmp_path / ".veccluster").exists()


def test_a_reader_that_has_seen_enough_ends_an_export_quietly(servers, filled, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "export", filled, "-", "--server", servers[0]], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(run, shell):
    assert b"_VECCLUSTER_COMPLETE" in run("completion", shell).stdout
