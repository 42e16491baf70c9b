"""Snapshots on their way: a primary offers its files to a replica that needs everything, and that one fetches them.

The machine asks for a snapshot again and again until the replica has taken it, so an offer is also the question what
became of the last one, and everything here may be given up at any time: a later offer begins where this one ended, with
the files that are there already. Nothing counts that its checksum does not prove.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import structlog

from veccluster import backoff
from veccluster.decisions.replication.messages import Header, Snapshot
from veccluster.errors import StorageCorrupt, Unavailable
from veccluster.model.state import Member, Node, NodeId, ShardId
from veccluster_node.engine.generations import FileInfo
from veccluster_node.peer import connections
from veccluster_node.peer.links import Links
from veccluster_node.peer.proofs import Introductions
from veccluster_node.peer.wire import SnapshotOffer, SnapshotTaken
from veccluster_node.replica import snapshots
from veccluster_node.runtime.files import reason, sha256

PATH = "/peer/v1/snapshots"
RATE = 64 << 20
"""Bytes a second that a node fetches, so that searches keep their disk."""
CHUNK = 4 << 20
"""Bytes that are asked for at a time."""
KEPT = 60.0
"""Seconds without a word from the receiver after which an offer is forgotten."""
AGAIN, LONGEST_PAUSE = 2.0, 60.0
"""Seconds after an offer that came to nothing until the next one; twice as long each time, to the longest."""
GIVE_UP = 10.0
"""Seconds without a byte after which a download is given up."""
PAUSE = 0.2
CHUNK_TIMEOUT = 10.0
INSTALLING = 60.0
"""Seconds that a replica has to install what it was given, before another snapshot is fetched for it."""
DELIVER_EVERY = 5.0
ROUNDS = 3
"""How often files with a wrong checksum are fetched."""
ROOM = snapshots.KEEP_FREE
"""Part of the disk that a snapshot leaves free."""

log = structlog.get_logger(__name__)
Directory = Callable[[ShardId, Member], Path | None]


@dataclass(slots=True, eq=False)
class _Offer:
    """What one replica may fetch here. `offered` is None while it is being made; `given` when the files are gone."""

    shard: ShardId
    header: Header
    into: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    offered: snapshots.Offered | None = None
    given: bool = False
    touched: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Download:
    """What a replica of this node is being given."""

    shard: ShardId
    offer: SnapshotOffer
    root: Path
    task: asyncio.Task[None] | None = None
    delivered: float | None = None
    """When the replica was told of it; None while it is being fetched."""

    @property
    def incoming(self) -> Path:
        return self.root / snapshots.INCOMING

    def is_of(self, shard: ShardId, offer: SnapshotOffer) -> bool:
        return (self.shard, self.offer.id) == (shard, offer.id)


@dataclass(slots=True)
class _Failures:
    """How often in a row offers to one member came to nothing, and until when none is made."""

    count: int = 0
    not_before: float = 0.0


class Transfers:
    """Both ends: `offer` is for primaries; the rest is called by the peer thread."""

    def __init__(
        self,
        links: Links,
        members: Callable[[], Mapping[NodeId, Node]],
        introductions: Introductions,
        *,
        directory: Directory,
        deliver: Callable[[ShardId, Snapshot], None],
        outgoing: Path,
        rate: float = RATE,
    ) -> None:
        self._sender = _Sender(links, outgoing)
        self._receiver = _Receiver(links, members, introductions, directory, deliver, _Pace(rate))
        self._loop: asyncio.AbstractEventLoop | None = None

    def offer(self, shard: ShardId, header: Header, root: Path) -> None:
        """Let the member that the header is for have what is in `root`. Any thread; returns at once.

        To be called whenever the machine asks: a transfer under way goes on. One goes to a node at a time.
        """
        if loop := self._loop:
            with suppress(RuntimeError):  # closed in this moment
                loop.call_soon_threadsafe(self._sender.offer, shard, header, root)

    def is_under_way(self, shard: ShardId, to: Member) -> bool:
        """Whether that member is being given a snapshot, so that it cannot use records yet. Any thread."""
        return self._sender.is_under_way(shard, to)

    async def open(self) -> None:
        """Begin, on the running loop."""
        await self._sender.open()
        await self._receiver.open()
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Give up what is under way, and remove what was offered."""
        self._loop = None
        await self._receiver.close()
        await self._sender.close()

    def offered(self, shard: ShardId, offer: SnapshotOffer) -> None:
        """Another node has a snapshot for a replica of this one."""
        self._receiver.offered(shard, offer)

    def taken(self, node: NodeId, answer: SnapshotTaken) -> None:
        """What a node says has become of an offer to it."""
        self._sender.taken(node, answer)

    def file(self, snapshot: str, path: str) -> Path | None:
        """Where a file of an offer is; None when it is none."""
        return self._sender.file(snapshot, path)


