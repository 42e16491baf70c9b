"""What became of batches over several shards, as etcd keeps it (15): one key a decision.

A decision is made by creating its key; the value says all but the revision, which is that of its creation. Whoever
proposes one names the revision at which, as far as it knew before it asked the shards, decisions were last forgotten.
"""

from collections.abc import Mapping

import msgspec

from veccluster.decisions.replication.atomic import Batch, Decision, Verdict
from veccluster.decisions.replication.atomic_deciding import Known
from veccluster.model.state import Revision, Seq
from veccluster_etcd.values import KeyValue

FORGOTTEN = b"{}"


class _Decided(msgspec.Struct, frozen=True, kw_only=True):
    operation: str
    attempt: int
    verdict: Verdict
    prepared: dict[int, Seq]


_decoder = msgspec.json.Decoder(_Decided)


def encode(decision: Decision) -> bytes:
    """The value of a decision's key."""
    operation, attempt = decision.batch
    return msgspec.json.encode(
        _Decided(operation=operation, attempt=attempt, verdict=decision.verdict, prepared=dict(decision.prepared))
    )


def decode(found: KeyValue) -> Decision:
    """The decision that a key says."""
    said = _decoder.decode(found.value)
    return Decision(Batch(said.operation, said.attempt), said.verdict, said.prepared, found.create_revision)


class Batches:
    """All decisions that etcd has, by collection, kept up with what is seen of its keys."""

    def __init__(self, prefix: str) -> None:
        """`prefix` is what all of these keys begin with."""
        self._prefix = prefix
        self._decisions: dict[str, dict[str, Decision]] = {}
        self._forgotten: dict[str, Revision] = {}
        self._known: dict[str, Known] = {}
        self._changed: set[str] = set()
        self.unreadable: dict[str, str] = {}
        """Keys whose values cannot be read, and why."""

    @property
    def known(self) -> Mapping[str, Known]:
        """By the uuid of the collection; those without keys are left out."""
        return self._known

    def restart(self) -> None:
        """All keys are about to be noted anew."""
        self._changed |= self._known.keys()
        self._decisions, self._forgotten, self.unreadable = {}, {}, {}

    def note(self, key: str, now: KeyValue | None) -> None:
        """A key is as said, or gone."""
        uuid, _, rest = key.removeprefix(self._prefix).partition("/")
        self._changed.add(uuid)
        if rest == "forgotten":
            self._forgotten[uuid] = now.mod_revision if now else Revision(0)
        elif rest.startswith("decisions/"):
            decisions = self._decisions.setdefault(uuid, {})
            self.unreadable.pop(key, None)
            if now is None:
                decisions.pop(key, None)
                return
            try:
                decisions[key] = decode(now)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.unreadable[key] = str(error)

    def reach(self, revision: Revision) -> bool:
        """Everything up to this revision has been noted; whether anything changed."""
        changed = bool(self._changed)
        for uuid in self._changed:
            decisions, forgotten = self._decisions.get(uuid, {}), self._forgotten.get(uuid, Revision(0))
            if decisions or forgotten:
                self._known[uuid] = Known(revision, forgotten, tuple(decisions.values()))
            else:
                self._known.pop(uuid, None)
        self._changed = set()
        return changed
