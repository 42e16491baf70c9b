"""What clients asked and were told, as it happened: one list of writes and one of reads for each id.

A write is entered when it is sent, with an unknown outcome, and settled by its answer: so whatever becomes of the
client, nothing that was asked is forgotten. Moments count what this process saw, one after the other.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from chaos.linearizability import Value

Shard = int


class Outcome(StrEnum):
    unknown = "unknown"
    """Nobody knows whether it was, or will be, carried out."""
    stored = "stored"
    refused = "refused"
    """Every answer to it says that nothing was stored."""


@dataclass(slots=True)
class Write:
    """One write of one id; `value` is None for a delete."""

    id: str
    value: Value
    client: str
    level: str | None
    operation: str
    start: int
    end: int | None = None
    outcome: Outcome = Outcome.unknown
    found: bool | None = None
    """Of a delete: whether it says that something was there."""
    shard: Shard | None = None
    seq: int | None = None
    """Where the shard says that it stands since."""
    epoch: int | None = None

    @property
    def stored(self) -> bool:
        return self.outcome is Outcome.stored


@dataclass(frozen=True, slots=True)
class Read:
    """What one id was shown as; `None` when it was shown not to be there."""

    id: str
    value: Value
    client: str
    level: str
    start: int
    end: int
    by: str = "get"


@dataclass
class History:
    """Of one cycle, or of all."""

    writes: dict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[str, list[Read]] = field(default_factory=lambda: defaultdict(list))
    requests: Counter[str] = field(default_factory=Counter)
    """How many were answered, by what and how."""
    wrong: list[str] = field(default_factory=list)
    """What no history can explain: a reply that contradicts itself, a defect that a node admits."""
    _moments: "itertools.count[int]" = field(default_factory=itertools.count)
    _values: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def now(self) -> int:
        """Another moment, later than all before."""
        return next(self._moments)

    def next_value(self) -> int:
        """A number that no other write has."""
        return next(self._values)

    def begin(self, write: Write) -> Write:
        """A write is about to be sent."""
        self.writes[write.id].append(write)
        return write

    def settle(self, write: Write, outcome: Outcome) -> None:
        """The answer has come; what is unknown never ends."""
        write.outcome = outcome
        write.end = None if outcome is Outcome.unknown else self.now()

    def saw(self, read: Read) -> None:
        self.reads[read.id].append(read)

    def fork(self) -> "History":
        """An empty history whose moments and values go on from this one's."""
        return History(_moments=self._moments, _values=self._values)

    def add(self, other: "History") -> None:
        """Take in the history of a cycle; its reads were judged, and only its writes can still be contradicted."""
        for one, writes in other.writes.items():
            self.writes[one].extend(writes)
        self.requests += other.requests

    def all_writes(self) -> Iterable[Write]:
        return itertools.chain.from_iterable(self.writes.values())

    def count(self, outcome: Outcome) -> int:
        return sum(w.outcome is outcome for w in self.all_writes())

    def operations(self) -> int:
        """Writes and reads of ids."""
        return sum(map(len, self.writes.values())) + sum(map(len, self.reads.values()))

    def save(self, path: Path) -> None:
        """As JSON lines, in the order of the ids."""
        with path.open("w") as file:
            for one in sorted({*self.writes, *self.reads}):
                for entry in sorted([*self.writes[one], *self.reads[one]], key=lambda e: e.start):
                    file.write(json.dumps({type(entry).__name__.lower(): asdict(entry)}) + "\n")
