"""`tacit scenarios`: the stories that come with Tacit, and how to run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Stories of health and finance to try a federation on: list them, read one, run one.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A scenario of tacit scenarios list.")]


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """What there is: name, field, where the data come from, and the question."""
    from simulations.scenarios.catalogue import STORIES

    if as_json:
        rows = [
            {key: getattr(s, key) for key in ("name", "field", "title", "data")} for s in STORIES.values()
        ]
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "field", "data", "question", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for story in STORIES.values():
        table.add_row(story.name, story.field, story.data.partition(":")[0], story.title)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "tacit scenarios show NAME tells one; tacit scenarios run NAME --size ci runs it in seconds"
    )


@app.command()
def show(name: Name) -> None:
    """The story of a scenario, its schema, its truth and its settings, and how to run it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from simulations.scenarios import catalogue
    from tacit import config

    story = catalogue.story(name)
    path = catalogue.experiment_file(name)
    experiment = config.load(path)
    record = experiment.privacy.record
    told = {
        "question": story.title,
        "data": story.data,
        "sites": story.sites,
        "task": f"{experiment.task.kind}, {experiment.task.model.name}",
        "schema": catalogue.described(story, experiment),
        "measured": story.measured,
        "compared with": story.truth,
        "privacy": "none"
        if record is None
        else f"one record: epsilon {record.epsilon:g}, delta {record.delta:g}; "
        f"{experiment.training.rounds} rounds of {experiment.training.local_steps} steps",
        "experiment": str(path),
        "run": f"tacit scenarios run {name}\n"
        f"tacit scenarios run {name} --compare\n"
        f"tacit scenarios run {name} --size ci",
        "--size ci": ", ".join(story.ci),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, text in told.items():
        table.add_row(Text(key), Text(text, overflow="fold"))
    Console(highlight=False).print(table)


@app.command()
def run(
    name: Name,
    size: Annotated[
        Literal["ci", "full"], typer.Option(help="ci: fewer records and rounds, in seconds; full: the story.")
    ] = "full",
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything the run writes.", show_default="runs/NAME")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. privacy.record.epsilon=1."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Without privacy, at epsilon 8, 3 and 1, and with failing sites: one table."
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Data, split, weights, rounding; never noise.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of the summary.")
    ] = False,
) -> None:
    """Run a scenario as tacit simulate runs its experiment: federated beside pooled, local-only and best achievable.

    \b
    tacit scenarios run card_fraud --size ci
    tacit scenarios run card_fraud --set privacy.record.epsilon=1 --out runs/epsilon-1
    """
    from rich.console import Console

    from simulations.cli import simulate
    from simulations.scenarios import catalogue

    story, console = catalogue.story(name), Console(highlight=False)
    folder = out or Path("runs") / name
    settings = [*(story.ci if size == "ci" else ()), *(overrides or [])]
    if compare:
        from simulations.scenarios.comparison import compare as run_all
        from simulations.scenarios.comparison import comparison_table

        settings += [f"seed={seed}"] if seed is not None else []
        say: Callable[[str], None] = (
            (lambda text: None) if quiet or as_json else Console(stderr=True, highlight=False).print
        )
        lines = run_all(story, folder, settings, say=say)
        if as_json:
            print((folder / "comparison.json").read_text(encoding="utf-8"))
        elif not quiet:
            console.print(comparison_table(story, lines))
        return
    simulate(catalogue.experiment_file(name), settings, folder, seed=seed, quiet=quiet, as_json=as_json)
    if story.group and not quiet and not as_json:
        from simulations.scenarios.fairness import group_table

        console.print(group_table(folder, story.group))
