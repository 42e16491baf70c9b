"""The local runtime with real processes: they come up, survive what kills them, and go without a trace."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from msgspec.structs import replace

from support.cluster import LocalCluster, cluster_document, free_run, wait_until
from veccluster.decisions.local import Phase
from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecCluster
from veccluster_cli.local import LocalFailure, runtime
from veccluster_cli.local.processes import ProcessRef

COMMAND = [sys.executable, "-c", "from veccluster_cli.main import main; main()"]


def refs_of(cluster: LocalCluster) -> list[ProcessRef]:
    status = cluster.directory.status()
    return [status.supervisor, *(p.process for p in status.processes if p.process)]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A cluster of two nodes in a directory with a space in its name."""
    with LocalCluster(2, path=tmp_path_factory.mktemp("my data") / "demo") as cluster:
        store_one(cluster)
        yield cluster


@pytest.fixture
def cluster(started):
    """The same cluster for every test, healthy again whatever the last test did to it."""
    started.document["spec"] = dict(started.document["spec"], nodes=len(started.desired.node_ports))
    started.up()
    return started


def store_one(cluster: LocalCluster) -> None:
    with cluster.client() as client:
        client.create_collection("kept", 2)
        client.upsert("kept", ["a", "b"], [[1.0, 0.0], [0.0, 1.0]])


def count(cluster: LocalCluster) -> int:
    with cluster.client() as client:
        wait_until(lambda: client.cluster().health == "healthy", "the cluster to be healthy")
        return client.count("kept")


@pytest.mark.e2e
def test_down_stops_every_process_and_up_finds_all_data_again(cluster):
    before = refs_of(cluster)
    assert len(before) >= 4 and all(ref.alive() for ref in before)
    assert runtime.down(cluster.directory)
    assert not any(ref.alive() for ref in before)
    assert not runtime.down(cluster.directory)
    cluster.up()
    assert count(cluster) == 2


@pytest.mark.parametrize("name", ["etcd-0", "test-0"])
def test_a_process_that_is_killed_is_started_again_and_has_its_data(cluster, name):
    starts = cluster.process(name).starts
    cluster.signal(name, signal.SIGKILL)
    cluster.wait_for(name, Phase.ready, starts=starts + 1)
    assert count(cluster) == 2


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties children to the supervisor")
def test_when_the_supervisor_is_killed_all_die_and_up_goes_on_from_there(cluster):
    before = refs_of(cluster)
    before[0].signal(signal.SIGKILL)
    wait_until(lambda: not any(ref.alive() for ref in before), "the children to end")
    # Threads of a process that was killed may hold its files, and so its lock, a moment longer than it seems to live.
    wait_until(lambda: not cluster.directory.supervised(), "the lock to be let go")
    assert not runtime.down(cluster.directory)
    cluster.up()
    assert count(cluster) == 2


def test_orphans_of_a_killed_supervisor_are_ended_by_down(cluster, tmp_path):
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    status = cluster.directory.status()
    runtime.down(cluster.directory)
    stale = [replace(p, process=ProcessRef.of(orphan.pid)) for p in status.processes[:1]]
    cluster.directory.write_status(replace(status, processes=tuple(stale)))
    assert runtime.down(cluster.directory)
    orphan.wait()
    assert not stale[0].process.alive()


@pytest.mark.e2e
def test_up_with_more_nodes_starts_only_those(cluster):
    before = {p.name: p.process for p in cluster.directory.status().processes}
    cluster.document["spec"]["nodes"] += 1
    cluster.up()
    after = {p.name: p.process for p in cluster.directory.status().processes}
    assert after.items() >= before.items() and set(after) - set(before) == {f"test-{len(before) - 1}"}
    with cluster.client() as client:
        assert len(client.cluster().nodes) == len(before)


@pytest.mark.slow
def test_up_with_other_settings_restarts_the_nodes_and_not_etcd(cluster):
    before = {p.name: p.process for p in cluster.directory.status().processes}
    cluster.document["spec"]["tuning"] = {"maxK": 3}
    cluster.up()

    def restarted():
        return {p.name for p in cluster.directory.status().processes if p.process and p.process != before[p.name]}

    wait_until(lambda: restarted() == before.keys() - {"etcd-0"}, "the nodes to have been restarted")


