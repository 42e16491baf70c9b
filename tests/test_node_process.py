"""The node as a process in a pod: who it is told to be, where it learns its zone, how it stops, when it is alive."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
import requests

from support.cluster import unique_name, wait_until
from support.etcd import EtcdCluster
from support.nodes import Nodes
from veccluster.errors import InvalidSpec
from veccluster.model.state import Node
from veccluster_etcd import EtcdConfig
from veccluster_node.node import zone
from veccluster_node.runtime.config import host_port, load

VECTORS = np.eye(8, dtype=np.float32)
IDS = [f"id-{i}" for i in range(8)]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_node(etcd) -> Iterator[Nodes]:
    with Nodes(1, etcd=etcd) as nodes:
        yield nodes


def registered(nodes: Nodes, node: str) -> Node:
    key = f"/veccluster/default/{nodes.name}/nodes/{node}"
    return msgspec.json.decode(nodes.etcd.ctl("get", key, "--print-value-only"), type=Node)


# Who it is


BASE = {"cluster": "c", "data_dir": "d", "listen": "0.0.0.0:8001", "peer_listen": "0.0.0.0:8002"}
ETCD = {"endpoints": ["e:2379"]}


def config_file(tmp_path, **changes):
    path = tmp_path / "node.json"
    path.write_text(json.dumps({**BASE, "etcd": ETCD, **changes}))
    return path


def test_what_differs_between_pods_comes_from_the_command_line(tmp_path):
    path = config_file(tmp_path, id="from-the-file", zone="a")
    config = load(path, id="demo-3", advertise="demo-3.demo-nodes.search.svc", zone_file="/z")
    assert (config.id, config.advertise, config.zone_file, config.zone) == (
        "demo-3", "demo-3.demo-nodes.search.svc", "/z", "a",
    )  # fmt: skip
    assert load(path, id=None, advertise="h").id == "from-the-file"
    assert load(config_file(tmp_path), id="x", advertise="::1").advertise == "::1"
    assert (host_port("::1", 80), host_port("a.b", 80)) == ("[::1]:80", "a.b:80")


@pytest.mark.parametrize(("host", "listen"), [("10.0.0.7", "10.0.0.7:8002"), ("fd00::7", "[fd00::7]:8002")])
def test_a_pod_listens_for_other_nodes_at_its_own_address_only(tmp_path, host, listen):
    config = load(config_file(tmp_path), peer_host=host, id="a", advertise="h")
    assert (config.listen, config.peer_listen) == ("0.0.0.0:8001", listen)


@pytest.mark.parametrize(
    ("changes", "given", "why"),
    [
        ({}, {"advertise": "h"}, "id must be .* is missing: give it here or as --id"),
        ({}, {"id": "a/b", "advertise": "h"}, "id must be .* is 'a/b'"),
        ({}, {"id": "a"}, "advertise must name this node's host when it listens on all addresses"),
        ({}, {"id": "a", "advertise": "h:80"}, "advertise must be a host name or an address, without a port"),
        ({"etcd": {**ETCD, "username_file": "/nowhere"}}, {}, "username: must come together with a password"),
        ({"etcd": {**ETCD, "password_file": "/nowhere"}}, {}, "password: must come together with a username"),
        (
            {"etcd": {**ETCD, "username": "a", "username_file": "/b", "password_file": "/c"}},
            {},
            "username: must be left out when username_file is given",
        ),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path, changes, given, why):
    path = config_file(tmp_path, **changes)
    with pytest.raises(InvalidSpec, match=why):
        load(path, **({"id": "a", "advertise": "h"} if changes else given))


def test_the_process_says_it_in_one_line_and_ends_with_2(tmp_path):
    command = [sys.executable, "-m", "veccluster_node", "--config", str(config_file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--id" in done.stderr


def test_a_certificate_that_a_secret_does_not_have_is_not_used(tmp_path):
    tls = {"ca_file": str(tmp_path / "ca"), "cert_file": str(tmp_path / "crt"), "key_file": str(tmp_path / "key")}
    path = config_file(tmp_path, etcd={"endpoints": ["https://e:2379"], "tls": tls})
    client = load(path, id="a", advertise="h").etcd.client()
    assert (client.ca_file.name, client.cert_file, client.key_file) == ("ca", None, None)
    (tmp_path / "crt").touch()
    assert load(path, id="a", advertise="h").etcd.client().key_file.name == "key"


def test_the_password_is_what_the_files_hold_at_each_login(tmp_path):
    username, password = tmp_path / "username", tmp_path / "password"
    config = EtcdConfig(endpoints=("e:1",), username_file=username, password_file=password)
    username.write_text("me\n")
    password.write_text("one\n")
    assert config.login() == ("me", "one")
    password.write_text("two")
    assert config.login() == ("me", "two")
    password.write_text("\n")
    with pytest.raises(InvalidSpec, match="password is empty"):
        config.login()
    password.unlink()
    with pytest.raises(InvalidSpec, match=r"password is missing$"):
        config.login()
    username.unlink()
    with pytest.raises(InvalidSpec, match=f"username is missing: {tmp_path} is empty or does not exist"):
        config.login()


# Its log


def test_a_log_is_one_json_object_a_line_whoever_writes_it():
    script = """
