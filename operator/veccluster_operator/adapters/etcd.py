"""The etcd that the operator manages for a cluster: how its members are, and their upkeep.

An etcd that a cluster was given (`metadata.endpoints`) is not ours to look into: its password is in a Secret that the
operator has no right to read.
"""

import asyncio
from collections.abc import Sequence

from veccluster.model.etcd import AlarmKind
from veccluster.model.spec import VecCluster
from veccluster_etcd import EtcdClient, EtcdConfig
from veccluster_operator.build import etcd_endpoints, etcd_hosts
from veccluster_operator.decide.observed import Member, Observed

TIMEOUT = 2.0


class Etcd:
    """Clients of the managed etcds, kept open by cluster."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, ...], EtcdClient] = {}

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(c.close() for c in self._clients.values()))

    async def members(self, cluster: VecCluster, observed: Observed) -> Sequence[Member] | None:
        """Each member as it sees itself; None where there is no managed etcd, or none yet."""
        names = etcd_hosts(cluster)
        if not names or not observed.pods_of("etcd"):
            return None
        client = self._client(cluster)
        return [
            Member(
                name,
                error=said.error,
                version=said.version,
                db_size=said.db_size,
                db_size_in_use=said.db_size_in_use,
                has_leader=said.leader_id != 0,
                is_leader=said.is_leader,
                alarms=said.alarms,
            )
            for name, said in zip(names, await client.status(), strict=True)
        ]

    async def defragment(self, cluster: VecCluster, member: str) -> None:
        """Have a member give back what it does not use; it answers nothing else meanwhile."""
        (address,) = (e for e in etcd_endpoints(cluster) if etcd_hosts(cluster)[member] in e)
        await self._client(cluster).administration.defragment(address.split("://", 1)[-1])

    async def disarm(self, cluster: VecCluster) -> None:
        """Lift the alarm that there is no space."""
        administration = self._client(cluster).administration
        for alarm in await administration.alarms():
            if alarm.kind is AlarmKind.no_space:
                await administration.disarm(alarm)

    def _client(self, cluster: VecCluster) -> EtcdClient:
        endpoints = tuple(etcd_endpoints(cluster))
        if endpoints not in self._clients:
            client = EtcdClient(EtcdConfig(endpoints=endpoints, timeout=TIMEOUT))
            client.open()
            self._clients[endpoints] = client
        return self._clients[endpoints]
