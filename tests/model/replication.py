"""Rules 1 to 13 for one shard, as steps from state to state. The numbers are those of docs/replication.md.

What was sent stays sent: a follower may be given any part of what any primary has ever streamed, at any time, and a
change of the key that was asked for may be made as long as the key is at the revision that it compares. So messages
that are lost, late, doubled or in another order, and answers of etcd that never come, need no steps of their own. A
node that is down or stands still is one that takes no steps.

Not here: old copies of disks, snapshots, a person's acceptance of a loss, and how long anything takes.
"""

from collections.abc import Iterator
from itertools import chain, combinations, takewhile
from typing import NamedTuple

NOBODY = 0
"""The epoch before all others."""

WITHOUT = {
    "2 counts what is not durable": "a follower says that it has what is not on its disk yet",
    "2 any copies": "any `min_in_sync` copies are enough",
    "3 stops waiting first": "the primary does not wait for a member from when it asks to remove it",
    "3 waits late": "the primary waits for a learner from when it knows that it is in sync",
    "3 unknown is not done": "a change without an answer is taken for one that was not made",
    "4 no minimum": "members are let go however few are left",
    "5 takes old epochs": "a follower takes what a primary of an older epoch sends",
    "5 promise not durable": "a follower answers in an epoch that it may not remember",
    "6 anyone": "a replica that is not in sync is promoted",
    "6 any disk": "what counts is the node, not its disk",
    "7 resumes": "a primary that restarts goes on in its epoch",
    "8 cuts nothing": "a follower appends behind what differs",
    "8 claims what it cut": "what was durable counts until what took its place is",
    "9 same name": "a wiped disk goes by its old name",
    "10 applies all": "a follower applies what is not committed",
    "11 gap": "a learner joins with a gap",
    "13 no confirmation": "the primary answers strong reads by itself",
}
"""The rules that can be left out, and what is done then."""


class Member(NamedTuple):
    """A node, and which disk it has."""

    node: int
    disk: int


class Entry(NamedTuple):
    """An operation in a log; its place is its seq."""

    epoch: int
    value: int


Log = tuple[Entry, ...]


class Key(NamedTuple):
    """What etcd has of the shard."""

    epoch: int
    primary: Member
    in_sync: frozenset[Member]
    revision: int


class Serving(NamedTuple):
    """A primary: the newest key that it knows, the change that it asked for, and what its epoch began with."""

    known: Key
    target: Key | None
    start: int
    commit: int


class Copy(NamedTuple):
    """A node's copy. `log` and `promised` are what its process sees, `synced` and `vowed` what survives a crash."""

    disk: int = 0
    log: Log = ()
    synced: Log = ()
    promised: int = NOBODY
    vowed: int = NOBODY
    follows: int = NOBODY
    applied: int = 0
    serving: Serving | None = None


class Read(NamedTuple):
    """A strong read on its way: where, what had been acknowledged before, and who has confirmed the epoch since."""

    node: int
    epoch: int
    floor: frozenset[tuple[int, Entry]]
    confirmed: frozenset[Member]


class State(NamedTuple):
    """`said` is how far each member has told the primary of an epoch that it has the log; `wrong` what a step broke."""

    keys: tuple[Key, ...]
    copies: tuple[Copy, ...]
    sent: frozenset[tuple[int, Log]]
    said: frozenset[tuple[int, Member, int]] = frozenset()
    asked: frozenset[Key] = frozenset()
    acked: frozenset[tuple[int, Entry]] = frozenset()
    read: Read | None = None
    crashes: int = 0
    wipes: int = 0
    reads: int = 0
    wrong: str | None = None

    @property
    def key(self) -> Key:
        return self.keys[-1]

    def member(self, node: int) -> Member:
        return Member(node, self.copies[node].disk)

    def put(self, node: int, copy: Copy) -> "State":
        return self._replace(copies=(*self.copies[:node], copy, *self.copies[node + 1 :]))


class Bounds(NamedTuple):
    """How much may happen."""

    nodes: int = 3
    replicas: int = 3
    min_in_sync: int = 2
    values: int = 1
    epochs: int = 3
    changes: int = 3
    crashes: int = 1
    wipes: int = 0
    reads: int = 0


MUCH = Bounds(values=2, epochs=4, changes=5, crashes=2, wipes=1, reads=1)
"""More than can be looked at completely: for walks."""

Steps = Iterator[tuple[str, State]]


