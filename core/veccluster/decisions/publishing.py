"""Decide when a node tells the others how it fares: its sign of life is a write to etcd that wakes every node.

Pure. What a failover or a request waits for is told at once; all else at most once a second, and only what somebody
decides by or reads. Counts are not in it: whoever wants them asks the node.
"""

from typing import Any

from veccluster.model.state import Load

EVERY = 1.0
"""Seconds between two writes of one node ..."""
URGENT_EVERY = 0.1
"""... but for what others wait for: a node that opens a hundred shards one by one still writes ten times a second at
most, and only while its shards change hands."""
STEP = 64 * 1024 * 1024
"""Bytes of disk or memory that are worth a word: this many, or a hundredth of the disk if that is more."""


def pause(now: Load, told: Load | None, since: float) -> float | None:
    """Seconds until `now` is to be told, if what was told was so `since` seconds ago; None: not for now."""
    if told is None:
        return 0.0
    if _urgent(now) != _urgent(told):
        return max(0.0, URGENT_EVERY - since)
    return 0.0 if since >= EVERY and _is_news(now, told) else None


def _urgent(load: Load) -> tuple[Any, ...]:
    """What promotions, handing over, and requests to a shard wait for."""
    return load.boot, load.serving, load.cut_off, load.broken, load.read_only


def _is_news(now: Load, told: Load) -> bool:
    step = max(STEP, now.disk_total // 100)
    sizes = ((now.disk_used, told.disk_used), (now.memory_used, told.memory_used), (now.disk_total, told.disk_total))
    others = now.issues != told.issues or now.recovering != told.recovering
    return others or any(abs(is_ - was) >= step for is_, was in sizes)