import asyncio, logging, structlog, warnings
from veccluster_node.runtime import logs
logs.to_stderr("info")
structlog.get_logger("a").info("ours", shard="s.0")
try:
    raise ValueError("two\\nlines")
except ValueError:
    logging.getLogger("aiohttp.server").exception("Error handling %s", "this")
    structlog.get_logger("a").exception("ours_too")
logging.getLogger("asyncio").info("Using a selector")
warnings.warn("old", DeprecationWarning)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, timeout=30)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(said["event"], said["level"]) for said in lines[:3]] == [
        ("ours", "info"), ("Error handling this", "error"), ("ours_too", "error"),
    ]  # fmt: skip
    assert (lines[1]["logger"], "two\nlines" in lines[1]["exception"]) == ("aiohttp.server", True)
    assert "DeprecationWarning" in lines[3]["event"] and len(lines) == 4


@pytest.mark.parametrize("request_line", ["BREW /healthz HTTP/1.1", "G(T /healthz HTTP/1.1", "nothing at all"])
def test_what_is_no_http_is_refused_and_leaves_no_trace_in_the_log(one_node, request_line):
    before = one_node.log_file(0).read_text()
    address = urlsplit(one_node.url(0))
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        for line in ("GET /healthz HTTP/1.1", request_line):
            client.sendall(f"{line}\r\nHost: localhost\r\n\r\n".encode())
            answer = client.recv(10_000)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    said = one_node.log_file(0).read_text()[len(before) :]
    assert not [line for line in said.splitlines() if "Error handling" in line or not line.startswith("{")]


# Its zone


def test_a_zone_file_names_a_zone_or_none(tmp_path):
    path = tmp_path / "zone"
    assert zone.read(path) == ""
    for text, named in [("", ""), ("eu-west-1a", "eu-west-1a"), (" eu-1\n", "eu-1"), ("no/zone", ""), ("é", "")]:
        path.write_text(text)
        assert zone.read(path) == named


@pytest.mark.e2e
def test_a_node_learns_its_zone_late_and_follows_it(etcd, tmp_path):
    file = tmp_path / "zone"
    with Nodes(1, etcd=etcd) as nodes:
        nodes.stop(0)
        nodes.start(0, zone_file=str(file))
        nodes.wait_ready(0)
        assert registered(nodes, "n0").zone == ""
        for name in ("a", "b"):
            file.write_text("")
            file.write_text(name)
            wait_until(lambda name=name: registered(nodes, "n0").zone == name, f"zone {name}")
        nodes.kill(0)
        nodes.start(0, zone_file=str(file))
        nodes.wait_ready(0)
        assert registered(nodes, "n0").zone == "b"


# How it stops


