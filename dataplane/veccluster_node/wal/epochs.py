"""The highest epoch that a replica has seen: a promise to take nothing of an older one, so it must outlive a crash.

A small file of its own beside the log, since the promise is made before anything of the new epoch is written. There
is the old one or the new one, whole; a replica that never promised anything has none.
"""

import struct
from pathlib import Path

import google_crc32c

from veccluster import failpoints
from veccluster.decisions.replication.values import NO_EPOCH
from veccluster.errors import StorageCorrupt
from veccluster.model.state import Epoch
from veccluster_node.runtime.files import unreadable, write_durably

FILE = "epoch"
FORMAT = 1
_MAGIC = b"VCLEPOCH"
_LAYOUT = struct.Struct("<8sIQI")


def read(root: Path) -> Epoch:
    """The epoch that was stored in the replica's directory, 0 when none was; `StorageCorrupt` when nobody can tell."""
    try:
        data = (root / FILE).read_bytes()
    except FileNotFoundError:
        return NO_EPOCH
    except OSError as error:
        raise unreadable("the stored epoch", error) from error
    if len(data) != _LAYOUT.size or data != _encode(*_LAYOUT.unpack(data)[1:3]):
        raise StorageCorrupt("the stored epoch is damaged")
    version, epoch = _LAYOUT.unpack(data)[1:3]
    if version > FORMAT:
        raise StorageCorrupt(f"the stored epoch: format {version} is newer than {FORMAT}, which this version reads")
    return Epoch(epoch)


def write(root: Path, epoch: Epoch) -> None:
    """Store an epoch; it is durable when this returns. After an OSError the old one is there, or the new one."""
    failpoints.hit("epoch.write")
    write_durably(root / FILE, _encode(FORMAT, epoch))
    failpoints.hit("epoch.written")


def _encode(version: int, epoch: int) -> bytes:
    body = _LAYOUT.pack(_MAGIC, version, epoch, 0)[:-4]
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")
