"""Measure a cluster of local processes: recall, ingest, queries a second, latency, memory.

    python -m bench [--data DIR] [--rows N] [--nodes 3] [--replicas 3] [--metric cosine] [--precision f32] [--json FILE]

The client runs on the same machine and takes its share of the processors; figures of one run compare with each other.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bench.dataset import SELECTIVITY, Dataset, load, nearest, recall
from veccluster import AsyncClient
from veccluster.client.results import Progress
from veccluster.model.spec import VecCluster
from veccluster_cli.local import runtime
from veccluster_cli.local.state import StateDirectory

NAME = "bench"
K = 10
REPLACED, ROUNDS = 0.3, 10
QUERIES = 2_000

Figures = dict[str, float | int | str]


class Report(dict[str, Figures]):
    """What has been measured, by subject; each is said as soon as it is there, for a run may take half an hour."""

    def __setitem__(self, what: str, figures: Figures) -> None:
        super().__setitem__(what, figures)
        print(f"  {what}: {', '.join(f'{name} {value}' for name, value in figures.items())}", file=sys.stderr)


def main() -> None:
    """Run everything and print it."""
    arguments = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "examples" / "wordnet")
    arguments.add_argument("--rows", type=int, help="use only so many vectors")
    arguments.add_argument("--nodes", type=int, default=3)
    arguments.add_argument("--replicas", type=int, help="replicas of each shard; by default what the cluster makes")
    arguments.add_argument("--metric", choices=["cosine", "l2", "dot"], default="cosine")
    arguments.add_argument("--precision", choices=["f32", "f16", "bf16", "i8"])
    arguments.add_argument("--json", type=Path, default=Path(__file__).parent / "out" / "bench.json")
    options = arguments.parse_args()
    data = load(options.data, options.rows)
    print(f"{data.name}: {len(data.vectors)} vectors of {data.vectors.shape[1]}, {len(data.queries)} queries")
    figures = Report()
    asyncio.run(_measure(data, options, figures))
    _print(figures)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nThe same as JSON: {options.json}")


async def _measure(data: Dataset, options: argparse.Namespace, figures: Report) -> None:
    index = {"precision": options.precision} if options.precision else None
    async with _cluster(options.nodes) as (client, directory):
        made = await client.create_collection(
            NAME,
            dimension=data.vectors.shape[1],
            metric=options.metric,
            index=index,
            replication_factor=options.replicas,
        )
        replicas = made.details["replication_factor"]
        truth = nearest(data.vectors, data.queries, K, options.metric)
        figures["set-up"] = {"vectors": len(data.vectors), "nodes": options.nodes, "replicas": replicas}
        figures["ingest"] = await _ingest(client, data, options.metric)
        figures["just loaded"] = await _quality(client, data, truth)
        await _until_indexed(client, directory)
        figures["indexed"] = await _quality(client, data, truth)
        for clients in (1, 8, 32):
            figures[f"{clients} clients"] = await _load(client, data, clients)
        for name, slots in SELECTIVITY.items():
            figures[f"filter {name}"] = await _filtered(client, data, slots, options.metric)
        figures["memory and disk"] = _sizes(directory)
        figures[f"after replacing {REPLACED:.0%} {ROUNDS} times"] = await _churn(client, data, truth, directory)
        if options.nodes > 1 and replicas > 1:
            figures["while a node fetches all its copies anew"] = await _refill(client, data, directory)


async def _ingest(client: AsyncClient, data: Dataset, metric: str) -> Figures:
    """Load everything as Arrow while one client searches what is there already."""
    done = asyncio.Event()
    waits: list[float] = []
    answers: list[tuple[int, int, list[str]]] = []
    acknowledged = 0

    def note(progress: Progress) -> None:
        nonlocal acknowledged
        acknowledged = progress.done

    async def search_meanwhile() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % len(data.queries)
            before, started = acknowledged, time.perf_counter()
            found = await client.search(NAME, data.queries[number], k=K)
            waits.append(time.perf_counter() - started)
            answers.append((number, before, found.ids))

    searching = asyncio.create_task(search_meanwhile())
    started = time.perf_counter()
    await client.upload(NAME, _table(data), progress=note)
    seconds = time.perf_counter() - started
    done.set()
    await searching
    recalls = [_recall_of_a_prefix(data, metric, *answer) for answer in answers if answer[1]]
    return {
        "vectors/s": round(len(data.vectors) / seconds),
        "recall@10 meanwhile": round(float(np.mean(recalls)), 4) if recalls else "none searched",
        **_latency(waits, "search meanwhile "),
    }


def _recall_of_a_prefix(data: Dataset, metric: str, query: int, acknowledged: int, found: list[str]) -> float:
    """Against what had been acknowledged before the search, and what it found beyond that."""
    position = {name: row for row, name in enumerate(data.ids)}
    beyond = [position[name] for name in found if position[name] >= acknowledged]
    rows = np.array([*range(acknowledged), *beyond])
    truth = nearest(data.vectors[rows], data.queries[query : query + 1], K, metric)
    return recall([found], truth, [data.ids[row] for row in rows])


def _table(data: Dataset) -> pa.Table:
    flat = pa.array(data.vectors.reshape(-1), type=pa.float32())
    columns = {
        "id": pa.array(data.ids),
        "vector": pa.FixedSizeListArray.from_arrays(flat, data.vectors.shape[1]),
        "metadata": pa.array([json.dumps(m) for m in data.metadata]),
    }
    return pa.table(columns)


async def _quality(client: AsyncClient, data: Dataset, truth: npt.NDArray[np.int64]) -> Figures:
    found: list[list[str]] = []
    for start in range(0, len(data.queries), 100):
        found += (await client.search_many(NAME, data.queries[start : start + 100], k=K)).ids
    return {"recall@10": round(recall(found, truth, data.ids), 4)}


async def _until_indexed(client: AsyncClient, directory: StateDirectory, settle: float = 3.0) -> None:
    """Wait until no copy has been built for a while; the collection's `index_state` is that of its primaries alone."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < settle:
        builds = any(node.children() for _, node in _nodes(directory))
        if builds or (await client.collection(NAME)).index_state != "ready":
            quiet_since = time.monotonic()
        await asyncio.sleep(0.2)


