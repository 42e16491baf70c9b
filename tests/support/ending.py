"""Processes that end at the same moment, as machines on one power line do.

A SIGKILL after another leaves time between them, as much as a busy machine likes; what is still alive does something
about the first in it: lets it go, takes its place. So all stand still before one ends.
"""

import os
import signal
import subprocess
from collections.abc import Iterable


def freeze(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, and wait until it does nothing more."""
    process.send_signal(signal.SIGSTOP)
    if process.returncode is None:  # else it has ended before, which `send_signal` has found out
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def kill_at_once(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """SIGKILL all of them; none sees that another one has ended."""
    ending = list(processes)
    for process in ending:
        process.send_signal(signal.SIGSTOP)
    for process in ending:
        freeze(process)
    for process in ending:
        process.kill()
    for process in ending:
        process.wait()
