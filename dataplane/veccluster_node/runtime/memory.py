"""How much memory the process holds and may hold, so that upserts are refused before the kernel kills the node.

Files that are mapped (generations) do not count: the kernel takes their pages back when it needs them.
"""

import time
from pathlib import Path

import psutil

from veccluster.errors import InsufficientStorage

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
REFRESH = 0.5
"""Seconds for which a reading is good enough."""


class MemoryGuard:
    """Refuses work while the process holds more than `share` of the memory that it may use."""

    def __init__(self, share: float) -> None:
        self._limit = int(share * available())
        self._share = share
        self._process = psutil.Process()
        self._read_at = 0.0
        self._held = 0

    @property
    def limit(self) -> int:
        """Bytes that the process may hold."""
        return self._limit

    def held(self) -> int:
        """Bytes that the process holds, mapped files left out."""
        if time.monotonic() - self._read_at > REFRESH:
            usage = self._process.memory_info()
            self._held = usage.rss - getattr(usage, "shared", 0)
            self._read_at = time.monotonic()
        return self._held

    def check(self) -> None:
        """Raise `InsufficientStorage` when the node holds too much."""
        if (held := self.held()) > self._limit:
            raise InsufficientStorage(
                f"the node holds {held >> 20} MiB of memory, more than maxMemory allows "
                f"({self._share:.0%} of what it has: {self._limit >> 20} MiB); delete vectors, or give it more memory"
            )


def available() -> int:
    """Bytes that this process may use: the control group's limit, or the machine's memory."""
    limits = [psutil.virtual_memory().total]
    for name in CGROUP_LIMITS:
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)
