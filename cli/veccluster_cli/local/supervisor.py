"""Keep a local cluster's processes as they are wanted: `python -m veccluster_cli.local.supervisor DIR`.

Level-triggered: each round reads what is wanted, looks at what is, lets `veccluster.decisions.local` decide, and acts.
A round follows every death, every readiness, SIGHUP (something else is wanted) and the end of every pause. SIGTERM
means that nothing is wanted any more, and ends with the last child. If the supervisor itself is killed, its children
die with it (`launch.py`), and the next `up` starts from the state directory.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from veccluster.decisions import local
from veccluster.decisions.local import Phase, Seen, Start, Stop
from veccluster_cli.local import LocalFailure, launch, ownership, processes
from veccluster_cli.local.plan import Plan, plan
from veccluster_cli.local.processes import ProcessRef
from veccluster_cli.local.state import ProcessStatus, StateDirectory, Status, write_file

PROBE_SECONDS = 0.15
"""Between two questions to a process that is not ready yet."""
READY_PROBE_SECONDS = 2.0
"""Between two questions to one that was."""
GRACE_SECONDS = 20.0
"""From SIGTERM to SIGKILL."""
LOOK_SECONDS = 5.0
"""At least this often a round is made."""
LOCK_SECONDS = 2.0
"""Whoever looks whether a supervisor lives holds the lock for a moment."""
LOCKED = 7
"""Exit code when another supervisor is at work here."""


@dataclass(slots=True)
class Child:
    """A process that was started, and its tasks; `seen` is replaced as things happen."""

    plan: Plan
    seen: Seen
    starts: int
    process: asyncio.subprocess.Process | None = None
    ref: ProcessRef | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self.seen.phase is not Phase.exited


class Supervisor:
    """The loop and the children."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._children: dict[str, Child] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._generation = 0
        self._me = ProcessRef.of(os.getpid())

    async def run(self) -> None:
        """Work until SIGTERM, and then until nothing runs any more."""
        self._listen()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            while not (self._stopping and not any(child.runs for child in self._children.values())):
                self._wake.clear()
                try:
                    pause = await self._round(http)
                except (OSError, LocalFailure) as error:  # a full disk must not bring the cluster down
                    _say(f"this round failed and is made again: {error}")
                    pause = 1.0
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), min(LOOK_SECONDS, pause))
        with contextlib.suppress(OSError):
            self._report([])

    async def _round(self, http: aiohttp.ClientSession) -> float:
        """Look, decide, act; returns the seconds until the next round at the latest."""
        plans = {p.name: p for p in self._wanted_plans()}
        wanted = [p.wanted for p in plans.values()]
        seen = {name: child.seen for name, child in self._children.items()}
        now = time.monotonic()
        for action in local.decide(wanted, seen, now=now):
            match action:
                case Start(name):
                    await self._start(plans[name], http)
                case Stop(name, why):
                    self._stop(self._children[name], why)
        self._children = {n: c for n, c in self._children.items() if n in plans or c.runs}
        self._report(wanted)
        left = local.next_look(wanted, {n: c.seen for n, c in self._children.items()}, now=time.monotonic())
        return LOOK_SECONDS if left is None else left

    def _wanted_plans(self) -> Sequence[Plan]:
        desired = self._directory.desired()
        if desired is None:  # somebody deleted the state directory: nothing can be wanted any more
            self._stopping = True
        if self._stopping or desired is None:
            return ()
        if desired.generation != self._generation:  # somebody asked anew: what was given up gets another chance
            self._children = {name: child for name, child in self._children.items() if child.runs}
            self._generation = desired.generation
        return tuple(plan(desired, self._directory, sys.executable))

    async def _start(self, what: Plan, http: aiohttp.ClientSession) -> None:
        before = self._children.get(what.name)
        self._directory.data_of(what.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if what.config is not None:
            write_file(self._directory.config_of(what.name), what.config)
        with processes.open_log(self._directory.log_of(what.name)) as log:
            process = await asyncio.create_subprocess_exec(
                *processes.tied(what.command), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        seen = local.started(what.wanted, before.seen if before else None, now=time.monotonic())
        child = Child(what, seen, (before.starts if before else 0) + 1, process, ProcessRef.of(process.pid))
        child.tasks = [asyncio.create_task(self._wait(child)), asyncio.create_task(self._probe(child, http))]
        self._children[what.name] = child
        _say(f"started {what.name} (pid {process.pid})")

    def _stop(self, child: Child, why: str) -> None:
        if child.process is None:
            return
        _say(f"stopping {child.plan.name}: {why}")
        child.seen = replace(child.seen, asked_to_stop=True)
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        child.tasks.append(asyncio.create_task(_kill_later(child)))

    async def _wait(self, child: Child) -> None:
        """Note the end of a child, and wake the loop."""
        assert child.process is not None
        code = await child.process.wait()
        child.seen = local.ended(child.seen, code, now=time.monotonic())
        child.process = child.ref = None
        for task in child.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        _say(f"{child.plan.name} ended with {code}")
        self._wake.set()

    async def _probe(self, child: Child, http: aiohttp.ClientSession) -> None:
        """Ask a child whether it is ready for as long as it runs; wake the loop when the answer changes."""
        while True:
            phase = Phase.ready if await _answers(http, child.plan.probe_url) else Phase.running
            if phase is not child.seen.phase:
                child.seen = replace(child.seen, phase=phase)
                self._wake.set()
            await asyncio.sleep(READY_PROBE_SECONDS if phase is Phase.ready else PROBE_SECONDS)

    def _report(self, wanted: Sequence[local.Wanted]) -> None:
        assert self._me is not None
        by_name = {w.name: w for w in wanted}
        found = tuple(self._status_of(child, by_name.get(name)) for name, child in sorted(self._children.items()))
        self._directory.write_status(
            Status(supervisor=self._me, generation=self._generation, stopping=self._stopping, processes=found)
        )

    def _status_of(self, child: Child, wanted: local.Wanted | None) -> ProcessStatus:
        failed = child.seen.phase is Phase.exited and not child.seen.asked_to_stop
        return ProcessStatus(
            name=child.plan.name,
            role=child.plan.role,
            phase=child.seen.phase,
            address=child.plan.address,
            process=child.ref,
            starts=child.starts,
            short_runs=child.seen.short_runs,
            exit_code=child.seen.exit_code,
            given_up=wanted is not None and local.is_hopeless(wanted, child.seen),
            message=processes.last_words(self._directory.log_of(child.plan.name)) if failed else "",
        )

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._bring_down)
        loop.add_signal_handler(signal.SIGHUP, self._wake.set)

    def _bring_down(self) -> None:
        self._stopping = True
        self._wake.set()


def end_orphans(directory: StateDirectory) -> None:
    """End what an earlier supervisor left running: only where the system could not tie it to its parent."""
    left_over = directory.status()
    if left_over is not None:
        processes.end_all((p.process for p in left_over.processes if p.process), GRACE_SECONDS)


async def _kill_later(child: Child) -> None:
    await asyncio.sleep(GRACE_SECONDS)
    if child.process is not None:
        _say(f"{child.plan.name} did not stop within {GRACE_SECONDS:.0f} s and is killed")
        child.process.kill()


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as reply:
            return reply.ok
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


def _say(text: str) -> None:
    """One line in the supervisor's log."""
    with contextlib.suppress(OSError):  # a full disk under the log must not bring the cluster down
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        sys.stderr.flush()


def main() -> None:
    """Supervise one state directory; a second supervisor of it leaves at once."""
    parser = argparse.ArgumentParser(description="Keep the processes of a local VecCluster running.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--for", dest="parent", type=int, metavar="PID", help="stop and delete everything with this parent"
    )
    arguments = parser.parse_args()
    temporary = arguments.parent is not None
    needed = not temporary or launch.tie(arguments.parent, signal.SIGTERM)
    directory = StateDirectory(arguments.directory)
    try:
        with directory.lock("supervisor", patience=LOCK_SECONDS) as mine:
            if not mine:
                sys.exit(LOCKED)
            if needed:
                end_orphans(directory)
                asyncio.run(Supervisor(directory).run())
            if temporary:
                ownership.delete(directory)
    except (OSError, LocalFailure) as failure:
        _say(str(failure))
        sys.exit(1)


if __name__ == "__main__":
    main()
