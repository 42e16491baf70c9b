"""The keys in etcd that say what became of batches: one a decision, and one that is written when some are deleted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from simulation.atomic.rules import Rules
from simulation.world import World
from veccluster.decisions.replication.atomic import Batch, Decision, Verdict
from veccluster.decisions.replication.atomic_deciding import Known, made_at
from veccluster.model.state import Revision


@dataclass
class Book:
    world: World
    rules: Rules
    fail: Callable[[str], None]
    known: Known = field(default_factory=Known)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    made: dict[Batch, Verdict] = field(default_factory=dict)
    """Every verdict that there ever was."""

    def propose(self, decision: Decision, forgotten: Revision) -> Decision | None:
        """Make a decision if there is none; the one that is there, or None if some were forgotten since `forgotten`."""
        there = {d.batch: d for d in self.known.decisions}
        if decision.batch in there and self.rules.compares_key:
            return there[decision.batch]
        if forgotten != self.known.forgotten and self.rules.compares_forgotten:
            return None
        revision = Revision(self.known.revision + 1)
        there[decision.batch] = made_at(decision, revision)
        self._become(Known(revision, self.known.forgotten, tuple(there.values())))
        if self.made.setdefault(decision.batch, decision.verdict) is not decision.verdict:
            self.fail(f"{decision} was made, where {self.made[decision.batch]} was")
        return there[decision.batch]

    def forget(self, decisions: Iterable[Decision], forgotten: Revision) -> None:
        """Delete decisions, unless others were deleted since `forgotten`."""
        gone = {d.batch for d in decisions}
        if gone and forgotten == self.known.forgotten:
            revision = Revision(self.known.revision + 1)
            left = tuple(d for d in self.known.decisions if d.batch not in gone)
            self._become(Known(revision, revision, left))

    def _become(self, known: Known) -> None:
        self.known = known
        self.world.tell("etcd", known)
        for watch in self.watchers:
            watch()
