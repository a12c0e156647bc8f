"""How many rounds this site answers within an hour, whatever they are: a line with the time of each, oldest first.

All lines have one length, so that one look at the line so many before the end says whether another round may follow.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tacit.errors import Refused, StorageError

FILE: Final = "rounds.log"  # in a site's folder

_FORM: Final = "%Y-%m-%dT%H:%M:%SZ\n"
_LINE_BYTES: Final = len("2030-01-01T00:00:00Z\n")


def count_round(path: Path, hourly: int, now: datetime | None = None) -> None:
    """Enters a round, if it is no more than the `hourly`-th within an hour.

    A round that is refused is not entered. Nothing is waited for on the disk: this limits work, not privacy.

    Args:
        path: the file; made where there is none.
        hourly: the most rounds within an hour.
        now: the time, UTC; that of the clock if not given.

    Raises:
        Refused: "rate".
        StorageError: the file cannot be used.

    Guarantees:
        No more rounds are answered within an hour than the policy says, private or not, over restarts.
    """
    now = now or datetime.now(UTC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held for this moment by whoever has it
            size = os.fstat(file.fileno()).st_size
            if size % _LINE_BYTES:  # a write was cut short
                size -= size % _LINE_BYTES
                file.truncate(size)
            if (start := size - hourly * _LINE_BYTES) >= 0:
                earlier = _time(os.pread(file.fileno(), _LINE_BYTES, start))
                if earlier > now - timedelta(hours=1):
                    raise Refused("rate", f"{hourly} rounds within the last hour")
            file.write(now.strftime(_FORM).encode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "damaged; delete it"
        raise StorageError(f"{path}: {reason}") from None


def _time(line: bytes) -> datetime:
    return datetime.strptime(line.decode("ascii"), _FORM).replace(tzinfo=UTC)
