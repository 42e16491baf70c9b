"""The etcd client against a real member: reads, writes, transactions, watches, leases, elections."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from support.etcd import EtcdCluster, Wire
from veccluster.errors import LeaseLost, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster_etcd import (
    Compacted,
    CreateRevision,
    Delete,
    Deleted,
    DeletePrefix,
    Election,
    EtcdClient,
    Event,
    Found,
    Get,
    GetPrefix,
    ModRevision,
    Put,
    PutDone,
    Snapshot,
    Txn,
    Value,
    Version,
    WatchEvents,
)

pytestmark = pytest.mark.timeout(30)

QUICK = {"attempt_timeout": 0.3, "connect_timeout": 0.3, "watch_silence": 0.3, "watch_patience": 0.3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: EtcdCluster) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(cluster.config()) as client:
        yield client
        await client.txn([], [DeletePrefix("")])


@pytest.fixture
async def wire(cluster: EtcdCluster) -> AsyncIterator[Wire]:
    async with Wire(cluster.endpoints[0]) as wire:
        yield wire


@pytest.fixture
async def wired(cluster: EtcdCluster, wire: Wire) -> AsyncIterator[EtcdClient]:
    """A client whose connection can be cut; quick to notice."""
    async with EtcdClient(cluster.config(endpoints=(wire.endpoint,), **QUICK)) as client:
        yield client
        wire.mend()


async def changes(updates: AsyncIterator[Snapshot | WatchEvents], count: int) -> list[Event]:
    """The next `count` events."""
    events: list[Event] = []
    async with asyncio.timeout(10):
        while len(events) < count:
            update = await anext(updates)
            assert isinstance(update, WatchEvents)
            events.extend(update.events)
    assert len(events) == count
    return events


async def test_what_is_written_is_read_until_it_is_deleted(client):
    assert await client.get("/a") is None
    first = await client.put("/a", b"1")
    second = await client.put("/a", b"2")
    found = await client.get("/a")
    assert (found.value, found.create_revision, found.mod_revision, found.version) == (b"2", first, second, 2)
    assert await client.delete("/a") is True
    assert await client.delete("/a") is False
    assert await client.get("/a") is None


async def test_a_range_is_read_whole_and_as_of_one_revision_however_many_keys_it_has(client):
    for start in range(0, 1000, 100):
        await client.txn([], [Put(f"/many/{n:04}", b"old") for n in range(start, start + 100)])
    await client.put("/manyother", b"")

    async def disturb() -> None:
        for n in range(999, -1, -37):
            await client.put(f"/many/{n:04}", b"new")

    disturbing = asyncio.create_task(disturb())
    listings = [await client.range("/many/") for _ in range(5)]
    await disturbing
    for listing in listings:
        assert [kv.key for kv in listing.items] == [f"/many/{n:04}" for n in range(1000)]
        assert max(kv.mod_revision for kv in listing.items) <= listing.revision
        assert listing == await client.range("/many/", revision=listing.revision)
    assert len((await client.range("/many/", limit=300)).items) == 300
    assert len((await client.range("")).items) == 1001


async def test_a_range_of_many_megabytes_is_read(client):
    for n in range(20):
        await client.put(f"/large/{n:02}", bytes([n]) * 1_000_000)
    items = (await client.range("/large/")).items
    assert [kv.value[:1] for kv in items] == [bytes([n]) for n in range(20)]


async def test_a_transaction_takes_one_branch_and_answers_each_operation(client):
    done = await client.txn(
        [CreateRevision("/t/a", "==", 0)], [Put("/t/a", b"1"), Put("/t/b", b"2"), Get("/t/a")], [Get("/t/a")]
    )
    assert done.succeeded
    assert [type(r) for r in done.responses] == [PutDone, PutDone, Found]
    again = await client.txn([CreateRevision("/t/a", "==", 0)], [Put("/t/a", b"9")], [GetPrefix("/t/"), Get("/none")])
    assert not again.succeeded
    assert [kv.key for kv in again.responses[0].items] == ["/t/a", "/t/b"]
    assert again.responses[1].one is None
    gone = await client.txn([], [Delete("/t/a"), DeletePrefix("/t/")])
    assert gone.responses == (Deleted(1), Deleted(1))


async def test_transactions_within_one_compare_each_for_itself_what_was_there_before(client):
    await client.put("/n/taken", b"")
    swaps = [Txn((CreateRevision(key, "==", 0),), (Put(key, b"1"),), (Get(key),)) for key in ("/n/free", "/n/taken")]
    done = await client.txn([CreateRevision("/n/none", "==", 0)], swaps)
    free, taken = done.responses
    assert done.succeeded
    assert (free.succeeded, taken.succeeded) == (True, False)
    assert taken.responses[0].one.value == b""
    assert (await client.get("/n/free")).mod_revision == done.revision
    fenced = await client.txn([CreateRevision("/n/taken", "==", 0)], swaps)
    assert not fenced.succeeded
    assert fenced.responses == ()


async def test_every_kind_of_compare_decides(client):
    revision = await client.put("/c", b"v")
    for compare in (
        ModRevision("/c", "==", revision),
        ModRevision("/c", ">", revision - 1),
        CreateRevision("/c", "<", revision + 1),
        Version("/c", "==", 1),
        Value("/c", "!=", b"w"),
    ):
        assert (await client.txn([compare], [])).succeeded
    for compare in (ModRevision("/c", "==", revision + 1), Version("/c", ">", 1), Value("/c", "==", b"w")):
        assert not (await client.txn([compare], [])).succeeded


async def test_what_etcd_will_never_do_is_refused_in_its_words(client):
    with pytest.raises(MetadataRefused, match="too large"):
        await client.put("/huge", bytes(1_900_000))
    with pytest.raises(MetadataRefused, match="duplicate key"):
        await client.txn([], [Put("/same", b"1"), Put("/same", b"2")])
    with pytest.raises(MetadataRefused, match="lease not found"):
        await client.put("/leased", b"", lease=12345)


async def test_a_watch_sees_every_change_in_order_and_never_part_of_a_revision(client):
    revision = await client.put("/w/0", b"before")
    async with aclosing(client.watch("/w/")) as watch:
        assert await anext(watch) == WatchEvents(revision, ())
        await client.put("/w/1", b"x")
        await client.put("/elsewhere", b"x")
        await client.txn([], [Put("/w/2", b"y"), Put("/w/3", b"z"), Delete("/w/1")])
        first, second = await anext(watch), await anext(watch)
    assert [(e.key, e.now and e.now.value) for e in first.events] == [("/w/1", b"x")]
    assert sorted((e.key, e.now and e.now.value) for e in second.events) == [
        ("/w/1", None),
        ("/w/2", b"y"),
        ("/w/3", b"z"),
    ]
    assert {e.revision for e in second.events} == {second.revision}


async def test_history_larger_than_a_message_comes_whole_and_once(client):
    start = await client.put("/f/start", b"")
    for n in range(6):
        await client.txn([], [Put(f"/f/{n}/{part}", bytes(450_000)) for part in "abc"])
    async with aclosing(client.watch("/f/", start)) as watch:
        events = await changes(watch, 19)
    assert [e.revision for e in events] == sorted(e.revision for e in events)
    assert len({(e.key, e.revision) for e in events}) == 19


async def test_following_begins_with_everything_and_goes_on_with_every_change(client):
    await client.put("/s/a", b"1")
    async with aclosing(client.follow("/s/")) as updates:
        snapshot = await anext(updates)
        assert {k: v.value for k, v in snapshot.items.items()} == {"/s/a": b"1"}
        await client.put("/s/b", b"2")
        await client.delete("/s/a")
        events = await changes(updates, 2)
    assert [(e.key, e.now and e.now.value) for e in events] == [("/s/b", b"2"), ("/s/a", None)]


async def test_a_follower_is_woken_at_least_as_often_as_it_asked(client):
    async with aclosing(client.follow("/quiet/", at_least_every=0.05)) as updates:
        snapshot = await anext(updates)
        started = time.monotonic()
        assert [await anext(updates) for _ in range(3)] == [WatchEvents(snapshot.revision, ())] * 3
        assert 0.1 < time.monotonic() - started < 2
        await client.put("/quiet/a", b"")
        (event,) = await changes(updates, 1)
        assert event.key == "/quiet/a"


async def test_a_cut_connection_costs_a_follower_no_change_and_repeats_none(client, wire, wired):
    async with aclosing(wired.follow("/cut/")) as updates:
        await anext(updates)
        for n in range(5):
            upcoming = asyncio.ensure_future(changes(updates, 1))
            await client.put(f"/cut/{n}", b"")
            assert [e.key for e in await upcoming] == [f"/cut/{n}"]
            upcoming = asyncio.ensure_future(changes(updates, 2))
            wire.cut()
            await client.txn([], [Put(f"/cut/{n}", b"while cut"), Put(f"/cut/{n}/too", b"")])
            wire.mend()
            assert [e.key for e in await upcoming] == [f"/cut/{n}", f"/cut/{n}/too"]


async def test_a_connection_on_which_nothing_comes_any_more_is_left_for_another(cluster, client, wire):
    async with Wire(cluster.endpoints[0]) as other:
        wires = {w.endpoint: w for w in (wire, other)}
        config = cluster.config(endpoints=tuple(wires), **QUICK)
        async with (
            EtcdClient(config) as wired,
            aclosing(wired.follow("/hang/")) as updates,
            await wired.grant(2) as lease,
        ):
            await anext(updates)
            upcoming = asyncio.ensure_future(changes(updates, 2))
            await client.put("/hang/a", b"")
            hung = wired.endpoint
            wires[hung].hang()
            await client.put("/hang/b", b"")
            assert [e.key for e in await upcoming] == ["/hang/a", "/hang/b"]
            assert wired.endpoint != hung
            await asyncio.sleep(2)
            assert lease.remaining() > 0


async def test_what_was_compacted_while_a_follower_was_away_shows_as_the_difference(cluster, client, wire, wired):
    for key in ("kept", "changed", "deleted"):
        await client.put(f"/gone/{key}", b"old")
    async with aclosing(wired.follow("/gone/")) as updates:
        await anext(updates)
        await client.put("/gone/seen", b"once")
        assert len(await changes(updates, 1)) == 1
        wire.cut()
        await client.put("/gone/changed", b"1")
        await client.put("/gone/changed", b"2")
        await client.delete("/gone/deleted")
        await client.put("/gone/passing", b"")
        await client.delete("/gone/passing")
        await client.put("/gone/new", b"3")
        revision = await client.put("/unrelated", b"")
        cluster.ctl("compact", str(revision))
        wire.mend()
        events = await changes(updates, 3)
        assert [(e.key, e.now and e.now.value) for e in events] == [
            ("/gone/changed", b"2"),
            ("/gone/new", b"3"),
            ("/gone/deleted", None),
        ]
        await client.put("/gone/after", b"")
        assert [e.key for e in await changes(updates, 1)] == ["/gone/after"]


async def test_a_watch_or_read_of_compacted_history_says_so(cluster, client):
    old = await client.put("/old", b"1")
    new = await client.put("/old", b"2")
    cluster.ctl("compact", str(new))
    with pytest.raises(Compacted):
        await client.range("/old", revision=old)
    async with aclosing(client.watch("/old", old)) as watch:
        with pytest.raises(Compacted):
            await changes(watch, 1)


async def test_a_follower_that_is_cancelled_leaves_nothing_running(client):
    before = asyncio.all_tasks()

    async def consume() -> None:
        async for _ in client.follow("/x/", at_least_every=0.01):
            pass

    consuming = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    consuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consuming
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


async def test_a_write_whose_answer_is_lost_is_reported_as_unknown_and_not_sent_again(client, wire, wired):
    await wired.put("/lost", b"0")
    wire.swallows_answers = True
    with pytest.raises(OutcomeUnknown):
        await wired.put("/lost", b"1", timeout=0.3)
    with pytest.raises(OutcomeUnknown):
        await wired.txn([], [Put("/lost", b"2")], timeout=0.3)
    with pytest.raises(MetadataUnavailable):
        await wired.get("/lost", timeout=0.3)
    found = await client.get("/lost")
    assert (found.value, found.version) == (b"2", 3)


async def test_a_write_that_could_not_be_sent_waits_for_a_connection(client, wire, wired):
    wire.cut()
    with pytest.raises(MetadataUnavailable):
        await wired.get("/later", timeout=0.3)  # by now the client knows that it has no connection
    writing = asyncio.create_task(wired.put("/later", b"", timeout=5))
    with pytest.raises(MetadataUnavailable):
        await wired.put("/never", b"", timeout=0.3)
    wire.mend()
    await writing
    assert (await client.get("/later")).version == 1
    assert await client.get("/never") is None


async def test_closing_the_client_ends_what_waits_on_it(cluster, wire):
    client = EtcdClient(cluster.config(endpoints=(wire.endpoint,)))
    await client.connect()
    lease = await client.grant(60)
    await client.put("/taken", b"")
    waiting = [
        asyncio.ensure_future(Election(client, "/taken", lease, b"").campaign()),
        asyncio.ensure_future(changes(client.watch("/nothing"), 1)),
    ]
    await asyncio.sleep(0.1)
    wire.swallows_answers = True
    waiting.append(asyncio.ensure_future(client.get("/taken")))
    writing = asyncio.ensure_future(client.put("/taken", b"1"))
    await asyncio.sleep(0.1)
    await client.close()
    for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(result, MetadataUnavailable)
    with pytest.raises(OutcomeUnknown):
        await writing


async def test_a_lease_lives_as_long_as_it_is_renewed_and_its_keys_end_with_it(client):
    async with await client.grant(1) as lease:
        await client.put("/leased", b"", lease=lease.id)
        await asyncio.sleep(2.0)
        assert 0 < lease.remaining() <= 1
        assert not lease.lost.is_set()
        assert (await client.get("/leased")).lease == lease.id
    assert await client.get("/leased") is None
    assert lease.lost.is_set()
    with pytest.raises(LeaseLost):
        lease.check()


async def test_a_lease_ends_by_our_clock_no_later_than_by_that_of_etcd(client, wire, wired):
    lease = await wired.grant(1)
    await client.put("/ours", b"", lease=lease.id)
    wire.cut()
    await asyncio.wait_for(lease.lost.wait(), 1.5)
    assert await client.get("/ours") is not None
    wire.mend()
    await asyncio.sleep(0.5)
    assert lease.remaining() == 0


async def test_a_lease_survives_a_connection_that_is_cut_for_a_moment(client, wire, wired):
    async with await wired.grant(2) as lease:
        for _ in range(3):
            wire.cut()
            await asyncio.sleep(0.3)
            wire.mend()
            await asyncio.sleep(0.7)
        assert not lease.lost.is_set()


async def test_an_event_loop_that_is_busy_for_longer_than_a_lease_lasts_keeps_it(client):
    async with await client.grant(1) as lease:
        await client.put("/busy", b"", lease=lease.id)
        time.sleep(3)  # noqa: ASYNC251 - the event loop standing still is what this is about
        assert lease.remaining() > 0
        assert (await client.get("/busy")).lease == lease.id


async def test_an_event_loop_that_stands_still_for_too_long_has_lost_its_lease(client, monkeypatch):
    monkeypatch.setattr("veccluster_etcd.lease.LONGEST_STALL", 0.1)
    lease = await client.grant(1)
    time.sleep(1.5)  # noqa: ASYNC251
    assert lease.remaining() == 0
    await asyncio.wait_for(lease.lost.wait(), 1)
    with pytest.raises(LeaseLost):
        lease.check()
    await lease.revoke()


async def test_a_lease_that_etcd_has_ended_is_lost_at_the_next_renewal(cluster, client):
    lease = await client.grant(2)
    cluster.ctl("lease", "revoke", f"{lease.id:x}")
    await asyncio.wait_for(lease.lost.wait(), 1.5)


async def test_one_candidate_is_elected_and_the_next_when_it_resigns(client):
    async with await client.grant(5) as one, await client.grant(5) as two:
        first, second = Election(client, "/leader", one, b"one"), Election(client, "/leader", two, b"two")
        async with aclosing(first.observe()) as leaders:
            assert await anext(leaders) is None
            term = await first.campaign()
            assert (await anext(leaders)).value == b"one"
            waiting = asyncio.create_task(second.campaign())
            assert not (await asyncio.wait({waiting}, timeout=0.1))[0]
            await first.resign(term)
            following = await waiting
            assert [kv and kv.value for kv in (await anext(leaders), await anext(leaders))] == [None, b"two"]
        assert following.create_revision > term.create_revision
        assert not (await client.txn([term.fence()], [Put("/x", b"")])).succeeded
        assert (await client.txn([following.fence()], [Put("/x", b"")])).succeeded
        await first.resign(term)  # which ends nobody's term but its own
        assert (await second.leader()).value == b"two"


async def test_the_next_is_elected_when_the_leader_lets_its_lease_go(client):
    one, two = await client.grant(5), await client.grant(5)
    await Election(client, "/leader", one, b"one").campaign()
    waiting = asyncio.create_task(Election(client, "/leader", two, b"two").campaign())
    await one.revoke()
    await waiting
    await two.revoke()


async def test_an_election_whose_answer_was_lost_is_found_out_by_reading(client, wire, cluster):
    config = cluster.config(endpoints=(wire.endpoint,), timeout=0.5, attempt_timeout=0.2, connect_timeout=0.2)
    async with EtcdClient(config) as wired:
        lease = await wired.grant(10)
        wire.swallows_answers = True
        campaigning = asyncio.create_task(Election(wired, "/leader", lease, b"me").campaign())
        async with aclosing(client.follow("/leader", exact=True, at_least_every=0.1)) as updates:
            async for update in updates:
                if update.items if isinstance(update, Snapshot) else update.events:
                    break
        assert not campaigning.done()
        wire.mend()
        term = await asyncio.wait_for(campaigning, 5)
        found = await client.get("/leader")
        assert (found.create_revision, found.version, found.lease) == (term.create_revision, 1, lease.id)
        await lease.revoke()


async def test_a_candidate_whose_lease_ends_stops_waiting(client):
    async with await client.grant(5) as leading:
        await Election(client, "/leader", leading, b"").campaign()
        lease = await client.grant(5)
        waiting = asyncio.create_task(Election(client, "/leader", lease, b"").campaign())
        await asyncio.sleep(0.1)
        await lease.revoke()
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(waiting, 1)


async def test_the_status_of_a_member_says_what_a_person_must_know(cluster, client):
    (status,) = await client.status()
    assert status.endpoint == cluster.endpoints[0]
    assert status.error is None
    assert status.is_leader
    assert status.version_number >= (3, 5)
    assert 0 < status.db_size_in_use <= status.db_size
    assert status.alarms == ()
