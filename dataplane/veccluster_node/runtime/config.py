"""What a node is told when it starts: one JSON file, parsed once into frozen values.

{"id": "demo-0", "cluster": "demo", "namespace": "default", "data_dir": "...", "listen": "127.0.0.1:8001",
 "peer_listen": "127.0.0.1:0", "advertise": null, "zone": "", "zone_file": null, "replace_after": 300,
 "integrity": {"scrub_every": 3600, "scrub_rate": 8388608, "compare_every": 60},
 "spec": {the VecCluster's spec},
 "etcd": {"endpoints": ["127.0.0.1:2379"], "username": null, "username_file": null, "password_file": null,
          "tls": {"ca_file": null, "cert_file": null, "key_file": null} | null}}

In Kubernetes all pods share one file; what differs (`id`, `advertise`, `zone_file`) comes from the command line, and
the host of `peer_listen` from the variable VECCLUSTER_PEER_HOST.
"""

import ipaddress
import re
from pathlib import Path
from typing import Any

import msgspec

from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecClusterSpec
from veccluster_etcd import EtcdConfig


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Etcd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach etcd. The password is in a file of its own, so that no argument list or config shows it."""

    endpoints: tuple[str, ...]
    username: str | None = None
    username_file: str | None = None
    """Instead of `username`: the other half of a mounted Secret."""
    password_file: str | None = None
    tls: Tls | None = None

    def client(self) -> EtcdConfig:
        """What the etcd client is told.

        A certificate and key that are both not there count as not given: a Secret has them only where etcd asks for
        them, and the operator may not look into it.
        """
        tls = self.tls or Tls()
        cert, key = _path(tls.cert_file), _path(tls.key_file)
        given = (cert and cert.exists()) or (key and key.exists())
        return EtcdConfig(
            endpoints=self.endpoints,
            ca_file=_path(tls.ca_file),
            cert_file=cert if given else None,
            key_file=key if given else None,
            username=self.username,
            username_file=_path(self.username_file),
            password_file=_path(self.password_file),
        )


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


class Address(msgspec.Struct, frozen=True):
    """host:port; port 0 means any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, field: str = "address") -> "Address":
        """From `host:port` or `[v6]:port`; ValueError naming `field` otherwise."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{field} must be host:port, is {text!r}")
        return cls(host.strip("[]"), int(port))


def host_port(host: str, port: int) -> str:
    """As one writes it; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class IntegrityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a node looks at what it holds. Seconds, and bytes a second."""

    scrub_every: float = 3600.0
    """Pause between two looks at everything that is on the disk."""
    scrub_rate: float = 8 << 20
    """How fast it is read."""
    compare_every: float = 60.0
    """Pause between two comparisons of the copies of the shards that the node serves."""


_ID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as it is written."""

    id: str = ""
    cluster: str
    namespace: str = "default"
    data_dir: str
    listen: str
    peer_listen: str = "127.0.0.1:0"
    advertise: str | None = None
    """Host under which other nodes and clients reach this one; by default the host that it listens on."""
    zone: str = ""
    zone_file: str | None = None
    """File that names the zone once it is known; before that, `zone` holds."""
    replace_after: float = 300.0
    """Seconds that a node may be away before its copies are made elsewhere."""
    integrity: IntegrityConfig = IntegrityConfig()
    etcd: Etcd
    spec: dict[str, Any] = msgspec.field(default_factory=dict)

    def cluster_spec(self) -> VecClusterSpec:
        """The spec, parsed; `InvalidSpec` names what is wrong."""
        return VecClusterSpec.parse(self.spec)

    def known_hosts(self) -> frozenset[str] | None:
        """The names by which clients may ask this node, beside those of the loopback; None where any name will do.

        On the loopback only this machine's own programs can ask, and so web pages in its browser: only names tell.
        """
        if not _is_loopback(Address.parse(self.listen).host):
            return None
        return frozenset({self.advertise.lower()} if self.advertise else ())

    def check(self) -> None:
        """Raise ValueError, OSError or `InvalidSpec` that names what is wrong."""
        if not _ID.fullmatch(self.id):
            given = f"is {self.id!r}" if self.id else "is missing: give it here or as --id"
            raise ValueError(f"id must be letters, digits, '-', '_' and '.', {given}")
        listen = [Address.parse(getattr(self, field), field) for field in ("listen", "peer_listen")]
        if self.advertise is None:
            if any(_is_every_address(a.host) for a in listen):
                raise ValueError("advertise must name this node's host when it listens on all addresses")
        elif not _HOST.fullmatch(self.advertise) and not _is_ipv6(self.advertise):
            raise ValueError(f"advertise must be a host name or an address, without a port, is {self.advertise!r}")
        self.etcd.client()  # the files that it names are waited for: a Secret may be corrected at any time


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def load(path: Path, *, peer_host: str | None = None, **given: str | None) -> NodeConfig:
    """Read a config file; `InvalidSpec` says what is wrong with it. `given`, where not None, goes before the file, and
    `peer_host` before the host in its `peer_listen`.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=NodeConfig)
        config = msgspec.structs.replace(config, **{k: v for k, v in given.items() if v is not None})
        if peer_host:
            listen = host_port(peer_host, Address.parse(config.peer_listen, "peer_listen").port)
            config = msgspec.structs.replace(config, peer_listen=listen)
        config.check()
    except InvalidSpec as error:
        raise InvalidSpec(f"the node's config {path} cannot be used: {error.detail}") from error
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidSpec(f"the node's config {path} cannot be used: {error}") from error
    return config
