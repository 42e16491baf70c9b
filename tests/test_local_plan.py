"""What `up` writes down and refuses, and the processes that come of it; nothing is started here but tiny programs."""

import os
import signal
import socket
import subprocess
import sys

import msgspec
import pytest

from support.cluster import cluster_document, wait_until
from veccluster.decisions.local import Role
from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecCluster
from veccluster_cli.local import LocalFailure, changes, etcd, ports, processes
from veccluster_cli.local.plan import plan
from veccluster_cli.local.processes import ProcessRef
from veccluster_cli.local.state import StateDirectory, write_file


def desired(old=None, name="demo", nodes=3, port=None, running=False, **spec):
    cluster = VecCluster.parse(cluster_document(name, nodes, **spec))
    changes.require_supported(cluster)
    return changes.desired_of(cluster, old, port, running)


def plans(wanted, tmp_path):
    return {p.name: p for p in plan(wanted, StateDirectory(tmp_path), "python")}


def test_a_cluster_is_etcd_and_its_nodes_on_ports_in_a_row(tmp_path):
    found = plans(desired(zones=["a", "b"]), tmp_path)
    assert [(p.name, p.role) for p in found.values()] == [
        ("etcd-0", Role.metadata),
        ("demo-0", Role.node),
        ("demo-1", Role.node),
        ("demo-2", Role.node),
    ]
    configs = [msgspec.json.decode(p.config) for p in found.values() if p.config]
    assert [c["listen"] for c in configs] == ["127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"]
    assert [c["zone"] for c in configs] == ["a", "b", "a"]
    assert configs[0]["etcd"]["endpoints"] == [found["etcd-0"].probe_url.removesuffix("/health")]


def test_three_etcd_members_know_each_other(tmp_path):
    found = plans(desired(metadata={"managed": {"nodes": 3}}), tmp_path)
    peers = {next(a for a in found[f"etcd-{n}"].command if a.startswith("--initial-cluster=")) for n in range(3)}
    assert len(peers) == 1 and peers.pop().count("http://") == 3


def test_an_etcd_that_exists_is_used_and_none_is_started(tmp_path):
    found = plans(desired(metadata={"endpoints": ["http://etcd.example:2379"]}), tmp_path)
    assert set(found) == {"demo-0", "demo-1", "demo-2"}
    assert msgspec.json.decode(found["demo-0"].config)["etcd"]["endpoints"] == ["http://etcd.example:2379"]


def test_what_is_kept_over_a_change_are_ports_and_etcd():
    before = desired(port=9001)
    after = desired(before, nodes=4)
    assert after.members == before.members
    assert after.node_ports == (9001, 9002, 9003, 9004)
    assert after.generation == before.generation + 1


def test_growing_restarts_no_node_and_changed_settings_restart_every_node(tmp_path):
    before = desired()
    small = plans(before, tmp_path)
    grown = plans(desired(before, nodes=4), tmp_path)
    tuned = plans(desired(before, tuning={"queryTimeout": "7s"}), tmp_path)
    assert all(grown[name].revision == small[name].revision for name in small)
    assert {name for name in small if tuned[name].revision != small[name].revision} == {"demo-0", "demo-1", "demo-2"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"nodes": 2}, "spec.nodes"),
        ({"name": "other"}, "metadata.name"),
        ({"metadata": {"managed": {"nodes": 3}}}, "spec.metadata.managed.nodes"),
        ({"metadata": {"endpoints": ["http://etcd.example:2379"]}}, "spec.metadata.managed"),
    ],
)
def test_a_change_that_would_lose_something_is_refused_and_says_so(change, field):
    before = desired()
    with pytest.raises(InvalidSpec) as caught:
        changes.require_possible(before, desired(before, **change))
    assert [e["field"] for e in caught.value.errors] == [field]


def test_what_is_not_there_yet_is_refused_by_name():
    with pytest.raises(InvalidSpec) as caught:
        desired(paused=True, autoscaling={"enabled": True, "minNodes": 2, "maxNodes": 3})
    assert {e["field"].split(".")[1] for e in caught.value.errors} == {"paused", "autoscaling"}


def test_another_port_while_it_runs_is_refused_with_a_way():
    with pytest.raises(LocalFailure, match="veccluster down"):
        desired(desired(), port=9001, running=True)


def test_a_lone_etcd_moves_when_its_port_was_taken_meanwhile():
    before = desired()
    with socket.create_server(("127.0.0.1", before.members[0].client_port)):
        moved = changes.with_free_ports(before.members)
        assert moved != before.members and moved[0].name == before.members[0].name
    assert changes.with_free_ports(before.members) == before.members


def test_a_port_in_use_names_the_port_its_holder_and_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalFailure, match=rf"Port {port} is in use by .*pid {os.getpid()}.*--port"):
            ports.require_free([port])
        assert ports.first_free_run(port, 1) > port


def test_the_newest_etcd_is_chosen_and_an_old_one_is_noted():
    assert etcd.find().version >= (3, 5, 1)
    assert "in production use 3.5.13" in etcd.Binary("x", (3, 5, 1)).note
    assert etcd.Binary("x", (3, 5, 13)).note is None


def test_a_damaged_state_file_is_said_so(tmp_path):
    directory = StateDirectory(tmp_path)
    directory.desired_file.write_text("{")
    with pytest.raises(LocalFailure, match="Cannot read"):
        directory.desired()


def test_a_newer_format_of_the_state_is_refused(tmp_path):
    directory = StateDirectory(tmp_path)
    directory.write_desired(msgspec.structs.replace(desired(), format=99))
    with pytest.raises(LocalFailure, match="format 99"):
        directory.desired()


def test_files_of_the_state_are_for_their_owner_alone(tmp_path):
    write_file(tmp_path / "x", b"secret")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_process_is_not_mistaken_for_one_that_had_its_pid():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        ref = ProcessRef.of(child.pid)
        assert ref.alive()
        impostor = ProcessRef(ref.pid, ref.started - 100)
        assert not impostor.alive()
        impostor.signal(signal.SIGKILL)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    assert not ref.alive()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_a_tied_process_dies_with_its_parent_even_if_that_is_killed(tmp_path):
    script = (
        "import subprocess, sys; from veccluster_cli.local import processes;"
        "child = subprocess.Popen(processes.tied([sys.executable, '-c', 'import time; time.sleep(600)']));"
        "print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = ProcessRef.of(int(parent.stdout.readline()))
    assert child.alive()
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.alive(), "the child to end")


def test_a_log_says_its_last_words_in_plain_text(tmp_path):
    log = tmp_path / "x.log"
    assert processes.last_words(log) == ""
    log.write_text('{"event": "stopping", "node": "demo-0", "level": "info"}\n\n')
    assert processes.last_words(log) == "stopping (node=demo-0)"
    log.write_text("veccluster-node: cannot listen\n")
    assert processes.last_words(log) == "veccluster-node: cannot listen"


def test_only_one_holds_a_lock(tmp_path):
    directory = StateDirectory(tmp_path)
    with directory.lock("command") as mine, directory.lock("command") as also_mine:
        assert mine and not also_mine
    with directory.lock("command") as mine:
        assert mine
