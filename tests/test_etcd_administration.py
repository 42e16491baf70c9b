"""Administering a real three-member etcd: its members, its alarms, the upkeep of each."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from support.etcd import EtcdCluster
from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable
from veccluster.model.etcd import Alarm, AlarmKind, MemberId
from veccluster_etcd import EtcdClient

QUOTA = 2 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3, etcd_args=[f"--quota-backend-bytes={QUOTA}"]) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: EtcdCluster) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(cluster.config(timeout=10)) as client:
        yield client


async def test_the_members_are_listed_with_their_names_and_addresses(client, cluster):
    membership = await client.administration.members()
    assert sorted(m.name for m in membership.members) == ["m0", "m1", "m2"]
    assert {m.client_urls for m in membership.members} == {(f"http://{e}",) for e in cluster.endpoints}
    assert all(m.has_started and not m.is_learner for m in membership.members)
    one = membership.members[0]
    assert membership.at(one.peer_urls[0]) == one
    assert membership.at("http://nobody:1") is None
    assert membership.has(one.id)


async def test_each_member_says_how_it_is(client):
    await client.put("/a", b"1")
    statuses = await client.status()
    assert sum(s.is_leader for s in statuses) == 1
    for status in statuses:
        assert status.version_number >= (3, 5)
        assert 0 < status.db_size_in_use <= status.db_size
        assert status.raft_index >= status.raft_applied_index > 0
        assert status.raft_term > 0
        assert (status.alarms, status.problems, status.is_learner) == ((), (), False)


async def test_a_member_without_a_leader_says_so(client, cluster):
    with cluster.without(1, 2):
        left = await _once_it_complains(client)
        assert left.problems == ("etcdserver: no leader",)
        assert (left.error, left.alarms, left.is_leader) == (None, (), False)
    await asyncio.to_thread(cluster.wait_healthy)


async def _once_it_complains(client):
    async with asyncio.timeout(10):
        while True:
            first, *_ = await client.status()
            if first.problems:
                return first


async def test_no_space_is_an_alarm_until_room_is_made_and_it_is_disarmed(client, cluster):
    admin = client.administration
    with pytest.raises(MetadataRefused, match="database space exceeded"):
        for n in range(100):
            await client.put("/large", bytes([n]) * 200_000)
    raised = await admin.alarms()
    assert {a.kind for a in raised} == {AlarmKind.no_space}
    assert raised[0].member in {m.id for m in (await admin.members()).members}
    assert any("NOSPACE" in s.alarms for s in await client.status())

    listing = await client.range("/large")
    cluster.ctl("compaction", "--physical", str(listing.revision))
    for endpoint in cluster.endpoints:
        await admin.defragment(endpoint)
    for status in await client.status():
        assert status.db_size < QUOTA / 2
    async with asyncio.timeout(10):
        while left := await admin.alarms():  # each member raises its own, in its time
            for alarm in left:
                await admin.disarm(alarm)
    await admin.disarm(Alarm(MemberId(1), AlarmKind.corrupt))  # which nobody has raised
    assert await admin.alarms() == ()
    await client.put("/large", b"small")


async def test_what_cannot_be_defragmented_is_said(client, cluster):
    with pytest.raises(InvalidSpec, match="not one of this client's endpoints"):
        await client.administration.defragment("127.0.0.1:1")
    with cluster.without(2), pytest.raises(MetadataUnavailable):
        await client.administration.defragment(cluster.endpoints[2])
    await asyncio.to_thread(cluster.wait_healthy)


async def test_a_member_is_added_under_a_new_id_and_removed_however_often_one_asks(client):
    """Last, because etcd takes a member only when all have been connected for five seconds; the client waits for it."""
    url = "http://127.0.0.1:1"
    admin = client.administration
    before = await admin.members()
    new_id, after = await admin.add_member(url)
    added = after.at(url)
    assert (added.id, added.name, added.peer_urls, added.has_started) == (new_id, "", (url,), False)
    assert set(after.members) == {*before.members, added}
    assert await admin.members() == after
    await admin.remove_member(new_id)
    await admin.remove_member(new_id)
    assert await admin.members() == before
