"""Named places where a crash would hurt, so that tests can crash exactly there.

`VECCLUSTER_FAILPOINTS="log.written=kill;current.written=2*error:ENOSPC"` makes the process kill itself at the first and
fail twice at the second; `hang` stands still there for ever. `skip N` hits first with `name=5-kill`. Read once, when
the process starts; when it is unset, a failpoint costs one look into an empty dictionary.
"""

import errno
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TERM = re.compile(r"^(?:(?P<skip>\d+)-)?(?:(?P<times>\d+)\*)?(?P<action>kill|hang|error:(?P<errno>E[A-Z0-9]+))$")


@dataclass(slots=True)
class _Armed:
    skip: int
    times: int | None
    """How often it still acts; None is for ever."""
    errno: int | None
    """The error to raise; None kills the process, unless it `hangs`."""
    hangs: bool = False


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for term in filter(None, text.split(";")):
        name, _, action = term.partition("=")
        if not (match := _TERM.match(action)):
            raise ValueError(f"failpoint {term!r}: write NAME=[SKIP-][TIMES*]kill, ...hang or ...error:ERRNO")
        number = getattr(errno, match["errno"]) if match["errno"] else None
        armed[name] = _Armed(int(match["skip"] or 0), int(match["times"]) if match["times"] else None, number)
        armed[name].hangs = match["action"] == "hang"
    return armed


_armed = _parse(os.environ.get("VECCLUSTER_FAILPOINTS", ""))


def hit(name: str) -> None:
    """Do what was asked for at this place: nothing, die, or raise OSError."""
    if _armed and (point := _armed.get(name)):
        _act(name, point)


def _act(name: str, point: _Armed) -> None:
    if point.skip:
        point.skip -= 1
        return
    if point.times is not None:
        if not point.times:
            return
        point.times -= 1
    if point.hangs:
        threading.Event().wait()
    if point.errno is None:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise OSError(point.errno, os.strerror(point.errno), f"failpoint {name}")


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm failpoints of this process for a while."""
    added = _parse(text)
    _armed.update(added)
    try:
        yield
    finally:
        for name in added:
            _armed.pop(name, None)
