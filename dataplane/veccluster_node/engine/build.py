"""Build one generation, in a child process that can be killed or can crash without harm.

`python -m veccluster_node.engine.build` reads a `Job` from its first line of standard input, and dies when its
standard input is closed, which happens when its parent goes away, however it goes. It reads the rows itself, in
short transactions, so that SQLite's log can be reset while a long build runs: a row never changes under its seq, so
all that a later look can show is that it died meanwhile.
"""

import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from veccluster import failpoints
from veccluster.decisions.replication.values import Lineage
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster.model.state import IndexParameters, Metric, Seq
from veccluster_node.engine import calibration, generations, graph
from veccluster_node.engine.calibration import Attempt, Calibration
from veccluster_node.engine.distance import F32, I64, U64, lengths
from veccluster_node.engine.generations import (
    DEAD,
    INDEX,
    LENGTHS,
    RECORD_SCHEMA,
    RECORDS,
    SEQS,
    TWINS,
    VECTORS,
    GraphInfo,
)
from veccluster_node.engine.records import Snapshots
from veccluster_node.engine.twins import first_equals, twins_of
from veccluster_node.runtime.files import is_no_space, reason

_ROWS = 2000
"""Rows read in one transaction."""
_NICE = 10
_DAMAGED = 65
"""Exit status: a row does not match its checksum (EX_DATAERR)."""


class Job(msgspec.Struct, frozen=True):
    """Make `out` from the rows of `records` that are alive and have seqs in (after, through]."""

    records: str
    out: str
    after: int
    through: int
    dimension: int
    metric: Metric
    parameters: IndexParameters
    graph: bool
    base: str | None
    """The generation whose graph is added to."""
    older: tuple[str, ...]
    """Generations of the list that hold seqs up to `after`; their dead are noted."""
    ends_as: str | None = None
    """A generation that ends at `through`, too: it knows better what was undecided there."""
    threads: int = 1


