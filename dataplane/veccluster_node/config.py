"""What a node is told when it starts: one JSON file, parsed once into frozen values.

{"id": "demo-0", "cluster": "demo", "namespace": "default", "data_dir": "...", "listen": "127.0.0.1:8001",
 "peer_listen": "127.0.0.1:0", "advertise": null, "zone": "", "spec": {the VecCluster's spec},
 "etcd": {"endpoints": ["127.0.0.1:2379"], "username": null, "password_file": null,
          "tls": {"ca_file": null, "cert_file": null, "key_file": null} | null}}
"""

from pathlib import Path
from typing import Any

import msgspec

from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecClusterSpec
from veccluster_node.metadata.etcd import EtcdConfig


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Etcd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach etcd. The password is in a file of its own, so that no argument list or config shows it."""

    endpoints: tuple[str, ...]
    username: str | None = None
    password_file: str | None = None
    tls: Tls | None = None

    def client(self) -> EtcdConfig:
        """What the etcd client is told; reads the password."""
        tls = self.tls or Tls()
        return EtcdConfig(
            endpoints=self.endpoints,
            ca_file=_path(tls.ca_file),
            cert_file=_path(tls.cert_file),
            key_file=_path(tls.key_file),
            username=self.username,
            password=Path(self.password_file).read_text().rstrip("\n") if self.password_file else None,
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


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as it is written."""

    id: str
    cluster: str
    namespace: str = "default"
    data_dir: str
    listen: str
    peer_listen: str = "127.0.0.1:0"
    advertise: str | None = None
    """Host under which other nodes and clients reach this one; by default the host that it listens on."""
    zone: str = ""
    etcd: Etcd
    spec: dict[str, Any] = msgspec.field(default_factory=dict)

    def cluster_spec(self) -> VecClusterSpec:
        """The spec, parsed; `InvalidSpec` names what is wrong."""
        return VecClusterSpec.parse(self.spec)


def load(path: Path) -> NodeConfig:
    """Read a config file; `InvalidSpec` says what is wrong with it."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=NodeConfig)
        for field in ("listen", "peer_listen"):
            Address.parse(getattr(config, field), field)
        config.etcd.client()
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidSpec(f"the node's config {path} cannot be used: {error}") from error
    return config