async def _load(client: AsyncClient, data: Dataset, clients: int) -> Figures:
    return await _timed(data, clients, lambda query: client.search(NAME, query, k=K))


async def _timed(
    data: Dataset, clients: int, search: Callable[[npt.NDArray[np.float32]], Awaitable[Any]], queries: int = QUERIES
) -> Figures:
    waits: list[float] = []
    numbers = iter(range(queries))

    async def one_client() -> None:
        for number in numbers:
            started = time.perf_counter()
            await search(data.queries[number % len(data.queries)])
            waits.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    return {"queries/s": round(queries / (time.perf_counter() - started)), **_latency(waits)}


def _latency(waits: list[float], prefix: str = "") -> Figures:
    if not waits:
        return {}
    return {f"{prefix}p{p} ms": round(float(np.percentile(waits, p)) * 1000, 2) for p in (50, 95, 99)}


async def _filtered(client: AsyncClient, data: Dataset, slots: int, metric: str) -> Figures:
    rows = np.flatnonzero(data.slots < slots)
    truth = nearest(data.vectors[rows], data.queries, K, metric)
    where = {"slot": {"$lt": slots}}
    found = [(await client.search(NAME, query, k=K, filter=where)).ids for query in data.queries]
    timed = await _timed(data, 8, lambda query: client.search(NAME, query, k=K, filter=where), queries=500)
    return {"recall@10": round(recall(found, truth, [data.ids[r] for r in rows]), 4), **timed}


