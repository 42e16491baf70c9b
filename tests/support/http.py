"""Plain HTTP to the nodes of a cluster, as anybody would send it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import requests

from support import cluster as clusters

JSON = "application/json"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
OCTETS = "application/octet-stream"
PROBLEM = "application/problem+json"

_session = requests.Session()


def call(method: str, url: str, body: Any = None, kind: str | None = None, **options: Any) -> requests.Response:
    """The answer to a request; a `body` that is not bytes or an iterator of them is sent as JSON."""
    headers = dict(options.pop("headers", {}))
    if body is not None and not isinstance(body, bytes | Iterator):
        body, kind = json.dumps(body).encode(), kind or JSON
    if kind is not None:
        headers["Content-Type"] = kind
    return _session.request(method, url, data=body, headers=headers, timeout=60, **options)


def problem(reply: requests.Response, status: int = 400) -> dict[str, Any]:
    """The problem document of an error."""
    assert reply.status_code == status, reply.text[:1000]
    assert reply.headers["Content-Type"] == PROBLEM
    said = reply.json()
    assert said["status"] == status and said["title"] and said["detail"]
    assert said["type"].startswith("https://veccluster.io/problems/")
    return said


@dataclass(frozen=True)
class Collection:
    """A collection of the shared cluster; each request says which node it asks, by number."""

    name: str

    def call(self, method: str, path: str = "", body: Any = None, *, node: int = 0, **options: Any) -> Any:
        """The answer to a request below the collection's own path."""
        url = f"{clusters.shared().servers[node]}/v1/collections/{self.name}{path}"
        return call(method, url, body, **options)

    def json(self, method: str, path: str = "", body: Any = None, **options: Any) -> Any:
        """The body of an answer that must be 200."""
        reply = self.call(method, path, body, **options)
        assert reply.status_code == 200, reply.text[:1000]
        assert reply.headers["Content-Type"] == JSON
        return reply.json()

    def upsert(self, *rows: dict[str, Any], **options: Any) -> Any:
        """Store vectors."""
        return self.json("POST", "/vectors", {"vectors": list(rows)}, **options)

    def search(self, vector: list[float], *, node: int = 0, **members: Any) -> list[dict[str, Any]]:
        """The hits of one query."""
        return self.json("POST", "/search", {"vector": vector, **members}, node=node)["results"]

    def ids(self, **options: Any) -> list[str]:
        """Every id, in the order of the listing."""
        return [v["id"] for v in self.json("GET", "/vectors?limit=1000", **options)["vectors"]]

    def count(self, filter_: Any = None, **options: Any) -> int:
        """How many vectors match."""
        return self.json("POST", "/count", {} if filter_ is None else {"filter": filter_}, **options)["count"]


@contextmanager
def collection(dimension: int = 3, metric: str = "l2", **members: Any) -> Iterator[Collection]:
    """A new collection of the shared cluster, for as long as the context.

    Its reads show everything, unless something else is asked for: they go to any node, without a session's token.
    """
    made = Collection(clusters.unique_name("http"))
    asked = {"dimension": dimension, "metric": metric, "read_consistency": "strong", **members}
    reply = made.call("PUT", body=asked)
    assert reply.status_code == 201, reply.text
    try:
        yield made
    finally:
        made.call("DELETE")


def ndjson(*rows: dict[str, Any]) -> bytes:
    """One vector object a line."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def arrow(*rows: dict[str, Any], batch: int = 1000) -> bytes:
    """The rows as an Arrow stream."""
    dimension = len(rows[0]["vector"])
    table = pa.table(
        {
            "id": pa.array([row["id"] for row in rows], pa.string()),
            "vector": pa.array([row["vector"] for row in rows], pa.list_(pa.float32(), dimension)),
            "metadata": pa.array([json.dumps(row.get("metadata", {})) for row in rows], pa.string()),
        }
    )
    return arrow_stream(table, batch)


def arrow_stream(table: pa.Table, batch: int = 1000) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, batch)
    return sink.getvalue().to_pybytes()


def read_arrow(body: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """The table of an Arrow reply, and what its schema's metadata says."""
    table = pa.ipc.open_stream(body).read_all()
    return table, {k.decode(): json.loads(v) for k, v in (table.schema.metadata or {}).items()}


def floats(*vectors: list[float]) -> bytes:
    """Vectors as little-endian float32."""
    return np.array(vectors, "<f4").tobytes()
