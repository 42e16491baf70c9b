"""How the command line behaves towards terminals, pipes, files and people who wait."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from yarl import URL

from support import cluster as clusters
from support.cluster import cluster_document, free_run, unique_name, wait_until
from support.commands import runner
from veccluster import Client
from veccluster.errors import Unreachable
from veccluster_cli import demo, main, reaching
from veccluster_cli.destinations import written
from veccluster_cli.local import runtime
from veccluster_cli.local.ownership import claimed
from veccluster_cli.local.state import StateDirectory
from veccluster_cli.output import make_console, print_one, print_rows, progress_bar, shown

COMMAND = [sys.executable, "-c", "from veccluster_cli.main import main; main()"]
TEXTS = ("user:key:1", "[red]", "[/]", ":smile:", r"\[x]", "[link=http://x]y[/link]")


@pytest.fixture(scope="module")
def servers():
    return clusters.shared().servers


@pytest.fixture
def run(servers, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    return runner(servers, monkeypatch, capfdbinary)


@pytest.fixture
def nowhere(tmp_path, monkeypatch, capfdbinary):
    """Run a command that needs no cluster."""
    monkeypatch.chdir(tmp_path)
    return runner(["http://127.0.0.1:9"], monkeypatch, capfdbinary)


@pytest.fixture(scope="module")
def collection(servers):
    """Vectors whose ids and metadata are full of what a library might take for markup."""
    name = unique_name("manners")
    with Client(servers) as client:
        client.create_collection(name, 2)
        client.upsert(name, list(TEXTS), np.eye(2)[[0] * len(TEXTS)], [{"t": text} for text in TEXTS])
        wait_until(lambda: client.count(name, consistency="strong") == len(TEXTS), "all to be stored")
        yield name
        client.delete_collection(name)


# Text


def test_ids_and_metadata_are_shown_letter_by_letter(run, collection):
    lines = run("search", collection, "--vector", "[1, 0]", "--consistency", "strong").stdout.decode().splitlines()
    assert {line.split()[0] for line in lines[1:]} == {text.split()[0] for text in TEXTS}
    assert all(f'"t":"{text}"'.replace("\\", "\\\\") in "".join(lines) for text in TEXTS)
    for text in TEXTS:
        got = run("get", collection, "--consistency", "strong", "--", text).stdout.decode()
        assert re.search(rf"^id +{re.escape(text)}$", got, re.MULTILINE)
        assert text in run("get", collection, "--", text + "?", code=4).stderr.decode()


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_that_is_printed_is_markup(text, capsys):
    print_rows([{"a": text}], [("a", "A")], "table")
    print_one({text: [text]}, "table")
    make_console().print(text)
    demo.Stage().say(text)
    demo.Stage().line(text)
    demo.Stage().heading(text)
    with progress_bar(f"Importing into {text}", 1) as bar:
        make_console().print(bar._progress.make_tasks_table(bar._progress.tasks))
    assert capsys.readouterr().out.count(text) == 8


def test_what_a_terminal_would_obey_is_escaped(capsys):
    assert shown("a\x1b[31m\r\n\x9bü\u2028:x: \u200b") == "a\\x1b[31m\\r\\n\\x9bü\\u2028:x: \u200b"
    print_rows([{"a": "x\x1b]0;title\x07\ny"}], [("a", "A")], "table")
    assert capsys.readouterr().out.splitlines()[1] == "x\\x1b]0;title\\x07\\ny"


def test_an_argument_that_is_no_text_is_refused_in_words(nowhere):
    wrong = os.fsdecode(b"caf\xe9")
    for arguments in (("count", wrong), ("get", "c", wrong), ("collections", "show", wrong), ("down", wrong)):
        assert rb"must be text in UTF-8, is 'caf\xe9'" in nowhere(*arguments, code=2).stderr
    assert b"must be JSON" in nowhere("count", "c", "--filter", f'{{"a": "{wrong}"}}', code=2).stderr
    assert b"must be text in UTF-8" in nowhere("count", "c", "--server", wrong, code=2).stderr
    assert b"No such file" in nowhere("upsert", "c", wrong + ".ndjson", code=1).stderr  # a file may have such a name


def test_numbers_that_json_or_a_node_cannot_hold_are_refused_with_the_place(nowhere):
    long = "123456789012345678901234"
    for option, value, words in (
        ("--filter", f'{{"a": {{"$in": [1, {long}]}}}}', "a.$in[1] must be a whole number of at most 64 bits"),
        ("--filter", '{"a": NaN}', "JSON has no NaN"),
        ("--filter", '{"a": 1e999}', "too large"),
    ):
        assert words in nowhere("count", "c", option, value, code=2).stderr.decode()
    said = nowhere("upsert", "c", "--id", "a", "--vector", "[1]", "--metadata", f'{{"n": {long}}}', code=2).stderr
    assert b"n must be a whole number of at most 64 bits" in said


def test_queries_of_the_wrong_dimension_are_refused_with_both_numbers(run, collection, tmp_path):
    np.save(tmp_path / "q.npy", np.ones((3, 4)))
    said = run("search", collection, "--file", "q.npy", code=1).stderr.decode()
    assert "must hold vectors of 2 numbers, has 4" in said
    np.save(tmp_path / "q.npy", np.ones((2, 1)))  # as many numbers as one query has
    assert "must hold vectors of 2 numbers" in run("search", collection, "--file", "q.npy", code=1).stderr.decode()


# Where an export goes


def test_a_file_is_replaced_when_all_is_written_and_keeps_who_may_read_it(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o600)
    link.symlink_to("file")
    (tmp_path / "file.partial").write_bytes(b"somebody's")
    with written(link) as out:
        out.write(b"new")
        out.flush()
        assert file.read_bytes() == b"old"
    assert link.is_symlink() and file.read_bytes() == b"new" and file.stat().st_mode & 0o777 == 0o600
    with contextlib.suppress(RuntimeError), written(file) as out:
        out.write(b"half")
        raise RuntimeError
    assert file.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "file.partial", "link"]


def test_a_link_to_nothing_gets_its_file(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with written(tmp_path / "link") as out:
        out.write(b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"x"


def test_pipes_and_devices_are_written_through(run, collection, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    run("export", collection, pipe, "--format", "ndjson")
    reader.join()
    assert got[0].count(b"\n") == len(TEXTS) and pipe.is_fifo()
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    run("export", collection, null)
    assert null.is_symlink() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_a_standard_stream_by_name_goes_on_where_it_was(tmp_path, monkeypatch, name):
    """Also where it is a file: that is neither cut nor replaced."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("/dev/stdout")
    script = f"from veccluster_cli.destinations import *\nwith written(Path({name!r})) as out: out.write(b'x')"
    with Path("out").open("wb") as out:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert Path("out").read_bytes() == b"xx"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout == b"x"


