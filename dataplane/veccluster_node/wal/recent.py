"""The newest records of a log, kept in memory: what followers are sent and what is applied was just written."""

from collections import deque
from collections.abc import Iterable

from veccluster.decisions.replication.values import Record
from veccluster.model.state import Seq

LARGEST = 2 << 20
"""Bytes of payload that are kept, at least one record."""


class RecentRecords:
    """A run of records without a gap, up to the end of the log."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        self._records: deque[Record] = deque()
        self._size = 0

    def add(self, records: Iterable[Record]) -> None:
        """Note what was appended."""
        for record in records:
            self._records.append(record)
            self._size += len(record.payload)
        while self._size > self._largest and len(self._records) > 1:
            self._size -= len(self._records.popleft().payload)

    def cut(self, after: Seq) -> None:
        """Forget what is behind `after`."""
        while self._records and self._records[-1].last > after:
            self._size -= len(self._records.pop().payload)

    def covers(self, after: Seq) -> bool:
        """Whether every record of the log behind `after` is here."""
        return bool(self._records) and self._records[0].first <= after + 1

    def between(self, after: Seq, through: Seq) -> list[Record]:
        """The records that begin in (after, through], in order."""
        found: deque[Record] = deque()
        for record in reversed(self._records):
            if record.first <= after:
                break
            if record.first <= through:
                found.appendleft(record)
        return list(found)
