"""A node tells of its shards only what stays true when the work under way ends, and never acts as somebody else."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from support.states import collection, load, node, shard
from veccluster.decisions.hosting import Local
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import StorageCorrupt
from veccluster.model.cluster import EVERYTHING, Changes, ClusterState, Drop
from veccluster.model.state import Collection, Epoch, Incarnation, Member, NodeId, Revision, Shard, ShardId
from veccluster_node.metadata.store import NOTHING_KNOWN, Store
from veccluster_node.runtime.identity import Identity, claim
from veccluster_node.runtime.metrics import Measures
from veccluster_node.shards.reconciler import FIRST_PAUSE, Reconciler

ME, OTHER = node(0), node(1)
WORDS = collection("words", 1)
SHARD = ShardId(WORDS.uuid, 0)


class _Host:
    """Keeps directories as the real one does, opens them when it is let, and notes what it is shown."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory / "shards"
        self.measures = Measures()
        self.asked_to_open = asyncio.Event()
        self.let_open = asyncio.Event()
        self.let_open.set()
        self.let_delete = asyncio.Event()
        self.let_delete.set()
        self.opened: dict[ShardId, Member] = {}
        self.damaged: dict[ShardId, str] = {}
        self.corrupt: set[ShardId] = set()
        self.seen: list[Epoch] = []
        self.known: dict[ShardId, Known] = {}
        self.primaries: list[ShardId] = []
        self.mend: list[ShardId] = []
        self._dir.mkdir()

    def directory(self, shard: ShardId) -> Path:
        return self._dir / str(shard)

    def local(self) -> dict[ShardId, Local]:
        there = [s for p in self._dir.iterdir() if (s := ShardId.parse(p.name))]
        return {s: Local(is_open=s in self.opened, damaged=self.damaged.get(s)) for s in there}

    def see(self, shard: ShardId, configuration: Configuration) -> None:
        assert shard in self.opened
        self.seen.append(configuration.epoch)

    def know(self, shard: ShardId, known: Known) -> None:
        assert shard in self.opened
        self.known[shard] = known

    def mendable(self) -> list[ShardId]:
        return self.mend

    def serving(self) -> list[ShardId]:
        return self.primaries

    def broken(self) -> list[ShardId]:
        return []

    def issues(self) -> list[str]:
        return []

    async def open(self, shard: ShardId, collection: Collection, member: Member) -> None:
        self.asked_to_open.set()
        await self.let_open.wait()
        if shard in self.corrupt:
            raise StorageCorrupt("flipped bits")
        self.directory(shard).mkdir(exist_ok=True)
        self.opened[shard] = member

    async def shut(self, shard: ShardId) -> None:
        self.opened.pop(shard, None)

    async def delete(self, shard: ShardId) -> None:
        await self.shut(shard)
        await self.let_delete.wait()
        shutil.rmtree(self.directory(shard))
        self.damaged.pop(shard, None)
        self.corrupt.discard(shard)


class _Store:
    """etcd, whose state this node has seen unless `newer` says something else."""

    def __init__(self, *shards: Shard) -> None:
        self.reported: list[str] = []
        self.newer: Configuration | None = None
        self.all_batches: dict[str, Known] = {}
        self.batches_changed: list[Callable[[], None]] = []
        self.taken: ClusterState | None = None
        self.put(*shards)

    def put(self, *shards: Shard, **changes: object) -> None:
        there = ClusterState(
            revision=Revision(9),
            nodes={ME.id: ME},
            alive={ME.id: load(ME.id), THERE.node: load(THERE.node, [s.id for s in shards])},
            collections={"words": WORDS},
            shards={s.id: s for s in shards},
        )
        self.state = msgspec.structs.replace(there, **changes)

    def reader(self) -> "_Store":
        return self

    def take(self) -> tuple[ClusterState, Changes]:
        before, self.taken = self.taken, self.state
        if before is None:
            return self.state, EVERYTHING
        if before is self.state:
            return self.state, Changes()
        both = (before, self.state)
        shards = {i for s in both for i in (*s.shards, *s.unsettled)}
        uuids = {u for s in both for u in (*(c.uuid for c in s.collections.values()), *s.drops)}
        return self.state, Changes(shards=frozenset(shards), collections=frozenset(uuids))

    def batches(self, uuid: str) -> Known:
        return self.all_batches.get(uuid, NOTHING_KNOWN)

    def wake(self) -> None:
        pass

    async def read_shard(self, shard: ShardId) -> Configuration:
        return self.newer or Configuration.of(self.state.shards[shard], 1)

    async def report_dropped(self, uuid: str, node: NodeId) -> None:
        self.reported.append(uuid)


