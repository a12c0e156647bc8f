"""What Flower's programs leave on the disk, kept within bounds: their database, and their logs.

Flower itself deletes the messages of a run, with all that they are made of, when the run has ended. It deletes neither
what a run's program has logged nor the space in the file, and its logs grow for as long as it runs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 8 << 20  # of one log, before it becomes the earlier one; of which there is one
SPARE_BYTES: Final = 64 << 20  # of unused space in the database that are not worth the time to give back
LOOK_SECONDS: Final = 2.0
_WAIT_SECONDS: Final = 0.2  # for a lock of the SuperLink's


def trim(database: Path) -> None:
    """Lets go of what finished runs have left, and gives unused space back to the disk.

    Only while no SuperLink works on it. A database that cannot be read is the SuperLink's to complain of.
    """
    if not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(
            "DELETE FROM task_logs WHERE task_id IN (SELECT task_id FROM task WHERE finished_at IS NOT NULL)"
        )
        if _pages(connection, "freelist_count") > SPARE_BYTES:
            connection.execute("VACUUM")


def used_bytes(database: Path) -> int:
    """How much is in the database, without its unused space; 0 where it cannot be told."""
    try:
        with closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
        ) as connection:
            return _pages(connection, "page_count") - _pages(connection, "freelist_count")
    except sqlite3.Error:
        return 0


def watched(database: Path) -> Callable[[], int]:
    """`used_bytes` of a database, looked at every other second at most."""
    looked, found = float("-inf"), 0

    def look() -> int:
        nonlocal looked, found
        if (now := time.monotonic()) - looked > LOOK_SECONDS:
            looked, found = now, used_bytes(database)
        return found

    return look


def rotate(log: Path, most: int = LOG_BYTES) -> None:
    """Puts a log aside that has become too long, in place of the one before. Its writer appends, and goes on so."""
    with suppress(OSError):
        if log.stat().st_size > most:
            shutil.copyfile(log, _earlier(log))
            os.truncate(log, 0)


def set_aside(log: Path) -> None:
    """Before a program starts: what it said the last time becomes the earlier log."""
    with suppress(FileNotFoundError):
        log.replace(_earlier(log))


def _earlier(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _pages(connection: sqlite3.Connection, which: str) -> int:
    """Bytes in pages of a kind."""
    (number,) = connection.execute(f"PRAGMA {which}").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(number) * int(size)
