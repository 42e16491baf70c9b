"""Decide what to do after an attempt that did not succeed: pure, so that the whole table can be read and tested.

A request is repeated only where that is safe. Reads always are. Writes carry an operation id that stays the same on
every attempt, so a node that has carried the write out answers again without doing it twice (rule 14 of
docs/replication.md). What remains when time is up is either an error that the cluster gave, or, for a write that may
have arrived, `OutcomeUnknown`.
"""

from dataclasses import dataclass

from veccluster import backoff
from veccluster.errors import OutcomeUnknown, Unavailable, Unreachable, VecClusterError

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
"""Seconds: the bounds of the backoff, before jitter."""

FIRST_CONNECT = 0.5
LONGEST_CONNECT = 3.0
"""Seconds that making a connection may take: at first, and once several have failed."""

ROOM = 0.5
"""Seconds that an attempt must have: one that is cut off at the deadline makes "nobody knows" of a clear answer."""

REPEATABLE_STATUS = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class NotSent:
    """No connection could be made, so nothing can have happened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The request was sent, wholly or in part, and no whole answer came."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The cluster answered with a problem; `retry_after` is the seconds that it asked to wait."""

    error: VecClusterError
    status: int
    retry_after: float | None = None


Failure = NotSent | Lost | Refused


@dataclass(frozen=True, slots=True)
class Again:
    """Try the next address after `pause` seconds."""

    pause: float


def is_answer(outcome: object) -> bool:
    """Whether the node did what it is there for, be it to refuse; otherwise another one may do better."""
    if isinstance(outcome, Refused):
        return outcome.status not in REPEATABLE_STATUS
    return not isinstance(outcome, NotSent | Lost)


def decide(attempt: int, failure: Failure, *, remaining: float, jitter: float) -> Again | None:
    """Whether the `attempt`-th attempt (from 1) is to be followed by another; None when it is to be given up.

    `remaining` is the time until the deadline in seconds, `jitter` a random number in [0, 1). A pause is between half
    and all of its exponential bound, and never shorter than the server asked for.
    """
    pause = backoff.pause(FIRST_PAUSE, attempt, LONGEST_PAUSE) * (0.5 + jitter / 2)
    if isinstance(failure, Refused):
        if failure.status not in REPEATABLE_STATUS:
            return None
        pause = max(pause, (failure.retry_after or 0.0) * (1 + jitter / 4))
    return Again(pause) if pause + ROOM < remaining else None


def connect_timeout(unreached: int) -> float:
    """Seconds for the next connection after `unreached` that could not be made.

    One address may lead to many machines, as a Service of Kubernetes does, which goes on leading to one without power
    for some 20 s: the next connection may find another, so the first are given up soon. A way that is really slow gets
    the time that it needs a little later.
    """
    return min(FIRST_CONNECT * 2.0 ** (unreached // 2), LONGEST_CONNECT)


def verdict(failure: Failure, *, write: bool, perhaps_done: bool, servers: str, waited: float) -> VecClusterError:
    """The error that the caller gets once `decide` has given up.

    `perhaps_done`: an earlier or this attempt may have been carried out. `waited`: seconds since the first attempt.
    """
    if isinstance(failure, Refused):
        if not (write and perhaps_done and isinstance(failure.error, Unavailable)):
            return failure.error
        reason = failure.error.detail
    else:
        reason = failure.reason
    if write and perhaps_done:
        return OutcomeUnknown(
            f"No answer within {waited:.1f} s ({reason}); the write may or may not have been carried out. "
            "An upsert or a delete by ids can be sent again without harm."
        )
    return Unreachable(f"No answer from {servers} within {waited:.1f} s: {reason}")
