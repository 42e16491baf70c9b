"""Keep a shard's generations in shape: decide, build in a child, verify, switch, trim.

It never holds up a write: a failed or killed build is tried again after a pause, from the vectors alone, and
everything stays searchable from the tail until one succeeds. What to do and when to look again is decided here; the
threads that do it are shared by all replicas (`maintenance.py`).
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from veccluster import backoff, failpoints
from veccluster.decisions.generations import Build, ShardState, decide, drops_the_list_before, room_for, that_fits
from veccluster.decisions.replication import events as on
from veccluster.errors import StorageCorrupt, Unavailable, VecClusterError
from veccluster_node.engine import generations
from veccluster_node.engine.build import Child, Job
from veccluster_node.engine.feed import LocalFeed, Slot
from veccluster_node.engine.generations import Shelf
from veccluster_node.engine.records import Snapshots
from veccluster_node.replica import evidence
from veccluster_node.replica.disk import ReplicaDisk
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.maintenance import Maintenance, Upkeep
from veccluster_node.replica.recovery import ROWS, Recovered, resident
from veccluster_node.replica.settings import ReplicaSpec, StorageSettings
from veccluster_node.runtime.files import TreeSize, disk_usage, reason

_LOOK = 2.0
"""Seconds from a change to the look at what it left, unless something calls for one sooner."""
_LONGEST_PAUSE = 60.0
_FORGET_EVERY = 60.0
"""Seconds between two looks at what was set aside, where there is any."""
_log = structlog.get_logger(__name__)


class Builder:
    """Builds for one replica; one thing is done at a time."""

    def __init__(
        self,
        path: Path,
        spec: ReplicaSpec,
        settings: StorageSettings,
        loop: ReplicaLoop,
        disk: ReplicaDisk,
        recovered: Recovered,
        maintenance: Maintenance,
    ) -> None:
        self.building = False
        self.problem: str | None = None
        """What went wrong with the last build, until one succeeds."""
        self.waits: str | None = None
        """Why a build that is due does not begin."""
        self.size = TreeSize(path)
        """Of the whole replica, when it was last looked at."""
        self._path = path
        self._spec = spec
        self._settings = settings
        self._loop = loop
        self._disk = disk
        self._log, self._records = recovered.log, recovered.records
        self._feed: LocalFeed = recovered.feed
        self._shelf: Shelf = recovered.shelf
        self._failures = 0
        self._tail_since: float | None = None
        self._applied = -1
        """What was applied at the last look."""
        self._forget_at = 0.0
        self._child: Child | None = None
        self._forced: list[threading.Event] = []
        self._damaged: list[str] = []
        self._closing = threading.Event()
        self._maintenance = maintenance
        self._upkeep = Upkeep(self._look, self._build_one)
        self.look()

    def look(self, within: float = 0.0) -> None:
        """See soon whether there is something to do."""
        self._maintenance.look(self._upkeep, within)

    def changed(self) -> None:
        """More is applied."""
        limits = self._settings.limits
        is_large = len(self._feed.tail) > limits.tail_rows or self._log.size > limits.log_bytes
        self.look(0.0 if is_large else _LOOK)

    def force(self) -> threading.Event:
        """Build the tail whatever its size, and whatever else is wanted; the event is set when nothing is left to
        do.
        """
        done = threading.Event()
        self._forced.append(done)
        self.look()
        return done

    def mend(self, name: str) -> None:
        """A generation is damaged on the disk: search its rows from memory, until it is built anew."""
        self._damaged.append(name)
        self.look()

    def close(self) -> None:
        """Give up what is being built, and do nothing more."""
        self._closing.set()
        if child := self._child:
            child.kill()
        self._maintenance.end(self._upkeep)
        for done in self._forced:
            done.set()

    def _look(self) -> bool:
        """Do what is to be done at once; whether a build is due."""
        try:
            self._take_out_damaged()
            if self._is_build_due():
                return True
            self._tidy()
            self._failures, self.problem = 0, None  # nothing is left to do
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody else would go on building
            self._try_again(error)
        return False

    def _build_one(self) -> bool:
        """Do the build that helps most, if one is still due; what is next is seen then."""
        try:
            if not self._closing.is_set() and (decided := self._decide(force=bool(self._forced))):
                self.building = True
                self._build(*decided)
                self._failures, self.problem = 0, None
            self.look()
        except Exception as error:  # noqa: BLE001 - as above
            self._try_again(error)
        finally:
            self.building = False
        return False

    def _try_again(self, error: Exception) -> None:
        self._note(error)
        self.look(backoff.pause(self._settings.build_retry, self._failures, _LONGEST_PAUSE))

    def _note(self, error: Exception) -> None:
        self._failures += 1
        self.problem = (
            f"Shard {self._spec.shard}: a build failed ({_reason(error)}); searches stay right, and it is tried again."
        )
        if not self._closing.is_set():
            _log.warning(
                "build_failed",
                shard=str(self._spec.shard),
                failures=self._failures,
                detail=_reason(error),
                notes=getattr(error, "__notes__", []),
                exc_info=None if isinstance(error, VecClusterError | OSError) else error,
            )
        if isinstance(error, StorageCorrupt):
            self._fail(error)

    def _take_out_damaged(self) -> None:
        while self._damaged:
            self._take_out(self._damaged[0])
            self._damaged.pop(0)

    def _is_build_due(self) -> bool:
        """Whether there is something to build; whoever waits until there is nothing is told."""
        forced = self._forced[:]
        if not self._loop.health.failure and self._decide(force=bool(forced)):
            return True
        for done in forced:
            done.set()
            self._forced.remove(done)
        return False

    def _decide(self, *, force: bool) -> tuple[Build, int] | None:
        """What to build, and the seq through which rows are applied now."""
        shard, applied = self._loop.call(self._state).result()
        build = decide(shard, self._settings.limits, force=force)
        fits = that_fits(shard, build, self._settings.limits) if build else None
        self.waits = None
        if build and not fits:
            self.waits = (
                f"Shard {self._spec.shard}: a build waits for room on the disk: it takes about "
                f"{room_for(shard, build) >> 20} MiB, and {(shard.room or 0) >> 20} MiB are free; searches stay right."
            )
        return (fits, applied) if fits else None

    def _state(self) -> tuple[ShardState, int]:
        feed, log, applied = self._feed, self._log, self._records.applied_seq
        operations = applied - feed.tail.after
        now = time.monotonic()
        self._tail_since = (self._tail_since or now) if operations else None
        names, previous = self._shelf.current.generations, self._shelf.current.previous
        disk = shutil.disk_usage(self._path)
        shard = ShardState(
            generations=tuple(s.state() for s in feed.slots),
            tail_rows=len(feed.tail),
            tail_live=len(feed.tail) - feed.tail_dead,
            tail_seconds=now - (self._tail_since or now),
            tail_operations=operations,
            log_bytes=log.size_behind(feed.tail.after),
            all_log_bytes=log.size,
            row_bytes=self._records.bytes_in_use(),
            list_bytes=sum(map(self._shelf.size_of, names)),
            spare_bytes=sum(self._shelf.size_of(name) for name in previous if name not in names),
            spare_log_bytes=log.size - log.size_behind(feed.tail.after) if previous != names else 0,
            graph_bytes=4 * self._spec.dimension + 16 * self._spec.index.m,
            room=disk.free,
            disk=disk.total,
        )
        return shard, applied

    def _build(self, build: Build, applied: int) -> None:
        slots = self._feed.slots
        merged = slots[build.first : build.last]
        after = merged[0].after if merged else self._feed.tail.after
        through = applied if build.tail else merged[-1].through
        out = self._shelf.new_directory(after, through)
        base = slots[build.base] if build.base is not None and not self._failures else None
        job = Job(
            records=str(self._path / ROWS),
            out=str(out),
            after=after,
            through=through,
            dimension=self._spec.dimension,
            metric=self._spec.metric,
            parameters=self._spec.index,
            graph=build.graph,
            base=str(self._shelf.path / base.name) if base else None,
            older=tuple(str(self._shelf.path / s.name) for s in slots[: build.first] if not s.damaged),
            ends_as=None if build.tail else str(self._shelf.path / merged[-1].name),
            threads=self._settings.build_threads,
        )
        started = time.monotonic()
        self._child = Child(job)
        if self._closing.is_set():
            return
        try:
            self._child.run()
            generation = self._open(out)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        self._switch(build, Slot(out.name, after, through, generation.segment), generation.manifest.floor)
        _log.info(
            "generation_built",
            shard=str(self._spec.shard),
            generation=out.name,
            reason=build.reason,
            rows=generation.manifest.rows,
            base=base.name if base else None,
            seconds=round(time.monotonic() - started, 3),
        )

    def _take_out(self, name: str) -> None:
        """Put the rows of a damaged generation in its place, if it is still in use."""
        feed = self._feed
        at = next((i for i, slot in enumerate(feed.slots) if slot.name == name and not slot.damaged), None)
        if at is None:
            return
        after, through = feed.slots[at].after, feed.slots[at].through
        snapshots = Snapshots(self._path / ROWS)
        try:
            with snapshots.take() as snapshot:
                segment = resident(snapshot, snapshot.live_seqs(after, through), self._spec.dimension)
                floor = snapshot.applied_seq
        finally:
            snapshots.close()
        slot = Slot(name, after, through, segment, damaged=True)
        self._in_loop(lambda: feed.replace(at, at + 1, slot, floor=floor))
        self._shelf.set_aside(name)

    def _open(self, path: Path) -> generations.Generation:
        """Open what a child left; damage to it says nothing of the rows."""
        try:
            return generations.open_generation(path, handles=self._settings.search_handles)
        except StorageCorrupt as error:
            raise Unavailable(error.detail) from error

    def _switch(self, build: Build, slot: Slot, floor: int) -> None:
        """Put a generation to use, then trim what two lists of generations cover and need no more."""
        feed = self._feed
        names = [s.name for s in feed.slots]
        names[build.first : build.last] = [slot.name]
        self._shelf.switch(names)
        self._tail_since = None if build.tail else self._tail_since
        self._in_loop(lambda: feed.replace(build.first, build.last, slot, floor=floor))
        self._trim()

    def _trim(self) -> None:
        """Cut what both lists of generations cover, and the rows hold for certain, from the log."""
        current = self._shelf.current
        covered = generations.range_of(current.previous[-1])[1] if current.previous else 0
        for newest in {*current.generations[-1:], *current.previous[-1:]}:
            if (first := generations.needed_of_the_log(self._shelf.path / newest)) is not None:
                covered = min(covered, first - 1)
        if covered:
            durable = self._sync_rows()
            failpoints.hit("trim")
            self._in_loop(lambda: self._forget_log(min(covered, durable)))

    def _tidy(self) -> None:
        """Give back to the disk what nothing needs any more, in steps between which writes go on; say when to look
        again.
        """
        is_measured = self.size.look()
        if self._closing.is_set() or self._loop.health.failure:
            return
        shard, applied = self._loop.call(self._state).result()
        if drops_the_list_before(shard, self._settings.limits):
            self._shelf.switch(self._shelf.current.generations)
            self._trim()
        records = self._records
        while not self._closing.is_set() and self._loop.call(records.give_back).result():
            pass
        is_quiet, self._applied = applied == self._applied, applied
        if is_quiet:
            self._loop.call(records.rest).result()
        self._forget_evidence()
        if self.waits or not (is_quiet and is_measured):
            self.look(_LOOK)
        elif shard.tail_operations and (left := self._settings.limits.tail_seconds - shard.tail_seconds) >= 0:
            self.look(left + _LOOK)

    def _forget_evidence(self) -> None:
        """Delete what was set aside long ago, or takes room that is needed."""
        if self._loop.health.divergent:
            return
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_EVERY
            is_full = disk_usage(self._path) >= self._settings.full_at
            evidence.forget(self._path, older_than=0 if is_full else evidence.KEPT)
        if evidence.is_there(self._path):
            self.look(max(_LOOK, self._forget_at - time.monotonic()))

    def _sync_rows(self) -> int:
        """Make the rows durable, and say through where they are; a disk that cannot confirm it ends the replica's part
        in everything, as with the log: what it holds is known when it has been opened again.
        """
        try:
            return self._records.sync()
        except Unavailable as error:
            self._fail(error)
            raise

    def _forget_log(self, through: int) -> None:
        self._loop.tell(on.Trimmed(self._disk.trim(through)))

    def _fail(self, error: VecClusterError) -> None:
        self._loop.call(lambda: self._loop.fail(error))

    def _in_loop(self, function: Callable[[], None]) -> None:
        self._loop.call(function).result()


def _reason(error: Exception) -> str:
    return error.detail if isinstance(error, VecClusterError) else reason(error)