def run(job: Job) -> generations.Manifest:
    """Build in this process."""
    out = Path(job.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    snapshots = Snapshots(Path(job.records))
    try:
        state, seqs = _write_rows(job, snapshots, out)
    finally:
        snapshots.close()
    failpoints.hit("build.rows")
    info = _write_graph(job, out, seqs) if job.graph and len(seqs) else None
    failpoints.hit("build.graph")
    return generations.finish(
        out,
        after=job.after,
        through=job.through,
        floor=state.floor,
        epoch=state.lineage.newest,
        lineage=_lineage(job, state),
        undecided=_undecided(job, state),
        latest=dict(state.latest),
        rows=len(seqs),
        dimension=job.dimension,
        metric=job.metric,
        graph=info,
    )


@dataclass(frozen=True, slots=True)
class _State:
    """The state of the rows that a generation is made from."""

    floor: int
    lineage: Lineage
    undecided: frozenset[Seq]
    latest: Mapping[int, Seq]


def _undecided(job: Job, state: _State) -> tuple[Seq, ...]:
    if job.ends_as:
        with suppress(StorageCorrupt):
            return generations.read_manifest(Path(job.ends_as)).undecided
    return tuple(sorted(state.undecided))


def _lineage(job: Job, state: _State) -> Lineage:
    """The lineage up to `through`. The rows may have forgotten it; then the log behind it says what is needed."""
    if job.ends_as and state.lineage.floor > job.through:
        with suppress(StorageCorrupt):
            return generations.read_manifest(Path(job.ends_as)).history()
    return state.lineage.cut(Seq(job.through))


def _write_rows(job: Job, snapshots: Snapshots, out: Path) -> tuple[_State, U64]:
    """Write everything but the graph; returns the state it is from, and the seqs."""
    kept: list[U64] = []
    with (
        (out / VECTORS).open("wb") as vector_file,
        (out / LENGTHS).open("wb") as length_file,
        pa.OSFile(str(out / RECORDS), "wb") as record_file,
        pa.ipc.new_file(record_file, RECORD_SCHEMA) as record_writer,
    ):
        for seqs, vectors, table in _rows(job, snapshots):
            vector_file.write(vectors.tobytes())
            length_file.write(lengths(vectors).tobytes())
            record_writer.write_batch(table)
            kept.append(seqs)
    seqs = np.concatenate(kept) if kept else np.zeros(0, np.uint64)
    (out / SEQS).write_bytes(seqs.astype("<u8").tobytes())
    with snapshots.take() as snapshot:
        living = snapshot.live_seqs(0, job.after) if job.older else np.zeros(0, np.uint64)
        showing = snapshot.showing()
        state = _State(showing.applied, snapshot.lineage(), snapshot.undecided(job.through), showing.latest)
    dead = [np.setdiff1d(np.fromfile(Path(p) / SEQS, "<u8"), living) for p in job.older]
    dead += [generations.dead_seqs(Path(p)) for p in job.older]
    (out / DEAD).write_bytes(np.unique(np.concatenate([np.zeros(0, np.uint64), *dead])).astype("<u8").tobytes())
    return state, seqs


def _rows(job: Job, snapshots: Snapshots) -> Iterator[tuple[U64, F32, pa.RecordBatch]]:
    with snapshots.take() as snapshot:
        candidates = snapshot.live_seqs(job.after, job.through)
    for i in range(0, len(candidates), _ROWS):
        with snapshots.take() as snapshot:
            rows = snapshot.rows(candidates[i : i + _ROWS].tolist())
            seqs = sorted(rows)
            vectors = snapshot.vectors(seqs, job.dimension)
        columns = [[rows[s].id for s in seqs], [rows[s].metadata for s in seqs]]
        batch = pa.record_batch(columns, schema=RECORD_SCHEMA)
        yield np.array(seqs, np.uint64), vectors, batch


def _write_graph(job: Job, out: Path, seqs: U64) -> GraphInfo:
    """Make the graph in the cheapest way that finds enough, and say what it then takes to search it."""
    vectors = generations.map_vectors(out / VECTORS, job.dimension)
    rows = graph.Rows(seqs, vectors, np.fromfile(out / LENGTHS, "<f4"))
    encoding = graph.choose_encoding(job.metric, job.parameters.precision, vectors, rows.lengths)
    base = _base(job, encoding)
    for attempt in calibration.attempts(
        job.parameters, (base.info.parameters, base.info.calibration) if base else None, len(seqs)
    ):
        if info := _try(attempt, job, rows, base if base and attempt.extend else encoding, out):
            return info
    raise AssertionError("the last attempt succeeds")


def _try(attempt: Attempt, job: Job, rows: graph.Rows, start: "_Base | graph.Encoding", out: Path) -> GraphInfo | None:
    """Make a graph of `rows`, from an old one or from nothing; it is calibrated on rows that are put in last.

    Returns None when it does not find enough; nothing of it is left in memory then.
    """
    if isinstance(start, _Base):
        draft = graph.Draft(start.info.encoding, attempt.parameters, base=start.path, threads=job.threads)
        found = start.info.calibration
    else:
        draft, found = graph.Draft(start, attempt.parameters, threads=job.threads), Calibration()

    def compared(which: slice | I64) -> F32:
        return graph.directions(job.metric, rows.vectors[which], rows.lengths[which])

    inside = draft.holds(rows.seqs)
    twins = twins_of(first_equals(compared, len(rows.seqs)), inside)
    inside[twins.rows] = True
    new = np.flatnonzero(~inside)
    held = calibration.questions(new, len(rows.seqs))
    draft.add(rows, np.setdiff1d(new, held))
    if len(held):
        found = calibration.calibrate(draft, rows, held, most=attempt.most, apart=twins.rows)
    if not attempt.succeeds(found):
        return None
    draft.add(rows, held)
    draft.save(out / INDEX)
    if len(twins):
        twins.save(out / TWINS)
    made_of = start.info.calibration.made_of if isinstance(start, _Base) else len(draft)
    found = msgspec.structs.replace(found, made_of=made_of)
    return GraphInfo(graph.ENGINE, draft.encoding, draft.parameters, len(draft), found)


@dataclass(frozen=True, slots=True)
class _Base:
    """A graph that can be added to."""

    path: Path
    info: GraphInfo


def _base(job: Job, fresh: graph.Encoding) -> _Base | None:
    """The graph to add to, if there is one that still fits; `fresh` is what would suit the rows best."""
    if not job.base:
        return None
    try:
        manifest = generations.read_manifest(Path(job.base))
    except StorageCorrupt:
        return None
    if not (info := manifest.graph) or not graph.still_suits(info.encoding, fresh):
        return None
    if info.parameters not in {job.parameters, calibration.denser(job.parameters)}:
        return None
    return _Base(Path(job.base) / INDEX, info)


def main() -> None:
    """Be the child."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := os.read(0, 1 << 16)):
            sys.exit("the parent went away")
        line += more
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.nice(_NICE)
    try:
        run(msgspec.json.decode(line, type=Job))
    except StorageCorrupt as error:
        sys.stderr.write(error.detail)
        sys.exit(_DAMAGED)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells a person in one line
        if not is_no_space(error):
            traceback.print_exc()
        sys.exit(reason(error))


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


class Child:
    """The parent's side of a build; one thread runs it, another may kill it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = threading.Event()

    def run(self) -> None:
        """Wait for the child. `StorageCorrupt`: it met a damaged row; `Unavailable`: it failed otherwise, or was
        killed: the reason in a few words, and a note of all that it said.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "veccluster_node.engine.build"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(self._job.threads)},
        )
        self._process = process
        assert process.stdin
        assert process.stderr
        with process, process.stdin, process.stderr:
            if self._killed.is_set():
                process.kill()
            try:
                process.stdin.write(msgspec.json.encode(self._job) + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass
            said = process.stderr.read().decode(errors="replace").strip()
            status = process.wait()
        if status == _DAMAGED:
            raise StorageCorrupt(said)
        if status:
            how = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
            error = Unavailable(said.rpartition("\n")[2] or how)
            error.add_note(said)
            raise error

    def kill(self) -> None:
        """End the child now, if there is one."""
        self._killed.set()
        if self._process:
            self._process.kill()


if __name__ == "__main__":
    main()
