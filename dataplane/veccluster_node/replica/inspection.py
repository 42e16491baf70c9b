"""How far one copy of a shard has come and whether it can be used: what a person is told before data is given up."""

from dataclasses import dataclass

import structlog

from veccluster.decisions.lost_quorum import EMPTY
from veccluster.decisions.replication.values import EMPTY as NO_LINEAGE
from veccluster.decisions.replication.values import Lineage, Position
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Epoch
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.recovery import Recovered

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What there is; see `veccluster.decisions.lost_quorum.Copy`."""

    durable: Position
    epoch: Epoch
    vectors: int
    written_ns: int | None
    doubt: str | None
    trouble: str | None
    is_mendable: bool
    committed: Position = EMPTY
    lineage: Lineage = NO_LINEAGE


def inspect(recovered: Recovered, loop: ReplicaLoop) -> Inspection:
    """Look at an open copy, in its loop."""
    trouble, is_mendable = _trouble(recovered, loop)
    journal = loop.rules.journal
    committed = min(loop.rules.commit, journal.position.seq)
    return Inspection(
        durable=journal.position,
        epoch=journal.epoch,
        vectors=recovered.records.live,
        written_ns=_written(recovered, journal.position),
        doubt=None if trouble else loop.health.divergent,
        trouble=trouble,
        is_mendable=is_mendable,
        committed=Position(journal.lineage.epoch_at(committed), committed),
        lineage=journal.lineage,
    )


def _trouble(recovered: Recovered, loop: ReplicaLoop) -> tuple[str | None, bool]:
    """Why it cannot become primary, and whether opening it again may end that."""
    if recovered.broken:
        return recovered.broken, False
    if loop.health.staged:
        return "another replica's snapshot is about to take its place", True
    if loop.health.failure:
        return loop.health.failure.detail, True
    if loop.rules.broken:
        return loop.health.divergent or "it contradicts its primary", False
    return None, False


def _written(recovered: Recovered, durable: Position) -> int | None:
    """When its last operation was asked for."""
    try:
        for record in recovered.log.read(durable.seq - 1, durable.seq):
            return record.time_ns
    except StorageCorrupt as error:
        log.warning("last_record_not_read", detail=error.detail)
        return None
    return recovered.records.time_of(durable.seq)