def test_what_cannot_be_changed_is_refused_and_the_cluster_goes_on(cluster):
    before = refs_of(cluster)
    cluster.document["spec"]["nodes"] = 1
    with pytest.raises(InvalidSpec, match="drain is not there yet"):
        cluster.up()
    assert all(ref.alive() for ref in before)
    assert len(cluster.directory.desired().node_ports) == len(before) - 2


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broken = LocalCluster(1, path=tmp_path / "state")
        parsed = VecCluster.parse(broken.document)
        with pytest.raises(LocalFailure, match=r"is in use by .*--port"):
            runtime.up(broken.directory, parsed, port=taken.getsockname()[1])
    assert not (tmp_path / "state").exists()


def test_two_commands_at_once_do_not_meet(cluster):
    with cluster.directory.lock("command") as mine, pytest.raises(LocalFailure, match="Another"):
        assert mine
        runtime.down(cluster.directory)


@pytest.mark.slow
def test_a_node_that_can_never_start_is_reported_with_its_own_words(cluster):
    runtime.down(cluster.directory)
    identity = cluster.directory.data_of("test-0") / "node.json"
    mine = identity.read_text()
    identity.write_text(mine.replace("test-0", "other-0"))
    with pytest.raises(LocalFailure, match=r"test-0 cannot start \(exit code 4\): .*other-0.*Its log"):
        cluster.up()
    assert cluster.process("test-0").given_up
    identity.write_text(mine)
    cluster.up()
    assert count(cluster) == 2


def running_with(text: str) -> list[psutil.Process]:
    """Processes with this in their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if text in " ".join(p.info["cmdline"] or ())]


def write_file(tmp_path, **spec):
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(cluster_document("demo", 1, **spec)))
    return file


@pytest.mark.e2e
def test_the_command_line_brings_a_cluster_up_shows_it_and_takes_it_down(tmp_path):
    def run(*arguments, code=0):
        done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=90)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    write_file(tmp_path)
    said = run("up", "-f", "file.yaml", "--port", str(free_run(1)))
    assert "demo is healthy" in said and "etcd 3." in said and "veccluster down" in said
    try:
        assert "demo-0" in run("status")
        run("collections", "create", "words", "--dimension", "2")
        assert "demo is healthy" in run("up", "-f", "file.yaml")
        assert "demo-0.log" in run("logs")
        assert '"listening"' in run("logs", "demo-0")
    finally:
        run("down")
    assert "stopped" in run("status", code=3)
    assert (tmp_path / ".veccluster" / "demo" / "data" / "demo-0").is_dir()
    run("down", "--delete-data", "--yes")
    assert not (tmp_path / ".veccluster" / "demo").exists()


@pytest.mark.e2e
def test_a_cluster_that_runs_and_cannot_become_healthy_stays_up_and_says_why(tmp_path):
    write_file(tmp_path)

    def run(*arguments):
        return subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=90)

    try:
        run("up", "-f", "file.yaml", "--port", str(free_run(1)))
        run("down")
        forgotten = tmp_path / ".veccluster" / "demo" / "data" / "demo-0" / "shards" / "gone.0"
        forgotten.mkdir()
        up = run("up", "-f", "file.yaml")
        assert up.returncode == 0, up.stderr
        assert "demo is degraded" in up.stdout
        assert "Node demo-0: data of shard gone.0 is here, but no record names this node for it" in up.stdout
        assert f"once it is known not to be, stop the node and remove {forgotten}" in up.stdout
        assert "degraded" in run("status").stdout
        run("down")
        forgotten.rmdir()
        assert "demo is healthy" in run("up", "-f", "file.yaml").stdout
    finally:
        run("down")


def _heed_interrupts():
    """Where the tests run in the background, a shell has them ignore SIGINT, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_up_that_is_interrupted_leaves_nothing_running(tmp_path):
    nobody = f"http://127.0.0.1:{free_run(1)}"  # an etcd that never answers, so that `up` is still waiting
    write_file(tmp_path, metadata={"endpoints": [nobody]})
    process = subprocess.Popen(
        [*COMMAND, "up", "-f", "file.yaml", "--port", str(free_run(1))],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in process.stderr.read()
    assert not running_with(str(tmp_path))


@pytest.mark.slow
def test_a_temporary_cluster_goes_with_the_process_that_asked_for_it(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from support.cluster import LocalCluster; c = LocalCluster(1); c.up();"
        "print(c.directory.path, flush=True); input()"
    )
    tests = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, tests], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    state = process.stdout.readline().strip()
    process.kill()
    process.wait()
    wait_until(lambda: not Path(state, "data").exists(), "the state to be deleted")
    wait_until(lambda: not running_with(state), "all processes to end")
