"""Our values to etcd's protobuf messages and back; with `members.py` and `keepalive.py` the only place that
touches the generated stubs.

The stubs carry no types: `Any` comes in and goes out here and nowhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aetcd.rpc import kv_pb2, rpc_pb2

from veccluster.model.etcd import Alarm, AlarmKind, EtcdId, EtcdMember, MemberId, Membership
from veccluster.model.state import Revision
from veccluster_etcd.values import (
    Compare,
    CreateRevision,
    Delete,
    Deleted,
    DeletePrefix,
    EndpointStatus,
    Event,
    Found,
    Get,
    GetPrefix,
    KeyValue,
    LeaseId,
    ModRevision,
    Operation,
    OperationResult,
    Put,
    PutDone,
    Txn,
    TxnResult,
    Value,
    Version,
)

_RESULTS = {
    "==": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    "<": rpc_pb2.Compare.LESS,
    ">": rpc_pb2.Compare.GREATER,
}


def to_bytes(key: str) -> bytes:
    """A key as etcd stores it."""
    return key.encode("utf-8", "surrogateescape")


def to_key(raw: bytes) -> str:
    """A key as we show it; the inverse of `to_bytes`."""
    return raw.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys in [start, end); an empty `end` means `start` alone."""

    start: bytes
    end: bytes = b""

    @classmethod
    def key(cls, key: str) -> Self:
        """One key."""
        return cls(to_bytes(key))

    @classmethod
    def prefix(cls, prefix: str) -> Self:
        """All keys that start with `prefix`; all keys there are when it is empty."""
        start = to_bytes(prefix)
        stem = start.rstrip(b"\xff")
        if not start:
            return cls(b"\x00", b"\x00")
        return cls(start, stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\x00")

    def after(self, key: str) -> "KeyRange":
        """What remains of the range beyond `key`."""
        return KeyRange(to_bytes(key) + b"\x00", self.end)


def range_request(keys: KeyRange, limit: int = 0, revision: int = 0) -> Any:
    """A linearizable read, of the newest revision when `revision` is 0."""
    return rpc_pb2.RangeRequest(key=keys.start, range_end=keys.end, limit=limit, revision=revision)


def put_request(put: Put) -> Any:
    """A write of one key."""
    return rpc_pb2.PutRequest(key=to_bytes(put.key), value=put.value, lease=put.lease)


def delete_request(keys: KeyRange) -> Any:
    """A deletion of a range."""
    return rpc_pb2.DeleteRangeRequest(key=keys.start, range_end=keys.end)


def txn_request(compares: Iterable[Compare], success: Iterable[Operation], failure: Iterable[Operation]) -> Any:
    """A transaction."""
    return rpc_pb2.TxnRequest(
        compare=[_compare(c) for c in compares],
        success=[_operation(o) for o in success],
        failure=[_operation(o) for o in failure],
    )


def _compare(compare: Compare) -> Any:
    common: dict[str, Any] = {"key": to_bytes(compare.key), "result": _RESULTS[compare.operator]}
    match compare:
        case ModRevision():
            return rpc_pb2.Compare(**common, target=rpc_pb2.Compare.MOD, mod_revision=compare.revision)
        case CreateRevision():
            return rpc_pb2.Compare(**common, target=rpc_pb2.Compare.CREATE, create_revision=compare.revision)
        case Version():
            return rpc_pb2.Compare(**common, target=rpc_pb2.Compare.VERSION, version=compare.version)
        case Value():
            return rpc_pb2.Compare(**common, target=rpc_pb2.Compare.VALUE, value=compare.value)


def _operation(operation: Operation) -> Any:
    match operation:
        case Put():
            return rpc_pb2.RequestOp(request_put=put_request(operation))
        case Delete():
            return rpc_pb2.RequestOp(request_delete_range=delete_request(KeyRange.key(operation.key)))
        case DeletePrefix():
            return rpc_pb2.RequestOp(request_delete_range=delete_request(KeyRange.prefix(operation.prefix)))
        case Get():
            return rpc_pb2.RequestOp(request_range=range_request(KeyRange.key(operation.key)))
        case GetPrefix():
            request = range_request(KeyRange.prefix(operation.prefix), limit=operation.limit)
            return rpc_pb2.RequestOp(request_range=request)
        case Txn(compares, success, failure):
            return rpc_pb2.RequestOp(request_txn=txn_request(compares, success, failure))


def txn_result(reply: Any) -> TxnResult:
    """What a transaction did."""
    return _txn_result(reply, Revision(reply.header.revision))


def _txn_result(reply: Any, revision: Revision) -> TxnResult:
    """What it did; transactions within one have no revision of their own."""
    return TxnResult(reply.succeeded, revision, tuple(_operation_result(r, revision) for r in reply.responses))


def _operation_result(reply: Any, revision: Revision) -> OperationResult:
    match reply.WhichOneof("response"):
        case "response_put":
            return PutDone()
        case "response_delete_range":
            return Deleted(reply.response_delete_range.deleted)
        case "response_range":
            return Found(key_values(reply.response_range.kvs))
        case "response_txn":
            return _txn_result(reply.response_txn, revision)
        case other:
            raise AssertionError(f"we send no operation that is answered with {other}")


def key_values(kvs: Iterable[Any]) -> tuple[KeyValue, ...]:
    """Keys out of any reply that holds some."""
    return tuple(map(_key_value, kvs))


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(
        to_key(kv.key), kv.value, Revision(kv.create_revision), Revision(kv.mod_revision), kv.version, LeaseId(kv.lease)
    )


def endpoint_status(endpoint: str, reply: Any) -> EndpointStatus:
    """A member's own account of itself."""
    alarms = tuple(
        e.rpartition("alarm:")[2].strip() for e in reply.errors if "alarm:" in e
    )  # "memberID:1 alarm:NOSPACE"
    return EndpointStatus(
        endpoint=endpoint,
        version=reply.version,
        member_id=reply.header.member_id,
        leader_id=reply.leader,
        db_size=reply.dbSize,
        db_size_in_use=reply.dbSizeInUse,
        raft_term=reply.raftTerm,
        raft_index=reply.raftIndex,
        raft_applied_index=reply.raftAppliedIndex,
        is_learner=reply.isLearner,
        alarms=alarms,
        problems=tuple(e for e in reply.errors if "alarm:" not in e),
    )


def member_list_request() -> Any:
    """A question for the members, to be answered by a majority."""
    return rpc_pb2.MemberListRequest(linearizable=True)


def member_add_request(peer_url: str) -> Any:
    """A request for one more member."""
    return rpc_pb2.MemberAddRequest(peerURLs=[peer_url])


def member_remove_request(member: MemberId) -> Any:
    """A request for one member less."""
    return rpc_pb2.MemberRemoveRequest(ID=member)


def membership(reply: Any) -> Membership:
    """The members of the cluster that answered."""
    return Membership(EtcdId(reply.header.cluster_id), tuple(map(_etcd_member, reply.members)))


def _etcd_member(member: Any) -> EtcdMember:
    return EtcdMember(
        MemberId(member.ID), member.name, tuple(member.peerURLs), tuple(member.clientURLs), member.isLearner
    )


_KINDS = {kind: getattr(rpc_pb2, kind) for kind in AlarmKind}


def alarms_request() -> Any:
    """A question for the alarms of all members."""
    return rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)