class _Node:
    """A reconciler on a real data directory."""

    def __init__(self, directory: Path, make: str = "data") -> None:
        self.identity: Identity = claim(directory / make, ME.id)
        self.me = self.identity.member(SHARD)
        self.host, self.store = _Host(directory / make), _Store()
        self.reconciler = Reconciler(self.identity, cast("Store", self.store), self.host, self.host, self.host)

    def record(self, **changes: object) -> Shard:
        made = {"primary": self.me, "in_sync": (self.me,), "epoch": Epoch(4), "revision": Revision(7)}
        return shard(0, ME, **made | changes)

    async def rounds(self, seconds: float = 0.0) -> None:
        """Some rounds, as many as it takes for what is under way to end; then more for so long."""
        end = asyncio.get_running_loop().time() + seconds
        for _ in range(5):
            self.reconciler.round()
            await asyncio.gather(*(self.reconciler._busy.values() if self.host.let_open.is_set() else ()))
            await asyncio.sleep(0)
        while asyncio.get_running_loop().time() < end:
            self.reconciler.round()
            await asyncio.sleep(0.01)


@pytest.fixture
def here(tmp_path: Path) -> _Node:
    return _Node(tmp_path)


THERE = OTHER.member(SHARD)


async def test_a_shard_that_is_being_opened_while_its_collection_is_dropped_is_deleted_before_that_is_reported(
    here: _Node,
) -> None:
    host, store = here.host, here.store
    host.let_open.clear()
    store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    store.put(collections={}, drops={WORDS.uuid: Drop(uuid=WORDS.uuid, name="words")})
    await here.rounds()
    assert store.reported == []  # its directory may be made at any moment

    host.let_open.set()
    await here.rounds()
    assert host.local() == {}
    assert WORDS.uuid in store.reported
    assert here.identity.disk.replicas == {}


async def test_it_is_written_down_that_a_replica_begins_before_its_directory_is_made(here: _Node) -> None:
    here.host.let_open.clear()
    here.store.put(here.record(epoch=Epoch(0)))
    here.reconciler.round()
    await here.host.asked_to_open.wait()
    assert here.identity.disk.has_begun(SHARD)
    assert here.host.local() == {}
    here.host.let_open.set()
    await here.rounds()
    assert here.host.opened == {SHARD: here.me}


