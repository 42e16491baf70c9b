"""Every rule taken away in turn, to show that the simulation would notice. The product reaches nothing of this."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulation.run import Rules
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication import failover
from veccluster.decisions.replication.follower import Follower
from veccluster.decisions.replication.journal import Journal
from veccluster.decisions.replication.messages import Accepted, FromPrimary, Header
from veccluster.decisions.replication.primary import Primary
from veccluster.decisions.replication.replica import Replica
from veccluster.decisions.replication.values import Configuration, Member, Position, Record
from veccluster.model.state import Epoch, NodeId, Seq, ShardId, WriteConsistency
from veccluster_node.replica.beats import Differing, NodeBeats
from veccluster_node.replica.liveness import Liveness
from veccluster_node.replica.loop import ReplicaLoop
from veccluster_node.replica.mailbox import Mailbox
from veccluster_node.replica.read_barrier import ReadBarrier
from veccluster_node.replica.ready import Ready
from veccluster_node.replica.writes import Writes


@dataclass(frozen=True)
class Mutation:
    """A rule removed: its number in docs/replication.md, and what is done instead."""

    rule: str
    instead: str
    rules: Rules


MUTATIONS: dict[str, Mutation] = {}

Weather = dict[str, object]
STALE: Weather = {"replicas": 3, "nodes": 3, "min_in_sync": 2, "clients": 5, "keys": 1, "writes": 0.4, "loss": 0}
STALE |= {"isolations": 30, "faults_every": 1.5}
"""Primaries are cut off, while clients still reach them."""
SLOW_DISKS: Weather = {"slowness": 60, "clients": 5, "writes": 0.9, "faults_every": 0.15, "isolations": 1}
"""A crash finds much that no sync has covered."""
LATE_ETCD: Weather = {"etcd_lateness": 0.6, "isolations": 5, "faults_every": 0.15}
"""etcd carries changes out long after their time is over."""
FORGETFUL: Weather = {"runs": 1, "trims": 0, "replicas": 4, "nodes": 6, "min_in_sync": 1, "moves": True, "wipes": False}
FORGETFUL |= {"faults_every": 0.1, "isolations": 1, "tells_ends": True, "loss": 0, "lateness": 0, "etcd_away": False}
FORGETFUL |= {"writes": 0.9, "clients": 8, "haste": 100.0}
"""Epochs are many, and what was before the last of them is forgotten."""
APART: Weather = FORGETFUL | {"replicas": 3, "nodes": 5, "clients": 4, "haste": 30.0, "loss": 0.05}
APART |= {"faults_every": 0.15, "isolations": 10}
"""Who was cut off comes back with what nobody else has, and the others have forgotten that they never had it."""
LEARNERS: Weather = {"moves": True, "trims": 0.2, "replicas": 3, "nodes": 5, "min_in_sync": 1, "writes": 0.4}
"""Many replicas learn."""


REST: Weather = {"clients": 1, "haste": 3.0, "writes": 0.9, "replicas": 3, "nodes": 3, "forgeries": 0.001}
"""There is little to do, so that a shard comes to rest in the middle of faults."""

_PARTS: dict[str, type] = {
    "ready_type": Ready,
    "writes_type": Writes,
    "reads_type": ReadBarrier,
    "liveness_type": Liveness,
    "mailbox_type": Mailbox,
}
"""What a loop is made of."""


def removes(rule: str, instead: str, **weather: object) -> Callable[[type], type]:
    """Register a changed Primary, Follower or Replica, or a part of the loop, under its name; `weather` is where its
    absence shows best.
    """

    def register(changed: type) -> type:
        if part := next((name for name, kind in _PARTS.items() if issubclass(changed, kind)), None):
            loop = type(changed.__name__, (ReplicaLoop,), {part: changed})
            MUTATIONS[changed.__name__] = Mutation(rule, instead, Rules(loop=loop, weather=weather))
            return changed
        if issubclass(changed, NodeBeats):
            MUTATIONS[changed.__name__] = Mutation(rule, instead, Rules(beats=changed, weather=weather))
            return changed
        if issubclass(changed, ReplicaLoop):
            MUTATIONS[changed.__name__] = Mutation(rule, instead, Rules(loop=changed, weather=weather))
            return changed
        replica = type(changed.__name__, (Replica,), {})
        if issubclass(changed, Primary):
            replica.primary_type = changed  # type: ignore[attr-defined]
        elif issubclass(changed, Journal):
            replica.journal_type = changed  # type: ignore[attr-defined]
        elif issubclass(changed, Follower):
            replica.follower_type = changed  # type: ignore[attr-defined]
        else:
            replica = changed
        MUTATIONS[changed.__name__] = Mutation(rule, instead, Rules(replica=replica, weather=weather))
        return changed

    return register


# -- 2: acknowledging


@removes("2", "a follower answers before its disk has it")
class AckBeforeSync(Follower):
    def _matched(self) -> Seq:
        return self.journal.last


@removes("2", "the primary counts its own log before its disk has it")
class PrimaryAcksBeforeSync(Primary):
    def matched(self, member: Member) -> Seq:
        return self.journal.last if member == self.me else super().matched(member)


@removes("2", "any min_in_sync members are enough")
class AnyCopies(Primary):
    def _durable_everywhere(self) -> Seq:
        matched = sorted(map(self.matched, self.waiting), reverse=True)
        return matched[min(len(matched), self.configuration.min_in_sync) - 1]


@removes("2", "the number of members in sync when the write is acknowledged does not matter")
class FewCopies(Primary):
    def _is_enough(self, asked: object) -> bool:
        return True


# -- 3: changing the in-sync set


@removes("3", "it stops waiting for a member before etcd says so")
class ShrinkFirst(Primary):
    @property
    def waiting(self) -> frozenset[Member]:
        return self._target.in_sync if self._target else self.configuration.in_sync


@removes("3", "it waits for a new member only when etcd says so")
class ExpandLate(Primary):
    @property
    def waiting(self) -> frozenset[Member]:
        return self.configuration.in_sync


@removes("3", "a change whose outcome is unknown counts as not made", **LATE_ETCD)
class ForgetUnknown(Primary):
    def answered(self, answer: on.Answered) -> Iterator[do.Effect]:
        if answer.outcome is on.Outcome.unknown:
            self._target = None
        yield from super().answered(answer)


@removes("3", "it counts members that may not be in sync by etcd")
class CountAll(Primary):
    @property
    def counted(self) -> frozenset[Member]:
        return self.waiting


# -- 4: slowness


@removes("4", "silent members leave however few are left")
class ShrinkToOne(Primary):
    def _may_shrink_to(self, size: int) -> bool:
        return size >= 1


# -- 5: epochs


@removes("5", "a follower takes what a primary of an epoch that is over sends")
class NoFence(Follower):
    def _is_over(self, epoch: Epoch, known: Configuration) -> bool:
        return False

    def _accept(self) -> Iterator[do.Effect]:
        if self._primary and self._compared <= self.journal.durable_epoch:
            yield from [do.Send(self._primary, _accepted(self))]


def _accepted(follower: Follower) -> Accepted:
    return Accepted(follower._compared, follower.me, follower._matched(), follower._confirm)


@removes("5", "a follower answers in an epoch that its disk does not have yet")
class PromiseBeforeSync(Follower):
    def _accept(self) -> Iterator[do.Effect]:
        if self._primary and self._compared == self.journal.epoch:
            yield from [do.Send(self._primary, _accepted(self))]


@removes("5", "a primary that hears of a later epoch goes on")
class Stubborn(Replica):
    @staticmethod
    def _ends(primary: Primary, epoch: Epoch) -> bool:
        return False


# -- 6, 9: who may be promoted


def _promote_anyone(shards: failover.Shards, nodes: dict, **options: Any) -> Iterator[failover.Action]:
    for action in failover.decide(shards, nodes, **options):
        now = shards[action.shard]
        able = [m for m in sorted(now.in_sync | now.learners) if failover._serves(m, action.shard, nodes)]
        if isinstance(action, failover.Promote | failover.Unavailable) and able:
            target = replace(now, primary=able[-1], epoch=Epoch(now.epoch + 1), in_sync=now.in_sync | {able[-1]})
            yield failover.Promote(action.shard, target, now.revision)
        else:
            yield action


MUTATIONS["PromoteAnyone"] = Mutation("6", "any replica may be promoted", Rules(decide=_promote_anyone))


class _AnyDisk(Replica):
    def _is_mine(self, now: Configuration) -> bool:
        return now.primary.node == self.me.node

    def _serve(self, now: Configuration) -> Iterator[do.Effect]:
        yield from super()._serve(replace(now, in_sync=now.in_sync - {now.primary} | {self.me}, primary=self.me))


MUTATIONS["AnyDisk"] = Mutation("6", "a node serves with another disk than the one on record", Rules(replica=_AnyDisk))
MUTATIONS["OldName"] = Mutation("9", "a wiped or damaged disk keeps its incarnation", Rules(keeps_incarnation=True))


MUTATIONS["BlindLeader"] = Mutation(
    "3, 6", "the leader's changes do not compare the revision they are based on", Rules(leader_compares=False)
)


# -- 7: restarts


@removes("7", "a primary that restarts resumes its epoch")
class ResumeEpoch(Replica):
    def _take_up(self) -> Iterator[do.Effect]:
        now = self.configuration
        if now and self.primary is None and not self.broken and self._is_mine(now) and now.epoch == self.journal.epoch:
            yield from self._serve(now)
        else:
            yield from super()._take_up()


@removes("7", "a primary serves before its disk has the epoch", **SLOW_DISKS)
class ServeBeforeStored(Replica):
    def _is_stored(self, epoch: Epoch) -> bool:
        return True


# -- 8: logs that differ


@removes("8", "a follower cuts its log at the commit point that it remembers")
class CutAtWatermark(Follower):
    def _agreed(self, header: Header) -> Seq:
        return min(self.commit, self.journal.last)


@removes("8", "a follower does not cut what differs")
class NoCut(Follower):
    def _agreed(self, header: Header) -> Seq:
        return self.journal.last


@removes("8", "a lineage begins at what is not committed yet", **FORGETFUL)
class ForgetsTooMuch(Journal):
    def forget(self) -> None:
        self.lineage = self.lineage.since(self.last)


@removes("8", "a follower whose log ends before the primary's lineage begins takes it for the same", **APART)
class TrustsWhatIsForgotten(Follower):
    def _reaches_floor(self, seq: Seq) -> bool:
        return True


@removes("8", "who has too little to be compared is sent records instead of a snapshot", **FORGETFUL)
class RecordsForEveryone(Primary):
    def _least(self) -> Seq:
        return Seq(self.journal.first - 1)


# -- 10: the commit point


@removes("10", "a follower applies what it has, committed or not")
class ApplyAll(Follower):
    def received(self, message: FromPrimary, known: Configuration) -> Iterator[do.Effect]:
        yield from super().received(message, known)
        yield from self.journal.apply(self.journal.last)


@removes("10", "the primary applies what its own disk has")
class PrimaryAppliesAll(Primary):
    def synced(self) -> Iterator[do.Effect]:
        yield from self.journal.apply(self.journal.last)
        yield from super().synced()


# -- 11: joining


@removes("11", "a learner is called in sync before it has everything")
class JoinWithGap(Primary):
    def _has_everything(self, member: Member) -> bool:
        return self._of(member).heard


# -- 12: moving


def _leave_first(shards: failover.Shards, nodes: dict, **options: Any) -> Iterator[failover.Action]:
    placed = options.get("placed") or {}
    for shard, now in shards.items():
        left = frozenset(m for m in now.in_sync if m == now.primary or m.node in placed.get(shard, (m.node,)))
        if left != now.in_sync:
            yield failover.Dismiss(shard, replace(now, in_sync=left), now.revision)
            return
    yield from failover.decide(shards, nodes, **options)


MUTATIONS["LeaveFirst"] = Mutation(
    "12", "a replica leaves before another has taken its place", Rules(decide=_leave_first)
)


@removes("12", "a successor is made primary although it is not in sync", moves=True)
class HandOverToAnyone(Primary):
    def _hand_over(self) -> Iterator[do.Effect]:
        now = self.configuration
        heirs = sorted(now.learners)
        if now.successor and heirs and not self._target:
            in_sync = now.in_sync | {heirs[0]}
            yield from self._propose(replace(now, epoch=Epoch(now.epoch + 1), primary=heirs[0], in_sync=in_sync))


# -- 13: reading


@removes("13", "a strong read does not ask the others whether the epoch holds", **STALE)
class TrustEpoch(Primary):
    def _is_confirmed(self, number: int) -> bool:
        return True


@removes("13", "a confirmation that was given before the read came counts for it", **STALE)
class OldConfirmation(Primary):
    def read(self, read: on.Read) -> Iterator[do.Effect]:
        yield from super().read(read)
        self._reads = [replace(r, round=r.round - 1) for r in self._reads]
        yield from self._serve_reads()


@removes("13", "a new primary answers strong reads before earlier epochs' writes are committed in its own")
class ReadTooEarly(Primary):
    def _is_caught_up(self) -> bool:
        return True


@removes("13", "a replica answers a session that has seen more than it has applied")
class ForgetSession(Replica):
    def _shows(self, at_least: Seq) -> bool:
        return True


MUTATIONS["AskLearners"] = Mutation("13", "quorum reads ask learners", Rules(quorum_asks_anyone=True, weather=LEARNERS))


# -- 14: operation ids


@removes("14", "a retry is another operation")
class NoOperationIds(Primary):
    def _find(self, write: on.Write) -> Seq | None:
        return None


# -- what does not show

HIDDEN: dict[str, str] = {
    "ReadTooEarly": "whoever confirms a new epoch says in the same message how far its log reaches, and that is at "
    "least what was ever acknowledged, so that the commit point is there too; the rule spares that argument",
    "ServeBeforeStored": "a loop syncs all that it has written at once, so that the sync which makes its first "
    "acknowledged write durable makes the epoch durable, too",
    "RestsInFlight": "whoever lacks an operation lacks the token, too, so that a primary which rests early is woken by "
    "the next heartbeat; the rule spares that, and what is asked of etcd is asked for again only by ticks",
    "DeposedLeader": "its changes compare the shard's revision as well, so that without a term it can only do what it "
    "could have done in time; the rule is for changes that are no function of a single key",
}
"""Rules that are kept although no run without them fails, and why."""

MUTATIONS["DeposedLeader"] = Mutation("etcd", "a leader acts on a term it has lost", Rules(leader_is_fenced=False))


# -- 16: whom to believe

LIES: Weather = {"forgeries": 30.0}


@removes("16", "whoever it comes from, a message is from whom it names", **LIES)
class AnySource(Replica):
    def _is_from(self, member: Member, source: NodeId) -> bool:
        return True


@removes("16", "an epoch need not have begun by etcd to be followed", **LIES)
class MadeUpEpoch(Replica):
    def _has_begun(self, epoch: Epoch, now: Configuration) -> bool:
        return True


@removes("16", "any member may say that it is primary", **LIES)
class AnyPrimary(Follower):
    def _is_primary(self, header: Header, known: Configuration) -> bool:
        return True


@removes("16", "an epoch that is over by etcd is followed by whoever has not promised itself to the next", **LIES)
class OverByEtcd(Follower):
    def _is_over(self, epoch: Epoch, known: Configuration) -> bool:
        return epoch < self.journal.epoch

    def _is_primary(self, header: Header, known: Configuration) -> bool:
        return header.epoch < known.epoch or super()._is_primary(header, known)


@removes("16", "who is no member may say that there is a later epoch", **LIES)
class AnyRejection(Replica):
    def _may_reject(self, member: Member) -> bool:
        return True


@removes("9", "answers of another disk of the same node count")
class AnyDiskAnswers(Primary):
    def accepted(self, message: Accepted) -> Iterator[do.Effect]:
        same = [m for m in self._others() if m.node == message.sender.node]
        yield from super().accepted(replace(message, sender=same[0]) if same else message)


DEAD: Weather = {"dead": True, "nodes": 3, "replicas": 3, "min_in_sync": 2, "moves": False, "wipes": False}
DEAD |= {"levels": (WriteConsistency.quorum,)}
"""A node is not there any more when all other faults are over."""
LEARNING: Weather = {"moves": True, "trims": 0.4, "replicas": 3, "nodes": 5, "min_in_sync": 1, "wipes": True}
"""Many replicas begin with a snapshot."""

FAILING_ROWS: Weather = {"failing_rows": 0.02, "writes": 0.5, "loss": 0}
"""What is committed cannot be applied now and then."""

# -- the loop: the order of a turn, wake-ups, time-outs


@removes("loop", "leave to read is given also where applying has failed", **FAILING_ROWS)
class ServesUnapplied(Ready):
    def _shows(self, position: Position) -> bool:
        return True


@removes("loop", "what was written counts as durable before it is synced")
class NoSync(ReplicaLoop):
    def _is_sync_due(self) -> bool:
        while self._ready.ticket is not None:
            self._synced()
        return False


@removes("loop", "records are written only after the sync that was asked for them")
class AppendAfterSync(Ready):
    def _store(self, effect: do.DiskEffect) -> Iterator[on.Event]:
        late = getattr(self, "_late", [])
        if isinstance(effect, do.Append):
            self._late = [*late, effect]
            return
        yield from super()._store(effect)

    def _apply(self, through: Seq) -> Iterator[on.Event]:
        for effect in getattr(self, "_late", []):
            yield from super()._store(effect)
        self._late = []
        yield from super()._apply(through)


@removes("loop", "what is written is applied before it is committed")
class ApplyAtOnce(Ready):
    def _append(self, records: Sequence[Record]) -> Iterator[on.Event]:
        yield from super()._append(records)
        yield from self._apply(records[-1].last)


@removes("loop", "reads and writes are answered before what they show is applied")
class AnswerFirst(Ready):
    def _apply(self, through: Seq) -> Iterator[on.Event]:
        self._waiting = through
        yield from ()

    def carry_out(self, effect: do.Effect) -> Iterator[on.Event]:
        if isinstance(effect, do.Send | do.SendRecords) and (through := getattr(self, "_waiting", None)):
            self._waiting = None
            yield from super()._apply(through)
        yield from super().carry_out(effect)


@removes("loop", "after a failed sync it goes on as if nothing had been")
class Undaunted(Ready):
    def fail(self, error: Exception, cause: BaseException | None = None) -> Iterator[on.Event]:
        yield from ()


@removes("loop", "it goes on although a snapshot waits to take its place", **LEARNING)
class GoesOnStaged(ReplicaLoop):
    def tell(self, event: on.Event) -> None:
        staged, self.health.staged = self.health.staged, False
        super().tell(event)
        self.health.staged |= staged


@removes("loop", "what comes during a turn does not wake the loop")
class LostWakeup(Mailbox):  # type: ignore[type-arg]
    def rest(self) -> bool:
        super().rest()
        self._is_scheduled = False
        return False


@removes("loop", "what has its answer counts as waiting for ever")
class NeverReleases(Mailbox):  # type: ignore[type-arg]
    def release(self, size: int) -> None:
        pass


@removes("loop", "a read whose time is over waits on", haste=100.0, clients=8, slowness=30)
class WaitsForEver(ReadBarrier):
    def expire(self) -> None:
        pass


@removes("loop", "members that are silent are never noticed", **DEAD)
class HearsEverybody(Liveness):
    def tick(self) -> frozenset[Member]:
        super().tick()
        self.silent = frozenset()
        return self.silent


@removes("loop", "a write that is refused is not answered", writes=0.9)
class NoRefusals(Writes):
    def refuse(self, op_id: str, why: object) -> None:
        pass


# -- rest: node heartbeats stand for those of shards


@removes("rest", "a follower that is not as its primary takes it for wakes nobody", **REST)
class DifferenceWakesNobody(NodeBeats):
    def _answered(self, node: NodeId, beat: Differing) -> set[ShardId]:
        super()._answered(node, beat)
        return set()


@removes("rest", "a node that is silent wakes nobody", **REST)
class SilenceWakesNobody(NodeBeats):
    def _of_silent(self, has_ended: Callable[[NodeId], bool]) -> set[ShardId]:
        super()._of_silent(has_ended)
        return set()


@removes("rest", "who rests does not count as heard", **REST, min_in_sync=1)
class HeardByNobody(NodeBeats):
    def resume(self, shard: ShardId) -> dict[NodeId, float]:
        super().resume(shard)
        return {}


@removes("rest", "a primary rests while something is on its way", **REST)
class RestsInFlight(Primary):
    @property
    def is_complete(self) -> bool:
        return True


@removes("rest", "what happens wakes nobody who rests", **REST)
class SleepsOn(ReplicaLoop):
    def _wake(self) -> None:
        pass


@removes("rest", "a primary never rests", **REST)
class NeverRests(ReplicaLoop):
    def _comes_to_rest(self) -> bool:
        return False
