"""Whose data an etcd directory holds: the second record of every file of etcd's log says it.

A file is a row of frames: 8 bytes, little endian, of which the lower 56 bits are the record's length and the upper
8 say how much padding follows; then the record, a protobuf message {1: type, 2: CRC-32C, 3: data}.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from veccluster.decisions.etcd_member import Identity
from veccluster.model.etcd import EtcdId, MemberId

_METADATA, _CHECKSUM = 1, 4
_FIRST_RECORDS = 4096
"""Bytes of a file in which its first two records are."""


def log_files(data_dir: Path) -> list[Path]:
    """The files of the log, oldest first. Without any, etcd takes the directory for empty.

    A directory that cannot be read is an error, not an empty one.
    """
    try:
        return sorted(p for p in (data_dir / "member" / "wal").iterdir() if p.suffix == ".wal")
    except FileNotFoundError:
        return []


def identity_of(data_dir: Path) -> Identity | None:
    """The member and cluster whose data are there; None where no file of the log can be read."""
    return next(filter(None, map(_identity_in, log_files(data_dir))), None)


def _identity_in(file: Path) -> Identity | None:
    with file.open("rb") as opened:
        start = opened.read(_FIRST_RECORDS)
    try:
        return _identity_of(start)
    except (IndexError, KeyError, struct.error):
        return None


def _identity_of(start: bytes) -> Identity | None:
    """From the metadata record, if its checksum is right; it goes on from the one in the record before."""
    records = _records(start)
    checksum, metadata = next(records, {}), next(records, {})
    data = metadata.get(3, b"")
    if checksum.get(1) != _CHECKSUM or metadata.get(1) != _METADATA or not isinstance(data, bytes):
        return None
    before = checksum.get(2, 0)
    if not isinstance(before, int) or google_crc32c.extend(before, data) != metadata.get(2):
        return None
    fields = dict(_fields(data))
    member, cluster = fields[1], fields[2]
    return Identity(MemberId(member), EtcdId(cluster)) if isinstance(member, int) and isinstance(cluster, int) else None


def _records(start: bytes) -> Iterator[dict[int, int | bytes]]:
    at = 0
    while True:
        (head,) = struct.unpack_from("<Q", start, at)
        length, padding = head & (1 << 56) - 1, head >> 56
        yield dict(_fields(start[at + 8 : at + 8 + length]))
        at += 8 + length + (padding & 0x7 if padding & 0x80 else 0)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbered fields of a protobuf message that holds numbers and bytes only."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 0x7 == 0:
            yield tag >> 3, value
        else:
            yield tag >> 3, message[at : at + value]
            at += value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if not byte & 0x80:
            return value, at
