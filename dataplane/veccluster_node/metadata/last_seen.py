"""What a node saw of etcd last, kept in its data directory: one that starts again finds out whether etcd went back.

It is written when the record of a shard has changed, and else now and then.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from veccluster.model.cluster import History
from veccluster.model.state import Revision

EVERY = 5.0
"""Seconds after which it is written although no record of a shard has changed."""

NOTHING = Revision(0)

log = structlog.get_logger(__name__)


class Seen(msgspec.Struct, frozen=True):
    """Which etcd, how far it had come, and which history was in force."""

    cluster: int
    revision: Revision
    history: History = History()


class LastSeen:
    """The file, and what is about to be in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Seen | None = None
        self._now: Seen | None = None
        self._soon = asyncio.Event()

    def read(self) -> Seen | None:
        """What was seen before this process started; None if that is not known."""
        try:
            self._written = msgspec.json.decode(self._path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("last_seen_not_read", path=str(self._path), reason=str(error))
        return self._written

    def note(self, seen: Seen, *, at_once: bool) -> None:
        """This is how it is now; `at_once`, if it must be on the disk before anything else happens, or nearly so."""
        self._now = seen
        if at_once:
            self._soon.set()

    async def keep(self) -> None:
        """Write it down again and again, and when this is cancelled."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY):
                        await self._soon.wait()
                self._soon.clear()
                await asyncio.to_thread(self._write)
        finally:
            self._write()

    def _write(self) -> None:
        now = self._now
        if now is None or now == self._written:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(now))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            log.warning("last_seen_not_written", path=str(self._path), reason=str(error))
        else:
            self._written = now
