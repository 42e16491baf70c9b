"""The applied state of a simulated replica: keys, what became of operations, and the ledger of transactions."""

from collections.abc import Callable, Sequence

from simulation.disk import Base, Disk, Table
from veccluster.decisions.filters import Filter
from veccluster.decisions.replication import atomic
from veccluster.decisions.replication.atomic import Ledger
from veccluster.decisions.replication.values import NOTHING, Record
from veccluster.model.state import Seq
from veccluster_node.wal import operations
from veccluster_node.wal.operations import Decide, Delete, Op, Prepare, Upsert, Written


def ops_of(changes: dict[str, bool]) -> list[Op]:
    """A batch: keys, and whether each is deleted."""
    return [Delete(key) if deleted else Upsert(key, b"", b"") for key, deleted in changes.items()]


def changes_of(ops: Sequence[operations.LoggedOp]) -> dict[str, bool]:
    """What a batch does, by key."""
    return {op.id: isinstance(op, Delete) for op in ops if isinstance(op, Upsert | Delete)}


def meant(record: Record) -> atomic.Prepare | atomic.Decision | dict[str, bool]:
    """What a record says."""
    match operations.Record(record.epoch, record.first, record.count, record.payload).batch().ops:
        case (Prepare() as p,):
            return atomic.Prepare(p.batch, p.participants, p.count, p.content)
        case (Decide() as decide,):
            return decide.meaning()
        case ops:
            return changes_of(ops)


class SimulatedRows:
    """`ports.Rows` in memory."""

    shows_prepared = False
    """A rule removed: what is only prepared shows."""

    def __init__(self, ledger: Callable[[], Ledger], applied: Callable[[Record], None]) -> None:
        """`applied` is told of records that the loop applies."""
        self.table: Table = {}
        self.results: dict[str, Seq] = {}
        self.applied_seq = NOTHING
        self.floor = NOTHING
        """Nobody asks any more who wrote what is before."""
        self.ledger = ledger()
        self._new_ledger = ledger
        self._applied = applied

    def show(self, base: Base) -> None:
        self.table, self.results, self.applied_seq = dict(base.table), dict(base.results), base.through
        self.floor = base.lineage.floor
        self.ledger = base.ledger.copy() if base.ledger else self._new_ledger()

    def base(self, disk: Disk, carried: Callable[[Ledger], Ledger] = Ledger.copy) -> Base:
        """What stands for the log so far."""
        lineage = disk.now.lineage().cut(self.applied_seq).since(self.floor)
        return Base(self.applied_seq, lineage, dict(self.table), dict(self.results), carried(self.ledger))

    def apply(self, records: Sequence[Record], floor: Seq = NOTHING) -> list[Written]:
        self.floor = max(self.floor, floor)
        for record in records:
            self._applied(record)
            self.take(record)
        return [Written(r.first, r.last, 0, 0) for r in records]

    def take(self, record: Record) -> None:
        match meant(record):
            case atomic.Prepare() as prepare:
                self.ledger.prepare(prepare, record.last)
                self._change(record, self._of(prepare) if self.shows_prepared else {})
            case atomic.Decision() as decision:
                done = self.ledger.decide(decision, record.last)
                self._change(record, self._of(done) if done else {})
            case changes:
                self._change(record, changes)

    @staticmethod
    def _of(prepare: atomic.Prepare) -> dict[str, bool]:
        return changes_of(operations.decode_content(prepare.content))

    def _change(self, record: Record, changes: dict[str, bool]) -> None:
        for key, deleted in changes.items():
            self.table[key] = (record.op_id, deleted)
        self.results[record.op_id] = record.last
        self.applied_seq = record.last

    def result_of(self, op_id: str) -> Written | None:
        last = self.results.get(op_id)
        return None if last is None else Written(last, last, 0, 0, replayed=True)

    def standing(self, batch: atomic.Batch) -> atomic.Standing | None:
        return self.ledger.standing(batch)

    def known_since(self, now: int) -> int:
        """Everything is remembered."""
        return 0

    def ids_matching(self, filter_: Filter, looked: operations.Looked | None = None) -> list[str]:
        """Every filter matches everything."""
        return [key for key, (_, deleted) in self.table.items() if not deleted]
