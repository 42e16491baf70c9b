"""A client of VecCluster inside the cluster: a pod of the node's image, in a namespace of its own, restricted."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from e2e.cluster.settings import CHECKOUT
from e2e.cluster.tools import Kubectl, clean_environment
from e2e.support.database import Database, Manifest

IMAGE = "localhost/veccluster-node:dev"
WORDS = 10_000
_PROGRAMS = [Path(__file__).with_name(name) for name in ("inside.py", "recorder.py")]
_FILES = ("vectors.npy", "words.jsonl.gz", "held-out.npy")
_WORDNET = CHECKOUT / "examples" / "wordnet"
_POD = "client"


class Client:
    """The client's pod; what it asks goes through the Services and DNS of the cluster."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    def start(self) -> None:
        """Start the pod and give it the words."""
        self._kubectl.apply(_objects(), namespace=self._namespace)
        self._kubectl("wait", "--for=condition=Ready", f"pod/{_POD}", "--timeout=90s", namespace=self._namespace)
        for name in _FILES:
            self._run("store", name, stdin=base64.b64encode((_WORDNET / name).read_bytes()).decode())

    @property
    def node(self) -> str:
        """The Kubernetes node that the client runs on."""
        pod: Manifest = self._kubectl.json("get", "pod", _POD, namespace=self._namespace)
        return str(pod["spec"]["nodeName"])

    def load(self, database: Database, collection: str, rows: int, first: int = 0) -> None:
        """Store `rows` words from the `first` on, and see that all were acknowledged."""
        done = self._call("load", server=database.url, collection=collection, first=first, rows=rows)
        assert done == {"upserted": rows}

    def recall(self, database: Database, collection: str, rows: int) -> dict[str, Any]:
        """Recall@10 of 100 held-out queries by "json" and "client", the "count", and how many vectors are "changed"."""
        return self._call("recall", server=database.url, collection=collection, rows=rows)

    def ask(self, database: Database, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a request; the "status" and the "body" of the answer."""
        return self._call("ask", server=database.url, method=method, path=path, body=body)

    def begin(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Run a program in the pod, beside whatever else it does; it should end when its stdin does."""
        where = ("--kubeconfig", self._kubectl.kubeconfig, "--namespace", self._namespace)
        command = ("exec", "-i", _POD, "--", "python", f"/program/{program}", *arguments)
        return subprocess.Popen(
            [self._kubectl.binary, *where, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=clean_environment(self._kubectl.kubeconfig.parent),
        )  # fmt: skip

    def _call(self, action: str, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run(action, json.dumps(arguments)))
        return found

    def _run(self, action: str, argument: str, stdin: str | None = None) -> str:
        command = ("python", "/program/inside.py", action, argument)
        interactive = ("-i",) if stdin is not None else ()
        return self._kubectl("exec", *interactive, _POD, "--", *command, namespace=self._namespace, stdin=stdin)


def _objects() -> list[Manifest]:
    program = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "program"},
        "data": {file.name: file.read_text() for file in _PROGRAMS},
    }
    container = {
        "name": "python",
        "image": IMAGE,
        "command": ["python", "-c", "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "program", "mountPath": "/program", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "program", "configMap": {"name": "program"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return [program, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _POD}, "spec": pod}]
