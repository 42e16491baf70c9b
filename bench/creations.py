"""Measure how long the creation of a collection takes, and how that grows with the collections that there are.

python -m bench.creations [--upto 1000] [--shards 3] [--nodes 3]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from veccluster import AsyncClient
from veccluster.model.spec import VecCluster
from veccluster_cli.local import runtime
from veccluster_cli.local.state import StateDirectory

SAMPLE = 20
"""Creations of which the median is taken ..."""
EVERY = 250
"""... at the beginning, and whenever there are so many more."""


def main() -> None:
    """Run everything and print it."""
    arguments = argparse.ArgumentParser(prog="python -m bench.creations")
    arguments.add_argument("--upto", type=int, default=1000)
    arguments.add_argument("--shards", type=int, default=3)
    arguments.add_argument("--nodes", type=int, default=3)
    arguments.add_argument("--port", type=int, default=18001)
    options = arguments.parse_args()
    spec = {"nodes": options.nodes, "metadata": {"managed": {"nodes": 1}}}
    resource = {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": "VecCluster",
        "metadata": {"name": "bench"},
        "spec": spec,
    }
    with tempfile.TemporaryDirectory(prefix="veccluster-bench-") as path:
        directory = StateDirectory(Path(path) / "bench")
        desired = runtime.up(directory, VecCluster.parse(resource), port=options.port, temporary=True)
        try:
            for step in runtime.wait_until_healthy(directory, desired, timeout=120):
                print(f"  {step.text}", flush=True)
            runtime.require_healthy(step)
            asyncio.run(_create(desired.servers, options.upto, options.shards))
        finally:
            runtime.down(directory)


async def _create(servers: list[str], upto: int, shards: int) -> None:
    took: list[float] = []
    async with AsyncClient(servers, timeout=120) as client:
        for number in range(upto + SAMPLE):
            began = time.perf_counter()
            await client.create_collection(f"c{number:05}", dimension=8, shards=shards)
            took.append(1000 * (time.perf_counter() - began))
            since, there = number % EVERY, number - number % EVERY
            if since == SAMPLE - 1:
                sample = took[there:]
                print(
                    f"at {there} collections: p50 {statistics.median(sample):.0f} ms, worst {max(sample):.0f} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
