"""Immutable generations on the disk: what a build leaves, what CURRENT names, and opening them without trusting them.

generations/FROM-TO.X/   the rows with FROM < seq ≤ TO that were alive when it was built (X tells two builds apart)
    vectors.f32          as they were given, little-endian float32, row after row
    lengths.f32          their Euclidean lengths
    seqs.u64             ascending
    dead.u64             seqs of older generations of the list that were dead: what a later rebuild of the rows must
                         not revive
    records.arrow        ids and metadata: with `vectors.f32`, all that records.sqlite held
    index.usearch        the graph, unless there are so few rows that looking at all is as fast
    twins.i64            rows that are not in the graph since an equal one is, if there are any
    manifest.json        written last: sizes and SHA-256 of all of the above
CURRENT                  the list in use, and the list before, which is kept until the next switch
"""

import json
import mmap
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from veccluster import failpoints
from veccluster.decisions.replication.values import EMPTY, Lineage
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Epoch, IndexParameters, Metric, Seq
from veccluster_node.engine.calibration import Calibration
from veccluster_node.engine.distance import U64
from veccluster_node.engine.graph import Encoding, Graph
from veccluster_node.engine.twins import Twins
from veccluster_node.engine.view import ALIVE, Segment
from veccluster_node.runtime.files import (
    make_directory,
    sha256,
    sync_directory,
    sync_file,
    tree_size,
    unreadable,
    write_durably,
)

FORMAT = 2
"""Of a generation with twins, whose graph alone leads to too little; all else is of format 1."""
VECTORS, LENGTHS, SEQS, DEAD, RECORDS, INDEX, TWINS = (
    "vectors.f32",
    "lengths.f32",
    "seqs.u64",
    "dead.u64",
    "records.arrow",
    "index.usearch",
    "twins.i64",
)
MANIFEST = "manifest.json"
RECORD_SCHEMA = pa.schema([("id", pa.string()), ("metadata", pa.binary())])


class FileInfo(msgspec.Struct, frozen=True):
    """What a file must look like."""

    size: int
    sha256: str


class GraphInfo(msgspec.Struct, frozen=True):
    """The graph of a generation. `entries` counts ghosts too: vectors that are only in the graph."""

    engine: str
    encoding: Encoding
    parameters: IndexParameters
    """With which it was made: those of the collection, or denser where they did not find enough."""
    entries: int
    calibration: Calibration = Calibration()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation holds."""

    format: int = 1
    after: int
    through: int
    floor: int
    """The state of the rows that it was built from: what had died by this seq may be missing."""
    epoch: int
    rows: int
    dimension: int
    metric: Metric
    graph: GraphInfo | None
    files: dict[str, FileInfo]
    lineage: Lineage | None = None
    """Which epoch wrote what, up to `through`; generations from before lineages were kept do not say."""
    undecided: tuple[Seq, ...] = ()
    """Prepares of batches over several shards up to `through` that were not decided there (15): what rows that are
    made anew from here need of the log, besides what is behind `through`."""
    latest: dict[int, Seq] = {}
    """As in `Showing`, at `floor`: to say more than is shown makes a reader wait, and wrong nothing."""

    def history(self) -> Lineage:
        """Its lineage, or the best guess: all of it was written in the epoch that wrote last."""
        return self.lineage or EMPTY.followed_by(Epoch(self.epoch), Seq(1))


class Current(msgspec.Struct, frozen=True):
    """`CURRENT`: names of generations, oldest first."""

    format: int = 1
    generations: tuple[str, ...] = ()
    previous: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """An opened generation."""

    path: Path
    manifest: Manifest
    segment: Segment


def finish(path: Path, **facts: object) -> Manifest:
    """Complete a generation whose files are all written in `path`: make them durable, then write the manifest."""
    files = {}
    for file in sorted(path.iterdir()):
        sync_file(file)
        files[file.name] = FileInfo(file.stat().st_size, sha256(file))
    manifest = msgspec.convert({**facts, "format": FORMAT if TWINS in files else 1, "files": files}, Manifest)
    failpoints.hit("generation.manifest")
    write_durably(path / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    sync_directory(path.parent)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read and check a generation's manifest."""
    try:
        data = (path / MANIFEST).read_bytes()
        _check_format(data, f"generation {path.name}")
        return msgspec.json.decode(data, type=Manifest)
    except OSError as error:
        raise unreadable(f"generation {path.name}: its manifest", error) from error
    except ValueError as error:
        raise StorageCorrupt(f"generation {path.name}: its manifest cannot be read ({error})") from error


def _check_format(data: bytes, what: str) -> None:
    version = json.loads(data)["format"] if data.strip().startswith(b"{") else None
    if isinstance(version, int) and version > FORMAT:
        raise StorageCorrupt(f"{what}: format {version} is newer than {FORMAT}, which this version reads")


