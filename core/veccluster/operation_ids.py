"""New operation ids: UUIDs of version 7, which say when they were made (RFC 9562)."""

import secrets
import time
import uuid

_RANDOM_BITS = 80


def new() -> str:
    """One that nobody else makes."""
    number = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    number = number & ~(0xF << 76) | 0x7 << 76  # the version
    number = number & ~(0b11 << 62) | 0b10 << 62  # the variant
    return str(uuid.UUID(int=number))
