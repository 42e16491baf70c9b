"""The Python client: `Client` blocks, `AsyncClient` is for asyncio; both do the same."""

from veccluster.client.aio import AsyncClient
from veccluster.client.blocking import Client
from veccluster.client.results import (
    ClusterInfo,
    CollectionInfo,
    Deleted,
    Found,
    GetResult,
    Hit,
    NodeInfo,
    Page,
    Progress,
    SearchResult,
    SearchResults,
    ShardCounts,
    ShardRecovery,
    ShardState,
    Upserted,
    Vector,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ClusterInfo",
    "CollectionInfo",
    "Deleted",
    "Found",
    "GetResult",
    "Hit",
    "NodeInfo",
    "Page",
    "Progress",
    "SearchResult",
    "SearchResults",
    "ShardCounts",
    "ShardRecovery",
    "ShardState",
    "Upserted",
    "Vector",
]