def agreed(log: Log, epoch: int, sent: Log) -> int:
    """Up to where a log says what the primary's does that sent `sent` in `epoch`, by who wrote what (8)."""
    start = sum(e.epoch < epoch for e in sent)
    for seq, entry in enumerate(log):
        if entry.epoch != (sent[seq].epoch if seq < start else epoch):
            return seq
    return len(log)


class Replication:
    """The rules, but for one that may be left out."""

    def __init__(self, bounds: Bounds, without: str | None = None) -> None:
        assert without is None or without in WITHOUT
        self.bounds, self.without = bounds, without

    def initial(self) -> State:
        everyone = frozenset(Member(n, 0) for n in range(self.bounds.nodes))
        key = Key(1, Member(0, 0), everyone, 1)
        primary = Copy(promised=1, vowed=1, serving=Serving(key, None, 0, 0))
        followers = (Copy(promised=1, vowed=1, follows=1),) * (self.bounds.nodes - 1)
        said = frozenset((1, member, 0) for member in everyone - {key.primary})
        return State((key,), (primary, *followers), frozenset({(1, ())}), said)

    def steps(self, state: State) -> Steps:
        if state.wrong:
            return
        yield from self.etcd(state)
        for node, copy in enumerate(state.copies):
            yield from self._disk(state, node, copy)
            yield from self.begin(state, node, copy)
            yield from self._follow(state, node, copy)
            if copy.serving:
                yield from self._serve(state, node, copy, copy.serving)
                yield from self.change(state, node, copy, copy.serving)
                yield from self._answer(state, node, copy.serving)

    # -- etcd, and the leader

    def etcd(self, state: State) -> Steps:
        """What was asked for is done, or the leader acts."""
        for key in state.asked:
            if key.revision == state.key.revision + 1:
                yield f"etcd: {_told(key)}", self.changed(state, key)
        if self._may_change(state.key):
            for key in self._promoted(state, state.key):
                yield f"the leader: {_told(key)}", self.changed(state, key)
            for in_sync in _smaller(state.key.in_sync, {state.key.primary}, self.bounds.replicas):
                key = state.key._replace(in_sync=in_sync, revision=state.key.revision + 1)
                yield f"the leader: {_told(key)}", self.changed(state, key)

    def _promoted(self, state: State, now: Key) -> Iterator[Key]:
        """Another member becomes primary; the one before may leave the in-sync set (6)."""
        able = set(now.in_sync)
        if self.without == "6 anyone":
            able = {state.member(n) for n in range(self.bounds.nodes)}
        elif self.without == "6 any disk":
            able = {state.member(m.node) for m in now.in_sync}
        for member in sorted(able - {now.primary}) if now.epoch < self.bounds.epochs else ():
            yield now._replace(epoch=now.epoch + 1, primary=member, revision=now.revision + 1)
            if len(now.in_sync) > self.bounds.min_in_sync:
                yield Key(now.epoch + 1, member, now.in_sync - {now.primary}, now.revision + 1)

    def _may_change(self, key: Key) -> bool:
        return key.revision <= self.bounds.changes

    def changed(self, state: State, key: Key) -> State:
        asked = frozenset(k for k in state.asked if k.revision > key.revision)
        return state._replace(keys=(*state.keys, key), asked=asked)

    # -- disks

    def _disk(self, state: State, node: int, copy: Copy) -> Steps:
        if (synced := self._synced(state, node, copy)) != state:
            yield f"n{node} syncs", synced
        if state.crashes < self.bounds.crashes:
            for log in {copy.log, copy.synced}:
                for promised in {copy.promised, copy.vowed}:
                    kept = max([promised, *(e.epoch for e in log)])
                    then = Copy(copy.disk, log, log, kept, kept, NOBODY, min(copy.applied, len(log)))
                    crashed = state.put(node, then)._replace(crashes=state.crashes + 1)
                    yield f"n{node} crashes with {len(log)}, promised {kept}", crashed
        if state.wipes < self.bounds.wipes:
            empty = Copy(copy.disk + (self.without != "9 same name"))
            yield f"n{node} gets an empty disk", state.put(node, empty)._replace(wipes=state.wipes + 1)

    def _synced(self, state: State, node: int, copy: Copy) -> State:
        vowed = copy.vowed if self.without == "5 promise not durable" else copy.promised
        return self.says(state, node, copy._replace(synced=copy.log, vowed=vowed), len(copy.log))

    def says(self, state: State, node: int, copy: Copy, seq: int) -> State:
        """The primary that it follows hears how far it is; with the epoch it has made its promise (5)."""
        if copy.follows and copy.follows == copy.promised:
            member = Member(node, copy.disk)
            before = self.matched(state, copy.follows, member)
            if seq > before or not self._has_said(state, copy.follows, member):
                kept = state.said - {(copy.follows, member, before)}
                state = state._replace(said=kept | {(copy.follows, member, seq)})
            copy = copy._replace(applied=self._committed(state, copy))
        return state.put(node, copy)

    def _committed(self, state: State, copy: Copy) -> int:
        """What the follower applies: nothing but what its primary calls committed (10)."""
        commits = (c.serving.commit for c in state.copies if c.serving and c.serving.known.epoch == copy.follows)
        known = len(copy.log) if self.without == "10 applies all" else max(commits, default=0)
        return max(copy.applied, min(known, self._own(copy)))

    def _own(self, copy: Copy) -> int:
        """Up to where its log is durable; what is cut is not, from the moment it is cut (8)."""
        if self.without == "8 claims what it cut":
            return len(copy.synced)
        return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(copy.log, copy.synced, strict=False)))

    def _has_said(self, state: State, epoch: int, member: Member) -> bool:
        return any((e, m) == (epoch, member) for e, m, _ in state.said)

    def matched(self, state: State, epoch: int, member: Member) -> int:
        same = self.without == "6 any disk"
        those = (n for e, m, n in state.said if e == epoch and (m == member or (same and m.node == member.node)))
        return max(those, default=0)

    # -- roles

    def begin(self, state: State, node: int, copy: Copy) -> Steps:
        """A member finds that it is primary, by any key that it may know (6), or was (7)."""
        member = Member(node, copy.disk)
        for key in state.keys:
            mine = key.primary == member and (member in key.in_sync or self.without in ("6 anyone", "6 any disk"))
            if not mine or (copy.serving and copy.serving.known.epoch >= key.epoch):
                continue
            if key.epoch > copy.promised or (key.epoch == copy.promised and self.without == "7 resumes"):
                serving = Serving(key, None, len(copy.log), copy.applied)
                then = copy._replace(promised=key.epoch, vowed=key.epoch, follows=NOBODY, serving=serving)
                yield f"n{node} serves epoch {key.epoch}", _sends(state.put(node, then), key.epoch, copy.log)
            elif key == state.key and key.epoch == copy.promised and not copy.serving and self._may_change(key):
                target = key._replace(epoch=key.epoch + 1, revision=key.revision + 1)
                if target.epoch <= self.bounds.epochs and target not in state.asked:
                    yield f"n{node} asks for another epoch", state._replace(asked=state.asked | {target})

    def _follow(self, state: State, node: int, copy: Copy) -> Steps:
        for epoch, sent in state.sent:
            if (taken := self.taken(state, node, epoch, sent)) and taken.copies[node] != copy:
                yield f"n{node} follows epoch {epoch} to {len(taken.copies[node].log)}", taken

    def taken(self, state: State, node: int, epoch: int, sent: Log, entries: int = 1) -> State | None:
        """A primary's message comes, with some of what it has sent in its epoch, if it is for this member (5, 8)."""
        copy = state.copies[node]
        primary = next(k.primary for k in state.keys if k.epoch == epoch)
        stale = epoch < copy.promised and self.without != "5 takes old epochs"
        busy = copy.serving and copy.serving.known.epoch >= epoch
        if stale or busy or primary == Member(node, copy.disk):
            return None
        keep = len(copy.log) if self.without == "8 cuts nothing" else agreed(copy.log, epoch, sent)
        log = copy.log[:keep] + sent[keep : keep + entries]
        wrong = f"n{node} cuts what it has applied" if keep < copy.applied else state.wrong
        then = copy._replace(log=log, promised=max(epoch, copy.promised), follows=epoch, serving=None)
        state = state._replace(wrong=wrong).put(node, then)
        return self.says(state, node, then, len(log)) if self.without == "2 counts what is not durable" else state

    def too_short(self, state: State, node: int, epoch: int, keep: int) -> State | None:
        """A primary's message comes, and the log ends before the primary's lineage begins: it is no follower yet, for
        nobody knows what its log says. It promises the epoch, and may cut what differs anyway (8).
        """
        copy, begun = state.copies[node], any(key.epoch == epoch for key in state.keys)
        if not begun or epoch < copy.promised or keep < copy.applied or copy.serving:
            return None
        return state.put(node, copy._replace(log=copy.log[:keep], promised=epoch, follows=NOBODY))

    def promises(self, state: State, node: int, epoch: int) -> State | None:
        """It says that it has promised the epoch, durably, and claims nothing of its log."""
        copy = state.copies[node]
        if not copy.promised == copy.vowed == epoch:
            return None
        member = Member(node, copy.disk)
        if self._has_said(state, epoch, member):
            return state
        return state._replace(said=state.said | {(epoch, member, 0)})

    # -- the primary

    def _serve(self, state: State, node: int, copy: Copy, serving: Serving) -> Steps:
        """Order an operation, see another key, or commit and acknowledge (1, 2)."""
        epoch = serving.known.epoch
        written = {e.value for e in chain.from_iterable(log for _, log in state.sent)}
        if len(written) < self.bounds.values:
            value = len(written) + 1
            yield f"n{node} writes {value}", self.written(state, node, value) or state
        for key in state.keys:
            if key.revision > serving.known.revision:
                yield f"n{node} sees revision {key.revision}", self.sees(state, node, key)
        commit = self.durable(state, node, copy, serving)
        then = copy._replace(serving=serving._replace(commit=max(commit, serving.commit)), applied=commit)
        committed = state.put(node, then)
        acked = self.acknowledged(committed, node, then, commit) or committed
        if acked != state:
            yield f"n{node} commits {commit} in epoch {epoch}", acked

    def written(self, state: State, node: int, value: int) -> State | None:
        """A primary puts an operation at the end of its log, and streams it (1)."""
        copy = state.copies[node]
        if copy.serving is None:
            return None
        epoch = copy.serving.known.epoch
        log = (*copy.log, Entry(epoch, value))
        return _sends(state.put(node, copy._replace(log=log)), epoch, log)

    def acknowledged(self, state: State, node: int, copy: Copy, through: int, copies: int = 0) -> State | None:
        """What is committed is acknowledged, if enough are in sync whichever way a change ends, and as many as the
        write asks for (2).
        """
        serving, least = copy.serving, max(copies, self.bounds.min_in_sync)
        if serving is None or through > serving.commit or len(self.counted(serving)) < least:
            return None
        return state._replace(acked=state.acked | frozenset(enumerate(copy.log[:through])))

    def sees(self, state: State, node: int, key: Key) -> State:
        """A primary sees a newer key: that ends its epoch, or every doubt about a change of its own (3, 5)."""
        copy = state.copies[node]
        assert copy.serving
        goes_on = key.epoch == copy.serving.known.epoch
        return state.put(
            node, copy._replace(serving=copy.serving._replace(known=key, target=None) if goes_on else None)
        )

    def waiting(self, serving: Serving) -> frozenset[Member]:
        """Whoever may be in sync whichever way a change ends (3)."""
        known, target = serving.known.in_sync, serving.target
        if target is None:
            return known
        if self.without == "3 stops waiting first" and target.in_sync < known:
            return target.in_sync
        return known if self.without == "3 waits late" else known | target.in_sync

    def counted(self, serving: Serving) -> frozenset[Member]:
        return serving.known.in_sync & serving.target.in_sync if serving.target else serving.known.in_sync

    def durable(self, state: State, node: int, copy: Copy, serving: Serving) -> int:
        """Up to where all of the wait set have the log (2)."""
        me, epoch = Member(node, copy.disk), serving.known.epoch
        members = self.waiting(serving) | {me}
        if self.without == "2 any copies":
            members = frozenset(state.member(n) for n in range(self.bounds.nodes))
        matched = sorted(self._own(copy) if m == me else self.matched(state, epoch, m) for m in members)
        return matched[-self.bounds.min_in_sync] if self.without == "2 any copies" else matched[0]

    def change(self, state: State, node: int, copy: Copy, serving: Serving) -> Steps:
        """Ask for another in-sync set (3, 4, 11), or hand over (12)."""
        known, me = serving.known, Member(node, copy.disk)
        if serving.target:
            if self.without == "3 unknown is not done":
                yield (
                    f"n{node} gives its change up",
                    state.put(node, copy._replace(serving=serving._replace(target=None))),
                )
            return
        if not self._may_change(known):
            return
        least = 1 if self.without == "4 no minimum" else self.bounds.min_in_sync
        sets = list(_smaller(known.in_sync, {me}, least))
        for other in range(self.bounds.nodes):
            member = state.member(other)
            if member not in known.in_sync and other != node and self._may_join(state, serving, member):
                sets.append(frozenset(m for m in known.in_sync if m.node != other) | {member})
        targets = [known._replace(in_sync=in_sync, revision=known.revision + 1) for in_sync in sets]
        if serving.commit == len(copy.log) and known.epoch < self.bounds.epochs:
            heirs = known.in_sync - {me}
            targets += [known._replace(epoch=known.epoch + 1, primary=m, revision=known.revision + 1) for m in heirs]
        for target in targets:
            asking = copy._replace(serving=serving._replace(target=target))
            asked = state.asked | {target} if target.revision > state.key.revision else state.asked
            yield f"n{node} asks for {_told(target)}", state.put(node, asking)._replace(asked=asked)

    def _may_join(self, state: State, serving: Serving, member: Member) -> bool:
        epoch = serving.known.epoch
        if self.without == "11 gap":
            return True
        has = self.matched(state, epoch, member)
        return self._has_said(state, epoch, member) and has >= max(serving.commit, serving.start)

    # -- strong reads

    def _answer(self, state: State, node: int, serving: Serving) -> Steps:
        """A strong read comes, is confirmed by those that are waited for, and is answered (13)."""
        epoch, read = serving.known.epoch, state.read
        if read is None:
            if state.reads < self.bounds.reads:
                asked = Read(node, epoch, state.acked, frozenset())
                yield f"n{node} is asked for a strong read", state._replace(read=asked, reads=state.reads + 1)
            return
        if (read.node, read.epoch) != (node, epoch):
            return
        lacking = self.waiting(serving) - {state.member(node)} - read.confirmed
        for member in lacking:
            copy = state.copies[member.node]
            if copy.disk == member.disk and copy.follows == copy.promised == epoch:
                confirmed = read._replace(confirmed=read.confirmed | {member})
                yield f"n{member.node} confirms epoch {epoch}", state._replace(read=confirmed)
        if (not lacking or self.without == "13 no confirmation") and serving.commit >= serving.start:
            shown = frozenset(enumerate(state.copies[node].log[: serving.commit]))
            wrong = None if read.floor <= shown else f"n{node} answers a strong read without what was acknowledged"
            yield f"n{node} answers a strong read", state._replace(read=None, wrong=wrong)

    # -- promises

    def violation(self, state: State) -> str | None:
        return state.wrong or self._few(state) or self._lost(state) or self._twice(state)

    def _few(self, state: State) -> str | None:
        few = len(state.key.in_sync) < self.bounds.min_in_sync
        return f"too few are in sync: {_told(state.key)}" if few else None

    def _lost(self, state: State) -> str | None:
        """Whoever is in sync, and so may be promoted, has durably all that was acknowledged."""
        for member in state.key.in_sync:
            copy = state.copies[member.node]
            if copy.disk == member.disk and not state.acked <= frozenset(enumerate(copy.synced)):
                return f"n{member.node} is in sync and lacks what was acknowledged"
        return None

    def _twice(self, state: State) -> str | None:
        there: dict[tuple[int, int], int] = {}
        logs = chain((log for _, log in state.sent), chain.from_iterable((c.log, c.synced) for c in state.copies))
        for log in logs:
            for seq, entry in enumerate(log):
                if there.setdefault((entry.epoch, seq), entry.value) != entry.value:
                    return f"two operations are at epoch {entry.epoch}, seq {seq + 1}"
        return None


def _sends(state: State, epoch: int, log: Log) -> State:
    """A primary streams its log; what it sent before is a part of it, or stays beside it."""
    others = frozenset((e, sent) for e, sent in state.sent if e != epoch or log[: len(sent)] != sent)
    return state._replace(sent=others | {(epoch, log)})


def _smaller(in_sync: frozenset[Member], kept: set[Member], least: int) -> Iterator[frozenset[Member]]:
    """The set without some of its members, but at least `least` of them."""
    for number in range(1, len(in_sync) - least + 1):
        for some in combinations(sorted(in_sync - kept), number):
            yield in_sync - set(some)


def _told(key: Key) -> str:
    return f"epoch {key.epoch}, primary {_name(key.primary)}, in sync {'+'.join(map(_name, sorted(key.in_sync)))}"


def _name(member: Member) -> str:
    return f"n{member.node}" + "'" * member.disk
