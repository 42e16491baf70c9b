"""One data node from start to end: what it is made of, and the loops that keep it a member of its cluster.

It answers HTTP from the first moment, so that probes and people can ask why it is not ready; it becomes a member when
etcd is there, and goes on serving what it serves when etcd goes away.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

import veccluster_node
from veccluster.decisions import publishing
from veccluster.decisions.health import Verdict, judge
from veccluster.decisions.replication.atomic import Batch, Decision
from veccluster.decisions.shard_map import is_complete
from veccluster.errors import (
    InvalidSpec,
    LeaseLost,
    MetadataRefused,
    MetadataUnavailable,
    OutcomeUnknown,
    Unavailable,
    VecClusterError,
)
from veccluster.model.cluster import ClusterState
from veccluster.model.state import Load, Node, NodeId, NodeState, Revision, ShardId
from veccluster_etcd import Election, EtcdClient, Lease, NotAdmitted, Term, reason_of
from veccluster_node.cluster.failure_detector import Watch
from veccluster_node.cluster.integrity import Integrity
from veccluster_node.cluster.leader import campaign_and_lead
from veccluster_node.cluster.lost_quorum import LostQuorum
from veccluster_node.cluster.settling import Settling
from veccluster_node.coordinator.coordinator import Coordinator
from veccluster_node.metadata.keys import Keys
from veccluster_node.metadata.last_seen import LastSeen
from veccluster_node.metadata.store import Store
from veccluster_node.node import zone as zones
from veccluster_node.node.replication import Replication
from veccluster_node.node.settings import NodeSettings, storage_settings
from veccluster_node.peer import messages as m
from veccluster_node.peer.answers import Answer, Answers
from veccluster_node.peer.client import Peers
from veccluster_node.peer.proofs import Secret
from veccluster_node.peer.remote import RemoteShards
from veccluster_node.runtime.config import NodeConfig
from veccluster_node.runtime.identity import Identity, WrongDirectory
from veccluster_node.service.shard_service import Report, ShardService
from veccluster_node.shards.checks import Checks
from veccluster_node.shards.host import ShardHost
from veccluster_node.shards.inbox import Inbox
from veccluster_node.shards.local import LocalShards, Patience
from veccluster_node.shards.reconciler import Reconciler
from veccluster_node.shards.status import Status

HEARTBEAT = 2.0
"""Seconds after which a node's sign of life is looked at even if nothing changed."""
LOOK_PAUSE = 4
"""A node looks at how it fares, then waits for so many times the processor time that this took: for a fifth at most."""
PAUSE_BETWEEN_TRIES = 1.0

SECRET_EVERY = 10.0
"""Seconds between two looks at what nodes prove themselves with, unless somebody could not.

A node at rest asks etcd for nothing else, so this is also how it hears that it is not let in any more."""
VERSION_EVERY = 60.0
"""Seconds between looks at the version of etcd, which somebody may upgrade or mix."""

NEWS_TIMEOUT = 2.0
"""Seconds within which every node should have heard from etcd that a collection was created or deleted."""

log = structlog.get_logger(__name__)


class _Batches:
    """A collection's batches over several shards."""

    def __init__(self, store: Store, uuid: str) -> None:
        self._store = store
        self._uuid = uuid

    def forgotten(self) -> Revision:
        return self._store.batches(self._uuid).forgotten

    async def decide(self, decision: Decision, forgotten: Revision) -> Decision | Revision:
        return await self._store.decide(self._uuid, decision, forgotten)


