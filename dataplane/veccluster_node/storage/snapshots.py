"""A replica's files for another one that needs everything: what is offered, and what the receiver checks."""

from pathlib import Path

import msgspec

from veccluster.decisions.replication.values import Lineage
from veccluster_node.storage.generations import FileInfo


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: what it contains, and its files by their paths below it."""

    through: int
    epoch: int
    lineage: Lineage
    files: dict[str, FileInfo]


def export(root: Path, into: Path) -> Offered:
    """Make a snapshot of the replica in `root`, which may be open, in the new directory `into`."""
    raise NotImplementedError


def discard(into: Path) -> None:
    """Remove what `export` made."""
    raise NotImplementedError


def verify(incoming: Path, offered: Offered) -> list[str]:
    """The files that are missing or differ from what was offered."""
    raise NotImplementedError
