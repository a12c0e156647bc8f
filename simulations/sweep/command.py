"""`tacit sweep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def sweep(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to run.")],
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=V,V,...",
            help="A key and its values; seed=1..5 is a range, epsilon=none is without privacy. Several make a grid.",
        ),
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(metavar="GRID.toml", help="The same from a file: a table named sweep.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every cell.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all cells and the report.", show_default="sweeps/NAME")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Cells at a time, each in a process; 0 is one for each core.")
    ] = 0,
    target: Annotated[
        str, typer.Option(metavar="METRIC=VALUE", help="What is good enough; else 95 % of pooled training.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the table.")] = False,
) -> None:
    """Run an experiment for every combination of some keys' values, and compare.

    Give the same command again to go on with what was interrupted or failed; a cell that is finished is kept,
    and more values can be added. Exit code 1 when a cell has failed; the others are run all the same.

    \b
    tacit sweep my.toml --over privacy.record.epsilon=1,3,8,none --over seed=1..5
    tacit sweep my.toml --over training.clients_per_round=5,10 --over seed=1..3 --target auroc=0.9
    """
    from rich.console import Console

    from simulations.cli import find_tasks_in
    from simulations.sweep.folder import SweepFolder
    from simulations.sweep.grid import axes_of, cells_of, told
    from simulations.sweep.metric import check_metric
    from simulations.sweep.outcome import record_of, target_of, terminal_table, write_outcome
    from simulations.sweep.running import run_cells

    axes, wanted = axes_of(over or [], grid), target_of(target) if target else None
    # All checkpoints are kept, or the learning curves that "rounds to the target" reads would be their last rounds.
    cells = cells_of(experiment, ["checkpoints.keep=0", *(overrides or [])], axes)
    if any(cell.experiment.task.is_own for cell in cells):
        find_tasks_in(experiment.resolve().parent)
    if wanted:
        check_metric(wanted.metric, (cell.experiment for cell in cells), key="--target")
    folder = SweepFolder(out or Path("sweeps") / cells[0].experiment.name.replace(" ", "-"))
    console = Console(stderr=as_json)
    with folder.claimed():
        for cell in cells:
            folder.check(cell)
        reasons = run_cells(
            folder,
            enumerate(cells),
            len(cells),
            sum(folder.is_finished(cell) for cell in cells),
            jobs or os.cpu_count() or 1,
            console,
            quiet=quiet or as_json,
        )
        record = record_of(folder, cells, axes, reasons, wanted)
        write_outcome(record, folder)
    if as_json:
        print((folder.path / "sweep.json").read_text(encoding="utf-8"))
    elif not quiet:
        console.print(terminal_table(record))
        console.print(f"report: {folder.path / 'sweep.html'}", highlight=False, soft_wrap=True)
    for number, reason in reasons.items():
        text = f"tacit: {told(cells[number].values)}: {reason}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(1 if reasons else 0)
