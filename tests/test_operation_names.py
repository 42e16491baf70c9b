"""Names of writes are part of what nodes of different versions agree on: golden values, from before they were apart."""

import numpy as np

from veccluster.decisions.filters import Where
from veccluster.model.state import ShardId
from veccluster_node.coordinator.naming import batch_name, write_name
from veccluster_node.service.shard_service import Removal, UpsertBatch

SHARD = ShardId("u-1", 3)
TWO = UpsertBatch(["a", "b"], np.arange(6, dtype=np.float32).reshape(2, 3), [b"{}", b'{"x":1}'])
MANY = UpsertBatch([f"i{n}" for n in range(300)], np.zeros((300, 100), np.float32), [b"{}"] * 300)


def test_a_repetition_has_the_same_name_in_every_version():
    named = [write_name("op", SHARD, change) for change in (TWO, MANY, Removal(["a", "b"]), Where.of({"a": 1}))]
    assert named == [
        "op 504304d406dfd70d58c989932a4c92cd",
        "op 904cd29b4832f95c36674eecf571a37b",
        "op 515588be81f2fb454750c04d477eefee",
        "op a2b19fc8cddc1d3b87dec445b3aca2a2",
    ]
    assert batch_name("op", TWO) == "op 14a650305074693a6bf0e16951408285"


def test_another_content_or_another_shard_is_another_write():
    others = [TWO.take([0]), TWO.take([1, 0]), Removal(["a"]), Removal(["b"]), Where.of({}), Where.of({"a": 1})]
    names = {write_name("op", SHARD, change) for change in others} | {write_name("op", ShardId("u-1", 4), TWO)}
    assert len(names) == len(others) + 1