class _Tasks:
    """Tasks of which nobody waits for a result."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Sender:
    def __init__(self, links: Links, outgoing: Path) -> None:
        self._links = links
        self._outgoing = outgoing
        self._offers: dict[tuple[ShardId, Member], _Offer] = {}
        self._failures: dict[tuple[ShardId, Member], _Failures] = {}
        self._exports = asyncio.Lock()
        self._tasks = _Tasks()

    async def open(self) -> None:
        """What an earlier process offered is forgotten."""
        await asyncio.to_thread(shutil.rmtree, self._outgoing, ignore_errors=True)
        await asyncio.to_thread(self._outgoing.mkdir, parents=True)
        self._tasks.start(self._forget_old())

    async def close(self) -> None:
        await self._tasks.cancel()
        await asyncio.to_thread(shutil.rmtree, self._outgoing, ignore_errors=True)

    def is_under_way(self, shard: ShardId, to: Member) -> bool:
        return (shard, to) in self._offers

    def offer(self, shard: ShardId, header: Header, root: Path) -> None:
        if known := self._offers.get((shard, header.to)):
            known.header = header
            self._tell(known)
        elif self._may_offer(shard, header.to):
            made = _Offer(shard, header, self._outgoing)
            made.into = self._outgoing / made.id
            self._offers[shard, header.to] = made
            self._tasks.start(self._export(made, root))

    def _may_offer(self, shard: ShardId, to: Member) -> bool:
        """One at a time to each node, and none to a node that cannot hear of it."""
        busy = any(o.header.to.node == to.node and not o.given for o in self._offers.values())
        failed = self._failures.get((shard, to))
        return not busy and self._links.reaches(to.node) and (failed is None or time.monotonic() >= failed.not_before)

    async def _export(self, made: _Offer, root: Path) -> None:
        try:
            async with self._exports:
                made.offered = await asyncio.to_thread(snapshots.export, root, made.into)
        except Exception as error:  # noqa: BLE001 - SQLite has its own; and an offer that is never made blocks others
            self._failed(made, reason(error))
            return
        log.info(
            "snapshot_offered",
            shard=str(made.shard),
            to=made.header.to.node,
            seq=made.offered.through,
            bytes=made.offered.size,
        )
        made.touched = time.monotonic()
        self._tell(made)

    def _tell(self, known: _Offer) -> None:
        if known.offered is not None:
            offer = SnapshotOffer(header=known.header, id=known.id, offered=known.offered)
            self._links.send(known.header.to.node, known.shard, offer)

    def taken(self, node: NodeId, answer: SnapshotTaken) -> None:
        mine = (o for o in self._offers.values() if o.id == answer.id and o.header.to.node == node)
        known = next(mine, None)
        if known is None:
            return
        known.touched = time.monotonic()
        if answer.why:
            self._failed(known, answer.why)
        elif answer.done and not known.given:
            known.given = True
            self._failures.pop((known.shard, known.header.to), None)
            self._remove(known)

    def file(self, snapshot: str, path: str) -> Path | None:
        for known in self._offers.values():
            if known.id == snapshot and known.offered and path in known.offered.files and not known.given:
                known.touched = time.monotonic()
                return known.into / path
        return None

    def _failed(self, known: _Offer, why: str) -> None:
        failed = self._failures.setdefault((known.shard, known.header.to), _Failures())
        failed.count += 1
        pause = backoff.pause(AGAIN, failed.count, LONGEST_PAUSE)
        failed.not_before = time.monotonic() + pause
        log.warning("snapshot_not_taken", shard=str(known.shard), to=known.header.to.node, reason=why, again_in=pause)
        self._forget(known)

    def _forget(self, known: _Offer) -> None:
        self._offers.pop((known.shard, known.header.to), None)
        self._remove(known)

    def _remove(self, known: _Offer) -> None:
        self._tasks.start(asyncio.to_thread(snapshots.discard, known.into))

    async def _forget_old(self) -> None:
        while True:
            await asyncio.sleep(KEPT / 10)
            now = time.monotonic()
            for known in list(self._offers.values()):
                if known.offered is not None and now > known.touched + KEPT:
                    self._forget(known)
            old = now - 2 * LONGEST_PAUSE
            self._failures = {k: failed for k, failed in self._failures.items() if failed.not_before > old}


class _Unusable(Exception):
    """A download that came to nothing."""


class _Receiver:
    def __init__(
        self,
        links: Links,
        members: Callable[[], Mapping[NodeId, Node]],
        introductions: Introductions,
        directory: Directory,
        deliver: Callable[[ShardId, Snapshot], None],
        pace: "_Pace",
    ) -> None:
        self._links = links
        self._members = members
        self._introductions = introductions
        self._directory = directory
        self._deliver = deliver
        self._pace = pace
        self._current: _Download | None = None
        self._delivered: dict[ShardId, _Download] = {}
        self._tasks = _Tasks()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = connections.session(total=CHUNK_TIMEOUT)

    async def close(self) -> None:
        await self._tasks.cancel()
        if self._session:
            await self._session.close()

    # -- offers

    def offered(self, shard: ShardId, offer: SnapshotOffer) -> None:
        root = self._directory(shard, offer.header.to)
        if root is None:
            self._answer(shard, offer, done=True, why="the replica is not open here")
        elif (given := self._delivered.get(shard)) and self._is_installing(given, offer):
            self._again(given, offer)
        elif self._current is None:
            self._begin(_Download(shard, offer, root))
        elif self._current.is_of(shard, offer):
            self._current.offer = offer
            self._answer(shard, offer)
        elif shard == self._current.shard and offer.header.epoch > self._current.offer.header.epoch:
            self._begin(_Download(shard, offer, root), instead_of=self._current)
        else:
            self._answer(shard, offer)

    def _is_installing(self, given: _Download, offer: SnapshotOffer) -> bool:
        """Whether the replica may still make use of what it was given; otherwise that is forgotten."""
        assert given.delivered is not None
        age = time.monotonic() - given.delivered
        is_there = given.incoming.exists() or (given.root / snapshots.INSTALLING).exists()
        if age < (INSTALLING if is_there else DELIVER_EVERY) and given.offer.header.to == offer.header.to:
            return True
        del self._delivered[given.shard]
        return False

    def _again(self, given: _Download, offer: SnapshotOffer) -> None:
        """The primary does not know yet that the replica has what it was given, or the replica would not take it."""
        if not given.is_of(given.shard, offer):
            self._answer(given.shard, offer)
            return
        self._answer(given.shard, offer, done=True)
        given.offer = offer
        assert given.delivered is not None
        if time.monotonic() >= given.delivered + DELIVER_EVERY and given.incoming.exists():
            self._hand_over(given)

    def _answer(self, shard: ShardId, offer: SnapshotOffer, *, done: bool = False, why: str = "") -> None:
        self._links.send(offer.header.sender.node, shard, SnapshotTaken(id=offer.id, done=done, why=why))

    def _hand_over(self, download: _Download) -> None:
        offer = download.offer
        self._deliver(download.shard, Snapshot(offer.header, offer.offered.through, offer.offered))

    # -- fetching

    def _begin(self, download: _Download, instead_of: _Download | None = None) -> None:
        self._current = download
        download.task = self._tasks.start(self._run(download, instead_of))

    async def _run(self, download: _Download, instead_of: _Download | None) -> None:
        if instead_of and instead_of.task:
            instead_of.task.cancel()
            await asyncio.gather(instead_of.task, return_exceptions=True)
        began = time.monotonic()
        try:
            await self._fetch(download)
        except Exception as error:  # noqa: BLE001 - the sender must hear of it, whatever it is
            log.warning("snapshot_not_fetched", shard=str(download.shard), reason=reason(error))
            self._answer(download.shard, download.offer, done=True, why=reason(error))
        else:
            seconds = round(time.monotonic() - began, 3)
            log.info("snapshot_fetched", shard=str(download.shard), seq=download.offer.offered.through, seconds=seconds)
            download.delivered = time.monotonic()
            self._delivered[download.shard] = download
            self._hand_over(download)
            self._answer(download.shard, download.offer, done=True)
        finally:
            if self._current is download:
                self._current = None

    async def _fetch(self, download: _Download) -> None:
        offered = download.offer.offered
        missing = await asyncio.to_thread(_prepare, download.incoming, offered)
        for _ in range(ROUNDS):
            for path in missing:
                await self._fetch_file(download, path, offered.files[path])
            try:
                await asyncio.to_thread(snapshots.verify, download.incoming, offered)
            except StorageCorrupt as error:
                log.warning("snapshot_damaged", shard=str(download.shard), detail=error.detail)
                missing = await asyncio.to_thread(_remove_wrong, download.incoming, offered)
            else:
                return
        raise _Unusable("what came is not what was offered")

    async def _fetch_file(self, download: _Download, path: str, info: FileInfo) -> None:
        got, moved = 0, time.monotonic()
        await asyncio.to_thread(_append, download.incoming / path, b"")
        while got < info.size:
            if self._directory(download.shard, download.offer.header.to) != download.root:
                raise _Unusable("the replica was closed meanwhile")
            try:
                data = await self._get(download, path, got, min(CHUNK, info.size - got))
            except (aiohttp.ClientError, OSError) as error:
                if time.monotonic() > moved + GIVE_UP:
                    raise _Unusable(f"nothing came for {GIVE_UP:g} s: {reason(error)}") from error
                await asyncio.sleep(PAUSE)
                continue
            await asyncio.to_thread(_append, download.incoming / path, data)
            got, moved = got + len(data), time.monotonic()
            await self._pace.spend(len(data))

    async def _get(self, download: _Download, path: str, at: int, size: int) -> bytes:
        assert self._session is not None
        sender = self._members().get(download.offer.header.sender.node)
        if sender is None:
            raise ConnectionError("the sender is not a member of the cluster any more")
        url = connections.url(sender, f"{PATH}/{download.offer.id}/{path}")
        try:
            proof = await self._introductions.to(sender, self._session)
        except Unavailable as error:
            raise ConnectionError(error.detail) from error
        async with self._session.get(url, headers={"Range": f"bytes={at}-{at + size - 1}", **proof}) as response:
            if response.status in {401, 403}:
                self._introductions.refused(sender)
            if response.status == 404:
                raise _Unusable("the sender has it no more")
            if response.status != 206:
                raise ConnectionError(f"the sender answered with {response.status}")
            return await response.read()


class _Pace:
    """Keeps what is spent below a rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def spend(self, amount: int) -> None:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + amount / self._rate
        await asyncio.sleep(self._free_at - now)


def _prepare(incoming: Path, offered: snapshots.Offered) -> list[str]:
    """The files that have to be fetched; those of an earlier attempt that are right stay, all others go."""
    incoming.mkdir(exist_ok=True)
    missing = _remove_wrong(incoming, offered)
    disk = shutil.disk_usage(incoming)
    needed = sum(offered.files[path].size for path in missing) + offered.rows_size
    if needed > disk.free - ROOM * disk.total:
        raise _Unusable("the disk has no room for it")
    return missing


def _remove_wrong(incoming: Path, offered: snapshots.Offered) -> list[str]:
    """The files that are missing, once those are gone that are no part of the snapshot or differ."""
    for path in [p for p in incoming.rglob("*") if p.is_file()]:
        info = offered.files.get(path.relative_to(incoming).as_posix())
        if info is None or path.stat().st_size != info.size or sha256(path) != info.sha256:
            path.unlink()
    return [name for name in offered.files if not (incoming / name).exists()]


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("ab") as file:
        file.write(data)
