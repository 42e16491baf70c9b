"""Measure what replicas at rest cost: threads, open files, memory and processor of nodes that hold many of them.

    python -m bench.density [--replicas 0,99,399] [--shards 3] [--settle 15] [--seconds 20] [--json FILE]

Three nodes, three copies of each shard, no data: each collection is `--shards` replicas on each node. The processor is
that of all processes together, etcd's and the supervisor's too, in per cent of one core.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from veccluster import AsyncClient
from veccluster.model.spec import VecCluster
from veccluster_cli.local import runtime
from veccluster_cli.local.state import StateDirectory

NAME, NODES = "density", 3

Figures = dict[str, float]


def main() -> None:
    """Measure each number of replicas in turn, in one cluster."""
    arguments = argparse.ArgumentParser(prog="python -m bench.density")
    arguments.add_argument("--replicas", default="0,99,399", help="replicas on each node, one number after the other")
    arguments.add_argument("--shards", type=int, default=3, help="shards of each collection")
    arguments.add_argument("--settle", type=float, default=15.0, help="seconds before each measurement")
    arguments.add_argument("--seconds", type=float, default=20.0, help="seconds for which the processor is measured")
    arguments.add_argument("--port", type=int, default=18101)
    arguments.add_argument("--json", type=Path, default=Path(__file__).parent / "out" / "density.json")
    options = arguments.parse_args()
    figures = asyncio.run(_measure(options))
    _print(figures)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")


async def _measure(options: argparse.Namespace) -> list[Figures]:
    resource = {"apiVersion": "veccluster.io/v1alpha1", "kind": "VecCluster", "metadata": {"name": NAME}}
    resource |= {"spec": {"nodes": NODES, "metadata": {"managed": {"nodes": 1}}}}
    found: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="veccluster-density-") as path:
        directory = StateDirectory(Path(path) / NAME)
        desired = runtime.up(directory, VecCluster.parse(resource), port=options.port, temporary=True)
        try:
            for step in runtime.wait_until_healthy(directory, desired, timeout=120):
                print(f"  {step.text}", file=sys.stderr)
            runtime.require_healthy(step)
            async with AsyncClient(desired.servers, timeout=120) as client:
                made = 0
                for wanted in map(int, options.replicas.split(",")):
                    began, before = time.monotonic(), made
                    while made * options.shards < wanted:
                        await client.create_collection(f"c{made}", dimension=8, shards=options.shards)
                        made += 1
                    each = (time.monotonic() - began) / max(1, made - before)
                    await asyncio.sleep(options.settle)
                    figures = await _at_rest(directory, options.seconds)
                    found.append({"replicas": made * options.shards, **figures, "creating, s": round(each, 2)})
                    print(f"  {found[-1]}", file=sys.stderr)
        finally:
            runtime.down(directory)
    return found


async def _at_rest(directory: StateDirectory, seconds: float) -> Figures:
    nodes, others = _processes(directory)
    before = _used(nodes), _used(others)
    began = time.monotonic()
    await asyncio.sleep(seconds)
    took = (time.monotonic() - began) / 100
    by_nodes, by_others = _used(nodes) - before[0], _used(others) - before[1]
    return {
        "threads": max(p.num_threads() for p in nodes),
        "files": max(p.num_fds() for p in nodes),
        "memory, MiB": round(max(p.memory_info().rss for p in nodes) / (1 << 20), 1),
        "nodes, % of a core": round(by_nodes / took, 1),
        "all, % of a core": round((by_nodes + by_others) / took, 1),
    }


def _processes(directory: StateDirectory) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The nodes, and the others: etcd and the supervisor."""
    status = directory.status()
    assert status is not None
    running = [(p.role, psutil.Process(p.process.pid)) for p in status.processes if p.process]
    others = [p for role, p in running if role != "node"]
    return [p for role, p in running if role == "node"], [*others, psutil.Process(status.supervisor.pid)]


def _used(processes: list[psutil.Process]) -> float:
    """Seconds of processor time."""
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def _print(figures: list[Figures]) -> None:
    table = Table(*figures[0])
    for row in figures:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