async def _churn(
    client: AsyncClient, data: Dataset, truth: npt.NDArray[np.int64], directory: StateDirectory
) -> Figures:
    """Store 30 % of the vectors again, ten times: the truth stays what it was, the index does not."""
    chance = np.random.default_rng(2)
    worst = 1.0
    for _ in range(ROUNDS):
        rows = chance.choice(len(data.vectors), int(REPLACED * len(data.vectors)), replace=False)
        await client.upsert(NAME, [data.ids[r] for r in rows], data.vectors[rows], [data.metadata[r] for r in rows])
        worst = min(worst, float((await _quality(client, data, truth))["recall@10"]))
    await _until_indexed(client, directory)
    return {**await _quality(client, data, truth), "worst recall@10 meanwhile": worst, **await _load(client, data, 8)}


async def _refill(client: AsyncClient, data: Dataset, directory: StateDirectory) -> Figures:
    """Take a node's disk away while eight clients search, until everything is in order again."""
    name, process = _nodes(directory)[-1]
    files = directory.data_of(name)
    files.rename(files.with_name(f"{name}.lost"))
    process.kill()
    began = time.monotonic()
    waits: list[float] = []
    whole = asyncio.Event()

    async def one_client(number: int) -> None:
        while not whole.is_set():
            started, number = time.perf_counter(), number + 8
            await client.search(NAME, data.queries[number % len(data.queries)], k=K)
            waits.append(time.perf_counter() - started)

    searching = [asyncio.create_task(one_client(n)) for n in range(8)]
    for should_be in (False, True):
        await _until_whole(client, should_be=should_be)
    seconds = time.monotonic() - began
    whole.set()
    await asyncio.gather(*searching)
    return {"seconds": round(seconds, 1), "queries/s": round(len(waits) / seconds), **_latency(waits)}


async def _until_whole(client: AsyncClient, *, should_be: bool) -> None:
    """Wait until the cluster says that it has every copy, or that it lacks some."""
    is_whole = not should_be
    while is_whole != should_be:
        now = await client.cluster()
        is_whole = now.health == "healthy" and not now.shards.under_replicated
        await asyncio.sleep(0.2)


def _nodes(directory: StateDirectory) -> list[tuple[str, psutil.Process]]:
    """The nodes that run."""
    status = directory.status()
    assert status is not None
    return [(p.name, psutil.Process(p.process.pid)) for p in status.processes if p.process and p.role == "node"]


def _sizes(directory: StateDirectory) -> Figures:
    resident = [process.memory_info() for _, process in _nodes(directory)]
    disk = sum(f.stat().st_size for f in directory.path.rglob("*") if f.is_file())
    return {
        "memory MiB, all nodes": sum(m.rss for m in resident) >> 20,
        "of which mapped files MiB": sum(m.shared for m in resident) >> 20,
        "disk MiB, with etcd": disk >> 20,
    }


@asynccontextmanager
async def _cluster(nodes: int) -> AsyncIterator[tuple[AsyncClient, StateDirectory]]:
    """A cluster of its own in a directory of its own, gone afterwards."""
    spec = {"nodes": nodes, "metadata": {"managed": {"nodes": 1}}}
    resource = {"apiVersion": "veccluster.io/v1alpha1", "kind": "VecCluster", "metadata": {"name": NAME}, "spec": spec}
    with tempfile.TemporaryDirectory(prefix="veccluster-bench-") as path:
        directory = StateDirectory(Path(path) / NAME)
        desired = runtime.up(directory, VecCluster.parse(resource), port=18001, temporary=True)
        try:
            for step in runtime.wait_until_healthy(directory, desired, timeout=60):
                print(f"  {step.text}", file=sys.stderr)
            runtime.require_healthy(step)
            async with AsyncClient(desired.servers, timeout=120) as client:
                yield client, directory
        finally:
            runtime.down(directory)


def _print(figures: Report) -> None:
    table = Table("what", "figure", "value")
    for what, rows in figures.items():
        for number, (name, value) in enumerate(rows.items()):
            table.add_row(what if number == 0 else "", name, str(value))
        table.add_section()
    Console(width=100).print(table)


main()
