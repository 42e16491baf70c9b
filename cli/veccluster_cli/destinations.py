"""Where an export goes: a file that appears when all of it is there, or whatever else has the name and is written to.

Only a regular file is replaced. Pipes, devices and the standard streams are written through, and a link keeps pointing
to where it points: what is there is replaced.
"""

import gzip
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_NUMBERS = {"stdout": 1, "stderr": 2}
_MOST_LINKS = 40


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """What is to be written to; compressed where the name ends in .gz."""
    with _opened(file) as out:
        if file.suffix != ".gz":
            yield out
            return
        with gzip.open(out, "wb") as packed:
            yield cast("IO[bytes]", packed)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    place = _followed(file)
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif _STREAM.fullmatch(str(place)):
        name = place.name
        with open(os.dup(_NUMBERS.get(name) or int(name)), "wb") as out:  # noqa: PTH123 - it is no path
            yield out
    elif _is_regular_or_new(place):
        with _replaced(place) as out:
            yield out
    else:
        with place.open("wb") as out:
            yield out


def _followed(file: Path) -> Path:
    """Where links lead, but no further than to a stream of ours."""
    place = file
    for _ in range(_MOST_LINKS):
        if _STREAM.fullmatch(str(place)) or not place.is_symlink():
            break
        place = place.parent / place.readlink()
    return place


def _is_regular_or_new(place: Path) -> bool:
    try:
        return stat.S_ISREG(place.stat().st_mode)
    except FileNotFoundError:
        return True


@contextmanager
def _replaced(place: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name, and what may be done with the one before, when the block is done."""
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as out:
            with suppress(FileNotFoundError):
                os.fchmod(out.fileno(), stat.S_IMODE(place.stat().st_mode))
            yield out
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
