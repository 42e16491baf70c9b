"""The values that the client takes and gives: keys as text, values as bytes, no protobuf.

Keys are text because all of ours are; a foreign key that is not UTF-8 survives as surrogate escapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType, TypeAlias

from veccluster.errors import VecClusterError
from veccluster.model.state import Revision

LeaseId = NewType("LeaseId", int)
NO_LEASE = LeaseId(0)

Operator: TypeAlias = Literal["==", "!=", "<", ">"]


class Compacted(VecClusterError):
    """The history from the revision asked for is gone: list again."""

    slug, title = "metadata-compacted", "Metadata history compacted"


class WentBack(VecClusterError):
    """This etcd is not what it was when the revision asked for was seen: it was restored to an older state."""

    slug, title = "metadata-went-back", "Metadata went back"


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it is at some revision; `lease` is 0 for a key that does not end with one."""

    key: str
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    version: int
    lease: LeaseId


@dataclass(frozen=True, slots=True)
class Listing:
    """The keys of a range, in their order, all as they were at `revision`."""

    items: tuple[KeyValue, ...]
    revision: Revision
    cluster: int = 0
    """The id of the etcd cluster that answered."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; `now` is None when the key was deleted."""

    key: str
    revision: Revision
    now: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchEvents:
    """Everything that changed up to `revision` since the batch before, in order; never part of a revision.

    Empty when time has passed (or revisions have) without a change in the range.
    """

    revision: Revision
    events: tuple[Event, ...]
    is_new: bool = field(default=False, compare=False)
    """It says only that the watch was set up, at the start or after a failure."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a range at `revision`: what a follower starts from, and starts again from when etcd went back."""

    revision: Revision
    items: Mapping[str, KeyValue]
    cluster: int = 0
    """The id of the etcd cluster that answered."""
    went_back: str = ""
    """Why it does not continue what was followed before, in words; empty where it does, or nothing was."""


@dataclass(frozen=True, slots=True)
class ModRevision:
    """True when the revision of the key's last change is as said; 0 stands for a key that is not there."""

    key: str
    operator: Operator
    revision: int


@dataclass(frozen=True, slots=True)
class CreateRevision:
    """True when the revision at which the key was created is as said; 0 stands for a key that is not there."""

    key: str
    operator: Operator
    revision: int


@dataclass(frozen=True, slots=True)
class Version:
    """True when the number of changes since the key was created is as said; 0 stands for a key that is not there."""

    key: str
    operator: Operator
    version: int


@dataclass(frozen=True, slots=True)
class Value:
    """True when the key is there and its value is as said."""

    key: str
    operator: Operator
    value: bytes


Compare: TypeAlias = ModRevision | CreateRevision | Version | Value


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with a lease, the key ends when the lease does."""

    key: str
    value: bytes
    lease: LeaseId = NO_LEASE


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key."""

    key: str


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Delete every key that starts with `prefix`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key."""

    key: str


@dataclass(frozen=True, slots=True)
class GetPrefix:
    """Read every key that starts with `prefix`; `limit` 0 means all of them, in one message."""

    prefix: str
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction within a transaction: its `compares` are about what was there before the outer one did anything."""

    compares: tuple["Compare", ...]
    success: tuple["Operation", ...]
    failure: tuple["Operation", ...] = ()


Operation: TypeAlias = Put | Delete | DeletePrefix | Get | GetPrefix | Txn


@dataclass(frozen=True, slots=True)
class PutDone:
    """The answer to a `Put`."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The answer to a `Delete` or `DeletePrefix`: how many keys there were."""

    count: int


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a `Get` or `GetPrefix`."""

    items: tuple[KeyValue, ...]

    @property
    def one(self) -> KeyValue | None:
        """The key that a `Get` asked for, if it is there."""
        return self.items[0] if self.items else None


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did: which branch ran, at which revision, and the answer to each operation of that branch."""

    succeeded: bool
    revision: Revision
    responses: tuple["OperationResult", ...]


OperationResult: TypeAlias = PutDone | Deleted | Found | TxnResult
"""A `TxnResult` is the answer to a `Txn`."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One member as it sees itself; where `error` is set nothing else is known."""

    endpoint: str
    error: str | None = None
    version: str = ""
    """Such as "3.5.13"."""
    member_id: int = 0
    leader_id: int = 0
    """0 when the member knows no leader."""
    db_size: int = 0
    """Bytes on disk."""
    db_size_in_use: int = 0
    """Bytes that a defragmentation would leave."""
    raft_term: int = 0
    raft_index: int = 0
    """The newest entry of the member's log; far behind the others' means that it has to catch up."""
    raft_applied_index: int = 0
    is_learner: bool = False
    alarms: tuple[str, ...] = ()
    """In etcd's words, such as "NOSPACE"; empty is good."""
    problems: tuple[str, ...] = ()
    """What else the member complains of, such as "etcdserver: no leader"; empty is good."""

    @property
    def is_leader(self) -> bool:
        """Whether this member leads the etcd cluster."""
        return self.leader_id != 0 and self.leader_id == self.member_id

    @property
    def version_number(self) -> tuple[int, ...]:
        """`version` in a form that can be compared; (0,) when it is not known."""
        numbers = self.version.split("-", 1)[0].split(".")
        return tuple(int(n) for n in numbers) if all(n.isdigit() for n in numbers) else (0,)
