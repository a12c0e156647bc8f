"""Refusals in a site's audit log: each kind at once, and then the more seldom the more often it comes.

A server may ask again and again. The first refusal of a kind (message and reason) is written, then the 2nd and 3rd
together, the next 4 together, and so on: a thousand make ten records. After an hour without a record of its kind the
next one is written at once. What was only counted yet is lost with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Final

from tacit.audit import SITE_FILE, AuditLog, Refusal, code_of
from tacit.toml import read_toml

HOUR: Final = 3600.0


@dataclass
class _Kind:
    """One kind of refusal: how many are not written yet, how many are needed for that, when one was last."""

    pending: int = 0
    due: int = 1
    written: float = -inf


class Refusals:
    """The refusals of one site.

    Args:
        log: where they are entered.
        clock: seconds that only grow.

    Guarantees:
        However often a server is refused, the site writes no more than a few records an hour of each kind.
    """

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()

    def note(self, step: str, reason: str) -> None:
        """Counts a refusal, and writes those of its kind when it is time to.

        Raises:
            StorageError: it could not be written; it is counted, and written with the next one.
        """
        step, reason = code_of(step), code_of(reason)
        with self._lock:
            kind, now = self._kinds.setdefault((step, reason), _Kind()), self._clock()
            kind.pending += 1
            if now - kind.written >= HOUR:
                kind.due = 1
            if kind.pending >= kind.due:
                self._log.write(Refusal(step, reason, kind.pending))
                kind.pending, kind.due, kind.written = 0, 2 * kind.due, now


@lru_cache(maxsize=256)
def refusals_of(folder: Path) -> Refusals:
    """Those of a site's folder. Its policy is not looked at: a broken one is itself a reason to refuse."""
    durable = bool(read_toml(folder / "site.toml").get("durable", True))
    return Refusals(AuditLog(folder / SITE_FILE, durable=durable))