def test_a_name_that_promises_another_format_is_not_written(run, collection, tmp_path):
    said = run("export", collection, "all.parquet", code=1).stderr.decode()
    assert "an export is NDJSON (.ndjson, .jsonl) or Arrow (.arrow)" in said
    assert list(tmp_path.iterdir()) == []


# Imports


def stored(servers, name):
    with Client(servers) as client:
        return client.count(name, consistency="strong")


def test_every_format_is_imported(run, servers, tmp_path):
    name = unique_name("formats")
    (tmp_path / "a.csv").write_text('id,vector,n\na,"[1,2]",1\nb,"[3,4]",2\n')
    pq.write_table(pa.table({"id": ["c"], "vector": [[1.0, 2.0]], "n": [3]}), tmp_path / "b.parquet")
    np.save(tmp_path / "c.npy", np.ones((3, 2)))
    assert b"upserted   2" in run("import", name, "a.csv", "--create").stdout
    run("import", name, "b.parquet")
    run("import", name, "c.npy")
    assert stored(servers, name) == 6
    said = run("import", name, "a.csv", "--ids", "a.csv", code=2).stderr
    assert b"--ids goes with npy; this is csv." in said
    with Client(servers) as client:
        assert client.get(name, "c", consistency="strong").metadata == {"n": 3}
        client.delete_collection(name)


