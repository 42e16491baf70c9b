"""An etcd that exists before any VecCluster: a pod that speaks only TLS, wants certificates, and knows its users."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any

import trustme

from e2e.cluster.images import ETCD_IMAGE
from e2e.cluster.tools import Kubectl
from e2e.support.database import Manifest

NAME, USER = "etcd", "search"
_TLS = "/tls"
_FILES = {"CACERT": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}


class ExternalEtcd:
    """One member, whose user may read and write the keys of the VecClusters in its namespace and nothing else."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.namespace = namespace
        self.url = f"https://{NAME}.{namespace}.svc:2379"
        self.root, self.password = secrets.token_hex(12), secrets.token_hex(12)
        self._kubectl = kubectl
        self._authority = trustme.CA()

    def start(self) -> None:
        """Start it and have it ask for passwords."""
        hosts = ("localhost", self.url.removeprefix("https://").removesuffix(":2379"))
        server = secret("etcd-server", certificates(self._authority, *hosts))
        self._kubectl.apply([server, *_objects()], namespace=self.namespace)
        self._kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=90s", namespace=self.namespace)
        prefix = f"/veccluster/{self.namespace}/"
        for command in (
            ("user", "add", f"root:{self.root}"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", f"{USER}:{self.password}"),
            ("role", "add", USER),
            ("role", "grant-permission", USER, "readwrite", prefix, "--prefix"),
            ("user", "grant-role", USER, USER),
            ("auth", "enable"),
        ):
            self._ctl(*command)

    def certificates(self) -> dict[str, str]:
        """What a client needs: the authority, and a certificate by it."""
        return certificates(self._authority, "client.example.org")

    def login(self) -> dict[str, str]:
        """What a client says of itself."""
        return {"username": USER, "password": self.password}

    def change_password(self) -> None:
        """The user has another one from now on, and whoever had logged in must do so again."""
        self.password = secrets.token_hex(12)
        login = ("--user", f"root:{self.root}")
        self._ctl(*login, "user", "passwd", "--interactive=false", USER, stdin=self.password)

    def _ctl(self, *arguments: str, stdin: str | None = None) -> str:
        interactive = ("-i",) if stdin is not None else ()
        command = ("exec", *interactive, NAME, "--", "etcdctl", *arguments)
        return self._kubectl(*command, namespace=self.namespace, stdin=stdin)


def certificates(authority: trustme.CA, *hosts: str) -> dict[str, str]:
    """A certificate by `authority` for these hosts, as a TLS Secret has it."""
    issued = authority.issue_cert(*hosts)
    return {
        "ca.crt": authority.cert_pem.bytes().decode(),
        "tls.crt": issued.cert_chain_pems[0].bytes().decode(),
        "tls.key": issued.private_key_pem.bytes().decode(),
    }


def secret(name: str, content: Mapping[str, str]) -> Manifest:
    """A Secret."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def everything_said(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    """Whatever people without a right to Secrets read about a namespace: objects, their status, events and logs."""
    kinds = "veccluster,veccollection,statefulset,pod,configmap,service,pvc,events"
    said = {"objects": json.dumps(kubectl.json("get", kinds, namespace=namespace))}
    for pod in kubectl("get", "pods", "-o", "name", namespace=namespace).split():
        said[pod] = kubectl("logs", pod, "--all-containers", namespace=namespace)
    return said


def _objects() -> list[Manifest]:
    urls = {"listen-client-urls": "https://0.0.0.0:2379", "advertise-client-urls": "https://localhost:2379"}
    options = {
        **urls,
        "data-dir": "/data/etcd",
        "listen-metrics-urls": "http://0.0.0.0:2381",
        "cert-file": f"{_TLS}/tls.crt",
        "key-file": f"{_TLS}/tls.key",
        "client-cert-auth": "true",
        "trusted-ca-file": f"{_TLS}/ca.crt",
    }
    environment = {f"ETCDCTL_{name}": f"{_TLS}/{file}" for name, file in _FILES.items()}
    container: dict[str, Any] = {
        "name": "etcd",
        "image": ETCD_IMAGE,
        "command": ["etcd", *(f"--{name}={value}" for name, value in options.items())],
        "env": [
            {"name": k, "value": v} for k, v in {**environment, "ETCDCTL_ENDPOINTS": "https://localhost:2379"}.items()
        ],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 2381}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "tls", "mountPath": _TLS, "readOnly": True},
        ],
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    spec = {
        "automountServiceAccountToken": False,
        "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "tls", "secret": {"secretName": "etcd-server", "defaultMode": 0o440}},
        ],
    }
    labels = {"app": NAME}
    service = {"selector": labels, "ports": [{"port": 2379}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": service},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": labels}, "spec": spec},
    ]
