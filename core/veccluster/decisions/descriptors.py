"""Decide how a node shares out the files that its process may open (`ulimit -n`).

Pure. What must never fail for want of a file is what is there already; so connections and shards are bounded such that
all of them fit, and a collection that does not fit is refused before anything of it is made.
"""

from collections.abc import Mapping

from veccluster.model.state import NodeId

OTHERS = 48
"""Files for etcd, the other nodes, listening, the log of the process, a build."""
A_SHARD = 12
"""Files of an open shard: its lock, its rows (3), its log, and of some generations the vectors and a graph each."""
A_READER = 3
"""Files of a connection to the rows of a shard."""
ENOUGH = 1 << 20
"""More than this nobody needs."""


def connections(limit: int, asked: int) -> int:
    """To how many clients' connections a node may be open at once, of those that it is asked to take."""
    return max(8, min(asked, limit // 4))


def readers(limit: int) -> int:
    """How many connections to rows may be kept open while nobody reads."""
    return max(4, min(512, limit // 24))


def shards(limit: int, asked_connections: int) -> int:
    """How many shards may be open at once."""
    taken = OTHERS + connections(limit, asked_connections) + A_READER * readers(limit)
    return max(1, (limit - taken) // A_SHARD)


def enough_for(count: int, asked_connections: int) -> int:
    """The least limit, of those that are a power of two, with which so many shards may be open."""
    limit = 256
    while limit < ENOUGH and shards(limit, asked_connections) < count:
        limit *= 2
    return limit


def too_many_here(count: int, limit: int, asked_connections: int) -> str | None:
    """Why one more than `count` shards cannot be open on this node, if they cannot."""
    if count < (most := shards(limit, asked_connections)):
        return None
    return (
        f"this node may open {limit} files, which is enough for {most} shards, and {count} are open: let it open "
        f"{enough_for(count + 1, asked_connections)} (ulimit -n), or delete collections"
    )


def cannot_fit(shards: int, copies: int, room: Mapping[NodeId, int | None]) -> str | None:
    """Why a collection's shards, with so many copies each, do not fit into the room that nodes have for shards.

    None when they do, or when it is not known: a node of an older version does not say.
    """
    fit = sum(shards if free is None else min(free, shards) for free in room.values())
    needed = shards * min(copies, len(room))
    if fit >= needed:
        return None
    each = ", ".join(f"{node} for {free}" for node, free in sorted(room.items()) if free is not None)
    return (
        f"its {shards} shards with {copies} copies each do not fit: the nodes may open too few files (room on {each} "
        "more shards); raise their limits (ulimit -n), ask for fewer shards, or delete collections"
    )
