"""A cluster's state, kept up with etcd key by key: a change costs what has changed, not what there is.

Nothing that a key can say stops it. A value that cannot be read, be it damage, somebody's mistake or from a newer
version, is left out and told; what the key said before goes on to count. What etcd says of shards after it went back to
an older state is kept apart until it was looked at (decisions/restored.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from veccluster.model.cluster import ClusterState, History
from veccluster.model.state import NodeId, Revision, Shard, ShardId
from veccluster_etcd.values import KeyValue
from veccluster_node.metadata.keys import Kind, Slot, Unreadable, slot_of, value_of

UNTRUSTED = History(id="?")
"""In force from when etcd is found to have gone back until that is written down in it: no record names it."""

NO_HISTORY = History()
_AS_THEY_ARE = (Kind.collections, Kind.nodes, Kind.alive, Kind.drops)


class Book:
    """Everything under one prefix, but for keys about batches."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._parts: dict[Kind, dict[Any, Any]] = {kind: {} for kind in Kind}
        self._unreadable: dict[str, str] = {}
        self.unreadable_elsewhere: Mapping[str, str] = {}
        """Keys that are noted elsewhere, and whose values cannot be read."""
        self._shards: dict[ShardId, Shard] = {}
        """What counts; of those that are not settled, what counted before."""
        self._unsettled: dict[ShardId, Shard] = {}
        self.state = ClusterState()
        """As of what was noted last."""
        self.history_value: bytes | None = None
        """What etcd says of its history, as it is written; None where it says nothing."""

    @property
    def written_history(self) -> History:
        """What etcd says of its history, whether or not that is in force here."""
        history: History = self._parts[Kind.history].get("", NO_HISTORY)
        return history

    def note(self, changes: Iterable[tuple[str, KeyValue | None]], revision: Revision, *, anew: bool = False) -> None:
        """Some keys are as said, or gone; with `anew`, so are all others."""
        before: Mapping[Kind, dict[Any, Any]] = {}
        touched: set[Slot] = set()
        if anew:
            before, self._parts = self._parts, {kind: {} for kind in Kind}
            touched = {Slot(Kind.shards, shard) for shard in self._shards}
            self._unreadable, self.history_value = {}, None
        for key, now in changes:
            if slot := self._enter(key, now, before):
                touched.add(slot)
        self._show(revision, set(Kind) if anew else {slot.kind for slot in touched}, touched)

    def trust(self, history: History) -> None:
        """From now on this one is in force: what is about to be noted, and what was, counts if it names it."""
        self.state = msgspec.structs.replace(self.state, history=history)
        self._show(self.state.revision, {Kind.shards}, {Slot(Kind.shards, i) for i in self._parts[Kind.shards]})

    def _enter(self, key: str, now: KeyValue | None, before: Mapping[Kind, Mapping[Any, Any]]) -> Slot | None:
        """Note one key: what it is about, if that is known here."""
        shown = _shown(key)
        self._unreadable.pop(shown, None)
        slot = None
        try:
            slot = slot_of(key.removeprefix(self._prefix))
            if slot is None:
                return None
            part = self._parts[slot.kind]
            if slot.kind is Kind.history:
                self.history_value = now.value if now else None
            if now is None:
                part.pop(slot.id, None)
            else:
                part[slot.id] = value_of(slot, now)
        except Unreadable as error:
            if now is not None:
                self._unreadable[shown] = str(error)
            if slot and slot.id in before.get(slot.kind, {}):
                self._parts[slot.kind][slot.id] = before[slot.kind][slot.id]
        return slot

    def _show(self, revision: Revision, kinds: set[Kind], touched: set[Slot]) -> None:
        """Make a state of it, of the old one where nothing has changed."""
        news: dict[str, Any] = {kind.value: dict(self._parts[kind]) for kind in kinds.intersection(_AS_THEY_ARE)}
        if Kind.dropped_by in kinds:
            news["dropped_by"] = frozenset(self._parts[Kind.dropped_by])
        if Kind.leader in kinds:
            leader: NodeId | None = self._parts[Kind.leader].get("")
            news["leader"] = leader
        if Kind.shards in kinds:
            self._sort(slot.id for slot in touched if slot.kind is Kind.shards)
            news |= {"shards": dict(self._shards), "unsettled": dict(self._unsettled)}
        news["unreadable"] = {**self._unreadable, **self.unreadable_elsewhere}
        self.state = msgspec.structs.replace(self.state, revision=revision, **news)

    def _sort(self, shards: Iterable[ShardId]) -> None:
        """Tell those that are settled from the others."""
        written, history = self._parts[Kind.shards], self.state.history.id
        for shard in shards:
            record = written.get(shard)
            self._unsettled.pop(shard, None)
            if record is None:
                self._shards.pop(shard, None)
            elif record.history == history:
                self._shards[shard] = record
            else:
                self._unsettled[shard] = record


def _shown(key: str) -> str:
    """The key as a person can read it, whatever bytes it is of."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