@pytest.mark.e2e
def test_a_node_that_stops_answers_what_is_under_way_and_says_that_it_goes(etcd):
    """Under way: an upload of which half was sent. Others know at once, by the lease, that the node is gone."""
    with Nodes(2, etcd=etcd) as nodes, nodes.client() as client:
        name = unique_name()
        client.create_collection(name, dimension=8, metric="l2", shards=2)
        kept_open = requests.Session()
        assert kept_open.get(nodes.url(0) + "/readyz").status_code == 200
        lines = [json.dumps({"id": i, "vector": v.tolist()}) + "\n" for i, v in zip(IDS, VECTORS, strict=True)]
        upload = http.client.HTTPConnection(nodes.url(0).removeprefix("http://"), timeout=20)
        upload.putrequest("POST", f"/v1/collections/{name}/vectors")
        upload.putheader("Content-Type", "application/x-ndjson")
        upload.putheader("Transfer-Encoding", "chunked")
        upload.endheaders()
        _send(upload, "".join(lines[:4]))

        ended = threading.Thread(target=nodes.stop, args=(0,))
        started = time.monotonic()
        ended.start()
        wait_until(lambda: requests.get(nodes.url(0) + "/readyz", timeout=5).status_code == 503, "503 while stopping")
        last = kept_open.get(nodes.url(0) + "/readyz")
        assert (last.status_code, last.headers["Connection"]) == (503, "close")
        assert "the node is stopping" in last.json()["detail"]
        assert requests.get(nodes.url(0) + "/healthz", timeout=5).ok, "it is alive until the end"

        _send(upload, "".join(lines[4:]))
        upload.send(b"0\r\n\r\n")
        answer = upload.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        assert json.loads(answer.read())["upserted"] == 8
        ended.join(timeout=20)
        assert time.monotonic() - started < 15
        assert nodes.etcd.ctl("get", f"/veccluster/default/{nodes.name}/alive/n0", "--print-value-only") == ""
        wait_until(lambda: nodes.cluster(1).get("health") == "critical", "the other to know")
        nodes.start(0)
        nodes.wait_ready(0)
        nodes.wait_healthy()
        assert client.count(name) == 8


def _send(upload: http.client.HTTPConnection, text: str) -> None:
    upload.send(f"{len(text):x}\r\n{text}\r\n".encode())


def test_an_idle_node_stops_within_a_moment(etcd):
    with Nodes(1, etcd=etcd) as nodes:
        started = time.monotonic()
        assert nodes.stop(0) == 0
        assert time.monotonic() - started < 5


# Whether it is alive


@pytest.mark.e2e
def test_a_node_answers_its_liveness_probe_while_a_shard_takes_its_time_to_open_and_still_ends_in_time(etcd):
    with Nodes(1, etcd=etcd) as nodes, nodes.client() as client:
        name = unique_name()
        client.create_collection(name, dimension=8, metric="l2", shards=2)
        client.upsert(name, IDS, VECTORS)
        nodes.kill(0)
        nodes.environment["VECCLUSTER_FAILPOINTS"] = "replica.opening=1-hang"
        nodes.start(0, arguments=("--stop-timeout", "3"))
        wait_until(lambda: "opening shards" in _why_not_ready(nodes), "the shard to be opened")
        said = requests.get(nodes.url(0) + "/readyz", timeout=5)
        assert said.ok, "it answers for all others, and by the others for this one"
        assert set(said.json()["opening"]) & {f"{name}/0", f"{name}/1"}
        assert set(nodes.cluster(0)["nodes"][0]["opening"]) == set(said.json()["opening"])
        for _ in range(20):
            asked = time.monotonic()
            assert requests.get(nodes.url(0) + "/healthz", timeout=5).ok
            assert time.monotonic() - asked < 3, "probes wait for a few seconds"
        assert nodes.stop(0) == 0
        assert "stopped_in_the_middle" in nodes.log(0)


def _why_not_ready(nodes: Nodes) -> str:
    try:
        return requests.get(nodes.url(0) + "/readyz?shards=all", timeout=5).json().get("detail", "")
    except requests.ConnectionError:
        return ""


@pytest.mark.e2e
def test_a_node_answers_its_liveness_probe_while_it_builds_its_index(etcd):
    rng = np.random.default_rng(1)
    spec = {"tuning": {"maxTail": 200, "snapshotInterval": "1s"}}
    with Nodes(1, etcd=etcd, spec=spec) as nodes, nodes.client() as client:
        name = unique_name()
        client.create_collection(name, dimension=256, metric="l2", shards=1)
        slowest = 0.0
        for batch in range(8):
            ids = [f"{batch}-{n}" for n in range(500)]
            client.upsert(name, ids, rng.standard_normal((500, 256), dtype=np.float32))
            asked = time.monotonic()
            assert requests.get(nodes.url(0) + "/healthz", timeout=5).ok
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 3
        page = requests.get(nodes.url(0) + "/metrics", timeout=5).text
        for metric in (
            "veccluster_http_requests_total",
            "veccluster_http_request_seconds_bucket",
            "veccluster_node_ready",
            "veccluster_shard_vectors",
            "veccluster_shard_disk_bytes",
            "process_resident_memory_bytes",
        ):
            assert metric in page
