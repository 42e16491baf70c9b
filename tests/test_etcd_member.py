"""Members of a cluster's own etcd, prepared by `veccluster-etcd-member`: created, lost, replaced, and never doubled."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.etcd import EtcdCluster
from support.managed_etcd import ManagedEtcd
from veccluster import failpoints
from veccluster.errors import InvalidSpec
from veccluster_etcd import EtcdClient
from veccluster_node.etcd_member import member, wal
from veccluster_node.etcd_member.bootstrap import load

KEYS = 50


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(member, "PATIENCE", 1.0)
    monkeypatch.setattr(member, "PAUSE", 0.1)


@pytest.fixture(scope="module")
def made_once() -> Iterator[ManagedEtcd]:
    with ManagedEtcd() as etcd:
        yield etcd


@pytest.fixture
async def etcd(made_once: ManagedEtcd) -> ManagedEtcd:
    """Three healthy members with some keys, made once; each test gives them back healthy."""
    etcd = made_once
    if not etcd.bootstrapped:
        await asyncio.gather(*(etcd.prepare(i) for i in range(3)))
        for index in range(3):
            assert etcd.written(index)["initial-cluster-state"] == "new"
            etcd.start(index)
        etcd.wait_healthy()
        etcd.bootstrapped = True
        async with EtcdClient(etcd.config()) as client:
            for n in range(KEYS):
                await client.put(f"/kept/{n}", b"x")
    return etcd


async def has_all(etcd: ManagedEtcd, *members: int) -> None:
    """Exactly three members, all healthy, and the keys are there at each one named."""
    etcd.wait_healthy()
    membership = await etcd.members()
    assert sorted(m.name for m in membership.members) == ["m0", "m1", "m2"]
    for index in members:
        async with EtcdClient(etcd.config(endpoints=etcd.endpoints[index : index + 1], timeout=15)) as client:
            assert len((await client.range("/kept/")).items) == KEYS


async def test_a_member_whose_disk_is_lost_is_replaced_under_a_new_id_and_has_all_data(etcd):
    before = await etcd.member(2)
    etcd.lose_disk(2)
    assert await etcd.prepare(2) == "existing"
    etcd.start(2)
    await has_all(etcd, 2)
    after = await etcd.member(2)
    assert after.id != before.id
    assert wal.identity_of(etcd.data(2)).member == after.id


@pytest.mark.parametrize("place", ["removed", "added", "written"])
async def test_a_replacement_that_is_interrupted_anywhere_is_finished_by_the_next_run(etcd, place):
    before = await etcd.member(2)
    etcd.lose_disk(2)
    with failpoints.armed(f"etcd_member.{place}=error:EINTR"), pytest.raises(InterruptedError):
        await etcd.prepare(2)
    given_and_lost = await etcd.member(2)
    assert (given_and_lost is None) == (place == "removed")
    assert await etcd.prepare(2) == "existing"
    etcd.start(2)
    await has_all(etcd, 2)
    assert (await etcd.member(2)).id not in {before.id, given_and_lost and given_and_lost.id}


@pytest.mark.parametrize("place", [None, "set_aside"])
async def test_data_of_a_member_that_was_removed_are_set_aside_and_it_joins_anew(etcd, place):
    removed = await etcd.member(2)
    etcd.kill(2)
    async with EtcdClient(etcd.config(endpoints=etcd.endpoints[:2])) as client:
        await client.administration.remove_member(removed.id)
    if place:
        with failpoints.armed(f"etcd_member.{place}=error:EINTR"), pytest.raises(InterruptedError):
            await etcd.prepare(2)
    assert await etcd.prepare(2) == "existing"
    etcd.start(2)
    await has_all(etcd, 2)
    assert (await etcd.member(2)).id != removed.id
    assert wal.identity_of(etcd.data(2).with_name("data.set-aside")).member == removed.id


async def test_a_disk_with_data_starts_as_it_is_even_when_nobody_answers(etcd):
    before = await etcd.members()
    etcd.kill(0, 1, 2)
    for index in range(3):
        assert await etcd.prepare(index) == "existing"
        etcd.start(index)
    await has_all(etcd, 0, 1, 2)
    assert await etcd.members() == before


@pytest.mark.e2e
async def test_without_a_majority_an_empty_disk_waits_even_if_the_operator_has_forgotten_the_cluster(etcd):
    etcd.lose_disk(2)
    etcd.kill(1)
    etcd.out(2).unlink()
    for bootstrapped in (False, True):
        waiting = etcd.preparation(2, bootstrapped=bootstrapped)
        assert not await waiting.step()
        assert "no majority of the others answers" in waiting.waits_for
        assert not etcd.out(2).exists()
    etcd.start(1)
    await waiting.run()
    etcd.start(2)
    await has_all(etcd, 2)


async def test_a_directory_in_which_etcd_had_only_begun_counts_as_empty(etcd):
    before = await etcd.member(2)
    etcd.lose_disk(2)
    snapshots = etcd.data(2) / "member" / "snap"
    snapshots.mkdir(parents=True)
    (snapshots / "db").write_bytes(b"half")
    await etcd.run(2)
    await has_all(etcd, 2)
    assert (await etcd.member(2)).id != before.id


async def test_data_of_another_etcd_wait_for_a_person(etcd, tmp_path):
    with EtcdCluster(1) as other:
        (other_data,) = other._directory.glob("data-0")
        stranger = etcd.preparation(2)
        stranger.data_dir = other_data
        stranger.out = tmp_path / "out.yaml"
        assert not await stranger.step()
        assert "a person must say" in stranger.waits_for
        assert wal.log_files(other_data)
    assert not stranger.out.exists()


async def test_a_member_that_comes_late_to_the_creation_is_one_of_the_first():
    with ManagedEtcd() as etcd:
        await asyncio.gather(etcd.prepare(0), etcd.prepare(1))
        for index in range(2):
            etcd.start(index)
        etcd.wait_healthy(0, 1)
        before = await etcd.members()
        assert await etcd.prepare(2) == "new"
        etcd.start(2)
        etcd.wait_healthy()
        assert {m.id for m in (await etcd.members()).members} == {m.id for m in before.members}


@pytest.mark.e2e
async def test_one_member_grows_to_two_and_an_interruption_while_there_is_no_majority_does_no_harm():
    with ManagedEtcd(2) as etcd:
        etcd.members_wanted = 1
        assert await etcd.prepare(0) == "new"
        etcd.start(0)
        etcd.wait_healthy(0)
        etcd.members_wanted, etcd.bootstrapped = 2, True
        with failpoints.armed("etcd_member.added=error:EINTR"), pytest.raises(InterruptedError):
            await etcd.prepare(1)
        assert await etcd.prepare(1) == "existing"
        etcd.start(1)
        etcd.wait_healthy()
        assert len((await etcd.members()).members) == 2


async def test_the_only_member_without_its_disk_makes_no_second_cluster(tmp_path):
    with ManagedEtcd(1) as etcd:
        etcd.bootstrapped = True
        alone = etcd.preparation(0)
        assert not await alone.step()
        assert "bring the volume back" in alone.waits_for


async def test_members_speak_tls_to_each_other_and_to_clients():
    with ManagedEtcd(tls=True) as etcd:
        for index in range(3):
            assert await etcd.prepare(index) == "new"
            etcd.start(index)
        etcd.wait_healthy()
        seen = await etcd.seen_by(2)
        assert len(seen.hearsay) == 2
        assert {(h.cluster, frozenset(h.members)) for h in seen.hearsay} == {
            (seen.majority.cluster, frozenset(seen.majority.members))
        }


def test_the_command_writes_the_file_and_says_what_it_did(tmp_path):
    with ManagedEtcd(1) as etcd:
        told = etcd.bootstrap(0, quota_bytes=5 << 20, something_newer={"a": 1})
        command = [sys.executable, "-m", "veccluster_node.etcd_member.member", "--name", "m0", "--config", str(told)]
        command += ["--data-dir", str(etcd.data(0)), "--out", str(etcd.out(0))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stderr)["event"] == "etcd_may_start"
        written = etcd.written(0)
        assert written["quota-backend-bytes"] == 5 << 20
        assert (written["auto-compaction-mode"], written["auto-compaction-retention"]) == ("periodic", "1h")
        assert written["strict-reconfig-check"] is True
        etcd.start(0)
        etcd.wait_healthy()

        command[4] = "m7"
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "names m0, but not m7" in done.stderr


MEMBER = {"name": "a", "peer_url": "http://a:2380", "client_url": "http://a:2379"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"members": []}, "at least one"),
        ({"members": [MEMBER, MEMBER]}, "distinct names"),
        ({"members": [MEMBER, {**MEMBER, "name": "b"}]}, "distinct peer URLs"),
        ({"members": [{**MEMBER, "peer_url": "a:2380"}]}, "must be http"),
        ({"members": [{**MEMBER, "peer_url": "https://a:2380"}]}, "all http:// without"),
        ({"tls": {"ca_file": "a", "cert_file": "b", "key_file": "c"}}, "all be https://"),
        ({"token": 1}, "Expected `str`"),
    ],
)
def test_a_bootstrap_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, changes, why):
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps({"cluster": "demo", "token": "t", "members": [MEMBER], **changes}))
    with pytest.raises(InvalidSpec, match=why):
        load(path)


def test_a_log_that_is_damaged_or_cut_gives_no_identity_and_never_a_wrong_one(tmp_path):
    with EtcdCluster(1) as cluster:
        data = next(cluster._directory.glob("data-0"))
        right = wal.identity_of(data)
        (file,) = wal.log_files(data)
        start = file.read_bytes()[:4096]
    copy = tmp_path / "member" / "wal" / file.name
    copy.parent.mkdir(parents=True)
    for position in range(80):
        copy.write_bytes(start[:position] + bytes([start[position] ^ 0x55]) + start[position + 1 :])
        assert wal.identity_of(tmp_path) in {None, right}
        copy.write_bytes(start[:position])
        assert wal.identity_of(tmp_path) in {None, right}
    copy.write_bytes(start)
    assert wal.identity_of(tmp_path) == right


def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "member").write_text("not a directory")
    with pytest.raises(NotADirectoryError):
        wal.log_files(tmp_path)
