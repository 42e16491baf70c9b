"""A cluster's state, kept up with etcd key by key: a change costs what has changed, not what there is.

Nothing that a key can say stops it. A value that cannot be read, be it damage, somebody's mistake or from a newer
version, is left out and told; what the key said before goes on to count. What etcd says of shards after it went back to
an older state is kept apart until it was looked at (decisions/restored.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

import msgspec

from veccluster.model.cluster import EVERYTHING, Changes, ClusterState, History
from veccluster.model.state import NodeId, Revision, Shard, ShardId
from veccluster.model.tables import CollectionTable, ShardTable
from veccluster_etcd.values import KeyValue
from veccluster_node.metadata.keys import Kind, Slot, Unreadable, slot_of, value_of

UNTRUSTED = History(id="?")
"""In force from when etcd is found to have gone back until that is written down in it: no record names it."""

NO_HISTORY = History()
_AS_THEY_ARE = (Kind.nodes, Kind.alive, Kind.drops)


class Reader:
    """One who looks at the state again and again, and at what has changed meanwhile."""

    def __init__(self, book: "Book") -> None:
        self._book = book
        self._changes = EVERYTHING

    def take(self) -> tuple[ClusterState, Changes]:
        """The state, and how it differs from the one that was taken before; all of it the first time."""
        changes, self._changes = self._changes, Changes()
        return self._book.state, changes

    def note(self, changes: Changes) -> None:
        """The state has changed."""
        self._changes = self._changes.then(changes)


class Book:
    """Everything under one prefix, but for keys about batches."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._parts: dict[Kind, dict[Any, Any]] = {kind: {} for kind in Kind}
        self._unreadable: dict[str, str] = {}
        self.unreadable_elsewhere: Mapping[str, str] = {}
        """Keys that are noted elsewhere, and whose values cannot be read."""
        self._shards = ShardTable()
        """What counts; of those that are not settled, what counted before."""
        self._unsettled = ShardTable()
        self._collections = CollectionTable()
        self._readers: WeakSet[Reader] = WeakSet()
        self.state = ClusterState()
        """As of what was noted last."""
        self.history_value: bytes | None = None
        """What etcd says of its history, as it is written; None where it says nothing."""

    @property
    def written_history(self) -> History:
        """What etcd says of its history, whether or not that is in force here."""
        history: History = self._parts[Kind.history].get("", NO_HISTORY)
        return history

    def reader(self) -> Reader:
        """One more reader of the state."""
        made = Reader(self)
        self._readers.add(made)
        return made

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
        self._show(revision, set(Kind) if anew else {slot.kind for slot in touched}, touched, anew=anew)

    def trust(self, history: History) -> None:
        """From now on this one is in force: what is about to be noted, and what was, counts if it names it."""
        self.state = msgspec.structs.replace(self.state, history=history)
        touched = {Slot(Kind.shards, i) for i in self._parts[Kind.shards]}
        self._show(self.state.revision, {Kind.shards}, touched, anew=True)

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

    def _show(self, revision: Revision, kinds: set[Kind], touched: set[Slot], *, anew: bool) -> None:
        """Make a state of it, of the old one where nothing has changed, and tell the readers."""
        news: dict[str, Any] = {kind.value: dict(self._parts[kind]) for kind in kinds.intersection(_AS_THEY_ARE)}
        changes = EVERYTHING if anew else self._changes(touched)
        if Kind.dropped_by in kinds:
            news["dropped_by"] = frozenset(self._parts[Kind.dropped_by])
        if Kind.leader in kinds:
            leader: NodeId | None = self._parts[Kind.leader].get("")
            news["leader"] = leader
        if Kind.collections in kinds:
            held = self._parts[Kind.collections]
            names = {slot.id for slot in touched if slot.kind is Kind.collections}
            table = self._collections.changed({name: held.get(name) for name in names})
            news["collections"] = self._collections = CollectionTable(held) if anew else table
        if Kind.shards in kinds:
            self._sort(slot.id for slot in touched if slot.kind is Kind.shards)
            news |= {"shards": self._shards, "unsettled": self._unsettled}
        news["unreadable"] = {**self._unreadable, **self.unreadable_elsewhere}
        self.state = msgspec.structs.replace(self.state, revision=revision, **news)
        for reader in self._readers:
            reader.note(changes)

    def _changes(self, touched: set[Slot]) -> Changes:
        ids: dict[Kind, list[Any]] = {kind: [] for kind in Kind}
        for slot in touched:
            ids[slot.kind].append(slot.id)
        held = (self._collections, self._parts[Kind.collections])
        uuids = {c.uuid for name in ids[Kind.collections] for there in held if (c := there.get(name))}
        return Changes(
            shards=frozenset(ids[Kind.shards]),
            collections=frozenset({*uuids, *ids[Kind.drops], *(done.uuid for done in ids[Kind.dropped_by])}),
        )

    def _sort(self, shards: Iterable[ShardId]) -> None:
        """Tell those that are settled from the others."""
        written, history = self._parts[Kind.shards], self.state.history.id
        settled: dict[ShardId, Shard | None] = {}
        unsettled: dict[ShardId, Shard | None] = {}
        for shard in shards:
            record = written.get(shard)
            is_settled = record is None or record.history == history
            if is_settled:
                settled[shard] = record
            unsettled[shard] = None if is_settled else record
        self._shards, self._unsettled = self._shards.changed(settled), self._unsettled.changed(unsettled)


def _shown(key: str) -> str:
    """The key as a person can read it, whatever bytes it is of."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
