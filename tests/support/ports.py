"""Ports for servers that a test starts, kills and starts again at the same place.

Port 0 would give one of the range from which the kernel also serves every outgoing connection of this machine: between
our look and the server's bind, or while the server is killed, somebody has it. So these are from below that range.
"""

import os
from itertools import count
from pathlib import Path

from veccluster_cli.local.ports import is_free

_FIRST = 12_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Processes that run at one time begin far from each other: their numbers are near each other, the factor is odd.
_next = count(os.getpid() * 241)


def free_port() -> int:
    """A TCP port of loopback on which nobody listens, given to nobody else by this process for a long time."""
    end = int(_EPHEMERAL.read_text().split()[0])
    for _ in range(end - _FIRST):
        port = _FIRST + next(_next) % (end - _FIRST)
        if is_free(port):
            return port
    raise RuntimeError(f"no port from {_FIRST} to {end} is free")
