"""Rows files of versions that could not give pages back to the disk are made anew, once, when they are opened.

SQLite must be told when a file is made that it is to be vacuumed in steps. A copy takes as long as what lives takes to
be written, while nobody is answered: so it is made where that is little, or where most of the file is free, and where
the disk has room for it. Otherwise the file stays as it is, and is looked at again when it is opened again.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from veccluster.errors import StorageCorrupt
from veccluster_node.engine.records import connect, corruption_named
from veccluster_node.runtime.files import sync_directory, sync_file

_QUICK = 64 << 20
"""Bytes that are copied at once, whatever it brings."""
_ROOM = 32 << 20
_INCREMENTAL = 2


def renew(path: Path) -> bool:
    """Make the file at `path`, which nobody has open, one that gives pages back; whether that was done.

    A crash leaves the old file or the new one, whole. What is damaged is left for who opens it.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with corruption_named(path), closing(connect(path, read_only=False)) as db:
            if not _is_worth_it(db, path):
                return False
            db.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
            db.execute("VACUUM INTO ?", (str(new.absolute()),))
            ((busy, *_),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except (sqlite3.Error, StorageCorrupt):
        new.unlink(missing_ok=True)
        return False
    if busy or path.with_name(f"{path.name}-wal").exists():  # it was the last connection, which removes it
        new.unlink()
        return False
    sync_file(new)
    new.replace(path)
    sync_directory(path.parent)
    return True


def _is_worth_it(db: sqlite3.Connection, path: Path) -> bool:
    names = ("auto_vacuum", "page_size", "page_count", "freelist_count")
    vacuums, size, pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    living = size * (pages - free)
    if vacuums == _INCREMENTAL or (living > _QUICK and free < pages // 2):
        return False
    return bool(living + _ROOM < shutil.disk_usage(path.parent).free)
