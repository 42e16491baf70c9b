"""The control plane: etcd, the API server, the controllers, the scheduler and DNS, as processes of this host.

Whoever speaks to the API server has a random token of his own, and verifies the certificate that it made for itself.
"""

from __future__ import annotations

import csv
import json
import secrets
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from e2e.cluster.process import run, start, wait_until
from e2e.cluster.settings import API_PORT, HOST_IP, POD_RANGE, PRIVATE_IP, SERVICE_RANGE, Settings

_ETCD = f"http://{PRIVATE_IP}:2379"
_ETCD_PEER = f"http://{PRIVATE_IP}:2380"
COMPONENTS = ("etcd", "apiserver", "controller-manager", "scheduler", "coredns", "provisioner")


def start_api(settings: Settings, kube: Path, etcd: Path) -> None:
    """Start etcd and the API server on a fresh work directory, and return when it serves."""
    work = settings.work
    tokens = _draw_tokens(settings)
    run("openssl", "genrsa", "-out", work / "sa.key", "2048")
    run("openssl", "rsa", "-in", work / "sa.key", "-pubout", "-out", work / "sa.pub")
    _start(
        settings, "etcd", etcd / "etcd", "--data-dir", work / "etcd", "--unsafe-no-fsync",
        "--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD,
        "--listen-peer-urls", _ETCD_PEER, "--initial-advertise-peer-urls", _ETCD_PEER,
        "--initial-cluster", f"default={_ETCD_PEER}",
    )  # fmt: skip
    _start(
        settings, "apiserver", kube, "kube-apiserver", "--etcd-servers", _ETCD, "--bind-address", HOST_IP,
        "--secure-port", str(API_PORT), "--advertise-address", HOST_IP, "--cert-dir", work / "apiserver",
        "--token-auth-file", work / "tokens.csv", "--authorization-mode", "Node,RBAC",
        "--enable-admission-plugins", "NodeRestriction", "--service-cluster-ip-range", SERVICE_RANGE,
        "--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", work / "sa.pub",
        "--service-account-signing-key-file", work / "sa.key", "--allow-privileged=true",
        "--kubelet-preferred-address-types", "InternalIP",  # for exec and logs: a node's name is in no DNS
        "--enable-aggregator-routing",  # webhooks are called at their pods: this host has no kube-proxy
    )  # fmt: skip
    certificate = work / "apiserver" / "apiserver.crt"
    wait_until(certificate.exists, 30, "the API server's certificate")
    for user, token in tokens.items():
        _write_kubeconfig(settings, user, token)
    (settings.kubeconfig).write_bytes((work / "users" / "admin").read_bytes())
    settings.kubeconfig.chmod(0o600)
    client = Api(settings)
    wait_until(client.ready, 60, f"the API server (its log: {settings.logs / 'apiserver.log'})")


def start_controllers(settings: Settings, kube: Path, coredns: Path) -> None:
    """Start what works through the API: the controllers, the scheduler and DNS."""
    work = settings.work
    for component in ("controller-manager", "scheduler"):
        config = kubeconfig(settings, component)
        flags: tuple[str | Path, ...] = (
            "--kubeconfig", config, "--authentication-kubeconfig", config, "--authorization-kubeconfig", config,
            "--leader-elect=false", "--bind-address", PRIVATE_IP, "--cert-dir", work / component,
        )  # fmt: skip
        if component == "controller-manager":
            flags += (
                "--service-account-private-key-file", work / "sa.key",
                "--root-ca-file", work / "apiserver" / "apiserver.crt",
                "--use-service-account-credentials", "--cluster-cidr", POD_RANGE, "--allocate-node-cidrs=false",
                "--node-monitor-grace-period=20s",
            )  # fmt: skip
        _start(settings, component, kube, f"kube-{component}", *flags)
    corefile = work / "Corefile"
    corefile.write_text(
        f"""cluster.local in-addr.arpa {{
    bind {HOST_IP}
    errors
    ready {HOST_IP}:8181
    kubernetes {{
        kubeconfig {settings.kubeconfig}
        ttl 5
    }}
}}
. {{
    bind {HOST_IP}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
    )
    _start(settings, "coredns", coredns, "-conf", corefile)


def kubeconfig(settings: Settings, user: str) -> Path:
    """The kubeconfig of one of the cluster's own users."""
    return settings.work / "users" / user


def dns_ready() -> bool:
    """Whether CoreDNS has seen the API server's Services."""
    try:
        with urllib.request.urlopen(f"http://{HOST_IP}:8181/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _start(settings: Settings, component: str, *command: str | Path) -> None:
    start(component, command, settings.logs / f"{component}.log")


def _draw_tokens(settings: Settings) -> dict[str, str]:
    users = {
        "admin": ("admin", "system:masters"),
        "controller-manager": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", ""),
        **{node.name: (f"system:node:{node.name}", "system:nodes") for node in settings.nodes},
    }
    tokens = {user: secrets.token_hex(24) for user in users}
    file = settings.work / "tokens.csv"
    file.touch(mode=0o600)
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([tokens[user], name, user, group] for user, (name, group) in users.items())
    return tokens


def _write_kubeconfig(settings: Settings, user: str, token: str) -> None:
    file = kubeconfig(settings, user)
    file.parent.mkdir(exist_ok=True)
    file.touch(mode=0o600)
    cluster = {"server": settings.api, "certificate-authority": str(settings.work / "apiserver" / "apiserver.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "veccluster-e2e", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "veccluster-e2e", "context": {"cluster": "veccluster-e2e", "user": user}}],
        "current-context": "veccluster-e2e",
    }
    file.write_text(json.dumps(config, indent=1))


class ApiError(Exception):
    """The API server refused; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """The API over HTTP, for the harness' own daemon and checks: cheaper than a kubectl each time."""

    def __init__(self, settings: Settings) -> None:
        config = json.loads(settings.kubeconfig.read_text())
        self._server = config["clusters"][0]["cluster"]["server"]
        self._token = config["users"][0]["user"]["token"]
        self._tls = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 10) -> Any:
        """One request with a JSON answer; a PATCH is a merge patch."""
        return json.loads(self._request(method, path, body, timeout))

    def ready(self) -> bool:
        """Whether the API server can serve; the roles are there then, without which no controller starts."""
        try:
            return self._request("GET", "/readyz", None, 2) == b"ok"
        except (OSError, ApiError):
            return False

    def _request(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> bytes:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self._server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind, "Accept": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self._tls) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")) from error
