"""`tacit simulate`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tacit.errors import ConfigError

MOST_SITES = 50  # processes of one rehearsal


def simulate(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key, e.g. training.rounds=5, privacy=none."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything the run writes.", show_default="runs/NAME")
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(metavar="FAULTS.toml", help="Failures and lies to play; local engine only.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for clusters.")] = "local",
    seed: Annotated[
        int | None, typer.Option(help="Data, split, weights, cohorts, rounding; never noise.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete round.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of the summary.")
    ] = False,
    insecure_seeded_noise: Annotated[
        bool,
        typer.Option(
            "--insecure-seeded-noise",
            help="Draw the noise from the seed too, for tests and comparisons. The run is NOT PRIVATE.",
        ),
    ] = False,
) -> None:
    """Try a federation on this machine: train, compare with pooled and local-only, write a report.

    \b
    tacit simulate my.toml
    tacit simulate my.toml --set privacy.record.epsilon=1 --set seed=3
    tacit simulate my.toml --set privacy=none --out runs/not-private
    tacit simulate my.toml --faults faults.toml
    """
    if engine not in ("local", "ray"):
        raise ConfigError(f'must be "local" or "ray", not {engine!r}', key="--engine")
    from tacit import config

    settings = list(overrides or [])
    settings += [f"simulation.faults={json.dumps(str(faults))}"] if faults else []
    settings += [f"seed={seed}"] if seed is not None else []
    settings += ["insecure_seeded_noise=true"] if insecure_seeded_noise else []
    loaded = config.load(experiment, settings)  # before the slow imports: a mistake is answered at once
    if loaded.task.is_own:
        find_tasks_in(experiment.resolve().parent)
    from rich.console import Console

    from simulations.progress import LiveProgress
    from simulations.run import simulate as run
    from tacit.report.summary import summary_table

    folder = out or Path("runs") / loaded.name.replace(" ", "-")
    console = Console(stderr=as_json)
    rounds_file = folder / "server" / "rounds.jsonl"
    with LiveProgress(console, rounds_file, loaded.training.rounds, quiet=quiet or as_json) as progress:
        record = run(loaded, folder, engine=engine, resume=resume, on_part=progress.part)
    if as_json:
        print((folder / "report.json").read_text(encoding="utf-8"))
    elif not quiet:
        console.print(summary_table(record))
        for warning in record.warnings:
            console.print(f"note: {warning}", style="yellow", highlight=False)
        console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def find_tasks_in(folder: Path) -> None:
    """Lets a task of one's own lie beside its experiment, for this process and those it starts."""
    sys.path.insert(0, str(folder))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join((str(folder), known)) if known else str(folder)


def partition(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What would be run.")],
    out: Annotated[Path, typer.Option(help="Folder to write sites/ into.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
) -> None:
    """Divide a data set among site folders, as a simulation would, and show who got what.

    A rehearsal with real processes begins here: tacit client run takes one
    of the folders, tacit server takes sites/experiment.toml.
    """
    from rich.console import Console

    from simulations.run import prepare
    from simulations.sites import terminal_table
    from tacit import config

    loaded = config.load(experiment, overrides or [])
    prepared = prepare(loaded, out)
    console = Console()
    console.print(terminal_table(prepared))
    for warning in prepared.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False)
    console.print(f"sites: {prepared.folder}", highlight=False, soft_wrap=True)


def rehearse(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to run.")],
    sites: Annotated[
        int | None,
        typer.Option(
            min=3,
            max=MOST_SITES,
            help="Among how many its data are divided.",
            show_default="4, or as many as its secure sum needs",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for kits, logs and model, to look at later.")
    ] = None,
) -> None:
    """Try a whole federation on this machine: kits, keys, TLS, secure sums, one process for each site.

    Does by itself what people do in a real one, and says at the end what they would do otherwise.
    """
    from tempfile import TemporaryDirectory

    from rich.console import Console
    from rich.table import Table

    from simulations.rehearsal import DIFFERENCES, fewest_sites, rehearse
    from tacit import config

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise ConfigError("is not empty", source=keep, key="--keep")
    overrides = overrides or []
    if not any(o.startswith("partition.") for o in overrides):
        number = sites or fewest_sites(config.load(experiment, overrides).secure_aggregation, MOST_SITES)
        overrides = [f"partition.num_clients={number}", *overrides]
    loaded = config.load(experiment, overrides)
    console = Console()
    with TemporaryDirectory(prefix="tacit-rehearsal-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        def say(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        done = rehearse(loaded, folder, say)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.seconds.items())
    console.print(f"took: {times}", highlight=False, soft_wrap=True)
    if done.code == 0:
        table = Table("here", "in a federation of real sites", title="what would differ", show_lines=True)
        for row in DIFFERENCES:
            table.add_row(*row)
        console.print(table)
        if keep is None:
            say("nothing of it is kept; --keep DIR keeps kits, logs, model, report and privacy statement")
        elif done.run is not None:
            say(f"model: {done.run / 'model.safetensors'}")
    raise typer.Exit(done.code)
