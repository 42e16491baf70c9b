"""How a member of a cluster's own etcd may start: promises over all that can be seen, and over simulated lives."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from veccluster.decisions.etcd_member import (
    Add,
    Identity,
    Mine,
    Plan,
    Planned,
    Remove,
    Seen,
    SetAside,
    Start,
    Wait,
    decide,
)
from veccluster.model.etcd import EtcdId, EtcdMember, MemberId, Membership

WANTED = tuple(Planned(f"m{i}", f"http://m{i}:2380") for i in range(3))
OURS, FOREIGN = EtcdId(7), EtcdId(8)


def listed(number: int, member_id: int, *, named: bool = True, started: bool = True) -> EtcdMember:
    client_urls = (f"http://m{number}:2379",) if started else ()
    return EtcdMember(MemberId(member_id), f"m{number}" if named else "", (WANTED[number].peer_url,), client_urls)


def mine(*, data: Identity | None = None, has_data: bool | None = None, joined_as: int | None = None) -> Mine:
    full = data is not None if has_data is None else has_data
    return Mine("m2", WANTED[2].peer_url, full, data, MemberId(joined_as) if joined_as else None)


ids = st.integers(1, 6)
flags = st.sampled_from([(True, True), (True, False), (False, False)])
someone = st.builds(lambda n, i, f: listed(n, i, named=f[0], started=f[1]), st.integers(0, 2), ids, flags)
memberships = st.builds(
    lambda cluster, members: Membership(cluster, tuple(members)),
    st.sampled_from([OURS, FOREIGN]),
    st.lists(someone, max_size=3, unique_by=(lambda m: m.peer_urls, lambda m: m.id)),
)
identities = st.builds(lambda i, c: Identity(MemberId(i), c), ids, st.sampled_from([OURS, FOREIGN]))
disks = st.one_of(
    st.builds(lambda j: mine(joined_as=j), st.none() | ids),
    st.builds(lambda identity: mine(data=identity, has_data=True), st.none() | identities),
)
plans = st.builds(Plan, st.just(WANTED), st.booleans())
seens = st.builds(Seen, st.none() | memberships, st.lists(memberships, max_size=2).map(tuple))


@given(disks, plans, seens)
@settings(max_examples=150, deadline=None)
def test_a_new_cluster_is_made_only_where_nobody_knows_of_one(us, plan, seen):
    if decide(us, plan, seen) == Start("new", WANTED):
        assert not plan.bootstrapped
        assert not us.has_data
        for heard in (*seen.hearsay, *filter(None, [seen.majority])):
            assert heard.at(us.peer_url).name == us.name
            assert not heard.at(us.peer_url).has_started


@given(disks, plans, seens)
@settings(max_examples=150, deadline=None)
def test_an_empty_disk_joins_only_under_the_id_that_this_run_was_given(us, plan, seen):
    action = decide(us, plan, seen)
    if isinstance(action, Start) and action.state == "existing" and not us.has_data:
        if seen.majority is not None:
            assert seen.majority.at(us.peer_url).id == us.joined_as
        else:  # an etcd of one, which added us and stands still until we come
            assert all(len(h.members) == 2 and not h.at(us.peer_url).name for h in seen.hearsay)
        assert Planned(us.name, us.peer_url) in action.members
        assert len({m.name for m in action.members}) == len(action.members)


@given(disks, plans, seens)
@settings(max_examples=150, deadline=None)
def test_data_are_moved_only_when_a_majority_of_their_own_cluster_has_removed_their_member(us, plan, seen):
    action = decide(us, plan, seen)
    if us.has_data:
        assert isinstance(action, Start | SetAside | Wait)
        assert action != Start("new", WANTED) or seen.majority is None
    if isinstance(action, SetAside):
        assert us.has_data
        assert seen.majority.cluster == us.identity.cluster
        assert not seen.majority.has(us.identity.member)


@given(disks, plans, seens)
@settings(max_examples=150, deadline=None)
def test_only_what_a_majority_lists_at_our_address_is_removed_and_only_for_an_empty_disk(us, plan, seen):
    action = decide(us, plan, seen)
    if isinstance(action, Remove):
        assert not us.has_data
        assert action.member == seen.majority.at(us.peer_url)
        assert action.member.id != us.joined_as
    if isinstance(action, Add):
        assert not us.has_data
        assert seen.majority.at(us.peer_url) is None
        assert any(seen.majority.at(p.peer_url) for p in WANTED[:2])


FIRST_DATA = Identity(MemberId(3), OURS)
STANDING = Membership(OURS, (listed(0, 1), listed(1, 2), listed(2, 3)))
UP = Plan(WANTED, bootstrapped=True)
FIRST = Plan(WANTED, bootstrapped=False)
BEGUN = Membership(OURS, (listed(0, 1), listed(1, 2), listed(2, 3, started=False)))


def test_the_table_of_what_happens():
    data = FIRST_DATA
    nobody = Seen()
    assert decide(mine(), FIRST, nobody) == Start("new", WANTED)
    assert decide(mine(), FIRST, Seen(BEGUN, (BEGUN,))) == Start("new", WANTED), "late to the creation"
    assert isinstance(decide(mine(), FIRST, Seen(None, (STANDING,))), Wait), "a peer has seen us start"
    assert decide(mine(), FIRST, Seen(STANDING)) == Remove(listed(2, 3))
    assert isinstance(decide(mine(), UP, nobody), Wait)
    assert decide(mine(), UP, Seen(STANDING)) == Remove(listed(2, 3))
    assert decide(mine(), UP, Seen(Membership(OURS, STANDING.members[:2]))) == Add()
    added = Membership(OURS, (*STANDING.members[:2], listed(2, 9, named=False, started=False)))
    assert decide(mine(joined_as=9), UP, Seen(added)) == Start("existing", WANTED)
    assert decide(mine(), UP, Seen(added)) == Remove(added.members[2]), "added by a run that was interrupted"
    assert decide(mine(data=data), UP, nobody) == Start("existing", WANTED)
    assert decide(mine(data=data), UP, Seen(STANDING)) == Start("existing", WANTED)
    assert isinstance(decide(mine(data=data), UP, Seen(added)), SetAside)
    assert isinstance(decide(mine(data=data), UP, Seen(Membership(FOREIGN, STANDING.members))), Wait)
    assert decide(mine(has_data=True), UP, Seen(added)) == Start("existing", WANTED), "a log that cannot be read"
    assert isinstance(decide(mine(), UP, Seen(Membership(FOREIGN, ()))), Wait), "somebody else at their addresses"


@dataclass
class World:
    """An etcd of three whose third member lives through what chance has for it; the others keep a majority or not."""

    members: dict[int, str] = field(default_factory=lambda: {1: "m0", 2: "m1", 3: "m2"})
    unnamed: int | None = None
    disk: Identity | None = FIRST_DATA
    running: bool = True
    majority: bool = True
    last_id: int = 3
    used: list[int] = field(default_factory=lambda: [3])
    """Ids under which the third member ever ran, in order."""

    def seen(self) -> Seen:
        members = (
            EtcdMember(
                MemberId(i),
                "" if i == self.unnamed else name,
                (f"http://{name}:2380",),
                () if i == self.unnamed else (f"http://{name}:2379",),
            )
            for i, name in self.members.items()
        )
        now = Membership(OURS, tuple(members))
        return Seen(now if self.majority else None, (now,))

    def run_tool(self, steps: int) -> None:
        """Up to `steps` actions, then it is killed; an id that it was given is forgotten with it."""
        joined: int | None = None
        for _ in range(steps):
            us = replace(mine(data=self.disk), joined_as=joined)
            match decide(us, UP, self.seen()):
                case Remove(member):
                    assert self.members.pop(member.id) == "m2"
                case Add():
                    self.last_id += 1
                    joined = self.unnamed = self.last_id
                    self.members[joined] = "m2"
                case SetAside():
                    self.disk = None
                case Start(state, _):
                    assert state == "existing"
                    self.start(joined)
                    return
                case Wait():
                    return

    def start(self, joined: int | None) -> None:
        if self.disk is None:
            assert joined in self.members
            assert joined not in self.used, "an empty disk under an old id"
            self.disk = Identity(MemberId(joined), OURS)
            self.used.append(joined)
        self.running = self.disk.member in self.members
        self.unnamed = None if self.running else self.unnamed


EVENTS = ("lose disk", "removed by a person", "majority goes", "majority comes", "stop")


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=25))
@settings(deadline=None)
def test_whatever_happens_the_member_comes_back_and_never_under_an_id_it_has_used(life):
    world = World()
    for event, steps in life:
        world.running = False
        match event:
            case "lose disk":
                world.disk = None
            case "removed by a person" if world.majority:
                world.members = {i: name for i, name in world.members.items() if name != "m2"}
            case "majority goes":
                world.majority = False
            case "majority comes":
                world.majority = True
        world.run_tool(steps)
        assert sorted(world.members.values())[:2] == ["m0", "m1"], "the others are left alone"
        assert len(world.members) <= 3
    world.majority = True
    world.run_tool(10)
    assert world.running
    assert len(world.members) == 3
