"""What was damaged and is kept for a person to look at, in a shard that is in order again: not for ever.

It is what recovery set aside under another name: rows, a list of generations, a generation, the torn end of a log.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

KEPT = 7 * 24 * 3600.0
"""Seconds; no longer than until the disk is nearly full."""
_PLACES = ("damaged-*", "generations/damaged-*")
_TORN = "log/torn-*"


def forget(root: Path, *, older_than: float = KEPT) -> list[str]:
    """Remove what was set aside longer ago, and of the torn ends of a log all but the newest; what it was."""
    until = time.time() - older_than
    gone = [path for path in _all(root) if path.lstat().st_ctime <= until]
    gone += [path for path in _by_age(root)[:-1] if path not in gone]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return [path.name for path in gone]


def is_there(root: Path) -> bool:
    """Whether anything is set aside."""
    return next(_all(root), None) is not None


def _all(root: Path) -> Iterator[Path]:
    for place in (*_PLACES, _TORN):
        yield from root.glob(place)


def _by_age(root: Path) -> list[Path]:
    """Torn ends, oldest first: their names end in the time."""
    return sorted(root.glob(_TORN), key=lambda path: int(path.name.rpartition("-")[2]))
