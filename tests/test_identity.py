"""A data directory is used by one process, for one node, and is never mistaken for another."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from veccluster.decisions.hosting import Kept
from veccluster.model.state import ShardId
from veccluster_node.runtime.identity import Identity, WrongDirectory, claim

SHARD = ShardId("uuid", 3)


def _again(identity: Identity, directory: Path) -> Identity:
    """The identity as the next process finds it."""
    identity.lock.close()
    return claim(directory, "n0")


def test_the_incarnation_stays_with_the_directory(tmp_path: Path) -> None:
    first = claim(tmp_path / "data", "n0")
    first.lock.close()
    assert claim(tmp_path / "data", "n0").incarnation == first.incarnation
    assert claim(tmp_path / "other", "n0").incarnation != first.incarnation


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    held = claim(tmp_path, "n0")
    with pytest.raises(WrongDirectory, match="another process uses"):
        claim(tmp_path, "n0")
    held.lock.close()


def test_the_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, "n0").lock.close()
    with pytest.raises(WrongDirectory, match="belongs to node n0, this is n1"):
        claim(tmp_path, "n1")


def test_shards_without_an_identity_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shards" / "uuid.0").mkdir(parents=True)
    with pytest.raises(WrongDirectory, match=r"has shards but no node\.json"):
        claim(tmp_path, "n0")


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', '{"format": 99, "id": "n0", "incarnation": "x"}'])
def test_a_damaged_or_newer_identity_is_refused(tmp_path: Path, content: str) -> None:
    claim(tmp_path, "n0").lock.close()
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(WrongDirectory):
        claim(tmp_path, "n0")


def test_a_replica_begins_with_the_incarnation_of_its_directory(tmp_path: Path) -> None:
    identity = claim(tmp_path, "n0")
    member = identity.member(SHARD)
    identity.begin(SHARD)
    after = _again(identity, tmp_path)
    assert (after.member(SHARD), after.disk.has_begun(SHARD), after.overrides()) == (member, True, {})


def test_a_renewed_replica_is_another_member_and_was_never_begun(tmp_path: Path) -> None:
    identity = claim(tmp_path, "n0")
    identity.begin(SHARD)
    before = identity.member(SHARD)
    identity.renew(SHARD)
    after = _again(identity, tmp_path)
    assert after.member(SHARD) not in {before, identity.member(ShardId("uuid", 4))}
    assert not after.disk.has_begun(SHARD)
    assert after.overrides() == {str(SHARD): after.member(SHARD).incarnation}
    after.begin(SHARD)
    assert after.disk.has_begun(SHARD)
    assert after.overrides() == {str(SHARD): after.member(SHARD).incarnation}


def test_nothing_is_kept_of_a_collection_that_was_dropped(tmp_path: Path) -> None:
    identity, other = claim(tmp_path, "n0"), ShardId("another", 0)
    identity.begin(other)
    identity.renew(SHARD)
    identity.forget(SHARD.collection)
    assert set(_again(identity, tmp_path).disk.replicas) == {other}


def test_changes_from_many_threads_are_all_there(tmp_path: Path) -> None:
    identity = claim(tmp_path, "n0")
    shards = [ShardId("uuid", n) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(identity.begin, shards))
    assert set(_again(identity, tmp_path).disk.replicas) == set(shards)


def test_replicas_from_before_they_were_written_down_count_as_begun(tmp_path: Path) -> None:
    (tmp_path / "shards" / str(SHARD)).mkdir(parents=True)
    (tmp_path / "shards" / "uuid.4.deleted").mkdir()
    (tmp_path / "node.json").write_text(json.dumps({"format": 1, "id": "n0", "incarnation": "disk"}))
    assert claim(tmp_path, "n0").disk.replicas == {SHARD: Kept("disk", present=True)}
    assert json.loads((tmp_path / "node.json").read_text())["format"] == 2, "no older version may use it now"
