"""The etcd client while the members of a real three-member etcd are killed, stopped and started again."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress

import pytest

from support.etcd import EtcdCluster
from veccluster.errors import LeaseLost, MetadataUnavailable, OutcomeUnknown
from veccluster.model.state import Revision
from veccluster_etcd import (
    CreateRevision,
    DeletePrefix,
    Election,
    EtcdClient,
    Event,
    Lease,
    ModRevision,
    Put,
    Snapshot,
    Term,
)

PATIENT = {"timeout": 15.0, "attempt_timeout": 0.5, "watch_silence": 0.5, "watch_patience": 0.5}


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: EtcdCluster) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(cluster.config(**PATIENT)) as client:
        yield client
        await client.txn([], [DeletePrefix("")])


async def healthy(cluster: EtcdCluster) -> None:
    await asyncio.to_thread(cluster.wait_healthy)


async def leader_of(client: EtcdClient, cluster: EtcdCluster) -> int:
    """The member that leads etcd."""
    while True:
        for status in await client.status():
            if status.error is None and status.is_leader:
                return cluster.index_of(status.endpoint)
        await asyncio.sleep(0.05)


async def leaderless(client: EtcdClient) -> None:
    """Return once no member knows a leader."""
    while True:
        if not any(s.leader_id for s in await client.status()):
            return
        await asyncio.sleep(0.05)


class Writer:
    """Writes key after key; what becomes of a write that is not answered, it finds out by reading."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.written = 0
        self.unknown = 0

    async def run(self) -> None:
        while True:
            try:
                await self.client.put(f"/w/{self.written:05}", b"", timeout=3)
            except OutcomeUnknown:
                self.unknown += 1
                if await self.client.get(f"/w/{self.written:05}") is None:
                    continue
            self.written += 1
            await asyncio.sleep(0.005)


class Incrementer:
    """Counts up by compare-and-swap, each time leaving a mark that tells afterwards whether it was applied."""

    def __init__(self, client: EtcdClient, name: str) -> None:
        self.client = client
        self.name = name
        self.outcomes: dict[str, bool | None] = {}

    async def run(self) -> None:
        while True:
            counter = await self.client.get("/counter")
            mark = f"/marks/{self.name}/{len(self.outcomes):05}"
            self.outcomes[mark] = None
            value = b"%d" % (int(counter.value) + 1)
            with suppress(OutcomeUnknown):
                result = await self.client.txn(
                    [ModRevision("/counter", "==", counter.mod_revision)],
                    [Put("/counter", value), Put(mark, b"")],
                    timeout=3,
                )
                self.outcomes[mark] = result.succeeded
            await asyncio.sleep(0.01)


