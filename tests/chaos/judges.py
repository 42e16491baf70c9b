"""What a history must not show. Every judge returns sentences: what is wrong, and where.

`linearizable` is the strictest and takes strong reads only; the others are necessary conditions that take a glance at
each entry, hold for reads of every level, and cannot raise a false alarm: "over" means that one operation had ended
before another began.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from chaos.history import History, Outcome, Read, Write
from chaos.linearizability import Operation, Value, judge

LONGEST = 40
"""Lines of one id's story."""


def everything(history: History) -> list[str]:
    """What all judges but `final` say."""
    judges: Sequence[Callable[[History], list[str]]] = (known, current, sessions, positions, linearizable)
    return [*history.wrong, *(said for one in judges for said in one(history))]


def linearizable(history: History) -> list[str]:
    """Strong reads and all writes of each id could have happened one at a time."""
    wrong = []
    for one, operations in strong_operations(history).items():
        verdict = judge(operations)
        if verdict.fits is None:
            wrong.append(f"{one}: not decided, {len(operations)} operations are too many")
        elif not verdict.fits:
            around = min((o.start for o in verdict.stuck), default=0)
            wrong.append(f"{one}: strong operations fit in no order\n{story(history, one, around)}")
    return wrong


def strong_operations(history: History) -> Mapping[str, list[Operation]]:
    """What linearizability is about, by id."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for write in history.all_writes():
        if write.outcome is not Outcome.refused:
            found[write.id].append(Operation(write.start, write.end, write.value, found=write.found))
    for one, reads in history.reads.items():
        found[one] += [Operation(r.start, r.end, r.value, reads=True) for r in reads if r.level == "strong"]
    return found


def known(history: History) -> list[str]:
    """No read shows what nobody had asked to store, or what every answer said was not stored."""
    wrong = []
    for one, reads in history.reads.items():
        written = {w.value: w for w in history.writes[one] if w.value is not None}
        for read in (r for r in reads if r.value is not None):
            write = written.get(read.value)
            if write is None or write.start > read.end:
                wrong.append(f"{said(read)}, which nobody had written")
            elif write.outcome is Outcome.refused:
                wrong.append(f"{said(read)}, a write that was refused: {said(write)}")
    return wrong


def current(history: History) -> list[str]:
    """No strong or quorum read is older than what was acknowledged before it began.

    A quorum read promises it only if one of those asked was in sync then. With two or more of three replicas in sync at
    any time, two that are asked always include one.
    """
    wrong = []
    for one, reads in history.reads.items():
        acknowledged = [w for w in history.writes[one] if w.stored]
        for read in (r for r in reads if r.level in ("strong", "quorum")):
            before = [w for w in acknowledged if w.end is not None and w.end < read.start]
            if (newer := _passed(read.value, history.writes[one], before)) is not None:
                wrong.append(f"{said(read)}, although {said(newer)}\n{story(history, one, read.start)}")
    return wrong


def sessions(history: History) -> list[str]:
    """No session read is older than what its client had written or been shown in its session before."""
    wrong = []
    for one, reads in history.reads.items():
        writes = history.writes[one]
        by_value = {w.value: w for w in writes if w.value is not None}
        for read in (r for r in reads if r.level == "session"):
            mine = [w for w in writes if w.client == read.client and w.stored and (w.end or 0) < read.start]
            seen = [r for r in reads if r.client == read.client and r.end < read.start and r.level in _IN_TOKEN]
            mine += [by_value[r.value] for r in seen if r.value in by_value]
            if (newer := _passed(read.value, writes, mine)) is not None:
                wrong.append(f"{said(read)}, although its session had seen {said(newer)}")
    return wrong


_IN_TOKEN = ("session", "strong", "quorum", "eventual")
"""Levels whose replies say how far the replica was, so that the session includes them."""


def _passed(value: Value, writes: Iterable[Write], known_before: Sequence[Write]) -> Write | None:
    """One of `known_before` that shows `value` to be over: each way in which the id could hold it had ended before."""
    if value is None:
        origins = [w for w in writes if w.value is None and w.outcome is not Outcome.refused]
        never_there = _newest(known_before)
    else:
        origins = [w for w in writes if w.value == value and w.outcome is not Outcome.refused]
        never_there = None
        if not origins:
            return None  # `known` tells
    newer: Write | None = never_there
    for origin in origins:
        after = [w for w in known_before if origin.end is not None and w is not origin and w.start > origin.end]
        if not after:
            return None
        newer = after[0]
    return newer


def _newest(writes: Sequence[Write]) -> Write | None:
    return max(writes, key=lambda w: w.start, default=None)


def positions(history: History) -> list[str]:
    """Two operations never have one place in a shard's log, and their order there is the one in which they happened.

    Two nodes that acknowledge in one epoch would give one place twice, or turn back.
    """
    wrong: list[str] = []
    shards: dict[int, dict[str, Write]] = defaultdict(dict)
    for write in history.all_writes():
        if write.stored and write.shard is not None and write.seq is not None:
            shards[write.shard].setdefault(write.operation, write)
    for number, operations in shards.items():
        in_log = sorted(operations.values(), key=_place)
        for one, other in pairwise(w for w in in_log if w.found is not False):
            if one.seq == other.seq:
                wrong.append(f"shard {number} has two operations at seq {one.seq}: {said(one)}; {said(other)}")
        wrong += [f"shard {number} goes back: {said(a)}, after {said(b)}" for a, b in _backwards(in_log)]
    return wrong


def _place(write: Write) -> tuple[int, int]:
    return (write.seq or 0, write.start)


def _backwards(in_log: Sequence[Write]) -> Iterable[tuple[Write, Write]]:
    """Writes that began after one had ended that is behind them in the log, or that are of an older epoch."""
    first_end: Write | None = None
    for write in reversed(in_log):
        if first_end is not None and (first_end.end or 0) < write.start and write.seq != first_end.seq:
            yield write, first_end
        if first_end is None or (write.end or 0) < (first_end.end or 0):
            first_end = write


def final(history: History, held: Mapping[str, int], ids: Iterable[str] | None = None) -> list[str]:
    """When all is quiet: nothing acknowledged is lost, nothing deleted or replaced is back, nothing else is there.

    `held` is what the ids hold that are there; `ids` are those that were looked at, all if it is None.
    """
    wrong = []
    for one in history.writes if ids is None else ids:
        writes = history.writes[one]
        allowed = allowed_at_the_end(writes)
        if held.get(one) not in allowed:
            wrong.append(
                f"{one} holds {held.get(one)} at the end, allowed are {sorted(allowed, key=str)}; "
                f"its last write: {said(max(writes, key=lambda w: w.start))}"
            )
    wrong += [
        f"{one} holds {value} at the end, and was never written"
        for one, value in held.items()
        if one not in history.writes
    ]
    return wrong


def allowed_at_the_end(writes: Sequence[Write]) -> set[Value]:
    """What an id may hold after all these: what was not over before another acknowledged write began."""
    happened = [w for w in writes if w.outcome is not Outcome.refused]
    newest = max((w.start for w in happened if w.stored), default=-1)
    allowed = {w.value for w in happened if w.end is None or w.end > newest}
    return allowed if newest >= 0 else allowed | {None}


def said(entry: Write | Read) -> str:
    """One entry in words."""
    if isinstance(entry, Read):
        how = f"{entry.by}, {entry.level}, {entry.start}-{entry.end}"
        return f"{entry.client} was shown {entry.id} = {entry.value} ({how})"
    what = "delete" if entry.value is None else f"write {entry.value}"
    place = "" if entry.seq is None else f" at {entry.epoch}.{entry.seq} of shard {entry.shard}"
    return f"{entry.client}: {what} of {entry.id} ({entry.start}-{entry.end}) {entry.outcome}{place}"


def story(history: History, one: str, around: int) -> str:
    """What happened to an id, as far as it fits on a screen."""
    entries = sorted([*history.writes[one], *history.reads[one]], key=lambda e: e.start)
    middle = next((i for i, e in enumerate(entries) if e.start >= around), len(entries))
    first = max(0, middle - LONGEST // 2)
    return "\n".join(f"    {said(e)}" for e in entries[first : first + LONGEST])
