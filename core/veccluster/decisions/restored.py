"""Decide what the record of a shard is to say after etcd went back to an older state.

Pure. Such an etcd may name a primary that was replaced since, or call a copy in sync that has missed acknowledged
writes since. So nobody acts by its records. The leader asks every node what it knows and holds of a shard, `decide`
says what its record is to be, and only that is written, in an epoch beyond any that a node has heard of.

Invariant: an in-sync set that is written holds only members that have everything that was acknowledged. Whoever may
have been primary later than anyone who answers has answered, or had another copy in its in-sync set that has: as many
nodes are silent as could not have acknowledged anything by themselves. Where that is not so, the shard waits; a person
may end that (lost_quorum.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from veccluster.decisions.etcd_history import LEAP
from veccluster.decisions.lost_quorum import Copy
from veccluster.decisions.replication.values import NO_REVISION, Configuration, Member
from veccluster.model.cluster import FIRST_EPOCH
from veccluster.model.state import Epoch, NodeId


@dataclass(frozen=True, slots=True)
class Heard:
    """Of a node that answered, and that changes nothing of the shard any more by what it knew before."""

    member: Member
    """As which member of the shard it answers."""
    copy: Copy | None = None
    known: Configuration | None = None
    """The newest that it had seen before etcd went back."""
    serves: bool = False
    """As the primary of `known`."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Write this."""

    target: Configuration


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: why, in words."""

    why: str


def decide(now: Configuration, answers: Mapping[NodeId, Heard | None]) -> Settle | Wait:
    """What becomes of the record `now`; `answers` has every node that is known, None for one that is silent."""
    heard = [h for h in answers.values() if h]
    newest = _newest(now, heard)
    highest = max([now.epoch, newest.epoch, *(h.copy.epoch for h in heard if h.copy)])
    named = {m.node for c in (now, *(h.known for h in heard if h.known)) for m in _members(c)}
    silent = {n for n in answers.keys() | named if answers.get(n) is None}
    primary = next((h for h in heard if h.serves and h.known and h.known.epoch == highest), None)
    if primary and _has_all(primary.copy, heard):
        return _as_served(primary, highest, now, silent)
    if len(silent) >= min(now.min_in_sync, newest.min_in_sync):
        return Wait(f"nobody serves it, and node {_listed(silent)} may have what was acknowledged last")
    return _as_found(now, newest, highest, heard)


def _newest(now: Configuration, heard: Iterable[Heard]) -> Configuration:
    """What was known last, by anyone; epochs and revisions of before only ever grew."""
    known = [h.known for h in heard if h.known]
    return max([now, *known], key=lambda c: (c.epoch, c is not now, c.revision))


def _members(configuration: Configuration) -> frozenset[Member]:
    return configuration.in_sync | configuration.learners | {configuration.primary}


def _as_served(primary: Heard, highest: Epoch, now: Configuration, silent: set[NodeId]) -> Settle | Wait:
    """What the primary goes by: nobody but itself and whoever replaces it changes that.

    Only one of those that it calls in sync could have replaced it.
    """
    known = primary.known
    assert known is not None
    others = {m.node for m in known.in_sync if m != primary.member}
    if others & silent and len(silent) >= known.min_in_sync:
        return Wait(f"node {_listed(others & silent)} may have taken it over from node {primary.member.node}")
    target = replace(known, epoch=Epoch(highest + LEAP), successor=None, replicas=now.replicas, revision=NO_REVISION)
    return Settle(target)


def _has_all(copy: Copy | None, heard: Iterable[Heard]) -> bool:
    """Whether it has whatever any other copy knows to be committed.

    One that has not was no more in sync, and may have been made primary only because etcd had forgotten that.
    """
    return copy is not None and all(copy.has(h.copy.committed) for h in heard if h.copy)


def _as_found(now: Configuration, newest: Configuration, highest: Epoch, heard: Sequence[Heard]) -> Settle | Wait:
    """The copies that are best: of those that were in sync, if that is known from before etcd went back.

    A copy with the highest (epoch, seq) has all that was acknowledged (6); those that end at the same place are equal.
    A primary that nobody hears of here may go on acknowledging until one of those that it waits for is told otherwise,
    which is why others do not count where it is known whom it waits for.
    """
    copies = [h.copy for h in heard if h.copy]
    whole = [c for c in copies if _has_all(c, heard)]
    if not copies and highest == FIRST_EPOCH:
        return Settle(replace(now, revision=NO_REVISION))
    if not copies:
        return Settle(replace(now, epoch=Epoch(highest + LEAP), successor=None, revision=NO_REVISION))
    is_remembered = newest is not now and newest.epoch == highest
    counted = [c for c in whole if c.member in newest.in_sync] if is_remembered else whole
    best = max((c.durable for c in counted), default=None)
    able = {c.member for c in counted if c.durable == best and not c.trouble and not c.doubt}
    if not able:
        return Wait("no copy that has come far enough can be relied on and used: see the issues of the nodes")
    others = {c.member for c in copies} | newest.in_sync | newest.learners
    nodes = {m.node for m in able}
    return Settle(
        replace(
            newest,
            epoch=Epoch(highest + LEAP),
            primary=newest.primary if newest.primary in able else min(able),
            in_sync=frozenset(able),
            learners=frozenset(m for m in others if m.node not in nodes),
            successor=None,
            replicas=now.replicas,
            revision=NO_REVISION,
        )
    )


def _listed(nodes: Iterable[NodeId]) -> str:
    return ", ".join(sorted(nodes))
