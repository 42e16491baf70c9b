"""Decide how a member of a cluster's own etcd may start; a mistake here would cost the cluster what it knows of itself.

Pure: before etcd starts in a pod, a tool looks at its disk and asks its peers, calls `decide`, carries the action out,
and looks again until the action is `Start`. It may be killed between any two steps; the next run sees what is left.
Rules:

1. One etcd, ever: a new one is made only while nobody knows of one. The operator has never seen it up
   (`bootstrapped`), and no peer that can be reached has seen this member start, or does not know it.
2. An empty disk starts only under an id that etcd gave to this very run. A member that came back under its old id
   without its log would have forgotten what it voted for and acknowledged, and others count on that. So whatever
   etcd has on its list at our address is removed, then we are added anew.
3. A disk with data starts as it is: a majority may need it to come about. Only when a majority of its own cluster has
   removed it, its data are set aside (never deleted), and it joins like an empty one.
4. Only a majority's word changes anything. What a peer says by itself may be old: it is a reason to wait, no more.
5. The exception to 2 and 4: `_sole_voter_waits_for_us`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from veccluster.model.etcd import EtcdId, EtcdMember, MemberId, Membership

ClusterState = Literal["new", "existing"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose data a disk holds, as etcd's log says."""

    member: MemberId
    cluster: EtcdId


@dataclass(frozen=True, slots=True)
class Mine:
    """This member, and what its disk holds."""

    name: str
    peer_url: str
    has_data: bool
    identity: Identity | None = None
    """None as well where the log cannot be read: then it is for etcd to say what is wrong with it."""
    joined_as: MemberId | None = None
    """The id that etcd gave to this run."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A member as the operator wants it."""

    name: str
    peer_url: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The etcd that the operator wants; its members do not change before it is `bootstrapped`."""

    members: tuple[Planned, ...]
    bootstrapped: bool
    """Whether this etcd was ever up."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the peers say."""

    majority: Membership | None = None
    """What a majority has agreed on; None when none answers."""
    hearsay: tuple[Membership, ...] = ()
    """What each peer that could be reached believes by itself."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start etcd: it uses what is on its disk, and if that is empty, this."""

    state: ClusterState
    members: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class SetAside:
    """Move the data out of etcd's way, and keep them."""

    why: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the member that had our address, whose disk is lost, off the list."""

    member: EtcdMember


@dataclass(frozen=True, slots=True)
class Add:
    """Have etcd put us on the list under a new id."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again later."""

    why: str


Action = Start | SetAside | Remove | Add | Wait


def decide(mine: Mine, plan: Plan, seen: Seen) -> Action:
    """The next step."""
    if mine.has_data:
        return _with_data(mine, plan, seen.majority)
    if _was_never_there(mine, plan, seen):
        return Start("new", plan.members)
    if seen.majority is None:
        if (listed := _sole_voter_waits_for_us(mine, plan, seen)) is not None:
            return Start("existing", tuple(_named(listed, mine, plan)))
        return Wait(_nobody_answers(mine, plan))
    return _join(mine, plan, seen.majority)


def _with_data(mine: Mine, plan: Plan, majority: Membership | None) -> Action:
    """Start on the data, unless the member that they belong to is no more (3)."""
    as_it_is = Start("existing", plan.members)
    if majority is None or mine.identity is None:
        return as_it_is
    if majority.cluster != mine.identity.cluster:
        return Wait(
            f"the data here belong to etcd cluster {mine.identity.cluster:x}, and the peers are {majority.cluster:x}: "
            "which of the two is right, a person must say, and remove the volumes of the other"
        )
    if majority.has(mine.identity.member):
        return as_it_is
    return SetAside(f"member {mine.identity.member:x}, whose data are here, was removed from the cluster")


def _was_never_there(mine: Mine, plan: Plan, seen: Seen) -> bool:
    """Whether this member may be one of those that make the cluster (1).

    The members that make it are on its list from the start, by name; they tell their client addresses once they run.
    """
    heard = (*seen.hearsay, *([seen.majority] if seen.majority else []))
    ours = [membership.at(mine.peer_url) for membership in heard]
    return not plan.bootstrapped and all(m and m.name == mine.name and not m.has_started for m in ours)


def _join(mine: Mine, plan: Plan, majority: Membership) -> Action:
    """Get an id of our own, then start under it (2)."""
    if not any(majority.at(p.peer_url) for p in _others(mine, plan)):
        return Wait(
            f"etcd cluster {majority.cluster:x} answers at the peers' addresses, but has none of them as member"
        )
    listed = majority.at(mine.peer_url)
    if listed is None:
        return Add()
    if listed.id != mine.joined_as:
        return Remove(listed)
    return Start("existing", tuple(_named(majority, mine, plan)))


def _sole_voter_waits_for_us(mine: Mine, plan: Plan, seen: Seen) -> Membership | None:
    """The list of an etcd of one member that has added us in an earlier run, and cannot do anything before we start.

    Starting under the id of that run is safe even if it was used: every entry that two members have agreed on is in
    the other's log, and nobody but the other can ask for our vote.
    """
    peers = {p.peer_url for p in _others(mine, plan)}
    for listed in seen.hearsay:
        us = listed.at(mine.peer_url)
        others = [m for m in listed.members if m != us]
        if us is None or us.name or len(others) != 1 or peers.isdisjoint(others[0].peer_urls):
            return None
    return seen.hearsay[0] if seen.hearsay else None


def _others(mine: Mine, plan: Plan) -> list[Planned]:
    return [p for p in plan.members if p.name != mine.name]


def _named(listed: Membership, mine: Mine, plan: Plan) -> Iterator[Planned]:
    """The members on the list as etcd is told of them: it compares addresses, and wants a name for each."""
    planned = {p.peer_url: p.name for p in plan.members}
    for member in listed.members:
        for url in member.peer_urls:
            name = mine.name if url == mine.peer_url else member.name or planned.get(url) or f"{member.id:x}"
            yield Planned(name, url)


def _nobody_answers(mine: Mine, plan: Plan) -> str:
    if not _others(mine, plan):
        return (
            "the volume of etcd's only member is empty, and it was not always: bring the volume back; a new etcd would "
            "know nothing of the data that the nodes hold"
        )
    return (
        "this member's disk is empty, and no majority of the others answers: at least "
        f"{len(plan.members) // 2 + 1} of {len(plan.members)} members must run with their data before it can join"
    )
