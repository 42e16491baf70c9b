"""Whether a write that nobody remembers is a new one, or the repetition of one that was forgotten (14).

A shard remembers the operation ids of its newest writes. An id that says when it was made (a UUID of version 7) is
never taken for new once an operation with such an id may have been forgotten, so that a repetition does nothing however
late it comes. About an id that says nothing of its age only the shard's memory tells.

Invariant: what is remembered holds every operation whose id was made at `since` or later. The primary that orders a
write notes a time with it that is at most `AHEAD` earlier than its id says (`noted`); what is forgotten was noted
`AHEAD` before `since` (`since_without`). So clocks that are wrong cost refusals and no promise, by less than a day.
"""

import re
from typing import Final

SECOND: Final = 1_000_000_000
KEPT_FOR: Final = 600 * SECOND
"""Nanoseconds for which an operation is remembered at least, by the clocks of primaries."""
KEPT: Final = 100_000
"""Newest operations that are remembered however old they are."""
AHEAD: Final = 60 * SECOND
"""By how much the clock of who makes an id may be ahead of the primary's before that takes the other for its own."""
FARTHEST: Final = 86_400 * SECOND
"""By how much a clock may be wrong at all."""

_TIMED = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def made_at(operation: str) -> int | None:
    """When the id of an operation was made, in nanoseconds since 1970, if it says so.

    The id is the first word. The second is for what is to be done; one of several batches of a body has more words, and
    may be sent for the first time long after the body's id was made.
    """
    id_, *more = operation.split(" ")
    if len(more) > 1 or not (match := _TIMED.fullmatch(id_)):
        return None
    return int(match[1] + match[2], 16) * 1_000_000


def is_forgotten(operation: str, since: int) -> bool:
    """Whether the operation, which is not remembered, may have been and is not any more."""
    made = made_at(operation)
    return made is not None and made < since


def noted(operation: str, now: int) -> int:
    """The time that is noted with an operation that is ordered `now`. An id of the far future would be remembered until
    then: it counts as one that says nothing.
    """
    made = made_at(operation)
    return now if made is None or made > now + FARTHEST else max(now, made - AHEAD)


def forgettable(newest: int, now: int) -> int:
    """What was noted before this may be forgotten; `newest` is the newest that was noted, of any primary's clock."""
    return min(newest, now) - KEPT_FOR


def since_without(forgotten: int) -> int:
    """What `since` becomes when all is forgotten that was noted before `forgotten`."""
    return forgotten + AHEAD
