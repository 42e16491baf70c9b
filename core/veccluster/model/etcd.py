"""What an etcd cluster is made of, as its administrators see it: members, their ids, alarms."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

MemberId = NewType("MemberId", int)
"""Which member of which cluster: given once, and never again after the member was removed. Shown in hexadecimal."""
EtcdId = NewType("EtcdId", int)
"""Which etcd cluster."""


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """A member as the cluster has it on its list, whether it runs or not."""

    id: MemberId
    name: str
    """Empty when it was added and has not started yet."""
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    """Empty when it has not started yet."""
    is_learner: bool = False

    @property
    def has_started(self) -> bool:
        """Whether it was ever there: a member says at its start where clients reach it."""
        return bool(self.client_urls)

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} ({self.id:x})"


@dataclass(frozen=True, slots=True)
class Membership:
    """The members of one cluster at some time."""

    cluster: EtcdId
    members: tuple[EtcdMember, ...]

    def at(self, peer_url: str) -> EtcdMember | None:
        """The member that its peers reach at `peer_url`."""
        return next((m for m in self.members if peer_url in m.peer_urls), None)

    def has(self, member: MemberId) -> bool:
        """Whether the member is on the list."""
        return any(m.id == member for m in self.members)


class AlarmKind(StrEnum):
    """What etcd raises an alarm for."""

    no_space = "NOSPACE"
    """The quota of the database is used up: etcd refuses writes until somebody makes room and disarms the alarm."""
    corrupt = "CORRUPT"
    """The member's data differ from the others'."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that stays until it is disarmed."""

    member: MemberId
    kind: AlarmKind
