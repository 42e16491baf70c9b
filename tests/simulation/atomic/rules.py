"""The rules about batches that are in force; a mutation replaces some of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from veccluster.decisions.replication import atomic, atomic_deciding
from veccluster.decisions.replication.atomic import Decision, Ledger, Participant, Showing
from veccluster.decisions.replication.atomic_deciding import Step
from veccluster.model.state import Seq
from veccluster_node.replica.loop import ReplicaLoop


@dataclass(frozen=True)
class Rules:
    ledger: type[Ledger] = Ledger
    next_step: Callable[..., Step | None] = atomic_deciding.next_step
    due: Callable[..., Iterable[Decision]] = atomic_deciding.due
    overdue: Callable[..., Iterable[Decision]] = atomic_deciding.overdue
    forgettable: Callable[..., Iterable[Decision]] = atomic_deciding.forgettable
    lacking: Callable[[Mapping[Participant, Showing]], dict[Participant, frozenset[Seq]]] = atomic.lacking
    carried: Callable[[Ledger], Ledger] = Ledger.copy
    """What a snapshot has of the ledger."""
    compares_key: bool = True
    """Whether a decision is made only if there is none."""
    compares_forgotten: bool = True
    """Whether it is made only if nothing was forgotten meanwhile."""
    notes_first: bool = True
    """Whether a coordinator notes what was last forgotten before it asks the participants."""
    confirms: bool = True
    """Whether a primary confirms its epoch before it says that a batch has no decision."""
    waits_for_all: bool = True
    """Whether the client is told when every participant has applied it."""
    shows_prepared: bool = False
    drops_alone: bool = False
    """Whether a primary drops a batch after some time without asking etcd."""
    takes_up: bool = True
    """Whether a new primary sees to batches that it finds prepared."""
    clears_in_order: bool = True
    """Whether a primary that is to delete what matches waits until all that is in its log is applied."""
    retries_anew: bool = False
    """Whether a client's next try is another attempt, whatever became of the last."""
    loop: type[ReplicaLoop] = ReplicaLoop
    weather: Mapping[str, object] = field(default_factory=dict)
