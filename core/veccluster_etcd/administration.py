"""What only those who run etcd ask of it: who its members are, which alarms are raised, the upkeep of each member."""

from typing import Any, Final

from grpc import aio

from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable
from veccluster.model.etcd import Alarm, MemberId, Membership
from veccluster_etcd import wire
from veccluster_etcd.connection import Connection, describe
from veccluster_etcd.members import Member, Metadata, NotConnected
from veccluster_etcd.verdicts import Verdict, judge

_DEFRAGMENTATION: Final = 60.0
"""Seconds that a member may take; it answers nothing else meanwhile."""


class Administration:
    """A client's way to administer etcd; `timeout` and the errors are as in `EtcdClient`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def members(self, *, timeout: float | None = None) -> Membership:
        """Who is on the list, as a majority has it: not what a member that is cut off remembers."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            return await member.cluster.MemberList(wire.member_list_request(), metadata=metadata, timeout=left)

        return wire.membership(await self._connection.call(attempt, repeatable=True, timeout=timeout))

    async def add_member(self, peer_url: str, *, timeout: float | None = None) -> tuple[MemberId, Membership]:
        """Put a member on the list: its new id, and the list. It counts for the majority from then on.

        etcd does not do it while a member is down or has been connected for less than five seconds, and refuses it
        ("member not found") in the second in which a member with this URL was removed: it makes ids from URL and time.
        """

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            return await member.cluster.MemberAdd(wire.member_add_request(peer_url), metadata=metadata, timeout=left)

        reply = await self._connection.call(attempt, repeatable=False, timeout=timeout)
        return MemberId(reply.member.ID), wire.membership(reply)

    async def remove_member(self, member_id: MemberId, *, timeout: float | None = None) -> None:
        """Take a member off the list for good; as good when it is not there. Refused where a majority would be lost."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> None:
            await member.cluster.MemberRemove(wire.member_remove_request(member_id), metadata=metadata, timeout=left)

        try:
            await self._connection.call(attempt, repeatable=True, timeout=timeout)
        except MetadataRefused as e:
            if "member not found" not in e.detail:
                raise

    async def alarms(self, *, timeout: float | None = None) -> tuple[Alarm, ...]:
        """The alarms that are raised, of kinds known here."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> Any:
            return await member.maintenance.Alarm(wire.alarms_request(), metadata=metadata, timeout=left)

        return wire.alarms(await self._connection.call(attempt, repeatable=True, timeout=timeout))

    async def disarm(self, alarm: Alarm, *, timeout: float | None = None) -> None:
        """Take an alarm back once its cause is gone; etcd raises it again where it is not."""

        async def attempt(member: Member, metadata: Metadata, left: float) -> None:
            await member.maintenance.Alarm(wire.disarm_request(alarm), metadata=metadata, timeout=left)

        await self._connection.call(attempt, repeatable=True, timeout=timeout)

    async def defragment(self, endpoint: str, *, timeout: float = _DEFRAGMENTATION) -> None:
        """Give the free space in one member's database back to its disk. It stands still meanwhile: one at a time.

        `endpoint` is one of the configuration's, as host:port. Doing it twice is as good as once.
        """
        member = next((m for m in self._connection.members if m.address == endpoint), None)
        if member is None:
            raise InvalidSpec.field("endpoint", f"{endpoint!r} is not one of this client's endpoints")
        try:
            await member.connected(self._connection.config.connect_timeout)
            metadata = self._connection.metadata(await self._connection.token(), require_leader=False)
            await member.maintenance.Defragment(wire.defragment_request(), metadata=metadata, timeout=timeout)
        except NotConnected as e:
            raise MetadataUnavailable(str(e)) from None
        except aio.AioRpcError as e:
            refused = judge(e.code().name, e.details() or "") is Verdict.refused
            error = MetadataRefused if refused else MetadataUnavailable
            raise error(f"{endpoint} did not defragment its database: {describe(e)}") from None
