"""Decide which processes the local runtime starts and stops: the operator's part, on one machine.

Pure: the supervisor observes its children, calls `decide`, and carries out the actions; a second call on the result
returns nothing. Rules:

1. Metadata first: a node starts only while etcd answers. On the way down the order is reversed.
2. What died is started again, later each time it dies soon (`pause_before`), so that a crash loop costs little.
3. A node that says twice that starting it again cannot help (`HOPELESS`) is left alone until it is to run differently.
   Once is not enough: its predecessor may take a moment to let go of the data directory.
4. What must run differently is restarted one at a time, while everything else is ready; what is not ready itself has
   nothing to lose and need not wait.
5. What is not wanted is stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from veccluster import backoff

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between a death and the next start, at first and at most."""
STEADY = 60.0
"""Seconds after which a run counts as good, and its death as the first again."""

HOPELESS = frozenset({2, 4})
"""Exit codes of a node: 2 for a configuration that it cannot use, 4 for a data directory that is not its own."""


class Role(StrEnum):
    """What a process is to the cluster; metadata is needed by nodes."""

    metadata = "metadata"
    node = "node"


class Phase(StrEnum):
    """Where a process is in its life."""

    running = "running"
    ready = "ready"
    exited = "exited"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A process that should run; `revision` changes whenever it should run differently."""

    name: str
    role: Role
    revision: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as it is. Times are seconds of one monotonic clock."""

    role: Role
    revision: str
    phase: Phase
    started: float
    exited: float = 0.0
    exit_code: int | None = None
    """Negative: the signal that ended it."""
    short_runs: int = 0
    """How many runs in a row, up to this one, ended before they were steady."""
    hopeless_runs: int = 0
    """How many in a row, up to this one, ended with a `HOPELESS` exit code."""
    asked_to_stop: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start the process."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the process to stop; `why` is for the log."""

    name: str
    why: str


Action = Start | Stop


def decide(wanted: Sequence[Wanted], seen: Mapping[str, Seen], *, now: float) -> Iterator[Action]:
    """What to do now; nothing wanted at all means: bring everything down."""
    yield from _stop_unwanted(wanted, seen)
    metadata_answers = all(_is_ready(seen.get(w.name)) for w in wanted if w.role is Role.metadata)
    for process in wanted:
        if (process.role is Role.metadata or metadata_answers) and _may_start(process, seen.get(process.name), now):
            yield Start(process.name)
    yield from _restart_one(wanted, seen)


def next_look(wanted: Sequence[Wanted], seen: Mapping[str, Seen], *, now: float) -> float | None:
    """Seconds until a pause is over and `decide` will say something new by itself; None when nothing is waited for."""
    ends = [
        s.exited + pause_before(s) - now
        for w in wanted
        if (s := seen.get(w.name)) and s.phase is Phase.exited and not is_hopeless(w, s)
    ]
    return max(0.0, min(ends)) if ends else None


def pause_before(seen: Seen) -> float:
    """Seconds from the death of a process to its next start (2)."""
    if seen.asked_to_stop or seen.short_runs == 0:
        return 0.0
    return backoff.pause(FIRST_PAUSE, seen.short_runs, LONGEST_PAUSE)


def started(process: Wanted, before: Seen | None, *, now: float) -> Seen:
    """The process when it has just been started; `before` is how it was the last time."""
    runs = (before.short_runs, before.hopeless_runs) if before else (0, 0)
    return Seen(process.role, process.revision, Phase.running, now, short_runs=runs[0], hopeless_runs=runs[1])


def ended(seen: Seen, exit_code: int, *, now: float) -> Seen:
    """The process when it has ended."""
    is_short = now - seen.started < STEADY
    short_runs = 0 if seen.asked_to_stop else seen.short_runs + 1 if is_short else 1
    hopeless_runs = seen.hopeless_runs + 1 if exit_code in HOPELESS and not seen.asked_to_stop else 0
    return replace(
        seen, phase=Phase.exited, exited=now, exit_code=exit_code, short_runs=short_runs, hopeless_runs=hopeless_runs
    )


def is_hopeless(process: Wanted, seen: Seen | None) -> bool:
    """Whether the process has said that it can never run as it is wanted now (3)."""
    return (
        seen is not None
        and seen.phase is Phase.exited
        and process.role is Role.node
        and seen.hopeless_runs > 1
        and seen.revision == process.revision
    )


def _stop_unwanted(wanted: Sequence[Wanted], seen: Mapping[str, Seen]) -> Iterator[Stop]:
    """Nodes at once; metadata when no node is left that could need it (1, 5)."""
    names = {w.name for w in wanted}
    node_runs = any(s.role is Role.node and s.phase is not Phase.exited for s in seen.values())
    for name, process in sorted(seen.items()):
        stoppable = process.phase is not Phase.exited and not process.asked_to_stop
        if name not in names and stoppable and (process.role is Role.node or not node_runs):
            yield Stop(name, "it is not wanted any more")


def _may_start(process: Wanted, seen: Seen | None, now: float) -> bool:
    if seen is None:
        return True
    if seen.phase is not Phase.exited or is_hopeless(process, seen):
        return False
    return seen.revision != process.revision or now >= seen.exited + pause_before(seen)


def _restart_one(wanted: Sequence[Wanted], seen: Mapping[str, Seen]) -> Iterator[Stop]:
    """The first that runs differently from what is wanted, if all the others are ready (4)."""
    outdated = [
        w for w in wanted if (s := seen.get(w.name)) and s.phase is not Phase.exited and s.revision != w.revision
    ]
    for process in outdated:
        others_ready = all(_is_ready(seen.get(w.name)) for w in wanted if w.name != process.name)
        running = seen[process.name]
        if running.phase is Phase.running or others_ready:
            if not running.asked_to_stop:
                yield Stop(process.name, "it is to run with other settings")
            return


def _is_ready(seen: Seen | None) -> bool:
    return seen is not None and seen.phase is Phase.ready
