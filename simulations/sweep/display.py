"""What a sweep or a search shows while it runs: how many are done, which run, and how long the rest will take."""

from __future__ import annotations

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

from simulations.sweep.workers import Done


class SweepDisplay:
    """A bar in a terminal, a line for each cell elsewhere.

    Args:
        console: where to draw.
        what: what they are called.
        total: how many there are.
        num_kept: how many were finished before.
        num_workers: how many run at a time.
    """

    def __init__(
        self, console: Console, what: str, total: int, num_kept: int, num_workers: int, *, quiet: bool
    ) -> None:
        self._console, self._what, self._total, self._num_workers = console, what, total, num_workers
        self._plain = not quiet and not console.is_terminal
        self._quiet, self._kept = quiet, num_kept
        self._finished, self._failed = num_kept, 0
        self._seconds: list[float] = []  # of each cell that has run
        self._running: dict[int, str] = {}  # number -> what it is told by
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=total, completed=num_kept, left="")

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        if self._kept and not self._quiet:
            self._console.print(
                f"{self._kept} of {self._total} {self._what} were finished before", highlight=False
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begun(self, number: int, told: str) -> None:
        """A cell begins, told by its values."""
        self._running[number] = told
        self._update()

    def done(self, done: Done) -> None:
        """A cell has ended, one way or the other."""
        told = self._running.pop(done.number)
        self._seconds.append(done.seconds)
        self._finished += 1
        self._failed += bool(done.reason)
        self._update()
        if self._plain:
            what = f"failed: {done.reason}" if done.reason else f"{done.seconds:.1f} s"
            line = f"{self._finished}/{self._total} {told}: {what}{self._left()}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _update(self) -> None:
        names = list(self._running.values())
        text = " | ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        failed = f", {self._failed} failed" if self._failed else ""
        self._progress.update(
            self._task,
            completed=self._finished,
            description=text or "done",
            left=self._left().strip(", ") + failed,
        )

    def _left(self) -> str:
        """An estimate from the mean of the cells that have run: ", about 3 min left"."""
        remaining = self._total - self._finished
        if not self._seconds or not remaining:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        seconds = mean * remaining / min(self._num_workers, remaining)
        return f", about {spelled(seconds)} left"


def spelled(seconds: float) -> str:
    """A length of time as one says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