async def test_an_open_replica_is_shown_each_record_once_and_again_after_it_was_opened_again(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    here.store.put(here.record(epoch=Epoch(5), revision=Revision(8)))
    await here.rounds()
    assert here.host.seen == [0, 5]
    here.host.mend = [SHARD]
    here.reconciler.round()
    await here.reconciler._busy[SHARD]
    here.host.mend = []
    await here.rounds()
    assert here.host.seen == [0, 5, 5]


async def test_an_open_replica_is_told_of_batches_when_there_is_news_and_when_it_was_opened_again(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    here.store.all_batches[WORDS.uuid] = first = Known(Revision(5))
    await here.rounds()
    assert here.host.known.pop(SHARD) is first
    await here.rounds()
    assert not here.host.known
    here.store.all_batches[WORDS.uuid] = second = Known(Revision(6))
    for tell in here.store.batches_changed:
        tell()
    assert here.host.known.pop(SHARD) is second
    here.host.mend = [SHARD]
    here.reconciler.round()
    await here.reconciler._busy[SHARD]
    here.host.mend = []
    await here.rounds()
    assert here.host.known.pop(SHARD) is second


async def test_a_damaged_copy_begins_anew_as_another_member_beside_one_that_is_in_sync(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    here.host.damaged[SHARD] = "flipped bits"
    here.store.put(here.record(primary=THERE, in_sync=(here.me, THERE)))
    await here.rounds()
    after = here.identity.member(SHARD)
    assert here.host.opened == {}
    assert after != here.me
    assert SHARD in here.host.local(), "its data stays until the record names who comes after"

    here.store.put(here.record(primary=THERE, in_sync=(here.me, THERE), learners=(after,), epoch=Epoch(5)))
    await here.rounds()
    assert here.host.opened == {SHARD: after}


async def test_a_damaged_copy_stays_if_etcd_says_by_now_that_it_is_the_only_one(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    here.host.damaged[SHARD] = "flipped bits"
    here.store.put(here.record(in_sync=(here.me, THERE)))
    here.store.newer = Configuration.of(here.record(), 1)
    await here.rounds()
    assert here.host.opened == {SHARD: here.me}
    assert here.identity.member(SHARD) == here.me
    assert here.reconciler.broken() == [SHARD]


async def test_a_copy_that_cannot_be_opened_for_what_is_on_its_disk_begins_anew_too(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    await here.host.shut(SHARD)
    here.host.corrupt.add(SHARD)
    here.store.put(here.record(primary=THERE, in_sync=(here.me, THERE)))
    await here.rounds(2 * FIRST_PAUSE)
    after = here.identity.member(SHARD)
    assert after != here.me
    here.store.put(here.record(primary=THERE, in_sync=(here.me, THERE), learners=(after,)))
    await here.rounds()
    assert here.host.opened == {SHARD: after}
    assert here.reconciler.issues() == []


async def test_the_only_copy_is_broken_when_it_cannot_be_opened_and_its_node_is_settled_with_that(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    await here.host.shut(SHARD)
    here.host.corrupt.add(SHARD)
    here.store.put(here.record())
    await here.rounds()
    assert (here.reconciler.broken(), here.reconciler.recovering()) == ([SHARD], [])
    assert here.reconciler.settled
    assert here.identity.member(SHARD) == here.me
    assert here.reconciler.issues() == [f"shard {SHARD}: flipped bits"]


async def test_a_shard_is_recovering_until_it_is_open_and_served_where_it_is_primary(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    assert here.reconciler.recovering() == [SHARD]
    await here.rounds()
    assert here.reconciler.recovering() == [SHARD]
    assert not here.reconciler.settled
    here.host.primaries = [SHARD]
    assert here.reconciler.recovering() == []
    assert here.reconciler.settled
    here.host.primaries = []
    here.store.put(here.record(primary=THERE, in_sync=(here.me, THERE)))
    assert here.reconciler.recovering() == []


async def test_a_collection_that_is_being_deleted_leaves_the_node_complete_and_is_no_issue_of_it(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    here.store.put(here.record())
    here.host.primaries = [SHARD]
    here.host.let_delete.clear()
    here.store.put(here.record(), collections={}, drops={WORDS.uuid: Drop(uuid=WORDS.uuid, name="words")})
    here.reconciler.round()
    await asyncio.sleep(0)
    for _ in range(2):  # while it is being deleted, and once it is, before the leader has cleared its record
        assert here.reconciler.settled
        assert (here.reconciler.recovering(), here.reconciler.broken(), here.reconciler.issues()) == ([], [], [])
        here.host.let_delete.set()
        await here.rounds()
    assert set(here.store.reported) == {WORDS.uuid}


async def test_what_the_shard_has_enough_copies_of_without_this_one_is_deleted_for_good(here: _Node) -> None:
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    here.store.put(here.record(primary=THERE, in_sync=(THERE,)))
    await here.rounds()
    assert here.host.local() == {}
    assert here.identity.member(SHARD) != here.me


async def test_a_shard_that_went_elsewhere_is_no_issue_any_more(here: _Node) -> None:
    here.host.corrupt.add(SHARD)
    here.store.put(here.record(epoch=Epoch(0)))
    await here.rounds()
    assert here.reconciler.issues()
    elsewhere = Member(OTHER.id, Incarnation("disk"))
    here.store.put(here.record(primary=elsewhere, in_sync=(elsewhere,)))
    await here.rounds()
    assert here.reconciler.issues() == []
