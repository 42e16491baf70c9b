"""Run a command that dies with its parent: `python -I -S launch.py PARENT_PID COMMAND...`

Run as a file of its own, in between fork and exec of the real command, so that nothing has to happen in a forked copy
of a process with threads. Linux sends SIGKILL to the command when its parent ends, in whatever way (PR_SET_PDEATHSIG
stays set over exec). Other systems have no such thing: there the next supervisor, or `down`, finds the orphans by their
recorded pid and start time.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int, number: signal.Signals) -> bool:
    """Have this process sent a signal when its parent ends; False if that has happened already."""
    if sys.platform == "linux":
        import ctypes  # here, since it takes 10 ms that other systems need not spend

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if not tie(parent, signal.SIGKILL):
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming the given command is the purpose


if __name__ == "__main__":
    main()
