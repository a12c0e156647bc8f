"""`tacit tune`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulations.tuning.space import Dimension, Trials, Tuning
    from tacit.config import Experiment


def tune(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to run.")],
    search: Annotated[
        Path, typer.Argument(metavar="SEARCH.toml", help="Where to look: a table named tuning, as above.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every trial.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all trials and the report.", show_default="searches/NAME")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Trials at a time, each in a process; 0 is one for each core.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print tuning.json instead of the table.")] = False,
) -> None:
    """Look for good values of some keys, and say what looking cost.

    SEARCH.toml says which keys, and how they are tried:

    \b
    \\[tuning]
    method = "bayesian"      # or "random", "grid"
    trials = 30
    metric = "auroc"         # to be best; without it the main one
    accounting = "none"      # "public": these data are; "private": count it
    \\[tuning.space]
    training.learning_rate = {low = 0.1, high = 10.0, log = true}
    training.local_steps = "1..5"
    task.model.hidden = [[8], [16], [16, 8]]

    Give the same command again to go on with what was interrupted. best.toml is the experiment with the best values.
    Choosing by private data is a release that no trial has paid for: see docs/tuning.md.

    \b
    tacit tune my.toml search.toml
    tacit simulate searches/my/best.toml
    """
    from rich.console import Console

    from simulations.sweep.running import run_cells
    from simulations.tuning.folder import SearchFolder
    from simulations.tuning.outcome import BEST, BEST_MODEL, record_of, terminal_table, write_outcome
    from simulations.tuning.search import Search
    from simulations.tuning.space import Trials, tuning_of

    tuning, dimensions = tuning_of(search)
    is_counted = tuning.accounting == "private"
    trials = Trials(experiment, overrides or [], search, round=tuning.round)
    name = _checked(tuning, trials, dimensions, experiment, search).name
    folder = SearchFolder(out or Path("searches") / name.replace(" ", "-"), counted=is_counted)
    console, num_workers, silent = Console(stderr=as_json), jobs or os.cpu_count() or 1, quiet or as_json
    with folder.claimed():
        found = Search(tuning, dimensions, trials, folder)
        num, kept = found.total, found.num_finished
        reasons = run_cells(
            folder, found.cells(), num, kept, num_workers, console, quiet=silent, on_done=found.done
        )
        record, best = record_of(found, tuning, dimensions, trials, reasons)
        write_outcome(record, best, folder, trials)
    if as_json:
        print((folder.path / "tuning.json").read_text(encoding="utf-8"))
    elif not quiet:
        console.print(terminal_table(record))
        for name in ("tuning.html", *([BEST, BEST_MODEL] if record.best else [])):
            console.print(f"{folder.path / name}", highlight=False, soft_wrap=True)
    failed = {} if is_counted else reasons  # they would tell of trials that nobody is to hear of
    for number, reason in failed.items():
        print(f"tacit: trial {number + 1}: {reason}", file=sys.stderr)
    raise typer.Exit(1 if failed or record.best is None else 0)


def _checked(
    tuning: Tuning, trials: Trials, dimensions: Sequence[Dimension], experiment: Path, search: Path
) -> Experiment:
    """What the trials begin from; `ConfigError` where one of them could not run, or be compared with the others."""
    from simulations.cli import find_tasks_in
    from simulations.sweep.metric import check_metric
    from simulations.tuning import counted

    base, corners = trials.trial({}), trials.corners(dimensions)
    tried, is_counted = [base, *(corner for _, corner in corners)], tuning.accounting == "private"
    if is_counted:
        counted.check(tuning, base, corners, source=str(search))
    if any(one.task.is_own for one in tried):
        find_tasks_in(experiment.resolve().parent)
    check_metric(tuning.metric, tried, key="tuning.metric", source=search, summed=is_counted)
    return base
