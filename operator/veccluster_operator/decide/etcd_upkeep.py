"""Decide what a managed etcd needs: what a person should know of it, and which member to defragment.

etcd keeps the space of what was compacted until a member is defragmented, and a member answers nothing meanwhile: so
one at a time, the leader last, and only while all are well.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from veccluster_operator.decide.observed import Member

OLDEST_SAFE = (3, 5, 13)
"""Older ones may lose a watch's events, or acknowledge writes that they do not keep."""
WORTH_IT = 64 << 20
"""Bytes that a defragmentation must give back."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What to do and what to say."""

    defragment: str | None
    """Name of a member."""
    disarm: bool
    """Whether the alarm that there is no space can be lifted, since there is space again."""
    issues: tuple[str, ...]
    warnings: tuple[str, ...]
    """What is not urgent."""


def decide(members: Sequence[Member], quota: int) -> Upkeep:
    """What `members` need, each of which may use `quota` bytes."""
    well = all(m.error is None and m.has_leader for m in members)
    wasteful = [m for m in members if m.db_size - m.db_size_in_use >= max(WORTH_IT, m.db_size_in_use)]
    next_one = min(wasteful, key=lambda m: (m.is_leader, m.name), default=None) if well else None
    full = any("NOSPACE" in m.alarms for m in members)
    disarm = well and full and not wasteful and all(m.db_size < 0.9 * quota for m in members)
    return Upkeep(
        next_one.name if next_one else None,
        disarm,
        tuple(_issues(members)),
        tuple(too_old(m.version for m in members)),
    )


def has_quorum(members: Sequence[Member]) -> bool:
    """Whether more than half of the members see a leader."""
    return sum(m.has_leader for m in members) > len(members) // 2


def _issues(members: Sequence[Member]) -> Iterator[str]:
    if members and not has_quorum(members):
        yield (
            f"etcd has no quorum ({sum(m.has_leader for m in members)} of {len(members)} members work): reads and "
            "writes of healthy shards go on; failover and changes of collections wait until it is back."
        )
    for member in members:
        if member.error is not None:
            yield f"etcd member {member.name} does not answer: {member.error}."
        if "NOSPACE" in member.alarms:
            yield f"etcd member {member.name} has used up its quota: it refuses writes until it is defragmented."
        if "CORRUPT" in member.alarms:
            yield f"etcd member {member.name} is corrupt: delete its volume and its pod, and it is made anew."


def too_old(versions: Iterable[str]) -> Iterator[str]:
    """A warning for each version, as etcd writes it, that is too old to be safe; "" is one that is not known."""
    for version in sorted({v for v in versions if v and _number(v) < OLDEST_SAFE}):
        yield f"etcd {version} has known faults that cost data; use {'.'.join(map(str, OLDEST_SAFE))} or newer."


def _number(version: str) -> tuple[int, ...]:
    parts = version.split("-", 1)[0].split(".")
    return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else (0,)
