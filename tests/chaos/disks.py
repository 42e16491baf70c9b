"""A disk of its own for each node, that fills up, fails and loses its power as real ones do.

It is an ext4 in a file, on a tmpfs that says how large the medium is. Power goes by the file system's own shutdown
(EXT4_IOC_SHUTDOWN without a flush of its journal): what was not on the medium yet is gone, and what was synced is not.
Device-mapper, which can do more (reads that fail, writes that are dropped in part), is not in every kernel.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import time
from pathlib import Path

from chaos.arena import run

SIZE = 512 << 20
BUSY = 20.0
"""Seconds after which a disk that is still in use is an error."""
_SHUTDOWN = 0x8004587D
_NO_FLUSH = struct.pack("I", 2)
_FILLER = "filler"


class Disk:
    """`path` is where it is mounted, while it is."""

    def __init__(self, base: Path, name: str) -> None:
        self.path = base / name
        self._medium = base / f"{name}.medium"
        self._image = self._medium / "image"
        for directory in (self.path, self._medium):
            directory.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={2 * SIZE}", "medium", self._medium)
        with self._image.open("wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
        self.mounted = False
        self.mount()

    def mount(self) -> None:
        """Bring it up, as after a boot: the journal is replayed."""
        if not self.mounted:
            run("mount", "-o", "loop,discard", self._image, self.path)
            self.mounted = True

    def unmount(self) -> None:
        """When nobody uses it any more; what a killed process had started ends a moment after it."""
        deadline = time.monotonic() + BUSY
        while self.mounted:
            try:
                run("umount", self.path)
                self.mounted = False
            except RuntimeError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def shut_down(self) -> None:
        """From now on every access fails with EIO, and what was not synced will never have been written."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _SHUTDOWN, _NO_FLUSH)
        finally:
            os.close(directory)

    def fill(self, leave: int) -> None:
        """Use it up until `leave` bytes are free."""
        with (self.path / _FILLER).open("ab") as file:
            piece = SIZE
            while piece >= 4096:
                if self.free() - piece < leave:
                    piece //= 2
                    continue
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                except OSError:
                    piece //= 2

    def relieve(self) -> None:
        """Give back what `fill` and `starve` took."""
        run("mount", "-o", f"remount,size={2 * SIZE}", self._medium)
        if self.mounted:
            with contextlib.suppress(OSError):
                (self.path / _FILLER).unlink(missing_ok=True)

    def starve(self) -> None:
        """The medium takes no block that it does not have yet: there seems to be space, and fsync fails."""
        for more in (1, 16, 256, 4096):  # somebody may be writing
            used = int(run("df", "--output=used", "-B", "4096", self._medium).split()[-1])
            with contextlib.suppress(RuntimeError):
                run("mount", "-o", f"remount,size={(used + more) * 4096}", self._medium)
                return
        raise RuntimeError(f"{self._medium} grows too fast to be held")

    def free(self) -> int:
        """Bytes that a file could still take."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def wipe(self) -> None:
        """Another disk, with nothing on it."""
        self.mount()
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
