"""The zone of a node in a pod: a file that is written when it is known where the pod runs, perhaps after the start."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

PERIOD = 1.0
"""Seconds between two looks at the file. A mounted file is replaced as a whole, which no watch survives simply."""

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

log = structlog.get_logger(__name__)


def read(path: Path) -> str:
    """The zone that the file names; empty while it is missing, empty, or not a zone's name."""
    try:
        zone = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("zone_file_not_read", file=str(path), reason=str(error))
        return ""
    if zone and not _LABEL_VALUE.fullmatch(zone):
        log.warning("zone_file_not_read", file=str(path), reason="must be a label value such as eu-west-1a")
        return ""
    return zone


async def follow(path: Path) -> AsyncIterator[str]:
    """Yield the zone whenever it has changed; a file that goes away again changes nothing: the node has not moved."""
    known = ""
    while True:
        zone = await asyncio.to_thread(read, path)
        if zone and zone != known:
            known = zone
            yield zone
        await asyncio.sleep(PERIOD)
