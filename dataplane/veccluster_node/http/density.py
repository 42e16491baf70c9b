"""How much a JSON text would become in memory, told from the text alone.

Sixty megabytes of `[],[],[],` are small to send and gigabytes as Python objects. So nothing that a client sends becomes
objects before it is known that there are not too many of them; a single value is never much larger than its text.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

_Bytes: TypeAlias = npt.NDArray[np.uint8]

_FEW: Final = 50_000
"""Items that need not be counted exactly."""
_CHUNK: Final = 1 << 20


def has_more_values(text: bytes, most: int) -> bool:
    """Whether a text holds more than `most` values (items, members, lists, objects), however nested."""
    if 1 + sum(text.count(mark) for mark in b",[{") <= most:
        return False  # even if none of them is in a string
    counts = (np.count_nonzero(_is_one_of(b",[{", part)) for part in _without_strings(text))
    return 1 + int(sum(counts)) > most


def has_more_items(text: bytes, most: int, depth: int) -> bool:
    """Whether more than `most` commas are inside of at most `depth` lists and objects; of few items, False."""
    if text.count(b",") <= max(most, _FEW):
        return False
    level, found = 0, 0
    for part in _without_strings(text):
        steps = _is_one_of(b"[{", part).astype(np.int64) - _is_one_of(b"]}", part)
        levels = np.cumsum(steps) + level
        found += int(np.count_nonzero((part == ord(",")) & (levels <= depth)))
        level = int(levels[-1])
    return found > most


def _is_one_of(marks: bytes, part: _Bytes) -> npt.NDArray[np.bool_]:
    wanted = np.zeros(256, np.bool_)
    wanted[list(marks)] = True
    found: npt.NDArray[np.bool_] = wanted[part]
    return found


def _without_strings(text: bytes) -> Iterator[_Bytes]:
    """The text in parts, with zeros where a string is; no object a string, since there may be many."""
    plain = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    quotes = 0
    for start in range(0, len(plain), _CHUNK):
        part = plain[start : start + _CHUNK]
        seen = np.cumsum(part == ord('"'), dtype=np.int64) + quotes
        quotes = int(seen[-1])
        yield np.where(seen & 1, np.uint8(0), part)
