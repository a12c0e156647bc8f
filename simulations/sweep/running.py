"""Runs what is not finished of some cells, and shows how far it is: the same for a sweep and for a search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from simulations.sweep.display import SweepDisplay
from simulations.sweep.folder import SweepFolder
from simulations.sweep.grid import Cell, told
from simulations.sweep.workers import Job, run_jobs


def run_cells(
    folder: SweepFolder,
    cells: Iterable[tuple[int, Cell]],
    total: int,
    num_kept: int,
    num_workers: int,
    console: Console,
    *,
    quiet: bool,
    on_done: Callable[[int, str], None] = lambda number, reason: None,
) -> dict[int, str]:
    """Runs what is not finished; why cells failed, by number.

    Args:
        folder: where they are kept.
        cells: with their numbers; asked for one by one, when a process is free.
        total: how many they are.
        num_kept: how many of them are finished already.
        num_workers: processes.
        console: where progress is shown.
        quiet: whether none is.
        on_done: told the number of a cell that has ended, and why it failed ("" = it did not), before the next cell
            is asked for.
    """
    reasons: dict[int, str] = {}
    if num_kept == total:
        return reasons
    num_workers = min(num_workers, total - num_kept)
    begun: dict[int, Cell] = {}

    def jobs() -> Iterator[Job]:
        for number, cell in cells:
            if not folder.is_finished(cell):
                begun[number] = cell
                text = cell.experiment.to_toml()
                yield Job(number, text, folder.cell(cell), folder.is_begun(cell), folder.baselines)

    def begin(job: Job) -> None:
        folder.note(begun[job.number])
        display.begun(job.number, told(begun[job.number].values))

    with SweepDisplay(console, f"{folder.CELL}s", total, num_kept, num_workers, quiet=quiet) as display:
        for done in run_jobs(jobs(), num_workers, folder.log, on_start=begin):
            if done.reason:
                reasons[done.number] = done.reason
            on_done(done.number, done.reason)
            display.done(done)
    return dict(sorted(reasons.items()))