class DataNode:
    """A node and its state; `run` lives as long as the node does."""

    def __init__(
        self,
        config: NodeConfig,
        settings: NodeSettings,
        identity: Identity,
        host: ShardHost,
        replication: Replication,
    ) -> None:
        self.id = NodeId(config.id)
        self.host = host
        self.store: Store | None = None
        self.boot = uuid.uuid4().hex
        self.draining = False
        self._leaving = False
        self.etcd_version: str | None = None
        """The oldest among etcd's members; None when they do not say."""
        self._config = config
        self._times = config.cluster_spec().failover
        self.settings = settings
        self._identity = identity
        self._reconciler: Reconciler | None = None
        self._replication = replication
        self.inbox = Inbox(host)
        self.status = Status(host, full_at=storage_settings(config.cluster_spec()).full_at)
        checks = Checks(host)
        replication.host, replication.inbox = host, self.inbox
        host.metadata_is_fresh = lambda: not self._metadata_away()
        self._zone = config.zone
        self._lease: Lease | None = None
        self._lease_lost_at: float | None = None
        self._watch: Watch | None = None
        self._unsettled: dict[ShardId, str] = {}
        """Shards whose records etcd may have from before later changes, and why they stay so; known to the leader."""
        self._not_admitted = ""
        """Why etcd, which is there, does not let this node in; empty when it does, or is not there."""
        self._refusal: VecClusterError | None = None
        """What etcd said when it did not let this node in, until that is acted on."""
        self.secret = Secret()
        self.peers = Peers(self.id, self.answer, lambda: self.state.nodes, self.secret)
        patience = Patience(write=settings.write_timeout, read=settings.query_timeout, fresh=settings.lease_ttl)
        self._shards = LocalShards(
            host,
            patience,
            metadata_is_fresh=lambda: not self._metadata_away(),
            report=self._report,
            primary_heard=replication.beats.primary_heard,
        )
        self._integrity = Integrity(self.id, host, checks, self.peers, config.integrity)
        self.lost_quorum = LostQuorum(
            identity,
            host,
            self.peers,
            state=lambda: self.state,
            store=self.metadata_for_changes,
            watch=lambda: self._watch,
        )
        self.coordinator = Coordinator(
            self.id,
            lambda: self.state,
            lambda holds, timeout: self.metadata().wait_until(holds, timeout=timeout),
            self.peers,
            self._shards_of,
            batches=self._batches,
            read_timeout=settings.query_timeout,
            write_timeout=settings.write_timeout,
        )
        others: dict[type[m.Request[Any]], Answer] = {
            m.AwaitCollection: self._heard_of,
            m.Ping: self._pong,
            m.GetCopy: self.lost_quorum.answer,
            m.GetDecisions: self._decisions,
            m.GetDigests: checks.digests_of,
            m.BeginAnew: checks.begin_anew,
        }
        self._answers = Answers(self._shards, config.cluster_spec().tuning.limits(), others)

    def _shards_of(self, node: NodeId, timeout: float) -> ShardService:
        return self._shards if node == self.id else RemoteShards(self.peers, node, timeout)

    @property
    def state(self) -> ClusterState:
        """The newest state of the cluster that this node knows; empty before it has reached etcd."""
        return self.store.state if self.store else ClusterState()

    def metadata(self) -> Store:
        """The store, for what needs it; `MetadataUnavailable` before etcd was reached."""
        if self.store is None or not self.state.revision:
            endpoints = ", ".join(self._config.etcd.endpoints)
            raise MetadataUnavailable(f"node {self.id} has not reached etcd at {endpoints} yet")
        return self.store

    def metadata_for_changes(self) -> Store:
        """The store, for a change of the metadata; `MetadataUnavailable` at once while etcd is known to be away."""
        if away := self._metadata_away():
            why = f" ({self._not_admitted})" if self._not_admitted else ""
            raise MetadataUnavailable(f"etcd has been unreachable for {away:.0f} s{why}; try again when it is back")
        return self.metadata()

    def _batches(self, uuid: str) -> "_Batches":
        """What etcd knows of a collection's batches over several shards; as for changes, while etcd is away.

        `Unavailable` as long as a node of an older version is there, which could not read them in a shard's log.
        """
        store = self.metadata_for_changes()
        if older := sorted(n.id for n in self.state.nodes.values() if not n.takes_batches):
            raise Unavailable(f"batches over several shards need a newer version on node {', '.join(older)}")
        return _Batches(store, uuid)

    def why_not_ready(self) -> str | None:
        """What the node still waits for; None when it can answer, be it by asking others.

        Shards that it cannot serve yet do not matter to clients, who may ask any node for any shard: see `opening`.
        """
        if self.draining:
            return "the node is stopping"
        if self.store is None or self._reconciler is None or not self.state.revision:
            why = self._not_admitted or (self.store.refused if self.store else "")
            return f"waiting for etcd at {', '.join(self._config.etcd.endpoints)}{why and ': ' + why}"
        if self.id not in self.state.nodes:
            return "registering as a member of the cluster"
        return None

    def why_not_complete(self) -> str | None:
        """The stricter question, of who is about to restart another node: does this one serve all that it should?"""
        if (why := self.why_not_ready()) or self._reconciler is None:
            return why
        if self._reconciler.settled:
            return None
        return f"opening shards: {', '.join(self.opening()) or 'about to start'}"

    def opening(self) -> list[str]:
        """The shards that it should serve and does not yet, as collection/number."""
        state, shards = self.state, self._reconciler.recovering() if self._reconciler else []
        return [f"{c.name if (c := state.collection_of(i)) else i.collection}/{i.number}" for i in shards]

    def verdict(self, answering: Mapping[NodeId, bool], opening: Mapping[NodeId, Sequence[str]]) -> Verdict:
        """The health of the cluster as this node sees it; `answering` says who gave an answer just now, and `opening`
        which shards each of those is opening: what etcd has of that is up to a second old.
        """
        away, state = self._metadata_away(), self.state
        fresh = {
            n: msgspec.structs.replace(load, recovering=tuple(opening[n]))
            for n, load in state.alive.items()
            if n in opening
        }
        state = msgspec.structs.replace(state, alive={**state.alive, **fresh})
        return judge(state, answering=answering, metadata_away=away, not_admitted=self._not_admitted)

    def _metadata_away(self) -> float:
        """Seconds since etcd was lost; 0 while the lease is held. More than 0 from the first moment."""
        if self._lease_lost_at is None and self._lease is not None and self._lease.remaining() <= 0:
            self._lease_lost_at = time.monotonic() - 0.001
        return 0.0 if self._lease_lost_at is None else time.monotonic() - self._lease_lost_at

    async def answer(self, request: m.AnyRequest) -> m.Reply:
        """The answer to what another node asks, or this one itself."""
        return await self._answers.to(request)

    def _report(self, collection: str | None) -> Report:
        return Report(self.status.reports(collection), self.opening())

    async def _pong(self, _: m.Ping) -> m.Pong:
        return m.Pong(self.boot)

    async def _decisions(self, _: m.GetDecisions) -> m.Decisions:
        """What was decided of batches, as far as this node knows, be it that etcd has forgotten it."""
        store = self.metadata()
        made: dict[str, dict[Batch, m.Decision]] = {}
        for known in (store.forgotten, store.all_batches):
            for collection, found in known.items():
                made.setdefault(collection, {}).update({d.batch: _told_of(d) for d in found.decisions})
        return m.Decisions(self.state.history.id, {c: list(found.values()) for c, found in made.items()})

    async def _heard_of(self, request: m.AwaitCollection) -> m.Known:
        def heard(state: ClusterState) -> bool:
            collection = state.collections.get(request.name)
            if collection is None or collection.uuid != request.uuid:
                return request.gone
            return not request.gone and is_complete(state, collection)

        return m.Known(await self.metadata().wait_until(heard, timeout=NEWS_TIMEOUT))

    # Life

    async def run(self, address: str, peer_address: str) -> None:
        """Be a member until cancelled. The addresses are those under which the others reach this node."""
        me = Node(
            id=self.id,
            address=address,
            peer_address=peer_address,
            zone=self._zone,
            incarnation=self._identity.incarnation,
            incarnations=self._identity.overrides(),
            version=veccluster_node.VERSION,
            takes_batches=True,
            proves_itself=True,
        )
        if self._config.zone_file:
            self._zone = await asyncio.to_thread(zones.read, Path(self._config.zone_file)) or self._zone
        async with self._connected() as client:
            last_seen = LastSeen(Path(self._config.data_dir) / "etcd.json")
            store = Store(client, Keys(self._config.namespace, self._config.cluster), last_seen)
            self._reconciler = Reconciler(self._identity, store, self.host, self.inbox, self.status)
            self.store = self._replication.store = store
            self._watch = watch = Watch(self.id, store, self.peers, self._times)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(store.follow())
                await store.known()
                tasks.create_task(watch.follow())
                tasks.create_task(self._follow_secret(store))
                if self._config.zone_file:
                    tasks.create_task(self._follow_zone(store, Path(self._config.zone_file)))
                tasks.create_task(self._be_member(store, client, me, watch))
                tasks.create_task(self._reconciler.run())
                tasks.create_task(self.host.follow_disk())
                tasks.create_task(self._integrity.run())
                tasks.create_task(self._follow_etcd_version(client))

    async def close(self) -> None:
        """End what is under way and close the shards."""
        if self._reconciler:
            await self._reconciler.close()
        await self.peers.close()
        await self.host.close()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[EtcdClient]:
        """A client of etcd, however long it takes until one is there and lets us in; the files are read at each try."""
        while True:
            client = EtcdClient(self._config.etcd.client())
            try:
                await client.connect()
                break
            except (MetadataUnavailable, MetadataRefused, InvalidSpec) as error:
                self._note_admission(error)
                log.warning("etcd_not_reached", endpoints=self._config.etcd.endpoints, reason=error.detail)
                await asyncio.sleep(PAUSE_BETWEEN_TRIES)
        self._not_admitted = ""
        try:
            yield client
        finally:
            await client.close()

    def _note_admission(self, error: VecClusterError) -> None:
        """Keep what a person can put right. Of a lost lease it is not known why."""
        if isinstance(error, InvalidSpec):
            self._not_admitted = reason_of(error)
        elif not isinstance(error, LeaseLost):
            self._not_admitted = error.detail if isinstance(error, NotAdmitted | MetadataRefused) else ""

    async def _follow_zone(self, store: Store, path: Path) -> None:
        async for zone in zones.follow(path):
            if zone != self._zone:
                log.info("zone_changed", zone=zone, before=self._zone)
                self._zone = zone
                store.wake()

    def without_proof(self) -> list[NodeId]:
        """The nodes that are there and cannot prove to others who they are, since they are of an older version."""
        state = self.state
        return [n.id for n in state.nodes.values() if not n.proves_itself and n.id in state.alive]

    async def _follow_secret(self, store: Store) -> None:
        """Know what nodes prove themselves with; if etcd has lost it, it is what it was."""
        loop, doubted = asyncio.get_running_loop(), asyncio.Event()

        def doubt() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(doubted.set)

        self.secret.doubt = doubt
        while True:
            try:
                self.secret.learn(await store.secret(self.secret.known))
            except (MetadataUnavailable, MetadataRefused, OutcomeUnknown) as error:
                log.warning("secret_not_read", reason=error.detail)
                if isinstance(error, NotAdmitted | MetadataRefused):
                    self._refusal = error
                    store.wake()
            await asyncio.sleep(PAUSE_BETWEEN_TRIES)
            with suppress(TimeoutError):
                async with asyncio.timeout(SECRET_EVERY if self.secret.known else PAUSE_BETWEEN_TRIES):
                    await doubted.wait()
            doubted.clear()

    async def _follow_etcd_version(self, client: EtcdClient) -> None:
        while True:
            known = [said for said in await client.status() if said.version]
            self.etcd_version = min(known, key=lambda said: said.version_number).version if known else None
            await asyncio.sleep(VERSION_EVERY)

    async def _be_member(self, store: Store, client: EtcdClient, me: Node, watch: Watch) -> None:
        """Register, and hold a lease with the node's sign of life; again from the start whenever the lease is lost.

        A lease that is lost is revoked only when the next one carries the sign of life. Our clock gives it up before
        etcd does, which counts anew after it was without a leader: nobody is to see this node gone in between.
        """
        leases: list[Lease] = []
        try:
            while True:
                try:
                    await self._refuse_a_second_self(store, me)
                    self._lease = await store.grant(self.settings.lease_ttl)
                    leases.append(self._lease)
                    me = await self._register(store, me)
                    await self._publish(store, leases, me, self._campaign(store, client, self._lease, watch))
                except (LeaseLost, MetadataUnavailable, MetadataRefused, OutcomeUnknown) as error:
                    self._lease_lost_at = self._lease_lost_at or time.monotonic()
                    self._note_admission(error)
                    log.warning("membership_interrupted", reason=error.detail)
                    await asyncio.sleep(PAUSE_BETWEEN_TRIES)
        finally:
            await asyncio.gather(*(lease.end() for lease in leases))

    async def _register(self, store: Store, me: Node) -> Node:
        me = self._as_it_is(me)
        await store.register(me)
        return me

    def _as_it_is(self, me: Node) -> Node:
        """The registration with what has changed since."""
        state = NodeState.draining if self._leaving else NodeState.active
        overrides = self._identity.overrides()
        return msgspec.structs.replace(me, zone=self._zone, incarnations=overrides, state=state)

    async def _campaign(self, store: Store, client: EtcdClient, lease: Lease, watch: Watch) -> None:
        election = Election(client, store.keys.leader, lease, self.id.encode())
        shown, measures = self.coordinator.frontiers, self.host.measures

        def settling(term: Term) -> Coroutine[None, None, None]:
            return Settling(store, term, self.lost_quorum, self._unsettled).run()

        await campaign_and_lead(store, election, lease, watch, shown, self._config.replace_after, measures, settling)

    async def _publish(
        self, store: Store, leases: list[Lease], me: Node, campaigning: Coroutine[None, None, None]
    ) -> None:
        """Say how the node fares whenever that changes, and stand for election meanwhile, until the lease is lost.

        The last of the leases is the one in use; the others are let go as soon as they hold nothing that counts.
        """
        lease = leases[-1]
        campaign = asyncio.create_task(campaigning)
        try:
            published: Load | None = None
            written = 0.0
            times_back = store.times_back
            async for _ in store.changes(at_least_every=HEARTBEAT):
                lease.check()
                if refusal := self._refusal:
                    self._refusal = None
                    raise refusal
                if store.times_back != times_back:
                    raise LeaseLost("etcd went back to an older state: what it knew of this node is void")
                if me != self._as_it_is(me) or store.lacks_node(self.id):
                    me = await self._register(store, me)
                began = time.thread_time()
                load = self._load()
                took = time.thread_time() - began
                told = None if store.lacks_life(self.id) else published
                if (pause := publishing.pause(load, told, time.monotonic() - written)) is not None:
                    if pause:
                        await asyncio.sleep(pause)
                        load = self._load()
                    await store.publish(load, lease)
                    published, written = load, time.monotonic()
                self._lease_lost_at = None
                self._not_admitted = ""
                while len(leases) > 1:
                    await leases.pop(0).end()
                await asyncio.sleep(LOOK_PAUSE * took)  # there may be thousands of shards, and changes at every moment
        finally:
            campaign.cancel()
            await asyncio.gather(campaign, return_exceptions=True)

    async def hand_over(self) -> None:
        """Let other nodes become primary of this one's shards before it stops, as far as any can, for a moment."""
        if self.store is None or self._metadata_away() or not self._led(self.state):
            return
        self._leaving = True
        self.store.wake()
        if not await self.store.wait_until(self._leads_nothing, timeout=self._times.timeout):
            log.warning("not_handed_over", shards=[str(i) for i in self._led(self.state)])

    def _leads_nothing(self, state: ClusterState) -> bool:
        return not self._led(state)

    def _led(self, state: ClusterState) -> list[ShardId]:
        """Shards whose primary is here although another node could be."""
        staying = {n.id for n in state.live_nodes() if n.state is NodeState.active} - {self.id}
        return sorted(
            s.id
            for s in map(state.shards.__getitem__, state.shards_on(self.id))
            if s.primary == self._identity.member(s.id) and any(m.node in staying for m in s.in_sync)
        )

    async def _refuse_a_second_self(self, store: Store, me: Node) -> None:
        """Two processes with one id would each take the other for itself; the second one must not start.

        One that died still seems alive until its lease ends, and its successor may have a new disk: that is waited for.
        """
        if await self._second_self(store, me):
            log.info("waiting_for_the_lease_of_another_with_this_id", node=me.id)
            await store.wait_until(lambda state: me.id not in state.alive, timeout=2 * self.settings.lease_ttl)
        if other := await self._second_self(store, me):
            raise WrongDirectory(
                f"a node {me.id} with another data directory is alive at {other.address}: "
                "stop it, or give this node another id"
            )

    async def _second_self(self, store: Store, me: Node) -> Node | None:
        registered, alive = await store.read_node(me.id)
        is_other = registered and alive and registered.incarnation != me.incarnation and alive.boot != self.boot
        return registered if is_other else None

    def _unsettled_issues(self) -> list[str]:
        return [
            f"shard {shard}: etcd went back to an older state, and who has all of it is not known yet: {why}. Start "
            "the nodes that are down; where they are gone for good, see `veccluster shards recover`"
            for shard, why in sorted(self._unsettled.items())
        ]

    def _load(self) -> Load:
        assert self._reconciler is not None
        disk = shutil.disk_usage(self._config.data_dir)
        return Load(
            id=self.id,
            boot=self.boot,
            disk_used=disk.used,
            disk_total=disk.total,
            memory_used=self.host.memory.held(),
            issues=(*self._reconciler.issues(), *self._integrity.issues(), *self._unsettled_issues()),
            serving=tuple(map(str, self.status.serving())),
            read_only=tuple(self.status.read_only()),
            recovering=tuple(map(str, self._reconciler.recovering())),
            room=self.host.room(),
            broken=tuple(map(str, self._reconciler.broken())),
            cut_off=tuple(map(str, self.status.cut_off())),
        )


def _told_of(decision: Decision) -> m.Decision:
    operation, attempt = decision.batch
    return m.Decision(
        operation=operation,
        attempt=attempt,
        verdict=decision.verdict,
        prepared=dict(decision.prepared),
        revision=decision.revision,
    )
