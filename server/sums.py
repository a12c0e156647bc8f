"""What the server remembers of its secure sums over a restart: attempts made, cheats, and how far journals were."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from strategies.coordinator import SumMemory
from tacit.durable import new_folder, write_file
from tacit.errors import StorageError

COUNTERS_FILE: Final = Path("state", "counters.json")  # in a coordinator's folder
_SHOWING: Final = threading.Lock()  # rounds that are under way at a time have one file of counters


class SumFile(SumMemory):
    """A `SumMemory` in a file, written before an attempt is made.

    Args:
        path: the run's file; need not exist yet.
        counters: the federation's file of the counters that clients were shown, for all its runs; None = forget them.

    Raises:
        StorageError: one of them is damaged.

    Guarantees:
        A member whose journal goes back is kept out after a restart and in another run, too.
    """

    def __init__(self, path: Path, counters: Path | None = None) -> None:
        super().__init__()
        self._path, self._counters_path = path, counters
        self.counters = self._shown()
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.round, self.attempt = int(stored["round"]), int(stored["attempt"])
            self.strikes = {int(index) for index in stored["strikes"]}
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise StorageError(f"{path}: missing or damaged") from None

    def show(self, counters: Mapping[int, int]) -> None:
        """See `SumMemory`."""
        with _SHOWING:
            super().show(self._shown())  # another run of this federation may have shown more
            super().show(counters)
            if self._counters_path is not None:
                stored = {str(index): counter for index, counter in sorted(self.counters.items())}
                new_folder(self._counters_path.parent)
                write_file(self._counters_path, json.dumps(stored).encode())

    def _shown(self) -> dict[int, int]:
        """What the file says that clients were shown."""
        path = self._counters_path
        if path is None or not path.exists():
            return {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return {int(index): int(counter) for index, counter in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise StorageError(
                f"{path}: damaged; delete it: clients refuse a journal that goes back anyway"
            ) from None

    def _changed(self) -> None:
        stored = {"round": self.round, "attempt": self.attempt, "strikes": sorted(self.strikes)}
        write_file(self._path, json.dumps(stored).encode())
