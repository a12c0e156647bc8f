"""`tacit submit`, `runs`, `logs` and `stop`: a federation's runs, by the files of its coordinator's kit alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from server.runs import Queue, Run

POLL_SECONDS = 0.2
SHOWN = 8  # digits of a run's id that tell it from others

Kit = Annotated[Path, typer.Option(help="The coordinator's kit.")]
Outcome = Annotated[str, typer.Option(hidden=True)]  # for the server, while a run's status is not its last
RunStart = Annotated[str, typer.Argument(metavar="[RUN]", help="First digits of its id; the newest without.")]
KIT = Path("kits/coordinator")


def submit(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="What to run; without, see --resume.")
    ] = None,
    kit: Kit = KIT,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="RUN", help="Go on with a run that failed or was stopped.")
    ] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
) -> None:
    """Have a federation run an experiment, and follow it to its end.

    Exit code 0 says that it has finished. Ctrl-C ends the watching, not the run.
    """
    queue = queue_of(kit)
    if (experiment is None) == (not resume):
        raise ConfigError("tacit submit EXPERIMENT.toml, or tacit submit --resume RUN")
    if experiment is None:
        run = queue.find(resume)
        queue.resume(run)
    else:
        from server.experiments import ready_for
        from tacit import config

        run = queue.submit(ready_for(config.load(experiment, overrides or []), kit))
    if detach:
        typer.echo(run.id)
        return
    follow(run, kit)


def runs(kit: Kit = KIT) -> None:
    """List a federation's runs, the newest last: state, rounds, name, why, and the report of what has ended."""
    found = queue_of(kit).known()
    if not found:
        typer.echo(f"no runs yet: tacit submit EXPERIMENT.toml --kit {kit}")
    for run, status in found:
        if status is None:
            typer.echo(f"{run.id[:SHOWN]}  damaged   {run.folder / 'status.json'}")
            continue
        done = f"{run.num_rounds}/{status.rounds}"
        reason = status.reason.partition("\n")[0]
        said = "" if reason == status.state else reason
        page = run.page if status.has_ended else None
        parts = (f"{run.id[:SHOWN]}  {status.state:<8}  {done:>9}  {status.name}", said, str(page or ""))
        typer.echo("  ".join(filter(None, parts)))


def report(run: RunStart = "", kit: Kit = KIT, outcome: Outcome = "") -> None:
    """Write a run's report and its privacy statement anew; tacit server does it when a run ends."""
    from server.findings import write_report

    found = queue_of(kit).find(run)
    missing = write_report(found, kit, outcome)
    echo_report(found)
    for line in missing:
        typer.echo(line, err=True)


def logs(
    run: RunStart = "",
    kit: Kit = KIT,
    follow_it: Annotated[bool, typer.Option("--follow", help="Until its end.")] = False,
) -> None:
    """Show what happened in a run, and its rounds."""
    from server.following import round_text
    from server.state import read_rounds

    found = queue_of(kit).find(run)
    typer.echo((found.folder / "log.txt").read_text(encoding="utf-8"), nl=False)
    for row in read_rounds(found.folder / "rounds.jsonl"):
        typer.echo(round_text(row))
    if follow_it:
        follow(found, kit)


def stop(run: RunStart = "", kit: Kit = KIT) -> None:
    """End a run; what was complete is kept, and tacit submit --resume goes on with it."""
    found = queue_of(kit).find(run)
    if found.status.has_ended:
        raise ConfigError(f"run {found.id[:SHOWN]} is {found.status.state} already")
    found.ask_to_stop()
    if not is_served(kit):
        typer.echo("no server is at work: the run is stopped when one begins")
        return
    with _told_of_interrupt("the server will stop the run"):
        while not found.status.has_ended:
            time.sleep(POLL_SECONDS)
    typer.echo(f"run {found.id[:SHOWN]} {found.status.state} after {found.num_rounds} rounds")


def queue_of(kit: Path) -> Queue:
    """The queue in a coordinator's kit.

    Raises:
        ConfigError: this is no such kit.
    """
    from server.runs import Queue

    if not (kit / "server.key").exists():
        raise ConfigError("is no coordinator's kit: tacit provision makes one", key="--kit", source=kit)
    return Queue(kit / "state" / "runs")


def is_served(kit: Path) -> bool:
    """Whether a `tacit server` works on this kit."""
    from server.state import is_worked_on

    return (kit / "state").is_dir() and is_worked_on(kit / "state")


def follow(run: Run, kit: Path) -> None:
    """Shows a run's rounds until it has ended.

    Raises:
        RunFailed: it failed or was stopped.
    """
    from server.following import RoundFollower, round_progress

    status = run.status
    with round_progress() as progress, _told_of_interrupt(f"run {run.id[:SHOWN]} goes on without you"):
        task = progress.add_task(status.name, total=status.rounds)
        rounds = RoundFollower(run.folder / "rounds.jsonl", progress, task)
        said = ""
        if not status.has_ended and not is_served(kit):
            progress.console.print(f"no server is at work yet: tacit server --kit {kit}", highlight=False)
        while not (status := run.status).has_ended:
            now = f"{status.state} {status.reason}".strip()
            if now != said:
                progress.console.print(f"run {run.id[:SHOWN]}: {now}", highlight=False, soft_wrap=True)
            said = now
            rounds()
            time.sleep(POLL_SECONDS)
        rounds()
        progress.update(task, total=rounds.num_rounds or status.rounds)
    if status.state != "finished":
        echo_report(run)
        raise RunFailed(f"run {run.id[:SHOWN]} {status.state}: {status.reason}")
    typer.echo(f"run {run.id[:SHOWN]} finished: {rounds.num_rounds} of {status.rounds} rounds, {run.folder}")
    echo_report(run)


def echo_report(run: Run) -> None:
    """Says where a run's report and its statement are, if there are any."""
    from server.runs import PAGE, STATEMENT

    for name, title in ((PAGE, "report"), (STATEMENT, "privacy statement")):
        if (run.folder / name).exists():
            typer.echo(f"{title}: {run.folder / name}")


@contextmanager
def _told_of_interrupt(text: str) -> Iterator[None]:
    """Ctrl-C ends the command, and what it leaves behind is said."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"tacit: {text}", file=sys.stderr)
        sys.exit(130)
