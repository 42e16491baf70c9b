"""What `up` may write to and `down` may delete: a directory that was empty, and what was made in it."""

import fcntl
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support.cluster import cluster_document, free_run, wait_until
from test_local_plan import desired
from veccluster.model.spec import VecCluster
from veccluster_cli.local import LocalFailure, ownership, runtime
from veccluster_cli.local.state import StateDirectory
from veccluster_cli.main import main

COMMAND = [sys.executable, "-c", "from veccluster_cli.main import main; main()"]
THEIRS = ("data/theirs.csv", "data/demo-0/mine.txt", "config/app.yaml", "logs/app.log", "desired.json", "made.json")


def content(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command in a directory; in this process, since starting another takes a second."""

    def run_command(cwd, *arguments):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["veccluster", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return Done(left.value.code, *capfd.readouterr())

    return run_command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster_document("demo", 1)))
    return str(path)


@pytest.fixture
def foreign(tmp_path):
    """A directory of somebody's own, with the very names that a cluster would use."""
    path = tmp_path / "project"
    for name in THEIRS:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


def write_cluster(path: Path) -> StateDirectory:
    """A cluster that is stopped, as `up` leaves it."""
    directory = StateDirectory(path)
    with ownership.claimed(directory):
        ownership.note(directory, ownership.names_of(desired()))
        directory.write_desired(desired())
        for name in ownership.names_of(desired()):
            directory.data_of(name).mkdir()
            (directory.data_of(name) / "x").write_text("x")
            directory.log_of(name).write_text("")
    return directory


def test_up_refuses_a_directory_of_somebody_elses_and_touches_nothing(run, file, foreign):
    before = content(foreign)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for named in (".", str(foreign), str(foreign / "..") + "/project"):
            said = run(foreign, "up", "-f", file, "--data-dir", named, "--port", str(taken.getsockname()[1]))
            assert said.returncode == 6
            assert "neither empty nor a cluster's (it holds config, data, desired.json, ...)" in said.stderr
    assert content(foreign) == before


@pytest.mark.parametrize("command", [("down", "--delete-data", "--yes"), ("down",), ("status",), ("logs",)])
def test_no_command_takes_a_directory_of_somebody_elses_for_a_cluster(run, foreign, command):
    before = content(foreign)
    said = run(foreign, *command, "--data-dir", ".")
    assert said.returncode == 2 and f"There is no cluster in {foreign}" in said.stderr and not said.stdout
    assert content(foreign) == before


def test_the_root_of_the_machine_and_a_home_are_not_to_be_had(tmp_path):
    (tmp_path / ".profile").touch()
    for place in (Path("/"), tmp_path):
        told = pytest.raises(LocalFailure, match="neither empty nor a cluster's")
        with told, ownership.claimed(StateDirectory(place)):
            pytest.fail("it is claimed")
    assert list(content(tmp_path)) == [".profile"]


def test_a_link_to_a_directory_of_somebody_elses_is_refused(run, file, foreign, tmp_path):
    before = content(foreign)
    (tmp_path / "link").symlink_to(foreign)
    assert run(tmp_path, "up", "-f", file, "--data-dir", "link").returncode == 6
    assert content(foreign) == before


def test_an_up_that_fails_leaves_everything_as_it_was(tmp_path):
    parsed = VecCluster.parse(cluster_document("demo", 1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = content(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for place in ("empty", "link", "a/new/one"):
            with pytest.raises(LocalFailure, match=r"is in use by .*--port"):
                runtime.up(StateDirectory((tmp_path / place).resolve()), parsed, port=taken.getsockname()[1])
    assert content(tmp_path) == before


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LocalFailure, match=r"Cannot write to .*--data-dir"),
        ownership.claimed(StateDirectory(tmp_path / "file" / "state")),
    ):
        pytest.fail("it is claimed")


def test_delete_takes_what_was_made_and_leaves_what_was_added(tmp_path):
    directory = write_cluster(tmp_path / "new" / "demo")
    (directory.path / "data" / "notes.txt").write_text("mine")
    (directory.path / "logs" / "other.log").write_text("mine")
    assert ownership.delete(directory) == []
    assert content(tmp_path) == {
        "new": None,
        "new/demo": None,
        "new/demo/data": None,
        "new/demo/data/notes.txt": b"mine",
        "new/demo/logs": None,
        "new/demo/logs/other.log": b"mine",
    }


def test_delete_takes_the_directories_that_were_made_and_no_other(tmp_path):
    (tmp_path / "mine").mkdir()
    ownership.delete(write_cluster(tmp_path / "mine" / "new" / "demo"))
    assert content(tmp_path) == {"mine": None}
    ownership.delete(write_cluster(tmp_path / "mine"))
    assert content(tmp_path) == {"mine": None}


def test_delete_does_not_follow_links_and_says_what_is_left(run, tmp_path):
    directory = write_cluster(tmp_path / "demo")
    moved = tmp_path / "elsewhere"
    name = ownership.names_of(desired())[0]
    directory.data_of(name).rename(moved)
    directory.data_of(name).symlink_to(moved)
    said = run(tmp_path, "down", "--data-dir", str(directory.path), "--delete-data", "--yes")
    assert said.returncode == 0 and f"{directory.data_of(name)} is left" in said.stderr and str(moved) in said.stderr
    assert (moved / "x").read_text() == "x"
    assert content(directory.path).keys() == {"data", f"data/{name}"}


def test_a_cluster_of_an_older_version_is_still_one(tmp_path):
    directory = write_cluster(tmp_path / "demo")
    directory.made_file.unlink()
    assert ownership.is_clusters(directory)
    with ownership.claimed(directory):
        pass
    assert directory.made().names == tuple(sorted(ownership.names_of(desired())))
    ownership.delete(directory)
    assert content(tmp_path) == {"demo": None}


def test_a_cluster_of_another_name_stays_as_it_is(run, tmp_path):
    directory = write_cluster(tmp_path / "here")
    before = content(tmp_path)
    said = run(tmp_path, "down", "other", "--data-dir", "here", "--delete-data", "--yes")
    assert said.returncode == 2 and "no cluster named other" in said.stderr
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(cluster_document("other", 1)))
    said = run(tmp_path, "up", "-f", "other.yaml", "--data-dir", "here")
    assert said.returncode == 2 and f"must stay {desired().name} here" in said.stderr
    (tmp_path / "other.yaml").unlink()
    inside = str(directory.path / "data" / "new")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(cluster_document("other", 1)))
    said = run(tmp_path, "up", "-f", "other.yaml", "--data-dir", inside)
    assert said.returncode == 6 and "inside the cluster in" in said.stderr
    (tmp_path / "other.yaml").unlink()
    after = {name: data for name, data in content(tmp_path).items() if not name.endswith(".lock")}
    assert after == {name: data for name, data in before.items() if not name.endswith(".lock")}


