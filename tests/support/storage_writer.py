"""A process that writes to a replica until it is killed, and says on its standard output what was acknowledged.

What batch n does is a pure function of n, so that whoever reads the acknowledgements knows what must be there.
`python -m support.storage_writer PATH FIRST COUNT [build]`; `build` brings all into generations at the end.
"""

import json
import sys
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import structlog

from support.storage import GRAPHS, open_alone, spec, upsert
from veccluster_node.replica.replica import Delete, Op, Upsert, Written

SETTINGS = replace(
    GRAPHS,
    segment_size=1 << 13,
    max_wal_size=1 << 18,
    limits=replace(GRAPHS.limits, tail_rows=150, graph_rows=50),
)
SPEC = spec(8)
_IDS = 120
_WINDOW = 6


def batch(n: int) -> list[Op]:
    """What batch n does."""
    rng = Random(n)
    ops: list[Op] = []
    for i in range(rng.randint(1, 12)):
        id_ = f"id{rng.randrange(_IDS)}"
        vector = np.array([n % 1000, i, *(rng.randrange(9) for _ in range(6))], np.float32)
        ops.append(Delete(id_) if rng.random() < 0.25 else upsert(id_, vector, n=n, i=i))
    return ops


def model_after(count: int) -> tuple[dict[str, tuple[np.ndarray, bytes]], int]:
    """What a replica holds after batches 0 to count - 1, and its last seq."""
    model: dict[str, tuple[np.ndarray, bytes]] = {}
    seq = 0
    for n in range(count):
        for op in batch(n):
            seq += 1
            if isinstance(op, Upsert):
                model[op.id] = (np.frombuffer(op.vector, "<f4"), op.metadata)
            else:
                model.pop(op.id, None)
    return model, seq


def batches_in(seq: int) -> int:
    """How many whole batches end at `seq`; ValueError when one is there in part."""
    total = n = 0
    while total < seq:
        total += len(batch(n))
        n += 1
    if total != seq:
        raise ValueError(f"seq {seq} is in the middle of batch {n - 1}")
    return n


def main() -> None:
    """Write batches FIRST to FIRST + COUNT - 1, a few at a time."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    replica = open_alone(path, SPEC, SETTINGS)
    waiting: deque[tuple[int, Future[Written]]] = deque()
    for n in range(first, first + count):
        waiting.append((n, replica.write(batch(n), op_id=f"batch-{n}", time_ns=n)))
        if len(waiting) >= _WINDOW:
            _acknowledge(*waiting.popleft())
    while waiting:
        _acknowledge(*waiting.popleft())
    if sys.argv[4:] == ["build"]:
        replica.build(60)
    sys.stdout.write(json.dumps({"issues": replica.stats().issues}) + "\n")
    replica.close()


def _acknowledge(n: int, future: Future[Written]) -> None:
    future.result()
    sys.stdout.write(f"{n}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
