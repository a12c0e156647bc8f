"""`tacit audit privacy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.errors import ConfigError, RunFailed, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tacit.report.audit_record import AuditRecord

METHODS = ("one-run", "clients", "membership", "inversion", "all")


def privacy(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What is audited.")],
    method: Annotated[str, typer.Option(help="one-run, clients, membership, inversion, or all.")] = "all",
    canaries: Annotated[
        int, typer.Option(min=0, max=100_000, help="How many; 0 = as many as suit, at most 1000.")
    ] = 0,
    guesses: Annotated[
        int, typer.Option(min=0, max=100_000, help="Of how many coins; 0 = a tenth, and 50 at least.")
    ] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="audits/NAME")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of coins and canaries; never of noise.", show_default="new")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of the table.")] = False,
) -> None:
    """Attack a training of this experiment, and print what is measured beside what is claimed.

    Exit code 0: no attack has found more than is claimed. 1: one has, and the
    claim is false. A lower bound below the claim is no proof of it.

    \b
    tacit audit privacy my.toml
    tacit audit privacy my.toml --method one-run --canaries 1000
    tacit audit privacy my.toml --set privacy=none --out audits/not-private
    """
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise ConfigError(
            f"must be one of {known}, not {method!r}{did_you_mean(method, METHODS)}", key="--method"
        )
    if 0 < canaries < 10:
        raise ConfigError("10 canaries are the fewest that say anything", key="--canaries")
    from tacit import config

    loaded = config.load(experiment, overrides or [])
    if loaded.insecure_seeded_noise:
        raise ConfigError(
            "noise from a seed is no privacy: there is no claim to audit", key="insecure_seeded_noise"
        )
    from rich.console import Console

    from simulations.auditing.audit import audit, trainings
    from simulations.cli import find_tasks_in

    if loaded.task.is_own:
        find_tasks_in(experiment.resolve().parent)
    folder = out or Path("audits") / loaded.name.replace(" ", "-")
    console = Console(stderr=as_json)
    planned, silent = trainings(loaded, method), quiet or as_json
    if not silent:
        console.print(ahead(planned, loaded.training.rounds), highlight=False, soft_wrap=True)
    with progress(console, sum(planned.values()), quiet=silent) as tell:
        record = audit(
            loaded, folder, method=method, canaries=canaries, guesses=guesses, seed=seed, on_part=tell
        )
    if as_json:
        print((folder / "audit.json").read_text(encoding="utf-8"))
    elif not quiet:
        show(console, record)
        console.print(f"report: {folder / 'audit.html'}", highlight=False, soft_wrap=True)
    if record.crossed:
        raise RunFailed("; ".join(sentence(attack) for attack in record.crossed))


def sentence(attack: object) -> str:
    """The line that ends an audit which has refuted a claim."""
    from tacit.report.audit_page import lower
    from tacit.report.audit_record import Attack
    from tacit.report.wording import upper

    assert isinstance(attack, Attack)
    return (
        f"the claim is false: {attack.method} measures an epsilon of at least {lower(attack.lower_bound)} at "
        f"{attack.confidence:.0%} confidence, and at most {upper(attack.claim)} is claimed for each {attack.unit}"
    )


def show(console: Console, record: AuditRecord) -> None:
    """The table, how to read it, and what was left out."""
    from tacit.report.audit_page import HONESTY

    if record.attacks:
        console.print(table(record))
        console.print(HONESTY, highlight=False)
    if record.inversion is not None:
        for image in record.inversion.images[1:]:
            console.print(
                f"rebuilt from {image.title}: correlation with the record {image.similarity:.2f}",
                highlight=False,
            )
    for line in record.skipped:
        console.print(f"not done: {line}", style="yellow", highlight=False)


def table(record: AuditRecord) -> Table:
    """Measured beside claimed, a row for each attack."""
    from rich.table import Table

    from tacit.report.audit_page import lower
    from tacit.report.wording import upper

    confidence = record.attacks[0].confidence
    made = Table(title=f"{record.name}: epsilon, measured and claimed")
    made.add_column("attack")
    for name in (
        "unit",
        f"at least ({confidence:.0%})",
        "at most (claim)",
        "right",
        "canaries",
        "AUC",
        "verdict",
    ):
        made.add_column(name, justify="right")
    for attack in record.attacks:
        claim = upper(attack.claim) if math.isfinite(attack.claim) else "nothing claimed"
        made.add_row(
            attack.method,
            attack.unit,
            lower(attack.lower_bound),
            claim,
            f"{attack.correct}/{attack.guesses}",
            str(attack.canaries),
            f"{attack.auc:.3f}",
            attack.verdict,
            style="bold red" if attack.crossed else "",
        )
    return made


def ahead(planned: dict[str, int], rounds: int) -> str:
    """How much is to be done: "18 trainings of 20 rounds (one-run 1, membership 17)"."""
    total = sum(planned.values())
    each = ", ".join(f"{name} {number}" for name, number in planned.items())
    return f"{total or 'no'} training{'s' * (total != 1)} of {rounds} round{'s' * (rounds != 1)} ({each})"


@contextmanager
def progress(console: Console, num_trainings: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says what goes on: a bar of the trainings in a terminal, else a line for each kind of part."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    live = not quiet and console.is_terminal
    said: set[str] = set()
    with Progress(*columns, console=console, disable=not live, transient=True) as bar:
        task = bar.add_task("starting", total=num_trainings)
        training = False

        def tell(part: str) -> None:
            nonlocal training
            bar.update(task, description=part, advance=int(training))  # what has begun before is over
            training = ": training " in part
            kind = "".join(c for c in part if not c.isdigit())
            if not quiet and not live and kind not in said:
                said.add(kind)
                console.print(part, highlight=False)

        yield tell
