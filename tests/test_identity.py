"""A data directory is used by one process, for one node, and is never mistaken for another."""

from pathlib import Path

import pytest

from veccluster_node.identity import WrongDirectory, claim


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
