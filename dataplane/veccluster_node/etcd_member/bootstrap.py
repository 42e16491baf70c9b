"""What `veccluster-etcd-member` is told, and the configuration file of etcd that it writes.

{"cluster": "demo", "token": "default/demo/UID", "bootstrapped": false,
 "members": [{"name": "demo-etcd-0", "peer_url": "http://...:2380", "client_url": "http://...:2379"}, ...],
 "quota_bytes": 1073741824, "listen_host": "0.0.0.0", "metrics_port": 2381, "snapshot_count": 10000,
 "heartbeat_ms": 200, "election_ms": 1500,
 "tls": {"ca_file": "...", "cert_file": "...", "key_file": "..."} | null}

All from `quota_bytes` on may be left out. Fields that are not known are ignored: a newer operator may write them.
"""

import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from veccluster.decisions.etcd_member import Plan, Planned, Start
from veccluster.errors import InvalidSpec
from veccluster_etcd import EtcdConfig


class Member(msgspec.Struct, frozen=True):
    """One of the members that the operator wants."""

    name: str
    peer_url: str
    client_url: str

    def __post_init__(self) -> None:
        for url in (self.peer_url, self.client_url):
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname or not parts.port or parts.path:
                raise ValueError(f"the URLs of member {self.name} must be http(s)://host:port, one is {url!r}")


class Tls(msgspec.Struct, frozen=True):
    """Files in PEM, for clients and peers alike; both must show a certificate of this authority."""

    ca_file: str
    cert_file: str
    key_file: str

    def files(self) -> dict[str, Any]:
        """For our client of etcd."""
        return {"ca_file": Path(self.ca_file), "cert_file": Path(self.cert_file), "key_file": Path(self.key_file)}

    def security(self) -> dict[str, Any]:
        """A section of etcd's configuration."""
        files = {"trusted-ca-file": self.ca_file, "cert-file": self.cert_file, "key-file": self.key_file}
        return {**files, "client-cert-auth": True}

    def context(self) -> ssl.SSLContext:
        """For a request to a peer."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """The file as it is written."""

    cluster: str
    token: str
    bootstrapped: bool = False
    members: tuple[Member, ...]
    quota_bytes: int = 1 << 30
    listen_host: str = "0.0.0.0"  # noqa: S104 - a pod's address is not known beforehand
    metrics_port: int = 2381
    snapshot_count: int = 10_000
    heartbeat_ms: int = 200
    election_ms: int = 1_500
    """An election takes up to twice as long; nodes hold leases of three seconds."""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must name at least one")
        if len({m.name for m in self.members}) < len(self.members):
            raise ValueError("members must have distinct names")
        if len({m.peer_url for m in self.members}) < len(self.members):
            raise ValueError("members must have distinct peer URLs")
        schemes = {urlsplit(u).scheme for m in self.members for u in (m.peer_url, m.client_url)}
        if schemes != {"https" if self.tls else "http"}:
            raise ValueError("the members' URLs must all be https:// with tls, and all http:// without")

    def member(self, name: str) -> Member:
        """The member of this name; `InvalidSpec` if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise InvalidSpec(f"the bootstrap file names {', '.join(m.name for m in self.members)}, but not {name}")

    def peers_of(self, name: str) -> tuple[Member, ...]:
        """All members but this one."""
        return tuple(m for m in self.members if m.name != name)

    def plan(self) -> Plan:
        """What the decision needs to know of it."""
        return Plan(tuple(Planned(m.name, m.peer_url) for m in self.members), self.bootstrapped)

    def client(self, members: tuple[Member, ...], **times: Any) -> EtcdConfig:
        """How to ask these members."""
        files = self.tls.files() if self.tls else {}
        return EtcdConfig(endpoints=tuple(m.client_url for m in members), **files, **times)


def load(path: Path) -> Bootstrap:
    """Read the file; `InvalidSpec` says what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bootstrap)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidSpec(f"the bootstrap file {path} cannot be used: {error}") from error


def etcd_config(bootstrap: Bootstrap, me: Member, data_dir: Path, start: Start) -> dict[str, Any]:
    """etcd's configuration file, as in `etcd --config-file`."""
    scheme = urlsplit(me.peer_url).scheme
    security = bootstrap.tls.security() if bootstrap.tls else None
    return {
        "name": me.name,
        "data-dir": str(data_dir),
        "listen-peer-urls": f"{scheme}://{bootstrap.listen_host}:{urlsplit(me.peer_url).port}",
        "listen-client-urls": f"{scheme}://{bootstrap.listen_host}:{urlsplit(me.client_url).port}",
        "listen-metrics-urls": f"http://{bootstrap.listen_host}:{bootstrap.metrics_port}",
        "initial-advertise-peer-urls": me.peer_url,
        "advertise-client-urls": me.client_url,
        "initial-cluster": ",".join(f"{m.name}={m.peer_url}" for m in start.members),
        "initial-cluster-state": start.state,
        "initial-cluster-token": bootstrap.token,
        "strict-reconfig-check": True,
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": bootstrap.quota_bytes,
        "snapshot-count": bootstrap.snapshot_count,
        "heartbeat-interval": bootstrap.heartbeat_ms,
        "election-timeout": bootstrap.election_ms,
        **({"client-transport-security": security, "peer-transport-security": security} if security else {}),
    }


def write(config: dict[str, Any], path: Path) -> None:
    """Write etcd's configuration so that it is there whole or not at all.

    As JSON, which is YAML too: where PyYAML writes `8431e220` without quotes, etcd reads a number.
    """
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(config, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