def verify(path: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest; `StorageCorrupt` names the first that differs."""
    for name, info in manifest.files.items():
        try:
            same = (path / name).stat().st_size == info.size and sha256(path / name) == info.sha256
        except OSError as error:
            raise unreadable(f"generation {path.name}: {name}", error) from error
        if not same:
            raise StorageCorrupt(f"generation {path.name}: {name} does not match its checksum")


def open_generation(path: Path, *, handles: int) -> Generation:
    """Verify a generation, then map it; `StorageCorrupt` when anything about it is not as it was written."""
    manifest = read_manifest(path)
    verify(path, manifest)
    lengths = np.fromfile(path / LENGTHS, "<f4")
    graph = None
    if info := manifest.graph:
        graph = Graph(
            path / INDEX,
            info.encoding,
            info.parameters,
            info.entries,
            handles=handles,
            reaches=info.calibration.reaches(manifest.metric),
        )
    segment = Segment(
        seqs=np.fromfile(path / SEQS, "<u8"),
        vectors=map_vectors(path / VECTORS, manifest.dimension),
        lengths=lengths,
        died=np.full(manifest.rows, ALIVE),
        longest=float(lengths.max(initial=0.0)),
        graph=graph,
        twins=Twins.load(path / TWINS) if TWINS in manifest.files else None,
    )
    return Generation(path, manifest, segment)


def map_vectors(path: Path, dimension: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Vectors (n, dimension) of a file, read only when they are looked at."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.zeros((0, dimension), np.float32)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, "<f4").reshape(-1, dimension)


def needed_of_the_log(path: Path) -> int | None:
    """The first seq up to `through` that is needed besides the generation at `path`, if any; what cannot be read is of
    no use, and needs nothing.
    """
    manifest = _manifest_or_none(path)
    return min(manifest.undecided, default=None) if manifest else None


def dead_seqs(path: Path) -> U64:
    """Seqs of older generations that were dead when this one was built."""
    return np.fromfile(path / DEAD, "<u8")


def rows_of(path: Path) -> Iterator[tuple[int, str, bytes, bytes]]:
    """Yield (seq, id, metadata, vector) of every row of the generation at `path`, as records.sqlite held it."""
    seqs = np.fromfile(path / SEQS, "<u8").tolist()
    vectors = map_vectors(path / VECTORS, read_manifest(path).dimension)
    at = 0
    with pa.memory_map(str(path / RECORDS)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            for id_, metadata in zip(*(c.to_pylist() for c in reader.get_batch(i).columns), strict=True):
                yield seqs[at], id_, metadata, vectors[at].tobytes()
                at += 1


class Shelf:
    """The directory of a replica's generations, and CURRENT beside it."""

    def __init__(self, root: Path) -> None:
        """Read CURRENT, if there is one; `StorageCorrupt` when it cannot be understood."""
        self.path = root / "generations"
        make_directory(self.path)
        self._current_path = root / "CURRENT"
        self._sizes: dict[str, int] = {}
        self.current = self._read()

    def _read(self) -> Current:
        try:
            data = self._current_path.read_bytes()
            _check_format(data, "CURRENT")
            return msgspec.json.decode(data, type=Current)
        except FileNotFoundError:
            return Current()
        except ValueError as error:
            raise StorageCorrupt(f"CURRENT cannot be read: {error}") from error

    def rebuilt_from_directories(self) -> Current:
        """What CURRENT may have said, judged by the manifests that are there: a chain from 0, the longest steps
        first.
        """
        chain: list[str] = []
        at = 0
        found = [(m.after, m.through, m.floor, p.name) for p in self.path.iterdir() if (m := _manifest_or_none(p))]
        while following := max((f for f in found if f[0] == at and f[1] > at), key=lambda f: f[1:], default=None):
            chain.append(following[3])
            at = following[1]
        return Current(generations=tuple(chain))

    def new_directory(self, after: int, through: int) -> Path:
        """A name that was never used, for the next build of (after, through]; not made yet."""
        return self.path / f"{after:012d}-{through:012d}.{secrets.token_hex(4)}"

    def size_of(self, name: str) -> int:
        """Bytes of a generation's files, which never change; 0 when it is not there."""
        if name not in self._sizes:
            self._sizes[name] = tree_size(self.path / name)
        return self._sizes[name]

    def switch(self, names: Sequence[str]) -> None:
        """Make `names` the list in use, keep the one before, and remove what neither names."""
        current = Current(generations=tuple(names), previous=self.current.generations)
        failpoints.hit("current.write")
        write_durably(self._current_path, msgspec.json.encode(current))
        failpoints.hit("current.written")
        self.current = current
        self.clean()

    def clean(self) -> None:
        """Remove every directory that CURRENT does not name: builds that never finished, and lists of long ago."""
        keep = {*self.current.generations, *self.current.previous}
        self._sizes = {name: size for name, size in self._sizes.items() if name in keep}
        for path in self.path.iterdir():
            if path.name not in keep and not path.name.startswith("damaged-"):
                shutil.rmtree(path)

    def set_aside(self, name: str) -> None:
        """Keep a damaged generation for a person to look at, under another name; of several, only the newest."""
        for old in self.path.glob("damaged-*"):
            shutil.rmtree(old)
        if (self.path / name).exists():
            (self.path / name).rename(self.path / f"damaged-{name}")


def range_of(name: str) -> tuple[int, int]:
    """The seqs (after, through] that a generation of this name covers."""
    after, _, through = name.partition(".")[0].partition("-")
    return int(after), int(through)


def _manifest_or_none(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except StorageCorrupt:
        return None