def test_of_many_that_claim_a_new_directory_at_once_one_has_it(tmp_path):
    """Again and again, also while the one before is just deleting it."""
    directory = StateDirectory(tmp_path / "a" / "new")
    inside, most, had = 0, 0, 0
    lock = threading.Lock()

    def claim():
        nonlocal inside, most, had
        mine = 0
        while mine < 10:
            try:
                with ownership.claimed(directory):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                        had += 1
                        mine += 1
                    assert directory.made() is not None
                    with lock:
                        inside -= 1
            except LocalFailure as refused:
                assert "Another `veccluster up`" in str(refused)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and had == 40


@pytest.mark.parametrize("inside", ["", "new"])
def test_a_link_to_what_is_not_there_is_refused(tmp_path, inside):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused = pytest.raises(LocalFailure, match="is a link to what is not there")
    with refused, ownership.claimed(StateDirectory(tmp_path / "link" / inside)):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_of_two_ups_at_once_in_a_new_directory_one_runs_and_the_other_is_refused(tmp_path):
    nobody = f"http://127.0.0.1:{free_run(1)}"  # an etcd that never answers, so that the one that runs goes on waiting
    document = cluster_document("demo", 1, metadata={"endpoints": [nobody]})
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(document))
    directory = StateDirectory(tmp_path / ".veccluster" / "demo")
    both = [
        subprocess.Popen(
            [*COMMAND, "up", "-f", "file.yaml", "--port", str(port)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for port in (free_run(1), free_run(1))
    ]
    wait_until(lambda: any(up.poll() is not None for up in both), "one to be refused")
    wait_until(lambda: directory.status() is not None, "the other to run")
    refused, runs = sorted(both, key=lambda up: up.poll() is None)
    assert refused.returncode == 6 and "Another `veccluster up` is at work" in refused.stderr.read()
    assert runs.poll() is None and directory.supervised()
    runs.send_signal(signal.SIGINT)
    assert runs.wait(60) == 130
    assert not directory.supervised()


def test_looking_whether_a_supervisor_lives_keeps_none_from_starting(tmp_path):
    directory = StateDirectory(tmp_path)
    (tmp_path / "supervisor.lock").touch()
    with (tmp_path / "supervisor.lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not directory.supervised()
        threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with directory.lock("supervisor", patience=5) as mine:
            assert mine and directory.supervised()
    assert list(content(tmp_path)) == ["supervisor.lock"]
