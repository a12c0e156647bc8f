"""`tacit server`: a SuperLink on loopback that waits for the sites, runs one experiment and ends with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tacit.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from server.superlink import SuperLink
    from tacit.config import Experiment


def command(
    experiment: Annotated[Path | None, typer.Argument(help="The experiment's TOML file.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for checkpoints, ledger and results.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 = a free one.")] = 8000,
    clients: Annotated[int, typer.Option(min=0, help="Sites to wait for; 0 = as the experiment says.")] = 0,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Rehearse on this one machine, without TLS.")
    ] = False,
) -> None:
    """Coordinate a federation: run one experiment with the sites that connect."""
    if not insecure_loopback:
        raise ConfigError(
            "provisioning and TLS come with a later version; --insecure-loopback rehearses on one machine"
        )
    if experiment is None or state is None:
        raise ConfigError("tacit server --insecure-loopback EXPERIMENT.toml --state DIR: both are needed")
    from tacit import config

    serve(config.load(experiment), state, experiment.parent, port=port, num_clients=clients)


def serve(experiment: Experiment, state: Path, federation: Path, *, port: int, num_clients: int) -> None:
    """Runs one experiment with real nodes on this machine.

    Args:
        experiment: what to run.
        state: the server's state directory; made when missing.
        federation: folder with the roster and this server's key.
        port: on 127.0.0.1, which is the only address it listens on; 0 = a free one.
        num_clients: nodes to wait for before the run starts; 0 = as many as the experiment declares.

    Raises:
        RunFailed: the run ended without a result.
        ConfigError: the port is taken, or the experiment names a fault list.
        StorageError: the folder is another experiment's, or cannot be used.
    """
    if experiment.simulation.faults:
        raise ConfigError("real processes play no faults yet: tacit simulate does", key="simulation.faults")
    from server import submission
    from server.state import check_folder
    from server.superlink import SuperLink

    state = state.resolve()
    check_folder(state, experiment.to_toml())  # before anything is started and anybody waits
    variables = {"TACIT_STATE": str(state), "TACIT_FEDERATION": str(federation.resolve())}
    with SuperLink(state / "flower", port=port, variables=variables) as link:
        with _progress() as progress:
            _wait_for_nodes(link, num_clients or _declared_clients(experiment), progress)
            rounds = progress.add_task("training", total=experiment.training.rounds)
            follow = _RoundFollower(state / "rounds.jsonl", progress, rounds)
            submission.run(link, experiment.to_toml(), state, on_poll=follow)
            progress.update(rounds, total=follow.num_rounds, completed=follow.num_rounds)
        progress.console.print(
            f"done: {follow.num_rounds} of {experiment.training.rounds} rounds, {state / 'result.json'}"
        )


class _RoundFollower:
    """Shows each line that the `ServerApp` appends to `rounds.jsonl`, once."""

    def __init__(self, path: Path, progress: Progress, task: TaskID) -> None:
        self.num_rounds = 0
        self._path, self._progress, self._task = path, progress, task
        # Lines of an earlier run, which this one resumes, are progress but no news.
        self._offset = 0
        self._read(silent=True)

    def __call__(self) -> None:
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
                self._progress.console.print(_round_text(json.loads(line)), highlight=False)
        self._progress.update(self._task, completed=self.num_rounds)


def _round_text(row: dict[str, Any]) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in (row.get("metrics") or {}).items())
    seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
    return "  ".join(filter(None, (f"round {row.get('round', '?')}", seconds, metrics)))


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns)


def _wait_for_nodes(link: SuperLink, num_clients: int, progress: Progress) -> None:
    from server import submission

    waiting = progress.add_task(f"sites on 127.0.0.1:{link.port}", total=num_clients)
    while (online := submission.num_online_nodes(link)) < num_clients:
        progress.update(waiting, completed=online)
        link.check()
        time.sleep(1.0)  # each question starts a process
    progress.update(waiting, completed=num_clients)


def _declared_clients(experiment: Experiment) -> int:
    return len(experiment.federation.sites) or experiment.partition.num_clients