def disarm_request(alarm: Alarm) -> Any:
    """A request to take an alarm back."""
    return rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.member, alarm=_KINDS[alarm.kind])


def alarms(reply: Any) -> tuple[Alarm, ...]:
    """The alarms of kinds known here."""
    kinds = {number: kind for kind, number in _KINDS.items()}
    return tuple(Alarm(MemberId(a.memberID), kinds[a.alarm]) for a in reply.alarms if a.alarm in kinds)


def defragment_request() -> Any:
    """A request to one member to shrink its database."""
    return rpc_pb2.DefragmentRequest()


def authenticate_request(username: str, password: str) -> Any:
    """A request for a token."""
    return rpc_pb2.AuthenticateRequest(name=username, password=password)


def status_request() -> Any:
    """A question to one member about itself."""
    return rpc_pb2.StatusRequest()


def grant_request(ttl: int) -> Any:
    """A request for a lease of at least `ttl` seconds."""
    return rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=0)


def keep_alive_request(lease: LeaseId) -> Any:
    """A request to start the lease's time again."""
    return rpc_pb2.LeaseKeepAliveRequest(ID=lease)


def revoke_request(lease: LeaseId) -> Any:
    """A request to end the lease and delete its keys."""
    return rpc_pb2.LeaseRevokeRequest(ID=lease)


def watch_request(keys: KeyRange, start_revision: int) -> Any:
    """Open a watch, from now when `start_revision` is 0."""
    create = rpc_pb2.WatchCreateRequest(
        key=keys.start, range_end=keys.end, start_revision=start_revision, progress_notify=True, fragment=True
    )
    return rpc_pb2.WatchRequest(create_request=create)


def progress_request() -> Any:
    """Ask the member to say something on a watch stream."""
    return rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())


def watch_events(events: Sequence[Any]) -> tuple[Event, ...]:
    """The changes in a watch reply."""
    return tuple(_event(e) for e in events)


def _event(event: Any) -> Event:
    deleted = event.type == kv_pb2.Event.DELETE
    return Event(to_key(event.kv.key), Revision(event.kv.mod_revision), None if deleted else _key_value(event.kv))
