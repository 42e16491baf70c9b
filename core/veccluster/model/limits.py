"""The bounds of one request, as frozen values with the defaults that the documentation states.

A field that has a setting in `spec.tuning` of a VecCluster names it; the others are part of the interface and the same
everywhere. Limits are inclusive: a request that is exactly at one is accepted.
"""

from dataclasses import dataclass
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9\-_]{0,62}$"
"""Names of collections."""

MAX_ID_BYTES: Final = 512
"""An id is 1 to this many bytes of UTF-8."""

MAX_SHARDS: Final = 128
MAX_REPLICATION_FACTOR: Final = 7
MAX_FILTERABLE: Final = 32
MAX_FIELD_BYTES: Final = 512
"""Length of a field path in `filterable`, in bytes of UTF-8."""

MAX_ERRORS: Final = 100
"""Errors listed in one reply; it says how many more there are."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for. Sizes are bytes; a body's size is counted after decompression."""

    max_body_size: int = 64 << 20
    """`maxBodySize`: a body that is read whole (JSON, binary). Streamed bodies (NDJSON, Arrow) may be of any length."""
    max_batch: int = 10_000
    """`maxBatch`: vectors of one JSON upsert, ids of one delete, and rows applied at once of a streamed body."""
    max_k: int = 10_000
    """`maxK`: results of one query."""
    max_dimension: int = 8_192
    """`maxDimension`: components of a vector, checked when a collection is created."""
    max_metadata_size: int = 64 << 10
    """`maxMetadataSize`: one vector's metadata as compact JSON."""
    max_metadata_depth: int = 16
    """`maxMetadataDepth`: objects and lists inside each other; the metadata object itself is the first."""
    max_filter_depth: int = 16
    """`maxFilterDepth`: `$and`, `$or` and `$not` inside each other; the filter itself is the first."""
    max_filter_clauses: int = 256
    """Conditions and logical operators of one filter."""
    max_filter_values: int = 10_000
    """Values of one `$in` or `$nin`."""
    max_values: int = 200_000
    """JSON values of a body beside vectors and their metadata, however nested; so of all `$in` of a filter."""
    max_queries: int = 1_000
    """Query vectors of one search."""
    max_results: int = 100_000
    """Query vectors of one search times k."""
    max_vector_results: int = 64 << 20
    """Bytes of the vectors in one reply: query vectors times k times the dimension times 4, if vectors are included."""
    max_ef: int = 10_000
    """`ef` of a search."""
    max_list: int = 1_000
    """Vectors of one page of a listing, ids of one request for many."""
    max_record_size: int = 1 << 20
    """One line of NDJSON; see also `max_arrow_batch_size`."""
    max_arrow_batch_size: int = 64 << 20
    """One message (schema or record batch) of an Arrow stream."""


DEFAULTS: Final = Limits()
