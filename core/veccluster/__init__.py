"""VecCluster: a distributed vector database. This package is what every part shares, and the Python client.

`from veccluster import Client, AsyncClient, errors` is what an application needs. The client is loaded when it is first
asked for, so that the parts that do without it (nodes, decisions) do not pay for importing it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veccluster import errors
    from veccluster.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "errors"]

_HOMES = {"AsyncClient": "veccluster.client", "Client": "veccluster.client"}


def __getattr__(name: str) -> Any:
    """Load what is exported when it is first used (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "errors":
        return import_module("veccluster.errors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is exported, besides what is loaded."""
    return sorted({*globals(), *__all__})
