"""Damaged files by the thousand, without a cluster: torn and flipped logs, damaged generations.

What is opened afterwards may give less and say so, and must never give anything else, stand still or die: a process
that dies ends the run without a figure, and so does one that needs too long for one case.
"""

import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog

from chaos.run import Tally
from support.storage import GRAPHS, SMALL, check_holds, delete, opened, spec, upsert, write
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster_node.replica.replica import Query
from veccluster_node.wal.log import Log
from veccluster_node.wal.operations import Record

LONGEST = 60
"""Seconds for one case."""
EVERY = 10_000
"""Cases after which a run says how far it is; a tenth of it for generations."""
Say = Callable[[str], None]


def harm(data: bytes, chance: random.Random) -> bytes:
    """Some of it flipped, zeroed, filled with something else, or its end gone."""
    hurt, at = bytearray(data), chance.randrange(len(data))
    kind = chance.choice(["flip", "flip", "flips", "zeros", "noise", "tear", "tear and noise"])
    end = min(len(hurt), at + chance.choice([1, 8, 512, 4096]))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else chance.randrange(2, 20)):
            hurt[chance.randrange(len(hurt))] ^= 1 << chance.randrange(8)
    elif kind == "zeros":
        hurt[at:end] = bytes(end - at)
    elif kind == "noise":
        hurt[at:end] = chance.randbytes(end - at)
    else:
        del hurt[at:]
        hurt += chance.randbytes(chance.randrange(1, 600)) if kind == "tear and noise" else b""
    return bytes(hurt)


@contextmanager
def _in_time() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"a case takes longer than {LONGEST} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)


def logs(count: int, seed: int, say: Say) -> Tally:
    """Logs of several segments; what was fsynced is a prefix, and what is missing is said."""
    chance, tally, kinds = random.Random(seed), Tally(), Counter[str]()
    with tempfile.TemporaryDirectory() as base:
        whole, work = Path(base, "whole"), Path(base, "work")
        written = _a_log(whole, chance)
        for number in range(count):
            shutil.copytree(whole, work)
            victim = chance.choice(sorted(work.glob("*.log")))
            before = victim.read_bytes()
            victim.write_bytes(harm(before, chance))
            with _in_time():
                kind, wrong = _judge_log(work, written, victim.read_bytes(), before)
            kinds[kind] += 1
            tally.cycles += 1
            if wrong:
                tally.violations += 1
                say(f"case {number + 1}: {wrong}")
            shutil.rmtree(work)
            if (number + 1) % EVERY == 0:
                say(f"... {number + 1} logs: {dict(kinds)}")
    return tally


def _a_log(path: Path, chance: random.Random) -> list[Record]:
    written = []
    log = Log.open(path, segment_size=4000)
    for _ in range(60):
        first = log.last_seq + 1
        group = [Record(1, first + i, 1, chance.randbytes(chance.randrange(20, 200))) for i in range(3)]
        log.append(group)
        written += group
    log.close()
    return written


def _judge_log(path: Path, written: list[Record], now: bytes, before: bytes) -> tuple[str, str | None]:
    """What became of it, and what is wrong with that."""
    log = Log.open(path)
    try:
        found = list(log.read(0))
    except StorageCorrupt as error:
        return "not read", None if log.damage else f"it opened well and cannot be read: {error.detail}"
    finally:
        log.close()
    if found != written[: len(found)]:
        return "wrong", "a record that nobody had written, or a hole"
    if len(found) == len(written):
        return "whole", None
    if log.damage or log.torn:
        return ("damaged" if log.damage else "torn"), None
    if before.startswith(now):
        return "ends earlier, at the end of a record", None  # a whole log; the rows know that there was more
    return "wrong", f"{len(written) - len(found)} records are missing, and nothing is said"


def generations(count: int, seed: int, say: Say) -> Tally:
    """Replicas with one damaged file of a generation: right answers, or a plain word."""
    chance, tally = random.Random(seed), Tally()
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    with tempfile.TemporaryDirectory() as base:
        whole, work = Path(base, "whole"), Path(base, "work")
        model = _a_replica(whole)
        for number in range(count):
            shutil.copytree(whole, work)
            files = [f for f in sorted((work / "generations").rglob("*")) if f.is_file() and f.stat().st_size]
            victim = chance.choice(files)
            victim.write_bytes(harm(victim.read_bytes(), chance))
            with _in_time():
                if wrong := _judge_replica(work, model):
                    tally.violations += 1
                    say(f"case {number + 1}, {victim.relative_to(work)}: {wrong}")
            tally.cycles += 1
            shutil.rmtree(work)
            if (number + 1) % (EVERY // 10) == 0:
                say(f"... {number + 1} generations")
    return tally


Model = dict[str, tuple[np.ndarray, bytes]]


def _a_replica(path: Path) -> Model:
    """Two generations with graphs, some of their rows dead, and a tail."""
    several = replace(GRAPHS, limits=replace(GRAPHS.limits, copies_per_row=0, max_wasted=1.0))
    numbers = np.random.default_rng(7)
    model: Model = {}
    with opened(path, spec(8), several) as replica:
        for first, last in ((0, 60), (50, 90), (85, 99)):
            ops = [upsert(f"id{i}", numbers.integers(-9, 9, 8), i=i) for i in range(first, last)]
            write(replica, ops)
            model |= {op.id: (np.frombuffer(op.vector, "<f4"), op.metadata) for op in ops}
            if last < 99:
                replica.build(30)
        delete(replica, "id3", "id70")
        for one in ("id3", "id70"):
            del model[one]
    return model


def _judge_replica(path: Path, model: Model) -> str | None:
    try:
        with opened(path, spec(8), SMALL) as replica:
            check_holds(replica, model)
            query = np.ones((1, 8), np.float32)
            exact, graph = (replica.search(Query(query, 10, exact=e, ef=200))[0] for e in (True, False))
            if [(h.id, h.distance) for h in exact] != [(h.id, h.distance) for h in graph]:
                return "the graph finds other things than a scan"
    except (StorageCorrupt, Unavailable):
        return None  # a plain word
    except AssertionError as error:
        return f"wrong answers: {error}"
    return None


DAMAGES: dict[str, Callable[[int, int, Say], Tally]] = {"logs": logs, "generations": generations}
