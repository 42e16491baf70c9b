"""Reads that wait for leave to look at the rows (read-confirmation, rule 13).

A read is told to the rules and stays here until they say `Serve` or `RefuseRead`. One that is refused because the
replica lags waits until more is applied, or its time is over.
"""

from collections.abc import Iterator
from concurrent.futures import Future

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.effects import Why
from veccluster.decisions.replication.values import Position
from veccluster.errors import NotPrimary, ReplicaBehind, VecClusterError
from veccluster.model.state import ShardId
from veccluster_node.replica.ports import Clock, Reading


class ReadBarrier:
    """Methods that return events: the loop tells them to the rules."""

    def __init__(self, shard: ShardId, clock: Clock) -> None:
        self._shard = shard
        self._clock = clock
        self._asked: dict[str, Reading] = {}
        self._lagging: list[Reading] = []

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._asked or self._lagging)

    def ask(self, reading: Reading) -> Iterator[on.Event]:
        """Ask for leave to read."""
        if not reading.future.cancelled():
            self._asked[reading.id] = reading
            yield on.Read(reading.id, reading.level, reading.at_least)

    def forget(self, request: str) -> None:
        """Nobody waits any more."""
        self._asked.pop(request, None)

    def serve(self, request: str, position: Position) -> None:
        """The rules give leave."""
        if (reading := self._asked.pop(request, None)) and not reading.future.done():
            reading.future.set_result(position)

    def refuse(self, request: str, why: Why) -> None:
        """The rules refuse; who only has to wait, waits."""
        if reading := self._asked.pop(request, None):
            if why is Why.behind and reading.until > self._clock.now():
                self._lagging.append(reading)
            else:
                self._tell(reading, why)

    def applied(self) -> Iterator[on.Event]:
        """More is applied: ask again for those that waited for it."""
        waiting, self._lagging = self._lagging, []
        for reading in waiting:
            yield from self.ask(reading)

    def expire(self) -> None:
        """Refuse those whose time is over."""
        now = self._clock.now()
        over = [r for r in self._lagging if r.until <= now or r.future.done()]
        self._lagging = [r for r in self._lagging if r not in over]
        for reading in over:
            self._tell(reading, Why.behind)

    def refuse_all(self, error: VecClusterError) -> None:
        """Answer everyone who still waits."""
        waiting: list[Future[Position]] = [r.future for r in (*self._asked.values(), *self._lagging)]
        self._asked, self._lagging = {}, []
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def _tell(self, reading: Reading, why: Why) -> None:
        if not reading.future.done():
            kind = ReplicaBehind if why in {Why.behind, Why.not_in_sync} else NotPrimary
            reading.future.set_exception(kind(f"shard {self._shard}: {why}"))
