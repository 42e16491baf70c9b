"""The model beside the simulation: what the product's state machines do must be steps that the model allows.

The model has its own account of every node, made from nothing but the events and effects of its replica and from what a
crash left on its disk. `Deviation` says which effect was not allowed: either the code breaks a rule, or the model or
the document does not know one.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from model.replication import NOBODY, Bounds, Copy, Entry, Key, Log, Member, Replication, Serving, State
from simulation.disk import Image
from simulation.node import Node
from simulation.run import STORM, Rules, Simulation
from veccluster.decisions.replication import effects as do
from veccluster.decisions.replication import events as on
from veccluster.decisions.replication import values
from veccluster.decisions.replication.messages import Accepted, FromPrimary
from veccluster.decisions.replication.replica import Replica
from veccluster.model.state import Seq

ANY = sys.maxsize


class Deviation(BaseException):
    """The code did what the model does not allow. Not an `Exception`: the loop survives those."""


class Beside:
    """Watches a simulation from its beginning; `steps` counts what it has compared."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        rules = rules or Rules()
        self.steps = 0
        self._values: dict[tuple[str, int], int] = {}
        self._entries: dict[tuple[int, int], Entry] = {}
        self._origins: dict[int, Log] = {}
        """What each epoch's log began with."""
        self._committed: Log = ()
        self._state: State | None = None
        self.simulation = Simulation(seed, replace(rules, replica=_watched(rules.replica, self._handled)))
        self._nodes: list[Node] = list(self.simulation.nodes.values())
        weather = self.simulation.world.weather
        self._model = Replication(
            Bounds(len(self._nodes), weather.replicas, weather.min_in_sync, ANY, ANY, ANY, ANY, ANY)
        )
        first = self._key(self.simulation.key)
        self._state = State((first,), tuple(self._found(n) for n in self._nodes), frozenset())
        self.simulation.etcd.watchers.insert(0, self._changed)
        for node in self._nodes:
            self._watch(node)

    @property
    def state(self) -> State:
        assert self._state
        return self._state

    def run(self) -> None:
        """Run all of it; `Deviation` where the code leaves the model."""
        self.simulation.run_until(STORM)
        self.simulation.finish()

    # -- what the simulation's words mean here

    def _index(self, member: values.Member) -> int:
        return list(self.simulation.nodes).index(member.node)

    def _member(self, member: values.Member) -> Member:
        return Member(self._index(member), int(member.incarnation.rpartition("/")[2]))

    def _key(self, now: values.Configuration) -> Key:
        return Key(now.epoch, self._member(now.primary), frozenset(map(self._member, now.in_sync)), now.revision)

    def _written(self, records: Sequence[values.Record]) -> Log:
        return tuple(self._entry(r, number) for r in records for number in range(r.count))

    def _entry(self, record: values.Record, number: int) -> Entry:
        value = self._values.setdefault((record.op_id, number), len(self._values) + 1)
        return self._entries.setdefault((record.epoch, record.first + number), Entry(record.epoch, value))

    def _log(self, lineage: values.Lineage, last: int) -> Log:
        """What a lineage stands for; of what is before its floor nobody else knows any more who wrote it (8)."""
        before: Log = ()
        if floor := min(lineage.floor, last):
            before = self._origins[epoch := lineage.epoch_at(lineage.floor)][: floor - 1]
            before += tuple(self._entries[epoch, seq] for seq in range(len(before) + 1, floor))
        seqs = range(len(before) + 1, last + 1)
        return (*before, *(self._entries[lineage.epoch_at(Seq(seq)), seq] for seq in seqs))

    def _on_disk(self, image: Image) -> Log:
        return self._log(image.lineage(), image.last)

    def _found(self, node: Node) -> Copy:
        """What is there when a node is opened: that is the disk's to say, and no rule's."""
        image = node.disk.now
        log = self._on_disk(image)
        return Copy(node.number, log, log, image.epoch, image.epoch, NOBODY, min(node.applied, len(log)))

    def _put(self, node: int, copy: Copy) -> None:
        self._state = self.state.put(node, copy)

    def _take(self, state: State | None, what: object) -> None:
        """Go on from what the model says comes of it."""
        if state is None:
            raise Deviation(f"not a step of the model: {what}, in {self.state.key}")
        self.steps += 1
        self._state = state
        if broken := self._model.violation(state):
            raise Deviation(f"{broken}, after {what}")

    # -- events

    def _watch(self, node: Node) -> None:
        """Look again at a disk of which something happened that no replica is told."""

        def then_look(happens: Callable[..., None]) -> Callable[..., None]:
            def happen(**how: bool) -> None:
                happens(**how)
                self._put(self._nodes.index(node), self._found(node))

            return happen

        for name in ("start", "crash", "lose"):
            setattr(node, name, then_look(getattr(node, name)))

    def _changed(self, now: values.Configuration) -> None:
        """Etcd has another key: one that was asked for, a step of the leader, or the same for this model."""
        key, before = self._key(now), self.state.key
        if key._replace(revision=before.revision) == before:
            self._take(self._model.changed(self.state, key), now)
            return
        steps = (then for _, then in self._model.etcd(self.state) if then.key == key)
        self._take(next(steps, None), now)

    def _handled(self, replica: Replica, event: on.Event, effects: list[do.Effect]) -> None:
        if self._state is None:
            return
        node = self._index(replica.me)
        self._refresh(node)
        if isinstance(event, on.Received) and isinstance(event.message, FromPrimary) and not replica.primary:
            self._followed(node, event.message, effects)
            effects = [e for e in effects if not isinstance(e, do.DiskEffect)]
        elif isinstance(event, on.Seen | on.Answered):
            self._saw(node, replica)
        for effect in effects:
            self._did(node, replica, effect)
        if replica.primary and (serving := self.state.copies[node].serving):
            self._agree(replica, serving)

    def _refresh(self, node: int) -> None:
        """What is durable by now is the disk's to say."""
        copy, durable = self.state.copies[node], self._nodes[node].disk.durable
        self._put(node, copy._replace(synced=self._on_disk(durable), vowed=durable.epoch))

    def _saw(self, node: int, replica: Replica) -> None:
        serving = self.state.copies[node].serving
        if replica.primary and serving and replica.primary.configuration.revision > serving.known.revision:
            key = next(k for k in self.state.keys if k.revision == replica.primary.configuration.revision)
            self._take(self._model.sees(self.state, node, key), key)

    def _followed(self, node: int, message: FromPrimary, effects: list[do.Effect]) -> None:
        """Its log becomes what the model makes of some of what the primary has sent."""
        before, log = self.state.copies[node], self.state.copies[node].log
        if not any(isinstance(e, do.DiskEffect) or _is_accepted(e) for e in effects):
            return  # refused, or for another disk
        for effect in effects:
            match effect:
                case do.Append(records):
                    log += self._written(records)
                case do.Truncate(after):
                    log = log[:after]
                case do.InstallSnapshot(through, lineage):
                    log = self._log(lineage, through)
        epoch = message.header.epoch
        if len(log) < message.header.lineage.floor:
            then = self._model.too_short(self.state, node, epoch, len(log))
            self._take(then if then and then.copies[node].log == log else None, effects)
            return
        for sent in [s for e, s in self.state.sent if e == epoch]:
            for entries in range(len(log) + 1):
                then = self._model.taken(self.state, node, epoch, sent, entries)
                if then and then.copies[node].log == log:
                    self._take(then, effects)
                    return
        raise Deviation(f"n{node} makes {len(before.log)} entries {len(log)} by {message.header}: {effects}")

    def _did(self, node: int, replica: Replica, effect: do.Effect) -> None:
        match effect:
            case do.Append(records):
                self._wrote(node, self._written(records))
            case do.Send(_, Accepted() as said):
                self._said(node, said)
            case do.BecomePrimary(epoch):
                self._began(node, replica, epoch)
            case do.BecomeFenced():
                self._put(node, self.state.copies[node]._replace(serving=None))
            case do.Swap(target, expected):
                self._asked(node, self._key(target)._replace(revision=expected + 1))
            case do.Apply(through):
                self._applied(node, through)
            case do.Acknowledge(op_id, position):
                write = self.simulation.checks.writes[op_id]
                self._acknowledged(node, position.seq, self.simulation.key.copies_for(write.level))

    # -- effects

    def _wrote(self, node: int, entries: Log) -> None:
        then: State | None = self.state
        for entry in entries:
            then = self._model.written(then, node, entry.value) if then else None
            if then and then.copies[node].log[-1] != entry:
                then = None
        self._take(then, f"n{node} writes {entries}")

    def _said(self, node: int, said: Accepted) -> None:
        copy, member = self.state.copies[node], self._member(said.sender)
        if not said.matched and not copy.follows:
            self._take(self._model.promises(self.state, node, said.epoch), said)
            return
        sound = said.epoch == copy.follows == copy.promised <= copy.vowed
        if not sound or copy.log[: said.matched] != copy.synced[: said.matched] or said.matched > len(copy.synced):
            raise Deviation(f"n{node} says {said}, with {len(copy.synced)} synced and {copy.vowed} promised: {copy}")
        self._take(self._model.says(self.state, node, copy, max(said.matched, self._matched(said.epoch, member))), said)

    def _matched(self, epoch: int, member: Member) -> int:
        return self._model.matched(self.state, epoch, member)

    def _began(self, node: int, replica: Replica, epoch: int) -> None:
        assert replica.primary
        copy = self.state.copies[node]
        self._origins.setdefault(epoch, copy.log)
        revision, commit = replica.primary.configuration.revision, replica.primary.commit
        for _, then in self._model.begin(self.state, node, copy) if copy.vowed >= epoch else ():
            serving = then.copies[node].serving
            if serving and (serving.known.epoch, serving.known.revision) == (epoch, revision):
                then = then.put(node, then.copies[node]._replace(serving=serving._replace(commit=commit)))
                self._take(then, f"n{node} serves epoch {epoch}")
                return
        raise Deviation(f"n{node} serves epoch {epoch} at revision {revision}: {copy}")

    def _asked(self, node: int, target: Key) -> None:
        copy = self.state.copies[node]
        if copy.serving is None:
            if target.revision == self.state.key.revision + 1 and target not in self.state.asked:
                again = (s for _, s in self._model.begin(self.state, node, copy) if target in s.asked)
                self._take(next(again, None), f"n{node} asks for {target}")
        elif copy.serving.target != target:
            asking = (s for _, s in self._model.change(self.state, node, copy, copy.serving))
            fitting = (s for s in asking if (c := s.copies[node].serving) and c.target == target)
            self._take(next(fitting, None), f"n{node} asks for {target}")

    def _applied(self, node: int, through: int) -> None:
        """A primary commits what all that it waits for have; others apply what some primary has committed (10)."""
        copy = self.state.copies[node]
        if copy.serving:
            durable = self._model.durable(self.state, node, copy, copy.serving)
            if through > max(durable, copy.serving.commit):
                raise Deviation(f"n{node} commits {through}, and {durable} is durable where it has to be")
            copy = copy._replace(serving=copy.serving._replace(commit=max(through, copy.serving.commit)))
            self._committed = max(self._committed, copy.log[:through], key=len)
        if copy.log[:through] != self._committed[:through]:
            raise Deviation(f"n{node} applies {through} of {len(copy.log)}, which is not what was committed")
        self._take(self.state.put(node, copy._replace(applied=through)), f"n{node} applies {through}")

    def _acknowledged(self, node: int, seq: int, copies: int) -> None:
        copy = self.state.copies[node]
        then = self._model.acknowledged(self.state, node, copy, seq, copies)
        self._take(then, f"n{node} acknowledges {seq} to one that asks for {copies} copies: {copy.serving}")

    def _agree(self, replica: Replica, serving: Serving) -> None:
        assert replica.primary
        code = frozenset(map(self._member, replica.primary.waiting))
        if code != self._model.waiting(serving):
            raise Deviation(f"{replica.me} waits for {code}, the model for {self._model.waiting(serving)}")


def _watched(replica: type[Replica], handled: Callable[[Replica, on.Event, list[do.Effect]], None]) -> type[Replica]:
    def handle(self: Replica, event: on.Event) -> list[do.Effect]:
        effects = replica.handle(self, event)
        handled(self, event, effects)
        return effects

    return type("Watched", (replica,), {"handle": handle})


def _is_accepted(effect: do.Effect) -> bool:
    return isinstance(effect, do.Send) and isinstance(effect.message, Accepted)