def test_an_import_that_fails_says_how_many_rows_are_stored(run, servers, monkeypatch):
    name = unique_name("fails")
    lines = "".join(f'{{"id": "{i}", "vector": [1, 2]}}\n' for i in range(1_500))
    said = run("import", name, "-", code=4, stdin=lines.encode()).stderr.decode()
    assert "Nothing is stored." in said
    said = run("import", name, "-", "--create", code=1, stdin=(lines + "{}\n").encode()).stderr.decode()
    assert "1,000 rows are stored. The import can be repeated" in said and "line 1501: id: is missing" in said
    assert stored(servers, name) == 1_000
    with Client(servers) as client:
        client.delete_collection(name)


class Interrupting(io.RawIOBase):
    """Input after which a signal comes, and no end."""

    def __init__(self, content, number):
        self.content, self.number = io.BytesIO(content), number

    def readable(self):
        return True

    def readinto(self, buffer):
        if not (count := self.content.readinto(buffer)):
            signal.raise_signal(self.number)
        return count


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")]
)
def test_an_import_that_is_interrupted_says_how_many_rows_are_stored(run, servers, number, code, word):
    name = unique_name("stopped")
    lines = b"".join(b'{"id": "%d", "vector": [1, 2]}\n' % i for i in range(2_500))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what is in the background ignore it
    try:
        said = run("import", name, "-", "--create", code=code, stdin=Interrupting(lines, number)).stderr.decode()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "2,000 rows are stored, and perhaps some of those that follow." in said and word in said
    assert stored(servers, name) == 2_000
    with Client(servers) as client:
        client.delete_collection(name)


def test_what_a_node_says_of_a_row_is_said_of_the_row_of_the_file(run, servers):
    name = unique_name("refused")
    lines = b"".join(b'{"id": "%s", "vector": [1, 2]}\n' % (b"" if i > 1_500 else b"%d" % i) for i in range(1_503))
    said = run("import", name, "-", "--create", code=1, stdin=lines).stderr.decode()
    assert "item 1501: id" in said and "1,000 rows are stored" in said
    with Client(servers) as client:
        client.delete_collection(name)


# Waiting


def test_an_address_where_nobody_is_is_said_within_seconds(nowhere):
    with socket.create_server(("127.0.0.1", 0)) as full:
        started = time.monotonic()
        said = nowhere("count", "c", "--server", "http://nobody.invalid:80", "--server", "127.0.0.1:9", code=3).stderr
        assert time.monotonic() - started < 10
        assert b"nobody.invalid:80 cannot be reached: no host of this name is known, 127.0.0.1:9 refuses" in said
        assert full.fileno() > 0


def answering(answer):
    """A server that gives one answer to whatever is asked."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, URL(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_one_address_that_may_be_a_server_is_enough():
    web, there = answering(b"HTTP/1.1 503 Busy\r\n\r\n")
    other, ssh = answering(b"SSH-2.0-OpenSSH_9.2\r\n")
    silent = socket.create_server(("127.0.0.1", 0))
    quiet = URL(f"http://127.0.0.1:{silent.getsockname()[1]}")
    nobody = URL("http://127.0.0.1:9")
    with web, other, silent:
        reaching.require_somebody([nobody, there, ssh], 1.0)
        reaching.require_somebody([nobody, quiet], 0.2)  # it takes connections, so it may be busy
        with pytest.raises(Unreachable, match=r"No server answers: 127\.0\.0\.1:\d+ does not speak HTTP"):
            reaching.require_somebody([ssh], 1.0)


def test_who_waits_is_told_so(monkeypatch, nowhere):
    monkeypatch.setattr(reaching, "SILENT_SECONDS", 0.1)
    silent = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{silent.getsockname()[1]}"
    with silent:
        said = nowhere("count", "c", "--server", address, "--timeout", 0.6, code=3).stderr.decode()
    assert f"Waiting for an answer from {address}; each request is repeated for up to 0.6 s." in said


# Closed output, and logs


@contextlib.contextmanager
def closed_pipe():
    """A stream that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        yield stream


