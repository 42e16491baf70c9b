"""Look after what this node's disk holds: read it all now and then, and compare the copies of what it is primary of.

Both are slow on purpose. What a look at the disk finds, the replica mends by itself or the node begins it anew
(`replica/scrub.py`); who is wrong when copies differ is decided in decisions/integrity.py.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from veccluster.decisions import integrity
from veccluster.decisions.integrity import BeginAnew, Difference, Notes, Scrubbed, ScrubFirst
from veccluster.decisions.replication.values import Configuration
from veccluster.errors import VecClusterError
from veccluster.model.state import Incarnation, Member, NodeId, Seq, ShardId
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import Peers
from veccluster_node.runtime.config import IntegrityConfig
from veccluster_node.shards.checks import Checks
from veccluster_node.shards.host import ShardHost

ANSWER_TIMEOUT = 10.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Suspicion:
    """A shard whose copies differ, as its primary knows it."""

    member: Member
    """The one that differs."""
    seq: int
    scrubbed: Scrubbed = Scrubbed.not_yet
    begun_anew: bool = False


class Integrity:
    """The two loops of one node, and what they found that is not good again yet."""

    def __init__(self, me: NodeId, host: ShardHost, checks: Checks, peers: Peers, config: IntegrityConfig) -> None:
        self._me = me
        self._host = host
        self._checks = checks
        self._peers = peers
        self._config = config
        self._suspicions: dict[ShardId, _Suspicion] = {}
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="scrub")

    async def run(self) -> None:
        """Go on for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._every(self._config.scrub_every, self._scrub_all))
                tasks.create_task(self._every(self._config.compare_every, self.compare))
        finally:
            self._looking.shutdown(wait=False, cancel_futures=True)

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await action()
            except Exception:  # a defect here must not end the node, nor the care for its other shards
                log.exception("integrity_check_failed")

    def issues(self) -> list[str]:
        """Which copies differ, until they are good again."""
        return [_sentence(shard, one) for shard, one in sorted(self._suspicions.items())]

    # Reading the disk

    async def _scrub_all(self) -> None:
        for shard in self._host.local():
            await self._scrub(shard, rows_only=False)

    async def _scrub(self, shard: ShardId, *, rows_only: bool) -> bool:
        """Read one replica's files; whether nothing bad was found."""
        rate = self._config.scrub_rate
        look = partial(self._checks.scrub, shard, rate, rows_only=rows_only)
        executor = None if rows_only else self._looking  # one at a time, unless somebody waits for it
        try:
            found = await asyncio.get_running_loop().run_in_executor(executor, look)
        except (VecClusterError, OSError) as error:
            log.info("scrub_ended", shard=str(shard), reason=str(error))
            return False
        return found == {}

    # Comparing

    async def compare(self) -> None:
        """Compare the copies of every shard that this node serves."""
        served = self._checks.served()
        self._forget({shard: c for shard, (c, _) in served.items()})
        asked: dict[NodeId, list[ShardId]] = defaultdict(list)
        for shard, (configuration, _) in served.items():
            for member in configuration.in_sync - {configuration.primary}:
                asked[member.node].append(shard)
        answers = await asyncio.gather(*(self._ask(node, shards) for node, shards in asked.items()))
        notes: dict[ShardId, dict[Member, Notes]] = defaultdict(dict)
        for node, answer in zip(asked, answers, strict=True):
            for told in answer:
                those = {Seq(seq): digest for seq, digest in told.notes.items()}
                notes[told.shard][Member(node, Incarnation(told.incarnation))] = those
        for shard, others in notes.items():
            try:
                await self._judge(shard, served[shard][0], others)
            except VecClusterError as error:
                log.info("comparison_ended", shard=str(shard), reason=error.detail)

    async def _ask(self, node: NodeId, shards: list[ShardId]) -> list[m.ShardDigests]:
        try:
            return (await self._peers.call(node, m.GetDigests(shards=shards), timeout=ANSWER_TIMEOUT)).shards
        except VecClusterError as error:
            log.debug("digests_not_told", node=node, reason=error.detail)
            return []

    async def _judge(self, shard: ShardId, configuration: Configuration, others: Mapping[Member, Notes]) -> None:
        mine = await self._checks.digests(shard)
        known = self._suspicions.get(shard)
        judged = integrity.judge(configuration, mine, others, known.scrubbed if known else Scrubbed.not_yet)
        if not judged.differences:
            if known and not known.begun_anew:
                del self._suspicions[shard]  # it mended itself
            return
        if known is None or known.begun_anew:
            known = self._suspect(shard, judged.differences[0])
        if isinstance(judged.step, ScrubFirst):
            if await self._scrub(shard, rows_only=True):
                known.scrubbed = Scrubbed.clean
                await self._judge(shard, configuration, others)
        elif isinstance(judged.step, BeginAnew):
            known.member, known.seq = judged.step.member, judged.step.seq
            await self._begin_anew(shard, known)

    def _suspect(self, shard: ShardId, difference: Difference) -> _Suspicion:
        log.error("replica_differs", shard=str(shard), node=difference.member.node, seq=difference.seq)
        self._host.measures.found.labels("replica").inc()
        found = self._suspicions[shard] = _Suspicion(difference.member, difference.seq)
        return found

    async def _begin_anew(self, shard: ShardId, known: _Suspicion) -> None:
        member = known.member
        request = m.BeginAnew(
            shard=shard, incarnation=member.incarnation, why=f"its rows are not those of other copies as of {known.seq}"
        )
        known.begun_anew = (await self._peers.call(member.node, request, timeout=ANSWER_TIMEOUT)).known
        log.warning("replica_begins_anew", shard=str(shard), node=member.node, seq=known.seq)

    def _forget(self, served: Mapping[ShardId, Configuration]) -> None:
        """Forget what another node has to judge by now, and what is in sync again as another member."""
        for shard, known in list(self._suspicions.items()):
            configuration = served.get(shard)
            if configuration is None:
                del self._suspicions[shard]
            elif known.begun_anew and known.member not in configuration.in_sync:
                nodes = {member.node for member in configuration.in_sync}
                if known.member.node in nodes or len(nodes) >= configuration.replicas:
                    log.info("replica_is_good_again", shard=str(shard), node=known.member.node)
                    del self._suspicions[shard]


def _sentence(shard: ShardId, known: _Suspicion) -> str:
    doing = "it is fetched again from the others" if known.begun_anew else "it is being found out which is wrong"
    return f"shard {shard}: the copy on node {known.member.node} differs from others as of seq {known.seq}; {doing}"
