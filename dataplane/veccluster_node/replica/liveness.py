"""Who has been heard of late: which members a primary takes for silent, and how far each is.

A member is silent when it has said nothing for `silence` seconds, or its process is known to have ended. What this
process overslept itself counts for nobody.
"""

from collections.abc import Mapping

from veccluster.decisions.replication import events as on
from veccluster.decisions.replication.messages import ToPrimary
from veccluster.decisions.replication.replica import Replica as Rules
from veccluster.decisions.replication.values import Member
from veccluster.model.state import NodeId
from veccluster_node.replica.ports import Clock, Progress, Transport


class Liveness:
    """Attributes are for reading."""

    def __init__(self, rules: Rules, transport: Transport, clock: Clock, silence: float) -> None:
        self.silent: frozenset[Member] = frozenset()
        """Members that the primary waits for and has not heard for too long."""
        self.primary_heard = clock.now()
        """When this replica last heard its primary."""
        self._rules = rules
        self._transport = transport
        self._clock = clock
        self._silence = silence
        self._heard: dict[Member, float] = {}
        self._complete: dict[Member, float] = {}
        """When each other member last had the whole log."""
        self._ticked = clock.now()

    def heard(self, event: on.Received) -> None:
        """A message came."""
        now, sender, configuration = self._clock.now(), self._rules.hears(event), self._rules.configuration
        if sender and isinstance(event.message, ToPrimary):
            self._heard[sender] = now
        elif sender and configuration and sender == configuration.primary:
            self.primary_heard = now

    def begin(self) -> None:
        """It has become primary: nobody has been silent yet."""
        self._heard, self.silent = {}, frozenset()

    def resume(self, nodes: Mapping[NodeId, float]) -> None:
        """It has rested; when the nodes of others last said that those are as they were."""
        self._ticked = self._clock.now()
        for member in self._awaited():
            if (at := nodes.get(member.node)) is not None:
                self._heard[member] = max(at, self._heard.get(member, at))

    def tick(self) -> frozenset[Member]:
        """Who is silent now."""
        now = self._clock.now()
        if now - self._ticked > self._silence / 2:  # it was this process that stood still
            self._heard = dict.fromkeys(self._heard, now)
        self._ticked = now
        self.silent = frozenset(m for m in self._awaited() if self._is_silent(m, now))
        return self.silent

    def _is_silent(self, member: Member, now: float) -> bool:
        since = self._heard.setdefault(member, now)
        return now - since > self._silence or self._transport.has_ended(member)

    def _awaited(self) -> frozenset[Member]:
        primary = self._rules.primary
        return primary.waiting - {self._rules.me} if primary else frozenset()

    def progress(self) -> tuple[Progress, ...]:
        """How far the other members are, as their primary knows."""
        primary = self._rules.primary
        if primary is None:
            return ()
        now, last = self._clock.now(), self._rules.journal.last
        others = sorted((primary.waiting | primary.configuration.learners) - {self._rules.me})
        lag = {m: last - primary.matched(m) for m in others}
        self._complete = {m: now if not lag[m] else self._complete.get(m, now) for m in others}
        return tuple(Progress(m, lag[m], now - self._complete[m], now - self._heard.get(m, now)) for m in others)
