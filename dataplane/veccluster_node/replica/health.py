"""Whether one copy of a shard can be used, and why not: one value that can be printed, changed by the loop alone."""

from dataclasses import dataclass

from veccluster.errors import InsufficientStorage, StorageCorrupt, Unavailable, VecClusterError

FULL = "the disk is full; make room, and the shard takes writes again when it has been opened anew"


@dataclass(slots=True)
class ReplicaHealth:
    """What is wrong with a replica; all None and False when nothing is."""

    failure: VecClusterError | None = None
    """Why it takes part in nothing any more; reads go on from what was applied."""
    is_lasting: bool = False
    """Whether opening it again would not end `failure`: a person has to do something."""
    divergent: str | None = None
    """Why this copy may lack what was acknowledged, or contradicts others: where there are others, it is rebuilt."""
    staged: bool = False
    """Another replica's snapshot waits to take its place: it does nothing more until it is opened again."""

    @classmethod
    def of(cls, shard: object, broken: str | None, divergent: str | None) -> "ReplicaHealth":
        """As recovery found it; `broken` says why the only copy is read-only."""
        failure = StorageCorrupt(f"shard {shard} is read-only: {broken}") if broken else None
        return cls(failure, is_lasting=broken is not None, divergent=divergent)

    def __str__(self) -> str:
        said = [
            f"{'read-only for good' if self.is_lasting else 'failed'}: {self.failure.detail}" if self.failure else "",
            f"needs rebuild: {self.divergent}" if self.divergent else "",
            "a snapshot waits to be installed" if self.staged else "",
        ]
        return "; ".join(filter(None, said)) or "healthy"

    @property
    def failed_since(self) -> bool:
        """Whether something failed since it was opened, so that nothing is applied any more."""
        return self.failure is not None and not self.is_lasting

    def fail(self, error: VecClusterError, *, disk_full: bool) -> bool:
        """Take part in nothing more until the replica is opened again; whether that is new."""
        if self.failure is not None:
            return False
        if isinstance(error, StorageCorrupt):
            self.failure = error
        else:
            self.failure = InsufficientStorage(FULL) if disk_full else Unavailable(error.detail)
        return True

    def diverge(self, why: str) -> None:
        """Others have more right: take nothing more from them, and let the node rebuild this copy."""
        self.divergent = self.divergent or why

    def raise_failure(self) -> None:
        """Raise a new error like `failure`, if there is one."""
        if self.failure:
            raise type(self.failure)(self.failure.detail)