@pytest.mark.parametrize("command", ["search", "get", "status", "collections", "--help", "export", "count"])
def test_a_reader_that_goes_ends_a_command_quietly(nowhere, servers, collection, monkeypatch, capfdbinary, command):
    arguments = {
        "search": [collection, "--vector", "[1,0]"],
        "get": [collection, "[red]"],
        "collections": ["list"],
        "export": [collection, "-"],
        "count": [collection],
    }
    monkeypatch.setenv("VECCLUSTER_SERVER", servers[0])
    monkeypatch.setattr(sys, "argv", ["veccluster", command, *arguments.get(command, [])])
    with closed_pipe() as closed, pytest.raises(SystemExit) as left:
        monkeypatch.setattr(sys, "stdout", closed)
        main.main()
    assert (left.value.code, capfdbinary.readouterr()) == (141, (b"", b""))


def test_nothing_is_said_at_the_end_of_a_process_whose_output_nobody_reads():
    with closed_pipe() as closed:
        done = subprocess.run([*COMMAND, "completion", "bash"], stdout=closed, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (141, b"")
        assert subprocess.run([*COMMAND, "fly"], stderr=closed, check=False).returncode == 2


def test_output_that_was_closed_before_is_no_error(servers, collection):
    script = " ".join(f"'{part}'" for part in [*COMMAND, "count", collection, "--server", servers[0]])
    closed = subprocess.run(["sh", "-c", f"{script} >&- 2>&- <&-"], capture_output=True, check=False)
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, b"", b"")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_up_whose_output_nobody_reads_goes_on(tmp_path, monkeypatch, stream):
    """In this process, with a cluster that seems to come up: `test_local.py` starts real ones."""
    document = cluster_document("demo", 1, metadata={"endpoints": [f"http://127.0.0.1:{free_run(1)}"]})
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(document))
    directory = StateDirectory(tmp_path / "state")
    steps = (runtime.Step(0, 1, "waiting"), runtime.Step(1, 1, "healthy"))
    monkeypatch.setattr(runtime, "wait_until_healthy", lambda *_: iter(steps))
    arguments = ["up", "-f", str(tmp_path / "file.yaml"), "--data-dir", str(directory.path), "--port", str(free_run(1))]
    monkeypatch.setattr(sys, "argv", ["veccluster", *arguments])
    try:
        with closed_pipe() as closed, pytest.raises(SystemExit) as left:
            monkeypatch.setattr(sys, stream, closed)
            main.main()
        assert left.value.code == 0
        assert directory.supervised()
    finally:
        runtime.delete(directory)


def test_logs_shows_as_many_lines_as_asked_for(nowhere, tmp_path):
    directory = StateDirectory(tmp_path / ".veccluster" / "demo")
    directory.path.mkdir(parents=True)
    with claimed(directory):
        directory.desired_file.write_text(
            '{"generation": 1, "name": "demo", "namespace": "d", "spec": {}, "node_ports": []}'
        )
    directory.log_of("demo-0").write_text("1\n2\n3\n")
    for count, lines in ((0, b""), (1, b"3\n"), (2, b"2\n3\n"), (9, b"1\n2\n3\n")):
        assert nowhere("logs", "demo-0", "-n", count).stdout == lines
    assert b"-1" in nowhere("logs", "-n", -1, code=2).stderr
