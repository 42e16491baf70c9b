"""What the client does, run in a pod of the node's image: load words of WordNet and measure the recall of searches.

    python inside.py store NAME < base64      keep a file of examples/wordnet
    python inside.py ACTION '{"server": ...}' load, recall or ask; prints JSON

Plain JSON is sent with what Python has of its own, as any program would; the Python client does the same besides.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veccluster import Client

DATA = Path("/data")
K = 10
TIMEOUT = 20.0

Floats = NDArray[np.float32]


def load(server: str, collection: str, first: int, rows: int) -> dict[str, Any]:
    """Store words `first` to `first + rows` with their metadata."""
    vectors, words = _base()
    chosen = slice(first, first + rows)
    about = words[chosen]
    metadata = [{"pos": w["pos"], "lexname": w["lexname"]} for w in about]
    with Client([server], timeout=TIMEOUT) as client:
        done = client.upsert(collection, [w["id"] for w in about], vectors[chosen], metadata)
    return {"upserted": done.upserted}


def recall(server: str, collection: str, rows: int) -> dict[str, Any]:
    """The share of the true nearest that searches find, once by plain JSON and once by the Python client.

    Besides, how many vectors there are, and for how many of the first words something else than what was stored.
    """
    vectors, words = _base()
    ids = [w["id"] for w in words[:rows]]
    queries = _unit(np.load(DATA / "held-out.npy"))
    nearest = np.argsort(-(queries @ _unit(vectors[:rows]).T), axis=1, kind="stable")[:, :K]
    truth = [{ids[i] for i in row} for row in nearest]
    by_json = [
        [hit["id"] for hit in _post(f"{server}/v1/collections/{collection}/search", {"vector": q.tolist(), "k": K})]
        for q in queries
    ]
    with Client([server], timeout=TIMEOUT) as client:
        by_client = client.search_many(collection, queries, k=K).ids
        count = client.count(collection)
        kept = [np.array_equal(client.get(collection, ids[i]).vector, vectors[i]) for i in range(0, rows, rows // 50)]
    return {
        "json": _found(by_json, truth),
        "client": _found(by_client, truth),
        "count": count,
        "changed": kept.count(False),
    }


def ask(server: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Any request: the status and the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(server + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return {"status": reply.status, "body": json.loads(reply.read() or "null")}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": json.loads(error.read() or "null")}


def _post(url: str, body: Any) -> list[dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            results: list[dict[str, Any]] = json.load(reply)["results"]
            return results
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code} after {time.monotonic() - begun:.1f} s: {error.read().decode()}") from error


def _base() -> tuple[Floats, list[dict[str, Any]]]:
    with gzip.open(DATA / "words.jsonl.gz", "rt") as lines:
        words = [json.loads(line) for line in lines]
    return np.load(DATA / "vectors.npy").astype(np.float32), words


def _unit(vectors: NDArray[Any]) -> Floats:
    vectors = vectors.astype(np.float32)
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _found(answers: list[list[str]], truth: list[set[str]]) -> float:
    return sum(len(set(a) & t) for a, t in zip(answers, truth, strict=True)) / (K * len(truth))


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"load": load, "recall": recall, "ask": ask}


def main() -> None:
    """Do what the command line says."""
    action, argument = sys.argv[1:]
    if action == "store":
        (DATA / argument).write_bytes(base64.b64decode(sys.stdin.read()))
    else:
        print(json.dumps(ACTIONS[action](**json.loads(argument))))


if __name__ == "__main__":
    main()
