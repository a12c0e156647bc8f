"""A live display of a simulation: which part it is in, and each round as the server writes it down."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from server.state import read_rounds
from tacit.errors import StorageError

PARTS = {
    "sites": "dividing the data among sites",
    "rounds": "training",
    "evaluation": "evaluating every round's model",
    "baselines": "training the pooled and the local-only baselines",
    "report": "writing the report",
}


class LiveProgress:
    """Follows `rounds.jsonl` from a thread of its own, so that it looks the same for every engine.

    Args:
        console: where to draw; nothing is drawn when it is no terminal, or `quiet`.
        rounds_file: what the server appends to.
        num_rounds: the bar's length.
    """

    def __init__(self, console: Console, rounds_file: Path, num_rounds: int, *, quiet: bool) -> None:
        self._file, self._console = rounds_file, console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._plain = not quiet and not console.is_terminal
        self._task = self._progress.add_task("starting", total=num_rounds, facts="")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        if not self._progress.disable:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._update()
        self._progress.stop()

    def part(self, name: str) -> None:
        """Says which part of the simulation begins."""
        self._progress.update(self._task, description=PARTS[name])
        if self._plain:
            self._console.print(PARTS[name], highlight=False)

    def _follow(self) -> None:
        while not self._stop.wait(0.1):
            self._update()

    def _update(self) -> None:
        try:
            rows = read_rounds(self._file)
        except (StorageError, OSError):  # the server says so, or mends it; here it is only a picture
            return
        if rows:
            epsilon = rows[-1].get("epsilon")
            spent = f"epsilon {epsilon:.3g}" if isinstance(epsilon, float) else "not private"
            clients = f"{len(rows[-1]['survivors'])}/{len(rows[-1]['cohort'])} sites"
            self._progress.update(self._task, completed=len(rows), facts=f"{clients}, {spent}")
