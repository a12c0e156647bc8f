"""What the server remembers of its secure sums over a restart: attempts made, and members that have cheated."""

from __future__ import annotations

import json
from pathlib import Path

from server.checkpoint import write_file
from strategies.coordinator import SumMemory
from tacit.errors import StorageError


class SumFile(SumMemory):
    """A `SumMemory` in a file, written before an attempt is made.

    Args:
        path: the file; need not exist yet.

    Raises:
        StorageError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.round, self.attempt = int(stored["round"]), int(stored["attempt"])
            self.strikes = {int(index) for index in stored["strikes"]}
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise StorageError(f"{path}: missing or damaged") from None

    def _changed(self) -> None:
        stored = {"round": self.round, "attempt": self.attempt, "strikes": sorted(self.strikes)}
        write_file(self._path, json.dumps(stored).encode())
