"""Shows the rounds of a run as they come, from the file that the `ServerApp` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class RoundFollower:
    """Shows each line that the `ServerApp` appends to `rounds.jsonl`, once."""

    def __init__(self, path: Path, progress: Progress, task: TaskID) -> None:
        self.num_rounds = 0
        self._path, self._progress, self._task = path, progress, task
        # Lines of an earlier run, which this one resumes, are progress but no news.
        self._offset = 0
        self._read(silent=True)

    def __call__(self) -> None:
        """Shows what is new."""
        self._read(silent=False)

    def _read(self, *, silent: bool) -> None:
        if not self._path.exists():
            return
        if self._path.stat().st_size < self._offset:
            # A server that resumes takes back lines of rounds that have no checkpoint.
            self._offset, self.num_rounds, silent = 0, 0, True
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            self.num_rounds += 1
            if not silent:
                self._progress.console.print(round_text(json.loads(line)), highlight=False)
        self._progress.update(self._task, completed=self.num_rounds)


def round_text(row: dict[str, Any]) -> str:
    """One round in a line."""
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in (row.get("metrics") or {}).items())
    seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
    return "  ".join(filter(None, (f"round {row.get('round', '?')}", seconds, metrics)))


def round_progress() -> Progress:
    """Bars with what they count and for how long."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)