class Follower:
    """Remembers everything that it is told."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.since: Revision | None = None
        self.events: list[Event] = []
        self.batches: list[Revision] = []

    async def run(self) -> None:
        async with aclosing(self.client.follow("/", at_least_every=0.2)) as updates:
            async for update in updates:
                if isinstance(update, Snapshot):
                    assert self.since is None
                    self.since = update.revision
                elif update.events:
                    self.events.extend(update.events)
                    self.batches.append(update.revision)


class Candidate:
    """Is elected, writes under its fence, and loses or gives up its term, again and again."""

    def __init__(self, client: EtcdClient, name: str, rivals: "list[Candidate]") -> None:
        self.client = client
        self.name = name
        self.rivals = rivals
        self.lease: Lease | None = None
        self.terms: list[Term] = []

    @property
    def believes(self) -> bool:
        """Whether it would act as the leader."""
        return self.lease is not None and self.lease.remaining() > 0

    async def run(self) -> None:
        while True:
            with suppress(LeaseLost, MetadataUnavailable):
                lease = await self.client.grant(2)
                election = Election(self.client, "/leader", lease, self.name.encode())
                try:
                    term = await election.campaign()
                    assert not any(rival.believes for rival in self.rivals if rival is not self)
                    self.lease = lease
                    self.terms.append(term)
                    await self._govern(term, lease)
                finally:
                    self.lease = None
                    await lease.revoke()

    async def _govern(self, term: Term, lease: Lease) -> None:
        for n in range(60):
            lease.check()
            with suppress(OutcomeUnknown):
                done = await self.client.txn(
                    [term.fence()], [Put(f"/deeds/{term.create_revision:09}/{n:03}", b"")], timeout=1
                )
                if not done.succeeded:
                    return
            await asyncio.sleep(0.02)


async def history(client: EtcdClient, start: Revision, end: Revision) -> list[Event]:
    """What really happened after `start`, as a watch over a quiet etcd tells it."""
    events: list[Event] = []
    async with aclosing(client.watch("/", Revision(start + 1))) as watch:
        async for batch in watch:
            events.extend(batch.events)
            if batch.revision >= end:
                return events
    raise AssertionError("a watch does not end")


@pytest.mark.e2e
async def test_with_members_failing_one_after_another_no_call_fails_that_may_be_repeated_and_nothing_is_lost(cluster):
    clients = [EtcdClient(cluster.config(**PATIENT)) for _ in range(6)]
    for client in clients:
        await client.connect()
    await clients[0].put("/counter", b"0")
    writer = Writer(clients[0])
    incrementers = [Incrementer(c, str(n)) for n, c in enumerate(clients[:2])]
    followers = [Follower(c) for c in clients[:4]]
    candidates: list[Candidate] = []
    candidates += [Candidate(c, str(n), candidates) for n, c in enumerate(clients[4:])]
    workers = [asyncio.create_task(w.run()) for w in (writer, *incrementers, *followers, *candidates)]

    async def goes_on(more: int = 25) -> None:
        """Return once `more` writes have been done."""
        goal = writer.written + more
        await until(lambda: writer.written >= goal, workers)

    await goes_on()
    for index in (*range(3), await leader_of(clients[0], cluster)):
        with cluster.without(index):
            await goes_on()
        await healthy(cluster)
        await goes_on()
    for index in (await leader_of(clients[0], cluster), cluster.index_of(clients[0].endpoint)):
        with cluster.hanging(index):
            await goes_on()
        await healthy(cluster)
    await goes_on()
    for worker in (workers[:3], workers[-2:]):
        await stop(*worker)
    end = await clients[0].put("/end", b"")
    await until(lambda: all(f.batches and f.batches[-1] >= end for f in followers), workers[3:-2])
    await stop(*workers)

    await check_followers(clients[0], followers, end)
    await check_counter(clients[0], incrementers)
    check_terms(await history(clients[0], Revision(0), end), candidates)
    listing = await clients[0].range("/w/")
    assert [kv.key for kv in listing.items][: writer.written] == [f"/w/{n:05}" for n in range(writer.written)]
    for client in clients:
        await client.close()


async def until(condition: Callable[[], bool], workers: list[asyncio.Task[None]], within: float = 30.0) -> None:
    """Wait for `condition`; a worker that fails meanwhile fails the test."""
    deadline = time.monotonic() + within
    while not condition():
        for worker in workers:
            if worker.done() and not worker.cancelled():
                worker.result()
        assert time.monotonic() < deadline, "there was no progress"
        await asyncio.sleep(0.01)


async def stop(*workers: asyncio.Task[None]) -> None:
    """Cancel the workers; one that has failed before fails the test."""
    for worker in workers:
        worker.cancel()
    for result in await asyncio.gather(*workers, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result


async def check_followers(client: EtcdClient, followers: list[Follower], end: Revision) -> None:
    """Every follower saw exactly what happened since its snapshot, in order, no revision in two parts."""
    for follower in followers:
        truth = await history(client, follower.since, end)
        assert follower.events[: len(truth)] == truth
        assert len(set(follower.batches)) == len(follower.batches)


async def check_counter(client: EtcdClient, incrementers: list[Incrementer]) -> None:
    """The counter is what the successes add up to, those included that were found out afterwards."""
    marks = {kv.key for kv in (await client.range("/marks/")).items}
    assert int((await client.get("/counter")).value) == len(marks)
    for mark, outcome in (item for i in incrementers for item in i.outcomes.items()):
        assert outcome is None or outcome == (mark in marks)
    assert Counter(o for i in incrementers for o in i.outcomes.values())[True] > 50


def check_terms(truth: list[Event], candidates: list[Candidate]) -> None:
    """No deed of a term was done once the next had begun."""
    terms = sorted(t.create_revision for c in candidates for t in c.terms)
    assert len(terms) == len(set(terms)) > 3
    term = 0
    for event in truth:
        if event.key == "/leader" and event.now:
            term = event.revision
        elif event.key.startswith("/deeds/"):
            assert int(event.key.split("/")[2]) == term


async def renewed(lease: Lease) -> None:
    """Return once the lease was renewed; fail when it is lost."""
    end = time.monotonic() + lease.remaining()
    async with asyncio.timeout(20):
        while time.monotonic() + lease.remaining() < end + 0.2:
            lease.check()
            await asyncio.sleep(0.02)


async def test_a_member_that_came_back_is_used_again(cluster):
    async with EtcdClient(cluster.config(endpoints=cluster.endpoints[:2], **PATIENT)) as client:
        first = cluster.index_of(client.endpoint)
        second = 1 - first
        for away, asked in ((first, second), (second, first)):
            with cluster.without(away):
                await client.get("/")
                assert cluster.index_of(client.endpoint) == asked
            await healthy(cluster)


async def test_a_member_without_a_leader_does_nothing_and_says_so_and_goes_on_when_it_has_one(cluster, client):
    config = cluster.config(endpoints=(cluster.endpoints[0],), timeout=15, watch_silence=0.5, watch_patience=0.5)
    async with EtcdClient(config) as alone, aclosing(alone.follow("/n/")) as updates:
        await anext(updates)
        with cluster.without(1, 2):
            await leaderless(alone)
            with pytest.raises(MetadataUnavailable):
                await alone.get("/n/a", timeout=0.3)
            with pytest.raises(MetadataUnavailable):  # and not OutcomeUnknown: it was refused before it was proposed
                await alone.put("/n/a", b"", timeout=0.3)
        await alone.put("/n/b", b"")
        assert [e.key for e in (await anext(updates)).events] == ["/n/b"]
        assert await alone.get("/n/a") is None
    await healthy(cluster)


async def test_a_member_that_hangs_is_left_by_reads_watches_and_leases(cluster, client):
    async with await client.grant(5) as lease, aclosing(client.follow("/h/")) as updates:
        await anext(updates)
        upcoming = asyncio.ensure_future(anext(updates))
        hanging = cluster.index_of(client.endpoint)
        with cluster.hanging(hanging):
            await client.get("/h/a")
            assert cluster.index_of(client.endpoint) != hanging
            created = False
            while not created:
                with suppress(OutcomeUnknown):
                    await client.txn([CreateRevision("/h/a", "==", 0)], [Put("/h/a", b"")], timeout=2)
                    created = True
            assert [e.key for e in (await asyncio.wait_for(upcoming, 10)).events] == ["/h/a"]
            await renewed(lease)
    await healthy(cluster)


async def test_a_lease_is_kept_when_the_leader_is_killed(cluster, client):
    async with await client.grant(5) as lease:
        await client.put("/l/a", b"", lease=lease.id)
        with cluster.without(await leader_of(client, cluster)):
            await renewed(lease)
            await renewed(lease)
            assert (await client.get("/l/a")).lease == lease.id
    await healthy(cluster)


async def test_the_status_tells_members_that_are_away_from_those_that_are_there(cluster):
    # What is refused is known at once; who is there may be slow to say so, as the two elect a leader meanwhile.
    async with EtcdClient(cluster.config(attempt_timeout=10, connect_timeout=10)) as client:
        with cluster.without(2):
            statuses = await client.status()
    assert [s.endpoint for s in statuses] == list(cluster.endpoints)
    assert (statuses[0].error, statuses[1].error) == (None, None)
    assert statuses[2].error
    await healthy(cluster)
