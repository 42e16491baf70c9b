"""Wall clocks that a run can set, one for each node, by a small library that is compiled here and loaded into it.

The machine's own clock is everybody's, and the kernel's time namespaces move monotonic clocks only. What does not ask
libc for the time is not reached: etcd, a Go program, keeps the machine's.
"""

import shutil
import struct
from pathlib import Path

from chaos.arena import run

SOURCE = Path(__file__).with_name("wallclock.c")


def missing() -> str | None:
    """Why there can be no such clocks here; None when there can."""
    return None if shutil.which("cc") else "this machine has no C compiler (cc) for the library that makes clocks jump"


def library(base: Path) -> Path:
    """The library, made on first use."""
    made = base / "wallclock.so"
    if not made.exists():
        run("cc", "-O2", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl")
    return made


class Clock:
    """One process's wall clock."""

    def __init__(self, base: Path, name: str) -> None:
        self._base = base
        self._file = base / f"{name}.clock"
        self._file.write_bytes(struct.pack("q", 0))

    def environment(self) -> dict[str, str]:
        """What makes a process go by it."""
        return {"LD_PRELOAD": str(library(self._base)), "WALLCLOCK": str(self._file)}

    def set(self, ahead: float) -> None:
        """Make it jump, at once: it is `ahead` seconds ahead of the machine's from now on, or behind."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", int(ahead * 1e9)))
