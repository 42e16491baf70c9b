"""Judge what a failed request to etcd means: may it be sent again?

Pure. etcd's own Go client repeats a write only when no connection could be made. We repeat it as well after the few
errors that a member gives *before* it proposes the request to Raft: those say for certain that nothing was applied.
All else that is not a plain refusal (a timeout, a reset, "leader changed") leaves the outcome of a write unknown.
"""

from enum import Enum


class Verdict(Enum):
    """What is known about a request that failed."""

    not_applied = "nothing was applied; another member, or the same one later, may do it"
    unknown = "it may or may not have been applied"
    unauthenticated = "nothing was applied; the token has expired or was never given"
    compacted = "the revision asked for is gone"
    refused = "etcd will not do it, however often it is asked"


_NOT_APPLIED = (
    "etcdserver: no leader",  # answered on arrival, because we send `hasleader`
    "etcdserver: not capable",
    "etcdserver: unhealthy cluster",  # asked to change its members too soon after a change, or with one down
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
    "raft proposal dropped",
    "failed to connect to all addresses",  # gRPC had no connection to send it on
    "connections to all backends failing",
    "name resolution failure",
    "dns resolution failed",
    "errors resolving",
)
_UNAUTHENTICATED = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "revision of auth store is old",
    "revision in header is old",
)
# Only these gRPC codes can stand for "it may have happened"; the others are an answer, and the answer is no.
_UNCLEAR_CODES = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED", "DATA_LOSS"}
)


def judge(code: str, details: str) -> Verdict:
    """The verdict on a gRPC status: `code` as gRPC names it, such as "UNAVAILABLE", and the text that came with it."""
    text = details.lower()
    if any(known in text for known in _UNAUTHENTICATED) or code == "UNAUTHENTICATED":
        return Verdict.unauthenticated
    if any(known in text for known in _NOT_APPLIED):
        return Verdict.not_applied
    if "required revision has been compacted" in text:
        return Verdict.compacted
    return Verdict.unknown if code in _UNCLEAR_CODES else Verdict.refused


def may_repeat(verdict: Verdict, *, repeatable: bool) -> bool:
    """Whether the request may be sent again; `repeatable` says that doing it twice is as good as once."""
    match verdict:
        case Verdict.not_applied | Verdict.unauthenticated:
            return True
        case Verdict.unknown:
            return repeatable
        case Verdict.compacted | Verdict.refused:
            return False
