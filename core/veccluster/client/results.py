"""What the client gives back: frozen values, decoded straight from the reply's JSON.

Members that a newer server adds are ignored. A vector is a float32 array of shape (d,).
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from veccluster.errors import VecClusterError

FloatArray = NDArray[np.float32]
T = TypeVar("T")


class Hit(msgspec.Struct, frozen=True):
    """One neighbour. `distance`: smaller is nearer; `score`: larger is better."""

    id: str
    distance: float
    score: float
    metadata: Mapping[str, Any] | None = None
    """None unless the search included it."""
    vector: np.ndarray[Any, Any] | None = None
    """float32 (d,); None unless the search included it."""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one query vector, nearest first; iterates over its hits."""

    hits: tuple[Hit, ...]
    partial: bool = False
    """True when shards are missing from the answer, which only `allow_partial` permits."""
    missing_shards: tuple[int, ...] = ()
    """Their numbers."""
    took_ms: float = 0.0
    """Time within the cluster, in milliseconds."""

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]

    @property
    def ids(self) -> list[str]:
        """The ids, nearest first."""
        return [hit.id for hit in self.hits]

    @property
    def distances(self) -> NDArray[np.float64]:
        """The distances, float64 (number of hits,)."""
        return np.array([hit.distance for hit in self.hits], dtype=np.float64)


class SearchResults(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to many query vectors, in their order."""

    results: tuple[SearchResult, ...]
    partial: bool = False
    missing_shards: tuple[int, ...] = ()
    took_ms: float = 0.0
    """For all of them together."""

    def __iter__(self) -> Iterator[SearchResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> SearchResult:
        return self.results[index]

    @property
    def ids(self) -> list[list[str]]:
        """The ids of each answer, nearest first."""
        return [result.ids for result in self.results]

    @property
    def distances(self) -> NDArray[np.float64]:
        """float64 (q, most hits); NaN fills up the answers that have fewer."""
        filled = np.full((len(self.results), max(map(len, self.results), default=0)), np.nan)
        for row, result in zip(filled, self.results, strict=True):
            row[: len(result)] = result.distances
        return filled


class Vector(msgspec.Struct, frozen=True):
    """A stored vector."""

    id: str
    vector: np.ndarray[Any, Any]
    """float32 (d,), as it was given."""
    metadata: Mapping[str, Any] = {}


class Found(msgspec.Struct, frozen=True):
    """A stored vector that was asked for with others."""

    id: str
    vector: np.ndarray[Any, Any] | None = None
    """float32 (d,), as it was given; None unless it was included."""
    metadata: Mapping[str, Any] | None = None
    """None unless it was included."""


class GetResult(msgspec.Struct, frozen=True):
    """The vectors that there are among those asked for, in the order of their ids; iterates over them."""

    vectors: tuple[Found, ...]
    missing: tuple[str, ...] = ()
    """Ids that are not there, likewise."""

    def __iter__(self) -> Iterator[Found]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> Found:
        return self.vectors[index]

    @property
    def ids(self) -> list[str]:
        """The ids that are there."""
        return [found.id for found in self.vectors]


class Page(msgspec.Struct, frozen=True):
    """A part of a listing; `cursor` asks for the next one and is None on the last."""

    vectors: tuple[Vector, ...]
    cursor: str | None = None


class Upserted(msgspec.Struct, frozen=True):
    """What an upsert or upload stored."""

    upserted: int


class Deleted(msgspec.Struct, frozen=True):
    """How many vectors a delete found and removed."""

    deleted: int


class Progress(msgspec.Struct, frozen=True):
    """How far an upload is: rows acknowledged by the cluster, of `total` where the source knows it."""

    done: int
    total: int | None


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """One shard of a collection; None for what its node cannot be asked now."""

    number: int
    primary: str | None = None
    """The node that takes its writes."""
    available: bool = True
    vectors: int | None = None
    indexed: int | None = None
    """Vectors that are in the graph; the others are scanned, exactly."""
    disk_bytes: int | None = None
    memory_bytes: int | None = None


class CollectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A collection: what it was created with, and how it is (the last three, for one collection only)."""

    name: str
    dimension: int
    metric: str
    shards: int
    replication_factor: int = 1
    filterable: tuple[str, ...] = ()
    count: int | None = None
    index_state: str | None = None
    """ready, building or unknown."""
    shard_states: tuple[ShardState, ...] = ()
    details: Mapping[str, Any] = {}
    """The whole reply of the server."""


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the cluster sees it."""

    id: str
    address: str = ""
    zone: str = ""
    state: str = ""
    """joining, active, draining, drained or down."""
    version: str = ""
    details: Mapping[str, Any] = {}


class ShardCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many shards there are, and how many of them are not as they should be."""

    total: int = 0
    under_replicated: int = 0
    unavailable: int = 0
    moving: int = 0


class ClusterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster. `health` is healthy, degraded or critical; `issues` say why in words."""

    health: str
    issues: tuple[str, ...] = ()
    leader: str | None = None
    nodes: tuple[NodeInfo, ...] = ()
    shards: ShardCounts = ShardCounts()
    vectors: int | None = None
    version: str = ""
    details: Mapping[str, Any] = {}
    """The whole reply of the server."""


class ShardRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a shard that has lost too many copies, and what it means to go on with that."""

    copies: tuple[Mapping[str, Any], ...] = ()
    """Every copy that was found: node, role, epoch, seq, vectors, written, problem; the best first."""
    missing: tuple[Mapping[str, Any], ...] = ()
    """Copies that should be in sync and cannot be used: node, why, since."""
    refusal: str | None = None
    """Why nothing is to be accepted; None if the loss can be."""
    then: Mapping[str, Any] | None = None
    """With what it would go on, or does by now: primary, epoch, in_sync, min_in_sync."""
    losses: tuple[str, ...] = ()
    """What is lost and what follows, in words."""
    expected: str
    """Names this report, to accept it."""
    done: bool = False
    details: Mapping[str, Any] = {}
    """The whole reply of the server."""


def decode(body: bytes, into: type[T]) -> T:
    """The value that a reply's JSON stands for."""
    return convert(load(body), into)


def load(body: bytes) -> Any:
    """The JSON of a reply; a reply that is not JSON comes from something that is no VecCluster node."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise VecClusterError(f"The reply is not JSON ({error}); is this a VecCluster address?") from error


def convert(value: Any, into: type[T]) -> T:
    """A decoded reply as one of the classes above."""
    try:
        return msgspec.convert(value, into, dec_hook=_to_array)
    except msgspec.ValidationError as error:
        raise VecClusterError(f"The reply is not what this client expects: {error}") from error


def _to_array(wanted: type[Any], value: Any) -> Any:
    return np.asarray(value, dtype=np.float32)
